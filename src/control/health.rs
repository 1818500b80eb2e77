//! One task per backend: holds its control connection, probes it, reads its disk, asks for others.
//! Judges nothing itself (`core::outlier` does) and publishes nothing itself (`pool` does).

mod board;
mod release;
mod together;

use std::{
    collections::HashSet,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};

pub use board::{Activity, AskError, Lost};
pub(super) use board::{Board, Command, Comparison, Habits, Observed, Reply, Target};

use self::release::{Closing, Fencing};
use super::{
    connection::{self, Answer, Incoming, Link, LinkError},
    fence::{FenceError, LastLine},
};
use crate::{
    core::{
        id::{BackendName, SessionId},
        outlier::{Cause, Disk, Outlier},
        release::Release,
        snapshot::Health,
    },
    transport::{ConnectError, Fault, Stream},
};

/// What clients may be told to support: Taxiway passes their own choice on its other connections.
const TASK_KINDS: &str = r#"["agent","client","shell"]"#;
/// Bytes of a text by a backend that are kept.
const MAX_TEXT: usize = 256;
/// Task kinds of a backend that are kept.
const MAX_KINDS: usize = 64;
/// Pings without an answer, beyond which no more are written: a stopped process reads none.
const MAX_UNANSWERED: u32 = 16;
/// A connection that has not answered the handshake for so long is given up.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(60);
/// A session list that has not come for so long is asked for again.
const LIST_PATIENCE: Duration = Duration::from_secs(30);

/// What a call on the control connection is for.
enum Purpose {
    Handshake,
    Ping,
    List {
        asked: Instant,
    },
    /// Of a session that was opened elsewhere.
    Close(SessionId),
    Ask(Reply),
}

