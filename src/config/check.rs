//! From single values to a configuration: what keys mean together, secrets, paths.
//!
//! Finds everything that is wrong at once; a value that was reported already is replaced by its
//! default, and nothing that would only follow from it is said. Opens no socket, resolves no name;
//! reads the files that hold secrets.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    Admin, Config, CreateExisting, Drain, Granularity, Health, Identities, Identity, Key, Limits,
    Listener, Log, LogFormat, Managed, Placement, Routing, Sessions, StallAction, Upgrade,
    UpgradeSocket,
    diagnostic::Report,
    raw::{Raw, Table},
};
use crate::core::snapshot::Mode;

mod access;
mod failover;
mod fair;
mod identity;
mod pattern;
mod pool;
mod secret;
mod store;
mod tls;
mod tokens;
mod upgrade;
mod weak;

pub(super) use pool::default_state_dir;
pub(super) use upgrade::usual_socket;

/// Looks up an environment variable.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Checks the file at hand. The result counts only if `report` holds no error afterwards.
pub(super) fn check(
    raw: &Raw,
    directory: &Path,
    environment: Env<'_>,
    report: &mut Report,
) -> Config {
    let mut check = Check {
        raw,
        directory,
        environment,
        secret_variables: Vec::new(),
        report,
    };
    let mut config = Config {
        source: None,
        listener: check.listener(),
        admin: check.admin(),
        routing: check.routing(),
        identity: Identity::default(),
        sessions: check.sessions(),
        health: check.health(),
        failover: check.failover(),
        drain: drain(raw.table("drain")),
        upgrade: Upgrade {
            socket: UpgradeSocket::None,
            timeout: raw.table("upgrade").duration("timeout"),
        },
        limits: limits(raw.table("limits"), raw.table("sessions")),
        log: log(raw.table("log")),
        store: check.store(),
        backends: check.backends(),
        managed: check.managed(),
        secret_variables: Vec::new(),
    };
    config.identity = check.identity(&config.listener, &config.routing);
    config.upgrade.socket = check.upgrade_socket(config.listener.address);
    check.giving_up(&config);
    check.nobody_counts(&config);
    check.pool(&config);
    check.weak(&config);
    config.secret_variables = check.secret_variables;
    config
}

/// Every default, with nobody in the pool.
pub(super) fn defaults() -> Config {
    let raw = Raw::read("", &mut Report::default());
    // An empty pool is an error of a file only.
    check(&raw, Path::new("/"), &|_| None, &mut Report::default())
}

/// Every default of `[managed]` with another program.
pub(super) fn managed_defaults(program: &str, state_dir: PathBuf) -> Managed {
    let raw = Raw::read("", &mut Report::default());
    let table = raw.table("managed");
    let mut command = table.words("command");
    command[0] = program.to_owned();
    Managed {
        command,
        servers: table.integer("servers"),
        state_dir,
        start_timeout: table.duration("start_timeout"),
    }
}

struct Check<'a> {
    raw: &'a Raw,
    directory: &'a Path,
    environment: Env<'a>,
    /// Those that secrets are read from, as they are found.
    secret_variables: Vec<String>,
    report: &'a mut Report,
}

