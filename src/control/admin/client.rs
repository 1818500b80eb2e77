//! The operator's commands, as calls of the admin API: what `taxiway status` and its kin print.
//!
//! Must not print by itself, and must not let text from elsewhere (ids that clients chose) steer
//! the terminal.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Method, Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use super::{BackendView, Page, Readiness, SessionFilter, SessionView, StateChange, uri};
use crate::core::id::Secret;

mod table;
#[cfg(test)]
mod tests;

/// Largest answer that is read, in bytes.
const LARGEST_ANSWER: usize = 64 << 20;

/// Sessions asked for at a time.
const PAGE: usize = 1000;

/// Between two looks at a backend that drains.
const WAIT_STEP: Duration = Duration::from_millis(250);

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: what the API answered.
    Json,
}

/// What `healthcheck` asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// Does it live? `/healthz`
    Alive,
    /// Should clients be sent there? `/readyz`
    Ready,
    /// And would they find a backend? `/readyz?pool=1`
    Pool,
}

/// One command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// The pool.
    Status,
    /// At most `limit` sessions that match.
    Sessions {
        /// Which.
        filter: SessionFilter,
        /// How many.
        limit: usize,
    },
    /// Everything known about a session.
    Explain {
        /// Its id.
        session: String,
        /// The principal for which to tell whether it may use it.
        principal: Option<String>,
    },
    /// `drain`, `maint`, `ready`, `reset`.
    SetState {
        /// Of which backend.
        backend: String,
        /// What.
        state: StateChange,
        /// Until the backend has no open session; at most so long.
        wait: Option<Duration>,
    },
    /// A backend's weight.
    SetWeight {
        /// Of which backend.
        backend: String,
        /// At least 1.
        weight: u32,
    },
    /// Read the configuration again.
    Reload,
    /// For container health checks.
    Healthcheck(Probe),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Nobody answers there.
    #[error("cannot reach Taxiway's admin address {address}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("{0}")]
    TimedOut(String),
    /// It was refused; says why.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The API's word for it.
        code: String,
        /// For people.
        message: String,
        /// For programs: whatever else was told.
        details: Option<Value>,
    },
    /// Something answers that is no Taxiway, or not this one.
    #[error("the answer from {address} makes no sense: {reason}")]
    Garbled {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
}

impl CommandError {
    /// The program's exit code, as DESIGN §8 has it.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::Unreachable { .. } => 69,
            CommandError::TimedOut(_) => 75,
            CommandError::Refused { .. } | CommandError::Garbled { .. } => 1,
        }
    }
}

/// Speaks to one admin address.
#[derive(Clone, Debug)]
pub struct AdminClient {
    address: String,
    token: Option<Secret>,
    /// For connecting and one answer.
    timeout: Duration,
}

impl AdminClient {
    /// `address` is `host:port`.
    pub fn new(address: &str, token: Option<Secret>) -> Self {
        Self {
            address: address.to_owned(),
            token,
            timeout: Duration::from_secs(5),
        }
    }

