//! The load by which `benches/pgo` has a build laid out works: every configuration that it writes is
//! one, turns pass under every load, every Taxiway ends as it is told to. Nothing is built here.

use std::{path::Path, process::Command};

#[test]
fn the_load_of_the_profile_passes() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pgo");
    let out = Command::new(&script)
        .args(["--train", env!("CARGO_BIN_EXE_taxiway")])
        .env("PGO_SECONDS", "0.3")
        .output()
        .expect("the script can be run");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let trained = said.matches("turns through").count();
    assert_eq!(trained, 4, "{said}");
}
