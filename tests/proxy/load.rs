//! `taxiway load` against a Taxiway, a server, and nobody.

use std::{net::SocketAddr, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use taxiway::core::frame::{Cut, Cutter, FrameLimits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::timeout,
};

use crate::rig::{Disks, PATIENCE, Rig, Sims, bounded, frame, free_address, until};

/// What a load has said when it ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{}\n{}", self.out, self.err))
    }
}

fn start(target: SocketAddr, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_taxiway"))
        .args(["load", "--warmup", "0s", "--target", &target.to_string()])
        .args(arguments)
        .env("LOAD_TEST_TOKEN", "a wrong one")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn ended(child: Child) -> Ended {
    let output = timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("it does not end").unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn load(target: SocketAddr, arguments: &[&str]) -> Ended {
    ended(start(target, arguments)).await
}

/// Sends that the servers have seen.
fn sends(sims: &Sims) -> u64 {
    let seen = sims
        .names()
        .into_iter()
        .flat_map(|name| sims.get(&name).seen());
    seen.filter(|seen| seen.method == "session.send").count() as u64
}

/// No session of the load is left, on no disk.
fn nothing_is_left(sims: &Sims) {
    for name in sims.names() {
        assert_eq!(sims.get(&name).open_sessions(), [""; 0], "{name}");
        assert_eq!(sims.home(&name).sessions(), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn what_is_counted_is_what_the_servers_saw() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let more = ["--connections", "3", "--sessions", "2", "--threads", "2"];
        let rest = ["--duration", "500ms", "--events", "50", "-o", "json"];
        let ended = load(rig.taxiway.address(), &[&more[..], &rest].concat()).await;
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let told = ended.json();
        assert_eq!(
            (&told["connections"], &told["sessions"]),
            (&json!(3), &json!(6))
        );
        assert_eq!(told["mode"], "closed");
        let turns = told["turns"]["ended"].as_u64().unwrap();
        assert!(turns >= 6, "{told}");
        assert_eq!(turns, sends(&rig.sims), "{told}");
        rig.admin()
            .metric_is_of("taxiway_turns_total", turns as f64)
            .await;
        assert_eq!(told["latency"]["count"], turns);
        for nothing in ["failed", "unsent", "cut_short"] {
            assert_eq!(told["turns"][nothing], 0, "{told}");
        }
        assert_eq!(
            (&told["errors"], &told["foreign_events"]),
            (&json!([]), &json!(0))
        );
        // Besides the turns' own: a title for each session, perhaps its start.
        let besides = told["events"]["count"].as_u64().unwrap() - turns * 50;
        assert!((6..=12).contains(&besides), "{told}");
        assert_eq!(told["sessions_left_behind"], 0);
        nothing_is_left(&rig.sims);
    })
    .await;
}

#[tokio::test]
async fn a_plan_is_kept_to_its_last_turn() {
    bounded(60, async {
        let rig = Rig::shared(2).await;
        let plan = [
            "--rate",
            "150",
            "--duration",
            "1s",
            "--connections",
            "5",
            "--events",
            "20",
        ];
        let ended = load(
            rig.taxiway.address(),
            &[&plan[..], &["-o", "json"]].concat(),
        )
        .await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
        let told = ended.json();
        assert_eq!(
            (&told["mode"], &told["rate"]),
            (&json!("open"), &json!(150.0))
        );
        let count = |what: &str| told["turns"][what].as_u64().unwrap();
        assert_eq!(count("ended") + count("unsent"), 150, "{told}");
        assert_eq!(told["own"]["lag"]["count"], count("ended"), "{told}");
        let percentile = |name: &str| told["latency"][name].as_f64().unwrap();
        let names = ["p50", "p90", "p99", "p99.9", "max"];
        assert!(names.map(percentile).is_sorted(), "{told}");
        assert!(percentile("p50") > 0.0, "{told}");
        let text = load(
            rig.taxiway.address(),
            &["--rate", "50", "--duration", "300ms"],
        )
        .await;
        for part in ["open loop", "of 50 planned", "p99.9", "own lag"] {
            assert!(text.out.contains(part), "no {part} in\n{}", text.out);
        }
        nothing_is_left(&rig.sims);
    })
    .await;
}

#[tokio::test]
async fn turns_that_fail_are_told_with_their_reasons() {
    bounded(60, async {
        let limit = "sessions.max_open_per_user";
        let rig = Rig::with(2, Disks::Shared, |conf| conf.set(limit, "2")).await;
        let short = ["--duration", "300ms", "-o", "json"];
        let three = [&short[..], &["--connections", "3"]].concat();
        let over = load(rig.taxiway.address(), &three).await;
        assert_eq!(over.code, Some(1), "{}", over.err);
        let told = over.json();
        assert_eq!(told["connections"], 2, "{told}");
        assert_eq!(told["errors"][0]["code"], "-32013", "{told}");
        assert_eq!(told["errors"][0]["count"], 1, "{told}");
        let message = told["errors"][0]["messages"][0].as_str().unwrap();
        assert!(message.contains(limit), "{message}");
        assert!(told["turns"]["ended"].as_u64().unwrap() > 0, "{told}");

        let failing = ["--connections", "1", "--prompt", "[[fail]]"];
        let failing = load(rig.taxiway.address(), &[&short[..], &failing].concat()).await;
        assert_eq!(failing.code, Some(1), "{}", failing.err);
        let told = failing.json();
        assert_eq!(told["turns"]["ended"], 0, "{told}");
        assert_eq!(told["errors"][0]["code"], "session.error", "{told}");
        assert_eq!(
            told["errors"][0]["count"], told["turns"]["failed"],
            "{told}"
        );
        nothing_is_left(&rig.sims);

        // Slower than it may be: given up, with its session.
        let slow = [
            "--prompt",
            "[[len 10000]] [[slow 100]]",
            "--turn-timeout",
            "1s",
        ];
        let plan = [
            "--rate",
            "10",
            "--duration",
            "2s",
            "--connections",
            "1",
            "-o",
            "json",
        ];
        let slow = load(rig.taxiway.address(), &[&plan[..], &slow].concat()).await;
        assert_eq!(slow.code, Some(1), "{}", slow.err);
        let told = slow.json();
        let errors = told["errors"].as_array().unwrap();
        assert!(
            errors.iter().any(|error| error["code"] == "timeout"),
            "{told}"
        );
        assert_eq!(told["turns"]["ended"], 0, "{told}");
        nothing_is_left(&rig.sims);
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_lost_is_told() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let server = sims.get("s1");
        let arguments = ["--duration", "1h", "--connections", "2", "-o", "json"];
        let running = start(server.address(), &arguments);
        until("turns", async || match sends(&sims) {
            few if few < 10 => Err(few),
            _ => Ok(()),
        })
        .await;
        server.kill();
        let ended = ended(running).await;
        assert_eq!(ended.code, Some(1), "{}", ended.err);
        let told = ended.json();
        let errors = told["errors"].as_array().unwrap();
        assert!(
            errors.iter().any(|error| error["code"] == "closed"),
            "{told}"
        );
        assert!(told["turns"]["ended"].as_u64().unwrap() > 0, "{told}");
        assert_eq!(told["sessions_left_behind"], 2, "{told}");
    })
    .await;
}

#[tokio::test]
async fn an_interrupt_prints_what_is_there_and_cleans_up() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let slow = [
            "--prompt",
            "[[len 10000]] [[slow 50]]",
            "--duration",
            "1h",
            "-o",
            "json",
        ];
        let running = start(rig.taxiway.address(), &slow);
        until("all turns", async || match sends(&rig.sims) {
            few if few < 10 => Err(few),
            _ => Ok(()),
        })
        .await;
        let pid = Pid::from_raw(i32::try_from(running.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let ended = ended(running).await;
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let told = ended.json();
        assert_eq!(told["interrupted"], true);
        assert_eq!(told["turns"]["cut_short"], 10, "{told}");
        assert!(told["events"]["count"].as_u64().unwrap() > 0, "{told}");
        nothing_is_left(&rig.sims);
    })
    .await;
}

#[tokio::test]
async fn whoever_is_not_let_in_is_told_why() {
    bounded(60, async {
        let nobody = load(free_address(), &[]).await;
        assert_eq!(nobody.code, Some(69));
        assert!(nobody.err.contains("cannot be reached"), "{}", nobody.err);

        let rig = Rig::with(1, Disks::Shared, |conf| {
            let principal = "[{ name = 'alice', token_sha256 = \
                             '0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef' }]";
            conf.set("identity.principals", principal)
        })
        .await;
        let address = rig.taxiway.address();
        for (arguments, code, words) in [
            (&[][..], 69, "-32002"),
            (&["--token-env", "LOAD_TEST_TOKEN"], 69, "-32002"),
            (&["--token-env", "NO_SUCH_VARIABLE"], 2, "NO_SUCH_VARIABLE"),
            (&["--rate", "0"], 2, "turns per second"),
            (&["--duration", "0s"], 2, "--duration"),
            (&["--session-prefix", "a b"], 2, "letters"),
            (&["--create", "/nonexistent.json"], 2, "--create"),
            (&["--ca", "/nonexistent.pem"], 78, "cannot be read"),
            (&["--connections", "90000"], 2, "ulimit -n"),
        ] {
            let refused = load(address, arguments).await;
            assert_eq!(refused.code, Some(code), "{arguments:?}: {}", refused.err);
            assert!(
                refused.err.contains(words),
                "{arguments:?}: {}",
                refused.err
            );
        }
        assert_eq!(sends(&rig.sims), 0);
    })
    .await;
}

/// A server whose sessions live where real ones do; it counts its calls.
async fn real_server() -> (SocketAddr, tokio::sync::watch::Receiver<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, calls) = tokio::sync::watch::channel(Vec::new());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            answer_all(stream, &tell).await;
        }
    });
    (address, calls)
}

