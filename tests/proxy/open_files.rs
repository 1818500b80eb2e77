//! No files left: said, counted, waited out; those who are served go on, and no server is blamed.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::{io::AsyncReadExt, net::TcpStream, process::Command, time::timeout};

use crate::rig::{Disks, Rig, bounded, until};

const HIT: &str = r#"taxiway_limit_hits_total{limit="open_files"}"#;

fn pid(rig: &Rig) -> Pid {
    Pid::from_raw(i32::try_from(rig.taxiway.pid()).unwrap()).unwrap()
}

/// How many it has open.
fn open(rig: &Rig) -> u64 {
    let folder = format!("/proc/{}/fd", rig.taxiway.pid());
    std::fs::read_dir(folder).unwrap().count() as u64
}

/// Allows it so many; gives the hard limit, which stays.
fn allow(rig: &Rig, files: u64) -> Option<u64> {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(files),
        maximum,
    };
    prlimit(Some(pid(rig)), Resource::Nofile, limit).unwrap();
    maximum
}

async fn hits(rig: &Rig) -> f64 {
    rig.admin().scrape().await.sum("taxiway_limit_hits_total")
}

async fn all_up(rig: &Rig) {
    let list = rig.admin().get("/api/v1/backends").await;
    for backend in list["items"].as_array().unwrap() {
        assert_eq!(backend["health"], "up", "{backend}");
    }
}

/// CPU time so far, in ticks of the system.
fn ticks(rig: &Rig) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", rig.taxiway.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields = fields.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn clients_beyond_the_limit_are_closed_and_the_others_served() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Separate, |conf| conf).await;
        let early = rig.client().await;
        early.create("early").await;
        let most = allow(&rig, open(&rig) + 64 + 10);

        let mut crowd = Vec::new();
        for _ in 0..200 {
            crowd.push(TcpStream::connect(rig.taxiway.address()).await.unwrap());
        }
        until("surplus clients to be counted", async || {
            let hits = hits(&rig).await;
            if hits >= 150.0 { Ok(()) } else { Err(hits) }
        })
        .await;
        assert!(rig.admin().scrape().await.value(HIT) >= 150.0);
        // The last one is no client of it.
        let mut last = crowd.pop().unwrap();
        let closed = timeout(Duration::from_secs(10), last.read(&mut [0])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
        // Who is served stays served, by a connection to a server that is new, too.
        early.turn("early", "hello").await;
        for n in 0..8 {
            early.create(&format!("later-{n}")).await;
        }
        all_up(&rig).await;
        let told = rig.taxiway.log().matches("open_files").count();
        assert!((1..=40).contains(&told), "{told} lines");

        drop(crowd);
        until("room", async || {
            let mut client = TcpStream::connect(rig.taxiway.address()).await.unwrap();
            match timeout(Duration::from_millis(300), client.read(&mut [0])).await {
                Ok(read) => Err(read),
                Err(_) => Ok(()),
            }
        })
        .await;
        allow(&rig, most.unwrap_or(1024));
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_reached_for_want_of_files_is_no_fault_of_a_server() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Separate, |conf| {
            // Blamed once, it would be down.
            conf.set("health.unhealthy_after", "1")
        })
        .await;
        let client = rig.client().await;
        // Its connection to a server would take what is kept back.
        let most = allow(&rig, open(&rig) + 12);
        let params = serde_json::json!({ "sessionId": "wanted" });
        let refused = client.call("session.create", params).await.unwrap_err();
        assert_eq!(refused.data["retryable"], true, "{refused:?}");
        // Were one blamed, it would be down until it is looked at again, and the log would say so.
        let names = rig.sims.names();
        let looks = |name: &String| {
            let seen = rig.sims.get(name).seen();
            seen.iter().filter(|call| call.method == "ping").count()
        };
        let before: Vec<usize> = names.iter().map(looks).collect();
        until("health to have looked twice", async || {
            let now: Vec<usize> = names.iter().map(looks).collect();
            if now
                .iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + 2)
            {
                Ok(())
            } else {
                Err(now)
            }
        })
        .await;
        all_up(&rig).await;
        assert!(!rig.taxiway.log().contains("down"), "{}", rig.taxiway.log());
        assert!(rig.admin().scrape().await.value(HIT) >= 1.0);

        allow(&rig, most.unwrap_or(1024));
        client.create("wanted").await;
        client.turn("wanted", "hello").await;
    })
    .await;
}

