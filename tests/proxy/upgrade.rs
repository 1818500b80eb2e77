//! One process takes over from another: no connection is refused or reset, and every session has one
//! owner, whichever process its clients are connected to.

use std::{
    collections::HashMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use serde_json::json;
use taxiway::core::credential::Fingerprint;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::rig::{Client, Conf, Disks, Raw, Sims, Taxiway, bounded, event, frame, until};

/// Servers, the place where processes meet, and the file of all of them.
struct Stage {
    sims: Sims,
    conf: Conf,
    folder: TempDir,
}

impl Stage {
    async fn new(count: usize, disks: Disks) -> Self {
        let sims = Sims::start(count, disks).await;
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("upgrade.sock");
        let conf = Conf::new(disks)
            .all_of(&sims)
            .text("upgrade.socket", socket.to_str().unwrap())
            .text("store.path", folder.path().join("t.db").to_str().unwrap());
        Self { sims, conf, folder }
    }

    /// The first process; others follow on its addresses.
    async fn first(&mut self) -> Taxiway {
        let first = Taxiway::start(self.conf.clone()).await;
        self.conf = first.conf.clone();
        first
    }

    async fn next(&self) -> Taxiway {
        let next = Taxiway::successor(self.conf.clone()).await;
        next.unwrap_or_else(|(code, log)| panic!("no take-over: {code:?}\n{log}"))
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("upgrade.sock")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_clients_stay_new_ones_come_and_both_meet_at_the_owner() {
    bounded(60, async {
        let mut stage = Stage::new(3, Disks::Shared).await;
        let mut old = stage.first().await;
        let before = Client::greeted(old.address()).await;
        for session in ["team", "mine"] {
            before.create(session).await;
            before.turn(session, "first").await;
        }
        before.send("mine", "[[len 100]] [[slow 20]]").await;
        let owner = stage.sims.owner("team").unwrap();

        let new = stage.next().await;
        old.says("phase=\"retired\"").await;
        // The old one serves on, in the turn and after it.
        before.heard(&event("mine", "session.idle")).await;
        before.turn("team", "second").await;
        // The admin address answers for the new one.
        new.admin.metric_is("taxiway_upgrade_peers", 1.0).await;
        let known = new.admin.get("/api/v1/sessions/team/explain").await;
        assert_eq!(known["owner"], owner, "{known}");

        let after = Client::greeted(new.address()).await;
        let resume = json!({ "sessionId": "team" });
        after.call("session.resume", resume.clone()).await.unwrap();
        assert_eq!(stage.sims.owner("team").as_ref(), Some(&owner));
        let mark = before.mark();
        after.turn("team", "third").await;
        before
            .heard_since(mark, &event("team", "session.idle"))
            .await;

        // And the other way round: opened by the new one first.
        after.create("later").await;
        after.turn("later", "first").await;
        before
            .call("session.resume", json!({ "sessionId": "later" }))
            .await
            .unwrap();
        assert!(stage.sims.owner("later").is_some());

        drop(before);
        assert_eq!(old.ended().await.code(), Some(0), "{}", old.log());
        new.admin.metric_is("taxiway_upgrade_peers", 0.0).await;
        after.turn("team", "fourth").await;
    })
    .await;
}

/// Who follows does not know who holds its sessions elsewhere. Whoever stays has heard the request, and
/// has no such tool: it would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stays_in_the_new_process_does_not_wait_for_a_tool_of_who_has_left_the_old_one() {
    bounded(60, async {
        let mut stage = Stage::new(2, Disks::Shared).await;
        let mut old = stage.first().await;
        let before = Client::greeted(old.address()).await;
        let tools = json!([{ "name": "probe", "parameters": {}, "skipPermission": true }]);
        let create = json!({ "sessionId": "team", "tools": tools });
        before.call("session.create", create).await.unwrap();
        before.turn("team", "first").await;
        let new = stage.next().await;
        old.says("phase=\"retired\"").await;
        let after = Client::greeted(new.address()).await;
        let resume = json!({ "sessionId": "team" });
        after.call("session.resume", resume).await.unwrap();
        before.send("team", "[[tool probe {}]]").await;
        for client in [&before, &after] {
            client
                .heard(&event("team", "external_tool.requested"))
                .await;
        }
        let mark = after.mark();
        drop(before);
        let idle = after
            .heard_since(mark, &event("team", "session.idle"))
            .await;
        assert_eq!(idle["params"]["event"]["data"]["aborted"], true);
        after.turn("team", "second").await;
        assert_eq!(old.ended().await.code(), Some(0), "{}", old.log());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_the_old_process_see_what_their_users_make_in_the_new_one() {
    const LATE: &str = "user-ann--late";
    bounded(60, async {
        let mut stage = Stage::new(2, Disks::Shared).await;
        let tokens = stage.folder.path().join("tokens");
        let token = |user: &str| format!("token-of-{user}-0123456789abcdef");
        let line = |(user, realm)| format!("{user} {} {realm}\n", Fingerprint::of(&token(user)));
        // Of several realms, so that no id says whose its session is.
        let users = [("ann", "acme"), ("bob", "acme"), ("far", "other")];
        std::fs::write(&tokens, users.map(line).concat()).unwrap();
        let tokens = tokens.to_str().unwrap();
        stage.conf = stage.conf.clone().text("identity.tokens_file", tokens);
        let client = async |process: &Taxiway, user: &str| {
            let client = Client::connect(process.address()).await;
            let connect = json!({ "token": token(user) });
            client.call("connect", connect).await.unwrap();
            client
        };
        let old = stage.first().await;
        let (ann, bob) = (client(&old, "ann").await, client(&old, "bob").await);
        ann.create("user-ann--early").await;
        let new = stage.next().await;
        new.admin.metric_is("taxiway_upgrade_peers", 1.0).await;

        let later = client(&new, "ann").await;
        later.create(LATE).await;
        later.turn(LATE, "first").await;
        let copied = later
            .call("sessions.fork", json!({ "sessionId": LATE }))
            .await;
        let copy = copied.unwrap()["sessionId"].as_str().unwrap().to_owned();
        until("the old process to know whose they are", async || {
            let list = ann
                .call("session.list", json!({}))
                .await
                .unwrap()
                .to_string();
            let has_both = list.contains(LATE) && list.contains(&copy);
            has_both.then_some(()).ok_or(list)
        })
        .await;
        // She has heard of it, may read it, and opens it.
        let created = |m: &serde_json::Value| {
            m["method"] == "session.lifecycle" && m["params"]["sessionId"] == LATE
        };
        ann.heard(&created).await;
        ann.call("session.resume", json!({ "sessionId": LATE }))
            .await
            .unwrap();
        ann.turn(LATE, "second").await;
        let list = bob.call("session.list", json!({})).await.unwrap();
        assert_eq!(list["sessions"], json!([]));
        let told = bob
            .call("session.resume", json!({ "sessionId": LATE }))
            .await;
        assert!(told.unwrap_err().message.contains("not found"));
        assert_eq!(bob.count(&created), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_upgrades_under_load_refuse_and_reset_nobody() {
    bounded(170, async {
        let mut stage = Stage::new(3, Disks::Shared).await;
        let mut current = stage.first().await;
        let address = current.address();
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let mut load = Vec::new();
        // Short lives: each connects, opens a session that others share, works, leaves.
        for worker in 0..3 {
            let (stop, served) = (stop.clone(), served.clone());
            load.push(tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::Acquire) {
                    let client = Client::greeted(address).await;
                    let shared = format!("shared-{}", n % 3);
                    for session in [shared, format!("own-{worker}-{n}")] {
                        client.create(&session).await;
                        client.mode(&session).await.unwrap();
                        client.turn(&session, "hello").await;
                    }
                    n += 1;
                    served.fetch_add(1, Ordering::AcqRel);
                }
            }));
        }
        // Long ones, which outlive several processes.
        for worker in 0..2 {
            let stop = stop.clone();
            load.push(tokio::spawn(async move {
                let client = Client::greeted(address).await;
                let session = format!("shared-{worker}");
                client.create(&session).await;
                while !stop.load(Ordering::Acquire) {
                    client.turn(&session, "hello").await;
                }
                assert!(client.is_open());
            }));
        }
        let mut former = Vec::new();
        for n in 1..=10 {
            let before = served.load(Ordering::Acquire);
            let next = stage.next().await;
            former.push(std::mem::replace(&mut current, next));
            until(&format!("work after upgrade {n}"), async || {
                let now = served.load(Ordering::Acquire);
                if now >= before + 3 {
                    Ok(())
                } else {
                    Err(now - before)
                }
            })
            .await;
            let mut open: HashMap<String, Vec<String>> = HashMap::new();
            for name in stage.sims.names() {
                for session in stage.sims.get(&name).open_sessions() {
                    open.entry(session).or_default().push(name.clone());
                }
            }
            let twice: Vec<_> = open.iter().filter(|(_, at)| at.len() > 1).collect();
            assert!(twice.is_empty(), "two owners: {twice:?}");
        }
        stop.store(true, Ordering::Release);
        for worker in load {
            worker.await.unwrap();
        }
        for old in &mut former {
            assert_eq!(old.ended().await.code(), Some(0), "{}", old.log());
            assert!(!old.log().contains("conflict"), "{}", old.log());
        }
        assert!(!current.log().contains("conflict"), "{}", current.log());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_share_one_table() {
    bounded(90, async {
        let mut stage = Stage::new(3, Disks::Shared).await;
        let mut first = stage.first().await;
        let a = Client::greeted(first.address()).await;
        a.create("one").await;
        a.turn("one", "x").await;
        let mut second = stage.next().await;
        let b = Client::greeted(second.address()).await;
        b.create("two").await;
        b.turn("two", "x").await;
        let third = stage.next().await;
        let c = Client::greeted(third.address()).await;
        third.admin.metric_is("taxiway_upgrade_peers", 2.0).await;
        for session in ["one", "two"] {
            let owner = stage.sims.owner(session);
            let known = format!("/api/v1/sessions/{session}/explain");
            let known = third.admin.get(&known).await;
            assert_eq!(known["owner"].as_str(), owner.as_deref(), "{known}");
            for client in [&a, &b, &c] {
                let params = json!({ "sessionId": session });
                client.call("session.resume", params).await.unwrap();
            }
            assert_eq!(stage.sims.owner(session), owner);
        }
        // All at once, on sessions that nobody has open. Each process knows another part of the
        // load, and would choose another server by itself.
        for n in 0..20 {
            b.create(&format!("of-b-{n}")).await;
            if n % 2 == 0 {
                a.create(&format!("of-a-{n}")).await;
            }
            let session = format!("new-{n}");
            let params = json!({ "sessionId": session });
            let (x, y, z) = tokio::join!(
                a.call("session.create", params.clone()),
                b.call("session.create", params.clone()),
                c.call("session.create", params.clone()),
            );
            assert!(x.is_ok() && y.is_ok() && z.is_ok(), "{x:?} {y:?} {z:?}");
            // Fails if it is open on two.
            assert!(stage.sims.owner(&session).is_some());
        }

        // An operator speaks to the newest, and all hear it.
        third.admin.change("/api/v1/backends/s1/drain", "{}").await;
        third.admin.change("/api/v1/backends/s2/drain", "{}").await;
        for process in [&first, &second] {
            process.says("by=\"upgrade\"").await;
        }
        until("old processes to leave the drained alone", async || {
            let id = format!("n{}", a.mark());
            a.create(&id).await;
            match stage.sims.owner(&id).as_deref() {
                Some("s3") => Ok(()),
                other => Err(other.map(str::to_owned)),
            }
        })
        .await;

        // The end of the newest is the end of all.
        third.signal(Signal::TERM);
        for client in [&a, &b, &c] {
            client.closed().await;
        }
        assert_eq!(first.ended().await.code(), Some(0));
        assert_eq!(second.ended().await.code(), Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_to_be_accepted_is_served_by_the_new_process() {
    bounded(60, async {
        let mut stage = Stage::new(1, Disks::Separate).await;
        let mut old = stage.first().await;
        // Nobody accepts while the old one is stopped: these wait in the socket itself.
        let holding = Client::greeted(old.address()).await;
        let mut next = Taxiway::spawn_successor(stage.conf.clone());
        old.says("phase=\"offered\"").await;
        old.signal(Signal::STOP);
        let mut waiting = Raw::connect(old.address()).await;
        let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "connect", "params": {} });
        waiting.write(&frame(hello.to_string())).await;
        old.signal(Signal::CONT);
        next.says("taken_over").await;
        let answer = waiting.answer().await.unwrap();
        assert_eq!(answer["result"]["protocolVersion"], 3, "{answer}");
        assert!(!next.has_ended());
        drop(holding);
        drop(waiting);
        assert_eq!(old.ended().await.code(), Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_fails_changes_nothing() {
    bounded(90, async {
        let mut stage = Stage::new(2, Disks::Shared).await;
        let old = stage.first().await;
        let client = Client::greeted(old.address()).await;
        client.create("s").await;
        client.turn("s", "x").await;

        // Its file is wrong.
        let wrong = stage.conf.clone().text("routing.mode", "nonsense");
        let (code, log) = Taxiway::successor(wrong).await.err().unwrap();
        assert_eq!(code, Some(78), "{log}");
        // It would have servers of its own.
        let managed = stage.conf.clone().set("managed.command", "['x', '{port}']");
        let (code, log) = Taxiway::successor(managed).await.err().unwrap();
        assert_eq!(code, Some(78), "{log}");
        assert!(log.contains("managed servers"), "{log}");
        // An address of its own is taken.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap();
        let elsewhere = stage.conf.clone().text("admin.address", "192.0.2.1:1");
        let (code, log) = Taxiway::successor(elsewhere).await.err().unwrap();
        assert_eq!(code, Some(69), "{taken} {log}");
        old.says("phase=\"failed\"").await;
        // It is killed while it gets ready.
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let slow = stage
            .conf
            .clone()
            .backend("silent", &dead.local_addr().unwrap().to_string());
        let offers = || old.log().matches("phase=\"offered\"").count();
        let before = offers();
        let killed = Taxiway::spawn_successor(slow);
        until("the offer", async || match offers() {
            n if n > before => Ok(()),
            n => Err(n),
        })
        .await;
        killed.signal(Signal::KILL);
        until("the failure to be seen", async || {
            let log = old.log();
            if log.matches("phase=\"failed\"").count() >= 2 {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;

        // Everything is as before, for old and for new clients.
        client.turn("s", "y").await;
        let other = Client::greeted(old.address()).await;
        other.create("t").await;
        other.turn("t", "x").await;
        assert_eq!(
            old.admin
                .try_request("GET", "/readyz", None)
                .await
                .unwrap()
                .0,
            200
        );
        // And the next one succeeds.
        let new = stage.next().await;
        Client::greeted(new.address()).await.create("u").await;
        client.turn("s", "z").await;
    })
    .await;
}

/// The hardest moment: the old one accepts no more, and the new one is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_dies_at_the_last_moment_is_survived() {
    bounded(90, async {
        let mut stage = Stage::new(2, Disks::Shared).await;
        let old = stage.first().await;
        let client = Client::greeted(old.address()).await;
        client.create("s").await;
        client.turn("s", "x").await;
        for last in ["take_over", "garbage"] {
            let mut line = Line::connect(&stage.socket());
            line.say(HELLO);
            assert!(line.hear("synced").contains("welcome"));
            line.say(if last == "garbage" {
                "what?"
            } else {
                r#"{"type":"take_over"}"#
            });
            if last == "take_over" {
                let estate = line.hear("synced");
                assert!(
                    estate.contains(r#""type":"holds","session":"s""#),
                    "{estate}"
                );
                // Nobody accepts now, and what is opened has to wait.
                let opening = tokio::spawn({
                    let address = old.address();
                    async move { Client::greeted(address).await.create("t").await }
                });
                let held = client
                    .begin("session.create", json!({ "sessionId": "u" }))
                    .await;
                drop(line);
                held.answer().await.unwrap();
                opening.await.unwrap();
            }
        }
        until("both failures to be seen", async || {
            let log = old.log();
            if log.matches("phase=\"failed\"").count() >= 2 {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        client.turn("s", "y").await;
        assert_eq!(
            old.admin
                .try_request("GET", "/readyz", None)
                .await
                .unwrap()
                .0,
            200
        );
        drop(stage.next().await);
    })
    .await;
}

const HELLO: &str =
    r#"{"type":"hello","versions":[2],"role":"successor","instance":"1-x","taxiway":"t"}"#;

/// The upgrade socket, by hand.
struct Line(UnixStream);

impl Line {
    fn connect(path: &std::path::Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self(stream)
    }

    fn say(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Up to a message of this type; says `received` to a welcome.
    fn hear(&mut self, last: &str) -> String {
        let mut all = String::new();
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            match self.0.read(&mut byte) {
                Ok(1) => line.push(byte[0]),
                ended => panic!("{ended:?} after {all}"),
            }
            if byte[0] != b'\n' {
                continue;
            }
            let text = String::from_utf8(std::mem::take(&mut line)).unwrap();
            all.push_str(&text);
            if text.contains(r#""type":"welcome""#) {
                self.say(r#"{"type":"received"}"#);
            }
            if text.contains(&format!(r#""type":"{last}""#)) {
                return all;
            }
        }
    }
}

#[tokio::test]
async fn garbage_strangers_and_other_versions_are_turned_away() {
    bounded(60, async {
        let mut stage = Stage::new(1, Disks::Separate).await;
        let old = stage.first().await;
        let mut stranger = Line::connect(&stage.socket());
        stranger.say(&"x".repeat(100_000));
        let mut rest = Vec::new();
        assert_eq!(stranger.0.read_to_end(&mut rest).unwrap_or(0), 0);
        let mut newer = Line::connect(&stage.socket());
        newer.say(&HELLO.replace("[2]", "[99]"));
        assert!(newer.hear("refused").contains("no common version"));
        let mut one = Line::connect(&stage.socket());
        one.say(HELLO);
        one.hear("synced");
        let mut two = Line::connect(&stage.socket());
        two.say(HELLO);
        assert!(two.hear("refused").contains("another upgrade"));
        // Who is there already is in the way of a start, and says what to do.
        let other = stage.conf.clone().fresh_addresses();
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("taxiway.toml");
        std::fs::write(&file, other.render()).unwrap();
        let started = std::process::Command::new(env!("CARGO_BIN_EXE_taxiway"))
            .args(["run", "-c", file.to_str().unwrap()])
            .output()
            .unwrap();
        assert_eq!(started.status.code(), Some(69));
        let said = String::from_utf8_lossy(&started.stderr);
        assert!(said.contains("--upgrade"), "{said}");
        // And nobody is there: no process to take over from.
        let nobody = stage
            .conf
            .clone()
            .text("upgrade.socket", "/nonexistent/socket");
        let (code, log) = Taxiway::successor(nobody).await.err().unwrap();
        assert_eq!(code, Some(69), "{log}");
        assert_eq!(mode_of(&stage.socket()), 0o600);
        Client::greeted(old.address()).await.create("s").await;
    })
    .await;
}

fn mode_of(path: &std::path::Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_process_ends_when_its_time_is_over_or_it_is_told() {
    bounded(60, async {
        let mut stage = Stage::new(1, Disks::Separate).await;
        stage.conf = stage.conf.clone().text("upgrade.timeout", "300ms");
        let mut first = stage.first().await;
        let client = Client::greeted(first.address()).await;
        client.create("s").await;
        client.turn("s", "x").await;
        let mut second = stage.next().await;
        client.closed().await;
        assert_eq!(first.ended().await.code(), Some(0));

        stage.conf = stage.conf.clone().text("upgrade.timeout", "1h");
        let client = Client::greeted(second.address()).await;
        client.create("t").await;
        // The second one was started with the short time, so it is the third that stays.
        let mut third = stage.next().await;
        client.closed().await;
        assert_eq!(second.ended().await.code(), Some(0));
        let client = Client::greeted(third.address()).await;
        client.create("u").await;
        let _fourth = stage.next().await;
        client.turn("u", "x").await;
        third.signal(Signal::TERM);
        client.closed().await;
        assert_eq!(third.ended().await.code(), Some(0));
    })
    .await;
}

/// The newest process dies: older ones serve on, and find the one that is started in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_primary_is_found_after_the_death_of_the_last() {
    bounded(90, async {
        let mut stage = Stage::new(2, Disks::Shared).await;
        let mut first = stage.first().await;
        let a = Client::greeted(first.address()).await;
        a.create("s").await;
        a.turn("s", "x").await;
        let mut second = stage.next().await;
        second.signal(Signal::KILL);
        let _killed = second.ended().await;
        a.turn("s", "y").await;
        // Nobody can say who owns what: nothing is opened.
        let refused = a
            .call("session.create", json!({ "sessionId": "t" }))
            .await
            .unwrap_err();
        assert_eq!(refused.code, -32010, "{refused:?}");
        assert!(refused.message.contains("owner table"), "{refused:?}");
        let third = Taxiway::start(stage.conf.clone()).await;
        third.admin.metric_is("taxiway_upgrade_peers", 1.0).await;
        // A process is counted when it links up, a moment before it has said what it holds.
        until("the first process to say what it holds", async || {
            let known = third.admin.get("/api/v1/sessions/s/explain").await;
            let owner = stage.sims.owner("s").unwrap();
            if known["owner"] == owner.as_str() {
                Ok(())
            } else {
                Err(known)
            }
        })
        .await;
        a.create("t").await;
        let b = Client::greeted(third.address()).await;
        for session in ["s", "t"] {
            b.call("session.resume", json!({ "sessionId": session }))
                .await
                .unwrap();
            assert!(stage.sims.owner(session).is_some());
        }
        drop(a);
        assert_eq!(first.ended().await.code(), Some(0));
    })
    .await;
}

#[tokio::test]
async fn a_port_is_never_closed_in_between() {
    bounded(60, async {
        let mut stage = Stage::new(1, Disks::Separate).await;
        let first = stage.first().await;
        let address = first.address();
        let stop = Arc::new(AtomicBool::new(false));
        let knocking = {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while !stop.load(Ordering::Acquire) {
                    let stream = TcpStream::connect(address).await.expect("refused");
                    drop(stream);
                    count += 1;
                }
                count
            })
        };
        let mut processes = vec![first];
        for _ in 0..3 {
            processes.push(stage.next().await);
        }
        stop.store(true, Ordering::Release);
        assert!(knocking.await.unwrap() > 10);
    })
    .await;
}

/// systemd: it has bound the sockets, and hears how far the service is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_a_service_manager_are_used_and_it_is_told() {
    bounded(60, async {
        let stage = Stage::new(1, Disks::Separate).await;
        for names in ["listener:admin", "unknown:unknown"] {
            let bind = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let (listener, admin) = (bind(), bind());
            let mut conf = stage.conf.clone();
            for (key, socket) in [("listener.address", &listener), ("admin.address", &admin)] {
                conf = conf.text(key, &socket.local_addr().unwrap().to_string());
            }
            let path = stage.folder.path().join(format!("notify-{}", names.len()));
            let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
            let told = async || {
                let mut text = vec![0; 4096];
                let n = manager.recv(&mut text).await.unwrap();
                String::from_utf8_lossy(&text[..n]).into_owned()
            };
            // Connects before anybody serves, and is served.
            let early = Client::connect(conf.address("listener")).await;
            let hello = early.begin("connect", json!({})).await;
            let mut taxiway = Taxiway::activated(conf, names, [listener, admin], &path);
            hello.answer().await.unwrap();
            let ready = told().await;
            assert!(ready.contains("READY=1"), "{ready}");
            assert!(
                ready.contains(&format!("MAINPID={}", taxiway.pid())),
                "{ready}"
            );
            taxiway.signal(Signal::HUP);
            let reloading = told().await;
            assert!(reloading.contains("RELOADING=1"), "{reloading}");
            assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
            assert!(told().await.contains("READY=1"));
            early.create("s").await;
            taxiway.signal(Signal::INT);
            assert!(told().await.contains("STOPPING=1"));
            assert_eq!(taxiway.ended().await.code(), Some(0));
        }
    })
    .await;
}

/// `systemctl kill -s USR2`: the successor is started by the process that it follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_starts_the_successor() {
    bounded(60, async {
        let mut stage = Stage::new(1, Disks::Separate).await;
        let mut old = stage.first().await;
        let client = Client::greeted(old.address()).await;
        client.create("s").await;
        old.signal(Signal::USR2);
        // Both write into the log that the first was given.
        old.says("phase=\"taken_over\"").await;
        old.says("phase=\"retired\"").await;
        let log = old.log();
        let line = log
            .lines()
            .find(|line| line.contains("\"retired\""))
            .unwrap();
        let pid: i32 = line.split("peer=").nth(1).unwrap().trim().parse().unwrap();
        client.turn("s", "x").await;
        let other = Client::greeted(old.address()).await;
        other.create("t").await;
        drop(client);
        assert_eq!(old.ended().await.code(), Some(0));
        other.turn("t", "x").await;
        let successor = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(successor, Signal::INT).unwrap();
        other.closed().await;
    })
    .await;
}
