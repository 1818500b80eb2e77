//! The commands of the program: arguments in, exit code out. Decides nothing that a room decides.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::{
    app::{self, Origin, Predecessor, Start},
    config::{
        self, Backend, Config, Managed,
        command::{self, Wanted},
    },
    control::{
        admin::{
            SessionFilter, StateChange,
            client::{AdminClient, Command as AdminCommand, Output, Probe},
        },
        guard,
        supervisor::{find_cli, random_token},
    },
    core::{balance, credential::Fingerprint, id::Secret, snapshot},
    sim::{SimArgs, run_command},
    transport,
};

mod dial;
mod load;

use self::{
    dial::{CompanionArgs, PingArgs, accompany, ping},
    load::{LoadArgs, load},
};

/// Exit codes of DESIGN §8, after sysexits.
mod exit {
    pub(super) const USAGE: u8 = 2;
    pub(super) const UNAVAILABLE: u8 = 69;
    pub(super) const TIMED_OUT: u8 = 75;
    pub(super) const CONFIG: u8 = 78;
}

/// Reverse proxy and load balancer for GitHub Copilot CLI servers.
///
/// Without a command it runs: with the configuration it finds, in front of the given backends, or
/// in front of servers that it starts itself.
#[derive(Debug, Parser)]
#[command(name = "taxiway", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (the default).
    Run(RunArgs),
    /// Check a configuration and explain everything that is wrong with it.
    Check(CheckArgs),
    /// Show the pool of a running Taxiway.
    Status(AdminArgs),
    /// List sessions.
    Sessions(SessionsArgs),
    /// Tell everything known about a session: user, who may use it, owner, home, where its next call
    /// goes.
    Explain {
        /// Its id.
        session: String,
        /// Tell whether this principal may use it: a client is told the same about a session that is
        /// not its own as about none.
        #[arg(long = "as", value_name = "PRINCIPAL")]
        principal: Option<String>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Stop placing sessions on a backend; it keeps those it has open.
    Drain {
        /// Its name.
        backend: String,
        /// Return when no session is open there any more; at most so long.
        #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "10m",
              value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Treat a backend as if it were not there.
    Maint(BackendArgs),
    /// Place sessions on a backend again.
    Ready(BackendArgs),
    /// Give a backend's state back to the configuration.
    Reset(BackendArgs),
    /// Change a backend's weight until `taxiway reset`.
    Weight {
        /// Its name.
        backend: String,
        /// At least 1.
        #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
        weight: u32,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Read the configuration again.
    Reload(AdminArgs),
    /// For container health checks: exit 0 if the running Taxiway is healthy.
    Healthcheck {
        /// What to ask.
        #[arg(long, value_enum, default_value_t = ProbeKind::Ready)]
        probe: ProbeKind,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Make a token for a client, and the lines of the configuration that accept it.
    Token {
        /// The principal that it is for.
        #[arg(value_parser = principal_name)]
        name: String,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = OutputKind::Text)]
        output: OutputKind,
    },
    /// Ask a CLI server whether it lives: connect, then ping.
    Ping(PingArgs),
    /// Beside a client: plain TCP on loopback in, TLS to a Taxiway out.
    Companion(CompanionArgs),
    /// Run simulated CLI servers: no account, no model, no disk.
    Sim(SimArgs),
    /// Measure how many turns a Taxiway takes, and how long they take.
    ///
    /// It opens connections and sessions as SDKs do, sends turns, waits for their ends, deletes the
    /// sessions, and prints the distribution of latencies. On simulated servers turns cost nothing;
    /// on real ones each calls a model and makes files, so it wants `--yes` there. Exit 1: turns
    /// failed; 69: nobody there, or not let in.
    Load(Box<LoadArgs>),
    /// Run a program so that it ends when Taxiway does.
    #[command(hide = true)]
    Guard {
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration file [default: $TAXIWAY_CONFIG, ./taxiway.toml, /etc/taxiway/taxiway.toml].
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run without a file, in front of this server. Repeatable.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "config")]
    backend: Vec<String>,
    /// Without a file: where clients connect [default: 127.0.0.1:4321].
    #[arg(long, value_name = "IP:PORT", conflicts_with = "config")]
    listen: Option<SocketAddr>,
    /// Without a file: where health, metrics and the API are served [default: 127.0.0.1:9321].
    #[arg(long, value_name = "IP:PORT", conflicts_with = "config")]
    admin: Option<SocketAddr>,
    /// Take over from the running Taxiway, which goes on serving the clients that it has.
    #[arg(long)]
    upgrade: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also print the user and the placement of these sessions. Repeatable.
    #[arg(long, value_name = "ID", num_args = 1..)]
    session_id: Vec<String>,
    /// Print the reference of all keys instead.
    #[arg(long)]
    reference: bool,
    /// Print which methods clients may use instead, and why not the others.
    #[arg(long, conflicts_with_all = ["reference", "session_id"])]
    methods: bool,
    /// The principal that --methods is about [default: one without rules of its own].
    #[arg(long = "as", value_name = "PRINCIPAL", requires = "methods")]
    principal: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = OutputKind::Text)]
    output: OutputKind,
}

