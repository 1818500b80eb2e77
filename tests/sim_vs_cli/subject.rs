//! The two servers under comparison behind one face.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use taxiway::sim::{SimOptions, SimServer};
use tempfile::TempDir;

/// Names the program of the real CLI.
pub(crate) const VARIABLE: &str = "TAXIWAY_TEST_CLI";

/// One running server.
pub(crate) enum Subject {
    /// The simulated one.
    Sim(SimServer),
    /// The real one.
    Real(Cli),
}

impl Subject {
    /// Starts a simulated server.
    pub(crate) async fn sim(token: Option<&str>) -> Self {
        let token = token.map(str::to_owned);
        let options = SimOptions {
            token,
            ..SimOptions::default()
        };
        Self::Sim(SimServer::start(options).await.expect("a free port"))
    }

    /// Starts the program that the variable names.
    pub(crate) fn real(token: Option<&str>) -> Self {
        Self::Real(Cli::start(token))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Sim(server) => server.address(),
            Self::Real(cli) => cli.address,
        }
    }
}

/// A real CLI server in its own home and process group.
pub(crate) struct Cli {
    child: Child,
    address: SocketAddr,
    _home: TempDir,
}

impl Cli {
    fn start(token: Option<&str>) -> Self {
        let program = std::env::var(VARIABLE).unwrap_or_else(|_| {
            panic!(
                "{VARIABLE} does not name the real CLI. Run tests/run, which installs it, sets the variable and runs all tests."
            )
        });
        let home = TempDir::new().expect("a temporary directory");
        let work = home.path().join("work");
        std::fs::create_dir(&work).expect("a new directory");
        let mut command = Command::new(program);
        command
            .args(["--headless", "--no-auto-update", "--port", "0"])
            .current_dir(work)
            .env("HOME", home.path())
            .env("COPILOT_HOME", home.path().join("copilot"))
            .env_remove("COPILOT_CONNECTION_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // The npm program is a loader: its child would outlive it.
            .process_group(0);
        if let Some(token) = token {
            command.env("COPILOT_CONNECTION_TOKEN", token);
        }
        let mut child = command.spawn().expect("the real CLI starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let port = lines.find_map(|line| {
            let line = line.ok()?;
            line.strip_prefix("CLI server listening on port ")?
                .trim()
                .parse::<u16>()
                .ok()
        });
        // Its later lines must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let port = port.expect("the real CLI says on which port it listens");
        Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            _home: home,
        }
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
