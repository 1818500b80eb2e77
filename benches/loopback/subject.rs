//! What is measured: the proxies as child processes, their configuration, and what the kernel says
//! that they used. Takes no part in the load.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::measure::{self, Work};

/// A child process that ends with its owner.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// User and system time so far, in seconds.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // Behind the name, which may contain anything: state is field 3, utime 14, stime 15.
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap_or_default())
            .sum();
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.0.id()))?;
        let pages: u64 = statm
            .split_whitespace()
            .nth(1)
            .context("no resident pages")?
            .parse()?;
        Ok(pages * rustix::param::page_size() as u64)
    }
}

/// The simulated servers and their ports.
pub(crate) fn servers(count: usize, news: bool) -> anyhow::Result<(Process, Vec<u16>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--serve", &count.to_string()])
        .args(news.then_some("--news"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().context("a piped stdout")?;
    let ports = BufReader::new(out)
        .lines()
        .take(count)
        .map(|line| Ok(line?.parse()?))
        .collect::<anyhow::Result<Vec<u16>>>()?;
    ensure!(ports.len() == count, "the servers did not start");
    Ok((Process(child), ports))
}

/// A kind of proxy.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// No proxy at all.
    Direct,
    Taxiway {
        program: PathBuf,
        granularity: &'static str,
        /// None: as many as the runtime chooses.
        threads: Option<usize>,
        with: With,
    },
    Haproxy {
        threads: usize,
    },
    Nginx,
}

/// What is turned on besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum With {
    Nothing,
    /// One line per turn, as by default; else warnings only.
    Logs,
    /// Clients say who they are, and each session is somebody's.
    Principals,
}

/// What clients say, where they have to.
const TOKEN: &str = "token-of-the-bench";
/// Where Taxiway reads it.
const TOKEN_VARIABLE: &str = "TAXIWAY_BENCH_TOKEN";

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// A subject that runs.
pub(crate) struct Running {
    /// None where clients speak to the servers themselves.
    pub(crate) process: Option<Process>,
    pub(crate) ports: Vec<u16>,
    /// What clients have to show.
    pub(crate) token: Option<&'static str>,
}

impl Subject {
    /// Starts it in front of `backends`, with its files in `folder`. `Ok(None)`: not installed.
    pub(crate) async fn start(
        &self,
        folder: &Path,
        backends: &[u16],
        run: u32,
    ) -> anyhow::Result<Option<Running>> {
        let port = free_port()?;
        let folder = folder.join(format!("{}-{run}", self.name.replace(' ', "-")));
        fs::create_dir_all(&folder)?;
        let mut token = None;
        let mut command = match &self.kind {
            Kind::Direct => {
                return Ok(Some(Running {
                    process: None,
                    ports: backends.to_vec(),
                    token: None,
                }));
            }
            Kind::Taxiway {
                program,
                granularity,
                threads,
                with,
            } => {
                let file = folder.join("taxiway.toml");
                fs::write(&file, taxiway(port, backends, granularity, *with)?)?;
                let mut command = Command::new(program);
                if *with == With::Principals {
                    token = Some(TOKEN);
                    command.env(TOKEN_VARIABLE, TOKEN);
                }
                command.arg("run").arg("-c").arg(file);
                if let Some(threads) = threads {
                    command.env("TOKIO_WORKER_THREADS", threads.to_string());
                }
                command
            }
            Kind::Haproxy { threads } => {
                let Some(program) = find("haproxy") else {
                    return Ok(None);
                };
                let file = folder.join("haproxy.cfg");
                fs::write(&file, haproxy(port, backends, *threads))?;
                let mut command = Command::new(program);
                command.arg("-db").arg("-f").arg(file);
                command
            }
            Kind::Nginx => {
                let Some((program, module)) = find("nginx").zip(stream_module()) else {
                    return Ok(None);
                };
                let file = folder.join("nginx.conf");
                fs::write(&file, nginx(port, backends, &module, &folder))?;
                let mut command = Command::new(program);
                command.arg("-p").arg(&folder).arg("-c").arg(file);
                command.args(["-e", "stderr"]);
                command
            }
        };
        let output = folder.join("output");
        let child = command
            .stdin(Stdio::null())
            .stdout(fs::File::create(&output)?)
            .stderr(fs::File::options().append(true).open(&output)?)
            .spawn()?;
        let running = Running {
            process: Some(Process(child)),
            ports: vec![port],
            token,
        };
        let served = wait_until_it_serves(&running, run).await;
        served.with_context(|| {
            let said = fs::read_to_string(&output).unwrap_or_default();
            format!("{} does not serve; it said:\n{said}", self.name)
        })?;
        Ok(Some(running))
    }
}

/// Until a client can open a session.
async fn wait_until_it_serves(running: &Running, run: u32) -> anyhow::Result<()> {
    let work = Work {
        name: "first",
        connections: 1,
        sessions: 1,
        events: 1,
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match measure::open(running, run, &work).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn stream_module() -> Option<PathBuf> {
    ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]
        .iter()
        .map(|folder| Path::new(folder).join("ngx_stream_module.so"))
        .find(|file| file.is_file())
}

fn taxiway(port: u16, backends: &[u16], granularity: &str, with: With) -> anyhow::Result<String> {
    let level = if with == With::Logs { "info" } else { "warn" };
    let mut text = format!(
        "[listener]\naddress = \"127.0.0.1:{port}\"\n[admin]\naddress = \"127.0.0.1:{}\"\n\
         [routing]\ngranularity = \"{granularity}\"\n[log]\nlevel = \"{level}\"\n",
        free_port()?
    );
    if with == With::Principals {
        // The servers say of every session that they have it.
        text += &format!(
            "[identity]\nadopt_by = \"bench\"\n[[identity.principals]]\nname = \"bench\"\ntoken_env = \"{TOKEN_VARIABLE}\"\n"
        );
    }
    for (at, port) in backends.iter().enumerate() {
        text += &format!("[[backends]]\nname = \"cli-{at}\"\naddress = \"127.0.0.1:{port}\"\n");
    }
    Ok(text)
}

fn haproxy(port: u16, backends: &[u16], threads: usize) -> String {
    let mut text = format!(
        "global\n  nbthread {threads}\n  maxconn 9000\n  tune.bufsize 65536\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10m\n  timeout server 10m\n\
         listen all\n  bind 127.0.0.1:{port}\n  balance roundrobin\n"
    );
    for (at, port) in backends.iter().enumerate() {
        text += &format!("  server cli-{at} 127.0.0.1:{port}\n");
    }
    text
}

fn nginx(port: u16, backends: &[u16], module: &Path, folder: &Path) -> String {
    let servers: String = backends
        .iter()
        .map(|port| format!("server 127.0.0.1:{port}; "))
        .collect();
    format!(
        "load_module {};\ndaemon off;\nmaster_process off;\nworker_processes 1;\npid {}/pid;\n\
         events {{ worker_connections 19000; }}\n\
         stream {{\n  upstream all {{ {servers}}}\n\
         server {{ listen 127.0.0.1:{port}; proxy_pass all; tcp_nodelay on; }}\n}}\n",
        module.display(),
        folder.display(),
    )
}