#[derive(Debug, Args)]
struct AdminArgs {
    /// Admin address of the running Taxiway [default: that of the configuration, 127.0.0.1:9321].
    #[arg(long, value_name = "HOST:PORT", env = "TAXIWAY_ADMIN")]
    admin: Option<String>,
    /// Environment variable with the admin token.
    #[arg(long, value_name = "VAR", default_value = "TAXIWAY_ADMIN_TOKEN")]
    token_env: String,
    /// The configuration whose admin address to use.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = OutputKind::Text)]
    output: OutputKind,
}

#[derive(Debug, Args)]
struct BackendArgs {
    /// Its name.
    backend: String,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, Args)]
struct SessionsArgs {
    /// Only those of this backend.
    #[arg(long)]
    backend: Option<String>,
    /// Only those of this user.
    #[arg(long)]
    user: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum OutputKind {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ProbeKind {
    /// Does it live?
    Alive,
    /// Should clients be sent there?
    Ready,
    /// And would they find a backend?
    Pool,
}

/// Runs the command that the arguments name; returns the program's exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        None => run(&arguments.run),
        Some(Command::Run(args)) => run(&args),
        Some(Command::Check(args)) => check(args),
        Some(Command::Status(admin)) => ask(&admin, &AdminCommand::Status),
        Some(Command::Sessions(args)) => {
            let filter = SessionFilter {
                backend: args.backend,
                user: args.user,
            };
            ask(
                &args.admin,
                &AdminCommand::Sessions {
                    filter,
                    limit: args.limit,
                },
            )
        }
        Some(Command::Explain {
            session,
            principal,
            admin,
        }) => ask(&admin, &AdminCommand::Explain { session, principal }),
        Some(Command::Drain {
            backend,
            wait,
            admin,
        }) => ask(
            &admin,
            &AdminCommand::SetState {
                backend,
                state: StateChange::Drain,
                wait,
            },
        ),
        Some(Command::Maint(args)) => set(args, StateChange::Maint),
        Some(Command::Ready(args)) => set(args, StateChange::Ready),
        Some(Command::Reset(args)) => set(args, StateChange::Reset),
        Some(Command::Weight {
            backend,
            weight,
            admin,
        }) => ask(&admin, &AdminCommand::SetWeight { backend, weight }),
        Some(Command::Reload(admin)) => ask(&admin, &AdminCommand::Reload),
        Some(Command::Healthcheck { probe, admin }) => {
            let probe = match probe {
                ProbeKind::Alive => Probe::Alive,
                ProbeKind::Ready => Probe::Ready,
                ProbeKind::Pool => Probe::Pool,
            };
            ask(&admin, &AdminCommand::Healthcheck(probe))
        }
        Some(Command::Token { name, output }) => token(&name, output),
        Some(Command::Ping(args)) => ping(args),
        Some(Command::Companion(args)) => accompany(args),
        Some(Command::Sim(args)) => simulate(args),
        Some(Command::Load(args)) => load(*args),
        Some(Command::Guard { command }) => guard::run(command),
    }
}

