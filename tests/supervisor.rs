//! Managed servers with real processes: started, restarted, stopped, and none left behind.
//!
//! This test has a `main` of its own, because it runs itself again: as the guard of its servers,
//! and as a Taxiway that is killed.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    env, fs,
    future::Future,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use taxiway::{
    config::Managed,
    control::{
        guard,
        supervisor::{Backoff, Supervisor, own_guard},
    },
    core::event::Event,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that leaves its process ids in its home, one of them of a child that would outlive it.
const SERVER: &str = r#"
    echo $$ > "$COPILOT_HOME/pid"
    echo x >> "$COPILOT_HOME/starts"
    echo "$COPILOT_CONNECTION_TOKEN" > "$COPILOT_HOME/token"
    env > "$COPILOT_HOME/environment"
    sleep 1000 &
    echo $! > "$COPILOT_HOME/child"
    echo "some warning" >&2
    echo "CLI server listening on port $1"
    wait
"#;
/// One that does not end when it is told to.
const STUBBORN: &str = r#"
    trap '' TERM
    echo $$ > "$COPILOT_HOME/pid"
    (trap '' TERM; while :; do sleep 1000; done) &
    echo $! > "$COPILOT_HOME/child"
    echo "CLI server listening on port $1"
    while :; do wait; done
"#;
/// One that fails the first time.
const CLUMSY: &str = r#"
    echo x >> "$COPILOT_HOME/starts"
    if [ "$(wc -l < "$COPILOT_HOME/starts")" -eq 1 ]; then
        echo "Failed to start server: Error: Address already in use" >&2
        exit 1
    fi
    echo $$ > "$COPILOT_HOME/pid"
    echo "CLI server listening on port $1"
    exec sleep 1000
"#;
const MUTE: &str = r#"echo $$ > "$COPILOT_HOME/pid"; exec sleep 1000"#;

/// As the configuration names the `n`th managed server.
fn server_name(n: u32) -> String {
    format!("managed-{n}")
}

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    match args.next().as_deref().and_then(|arg| arg.to_str()) {
        Some("guard") => return guard::run(args),
        Some("parent") => {
            let dir = PathBuf::from(args.next().expect("a directory"));
            runtime().block_on(be_parent(&dir));
            return ExitCode::SUCCESS;
        }
        Some(_) | None => {}
    }
    if SECRETS.iter().any(|name| env::var_os(name).is_none()) {
        // Itself again, with secrets in its environment.
        let again = Command::new(env::current_exe().expect("this program"))
            .envs(SECRETS.map(|name| (name, "hush")))
            .status();
        return ExitCode::from(u8::from(!again.is_ok_and(|status| status.success())));
    }
    type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);
    let tests: [Test; 9] = [
        ("start_and_stop", || Box::pin(start_and_stop())),
        ("a_home_has_one_taxiway", || {
            Box::pin(a_home_has_one_taxiway())
        }),
        ("a_killed_server_is_started_again", || {
            Box::pin(a_killed_server_is_started_again())
        }),
        ("a_killed_guard_leaves_nothing", || {
            Box::pin(a_killed_guard_leaves_nothing())
        }),
        ("a_killed_parent_leaves_nothing", || {
            Box::pin(a_killed_parent_leaves_nothing())
        }),
        ("a_stubborn_server_is_killed", || {
            Box::pin(a_stubborn_server_is_killed())
        }),
        ("a_failed_start_is_told_and_tried_again", || {
            Box::pin(a_failed_start_is_told_and_tried_again())
        }),
        ("a_mute_server_is_not_awaited_for_ever", || {
            Box::pin(a_mute_server_is_not_awaited_for_ever())
        }),
        ("a_missing_program_is_told", || {
            Box::pin(a_missing_program_is_told())
        }),
    ];
    for (name, test) in tests {
        let begun = Instant::now();
        // A panic ends the program with a code that is not 0.
        runtime().block_on(test());
        println!("supervisor::{name} ok ({:.1?})", begun.elapsed());
    }
    ExitCode::SUCCESS
}

/// Variables that no server may see: one that a configuration names, and Taxiway's own.
const SECRETS: [&str; 4] = [
    "TEST_BACKEND_TOKEN",
    "TAXIWAY_ADMIN",
    "TAXIWAY_ADMIN_TOKEN",
    "TAXIWAY_CONFIG",
];

