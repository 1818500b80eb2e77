//! What a reload changes while clients are connected, what it refuses, and what makes it happen.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::rig::{Admin, Client, Conf, Disks, Rig, Sims, Taxiway, bounded, free_address, until};

async fn refuses(address: std::net::SocketAddr) {
    until(
        &format!("the end of {address}"),
        async || match TcpStream::connect(address).await {
            Ok(_) => Err("still accepts"),
            Err(_) => Ok(()),
        },
    )
    .await;
}

#[tokio::test]
async fn the_listener_moves_and_its_connections_stay() {
    bounded(60, async {
        let mut rig = Rig::sticky(1).await;
        let client = rig.client().await;
        client.create("stays").await;
        client.send("stays", "[[len 40]] [[slow 20]]").await;
        let old = rig.taxiway.address();
        let conf = rig.taxiway.conf.clone();
        let moved = conf.text("listener.address", &free_address().to_string());
        rig.taxiway.reload(moved).await;
        assert_ne!(rig.taxiway.address(), old);
        let new = rig.client().await;
        new.create("new").await;
        refuses(old).await;
        client
            .heard(&crate::rig::event("stays", "session.idle"))
            .await;
        client.turn("stays", "still here").await;

        // An address that is taken: nothing changes.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let conf = rig.taxiway.conf.clone();
        let text = conf
            .text("listener.address", &taken.local_addr().unwrap().to_string())
            .only(&rig.sims, &[])
            .backend("other", "127.0.0.1:1")
            .render();
        let answer = rig.taxiway.refused_reload(&text).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("listener.address"), "{answer}");
        rig.client().await.call("ping", json!({})).await.unwrap();
        assert_eq!(rig.admin().backend("other").await, Value::Null);
        assert_eq!(rig.admin().backend("s1").await["removed"], false);
    })
    .await;
}

#[tokio::test]
async fn the_admin_address_moves_after_it_has_answered() {
    bounded(60, async {
        let mut rig = Rig::sticky(1).await;
        let old = rig.admin().address;
        let conf = rig.taxiway.conf.clone();
        let moved = conf.text("admin.address", &free_address().to_string());
        // Asserts that the change is answered, over the address that it ends.
        rig.taxiway.reload(moved).await;
        until("the new admin address", async || {
            rig.admin().try_request("GET", "/readyz", None).await
        })
        .await;
        refuses(old).await;
        let again = rig.taxiway.conf.clone().text("log.level", "warn");
        rig.taxiway.reload(again).await;
    })
    .await;
}

