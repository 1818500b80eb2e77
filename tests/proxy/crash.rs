//! Taxiway killed again and again, in front of servers whose disks are their own: it forgets no
//! session that somebody was told of.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::rig::{Client, Conf, Disks, Rig, Sims, bounded, until};

const ROUNDS: usize = 50;

/// Clients, and how many sessions each makes before the crash.
const CLIENTS: u64 = 2;
const SESSIONS: u64 = 3;
/// For each round so far, so many sessions have had a turn before the next crash.
const EACH: usize = 2;

/// Chance from a seed (SplitMix64, public domain).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// An id as SDKs draw them. Unknown, it would be taken for new.
    fn uuid(&mut self) -> String {
        let (a, b) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            b >> 52,
            b & 0xffff_ffff_ffff
        )
    }
}

/// Sessions of which a client has seen a whole turn.
type Acknowledged = Arc<Mutex<Vec<String>>>;

/// Makes sessions and goes on using them until the connection ends.
async fn use_sessions(client: Client, ids: Vec<String>, acknowledged: Acknowledged) {
    let answered = async |method, params| {
        let pending = client.begin(method, params).await;
        // What ends with the crash has no answer; an error has one, and is none of ours.
        pending.answer_if_any().await.map(|answer| answer.unwrap())
    };
    for id in &ids {
        if answered("session.create", json!({ "sessionId": id }))
            .await
            .is_none()
        {
            return;
        }
        let send = json!({ "sessionId": id, "prompt": "remember", "wait": true });
        if answered("session.send", send).await.is_none() {
            return;
        }
        acknowledged.lock().unwrap().push(id.clone());
    }
    // One is closed at the crash, the others are open.
    let _ended = answered("session.destroy", json!({ "sessionId": ids[0] })).await;
    loop {
        for id in &ids[1..] {
            let send = json!({ "sessionId": id, "prompt": "[[len 5]] more", "wait": true });
            if answered("session.send", send).await.is_none() {
                return;
            }
        }
    }
}

/// Which server's disk has each of these; waits until all are on one.
async fn homes_of(sims: &Sims, sessions: &[String]) -> BTreeMap<String, String> {
    until("every acknowledged session on a disk", async || {
        let mut homes = BTreeMap::new();
        for name in sims.names() {
            for id in sims.home(&name).sessions() {
                let twice = homes.insert(id, name.clone());
                assert_eq!(twice, None, "a session on two disks");
            }
        }
        match sessions.iter().find(|id| !homes.contains_key(*id)) {
            None => Ok(homes),
            Some(missing) => Err(missing.clone()),
        }
    })
    .await
}

/// Every session is resumed at its home; if that is away, it is refused by name and made nowhere.
async fn check(rig: &Rig, homes: &BTreeMap<String, String>, sessions: &[String], away: &[String]) {
    let client = rig.client().await;
    stream::iter(sessions)
        .for_each_concurrent(8, async |id| {
            let home = &homes[id];
            let params = json!({ "sessionId": id });
            if !away.contains(home) {
                let resumed = client.call("session.resume", params).await;
                assert!(resumed.is_ok(), "{id} at {home}: {resumed:?}");
                assert_eq!(rig.sims.owner(id).as_ref(), Some(home), "{id}");
                return;
            }
            for method in ["session.resume", "session.create"] {
                let refused = client.call(method, params.clone()).await;
                let failure = refused.expect_err("its home is away");
                assert_eq!(failure.code, -32010, "{failure:?}");
                assert!(
                    failure.message.contains(&format!("backend {home},")),
                    "{id} lives on {home}: {failure:?}"
                );
            }
            assert_eq!(rig.sims.owner(id), None, "{id} was made elsewhere");
        })
        .await;
}

#[tokio::test]
async fn killed_fifty_times_it_finds_every_session_at_its_home() {
    let seed = 20_261_122;
    let mut chance = Chance(seed);
    bounded(400, async {
        // Who waits for a home would wait longer than the plan has time.
        let at_once = |conf: Conf| conf.text("routing.home_wait", "0s");
        let mut rig = Rig::with(3, Disks::Separate, at_once).await;
        let acknowledged = Acknowledged::default();
        let mut refused = 0;
        for round in 0..ROUNDS {
            let mut load = Vec::new();
            for _ in 0..CLIENTS {
                let ids = (0..SESSIONS).map(|_| chance.uuid()).collect();
                let client = rig.client().await;
                load.push(tokio::spawn(use_sessions(
                    client,
                    ids,
                    acknowledged.clone(),
                )));
            }
            // The moment of the crash is the plan's, if something has been done by then: on a machine
            // that is busy otherwise nothing may have been.
            tokio::time::sleep(Duration::from_millis(chance.below(120))).await;
            let enough = EACH * (round + 1);
            until("sessions to be acknowledged", async || {
                let count = acknowledged.lock().unwrap().len();
                if count >= enough {
                    Ok(())
                } else {
                    Err((count, enough))
                }
            })
            .await;
            rig.taxiway.kill().await;
            for client in load {
                client.await.unwrap();
            }
            let sessions = acknowledged.lock().unwrap().clone();
            let homes = homes_of(&rig.sims, &sessions).await;
            // Two of three: that one alone is away can be told without knowing where it was.
            let here = format!("s{}", 1 + chance.below(3));
            let away: Vec<String> = match round % 3 {
                0 => rig
                    .sims
                    .names()
                    .into_iter()
                    .filter(|n| *n != here)
                    .collect(),
                _ => Vec::new(),
            };
            for name in &away {
                rig.sims.get(name).kill();
            }
            rig.taxiway.start_again().await;
            check(&rig, &homes, &sessions, &away).await;
            refused += sessions
                .iter()
                .filter(|id| away.contains(&homes[*id]))
                .count();
            for name in &away {
                rig.sims.restart(name).await;
                rig.admin().health(name, &["up", "probation"]).await;
            }
            if !away.is_empty() {
                check(&rig, &homes, &sessions, &[]).await;
            }
        }
        assert!(refused > 100, "{refused}: seed {seed}");
    })
    .await;
}
