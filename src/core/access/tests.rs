//! Who may use which session: the table of cases.

use super::*;
use crate::core::identity::Caps;

fn principal(name: &str, role: Role, realm: &str, groups: &[&str]) -> Principal {
    Principal {
        name: Arc::from(name),
        role,
        realm: Arc::from(realm),
        user: Arc::from(name),
        groups: groups.iter().map(|g| Arc::from(*g)).collect(),
        expires: None,
        allow: Vec::new(),
        deny: Vec::new(),
        caps: Caps::default(),
    }
}

fn rules() -> Access {
    Access {
        authenticates: true,
        session_id_user: Some(Regex::new("^user-(?<user>.+?)--").expect("it is one")),
        sole_realm: Some(Arc::from("r")),
        adopt_by: Some(Arc::from("heir")),
        shares: vec![Share {
            pattern: Regex::new("team-[a-z]+").expect("it is one"),
            groups: vec![Arc::from("red")],
        }],
        methods: Methods::default(),
    }
}

#[test]
fn who_may_use_what() {
    let rules = rules();
    let ann = principal("ann", Role::User, "r", &["red"]);
    let bob = principal("bob", Role::User, "r", &["blue"]);
    let eve = principal("eve", Role::User, "r", &["red"]);
    let app = principal("app", Role::Service, "r", &[]);
    let far = principal("far", Role::Service, "q", &["red"]);
    let heir = principal("heir", Role::User, "r", &[]);
    let anns = Person::new("r", "ann");
    let allowed = [
        (&ann, "x", Some(&anns), true, Relation::Owner),
        (&app, "x", Some(&anns), true, Relation::Owner),
        (&ann, "user-ann--1", None, true, Relation::Owner),
        (&ann, "user-ann--1", None, false, Relation::Owner),
        (&app, "user-ann--1", None, false, Relation::Owner),
        (&app, "new", None, false, Relation::Owner),
        (&eve, "team-x", Some(&anns), true, Relation::Member),
        (&eve, "team-x", None, false, Relation::Owner),
        (&heir, "x", None, true, Relation::Adopter),
    ];
    for (who, session, recorded, exists, relation) in allowed {
        let said = rules.judge(Some(who), session, recorded, exists);
        assert_eq!(said, Ok(relation), "{} {session}", who.name);
    }
    let denied = [
        (&bob, "x", Some(&anns), true, Denial::OtherUser),
        (&bob, "user-ann--1", None, true, Denial::OtherUser),
        (&bob, "user-ann--1", None, false, Denial::IdOfOther),
        // The record counts, whatever the id says.
        (&bob, "user-bob--1", Some(&anns), true, Denial::OtherUser),
        (&bob, "team-x", Some(&anns), true, Denial::OtherUser),
        (&eve, "team-x2", Some(&anns), true, Denial::OtherUser),
        (&eve, "1team-x", Some(&anns), true, Denial::OtherUser),
        (&far, "team-x", Some(&anns), true, Denial::OtherRealm),
        (&far, "user-ann--1", None, true, Denial::OtherRealm),
        (&bob, "new", None, false, Denial::IdOfOther),
        (&bob, "x", None, true, Denial::Unowned),
        (&app, "x", None, true, Denial::Unowned),
    ];
    for (who, session, recorded, exists, why) in denied {
        let said = rules.judge(Some(who), session, recorded, exists);
        assert_eq!(said, Err(why), "{} {session}", who.name);
    }
    let nobody = rules.judge(None, "x", None, true);
    assert_eq!(nobody, Err(Denial::Unowned), "it must say who it is first");
    let open = Access::default().judge(None, "x", Some(&anns), true);
    assert_eq!(open, Ok(Relation::Anybody));
}

#[test]
fn whose_a_new_session_is() {
    let rules = rules();
    let ann = principal("ann", Role::User, "r", &[]);
    let app = principal("app", Role::Service, "r", &[]);
    let cases = [
        (&ann, Some("user-ann--1"), "ann"),
        (&ann, Some("user-bob--1"), "ann"),
        (&app, Some("user-bob--1"), "bob"),
        (&app, Some("else"), "app"),
        (&app, None, "app"),
    ];
    for (who, session, user) in cases {
        assert_eq!(rules.person_for(who, session), Person::new("r", user));
    }
}

#[test]
fn an_id_alone_says_nothing_where_realms_are_several() {
    let rules = Access {
        sole_realm: None,
        ..rules()
    };
    assert_eq!(rules.owner(None, "user-ann--1"), None);
    let app = principal("app", Role::Service, "r", &[]);
    let said = rules.judge(Some(&app), "user-ann--1", None, true);
    assert_eq!(said, Err(Denial::Unowned));
}

/// A principal with lists of its own.
fn listed(allow: &[&str], deny: &[&str]) -> Principal {
    let words = |list: &[&str]| list.iter().map(|word| Arc::from(*word)).collect();
    Principal {
        allow: words(allow),
        deny: words(deny),
        ..principal("ann", Role::User, "r", &[])
    }
}

