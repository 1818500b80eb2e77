//! Several users on one pool: each sees, hears and reaches its own sessions, and cannot tell those
//! of the others from none.

use std::{fs, sync::Arc, time::SystemTime};

use serde_json::{Value, json};
use taxiway::core::{credential::Fingerprint, route::catalog};

use crate::rig::{Client, Conf, Disks, Failure, Sims, Taxiway, bounded, event, until};

/// Users of one realm, one in the group of the shared sessions, and a service.
const USERS: &[(&str, &str, &str, &str)] = &[
    ("ann", "acme", "user", "red"),
    ("bob", "acme", "user", "-"),
    ("cid", "acme", "user", "red"),
    ("app", "acme", "service", "-"),
    ("far", "other", "service", "-"),
];

/// A proxy that wants a token, before servers.
pub(crate) struct House {
    pub(crate) sims: Sims,
    pub(crate) taxiway: Taxiway,
}

fn token(user: &str) -> String {
    format!("token-of-{user}-0123456789abcdef")
}

impl House {
    pub(crate) async fn new(disks: Disks, settings: impl FnOnce(Conf) -> Conf) -> Self {
        Self::sized(2, disks, settings).await
    }

    async fn sized(servers: usize, disks: Disks, settings: impl FnOnce(Conf) -> Conf) -> Self {
        let sims = Sims::start(servers, disks).await;
        let conf = Conf::new(disks)
            .all_of(&sims)
            .text("identity.session_id_user", "^user-(?<user>.+?)--")
            .text("identity.tokens_file", "tokens")
            // Nothing shall be denied for another reason.
            .text("access.profile", "single-tenant")
            .set(
                "identity.shared",
                "[{ pattern = 'team-.*', groups = ['red'] }]",
            );
        let taxiway = Taxiway::start_with(settings(conf), |folder| {
            let lines = USERS.iter().map(|(name, realm, role, groups)| {
                let hash = Fingerprint::of(&token(name));
                format!("{name} {hash} {realm} {role} {groups}\n")
            });
            fs::write(folder.join("tokens"), lines.collect::<String>()).unwrap();
        })
        .await;
        Self { sims, taxiway }
    }

    pub(crate) async fn client(&self, user: &str) -> Client {
        let client = Client::connect(self.taxiway.address()).await;
        let said = client.call("connect", json!({ "token": token(user) }));
        said.await.unwrap();
        client
    }

    async fn denied(&self, reason: &str) -> f64 {
        let series = format!("taxiway_access_denied_total{{reason=\"{reason}\"}}");
        self.taxiway.admin.scrape().await.value(&series)
    }
}

/// An answer with the id that was asked for replaced, so that answers about several can be compared.
pub(crate) fn about(answer: Result<Value, Failure>, session: &str) -> String {
    format!("{answer:?}").replace(session, "ID")
}

fn names(session: &str) -> impl Fn(&Value) -> bool + '_ {
    move |message| message.to_string().contains(session)
}

fn ids(list: &Value) -> Vec<&str> {
    let sessions = list["sessions"].as_array().unwrap().iter();
    sessions.map(|s| s["sessionId"].as_str().unwrap()).collect()
}

/// Methods on sessions that are in no list of session methods.
const OTHERS: &[&str] = &[
    "session.resume",
    "session.delete",
    "session.destroy",
    "session.detach",
    "session.getMessages",
    "session.getMetadata",
    "sessions.close",
    "sessions.connect",
    "sessions.delete",
    "sessions.fork",
    "sessions.getBoardEntryCount",
    "sessions.getMetadata",
    "sessions.getPersistedRemoteSteerable",
    "sessions.loadDeferredRepoHooks",
    "sessions.readPersistedEvents",
    "sessions.releaseLock",
    "sessions.reloadPluginHooks",
    "sessions.save",
    "sessions.startRemoteControl",
    "session.sendAndWait",
    "session.fromTheFuture",
    "something.new",
];