    /// For the admin listener of a configuration: one that listens everywhere is asked on loopback.
    pub fn for_listener(listener: SocketAddr, token: Option<Secret>) -> Self {
        let ip = match listener.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
        };
        Self::new(&SocketAddr::new(ip, listener.port()).to_string(), token)
    }

    /// The same, with another patience for connecting and for each answer.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Runs a command to its end on a runtime of its own; gives the text to print.
    pub fn run_blocking(&self, command: &Command, output: Output) -> Result<String, CommandError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CommandError::Unreachable {
                address: self.address.clone(),
                reason: error.to_string(),
            })?;
        runtime.block_on(self.run(command, output))
    }

    /// Runs a command; gives the text to print, with its last line end.
    pub async fn run(&self, command: &Command, output: Output) -> Result<String, CommandError> {
        match command {
            Command::Status => {
                let (readiness, backends) = self.status().await?;
                Ok(match output {
                    Output::Table => table::status(&readiness, &backends),
                    Output::Json => pretty(&json!({
                        "ready": readiness.ready,
                        "reasons": readiness.reasons,
                        "usable_backends": readiness.usable_backends,
                        "backends": backends,
                    })),
                })
            }
            Command::Sessions { filter, limit } => {
                let page = self.sessions(filter, *limit).await?;
                Ok(match output {
                    Output::Table => table::sessions(&page),
                    Output::Json => pretty(&json!(page)),
                })
            }
            Command::Explain { session, principal } => {
                let mut path = format!("/api/v1/sessions/{}/explain", uri::encode(session));
                if let Some(principal) = principal {
                    path += "?as=";
                    path += &uri::encode(principal);
                }
                let told: Value = self.get(&path).await?;
                Ok(match output {
                    Output::Table => table::tree(&told),
                    Output::Json => pretty(&told),
                })
            }
            Command::SetState {
                backend,
                state,
                wait,
            } => {
                let path = format!("/api/v1/backends/{}/{}", uri::encode(backend), state.name());
                let mut changed: Value = self.post(&path, &json!({}), self.timeout).await?;
                if let Some(patience) = wait {
                    let view = self.wait_until_empty(backend, *patience).await?;
                    changed = json!({ "backend": view });
                }
                Ok(self.changed(backend, &changed, output))
            }
            Command::SetWeight { backend, weight } => {
                let path = format!("/api/v1/backends/{}/weight", uri::encode(backend));
                let body = json!({ "weight": weight });
                let changed = self.post(&path, &body, self.timeout).await?;
                Ok(self.changed(backend, &changed, output))
            }
            Command::Reload => {
                // The server's own patience ends first.
                let patience = self.timeout + Duration::from_secs(65);
                let told: Value = self.post("/api/v1/reload", &json!({}), patience).await?;
                Ok(match (output, told["summary"].as_str()) {
                    (Output::Table, Some(summary)) => format!("{}\n", table::safe_lines(summary)),
                    (Output::Table | Output::Json, _) => pretty(&told),
                })
            }
            Command::Healthcheck(probe) => self.healthcheck(*probe).await,
        }
    }

    async fn status(&self) -> Result<(Readiness, Vec<BackendView>), CommandError> {
        let (status, body) = self.ask(Method::GET, "/readyz", None, self.timeout).await?;
        // Not being ready is an answer too.
        let readiness = match status {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => self.parse(&body)?,
            _ => return Err(self.refused(status, &body)),
        };
        Ok((readiness, self.backends().await?))
    }

    async fn backends(&self) -> Result<Vec<BackendView>, CommandError> {
        let page = self.all("/api/v1/backends?", usize::MAX).await?;
        Ok(page.items)
    }

    async fn sessions(
        &self,
        filter: &SessionFilter,
        limit: usize,
    ) -> Result<Page<SessionView>, CommandError> {
        let mut path = "/api/v1/sessions?".to_owned();
        for (name, value) in [("backend", &filter.backend), ("user", &filter.user)] {
            if let Some(value) = value {
                write!(path, "{name}={}&", uri::encode(value))
                    .expect("writing to a String cannot fail");
            }
        }
        self.all(&path, limit).await
    }

    /// Pages of a list until `limit`; `path` ends where another parameter may follow.
    async fn all<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: usize,
    ) -> Result<Page<T>, CommandError> {
        let mut all = Page {
            items: Vec::new(),
            next: None,
        };
        loop {
            let step = PAGE.min(limit - all.items.len()).max(1);
            let mut path = format!("{path}limit={step}");
            if let Some(after) = &all.next {
                write!(path, "&after={}", uri::encode(after))
                    .expect("writing to a String cannot fail");
            }
            let page: Page<T> = self.get(&path).await?;
            let empty = page.items.is_empty();
            all.items.extend(page.items);
            all.next = page.next;
            if all.next.is_none() || empty || all.items.len() >= limit {
                return Ok(all);
            }
        }
    }

    /// Until the backend is gone, or has neither session nor turn open.
    async fn wait_until_empty(
        &self,
        name: &str,
        patience: Duration,
    ) -> Result<Option<BackendView>, CommandError> {
        let deadline = Instant::now() + patience;
        loop {
            let view = self.backends().await?.into_iter().find(|b| b.name == name);
            match view {
                Some(view) if view.sessions_open + view.turns_open > 0 => {
                    if Instant::now() >= deadline {
                        return Err(CommandError::TimedOut(format!(
                            "{name} still has {} open sessions, {} of them in a turn",
                            view.sessions_open, view.turns_open
                        )));
                    }
                }
                empty => return Ok(empty),
            }
            sleep(WAIT_STEP).await;
        }
    }

    fn changed(&self, name: &str, changed: &Value, output: Output) -> String {
        let view = BackendView::deserialize_from(&changed["backend"]);
        match (output, view) {
            (Output::Table, Some(view)) => table::backend(&view),
            (Output::Table, None) => format!("{}: done\n", table::safe(name)),
            (Output::Json, _) => pretty(changed),
        }
    }

    async fn healthcheck(&self, probe: Probe) -> Result<String, CommandError> {
        let path = match probe {
            Probe::Alive => "/healthz",
            Probe::Ready => "/readyz",
            Probe::Pool => "/readyz?pool=1",
        };
        let (status, body) = self.ask(Method::GET, path, None, self.timeout).await?;
        if status.is_success() {
            return Ok("ok\n".into());
        }
        let reasons = serde_json::from_slice::<Readiness>(&body)
            .unwrap_or_default()
            .reasons;
        let message = match reasons[..] {
            [] => format!("answered {status}"),
            _ => format!("not ready: {}", reasons.join("; ")),
        };
        Err(CommandError::Refused {
            status: status.as_u16(),
            code: "not_ready".into(),
            message,
            details: None,
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CommandError> {
        let (status, body) = self.ask(Method::GET, path, None, self.timeout).await?;
        if status.is_success() {
            self.parse(&body)
        } else {
            Err(self.refused(status, &body))
        }
    }

    async fn post(
        &self,
        path: &str,
        body: &Value,
        patience: Duration,
    ) -> Result<Value, CommandError> {
        let (status, body) = self.ask(Method::POST, path, Some(body), patience).await?;
        if status.is_success() {
            self.parse(&body)
        } else {
            Err(self.refused(status, &body))
        }
    }

    /// One request on a connection of its own.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), CommandError> {
        let connected = timeout_at(
            Instant::now() + self.timeout,
            TcpStream::connect(&self.address),
        );
        let stream = match connected.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.unreachable(&error)),
            Err(_) => return Err(self.unreachable(&"no answer")),
        };
        let deadline = Instant::now() + patience;
        match timeout_at(deadline, self.exchange(stream, method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(CommandError::TimedOut(format!(
                "{} did not answer within {}",
                self.address,
                humantime::format_duration(patience)
            ))),
        }
    }

    async fn exchange(
        &self,
        stream: TcpStream,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), CommandError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(Full::<Bytes>::from(body))
            .map_err(|e| self.garbled(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.garbled(&e))?;
        let answer = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|e| self.garbled(&e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST_ANSWER)
                .collect()
                .await;
            Ok((status, body.map_err(|e| self.garbled(&e))?.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection may end in the same moment as its last answer.
            _ = connection => answer.await,
        }
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, CommandError> {
        serde_json::from_slice(body).map_err(|e| self.garbled(&e))
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> CommandError {
        let error = serde_json::from_slice::<Value>(body)
            .ok()
            .and_then(|mut body| body.get_mut("error").map(Value::take));
        let text = |key| {
            error
                .as_ref()
                .and_then(|error| error[key].as_str())
                .map(str::to_owned)
        };
        CommandError::Refused {
            status: status.as_u16(),
            code: text("code").unwrap_or_else(|| "unknown".into()),
            message: text("message").unwrap_or_else(|| format!("answered {status}")),
            details: error
                .as_ref()
                .and_then(|error| error.get("details"))
                .cloned(),
        }
    }

    fn unreachable(&self, reason: &dyn std::fmt::Display) -> CommandError {
        CommandError::Unreachable {
            address: self.address.clone(),
            reason: reason.to_string(),
        }
    }

    fn garbled(&self, reason: &dyn std::fmt::Display) -> CommandError {
        CommandError::Garbled {
            address: self.address.clone(),
            reason: reason.to_string(),
        }
    }
}

impl BackendView {
    /// None if the value is no backend.
    fn deserialize_from(value: &Value) -> Option<Self> {
        if value.is_object() {
            serde_json::from_value(value.clone()).ok()
        } else {
            None
        }
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