#[tokio::test]
async fn without_any_file_it_waits_and_comes_back() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Separate, |conf| {
            // A probe of the admin server would need a file, too.
            conf.text("health.interval", "1s")
        })
        .await;
        let early = rig.client().await;
        early.create("early").await;
        let most = allow(&rig, 8);
        let waiting = TcpStream::connect(rig.taxiway.address()).await.unwrap();
        let before = ticks(&rig);
        // As long as it takes to see a process that goes round and round.
        let mut heard = [0];
        let answered = timeout(Duration::from_secs(2), waiting.peek(&mut heard)).await;
        assert!(answered.is_err(), "it waits in the backlog: {answered:?}");
        let used = ticks(&rig) - before;
        assert!(used <= 50, "{used} ticks in two seconds");
        early.turn("early", "hello").await;

        allow(&rig, most.unwrap_or(1024));
        drop(waiting);
        let late = rig.client().await;
        late.create("late").await;
        all_up(&rig).await;
        assert!(rig.admin().scrape().await.value(HIT) >= 1.0);
    })
    .await;
}

#[tokio::test]
async fn the_limit_is_raised_and_too_low_a_one_is_told() {
    bounded(60, async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("taxiway.toml");
        let text = "[listener]\naddress = \"127.0.0.1:4321\"\n[limits]\nconnections = 500\n\
                    [[backends]]\nname = \"a\"\naddress = \"127.0.0.1:4322\"\n";
        std::fs::write(&file, text).unwrap();
        for (soft, hard, told) in [(100, 400, true), (100, 1000, false)] {
            let script =
                format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" check -c \"$1\"");
            let checked = Command::new("sh")
                .args(["-c", &script, env!("CARGO_BIN_EXE_taxiway")])
                .arg(&file)
                .stdin(Stdio::null())
                .output()
                .await
                .unwrap();
            let said = String::from_utf8_lossy(&checked.stderr).into_owned();
            assert!(checked.status.success(), "{said}");
            let warns = said.contains("1000 open files") && said.contains("400");
            assert_eq!(warns, told, "{said}");
        }
        // One that runs has what it may have.
        let rig = Rig::with(1, Disks::Separate, |conf| conf).await;
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", rig.taxiway.pid())).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let fields: Vec<&str> = line.unwrap().split_whitespace().collect();
        assert_eq!(fields[3], fields[4], "{fields:?}");
    })
    .await;
}

/// Programs that go through all numbers up to their limit take for ever with a raised one.
#[tokio::test]
async fn what_it_starts_has_the_limit_that_it_was_started_with() {
    bounded(60, async {
        let guarded = Command::new(env!("CARGO_BIN_EXE_taxiway"))
            .args([
                "guard",
                "--open-files=77",
                "--",
                "sh",
                "-c",
                "ulimit -Sn; ulimit -Hn",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut guarded = guarded.unwrap();
        // Its end would be Taxiway's, and with it that of what it guards.
        let origin = guarded.stdin.take();
        let said = guarded.wait_with_output().await.unwrap().stdout;
        drop(origin);
        let said = String::from_utf8(said).unwrap();
        let limits: Vec<&str> = said
            .lines()
            .filter(|line| !line.starts_with("taxiway"))
            .collect();
        assert_eq!(limits.len(), 2, "{said}");
        assert_eq!(limits[0], "77", "{said}");
        assert_ne!(limits[1], "77", "{said}");
    })
    .await;
}