#[tokio::test]
async fn a_session_of_another_looks_like_none_whatever_is_called() {
    bounded(120, async {
        let house = House::new(Disks::Shared, |conf| conf).await;
        let (ann, bob) = (house.client("ann").await, house.client("bob").await);
        ann.create("user-ann--1").await;
        ann.turn("user-ann--1", "my secret").await;
        ann.create("user-ann--closed").await;
        ann.turn("user-ann--closed", "my secret").await;
        let closed = json!({ "sessionId": "user-ann--closed" });
        ann.call("session.detach", closed).await.unwrap();
        let (before, mark) = (ann.mode("user-ann--1").await.unwrap(), ann.mark());
        let marked = humantime::format_rfc3339_millis(SystemTime::now()).to_string();

        // Whose it would be, nobody has ever made it.
        let none = "user-ann--0";
        for session in ["user-ann--1", "user-ann--closed"] {
            for method in catalog::session_methods().chain(OTHERS.iter().copied()) {
                let call = async |id: &str| {
                    let params = json!({ "sessionId": id, "prompt": "hi", "mode": "plan" });
                    about(bob.call(method, params).await, id)
                };
                let (told, wanted) = (call(session).await, call(none).await);
                assert_eq!(told, wanted, "{method} {session}");
                assert!(!told.contains("taxiway"), "{method}: {told}");
            }
            for params in [
                json!({ "kind": "attach", "sessionId": session }),
                json!({ "kind": "attach", "sessionId": "user-bob--1", "options": { "sessionId": session } }),
            ] {
                let told = about(bob.call("sessions.open", params.clone()).await, session);
                assert!(told.contains("not_found") || told.contains("Invalid"), "{told}");
            }
            let told = bob.call("session.create", json!({ "sessionId": session })).await;
            let told = told.unwrap_err();
            assert_eq!(told.code, -32603);
            assert!(told.message.contains("invalid sessionId"), "{told:?}");
        }
        let told = bob.call("session.create", json!({ "sessionId": none })).await;
        assert!(told.unwrap_err().message.contains("invalid sessionId"));
        // A session of one's own does not lend its name.
        bob.create("user-bob--1").await;
        let params = json!({ "sessionId": "user-bob--1", "mode": "plan",
            "inheritPlanBaseFromSessionId": "user-ann--1" });
        let told = bob.call("session.mode.set", params).await.unwrap_err();
        assert!(told.message.contains("ession not found"), "{told:?}");

        // Nothing of it has reached her.
        assert_eq!(ann.mode("user-ann--1").await.unwrap(), before);
        let messages = ann
            .call("session.getMessages", json!({ "sessionId": "user-ann--1" }))
            .await
            .unwrap();
        assert!(messages.to_string().contains("my secret"));
        let since: Vec<Arc<Value>> = ann.kept().split_off(mark);
        // News of what she did herself may come a moment later.
        let is_old = |m: &Value| {
            let time = m["params"]["metadata"]["modifiedTime"].as_str();
            m["method"] == "session.lifecycle" && time.is_some_and(|time| time <= &*marked)
        };
        let reached = |m: &Value| names("user-ann--")(m) && !is_old(m);
        assert!(!since.iter().any(|m| reached(m)), "{since:?}");
        // And nothing about her him, but what he said himself.
        assert_eq!(bob.count(&names("user-ann--")), 0);
        assert_eq!(bob.count(&names("secret")), 0);
        assert!(house.denied("other_user").await > 100.0);
        assert_eq!(house.denied("id_of_other").await, 1.0);
    })
    .await;
}

