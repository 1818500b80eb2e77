//! The store of the running program: starts that are refused, and what an operator sees.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::json;
use tempfile::TempDir;

use crate::rig::{Client, Conf, Disks, Rig, Sims, Taxiway, bounded, until};

/// Exit codes: the configuration has to change; something else is wrong.
const CONFIG: Option<i32> = Some(78);
const FAILED: Option<i32> = Some(1);

#[tokio::test]
async fn a_store_that_cannot_be_used_is_refused_in_words() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let folder = TempDir::new().unwrap();
        let refused = async |conf: &Conf| {
            fs::write(folder.path().join("taxiway.toml"), conf.render()).unwrap();
            let _none_yet = fs::remove_file(folder.path().join("log"));
            Taxiway::refused_start(folder.path()).await
        };
        let conf = || Conf::new(Disks::Separate).all_of(&sims);

        let (code, said) = refused(&conf().text("store.path", "no/such/t.db")).await;
        assert_eq!(code, CONFIG, "{said}");
        assert!(
            said.contains("directory does not exist") && said.contains("store.path"),
            "{said}"
        );

        let place = folder.path().join("taxiway.db");
        fs::write(&place, "not a store").unwrap();
        let (code, said) = refused(&conf()).await;
        assert_eq!(code, CONFIG, "{said}");
        assert!(said.contains("is not a store of Taxiway"), "{said}");
        assert_eq!(fs::read_to_string(&place).unwrap(), "not a store");
        fs::remove_file(&place).unwrap();

        let running = Taxiway::start(conf()).await;
        let taken = running.folder().join("taxiway.db");
        let (code, said) = refused(&conf().text("store.path", taken.to_str().unwrap())).await;
        assert_eq!(code, FAILED, "{said}");
        assert!(said.contains(&format!("pid {}", running.pid())), "{said}");
        drop(running);
    })
    .await;
}

#[tokio::test]
async fn a_damaged_store_says_what_is_lost_without_it_and_that_is_so() {
    bounded(60, async {
        let mut rig = Rig::sticky(2).await;
        let client = rig.client().await;
        for n in 0..40 {
            let id = format!("user-a{n}--x");
            client.create(&id).await;
            client.turn(&id, "remember").await;
        }
        let owner = rig.sims.owner("user-a1--x");
        drop(client);
        rig.taxiway.kill().await;
        let file = rig.taxiway.folder().join("taxiway.db");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 3]).unwrap();
        let (code, said) = Taxiway::refused_start(&rig.taxiway.folder()).await;
        assert_eq!(code, FAILED, "{said}");
        assert!(
            said.contains("is damaged") && said.contains("move the file away"),
            "{said}"
        );
        fs::rename(&file, file.with_extension("away")).unwrap();
        rig.taxiway.start_again().await;
        let client = rig.client().await;
        let params = json!({ "sessionId": "user-a1--x" });
        client.call("session.resume", params).await.unwrap();
        assert_eq!(rig.sims.owner("user-a1--x"), owner);
    })
    .await;
}

