//! Where new sessions go: by user, by load, by weight, by operators; the same on every Taxiway.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::rig::{Client, Conf, Disks, Rig, Sims, Taxiway, bounded, id_placed_on};

/// Creates so many sessions; says how many went where.
async fn spread(rig: &Rig, prefix: &str, count: usize) -> (Client, BTreeMap<String, usize>) {
    let client = rig.client().await;
    let mut places = BTreeMap::new();
    for n in 0..count {
        let id = format!("user-{prefix}{n}--x");
        client.create(&id).await;
        *places.entry(rig.sims.owner(&id).unwrap()).or_default() += 1;
    }
    (client, places)
}

#[tokio::test]
async fn all_sessions_of_a_user_go_to_one_backend() {
    bounded(60, async {
        let rig = Rig::sticky(4).await;
        let mut used = BTreeSet::new();
        for user in ["ann", "bob", "cy", "di", "ed", "fay", "gus", "hal"] {
            let mut homes = BTreeSet::new();
            // Over several connections, as several processes of one application would.
            for client in [rig.client().await, rig.client().await] {
                for n in 0..3 {
                    let id = format!("user-{user}--{n}");
                    client.create(&id).await;
                    homes.insert(rig.sims.owner(&id).unwrap());
                }
            }
            assert_eq!(homes.len(), 1, "{user}: {homes:?}");
            used.extend(homes);
        }
        assert!(used.len() >= 3, "{used:?}");
    })
    .await;
}

#[tokio::test]
async fn no_backend_gets_more_than_its_bounded_share() {
    bounded(60, async {
        let rig = Rig::with(4, Disks::Separate, |conf| {
            conf.set("routing.load_factor", "1.25")
        })
        .await;
        // All of one user: without the bound all on one.
        let client = rig.client().await;
        let mut places = BTreeMap::<String, usize>::new();
        for n in 0..80 {
            let id = format!("user-ann--{n}");
            client.create(&id).await;
            *places.entry(rig.sims.owner(&id).unwrap()).or_default() += 1;
            let most = places.values().max().copied().unwrap();
            let share = (1.25 * (n + 1) as f64 / 4.0).ceil() as usize;
            assert!(most <= share.max(1), "{most} of {}: {places:?}", n + 1);
        }
        let bounded = rig.admin().scrape().await;
        let lower: f64 = rig
            .sims
            .names()
            .iter()
            .map(|name| {
                bounded.value(&format!(
                    "taxiway_placements_total{{backend=\"{name}\",reason=\"bounded\"}}"
                ))
            })
            .sum();
        assert!(lower >= 50.0, "{lower}");
    })
    .await;
}

#[tokio::test]
async fn two_taxiways_agree_without_speaking_to_each_other() {
    bounded(60, async {
        let sims = Sims::start(5, Disks::Separate).await;
        let conf = Conf::new(Disks::Separate)
            .all_of(&sims)
            .backend_set("s2", "weight", "3");
        // The order in the file does not matter either.
        let other = Conf::new(Disks::Separate)
            .only(&sims, &["s4", "s2", "s5", "s1", "s3"])
            .backend_set("s2", "weight", "3");
        let (one, two) = (Taxiway::start(conf).await, Taxiway::start(other).await);
        let mut places = BTreeMap::<String, usize>::new();
        for n in 0..150 {
            let path = format!("/api/v1/sessions/user-{n}--x/explain");
            let (a, b) = (one.admin.get(&path).await, two.admin.get(&path).await);
            let place = a["placement_if_new"]["backend"]
                .as_str()
                .unwrap()
                .to_owned();
            assert_eq!(b["placement_if_new"]["backend"], place, "user {n}");
            *places.entry(place).or_default() += 1;
        }
        assert_eq!(places.len(), 5, "{places:?}");
        // What one has placed the other finds, by rank or by asking.
        let (first, second) = (
            Client::greeted(one.address()).await,
            Client::greeted(two.address()).await,
        );
        for n in 0..20 {
            let id = format!("user-{n}--x");
            first.create(&id).await;
            second.create(&id).await;
            assert!(sims.owner(&id).is_some());
        }
    })
    .await;
}