#[tokio::test]
async fn lists_and_lookups_show_ones_own() {
    bounded(60, async {
        for disks in [Disks::Shared, Disks::Separate] {
            let house = House::new(disks, |conf| conf).await;
            let (ann, bob) = (house.client("ann").await, house.client("bob").await);
            let shared = "11111111-2222-4333-8444-55555555";
            for (client, session) in [
                (&ann, "user-ann--1"),
                (&bob, "user-bob--1"),
                (&bob, "user-bob--2"),
                (&ann, "user-ann--2"),
            ] {
                client.create(session).await;
                client.turn(session, "hi").await;
            }
            let nothing = json!({});
            for method in ["session.list", "sessions.list"] {
                let list = bob.call(method, nothing.clone()).await.unwrap();
                assert_eq!(ids(&list), ["user-bob--2", "user-bob--1"], "{method}");
            }
            let last = bob
                .call("session.getLastId", nothing.clone())
                .await
                .unwrap();
            assert_eq!(last["sessionId"], "user-bob--2");
            let one = json!({ "limit": 1 });
            let some = bob
                .call("sessions.listNonEmptySessionIds", one)
                .await
                .unwrap();
            assert_eq!(some["sessionIds"], json!(["user-bob--2"]));
            let sizes = bob
                .call("sessions.getSizes", nothing.clone())
                .await
                .unwrap();
            let sizes: Vec<&String> = sizes["sizes"].as_object().unwrap().keys().collect();
            assert_eq!(sizes, ["user-bob--1", "user-bob--2"]);
            let prune = json!({ "olderThanDays": 1, "dryRun": true });
            let told = bob.call("sessions.pruneOld", prune).await.unwrap_err();
            assert_eq!(told.code, -32014);

            let listed = json!({ "sessionIds": ["user-ann--1", "user-bob--1", "nobody"] });
            let found = bob
                .call("sessions.getClientMetadata", listed.clone())
                .await
                .unwrap();
            let state: Vec<&Value> = found
                .as_array()
                .unwrap()
                .iter()
                .map(|m| &m["status"])
                .collect();
            assert_eq!(state[0], "notFound");
            assert_eq!(state[2], "notFound");
            let freed = bob.call("sessions.bulkDelete", listed).await;
            if let Ok(freed) = freed {
                assert_eq!(freed["freedBytes"]["user-ann--1"], 0, "{freed}");
            }
            let list = ann.call("session.list", nothing.clone()).await.unwrap();
            assert_eq!(ids(&list), ["user-ann--2", "user-ann--1"]);
            ann.turn("user-ann--1", "still here").await;

            // A prefix that fits a session of another, too, is not ambiguous for that.
            let app = house.client("app").await;
            let far = house.client("far").await;
            for (client, end) in [(&app, "aaaa"), (&far, "bbbb")] {
                let session = format!("{shared}{end}");
                client.create(&session).await;
                client.turn(&session, "hi").await;
            }
            let prefix = json!({ "prefix": "11111111-2222" });
            let found = far.call("sessions.findByPrefix", prefix).await.unwrap();
            assert_eq!(found["sessionId"], format!("{shared}bbbb"));
        }
    })
    .await;
}

#[tokio::test]
async fn ids_that_a_backend_chooses_and_copies_belong_to_who_made_them() {
    bounded(60, async {
        let house = House::new(Disks::Shared, |conf| conf).await;
        let (ann, bob) = (house.client("ann").await, house.client("bob").await);
        let again = house.client("ann").await;
        let made = ann.call("session.create", json!({})).await.unwrap();
        let made = made["sessionId"].as_str().unwrap().to_owned();
        ann.turn(&made, "hi").await;
        let copy = ann
            .call("sessions.fork", json!({ "sessionId": made }))
            .await
            .unwrap();
        let copy = copy["sessionId"].as_str().unwrap().to_owned();
        for session in [&made, &copy] {
            let resume = json!({ "sessionId": session });
            bob.call("session.resume", resume.clone())
                .await
                .unwrap_err();
            again.call("session.resume", resume).await.unwrap();
        }
        // Heard once it was known whose it is, by all that are the user's.
        for client in [&ann, &again] {
            client
                .heard(&|m: &Value| {
                    m["method"] == "session.lifecycle"
                        && m["params"]["type"] == "session.created"
                        && m["params"]["sessionId"] == *made
                })
                .await;
        }
        again.turn(&copy, "more").await;
        assert_eq!(bob.count(&names(&made)), 0);
        assert_eq!(bob.count(&names(&copy)), 0);
        let told = house
            .taxiway
            .admin
            .get(&format!("/api/v1/sessions/{copy}/explain?as=bob"))
            .await;
        assert_eq!(told["user"], "ann");
        assert_eq!(told["access"]["decision"], "denied");
        assert_eq!(told["access"]["reason"], "other_user");
    })
    .await;
}