#[tokio::test]
async fn a_store_that_is_taken_away_is_noticed_and_made_again() {
    bounded(60, async {
        let rig = Rig::sticky(1).await;
        let admin = rig.admin();
        admin.metric_is("taxiway_store_up", 1.0).await;
        let client = rig.client().await;
        client.create("user-a--x").await;
        client.turn("user-a--x", "remember").await;
        admin
            .metric_is("taxiway_store_unwritten_sessions", 0.0)
            .await;
        let file = rig.taxiway.folder().join("taxiway.db");
        fs::remove_file(&file).unwrap();
        client.create("user-b--x").await;
        admin
            .metric_is(r#"taxiway_store_errors_total{op="write"}"#, 1.0)
            .await;
        admin.metric_is("taxiway_store_up", 1.0).await;
        until("the file", async || {
            file.exists().then_some(()).ok_or("gone")
        })
        .await;
        let said = async |words: &str| match rig.taxiway.log().matches(words).count() {
            0 => Err(rig.taxiway.log()),
            times => Ok(times),
        };
        for words in ["goes on in memory", "everything that waited is on disk"] {
            let times = until("the line", async || said(words).await).await;
            assert_eq!(times, 1, "{words}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_operators_want_outlives_a_crash() {
    bounded(60, async {
        let mut rig = Rig::sticky(2).await;
        let order = async |rig: &Rig, path: &str, body: &str| {
            let (status, answer) = rig
                .admin()
                .post(&format!("/api/v1/backends/{path}"), body)
                .await;
            assert_eq!(status, 200, "{answer}");
        };
        let seen = async |rig: &Rig, name: &str| {
            let listed = rig.admin().get("/api/v1/backends").await;
            let items = listed["items"].as_array().unwrap().clone();
            let found = items.into_iter().find(|b| b["name"] == name).unwrap();
            (found["state"].clone(), found["weight"].clone())
        };
        order(&rig, "s1/drain", "{}").await;
        order(&rig, "s2/weight", r#"{"weight":7}"#).await;
        // Both were answered, so both are kept.
        rig.taxiway.kill().await;
        rig.taxiway.start_again().await;
        assert_eq!(seen(&rig, "s1").await, (json!("drain"), json!(1)));
        assert_eq!(seen(&rig, "s2").await, (json!("ready"), json!(7)));
        order(&rig, "s1/reset", "{}").await;
        rig.taxiway.kill().await;
        rig.taxiway.start_again().await;
        assert_eq!(seen(&rig, "s1").await, (json!("ready"), json!(1)));
        assert_eq!(seen(&rig, "s2").await, (json!("ready"), json!(7)));
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_hands_the_file_over() {
    bounded(60, async {
        let sims = Sims::start(3, Disks::Separate).await;
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let conf = Conf::new(Disks::Separate)
            .all_of(&sims)
            .text("routing.home_wait", "0s")
            .text("upgrade.socket", &at("socket"))
            .text("store.path", &at("t.db"));
        let mut old = Taxiway::start(conf).await;
        let early = Client::greeted(old.address()).await;
        let id = |n: usize| format!("59e32a26-9b05-4dee-9192-8af7c513537{n}");
        for n in 0..3 {
            early.create(&id(n)).await;
            early.turn(&id(n), "remember").await;
        }
        old.admin
            .change("/api/v1/backends/s1/weight", r#"{"weight":3}"#)
            .await;
        let new = Taxiway::successor(old.conf.clone()).await;
        let mut new = new.unwrap_or_else(|(code, log)| panic!("{code:?}: {log}"));
        let late = Client::greeted(new.address()).await;
        // The old one asks the new one, which has the file.
        early.create(&id(3)).await;
        early.turn(&id(3), "remember").await;
        for n in 4..6 {
            late.create(&id(n)).await;
            late.turn(&id(n), "remember").await;
        }
        new.admin.metric_is("taxiway_store_up", 1.0).await;
        assert!(!new.log().contains("goes on in memory"), "{}", new.log());
        new.kill().await;
        old.kill().await;
        let home = |id: &String| {
            let names = sims.names().into_iter();
            let mut homes = names.filter(|name| sims.home(name).sessions().contains(id));
            homes.next().expect("its turn is on a disk")
        };
        for name in ["s1", "s2"] {
            sims.get(name).kill();
        }
        new.start_again().await;
        let client = Client::greeted(new.address()).await;
        for id in (0..6).map(id) {
            let home = home(&id);
            let answer = client
                .call("session.create", json!({ "sessionId": id }))
                .await;
            match answer {
                Ok(_) => assert_eq!(sims.owner(&id), Some("s3".to_owned())),
                Err(refused) => {
                    let named = format!("backend {home},");
                    assert!(refused.message.contains(&named), "{home}: {refused:?}");
                    assert_ne!(home, "s3");
                }
            }
        }
        assert_eq!(new.admin.backend("s1").await["weight"], 3);
    })
    .await;
}
