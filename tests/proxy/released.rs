//! Servers whose sessions may be opened elsewhere, as operators see them.

use std::fs;

use crate::rig::{Admin, Disks, Rig, bounded, until};

async fn is_released(admin: &Admin, name: &str, wanted: bool) {
    until(&format!("{name} released: {wanted}"), async || {
        let backend = admin.backend(name).await;
        if backend["released"] == wanted && backend["away_seconds"].is_number() == wanted {
            Ok(())
        } else {
            Err(backend)
        }
    })
    .await;
}

/// A server that is stopped is given up after `failover.hang_timeout`, and comes back.
#[tokio::test]
async fn a_stopped_server_is_given_up_and_returns() {
    bounded(60, async {
        let rig = Rig::with(2, Disks::Shared, |conf| {
            conf.text("failover.hang_timeout", "500ms")
        })
        .await;
        let unfenced = r#"taxiway_failovers_total{result="unfenced"}"#;
        rig.sims.get("s1").pause();
        is_released(rig.admin(), "s1", true).await;
        rig.admin().metric_is(unfenced, 1.0).await;
        let backend = rig.admin().backend("s1").await;
        assert_eq!(backend["health"], "down");
        assert_eq!(backend["takes_placements"], false);
        assert_eq!(rig.admin().backend("s2").await["released"], false);
        rig.sims.get("s1").resume();
        is_released(rig.admin(), "s1", false).await;
        rig.admin().health("s1", &["up"]).await;
        rig.admin().metric_is(unfenced, 1.0).await;
    })
    .await;
}

/// With a fence command it is given up when that has succeeded; the command is known by its file.
#[tokio::test]
async fn a_fence_command_makes_sure_of_a_stopped_server() {
    bounded(60, async {
        let dir = tempfile::tempdir().unwrap();
        let (script, fenced) = (dir.path().join("fence"), dir.path().join("fenced"));
        let text = format!("#!/bin/sh\necho \"$@\" > '{}'\n", fenced.display());
        fs::write(&script, text).unwrap();
        let rig = Rig::with(2, Disks::Shared, |conf| {
            let command = ["/bin/sh", script.to_str().unwrap(), "{name}", "{address}"];
            conf.text("failover.hang_timeout", "500ms")
                .set("failover.fence_command", &format!("{command:?}"))
        })
        .await;
        rig.sims.get("s2").pause();
        is_released(rig.admin(), "s2", true).await;
        let address = rig.sims.get("s2").address();
        assert_eq!(
            fs::read_to_string(fenced).unwrap(),
            format!("s2 {address}\n")
        );
        let series = r#"taxiway_failovers_total{result="fenced"}"#;
        rig.admin().metric_is(series, 1.0).await;
    })
    .await;
}

/// With separate disks nothing is opened elsewhere, whatever happens.
#[tokio::test]
async fn separate_disks_give_nothing_up() {
    bounded(60, async {
        let rig = Rig::sticky(2).await;
        rig.sims.get("s1").kill();
        rig.admin().health("s1", &["down"]).await;
        let backend = rig.admin().backend("s1").await;
        assert_eq!(backend["released"], false);
        assert!(backend["away_seconds"].is_number());
    })
    .await;
}