#[tokio::test]
async fn whose_a_session_is_outlives_a_crash() {
    bounded(60, async {
        let store = |conf: Conf| {
            conf.text("store.kind", "embedded")
                .text("store.path", "taxiway.db")
        };
        let mut house = House::new(Disks::Shared, store).await;
        // Of a service: its id says nothing.
        let app = house.client("app").await;
        app.create("plain").await;
        app.turn("plain", "hi").await;
        house.taxiway.kill().await;
        house.taxiway.start_again().await;
        let (app, far) = (house.client("app").await, house.client("far").await);
        let resume = json!({ "sessionId": "plain" });
        far.call("session.resume", resume.clone())
            .await
            .unwrap_err();
        assert_eq!(
            ids(&far.call("session.list", json!({})).await.unwrap()),
            [""; 0]
        );
        app.call("session.resume", resume).await.unwrap();
        app.turn("plain", "again").await;
    })
    .await;
}

#[tokio::test]
async fn sessions_of_nobody_are_for_who_adopts() {
    bounded(60, async {
        let adopt = |conf: Conf| conf.text("identity.adopt_by", "app");
        let house = House::new(Disks::Shared, adopt).await;
        let direct = Client::connect(house.sims.get("s1").address()).await;
        direct.create("old").await;
        direct.turn("old", "hi").await;
        let resume = json!({ "sessionId": "old" });
        direct.call("session.detach", resume.clone()).await.unwrap();
        let (app, bob) = (house.client("app").await, house.client("bob").await);
        let far = house.client("far").await;
        bob.call("session.resume", resume.clone())
            .await
            .unwrap_err();
        far.call("session.resume", resume.clone())
            .await
            .unwrap_err();
        until("both denials", async || {
            match house.denied("unowned").await {
                few if few < 2.0 => Err(few),
                _ => Ok(()),
            }
        })
        .await;
        until("the list", async || {
            let list = app.call("session.list", json!({})).await.unwrap();
            if ids(&list) == ["old"] {
                Ok(())
            } else {
                Err(list)
            }
        })
        .await;
        app.call("session.resume", resume).await.unwrap();
        let told = house
            .taxiway
            .admin
            .get("/api/v1/sessions/old/explain")
            .await;
        assert_eq!(told["user"], "app");
        assert_eq!(told["user_rule"], "recorded when it was opened");
    })
    .await;
}

