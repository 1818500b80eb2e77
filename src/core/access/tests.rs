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