async fn answer_all(mut stream: TcpStream, tell: &tokio::sync::watch::Sender<Vec<String>>) {
    let limits = FrameLimits {
        header: 4096,
        frame: 1 << 20,
    };
    let (mut cutter, mut bytes) = (Cutter::new(limits), Vec::new());
    while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
        while let Ok(Cut::Frame { body, .. }) = cutter.cut(&bytes) {
            let call: Value = serde_json::from_slice(&bytes[body.clone()]).unwrap();
            bytes.drain(..body.end);
            tell.send_modify(|calls| calls.push(call["method"].as_str().unwrap().to_owned()));
            let result = json!({ "workspacePath": "/home/alice/.copilot/session-state/x" });
            let answer = json!({ "jsonrpc": "2.0", "id": call["id"], "result": result });
            stream.write_all(&frame(answer.to_string())).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_real_server_is_loaded_only_on_purpose() {
    bounded(60, async {
        let (address, calls) = real_server().await;
        let refused = load(address, &[]).await;
        assert_eq!(refused.code, Some(2));
        assert!(refused.err.contains("--yes"), "{}", refused.err);
        let expected = ["connect", "session.create", "session.delete"];
        assert_eq!(*calls.borrow(), expected);
        // Behind a simulated one it is found as well.
        let sims = Sims::start(1, Disks::Separate).await;
        let also = ["--target", &address.to_string()];
        let refused = load(sims.get("s1").address(), &also).await;
        assert_eq!(refused.code, Some(2), "{}", refused.err);
        assert_eq!(sends(&sims), 0);
        nothing_is_left(&sims);
        let meant = ["--yes", "--connections", "1", "--duration", "1h"];
        let running = start(address, &meant);
        let mut calls = calls;
        let sent = calls.wait_for(|calls| calls.iter().any(|call| call == "session.send"));
        timeout(PATIENCE, sent).await.unwrap().unwrap();
        drop(running);
    })
    .await;
}