#[tokio::test]
async fn who_shares_a_session_takes_part_and_changes_nothing() {
    bounded(60, async {
        let mut house = House::new(Disks::Shared, |conf| conf).await;
        let (ann, cid) = (house.client("ann").await, house.client("cid").await);
        let bob = house.client("bob").await;
        ann.create("team-1").await;
        ann.turn("team-1", "hi").await;
        let mark = ann.mark();
        let resume = json!({ "sessionId": "team-1" });
        bob.call("session.resume", resume.clone())
            .await
            .unwrap_err();
        let with = json!({ "sessionId": "team-1", "model": "other", "hooks": false });
        let told = cid.call("session.resume", with.clone()).await.unwrap_err();
        assert_eq!(told.code, -32014);
        assert!(told.message.contains("model"), "{told:?}");
        let told = cid.call("session.create", with).await.unwrap_err();
        assert_eq!(told.code, -32014);
        cid.call("session.resume", resume.clone()).await.unwrap();
        cid.turn("team-1", "hello all").await;
        ann.heard_since(mark, &event("team-1", "session.idle"))
            .await;
        for method in [
            "session.delete",
            "sessions.close",
            "session.mode.set",
            "session.shutdown",
        ] {
            let told = cid.call(method, resume.clone()).await.unwrap_err();
            assert_eq!(told.code, -32014, "{method}");
        }
        let list = json!({ "sessionIds": ["team-1"] });
        if let Ok(freed) = cid.call("sessions.bulkDelete", list).await {
            assert_eq!(freed["freedBytes"]["team-1"], 0);
        }
        ann.turn("team-1", "still mine").await;

        // It is not shared any more: he is out, in the middle of a turn, and she notices nothing.
        let (his, hers) = (cid.mark(), ann.mark());
        ann.send("team-1", "[[len 60]] [[slow 20]]").await;
        cid.heard_since(his, &event("team-1", "assistant.turn_start"))
            .await;
        let conf = house.taxiway.conf.clone().set("identity.shared", "[]");
        house.taxiway.reload(conf).await;
        cid.heard_since(his, &event("team-1", "session.error"))
            .await;
        cid.heard_since(his, &event("team-1", "session.idle")).await;
        let after = cid.mark();
        let told = cid.mode("team-1").await.unwrap_err();
        assert!(told.message.contains("Session not found"), "{told:?}");
        let idle = ann
            .heard_since(hers, &event("team-1", "session.idle"))
            .await;
        assert_eq!(
            idle["params"]["event"]["data"].get("aborted"),
            None,
            "{idle}"
        );
        ann.turn("team-1", "alone").await;
        let heard: Vec<_> = cid.kept().split_off(after);
        assert!(heard.iter().all(|m| !names("team-1")(m)), "{heard:?}");
    })
    .await;
}

#[tokio::test]
async fn of_two_that_create_one_session_at_a_time_one_has_it() {
    bounded(60, async {
        let house = House::new(Disks::Shared, |conf| conf).await;
        let (app, far) = (house.client("app").await, house.client("far").await);
        for n in 0..20 {
            let params = json!({ "sessionId": format!("race-{n}") });
            let (one, two) = tokio::join!(
                app.begin("session.create", params.clone()),
                far.begin("session.create", params),
            );
            let (one, two) = (one.answer().await, two.answer().await);
            assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
            let (mine, other) = if one.is_ok() {
                (&app, &far)
            } else {
                (&far, &app)
            };
            let session = format!("race-{n}");
            mine.turn(&session, "mine").await;
            assert_eq!(other.count(&names(&session)), 0);
        }
    })
    .await;
}

/// The parameters of one who brings a tool.
fn with_tool(session: &str) -> Value {
    let tool = json!({ "name": "look", "description": "d", "skipPermission": true,
        "parameters": { "type": "object" } });
    json!({ "sessionId": session, "tools": [tool], "continuePendingWork": true })
}

async fn say(client: &Client, session: &str, asked: &Value, text: &str) -> Value {
    let method = "session.tools.handlePendingToolCall";
    let params = json!({ "sessionId": session, "requestId": asked, "result": text });
    client.call(method, params).await.unwrap()["success"].clone()
}