impl Check<'_> {
    fn listener(&mut self) -> Listener {
        let table = self.raw.table("listener");
        let mut listener = listener(table);
        listener.tls = self.listener_tls();
        self.proxy_protocol(table, &mut listener);
        let Some(span) = table.sound("address") else {
            return listener;
        };
        let (ip, port) = (listener.address.ip(), listener.address.port());
        let wants_certificate = table.nested("tls").is_some_and(|tls| {
            // If it is one that cannot be read, that is said where it is named.
            tls.entry("client_ca").is_some()
                && tls
                    .text("client_auth")
                    .is_none_or(|auth| auth == "required")
        });
        if !ip.is_loopback() && !wants_certificate && !self.has_principals() {
            if listener.allow_anonymous {
                let message = format!(
                    "listener.address: whoever reaches {} can use every session",
                    listener.address
                );
                let finding = self.report.warning(span, message);
                finding.label("`allow_anonymous` is true").help(
                    "let a firewall or network policy admit only the machines that run clients",
                );
            } else if !table.is_faulty("allow_anonymous") {
                let message = "listener.address: not on loopback, and clients need no token";
                self.report
                    .error(span, message)
                    .label("whoever reaches it could use every session")
                    .help(
                        "listen on 127.0.0.1, say who may connect with [[identity.principals]], \
                         want client certificates ([listener.tls]), or set `allow_anonymous = \
                         true` below [listener]",
                    );
            }
        }
        if ip.is_ipv6() {
            let v4 = if ip.is_loopback() {
                Ipv4Addr::LOCALHOST
            } else {
                Ipv4Addr::UNSPECIFIED
            };
            self.report
                .warning(
                    span,
                    "listener.address: the Python SDK connects over IPv4 only",
                )
                .label("this is IPv6")
                .help(format!("listen on \"{v4}:{port}\" if any client uses it"));
        }
        if port == 0 {
            self.report
                .warning(
                    span,
                    "listener.address: port 0 is another port at each start",
                )
                .help("clients need one that stays, as in 4321");
        }
        listener
    }

    fn proxy_protocol(&mut self, table: &Table, listener: &mut Listener) {
        let from = table.networks("proxy_protocol_from");
        let is_required = table.word("proxy_protocol", |word| match word {
            "off" => Some(false),
            "required" => Some(true),
            _ => None,
        });
        match (is_required, table.sound("proxy_protocol"), &from) {
            (true, Some(span), None) if !table.is_faulty("proxy_protocol_from") => {
                let message = "listener.proxy_protocol: `proxy_protocol_from` is missing";
                self.report
                    .error(span, message)
                    .label("whoever connects could claim any address")
                    .help("name the balancers, as in `proxy_protocol_from = [\"10.0.0.5\"]`");
            }
            (false, _, Some(_)) if !table.is_faulty("proxy_protocol") => {
                if let Some(span) = table.sound("proxy_protocol_from") {
                    let message = "listener.proxy_protocol_from: has no effect without \
                                   proxy_protocol = \"required\"";
                    self.report
                        .warning(span, message)
                        .help("take it out, or require the header");
                }
            }
            (true | false, ..) => {}
        }
        listener.proxy_protocol_from = from.filter(|_| is_required);
    }

    fn admin(&mut self) -> Admin {
        let table = self.raw.table("admin");
        let address = table.address("address");
        let token = self.secret(table, "token");
        let listener = self.raw.table("listener");
        let sound = !listener.is_faulty("address") && !table.is_faulty("address");
        let other = listener.address("address");
        if sound && cannot_both_be_bound(address, other) {
            let span = table
                .sound("address")
                .or(listener.sound("address"))
                .cloned();
            // Both defaults differ, so at least one is written.
            let finding = self.report.error(
                &span.unwrap_or(0..0),
                format!("admin.address: {address} collides with listener.address {other}"),
            );
            finding.help("give the admin server a port of its own, as in \"127.0.0.1:9321\"");
            if let (Some(_), Some(span)) = (table.sound("address"), listener.sound("address")) {
                finding.label("taken").also(span, "by this one");
            }
        }
        Admin { address, token }
    }

    fn routing(&mut self) -> Routing {
        let table = self.raw.table("routing");
        let routing = routing(table);
        let shared = routing.mode == Mode::SharedStorage;
        // Neither is a default, so both are written.
        if shared
            && routing.granularity == Granularity::Connection
            && let (Some(span), Some(mode)) = (table.sound("granularity"), table.sound("mode"))
        {
            let message = "routing.granularity: \"connection\" cannot be used with shared-storage";
            self.report
                .error(span, message)
                .label("sees no sessions")
                .also(mode, "needs one owner for each session")
                .help("use granularity = \"session\", or mode = \"sticky\"");
        }
        if !table.is_faulty("mode") {
            let idle: &[&str] = if shared {
                &["key", "load_factor"]
            } else {
                &["placement"]
            };
            for key in idle {
                if let Some(span) = table.sound(key) {
                    let (mode, other) = match routing.mode {
                        Mode::Sticky => ("sticky", "shared-storage"),
                        Mode::SharedStorage => ("shared-storage", "sticky"),
                    };
                    let message = format!("routing.{key}: has no effect with mode = \"{mode}\"");
                    self.report
                        .warning(span, message)
                        .help(format!("take it out, or use mode = \"{other}\""));
                }
            }
        }
        routing
    }

    fn health(&mut self) -> Health {
        let table = self.raw.table("health");
        let health = health(table);
        let sound = !table.is_faulty("timeout") && !table.is_faulty("interval");
        // Both defaults fit, so at least one is written.
        if let Some(span) = table.sound("timeout").or(table.sound("interval"))
            && sound
            && health.timeout > health.interval
        {
            self.report
                .warning(span, "health.timeout: longer than health.interval")
                .label("a probe that gets no answer holds up the next ones")
                .help("a healthy server answers within milliseconds: keep timeout below interval");
        }
        health
    }

    fn sessions(&mut self) -> Sessions {
        let table = self.raw.table("sessions");
        let sessions = sessions(table);
        if let Some(span) = table.sound("turn_stall_action")
            && sessions.turn_stall.is_none()
            && !table.is_faulty("turn_stall")
        {
            let message = "sessions.turn_stall_action: has no effect without turn_stall";
            self.report
                .warning(span, message)
                .help("take it out, or set `turn_stall`, as in \"10m\"");
        }
        sessions
    }

    /// A path of the file as an absolute one.
    fn path(&self, text: &str) -> PathBuf {
        self.directory.join(text)
    }
}

fn cannot_both_be_bound(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && overlap
}

