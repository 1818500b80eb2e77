//! Reloads under load: nobody notices.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use crate::rig::{Client, Conf, Disks, Sims, Taxiway, bounded};

const RELOADS: usize = 1000;
const CLIENTS: usize = 8;

#[derive(Default)]
struct Counts {
    calls: AtomicUsize,
    failed: AtomicUsize,
    sessions: AtomicUsize,
    turns: AtomicUsize,
    rounds: AtomicUsize,
}

impl Counts {
    async fn call(&self, client: &Client, method: &str, params: serde_json::Value) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Err(failure) = client.call(method, params).await {
            self.failed.fetch_add(1, Ordering::Relaxed);
            eprintln!("{method}: {failure:?}");
        }
    }
}

/// A client that lives a busy life until it is told to stop: many sessions, of many users, open at
/// a time; each gets turns, is looked at, and is left.
async fn live(client: &Client, number: usize, counts: &Counts, stop: &AtomicBool) {
    let mut open: Vec<String> = Vec::new();
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = format!("user-{number}-{round}--load");
        counts
            .call(client, "session.create", json!({ "sessionId": id }))
            .await;
        counts.sessions.fetch_add(1, Ordering::Relaxed);
        open.push(id);
        counts.call(client, "ping", json!({})).await;
        let busy = &open[round % open.len()];
        let mark = client.mark();
        let send = json!({ "sessionId": busy, "prompt": "[[len 3]]", "wait": true });
        counts.call(client, "session.send", send).await;
        client
            .heard_since(mark, &crate::rig::event(busy, "session.idle"))
            .await;
        counts.turns.fetch_add(1, Ordering::Relaxed);
        let params = json!({ "sessionId": open[0] });
        counts.call(client, "session.mode.get", params).await;
        if round % 16 == 0 {
            counts.call(client, "session.list", json!({})).await;
        }
        if open.len() > 12 {
            let left = open.remove(0);
            counts
                .call(client, "session.destroy", json!({ "sessionId": left }))
                .await;
        }
        round += 1;
        counts.rounds.fetch_add(1, Ordering::Relaxed);
    }
    for id in open {
        counts
            .call(client, "session.mode.get", json!({ "sessionId": id }))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reloads_under_load_fail_no_call_and_drop_no_connection() {
    bounded(100, async {
        let sims = Sims::start(5, Disks::Separate).await;
        let base = Conf::new(Disks::Separate)
            .text("log.level", "warn")
            .set("routing.load_factor", "1.25");
        // Two stay; the others come and go, and weights change besides.
        let shapes: Vec<Conf> = [
            vec!["s1", "s2", "s3"],
            vec!["s1", "s2", "s3", "s4"],
            vec!["s1", "s2", "s4", "s5"],
            vec!["s2", "s1"],
            vec!["s1", "s2", "s3", "s4", "s5"],
        ]
        .iter()
        .map(|names| base.clone().only(&sims, names))
        .collect();
        let mut taxiway = Taxiway::start(shapes[0].clone()).await;
        let (listener, admin) = (
            taxiway.conf.address("listener"),
            taxiway.conf.address("admin"),
        );
        let counts = Arc::new(Counts::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let client = Client::greeted(taxiway.address()).await;
            let (counts, stop) = (counts.clone(), stop.clone());
            clients.push(tokio::spawn(async move {
                live(&client, number, &counts, &stop).await;
                client.is_open()
            }));
        }

        let began = Instant::now();
        for n in 0..RELOADS {
            let conf = shapes[n % shapes.len()]
                .clone()
                .text("listener.address", &listener.to_string())
                .text("admin.address", &admin.to_string())
                .backend_set("s1", "weight", &(1 + n % 7).to_string());
            taxiway.reload(conf).await;
        }
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        let mut dropped = 0;
        for client in clients {
            dropped += usize::from(!client.await.unwrap());
        }

        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let failed = of(&counts.failed);
        println!(
            "{RELOADS} reloads in {took:.1?}: {} calls, {failed} failed; {CLIENTS} connections, \
             {dropped} dropped; {} sessions, {} turns",
            of(&counts.calls),
            of(&counts.sessions),
            of(&counts.turns),
        );
        assert_eq!((failed, dropped), (0, 0));
        assert!(took < Duration::from_secs(60), "{took:?}");
        assert!(of(&counts.rounds) >= CLIENTS * 10, "there was no load");
        let scrape = taxiway.admin.scrape().await;
        let reloads = scrape.value(r#"taxiway_config_reloads_total{result="success"}"#);
        assert!(reloads >= RELOADS as f64, "{reloads}");
        assert_eq!(scrape.sum("taxiway_errors_total"), 0.0);
        // Backends that went away for good leave no series behind once nobody uses them.
        let all_left = shapes[3]
            .clone()
            .text("listener.address", &listener.to_string())
            .text("admin.address", &admin.to_string());
        taxiway.reload(all_left).await;
        crate::rig::until("removed backends to vanish", async || {
            let list = taxiway.admin.get("/api/v1/backends").await;
            let listed = list["items"].as_array().unwrap().len();
            let text = taxiway.admin.scrape().await.0;
            let left: Vec<String> = text
                .lines()
                .filter(|line| ["s3", "s4", "s5"].iter().any(|name| line.contains(name)))
                .map(str::to_owned)
                .collect();
            if listed == 2 && left.is_empty() {
                Ok(())
            } else {
                Err((listed, left))
            }
        })
        .await;
    })
    .await;
}

/// A backend taken out of the file keeps the sessions that it has open, and gets no new ones.
#[tokio::test]
async fn a_removed_backend_serves_its_sessions_to_their_end() {
    bounded(60, async {
        let mut rig = crate::rig::Rig::sticky(2).await;
        let client = rig.client().await;
        let here = crate::rig::id_placed_on(rig.admin(), "s2", "stay").await;
        client.create(&here).await;
        client.turn(&here, "one").await;
        client.send(&here, "[[len 20]] [[slow 20]]").await;
        let less = rig.taxiway.conf.clone().only(&rig.sims, &["s1"]);
        rig.taxiway.reload(less).await;
        client
            .heard(&crate::rig::event(&here, "session.idle"))
            .await;
        client.turn(&here, "three").await;
        let second = rig.client().await;
        let params = json!({ "sessionId": here });
        second.call("session.resume", params).await.unwrap();
        assert_eq!(rig.sims.owner(&here).as_deref(), Some("s2"));
        assert_eq!(rig.admin().backend("s2").await["removed"], true);
        for n in 0..8 {
            let id = format!("user-new{n}--x");
            client.create(&id).await;
            assert_eq!(rig.sims.owner(&id).as_deref(), Some("s1"));
        }
        // The last one to leave frees it, at the latest when the idle upstreams are closed.
        drop((client, second));
        crate::rig::until("the end of s2", async || {
            let backend = rig.admin().backend("s2").await;
            if backend.is_null() {
                Ok(())
            } else {
                Err(backend)
            }
        })
        .await;
    })
    .await;
}