#[tokio::test]
async fn operators_win_over_the_file_until_reset() {
    bounded(60, async {
        let mut rig = Rig::sticky(3).await;
        let client = rig.client().await;
        let kept = id_placed_on(rig.admin(), "s1", "kept").await;
        client.create(&kept).await;
        client.turn(&kept, "one").await;

        rig.admin().change("/api/v1/backends/s1/drain", "{}").await;
        assert_eq!(rig.admin().backend("s1").await["state"], "drain");
        let (_held, places) = spread(&rig, "drain", 12).await;
        assert!(!places.contains_key("s1"), "{places:?}");
        // What was open there is closed by now, and its calls wait for a while.
        let waits = client.mode(&kept).await.unwrap_err();
        assert_eq!(waits.code, -32010, "{waits:?}");
        assert!(waits.message.contains("disk of backend s1"), "{waits:?}");
        // A reload does not undo it, nor does a file that says otherwise.
        let file = rig
            .taxiway
            .conf
            .clone()
            .backend_set("s1", "state", "'ready'");
        rig.taxiway.reload(file).await;
        assert_eq!(rig.admin().backend("s1").await["state"], "drain");
        let (_held, places) = spread(&rig, "again", 6).await;
        assert!(!places.contains_key("s1"), "{places:?}");

        rig.admin().change("/api/v1/backends/s1/ready", "{}").await;
        client.turn(&kept, "two").await;
        let back = id_placed_on(rig.admin(), "s1", "back").await;
        client.create(&back).await;
        assert_eq!(rig.sims.owner(&back).as_deref(), Some("s1"));

        // As if it were not there: neither placements nor questions.
        rig.admin().change("/api/v1/backends/s2/maint", "{}").await;
        let (_held, places) = spread(&rig, "maint", 12).await;
        assert!(!places.contains_key("s2"), "{places:?}");
        let file = rig
            .taxiway
            .conf
            .clone()
            .backend_set("s3", "state", "'drain'");
        rig.taxiway.reload(file).await;
        let (_held, places) = spread(&rig, "file", 6).await;
        assert_eq!(places.keys().collect::<Vec<_>>(), ["s1"]);
        rig.admin().change("/api/v1/backends/s2/reset", "{}").await;
        assert_eq!(rig.admin().backend("s2").await["state"], "ready");
        id_placed_on(rig.admin(), "s2", "reset").await;

        let (status, _) = rig
            .admin()
            .post("/api/v1/backends/nobody/drain", "{}")
            .await;
        assert_eq!(status, 404);
    })
    .await;
}

#[tokio::test]
async fn weights_of_file_and_operators_shift_the_shares() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Shared, |conf| {
            conf.backend_set("s1", "weight", "3")
        })
        .await;
        let (held, places) = spread(&rig, "weighted", 40).await;
        assert_eq!((places["s1"], places["s2"]), (30, 10), "{places:?}");
        drop(held);
        let none = r#"taxiway_sessions_open{backend="s1"}"#;
        rig.admin().metric_is(none, 0.0).await;
        rig.admin()
            .metric_is(r#"taxiway_sessions_open{backend="s2"}"#, 0.0)
            .await;
        rig.admin()
            .change("/api/v1/backends/s2/weight", r#"{"weight":9}"#)
            .await;
        let (_held, places) = spread(&rig, "operator", 40).await;
        assert_eq!((places["s1"], places["s2"]), (10, 30), "{places:?}");
        let (status, _) = rig
            .admin()
            .post("/api/v1/backends/s2/weight", r#"{"weight":0}"#)
            .await;
        assert_eq!(status, 422);
    })
    .await;
}

#[tokio::test]
async fn each_policy_spreads_in_its_way() {
    bounded(60, async {
        for (placement, reason, most) in [
            ("round-robin", "round_robin", 10),
            ("least-loaded", "least_loaded", 10),
            ("p2c", "two_choices", 18),
        ] {
            let rig = Rig::with(4, Disks::Shared, |conf| {
                conf.text("routing.placement", placement)
            })
            .await;
            let (_held, places) = spread(&rig, placement, 40).await;
            assert_eq!(places.len(), 4, "{placement}: {places:?}");
            let largest = places.values().max().copied().unwrap();
            assert!(largest <= most, "{placement}: {places:?}");
            let scrape = rig.admin().scrape().await;
            for (name, count) in places {
                let series =
                    format!("taxiway_placements_total{{backend=\"{name}\",reason=\"{reason}\"}}");
                let counted = scrape.value(&series);
                assert!((counted - count as f64).abs() < 1e-9, "{series} {counted}");
            }
        }
    })
    .await;
}

/// Open turns weigh more than open sessions.
#[tokio::test]
async fn a_backend_with_running_turns_gets_no_more_while_others_are_idle() {
    bounded(60, async {
        let rig = Rig::shared(2).await;
        let client = rig.client().await;
        client.create("working").await;
        let busy = rig.sims.owner("working").unwrap();
        client.send("working", "[[len 2000]] [[slow 20]]").await;
        let series = format!("taxiway_turns_open{{backend=\"{busy}\"}}");
        rig.admin().metric_is(&series, 1.0).await;
        for n in 0..6 {
            let id = format!("idle-{n}");
            client.create(&id).await;
            assert_ne!(rig.sims.owner(&id).unwrap(), busy);
        }
        let params = json!({ "sessionId": "working" });
        client.call("session.abort", params).await.unwrap();
        rig.admin().metric_is(&series, 0.0).await;
        client.create("now-here").await;
        assert_eq!(rig.sims.owner("now-here").unwrap(), busy);
    })
    .await;
}
