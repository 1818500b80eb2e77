//! Every method that clients may call, as each kind of client that there is: the table of methods is
//! the list of the tests, so a method that is added is tried at once.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::{Value, json};
use taxiway::core::route::{self, Class, classify};

use crate::{
    rig::{Client, Disks, bounded},
    users::{House, about},
};

/// What the turn of a session says; nobody may hear it who may not see the session.
const SECRET: &str = "mark-of-ann";

/// A row of the table: a method, and whether it is known what is said of an unknown session.
struct Row {
    method: &'static str,
    compared: bool,
}

/// The rows of what clients call, but for `connect`, which is how they say who they are.
fn rows() -> Vec<Row> {
    let table = include_str!("../../docs/methods.tsv");
    let rows = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split('\t').collect();
        let [method, class, _, unknown, _] = columns[..] else {
            panic!("five columns: {line}");
        };
        let compared = unknown != "-";
        let calls = !class.starts_with("from_backend") && method != "connect";
        calls.then_some(Row { method, compared })
    });
    rows.collect()
}

/// Params that name a session in every place where its id may stand.
fn naming(method: &str, session: &str) -> Value {
    if method == "sessions.enrichMetadata" {
        return json!({ "sessions": [{ "sessionId": session }] });
    }
    json!({
        "sessionId": session, "sessionIds": [session], "toSessionId": session,
        "expectedSessionId": session, "expectedFromSessionId": session, "kind": "attach",
        "options": { "sessionId": session }, "mode": "interactive", "prompt": "hello",
        "requestId": session, "excludeSessionIds": [session],
        "config": { "remote": false, "steerable": false, "explicit": false, "silent": false },
    })
}

/// Sessions of Ann's that are open; new ones when a call has ended them.
struct Stock<'a> {
    house: &'a House,
    ann: &'a Client,
    made: Vec<String>,
}

impl Stock<'_> {
    /// One that is open and had a turn, of this kind.
    async fn get(&mut self, kind: &str) -> String {
        let known = self.made.iter().rev().find(|id| id.starts_with(kind));
        if let Some(known) = known
            && self.house.sims.owner(known).is_some()
        {
            return known.clone();
        }
        self.renew(kind).await
    }

    async fn renew(&mut self, kind: &str) -> String {
        let session = format!("{kind}{}", self.made.len());
        self.ann.create(&session).await;
        self.ann.turn(&session, SECRET).await;
        self.made.push(session.clone());
        session
    }
}

/// How many calls of this method about this session the servers have had.
fn arrived(house: &House, method: &str, session: &str) -> usize {
    let names = house.sims.names();
    let seen = names.iter().flat_map(|name| house.sims.get(name).seen());
    seen.filter(|seen| seen.method == method)
        .filter(|seen| seen.session.as_deref() == Some(session) || session.is_empty())
        .count()
}

/// Whether a call of somebody who may have the session arrives. An answer to what nobody has asked
/// does not.
fn arrives(class: Class, method: &str) -> bool {
    is_forwarded(class) && route::asked_by(method).is_none()
}

/// Whether calls of this class are forwarded under the name that they came with.
fn is_forwarded(class: Class) -> bool {
    matches!(
        class,
        Class::Session
            | Class::Send(_)
            | Class::Abort
            | Class::Fork
            | Class::Detach
            | Class::Delete
            | Class::Close
            | Class::Resume
            | Class::Open
    )
}