fn secrets() -> [String; 1] {
    [SECRETS[0].to_owned()]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Some servers in a directory of their own.
struct Bench {
    dir: TempDir,
    supervisor: Supervisor,
    told: Arc<Mutex<Vec<String>>>,
}

fn managed(script: &str, servers: u32, state_dir: &Path) -> Managed {
    Managed {
        command: ["sh", "-c", script, "{name}", "{port}"]
            .map(String::from)
            .to_vec(),
        servers,
        state_dir: state_dir.to_owned(),
        start_timeout: PATIENCE,
    }
}

fn brisk() -> Backoff {
    let ms = Duration::from_millis;
    Backoff {
        first: ms(20),
        longest: ms(100),
        stable: Duration::from_secs(60),
    }
}

impl Bench {
    fn start(script: &str, servers: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let managed = managed(script, servers, dir.path());
        Self::start_with(dir, &managed)
    }

    fn start_with(dir: TempDir, managed: &Managed) -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let (ears, gone) = (told.clone(), told.clone());
        let report = move |event: Event| ears.lock().unwrap().push(format!("{event:?}"));
        let supervisor = Supervisor::start(
            managed,
            own_guard().unwrap(),
            brisk(),
            &secrets(),
            Arc::new(report),
            Arc::new(move |name| gone.lock().unwrap().push(format!("gone: {name}"))),
        )
        .unwrap();
        Self {
            dir,
            supervisor,
            told,
        }
    }

    fn was_told(&self, what: &str) -> bool {
        self.told
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains(what))
    }
}

fn read_pid(dir: &Path, server: u32, file: &str) -> Option<Pid> {
    let text = fs::read_to_string(dir.join(server_name(server)).join(file)).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

fn pid(dir: &Path, server: u32, file: &str) -> Pid {
    read_pid(dir, server, file).unwrap_or_else(|| panic!("server {server} left no {file}"))
}

/// Runs, and is not only a zombie that nobody collects.
fn runs(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z')
    })
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A process that was sent SIGKILL is seen for some moments more.
async fn until_gone(pids: &[Pid]) {
    until("processes to end", || pids.iter().all(|&pid| !runs(pid))).await;
}

fn starts(dir: &Path, server: u32) -> usize {
    fs::read_to_string(dir.join(server_name(server)).join("starts"))
        .map_or(0, |text| text.lines().count())
}

async fn start_and_stop() {
    let bench = Bench::start(SERVER, 3);
    let starts = bench.supervisor.started().await;
    assert!(
        starts.iter().all(|start| start.failure.is_none()),
        "{starts:?}"
    );
    let backends = bench.supervisor.backends().borrow().clone();
    let names: Vec<String> = backends.iter().map(|b| b.name.to_string()).collect();
    assert_eq!(names, ["managed-1", "managed-2", "managed-3"]);
    let mut pids = Vec::new();
    for (n, backend) in (1..).zip(&backends) {
        assert!(
            backend.address.starts_with("127.0.0.1:"),
            "{}",
            backend.address
        );
        let token = bench.dir.path().join(backend.name.as_str()).join("token");
        let token = fs::read_to_string(token).unwrap();
        assert_eq!(
            token.trim(),
            backend.connection_token.as_ref().unwrap().expose()
        );
        let home = bench.dir.path().join(backend.name.as_str());
        let inherited = fs::read_to_string(home.join("environment")).unwrap();
        assert!(inherited.contains("PATH="), "{inherited}");
        for secret in SECRETS {
            assert!(env::var_os(secret).is_some(), "{secret} is there to leak");
            assert!(!inherited.contains(&format!("{secret}=")), "{inherited}");
        }
        pids.extend([
            pid(bench.dir.path(), n, "pid"),
            pid(bench.dir.path(), n, "child"),
        ]);
    }
    assert!(pids.iter().all(|&pid| runs(pid)));
    assert!(bench.was_told("ready on port"));
    bench.supervisor.stop().await;
    until_gone(&pids).await;
    assert!(bench.was_told("stopped"));
}

async fn a_home_has_one_taxiway() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join(server_name(1));
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
    let managed = managed(SERVER, 1, dir.path());
    let bench = Bench::start_with(dir, &managed);
    bench.supervisor.started().await;
    let mode = fs::metadata(&home).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "it was open to others");
    let second = || {
        Supervisor::start(
            &managed,
            own_guard().unwrap(),
            brisk(),
            &secrets(),
            Arc::new(|_| {}),
            Arc::new(|_| {}),
        )
    };
    let refusal = second().err().expect("the home is taken").to_string();
    assert!(refusal.contains("in use by another Taxiway"), "{refusal}");
    bench.supervisor.stop().await;
    // Free again as soon as nothing of it runs.
    let next = second().unwrap_or_else(|error| panic!("{error}"));
    next.stop().await;
}