/// Also: a change of a file that the configuration names is a change of the configuration.
#[tokio::test]
async fn another_admin_token_in_its_file_is_taken_over_by_itself() {
    bounded(60, async {
        let sims = Sims::start(1, Disks::Separate).await;
        let conf = Conf::new(Disks::Separate)
            .all_of(&sims)
            .text("admin.token_file", "admin.token");
        let taxiway = Taxiway::start_with(conf, |folder| {
            fs::write(folder.join("admin.token"), "first-token-of-the-operator\n").unwrap();
        })
        .await;
        let with = |token: Option<&str>| Admin {
            address: taxiway.admin.address,
            token: token.map(str::to_owned),
        };
        let status = async |admin: Admin| {
            let asked = admin.try_request("GET", "/api/v1/backends", None).await;
            asked.map(|(status, _)| status)
        };
        let (first, second) = (
            "first-token-of-the-operator",
            "second-token-of-the-operator",
        );
        assert_eq!(status(with(None)).await.unwrap(), 401);
        assert_eq!(status(with(Some(second))).await.unwrap(), 401);
        assert_eq!(status(with(Some(first))).await.unwrap(), 200);
        // Numbers and health need no token.
        with(None).scrape().await;

        fs::write(taxiway.folder().join("admin.token"), format!("{second}\n")).unwrap();
        until("the new token", async || {
            match status(with(Some(second))).await {
                Ok(200) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // A server that is being replaced may reset what it has just accepted.
        until("the old one to be refused", async || {
            match status(with(Some(first))).await {
                Ok(401) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        until("a line about it", async || {
            let log = taxiway.log();
            if log.contains("trigger=\"file\"") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        // And by the API, which answers over the server that it replaces.
        fs::write(taxiway.folder().join("admin.token"), format!("{first}\n")).unwrap();
        let (code, answer) = with(Some(second)).post("/api/v1/reload", "{}").await;
        assert!(code == 200 || code == 401, "{code} {answer}");
        until("the first token again", async || {
            match status(with(Some(first))).await {
                Ok(200) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert!(!taxiway.log().contains("token-of-the-operator"));
    })
    .await;
}

#[tokio::test]
async fn a_backends_token_in_its_file_is_taken_over_by_itself() {
    bounded(60, async {
        use taxiway::sim::{SimOptions, SimServer};
        let options = SimOptions {
            token: Some("right".to_owned()),
            ..SimOptions::default()
        };
        let server = SimServer::start(options).await.unwrap();
        let conf = Conf::new(Disks::Separate)
            .backend("locked", &server.address().to_string())
            .backend_set("locked", "connection_token_file", "'cli.token'");
        let taxiway = Taxiway::start_with(conf, |folder| {
            fs::write(folder.join("cli.token"), "wrong").unwrap();
        })
        .await;
        taxiway.admin.health("locked", &["down"]).await;
        let refused = taxiway.admin.backend("locked").await;
        let reason = refused["health_reason"].as_str().unwrap();
        assert!(reason.contains("AUTHENTICATION_FAILED"), "{reason}");
        // Kubernetes and editors replace by renaming.
        let folder = taxiway.folder();
        fs::write(folder.join("cli.token.new"), "right").unwrap();
        fs::rename(folder.join("cli.token.new"), folder.join("cli.token")).unwrap();
        taxiway.admin.health("locked", &["up", "probation"]).await;
        let client = Client::greeted(taxiway.address()).await;
        client.create("open").await;
        assert_eq!(server.open_sessions(), ["open"]);
    })
    .await;
}

#[tokio::test]
async fn the_log_level_follows_the_file() {
    bounded(60, async {
        let mut rig = Rig::with(1, Disks::Separate, |conf| conf.text("log.level", "error")).await;
        rig.client().await.create("quiet").await;
        let louder = rig.taxiway.conf.clone().text("log.level", "info");
        rig.taxiway.reload(louder).await;
        rig.client().await.create("loud").await;
        until("a line about it", async || {
            let log = rig.taxiway.log();
            if log.contains("session=\"loud\"") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        assert!(!rig.taxiway.log().contains("session=\"quiet\""));
        let shown = rig.admin().get("/api/v1/config").await;
        assert_eq!(shown["log"]["level"], "info", "{shown:#}");
    })
    .await;
}

#[tokio::test]
async fn what_needs_a_restart_is_refused_as_a_whole() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        client.create("before").await;
        let conf = rig.taxiway.conf.clone();
        let other = conf
            .text("routing.mode", "shared-storage")
            .text("log.format", "json")
            .backend("s3", "127.0.0.1:1");
        let answer = rig.taxiway.refused_reload(&other.render()).await;
        let told = answer.to_string();
        assert!(
            told.contains("routing.mode") && told.contains("log.format"),
            "{told}"
        );
        assert_eq!(rig.admin().backend("s3").await, Value::Null);
        let shown = rig.admin().get("/api/v1/config").await;
        assert_eq!(shown["routing"]["mode"], "sticky");
        let last = "taxiway_config_last_reload_successful";
        rig.admin().metric_is(last, 0.0).await;
        client.turn("before", "and after").await;
        rig.taxiway.write(&rig.taxiway.conf.render());
        rig.admin().metric_is(last, 1.0).await;
    })
    .await;
}

#[tokio::test]
async fn five_mistakes_are_told_at_once_and_the_old_file_stays_in_force() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        let client = rig.client().await;
        client.create("before").await;
        let wrong = format!(
            "[listener]\naddress = '{}'\n[admin]\naddress = '{}'\n[routing]\nmode = 'roulette'\n\
             load_factor = 0.5\n[limits]\nframe = '1 MiB'\nfoo = 1\n[[backends]]\nname = 's1'\n\
             address = 'nowhere'\n",
            rig.taxiway.address(),
            rig.admin().address,
        );
        let answer = rig.taxiway.refused_reload(&wrong).await;
        let errors = answer["error"]["details"]["errors"]
            .as_array()
            .unwrap_or_else(|| panic!("{answer:#}"));
        let lines: Vec<u64> = errors.iter().filter_map(|e| e["line"].as_u64()).collect();
        assert_eq!(lines, [6, 7, 9, 10, 13], "{errors:#?}");
        for error in errors {
            assert!(
                error["file"].as_str().unwrap().ends_with("taxiway.toml"),
                "{error}"
            );
            assert!(error["column"].as_u64().unwrap() >= 1, "{error}");
        }
        // A file that is not TOML at all, and none.
        rig.taxiway.refused_reload("[listener\naddress").await;
        fs::remove_file(rig.taxiway.folder().join("taxiway.toml")).unwrap();
        let (status, _) = rig.admin().post("/api/v1/reload", "{}").await;
        assert_eq!(status, 422);
        let failures = r#"taxiway_config_reloads_total{result="failure"}"#;
        assert!(rig.admin().scrape().await.value(failures) >= 3.0);
        client.turn("before", "and after").await;
        rig.client().await.create("another").await;
    })
    .await;
}

#[tokio::test]
async fn sighup_and_a_changed_file_reload_by_themselves() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        rig.taxiway.signal(Signal::HUP);
        until("a reload by signal", async || {
            let log = rig.taxiway.log();
            if log.contains("trigger=\"signal\"") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        let less = rig.taxiway.conf.clone().only(&rig.sims, &["s1"]);
        rig.taxiway.write(&less.render());
        until("s2 to go", async || {
            let left = rig.admin().backend("s2").await;
            if left.is_null() { Ok(()) } else { Err(left) }
        })
        .await;
        until("a line about it", async || {
            let log = rig.taxiway.log();
            if log.contains("trigger=\"file\"") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
    })
    .await;
}