#[tokio::test]
async fn no_method_reaches_a_session_of_somebody_else() {
    bounded(240, async {
        let house = House::new(Disks::Shared, |conf| {
            conf.text("listener.handshake_timeout", "5m")
        })
        .await;
        let ann = house.client("ann").await;
        let service = house.client("app").await;
        let member = house.client("cid").await;
        let strangers = [
            ("other user", house.client("bob").await),
            ("other realm", house.client("far").await),
        ];
        let anonymous = Client::connect(house.taxiway.address()).await;
        let mut stock = Stock {
            house: &house,
            ann: &ann,
            made: Vec::new(),
        };
        let (mut compared, mut passed, mut takes_part, mut left_alone) = (0, 0, 0, 0);
        let mut heard = String::new();

        for Row {
            method,
            compared: compares,
        } in rows()
        {
            let class = classify(method);
            for kind in ["user-ann--", "team-"] {
                let session = stock.get(kind).await;
                let none = match method {
                    // No id is unknown to it: it says of hers what it says of one that it refuses.
                    "session.create" => "not.an-id".to_owned(),
                    _ => format!("{kind}none"),
                };
                let name = if method == "session.mode.get" {
                    "nothing"
                } else {
                    method
                };
                let before = arrived(&house, name, &session);

                let told = anonymous.call(method, naming(method, &session)).await;
                assert_eq!(told.unwrap_err().code, -32001, "{method} {kind}");
                let outsiders = strangers.iter().map(|(who, client)| (*who, client));
                let insider = (kind != "team-").then_some(("group of other sessions", &member));
                for (who, client) in outsiders.chain(insider) {
                    let told = client.call(method, naming(method, &session)).await;
                    let told = about(told, &session);
                    let wanted = client.call(method, naming(method, &none)).await;
                    if compares {
                        assert_eq!(told, about(wanted, &none), "{method} {kind} as {who}");
                        compared += 1;
                    }
                    // A member may hear of what it shares.
                    if !std::ptr::eq(client, &member) {
                        writeln!(heard, "{told}").unwrap();
                    }
                    assert!(!told.contains("user-ann--"), "{method} as {who}: {told}");
                }
                if is_forwarded(class) {
                    assert_eq!(arrived(&house, name, &session), before, "{method} {kind}");
                }

                if kind == "team-" {
                    let told = member.call(method, naming(method, &session)).await;
                    let came = arrived(&house, name, &session) - before;
                    let refused = told.as_ref().is_err_and(|told| told.code == -32014);
                    if refused {
                        assert_eq!(came, 0, "{method} {told:?}");
                        left_alone += 1;
                    } else if arrives(class, method) && class != Class::Detach {
                        assert_eq!(came, usize::from(name == method), "{method} {told:?}");
                        takes_part += 1;
                    }
                }

                // Nobody has changed or ended it.
                assert_eq!(
                    ann.mode(&session).await,
                    Ok(json!("interactive")),
                    "{method}"
                );
                for (who, client) in [("service", &service), ("owner", &ann)] {
                    let session = stock.get(kind).await;
                    let before = arrived(&house, method, &session);
                    let told = client.call(method, naming(method, &session)).await;
                    let code = told.as_ref().err().map(|told| told.code);
                    assert!(!matches!(code, Some(-32001 | -32012)), "{method} as {who}");
                    if class == Class::Create {
                        // One that is open is joined, which the server calls otherwise.
                        assert!(told.is_ok(), "{method} {kind} as {who}: {told:?}");
                    }
                    // Who is not in it has nothing to leave.
                    if arrives(class, method) && (class != Class::Detach || who == "owner") {
                        let came = arrived(&house, method, &session) - before;
                        assert!(came >= 1, "{method} {kind} as {who}: {told:?}");
                        passed += 1;
                    }
                    if class != Class::Session {
                        stock.renew(kind).await;
                    }
                }
            }
        }

        assert!(compared > 1400, "only {compared}");
        assert!(passed > 1000, "only {passed}");
        assert!(
            takes_part > 50 && left_alone > 100,
            "{takes_part} {left_alone}"
        );
        assert!(anonymous.kept().is_empty() && anonymous.is_open());
        // Every message that reached those who may see none of it: answers above, the rest here.
        for (_, client) in &strangers {
            for message in client.kept() {
                writeln!(heard, "{message}").unwrap();
            }
        }
        assert!(!heard.contains(SECRET));
        let ids: BTreeSet<&str> = stock.made.iter().map(String::as_str).collect();
        assert!(ids.iter().all(|id| !heard.contains(id)), "{heard}");
        let private = |m: &Value| m.to_string().contains("user-ann--");
        assert_eq!(member.count(&private), 0);
        // And what they would have heard is there to be heard.
        let hers: String = ann.kept().iter().map(|m| m.to_string()).collect();
        assert!(hers.contains(SECRET) && ids.iter().all(|id| hers.contains(id)));
    })
    .await;
}