fn is_wanted(purpose: &Purpose) -> bool {
    match purpose {
        Purpose::Ask(reply) => !reply.is_closed(),
        Purpose::Handshake | Purpose::Ping | Purpose::List { .. } | Purpose::Close(_) => true,
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<Stream, ConnectError>> + Send>>;

/// The task's state.
pub(super) struct Watch {
    name: BackendName,
    habits: Habits,
    board: Weak<dyn Board>,
    target: Target,
    outlier: Outlier,
    activity: Arc<Activity>,
    connecting: Option<Connecting>,
    link: Option<Link<Purpose>>,
    /// The handshake on `link` is done.
    ready: bool,
    /// When `link` was made.
    linked: Instant,
    unanswered: u32,
    /// When the last probe was sent.
    probed: Instant,
    observed: Observed,
    /// When the session list is read next.
    next_list: Option<Instant>,
    confirming: Option<Confirming>,
    next_purge: Option<Instant>,
    /// As in [`Observed::gone`].
    gone: bool,
    release: Release,
    fencing: Option<Fencing>,
    /// The last line of the fence command that succeeded.
    fenced: LastLine,
    closing: Option<Closing>,
    /// Sessions closed since it was released, because they are open elsewhere.
    stale: usize,
    /// As in [`Observed::away`].
    away: Option<Instant>,
    /// The address has changed, and nothing is known yet of who listens there: what was known
    /// before is published meanwhile, and questions wait.
    moved: bool,
}

struct Confirming {
    missing: Vec<SessionId>,
    fresh: oneshot::Receiver<Result<Answer, AskError>>,
}

enum Wake {
    Incoming(Result<Incoming<Purpose>, LinkError>),
    Connected(Result<Stream, ConnectError>),
    Confirmed(Result<Answer, AskError>),
    Fenced(Result<LastLine, FenceError>),
    Command(Option<Command>),
    Retarget(bool),
    Time,
}

/// The clock of the task: tokio's, so that tests can stop it.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Watch {
    pub(super) fn new(
        name: BackendName,
        habits: Habits,
        board: Weak<dyn Board>,
        target: Target,
        activity: Arc<Activity>,
    ) -> Self {
        let now = now();
        Self {
            name,
            habits,
            board,
            outlier: Outlier::new(target.rules, first_disk(habits), now),
            release: Release::new(release::rules(&target.failover), now),
            target,
            activity,
            connecting: None,
            link: None,
            ready: false,
            linked: now,
            unanswered: 0,
            probed: now,
            observed: Observed::nothing(),
            next_list: None,
            confirming: None,
            next_purge: None,
            gone: false,
            fencing: None,
            fenced: None,
            closing: None,
            stale: 0,
            away: Some(now),
            moved: false,
        }
    }

    /// Runs until the pool drops its end of `commands`.
    pub(super) async fn run(
        mut self,
        mut target: watch::Receiver<Target>,
        mut commands: mpsc::Receiver<Command>,
    ) {
        loop {
            self.handle_time(now());
            self.publish();
            if let Some(link) = &mut self.link {
                link.flush();
            }
            let deadline = self.deadline(now());
            let has_room = !self.moved && self.link.as_mut().is_none_or(Link::has_room);
            let wake = tokio::select! {
                // What was received before a deadline passed unnoticed must count.
                biased;
                incoming = next_incoming(&mut self.link) => Wake::Incoming(incoming),
                stream = poll_option(&mut self.connecting) => Wake::Connected(stream),
                fresh = next_fresh(&mut self.confirming) => Wake::Confirmed(fresh),
                fenced = poll_option(&mut self.fencing) => Wake::Fenced(fenced),
                // A question that was asked after a change is for who is there after it.
                changed = target.changed() => Wake::Retarget(changed.is_ok()),
                // What finds no room waits in the queue, and its asker there, within its time.
                command = commands.recv(), if has_room => Wake::Command(command),
                () = sleep_until(deadline) => Wake::Time,
            };
            let now = now();
            match wake {
                Wake::Incoming(Ok(incoming)) => {
                    self.handle_incoming(now, incoming);
                    self.handle_rest(now);
                }
                Wake::Incoming(Err(error)) => self.handle_link_error(now, &error),
                Wake::Connected(stream) => self.handle_stream(now, stream),
                Wake::Confirmed(fresh) => self.handle_confirmed(now, fresh),
                Wake::Fenced(fenced) => self.handle_fenced(now, fenced),
                Wake::Command(Some(command)) => {
                    self.handle_command(now, command);
                    self.handle_more(now, &target, &mut commands);
                }
                Wake::Retarget(true) => {
                    let target = target.borrow_and_update().clone();
                    self.handle_target(now, target);
                }
                Wake::Command(None) | Wake::Retarget(false) => return,
                Wake::Time => {}
            }
        }
    }

    fn deadline(&self, now: Instant) -> Instant {
        [
            self.outlier.poll_next_probe(),
            self.outlier.poll_deadline(),
            self.outlier.poll_ramp(now),
            self.next_list.filter(|_| self.ready),
            self.next_purge,
            self.release_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
        .expect("a probe is due or in flight")
    }

    fn handle_time(&mut self, now: Instant) {
        self.outlier.handle_time(now);
        if self.outlier.poll_deadline().is_some_and(|d| now >= d) {
            self.release.handle_missed(self.probed);
            if self.activity.take() {
                self.outlier.handle_activity(now);
            }
            if self.connecting.take().is_some() {
                self.outlier.handle_connect_failed(now);
            } else {
                self.outlier.handle_probe_timeout(now);
            }
        }
        if self.outlier.poll_next_probe().is_some_and(|due| now >= due) {
            self.send_probe(now);
        }
        if self.ready && self.next_list.is_some_and(|due| now >= due) {
            self.send_list(now);
        }
        if self.next_purge.is_some_and(|due| now >= due) {
            self.next_purge = Some(now + self.target.rules.interval);
            if let Some(board) = self.board.upgrade() {
                board.purge(&self.name);
            }
        }
        self.carry_out(now);
    }

    fn send_probe(&mut self, now: Instant) {
        // What came before it does not answer it, but is a sign of life.
        if self.activity.take() {
            self.outlier.handle_activity(now);
        }
        self.outlier.handle_probe_sent(now);
        self.probed = now;
        if !self.ready && now.saturating_duration_since(self.linked) > HANDSHAKE_PATIENCE {
            self.link = None;
        }
        if let Some(link) = &mut self.link {
            // Without an answer to the handshake, that is the probe; and what earlier probes
            // still wait for is as good as one more.
            if self.ready
                && self.unanswered < MAX_UNANSWERED
                && link.call("ping", "{}", Purpose::Ping, now).is_ok()
            {
                self.unanswered += 1;
            }
        } else {
            let (address, transport) = (self.target.address.clone(), self.target.transport.clone());
            let keepalive = self.habits.keepalive;
            // The deadline of the probe ends it.
            self.connecting = Some(Box::pin(async move {
                connection::connect(&address, keepalive, &transport).await
            }));
        }
    }

    fn send_list(&mut self, now: Instant) {
        self.next_list = Some(now + LIST_PATIENCE);
        if let Some(link) = &mut self.link {
            // Tried again after the patience if the connection is choked now.
            let _full = link.call("session.list", "{}", Purpose::List { asked: now }, now);
        }
    }

    fn handle_stream(&mut self, now: Instant, stream: Result<Stream, ConnectError>) {
        self.connecting = None;
        let stream = match stream {
            Ok(stream) => stream,
            // Somebody is there, and cannot be used.
            Err(ConnectError::Tls(fault)) => return self.reject(now, format!("TLS: {fault}")),
            Err(ConnectError::Tcp(error) | ConnectError::Broken(error)) => {
                if is_gone(&error) {
                    self.note_gone();
                }
                self.release.handle_missed(self.probed);
                self.outlier.handle_connect_failed(now);
                return;
            }
        };
        self.outlier.handle_connected(now);
        self.ready = false;
        self.linked = now;
        self.unanswered = 0;
        let mut link = Link::new(stream, is_wanted);
        let token = self.target.token.as_ref().map_or(String::new(), |token| {
            format!(r#""token":{},"#, serde_json::Value::from(token.expose()))
        });
        let params = format!(r#"{{{token}"supportedTaskKinds":{TASK_KINDS}}}"#);
        let fits = link
            .call("connect", &params, Purpose::Handshake, now)
            .is_ok();
        debug_assert!(fits, "a fresh connection has room for one call");
        self.link = Some(link);
    }

    fn handle_incoming(&mut self, now: Instant, incoming: Incoming<Purpose>) {
        match incoming {
            Incoming::Other => self.outlier.handle_activity(now),
            Incoming::Lifecycle {
                kind,
                session,
                body,
            } => {
                self.outlier.handle_activity(now);
                if let Some(board) = self.board.upgrade() {
                    board.lifecycle(&self.name, &kind, &session, body);
                }
            }
            Incoming::Answer {
                purpose,
                answer,
                took,
            } => match purpose {
                Purpose::Handshake => self.handle_handshake(now, answer, took),
                // That it answers is enough, whatever it says.
                Purpose::Ping => {
                    self.unanswered = self.unanswered.saturating_sub(1);
                    self.outlier.handle_probe_ok(now, took);
                    self.handle_answer();
                }
                Purpose::List { asked } => {
                    self.outlier.handle_activity(now);
                    self.handle_list(now, &answer, asked);
                }
                Purpose::Close(session) => {
                    self.outlier.handle_activity(now);
                    self.handle_closed(now, session);
                }
                Purpose::Ask(reply) => {
                    self.outlier.handle_activity(now);
                    // Nobody waits any more: fine.
                    let _gone = reply.send(Ok(answer));
                }
            },
        }
    }

    fn handle_handshake(&mut self, now: Instant, answer: Answer, took: Duration) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Connected {
            protocol_version: u32,
            #[serde(default)]
            version: Option<String>,
            #[serde(default)]
            task_kinds: Vec<String>,
        }
        let result = match answer {
            Answer::Result(result) => result,
            Answer::Error { code, message, .. } => {
                return self.reject(now, format!("refuses connect: {code} {}", clip(&message)));
            }
        };
        let Ok(connected) = serde_json::from_str::<Connected>(result.get()) else {
            return self.violate(now, "answered connect without a protocolVersion".into());
        };
        self.observed.protocol_version = Some(connected.protocol_version);
        self.observed.version = connected.version.map(|v| Arc::from(clip(&v)));
        self.observed.task_kinds = connected
            .task_kinds
            .iter()
            .take(MAX_KINDS)
            .map(|kind| Arc::from(clip(kind)))
            .collect();
        let wanted = self.habits.protocol_version;
        if connected.protocol_version != wanted {
            let theirs = connected.protocol_version;
            return self.reject(
                now,
                format!("speaks protocol version {theirs} instead of {wanted}"),
            );
        }
        self.ready = true;
        self.gone = false;
        self.outlier.handle_probe_ok(now, took);
        self.handle_answer();
        self.send_list(now);
    }

    fn handle_list(&mut self, now: Instant, answer: &Answer, asked: Instant) {
        self.next_list = Some(now + self.habits.disk_recheck);
        let Some(sessions) = listed_sessions(answer) else {
            tracing::warn!(backend = %self.name, "no session list came; asking again");
            return;
        };
        self.observed.disk_read = true;
        let Some(board) = self.board.upgrade() else {
            return;
        };
        match board.disk(&self.name, sessions, asked) {
            Comparison::Fits => self.settle_disk(now, Disk::Fits),
            Comparison::ReadAgain => self.next_list = Some(now),
            Comparison::Postponed => {}
            Comparison::Confirm { missing, fresh } => {
                self.confirming = Some(Confirming { missing, fresh });
            }
        }
    }

    fn handle_confirmed(&mut self, now: Instant, fresh: Result<Answer, AskError>) {
        let Some(Confirming { missing, .. }) = self.confirming.take() else {
            return;
        };
        let Some(fresh) = fresh.ok().as_ref().and_then(listed_sessions) else {
            return;
        };
        let fresh: HashSet<SessionId> = fresh.into_iter().collect();
        let gone = missing.iter().all(|id| !fresh.contains(id));
        self.settle_disk(now, if gone { Disk::Fits } else { Disk::Mismatch });
    }

    fn settle_disk(&mut self, now: Instant, disk: Disk) {
        self.outlier.handle_disk_read(disk);
        self.next_list = match disk {
            Disk::Fits if self.habits.compare_disks => Some(now + self.habits.disk_reread),
            // Lifecycle events keep it current from here.
            Disk::Fits => None,
            Disk::Mismatch | Disk::Unread => Some(now + self.habits.disk_recheck),
        };
    }

    fn handle_link_error(&mut self, now: Instant, error: &LinkError) {
        match error {
            LinkError::Violation(what) => self.violate(now, Arc::from(*what)),
            // In TLS 1.3 a refused certificate shows in the first read.
            LinkError::Io(error) if let Some(fault) = Fault::of(error) => {
                self.reject(now, format!("TLS: {fault}"));
            }
            // Cut short is what a killed process leaves too.
            LinkError::Closed | LinkError::Cut | LinkError::Io(_) => {
                tracing::debug!(backend = %self.name, %error, "control connection ended");
                let gone = match error {
                    LinkError::Io(error) => is_gone(error),
                    LinkError::Closed | LinkError::Cut => true,
                    LinkError::Violation(_) => false,
                };
                if gone {
                    self.note_gone();
                }
                self.unlink();
                self.outlier.handle_connection_lost(now);
            }
        }
    }

    /// The process is gone, and with it what it had open.
    fn note_gone(&mut self) {
        for purpose in self.link.iter_mut().flat_map(Link::take_pending) {
            if let Purpose::Ask(reply) = purpose {
                let _nobody_waits = reply.send(Err(AskError::Lost));
            }
        }
        self.release_gone();
        if !std::mem::replace(&mut self.gone, true)
            && let Some(board) = self.board.upgrade()
        {
            board.lost(&self.name, Lost::Gone);
        }
    }

    fn handle_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::ConnectFailed => self.outlier.handle_reported_failure(now),
            Command::Violation(what) => self.violate(now, what),
            Command::Gone => {
                self.note_gone();
                if self.link.is_some() {
                    self.unlink();
                    self.outlier.handle_connection_lost(now);
                }
            }
            Command::ReadDisk => self.next_list = self.ready.then_some(now),
            Command::Ask {
                method,
                params,
                reply,
            } => {
                let refused = match &mut self.link {
                    Some(link) if self.ready => {
                        match link.call(&method, &params, Purpose::Ask(reply), now) {
                            Err((_full, Purpose::Ask(reply))) => Some((reply, AskError::TimedOut)),
                            Ok(()) | Err(_) => None,
                        }
                    }
                    Some(_) | None if self.gone => Some((reply, AskError::Lost)),
                    Some(_) | None => Some((reply, AskError::Unusable)),
                };
                if let Some((reply, why)) = refused {
                    let _nobody_waits = reply.send(Err(why));
                }
            }
        }
    }

    fn handle_target(&mut self, now: Instant, target: Target) {
        // Another token is for the next handshake: a connection that stands, stands.
        let moved = target.address != self.target.address;
        self.outlier.set_rules(target.rules, now);
        self.release.set_rules(release::rules(&target.failover));
        self.next_purge = target.leaving.then_some(now + target.rules.interval);
        self.target = target;
        if moved {
            self.unlink();
            self.connecting = None;
            self.moved = true;
            self.gone = false;
            self.release.handle_moved(now);
            self.outlier = Outlier::new(self.target.rules, first_disk(self.habits), now);
            self.observed.disk_read = false;
        }
    }

    fn violate(&mut self, now: Instant, what: Arc<str>) {
        if let Some(board) = self.board.upgrade() {
            board.violation(&self.name, &what);
        }
        self.unlink();
        self.connecting = None;
        // Whoever speaks nonsense is not silent.
        self.outlier.handle_activity(now);
        self.outlier.handle_violation(now, what);
    }

    fn reject(&mut self, now: Instant, why: String) {
        self.unlink();
        self.outlier.handle_rejected(now, why.into());
    }

    /// Drops the connection, and with it every open question: their askers get no answer.
    fn unlink(&mut self) {
        self.link = None;
        self.ready = false;
        self.next_list = None;
        self.confirming = None;
        self.closing = None;
        self.release.handle_unlinked();
    }

    fn publish(&mut self) {
        let was = self.observed.health;
        let mut observed = self.observed.clone();
        let known = self.outlier.health() != Health::Unknown;
        self.moved = self.moved && !known;
        if self.moved {
            if let Some(board) = self.board.upgrade() {
                board.observe(&self.name, observed, &self.outlier);
            }
            return;
        }
        observed.health = self.outlier.health();
        observed.weight_permille = self.outlier.weight_permille(now());
        observed.cause = self.outlier.cause().cloned();
        observed.gone = self.gone;
        observed.fits = self.outlier.fits();
        observed.released = self.release.is_released();
        let away = observed.released || matches!(observed.health, Health::Down | Health::Unknown);
        self.away = away.then(|| self.away.unwrap_or_else(now));
        observed.away = self.away;
        let Some(board) = self.board.upgrade() else {
            return;
        };
        board.observe(&self.name, observed.clone(), &self.outlier);
        self.release.handle_ejection(board.ejection(&self.name));
        if was != Health::Down && observed.health == Health::Down {
            match observed.cause {
                Some(Cause::Silent) => board.lost(&self.name, Lost::Silent),
                Some(Cause::Violation(_)) => board.lost(&self.name, Lost::Violation),
                Some(Cause::Unreachable | Cause::Gone | Cause::Rejected(_)) | None => {}
            }
        }
        self.observed = observed;
    }
}

/// Whether an error proves that no process listens there: a timeout or a missing route does not.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | ConnectionAborted | BrokenPipe
    )
}