/// Would connecting to `address` reach what listens on `listener`?
pub(super) fn reaches(address: &str, listener: SocketAddr) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let ip = match host.trim_matches(['[', ']']) {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => host.parse().ok(),
    };
    let Some(ip) = ip else { return false };
    let same = ip == listener.ip()
        || ip.is_unspecified()
        || (listener.ip().is_unspecified() && ip.is_loopback());
    port.parse() == Ok(listener.port()) && same
}

fn listener(table: &Table) -> Listener {
    Listener {
        address: table.address("address"),
        tcp_keepalive: table.duration_or_off("tcp_keepalive"),
        handshake_timeout: table.duration("handshake_timeout"),
        write_stall: table.duration("write_stall"),
        allow_anonymous: table.flag("allow_anonymous"),
        allow_from: table.networks("allow_from"),
        proxy_protocol_from: None,
        tls: None,
    }
}

fn routing(table: &Table) -> Routing {
    Routing {
        mode: table.word("mode", |word| match word {
            "sticky" => Some(Mode::Sticky),
            "shared-storage" => Some(Mode::SharedStorage),
            _ => None,
        }),
        key: table.word("key", |word| match word {
            "user" => Some(Key::User),
            "session" => Some(Key::Session),
            _ => None,
        }),
        placement: table.word("placement", |word| match word {
            "least-loaded" => Some(Placement::LeastLoaded),
            "p2c" => Some(Placement::P2c),
            "round-robin" => Some(Placement::RoundRobin),
            _ => None,
        }),
        load_factor: Some(table.number("load_factor")).filter(|factor| *factor != 0.0),
        granularity: table.word("granularity", |word| match word {
            "session" => Some(Granularity::Session),
            "connection" => Some(Granularity::Connection),
            _ => None,
        }),
        aggregate_timeout: table.duration("aggregate_timeout"),
        home_wait: table.duration("home_wait"),
    }
}

fn sessions(table: &Table) -> Sessions {
    let create_existing = table.word("create_existing", |word| match word {
        "resume" => Some(CreateExisting::Resume),
        "pass" => Some(CreateExisting::Pass),
        "reject" => Some(CreateExisting::Reject),
        _ => None,
    });
    Sessions {
        create_existing,
        detach_grace: table.duration_or_off("detach_grace"),
        turn_stall: table.duration_or_off("turn_stall"),
        turn_stall_action: table.word("turn_stall_action", |word| match word {
            "log" => Some(StallAction::Log),
            "end" => Some(StallAction::End),
            _ => None,
        }),
        turns: fair::terms(table),
    }
}

fn health(table: &Table) -> Health {
    Health {
        interval: table.duration("interval"),
        timeout: table.duration("timeout"),
        unhealthy_after: table.integer("unhealthy_after"),
        healthy_after: table.integer("healthy_after"),
        slow_start: table.duration("slow_start"),
        max_ejected: table.number("max_ejected"),
    }
}

fn drain(table: &Table) -> Drain {
    Drain {
        timeout: table.duration("timeout"),
        accept_grace: table.duration("accept_grace"),
    }
}

fn limits(table: &Table, sessions: &Table) -> Limits {
    Limits {
        frame: table.size("frame"),
        header: table.size("header"),
        cut_through_min: table.size("cut_through_min"),
        frame_timeout: table.duration("frame_timeout"),
        calls_per_connection: table.count("calls_per_connection"),
        sessions_per_connection: table.count("sessions_per_connection"),
        connections: table.count("connections"),
        unauthenticated_connections: table
            .integer_or_none("unauthenticated_connections")
            .map_or_else(
                || table.count("connections").div_ceil(2),
                |most| most as usize,
            ),
        unauthenticated_per_address: Some(table.count("unauthenticated_per_address"))
            .filter(|most| *most > 0),
        directory_sessions: table.count("directory_sessions"),
        session_params: table.size("session_params"),
        caps: fair::caps(table, sessions),
    }
}

fn log(table: &Table) -> Log {
    Log {
        level: table.word("level", |word| word.parse().ok()),
        format: table.word("format", |word| match word {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        }),
        identities: table.word("identities", |word| match word {
            "plain" => Some(Identities::Plain),
            "hash" => Some(Identities::Hash),
            _ => None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_when_two_listeners_collide() {
        for (a, b, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("10.0.0.1:1", "127.0.0.1:1", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(cannot_both_be_bound(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn knows_when_a_backend_is_taxiway_itself() {
        for (address, listener, expected) in [
            ("127.0.0.1:4321", "127.0.0.1:4321", true),
            ("localhost:4321", "127.0.0.1:4321", true),
            ("localhost:4321", "0.0.0.0:4321", true),
            ("[::1]:4321", "[::1]:4321", true),
            ("10.0.0.1:4321", "0.0.0.0:4321", false),
            ("127.0.0.1:4322", "127.0.0.1:4321", false),
            ("cli.example:4321", "127.0.0.1:4321", false),
        ] {
            assert_eq!(
                reaches(address, listener.parse().unwrap()),
                expected,
                "{address}"
            );
        }
    }
}
