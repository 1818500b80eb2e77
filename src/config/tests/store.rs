//! Where the store is kept.

use super::*;

fn kept(text: &str, variable: Option<&str>) -> Store {
    let environment = |name: &str| match name {
        "STATE_DIRECTORY" => variable.map(str::to_owned),
        _ => None,
    };
    let file = Path::new("/etc/taxiway/t.toml");
    let loaded = parse(&format!("{text}{MINIMAL}"), file, &environment);
    loaded
        .unwrap_or_else(|failure| panic!("{failure}"))
        .config
        .store
}

#[test]
fn it_lies_beside_the_file_unless_something_says_otherwise() {
    let path = |text, variable| kept(text, variable).path;
    let at = |path: &str| Some(PathBuf::from(path));
    let beside = at("/etc/taxiway/taxiway.db");
    assert_eq!(path("", None), beside);
    assert_eq!(path("[store]\nkind = \"memory\"\n", None), None);
    let named = "[store]\npath = \"state/homes.db\"\n";
    assert_eq!(
        path(named, Some("/var/lib/a")),
        at("/etc/taxiway/state/homes.db")
    );
    // A service of systemd that has a state directory, or several.
    assert_eq!(path("", Some("/var/lib/a")), at("/var/lib/a/taxiway.db"));
    assert_eq!(path("", Some("/var/lib/a:/b")), at("/var/lib/a/taxiway.db"));
    for not_one in ["", "relative"] {
        assert_eq!(path("", Some(not_one)), beside, "{not_one:?}");
    }
    assert_eq!(kept("[store]\nexpire = \"0s\"\n", None).expire, None);
}

#[test]
fn what_is_said_of_a_file_means_nothing_in_memory() {
    let text = format!("[store]\nkind = \"memory\"\npath = \"x\"\nexpire = \"1h\"\n{MINIMAL}");
    let warnings = read(&text).unwrap().warnings;
    let told: Vec<_> = warnings.iter().map(|w| w.message.as_str()).collect();
    assert_eq!(
        told,
        [
            "store.path: has no effect with kind = \"memory\"",
            "store.expire: has no effect with kind = \"memory\"",
        ]
    );
}
