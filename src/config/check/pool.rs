//! `[[backends]]` and `[managed]`: who is in the pool.

use std::{ops::Range, path::PathBuf, sync::Arc};

use super::{Check, Env, reaches};
use crate::{
    config::{Backend, Config, Managed},
    core::{
        id::BackendName,
        proxy_header::Version,
        snapshot::{AdminState, Mode},
    },
};

impl Check<'_> {
    /// The backends that have a name and an address; the others were reported.
    pub(super) fn backends(&mut self) -> Vec<Backend> {
        let mut backends = Vec::new();
        let mut seen: Vec<(String, Range<usize>)> = Vec::new();
        let mut addresses: Vec<(String, Range<usize>)> = Vec::new();
        let listener = self.raw.table("listener");
        for table in self.raw.list("backends") {
            let (name, address) = (table.text("name"), table.text("address"));
            if let (Some(name), Some(span)) = (&name, table.sound("name")) {
                if let Some((_, first)) = seen.iter().find(|(other, _)| other == name) {
                    self.report
                        .error(span, format!("backends.name: \"{name}\" is there twice"))
                        .label("again")
                        .also(first, "first here")
                        .help("a name is a backend's identity: give each its own");
                } else {
                    seen.push((name.clone(), span.clone()));
                }
            }
            if let (Some(address), Some(span)) = (&address, table.sound("address")) {
                if let Some((_, first)) = addresses.iter().find(|(other, _)| other == address) {
                    let message = format!("backends.address: {address} is there twice");
                    self.report
                        .error(span, message)
                        .label("again")
                        .also(first, "first here")
                        .help("two names for one server would open its sessions twice");
                } else {
                    addresses.push((address.clone(), span.clone()));
                }
                let own = listener.address("address");
                if !listener.is_faulty("address") && reaches(address, own) {
                    let message = format!("backends.address: {address} is Taxiway's own listener");
                    self.report
                        .error(span, message)
                        .label("Taxiway would connect to itself")
                        .help("start the CLI server on another port, or move listener.address");
                }
                let admin = self.raw.table("admin");
                if !admin.is_faulty("address") && reaches(address, admin.address("address")) {
                    let message = format!("backends.address: {address} is Taxiway's admin address");
                    self.report
                        .error(span, message)
                        .label("no CLI server can be there")
                        .help("start the CLI server on another port, or move admin.address");
                }
            }
            let connection_token = self.secret(table, "connection_token");
            let tls = self.backend_tls(table);
            let (Some(name), Some(address)) = (name, address) else {
                continue;
            };
            backends.push(Backend {
                name: BackendName::from(name),
                address: Arc::from(address),
                weight: table.integer("weight"),
                state: table.word("state", |word| match word {
                    "ready" => Some(AdminState::Ready),
                    "drain" => Some(AdminState::Drain),
                    "maint" => Some(AdminState::Maint),
                    _ => None,
                }),
                connection_token,
                proxy_protocol: table.word("proxy_protocol", |word| match word {
                    "off" => Some(None),
                    "v1" => Some(Some(Version::V1)),
                    "v2" => Some(Some(Version::V2)),
                    _ => None,
                }),
                tls,
            });
        }
        backends
    }

    /// The managed servers, if the section is there.
    pub(super) fn managed(&mut self) -> Option<Managed> {
        let table = self.raw.table("managed");
        let section = table.span.clone()?;
        let mut command = table.words("command");
        if let Some(span) = table.sound("command")
            && !command.iter().any(|word| word.contains("{port}"))
        {
            self.report
                .error(span, "managed.command: `{port}` is missing")
                .label("each server needs a port of its own")
                .help("add \"--port\", \"{port}\"");
        }
        if command[0].contains('/') {
            command[0] = self.path(&command[0]).to_string_lossy().into_owned();
        }
        let state_dir = match table.text("state_dir") {
            Some(path) => self.path(&path),
            None => default_state_dir(self.environment).unwrap_or_else(|| {
                if !table.is_faulty("state_dir") {
                    self.report
                        .error(&section, "managed: no place for the servers' homes")
                        .help("set `state_dir`, or the environment variable HOME");
                }
                PathBuf::new()
            }),
        };
        Some(Managed {
            command,
            servers: table.integer("servers"),
            state_dir,
            start_timeout: table.duration("start_timeout"),
        })
    }

    /// What the pool as a whole must be.
    pub(super) fn pool(&mut self, config: &Config) {
        let is_written = self.raw.list("backends").next().is_some()
            || self.raw.is_faulty("backends")
            || self.raw.is_faulty("managed");
        let Some(managed) = &config.managed else {
            if !is_written {
                self.report.error_at_large("the pool is empty").help(
                    "add a `[[backends]]` block with `name` and `address` for each CLI server, or \
                     `[managed]` to have Taxiway start them",
                );
            }
            if config.backends.iter().all(|b| b.state != AdminState::Ready)
                && let Some(span) = self.raw.list("backends").find_map(|t| t.sound("state"))
            {
                self.report
                    .warning(span, "backends.state: no backend is \"ready\"")
                    .help("new sessions will be refused");
            }
            return;
        };
        for table in self.raw.list("backends") {
            let (Some(name), Some(span)) = (table.text("name"), table.sound("name")) else {
                continue;
            };
            if managed.names().any(|managed| managed.as_str() == name) {
                self.report
                    .error(
                        span,
                        format!("backends.name: \"{name}\" is a managed server"),
                    )
                    .help("names of managed servers are managed-1, managed-2, …: take another");
            }
        }
        let routing = self.raw.table("routing");
        if let (Mode::SharedStorage, Some(span)) = (config.routing.mode, routing.sound("mode")) {
            self.report
                .warning(
                    span,
                    "routing.mode: managed servers do not share their storage",
                )
                .label("each has a home of its own")
                .help("use mode = \"sticky\" with [managed]");
        }
    }
}

/// Where managed servers keep their homes by default; none without `XDG_STATE_HOME` and `HOME`.
pub(in crate::config) fn default_state_dir(environment: Env<'_>) -> Option<PathBuf> {
    // The XDG specification: a relative path in the variable is to be ignored.
    let absolute = |name: &str| {
        environment(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .map(|state| state.join("taxiway"))
}