#[tokio::test]
async fn nobody_answers_the_tool_of_a_session_by_way_of_another() {
    bounded(60, async {
        // One process: only within it does the CLI take such an answer.
        let house = House::sized(1, Disks::Shared, |conf| conf).await;
        let (ann, bob) = (house.client("ann").await, house.client("bob").await);
        let (cid, app) = (house.client("cid").await, house.client("app").await);
        let call = async |client: &Client, session: &str| {
            client
                .call("session.create", with_tool(session))
                .await
                .unwrap();
        };
        call(&ann, "user-ann--1").await;
        call(&ann, "user-ann--2").await;
        call(&bob, "user-bob--1").await;
        call(&cid, "user-cid--1").await;
        let mark = ann.mark();
        let prompt = "[[tool look {}]]";
        ann.call(
            "session.send",
            json!({ "sessionId": "user-ann--1", "prompt": prompt }),
        )
        .await
        .unwrap();
        let heard = ann
            .heard(&event("user-ann--1", "external_tool.requested"))
            .await;
        let asked = &heard["params"]["event"]["data"]["requestId"];

        // By whatever they have come to know it: others, and she and their service by mistake.
        for (client, session) in [
            (&bob, "user-bob--1"),
            (&cid, "user-cid--1"),
            (&ann, "user-ann--2"),
            (&app, "user-bob--1"),
            (&app, "user-ann--2"),
        ] {
            assert_eq!(
                say(client, session, asked, "EVIL").await,
                false,
                "{session}"
            );
        }
        assert_eq!(house.denied("request_of_other").await, 5.0);
        let since: Vec<Arc<Value>> = ann.kept().split_off(mark);
        assert!(since.iter().all(|m| !names("EVIL")(m)), "{since:?}");
        assert_eq!(
            ann.count(&event("user-ann--1", "external_tool.completed")),
            0
        );

        // One who has come later was not told of it, and is who may answer.
        let later = house.client("ann").await;
        let resumed = json!({ "sessionId": "user-ann--1" });
        later.call("session.resume", resumed).await.unwrap();
        assert_eq!(say(&later, "user-ann--1", asked, "GOOD").await, true);
        ann.heard(&event("user-ann--1", "session.idle")).await;
        assert_eq!(say(&ann, "user-ann--1", asked, "LATE").await, false);
        assert_eq!(
            house.denied("request_of_other").await,
            5.0,
            "that was the server's word"
        );
    })
    .await;
}

#[tokio::test]
async fn a_service_answers_what_it_has_never_heard_asked() {
    bounded(60, async {
        let house = House::sized(1, Disks::Shared, |conf| conf).await;
        let (ann, app) = (house.client("ann").await, house.client("app").await);
        ann.call("session.create", with_tool("user-ann--1"))
            .await
            .unwrap();
        ann.call(
            "session.send",
            json!({ "sessionId": "user-ann--1", "prompt": "[[tool look {}]]" }),
        )
        .await
        .unwrap();
        let heard = ann
            .heard(&event("user-ann--1", "external_tool.requested"))
            .await;
        let asked = &heard["params"]["event"]["data"]["requestId"];
        // It is not even attached.
        assert_eq!(say(&app, "user-ann--1", asked, "GOOD").await, true);
        ann.heard(&event("user-ann--1", "session.idle")).await;
        assert_eq!(house.denied("request_of_other").await, 0.0);
    })
    .await;
}

#[tokio::test]
async fn a_session_whose_user_was_forgotten_is_nobodys() {
    bounded(120, async {
        let house = House::new(Disks::Shared, |conf| {
            conf.set("limits.directory_sessions", "1000")
        })
        .await;
        // Of several realms, so that no id says whose its session is.
        let (app, far) = (house.client("app").await, house.client("far").await);
        let close = async |session: &str| {
            let params = json!({ "sessionId": session });
            app.call("session.detach", params).await.unwrap();
        };
        app.create("x-0").await;
        app.turn("x-0", "my secret").await;
        close("x-0").await;
        for n in 1..1500 {
            let session = format!("x-{n}");
            app.create(&session).await;
            close(&session).await;
        }

        // Not even its own realm's any more.
        for client in [&far, &app] {
            for method in ["session.resume", "session.getMessages", "session.create"] {
                let told = client.call(method, json!({ "sessionId": "x-0" })).await;
                let told = told.unwrap_err().message;
                assert!(
                    told.contains("not found") || told.contains("invalid"),
                    "{told}"
                );
            }
            let list = client.call("session.list", json!({})).await.unwrap();
            assert!(!ids(&list).contains(&"x-0"));
        }
        assert!(house.denied("unowned").await >= 6.0);
    })
    .await;
}