fn run(args: &RunArgs) -> ExitCode {
    match prepare(args) {
        Ok(start) => app::run(start),
        Err(code) => code,
    }
}

/// Finds out how to start.
fn prepare(args: &RunArgs) -> Result<Start, ExitCode> {
    let predecessor = if args.upgrade {
        Predecessor::Running
    } else {
        Predecessor::None
    };
    let by_hand = !args.backend.is_empty();
    if !by_hand && let Some(path) = find(args.config.as_deref())? {
        if args.listen.is_some() || args.admin.is_some() {
            return Err(usage(&format!(
                "--listen and --admin are for a start without a file, and {} was found: set \
                 listener.address and admin.address there",
                path.display()
            )));
        }
        let loaded = config::load(&path).map_err(|failure| {
            eprintln!("{failure}");
            ExitCode::from(exit::CONFIG)
        })?;
        for warning in &loaded.warnings {
            eprintln!("{warning}");
        }
        return Ok(Start {
            config: loaded.config,
            files: loaded.files,
            origin: Origin::File,
            predecessor,
        });
    }
    let env = |name: &str| std::env::var(name).ok();
    let (backends, managed, origin) = if by_hand {
        let backends = Backend::from_addresses(args.backend.iter().map(String::as_str))
            .map_err(|error| usage(&error.to_string()))?;
        (backends, None, Origin::CommandLine)
    } else {
        match find_cli().and_then(|program| Managed::with_program(&program.to_string_lossy(), &env))
        {
            Some(managed) => (Vec::new(), Some(managed), Origin::Found),
            None => (Vec::new(), None, Origin::Simulated),
        }
    };
    let mut config = Config::no_config(backends, managed);
    if let Some(address) = args.listen {
        if !address.ip().is_loopback() {
            return Err(usage(
                "--listen takes a loopback address; for another one write a file with \
                 listener.address and listener.allow_anonymous = true",
            ));
        }
        config.listener.address = address;
    }
    if let Some(address) = args.admin {
        config.admin.address = address;
    }
    config.upgrade.socket = config::Upgrade::usual_socket(config.listener.address, &env);
    // By listener, since several may be started by hand. A port of the system's choice is another
    // one next time, and simulated servers forget everything themselves.
    let port = config.listener.address.port();
    let store = match origin {
        Origin::Found => Some("taxiway.db".to_owned()),
        Origin::CommandLine if port != 0 => Some(format!("taxiway-{port}.db")),
        Origin::CommandLine | Origin::Simulated | Origin::File => None,
    };
    config.store.path = store.and_then(|name| config::state_file(&name, &env));
    for backend in &config.backends {
        if let Some(key) = config.own_address(&backend.address) {
            return Err(usage(&format!(
                "--backend {}: that is Taxiway's own {key}; move one of them with --listen or \
                 --admin",
                backend.address
            )));
        }
    }
    Ok(Start {
        config,
        files: Vec::new(),
        origin,
        predecessor,
    })
}

fn find(explicit: Option<&Path>) -> Result<Option<PathBuf>, ExitCode> {
    config::find(explicit).map_err(|failure| {
        eprintln!("{failure}");
        ExitCode::from(exit::CONFIG)
    })
}

fn usage(complaint: &str) -> ExitCode {
    let error = Arguments::command().error(clap::error::ErrorKind::ValueValidation, complaint);
    // Nobody may be reading.
    let _closed = error.print();
    ExitCode::from(exit::USAGE)
}

