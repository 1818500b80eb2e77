//! Nothing happens: nothing wakes up.

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path, time::Duration};

use crate::rig::{Disks, Rig, bounded};

/// How long a look takes.
const WATCHED: Duration = Duration::from_secs(2);
/// Wake-ups in that time that mean no polling: something that is done every ten seconds, say.
const FEW: u64 = 4;

/// Name of each thread, and how often it has begun to wait.
type Threads = BTreeMap<OsString, (String, u64)>;

fn threads(pid: u32) -> Threads {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One may end meanwhile.
    tasks
        .filter_map(|task| {
            let task = task.unwrap();
            Some((task.file_name(), waits(&task.path())?))
        })
        .collect()
}

fn waits(folder: &Path) -> Option<(String, u64)> {
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    let count = field("voluntary_ctxt_switches:").parse().unwrap();
    Some((field("Name:"), count))
}

/// Those that have woken up since, and how often.
fn woken(before: &Threads, after: &Threads) -> Vec<(String, u64)> {
    let since = |task: &OsString, now: u64| now - before.get(task).map_or(0, |(_, n)| *n);
    let all = after
        .iter()
        .map(|(task, (name, n))| (name.clone(), since(task, *n)));
    all.filter(|(_, n)| *n > 0).collect()
}

#[tokio::test]
async fn nothing_wakes_up_at_rest() {
    bounded(60, async {
        for granularity in ["session", "connection"] {
            let rig = Rig::with(2, Disks::Separate, |conf| {
                conf.text("health.interval", "10m")
                    .text("health.timeout", "5m")
                    .text("routing.granularity", granularity)
            })
            .await;
            let client = rig.client().await;
            client.create("rests").await;
            client.turn("rests", "hello").await;
            let pid = rig.taxiway.pid();
            // What the turn has left to do is done some time; polling goes on for ever.
            let mut seen = Vec::new();
            let rests = loop {
                let before = threads(pid);
                tokio::time::sleep(WATCHED).await;
                seen.push(woken(&before, &threads(pid)));
                let last = seen.last().unwrap();
                if last.iter().map(|(_, n)| n).sum::<u64>() <= FEW {
                    break true;
                }
                if seen.len() == 8 {
                    break false;
                }
            };
            assert!(rests, "{granularity}: woke up in 2 s each: {seen:?}");
        }
    })
    .await;
}
