//! What a reload applies, and what it refuses.

use super::{
    super::reference::{self, Reload},
    *,
};

fn changes(before: &str, after: &str) -> Changes {
    diff(&good(before), &good(after))
}

const TWO: &str = "\
[[backends]]
name = \"a\"
address = \"h:1\"
[[backends]]
name = \"b\"
address = \"h:2\"
";

#[test]
fn the_same_file_changes_nothing() {
    // They are not shown anywhere, and so not compared.
    assert_eq!(
        good(EVERYTHING).secret_variables,
        ["ADMIN", "CLI", "ANN", "JWT"]
    );
    assert!(changes(EVERYTHING, EVERYTHING).is_empty());
    let swapped = "[[backends]]\nname = \"b\"\naddress = \"h:2\"\n[[backends]]\nname = \"a\"\n\
                   address = \"h:1\"\n";
    assert!(
        changes(TWO, swapped).is_empty(),
        "the order of backends means nothing"
    );
    assert!(changes(TWO, &format!("[health]\ninterval = \"2s\"\n{TWO}")).is_empty());
}

#[test]
fn backends_come_go_and_change() {
    let after = "\
[[backends]]
name = \"c\"
address = \"h:3\"
[[backends]]
name = \"a\"
address = \"elsewhere:1\"
weight = 7
state = \"drain\"
connection_token_env = \"CLI\"
";
    let changes = changes(TWO, after);
    assert_eq!(
        changes.backends,
        [
            BackendChange::Added(Backend::new("c".into(), "h:3")),
            BackendChange::Changed {
                name: "a".into(),
                address: Some("elsewhere:1".into()),
                weight: Some(7),
                state: Some(AdminState::Drain),
                token: Token::Changed,
                transport: None,
            },
            BackendChange::Removed("b".into()),
        ]
    );
    assert_eq!(
        changes.lines(),
        [
            "backend c added",
            "backend a: address elsewhere:1 weight 7 state drain token changed",
            "backend b removed",
        ]
    );
    assert!(changes.refused.is_empty() && changes.settings.is_empty());
}

#[test]
fn settings_are_told_by_key() {
    let after =
        format!("[health]\ninterval = \"5s\"\n[listener]\naddress = \"127.0.0.1:7\"\n{TWO}");
    let changes = changes(TWO, &after);
    assert!(changes.touches("listener.address") && !changes.touches("admin.address"));
    assert_eq!(
        changes.lines(),
        [
            "listener.address: \"127.0.0.1:4321\" → \"127.0.0.1:7\"",
            "health.interval: \"2s\" → \"5s\"",
        ]
    );
}

#[test]
fn another_token_is_a_change_that_is_not_shown() {
    let text = format!("[admin]\ntoken_env = \"T\"\n{TWO}");
    let with = |token: &'static str| {
        parse(&text, Path::new("t.toml"), &move |_| Some(token.to_owned()))
            .unwrap()
            .config
    };
    let changes = diff(&with("old-s3cret"), &with("new-s3cret"));
    assert_eq!(changes.lines(), ["admin.token: changed"]);
    assert!(!format!("{changes:?}").contains("s3cret"));
    assert!(diff(&with("x"), &with("x")).is_empty());
    assert!(diff(&good(TWO), &with("x")).touches("admin.token"));
}

#[test]
fn what_needs_a_restart_is_refused_with_its_reason() {
    let after = format!(
        "[routing]\nmode = \"shared-storage\"\naggregate_timeout = \"1s\"\n[managed]\n{TWO}"
    );
    let changes = changes(TWO, &after);
    assert_eq!(
        changes.refusals()[0],
        "routing.mode: \"sticky\" → \"shared-storage\" needs a restart: each mode keeps homes and \
         owners of sessions in its own way"
    );
    let refused: Vec<_> = changes
        .refused
        .iter()
        .map(|r| r.setting.key.as_str())
        .collect();
    let managed = ["command", "servers", "state_dir", "start_timeout"];
    let managed = managed.map(|key| format!("managed.{key}"));
    assert_eq!(refused[0], "routing.mode");
    assert_eq!(refused[1..], managed);
    assert_eq!(
        changes.lines(),
        ["routing.aggregate_timeout: \"2s\" → \"1s\""]
    );
}

/// Each key of the table is told as a change, on the side where its documentation puts it.
#[test]
fn every_key_is_compared() {
    let before = good(&format!("{MINIMAL}[managed]\n"));
    let mut after = good(EVERYTHING);
    after.routing.granularity = Granularity::Connection;
    let changes = diff(&before, &after);
    let applied: BTreeSet<_> = changes.settings.iter().map(|s| s.key.clone()).collect();
    let refused: BTreeSet<_> = changes
        .refused
        .iter()
        .map(|r| r.setting.key.clone())
        .collect();
    for section in SECTIONS.iter().filter(|s| s.shape == Shape::Table) {
        // Nested tables, and networks, are tested elsewhere.
        let is_simple = |k: &&reference::Key| k.is_built() && !matches!(k.kind, Kind::Nested(_));
        for key in section.keys.iter().filter(is_simple) {
            let name = format!("{}.{}", section.name, key.field());
            let is_refused = matches!(key.reload, Reload::Restart(_));
            assert_eq!(refused.contains(&name), is_refused, "{name}");
            // Of tables each is told by its own name.
            let own = format!("{name} ");
            let is_applied = applied.iter().any(|k| *k == name || k.starts_with(&own));
            assert_eq!(is_applied, !is_refused, "{name}");
        }
    }
}
