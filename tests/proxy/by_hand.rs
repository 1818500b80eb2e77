//! A start without a file, whose output nobody reads.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::rig::{Admin, Client, Disks, PATIENCE, Sims, bounded, free_address, until};

#[tokio::test]
async fn a_closed_output_and_a_reload_of_nothing_harm_nobody() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let (listener, admin) = (free_address(), free_address());
        let mut taxiway = Command::new(env!("CARGO_BIN_EXE_taxiway"))
            .args(["--listen", &listener.to_string()])
            .args(["--admin", &admin.to_string()])
            .args(["--backend", &sims.get("s1").address().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        drop(taxiway.stdout.take());
        let admin = Admin::new(admin);
        until("readiness", async || {
            match admin.try_request("GET", "/readyz", None).await {
                Ok((200, _)) => Ok(()),
                other => Err(other),
            }
        })
        .await;
        let client = Client::greeted(listener).await;
        client.create("by-hand").await;

        // There is no file: refused, but the configuration in force is not out of date.
        let before = admin.scrape().await;
        let (status, answer) = admin.post("/api/v1/reload", "{}").await;
        assert_eq!(status, 422, "{answer}");
        assert!(answer.contains("without a file"), "{answer}");
        let pid = Pid::from_raw(taxiway.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
        client.turn("by-hand", "hello").await;
        let after = admin.scrape().await;
        for family in [
            "taxiway_config_reloads_total",
            "taxiway_config_last_reload_successful",
        ] {
            assert!(after.0.contains(family), "{family}");
            assert_eq!(after.sum(family), before.sum(family), "{family}");
        }

        kill_process(pid, Signal::INT).unwrap();
        let ended = tokio::time::timeout(PATIENCE, taxiway.wait()).await;
        assert_eq!(ended.unwrap().unwrap().code(), Some(0));
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_is_taxiway_itself_is_refused() {
    for (own, key) in [("127.0.0.1:4391", "listener"), ("localhost:9391", "admin")] {
        let refused = Command::new(env!("CARGO_BIN_EXE_taxiway"))
            .args(["--listen", "127.0.0.1:4391", "--admin", "127.0.0.1:9391"])
            .args(["--backend", own])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let refused = bounded(20, refused).await.unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(
            said.contains(&format!("Taxiway's own {key}.address")),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_command_whose_output_nobody_reads_ends_well() {
    let mut check = Command::new(env!("CARGO_BIN_EXE_taxiway"))
        .args(["check", "--reference"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(check.stdout.take());
    assert_eq!(check.wait().await.unwrap().code(), Some(0));
}