async fn a_killed_server_is_started_again() {
    let bench = Bench::start(SERVER, 2);
    bench.supervisor.started().await;
    let dir = bench.dir.path();
    let address = bench.supervisor.backends().borrow()[0].address.clone();
    let (server, child) = (pid(dir, 1, "pid"), pid(dir, 1, "child"));
    kill_process(server, Signal::KILL).unwrap();
    until("its restart", || {
        starts(dir, 1) == 2
            && bench
                .told
                .lock()
                .unwrap()
                .iter()
                .filter(|l| l.contains("ready on port"))
                .count()
                == 3
    })
    .await;
    until_gone(&[child]).await;
    assert!(bench.was_told("ended (exit status: 137); starting again in"));
    assert!(bench.was_told("gone: managed-1") && !bench.was_told("gone: managed-2"));
    assert_eq!(bench.supervisor.backends().borrow()[0].address, address);
    assert_eq!(starts(dir, 2), 1);
    bench.supervisor.stop().await;
}

async fn a_killed_guard_leaves_nothing() {
    let bench = Bench::start(STUBBORN, 1);
    bench.supervisor.started().await;
    let dir = bench.dir.path();
    let (server, child) = (pid(dir, 1, "pid"), pid(dir, 1, "child"));
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.as_raw_nonzero())).unwrap();
    let parent = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap();
    kill_process(
        Pid::from_raw(parent.parse().unwrap()).unwrap(),
        Signal::KILL,
    )
    .unwrap();
    until_gone(&[server, child]).await;
    until("another", || {
        read_pid(dir, 1, "pid").is_some_and(|pid| pid != server && runs(pid))
    })
    .await;
    bench.supervisor.stop().await;
    until_gone(&[pid(dir, 1, "pid")]).await;
}

/// What the killed Taxiway does.
async fn be_parent(dir: &Path) {
    let managed = managed(STUBBORN, 2, dir);
    let supervisor = Supervisor::start(
        &managed,
        own_guard().unwrap(),
        brisk(),
        &secrets(),
        Arc::new(|_| {}),
        Arc::new(|_| {}),
    )
    .unwrap();
    supervisor.started().await;
    println!("started");
    std::future::pending().await
}

async fn a_killed_parent_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut parent = Command::new(env::current_exe().unwrap())
        .arg("parent")
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "started\n");
    let pids: Vec<Pid> = [1, 2]
        .iter()
        .flat_map(|&n| [pid(dir.path(), n, "pid"), pid(dir.path(), n, "child")])
        .collect();
    assert!(pids.iter().all(|&pid| runs(pid)));
    // SIGKILL.
    parent.kill().unwrap();
    parent.wait().unwrap();
    until_gone(&pids).await;
}

async fn a_stubborn_server_is_killed() {
    let bench = Bench::start(STUBBORN, 1);
    bench.supervisor.started().await;
    let pids = [
        pid(bench.dir.path(), 1, "pid"),
        pid(bench.dir.path(), 1, "child"),
    ];
    let begun = Instant::now();
    bench.supervisor.stop().await;
    until_gone(&pids).await;
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
}

async fn a_failed_start_is_told_and_tried_again() {
    let bench = Bench::start(CLUMSY, 1);
    let starts = bench.supervisor.started().await;
    let failure = starts[0].failure.clone().unwrap();
    assert!(
        failure.contains("exit status: 1") && failure.contains("already in use"),
        "{failure}"
    );
    until("the second start", || bench.was_told("ready on port")).await;
    assert_eq!(bench.supervisor.backends().borrow().len(), 1);
    bench.supervisor.stop().await;
    until_gone(&[pid(bench.dir.path(), 1, "pid")]).await;
}

async fn a_mute_server_is_not_awaited_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut managed = managed(MUTE, 1, dir.path());
    managed.start_timeout = Duration::from_millis(300);
    let bench = Bench::start_with(dir, &managed);
    let starts = bench.supervisor.started().await;
    assert_eq!(starts[0].failure.as_deref(), Some("was not ready in time"));
    assert!(bench.supervisor.backends().borrow().is_empty());
    bench.supervisor.stop().await;
    until_gone(&[pid(bench.dir.path(), 1, "pid")]).await;
}

async fn a_missing_program_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut managed = managed("", 1, dir.path());
    managed.command = vec!["taxiway-test-no-such-program".into()];
    let bench = Bench::start_with(dir, &managed);
    let starts = bench.supervisor.started().await;
    let failure = starts[0].failure.clone().unwrap();
    assert!(
        failure.contains("cannot start taxiway-test-no-such-program"),
        "{failure}"
    );
    bench.supervisor.stop().await;
}