#[test]
fn who_may_use_which_method() {
    use crate::core::route::{Policy, Profile, Verdict, look_up};
    let words = |list: &[&str]| -> Vec<Arc<str>> { list.iter().map(|w| Arc::from(*w)).collect() };
    let access = |profile, allow: &[&str], deny: &[&str]| Access {
        methods: Methods {
            profile,
            allow: words(allow),
            deny: words(deny),
            ..Methods::default()
        },
        ..Access::default()
    };
    let says = |access: &Access, principal: Option<&Principal>, method: &str| {
        let (verdict, by) = access.method(principal, method, look_up(method).1);
        let word = match verdict {
            Verdict::Allowed => "allowed",
            Verdict::Denied(_) => "denied",
            Verdict::Unlisted => "unlisted",
        };
        format!("{word} by {}", by.word())
    };
    let single = access(Profile::SingleTenant, &[], &["session.shell.*", "tomorrow"]);
    let multi = access(
        Profile::MultiTenant,
        &[
            "session.shell.exec",
            "tomorrow",
            "runtime.shutdown",
            "mcp.*",
        ],
        &["session.shell.*", "models.list", "mcp.*"],
    );
    let open = listed(&["*"], &["session.send"]);
    let strict = listed(&["session.send*"], &["session.*"]);
    let cases = [
        (says(&single, None, "session.send"), "allowed by profile"),
        (
            says(&single, None, "session.shell.exec"),
            "denied by access",
        ),
        (says(&single, None, "tomorrow"), "denied by access"),
        (says(&single, None, "yesterday"), "allowed by profile"),
        (says(&single, None, "runtime.shutdown"), "denied by profile"),
        // The longer pattern counts, and of two alike the denial.
        (
            says(&multi, None, "session.shell.exec"),
            "allowed by access",
        ),
        (says(&multi, None, "session.shell.kill"), "denied by access"),
        (says(&multi, None, "mcp.config.list"), "denied by access"),
        (says(&multi, None, "models.list"), "denied by access"),
        (says(&multi, None, "tomorrow"), "allowed by access"),
        (says(&multi, None, "yesterday"), "unlisted by profile"),
        (says(&multi, None, "account.getQuota"), "denied by profile"),
        (
            says(&multi, None, "session.sendAndWait"),
            "allowed by profile",
        ),
        // What would end a server is nobody's to allow.
        (says(&multi, None, "runtime.shutdown"), "denied by profile"),
        (
            says(&multi, Some(&open), "runtime.shutdown"),
            "denied by profile",
        ),
        // A principal's own lists go before those for everybody.
        (
            says(&multi, Some(&open), "account.getQuota"),
            "allowed by principal",
        ),
        (
            says(&multi, Some(&open), "models.list"),
            "allowed by principal",
        ),
        (
            says(&multi, Some(&open), "yesterday"),
            "allowed by principal",
        ),
        (
            says(&multi, Some(&open), "session.send"),
            "denied by principal",
        ),
        (
            says(&multi, Some(&strict), "session.sendAndWait"),
            "allowed by principal",
        ),
        (
            says(&multi, Some(&strict), "session.abort"),
            "denied by principal",
        ),
        (
            says(&multi, Some(&strict), "models.list"),
            "denied by access",
        ),
    ];
    for (at, (is, should)) in cases.iter().enumerate() {
        assert_eq!(is, should, "case {at}");
    }
    let reason = multi.method(None, "session.shell.kill", Policy::Own).0;
    assert!(matches!(reason, Verdict::Denied(text) if text.contains("access.deny")));
}

#[test]
fn denied_parameters_are_found_where_they_stand() {
    let denied = |paths: &[&str], params: &str| {
        let methods = Methods {
            deny_params: paths.iter().map(|path| Arc::from(*path)).collect(),
            ..Methods::default()
        };
        methods
            .denied_param(params.as_bytes())
            .map(|path| path.to_string())
    };
    let local = r#"{"mcpServers":{"a":{"url":"u"},"b":{"command":"sh"}}}"#;
    let remote = r#"{"mcpServers":{"a":{"url":"u"},"command":{"url":"u"}}}"#;
    let agents = r#"{"customAgents":[{"name":"a"},{"mcpServers":{"x":{"command":"sh"}}}]}"#;
    let cases: &[(&[&str], &str, Option<&str>)] = &[
        (&[], r#"{"cloud":{}}"#, None),
        (&["cloud"], r#"{"cloud":{}}"#, Some("cloud")),
        (&["cloud"], r#"{"cloud":false}"#, None),
        (&["cloud"], r#"{"cloud":0}"#, Some("cloud")),
        (&["cloud"], r#"{"cloud":null}"#, None),
        (&["cloud"], r#"{"x":{"cloud":{}}}"#, None),
        // Of duplicates the last counts, however it is written.
        (&["cloud"], r#"{"cloud":{},"cloud":null}"#, None),
        (
            &["cloud"],
            r#"{"cloud":null,"cl\u006fud":{}}"#,
            Some("cloud"),
        ),
        (
            &["mcpServers.*.command"],
            local,
            Some("mcpServers.*.command"),
        ),
        (&["mcpServers.*.command"], remote, None),
        (
            &["customAgents.*.mcpServers.*.command"],
            agents,
            Some("customAgents.*.mcpServers.*.command"),
        ),
        (&["customAgents.name"], agents, None),
        (&["cloud", "mcpServers"], local, Some("mcpServers")),
    ];
    for (paths, params, expected) in cases {
        assert_eq!(
            denied(paths, params).as_deref(),
            *expected,
            "{paths:?} {params}"
        );
    }
}