/// As much of a backend's text as is kept and shown.
fn clip(text: &str) -> &str {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(fits);
    &text[..end.unwrap_or(0)]
}

fn first_disk(habits: Habits) -> Disk {
    if habits.compare_disks {
        Disk::Unread
    } else {
        Disk::Fits
    }
}

/// The ids in an answer to `session.list`.
pub(super) fn listed_sessions(answer: &Answer) -> Option<Vec<SessionId>> {
    #[derive(Deserialize)]
    struct Listed {
        sessions: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "sessionId")]
        id: String,
    }
    let Answer::Result(result) = answer else {
        return None;
    };
    let listed: Listed = serde_json::from_str(result.get()).ok()?;
    Some(
        listed
            .sessions
            .into_iter()
            .map(|entry| entry.id.into())
            .collect(),
    )
}

async fn next_incoming(link: &mut Option<Link<Purpose>>) -> Result<Incoming<Purpose>, LinkError> {
    match link {
        Some(link) => link.next(now).await,
        None => std::future::pending().await,
    }
}

async fn next_fresh(confirming: &mut Option<Confirming>) -> Result<Answer, AskError> {
    match confirming {
        Some(confirming) => (&mut confirming.fresh)
            .await
            .unwrap_or(Err(AskError::Unusable)),
        None => std::future::pending().await,
    }
}

async fn poll_option<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Instant) {
    tokio::time::sleep_until(deadline.into()).await;
}