fn check(args: CheckArgs) -> ExitCode {
    let request = command::Request {
        file: args.config,
        session_ids: args.session_id,
        reference: Wanted::from(args.reference),
        methods: Wanted::from(args.methods),
        principal: args.principal,
        output: match args.output {
            OutputKind::Text => command::Output::Text,
            OutputKind::Json => command::Output::Json,
        },
        open_files: transport::files::most(),
    };
    let answer = command::check(&request, &place);
    app::say(&answer.out);
    eprint!("{}", answer.err);
    ExitCode::from(answer.code)
}

/// Where a new session would go in an idle pool whose backends are all up.
fn place(config: &Config, session: &str) -> Option<String> {
    if config.routing.mode != snapshot::Mode::Sticky {
        return Some("the least loaded backend when it is opened".to_owned());
    }
    let key = match config.routing.key {
        config::Key::User => config.identity.access.user_of(session).unwrap_or(session),
        config::Key::Session => session,
    };
    let pool = app::idle_pool(config);
    let policy = balance::Policy::Sticky {
        load_factor: config.routing.load_factor,
    };
    let (index, _) = balance::place(policy, key, &pool, &[], 0)?;
    Some(pool.backends[index].name.to_string())
}

fn set(args: BackendArgs, state: StateChange) -> ExitCode {
    ask(
        &args.admin,
        &AdminCommand::SetState {
            backend: args.backend,
            state,
            wait: None,
        },
    )
}

fn ask(args: &AdminArgs, command: &AdminCommand) -> ExitCode {
    let from_env = std::env::var(&args.token_env)
        .ok()
        .map(|token| Secret::new(token.trim()));
    let client = match &args.admin {
        Some(address) => AdminClient::new(address, from_env),
        None => {
            let (address, token) = match configured_admin(args.config.as_deref()) {
                Ok(found) => found,
                Err(code) => return code,
            };
            AdminClient::for_listener(address, from_env.or(token))
        }
    };
    let output = match args.output {
        OutputKind::Text => Output::Table,
        OutputKind::Json => Output::Json,
    };
    match client.run_blocking(command, output) {
        Ok(text) => {
            app::say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("taxiway: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// The admin address and token of the configuration that a running Taxiway would use here.
fn configured_admin(explicit: Option<&Path>) -> Result<(SocketAddr, Option<Secret>), ExitCode> {
    let Some(path) = find(explicit)? else {
        return Ok((Config::no_config(Vec::new(), None).admin.address, None));
    };
    match config::load(&path) {
        Ok(loaded) => Ok((loaded.config.admin.address, loaded.config.admin.token)),
        Err(failure) => {
            eprintln!("{failure}");
            eprintln!("taxiway: say where it runs with --admin HOST:PORT");
            Err(ExitCode::from(exit::CONFIG))
        }
    }
}

fn principal_name(text: &str) -> Result<String, String> {
    if config::is_principal_name(text) {
        Ok(text.to_owned())
    } else {
        Err("1 to 128 letters, digits, `.` `_` `-` `:` `@` `+`".to_owned())
    }
}

fn token(name: &str, output: OutputKind) -> ExitCode {
    let token = match random_token() {
        Ok(token) => token,
        Err(error) => {
            eprintln!("taxiway: no randomness: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (clear, hash) = (token.expose(), Fingerprint::of(token.expose()));
    app::say(&match output {
        OutputKind::Text => format!(
            "token (for the client; kept nowhere): {clear}\n\n[[identity.principals]]\nname = \
             \"{name}\"\ntoken_sha256 = \"{hash}\"\n\nor, as a line of \
             identity.tokens_file:\n{name} {hash}\n"
        ),
        OutputKind::Json => {
            let line =
                serde_json::json!({ "name": name, "token": clear, "sha256": hash.to_string() });
            format!("{line}\n")
        }
    });
    ExitCode::SUCCESS
}

fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            eprintln!("taxiway: cannot start the runtime: {error}");
            ExitCode::FAILURE
        })
}

fn simulate(args: SimArgs) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    match runtime.block_on(run_command(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taxiway sim: {error}");
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}
