//! Clients: what an application does with an SDK, and what it must hear.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Act, MS, SECOND, World,
    json::{Heard, heard},
};
use crate::core::{
    id::ConnectionId,
    mux::{Mux, SlotId, tests::rig::cut_frames, tests::rig::framed},
    turnlock::Parting,
};

/// A client, with the connection that it has at present.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: ConnectionId,
    /// In a box: it is taken out for each of its steps.
    pub(super) mux: Option<Box<Mux>>,
    pub(super) sockets: BTreeMap<usize, (SlotId, u64)>,
    /// Which session is being opened again with a permit of which backend.
    /// Its connection has ended.
    pub(super) has_left: bool,
    pub(super) permits: BTreeMap<String, String>,
    pub(super) mail_at: u64,
    pub(super) armed: Option<u64>,
    pub(super) inbox: Vec<u8>,
    pub(super) reading: Option<u64>,
    /// Sessions that it works with, whatever its connection.
    pub(super) wants: BTreeSet<String>,
    pub(super) views: BTreeMap<String, View>,
    due: BTreeMap<u64, Due>,
    next_id: u64,
}

/// A call that awaits its answer.
#[derive(Debug)]
struct Due {
    session: String,
    kind: Kind,
    since: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Create,
    Resume,
    Detach,
    Send(String),
    SendAndWait(String),
    Read,
    /// The last reading, which must succeed.
    LastRead,
    Answer,
    Mode(String, bool),
    Approve(String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum State {
    #[default]
    Out,
    Opening,
    Attached,
    Leaving,
}

/// One session as this connection of the client sees it.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) state: State,
    actions: u32,
    /// It had the session before, on this connection or another.
    again: bool,
    /// A turn of an earlier connection may be running.
    inherits: bool,
    /// Acknowledged or shown, and not seen to end.
    pub(super) awaiting: BTreeSet<String>,
    /// Shown since the last end of a turn.
    seen: Vec<String>,
    ended: BTreeSet<String>,
    told_lost: BTreeSet<String>,
    /// Messages whose turn it was told to be over, by whomever.
    over: BTreeSet<String>,
    /// What it was told of messages that are lost.
    told: String,
    last: Option<(u64, u64, u64)>,
    past: BTreeSet<(u64, u64)>,
    /// What was set last, if that is known.
    approve: Option<String>,
    approving: u32,
    /// It wanted to leave while other calls were under way, or does not know whether it has.
    doubt: bool,
    /// When it last left: what is acknowledged later of an earlier send, it does not hear of.
    left: Option<u64>,
    pub(super) last_read: bool,
    serial: u64,
}

impl Client {
    pub(super) fn empty() -> Self {
        Self {
            connection: ConnectionId(0),
            mux: None,
            sockets: BTreeMap::new(),
            has_left: true,
            permits: BTreeMap::new(),
            mail_at: 0,
            armed: None,
            inbox: Vec::new(),
            reading: None,
            wants: BTreeSet::new(),
            views: BTreeMap::new(),
            due: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// What it was shown was aborted, with all that was queued behind it. It hears that, but not of
    /// the end: it waits for a turn of its own.
    pub(super) fn forget_seen(&mut self, session: &str) {
        if let Some(view) = self.views.get_mut(session) {
            view.ended.extend(std::mem::take(&mut view.seen));
            view.ended.append(&mut view.awaiting);
        }
    }

    /// Whether it was told that the turn of this message is over.
    pub(super) fn was_told_over(&self, session: &str, message: &str) -> bool {
        let view = self.views.get(session);
        view.is_some_and(|view| view.over.contains(message))
    }

    pub(super) fn is(&self, connection: ConnectionId) -> bool {
        self.connection == connection && self.mux.is_some()
    }

    pub(super) fn unanswered(&self) -> Vec<String> {
        let due = self.due.iter();
        due.map(|(id, d)| format!("{id}: {d:?}")).collect()
    }
}

impl World {
    pub(super) fn share_sessions(&mut self) {
        for n in 0..self.size.sessions {
            let session = if self.chance.percent(50) {
                // As SDKs draw them.
                format!("{n:08x}-0000-4000-8000-000000000000")
            } else {
                format!("s{n}")
            };
            let first = n % self.size.clients;
            let second = self.chance.index(self.size.clients);
            let shared = self.chance.percent(25);
            if shared && second != first {
                self.shared.insert(session.clone());
            }
            let users = std::iter::once(first).chain(shared.then_some(second));
            for at in users {
                self.clients[at].wants.insert(session.clone());
                self.clients[at].views.insert(
                    session.clone(),
                    View {
                        actions: self.size.actions,
                        ..View::default()
                    },
                );
                let connection = self.clients[at].connection;
                let delay = self.chance.span(6 * SECOND);
                self.plan(delay, Act::Think(at, connection, session.clone()));
            }
        }
    }

    pub(super) fn is_shared(&self, session: &str) -> bool {
        self.shared.contains(session)
    }

    pub(super) fn join(&mut self, at: usize) {
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        let peer = "127.0.0.1:50000".parse().unwrap();
        let mux = Mux::new(connection, peer, self.instant(), &self.settings);
        let old = std::mem::replace(&mut self.clients[at], Client::empty());
        let wants = old.wants;
        self.note(|| format!("c{at}: joins as {connection}"));
        for session in &wants {
            let actions = old.views.get(session).map_or(0, |v| v.actions);
            self.clients[at].views.insert(
                session.clone(),
                View {
                    actions: actions.max(2),
                    again: true,
                    inherits: true,
                    ..View::default()
                },
            );
            let delay = self.chance.span(SECOND);
            self.plan(delay, Act::Think(at, connection, session.clone()));
        }
        let client = &mut self.clients[at];
        client.connection = connection;
        client.mux = Some(Box::new(mux));
        client.has_left = false;
        client.wants = wants;
        self.write_client(
            at,
            r#"{"jsonrpc":"2.0","id":"c","method":"connect","params":{}}"#,
        );
    }

    /// The client's connection ends, and with it its task.
    pub(super) fn leave(&mut self, at: usize) {
        if self.clients[at].mux.is_none() {
            return;
        }
        let connection = self.clients[at].connection;
        self.note(|| format!("c{at}: leaves ({connection})"));
        self.step(at, &[], |mux, cx, out| {
            mux.handle_client_closed(cx, out);
            0
        });
        let client = &mut self.clients[at];
        assert!(client.mux.as_ref().unwrap().is_closed());
        client.mux = None;
        client.has_left = true;
        client.due.clear();
        let links: Vec<u64> = client.sockets.values().map(|(_, link)| *link).collect();
        client.sockets.clear();
        for link in links {
            self.close_link(link);
        }
        let held = self.turns.borrow_mut().leave(connection);
        for session in held {
            self.pass_turn(&session, connection, &Parting::Unheard(Vec::new()));
        }
        self.drop_work(at, connection);
    }

    fn write_client(&mut self, at: usize, body: &str) {
        self.note(|| format!("c{at}: {body}"));
        let bytes = framed(body);
        self.step(at, &bytes, |mux, cx, out| {
            mux.handle_client(cx, &bytes, out)
        });
    }

    fn call(&mut self, at: usize, session: &str, kind: Kind, method: &str, more: &str) {
        let client = &mut self.clients[at];
        client.next_id += 1;
        let id = client.next_id;
        let due = Due {
            session: session.to_owned(),
            kind,
            since: self.now,
        };
        client.due.insert(id, due);
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{"sessionId":"{session}"{more}}}}}"#
        );
        self.write_client(at, &body);
    }

    fn view(&mut self, at: usize, session: &str) -> &mut View {
        self.clients[at].views.get_mut(session).unwrap()
    }

    fn think_later(&mut self, at: usize, session: &str, most: u64) {
        let delay = MS + self.chance.span(most);
        let connection = self.clients[at].connection;
        self.plan(delay, Act::Think(at, connection, session.to_owned()));
    }

    pub(super) fn think(&mut self, at: usize, session: &str) {
        let quiet = self.quiet;
        let view = self.view(at, session);
        match view.state {
            State::Opening | State::Leaving => return,
            State::Out => {
                let again = view.again;
                view.state = State::Opening;
                view.again = true;
                let tool = format!(r#","tools":[{{"name":"t{at}"}}]"#);
                let (kind, method) = if again && self.chance.percent(70) {
                    (Kind::Resume, "session.resume")
                } else {
                    (Kind::Create, "session.create")
                };
                return self.call(at, session, kind, method, &tool);
            }
            State::Attached if quiet || view.actions == 0 => return,
            State::Attached => view.actions -= 1,
        }
        let mux = self.clients[at].mux.as_ref();
        let is_away = mux.is_some_and(|mux| mux.has_lost(session));
        // Who has to wait for a session is more likely to leave it.
        let leaves = is_away && self.chance.percent(40);
        match self.chance.below(100) {
            _ if leaves => self.detach_from(at, session),
            0..48 => self.send(at, session, false),
            48..58 => self.send(at, session, true),
            58..68 => {
                self.send(at, session, false);
                if self.view(at, session).state == State::Attached {
                    self.send(at, session, false);
                }
            }
            68..80 => {
                self.call(at, session, Kind::Read, "session.getMessages", "");
            }
            80..88 => {
                let mode = format!("mode-{}-{}", self.now, self.order);
                let used = self.completed.contains_key(session);
                let more = format!(r#","mode":"{mode}""#);
                let kind = Kind::Mode(mode, used);
                self.call(at, session, kind, "session.mode.set", &more);
            }
            88..96 => {
                let value = format!("v{}", self.order);
                let more = format!(r#","value":"{value}""#);
                self.view(at, session).approving += 1;
                let kind = Kind::Approve(value);
                self.call(
                    at,
                    session,
                    kind,
                    "session.permissions.setApproveAll",
                    &more,
                );
            }
            _ => self.detach_from(at, session),
        }
        self.think_later(at, session, 6 * SECOND);
    }

    fn detach_from(&mut self, at: usize, session: &str) {
        let view = self.view(at, session);
        view.state = State::Leaving;
        view.doubt = true;
        self.call(at, session, Kind::Detach, "session.detach", "");
    }

    fn send(&mut self, at: usize, session: &str, wait: bool) {
        let connection = self.clients[at].connection;
        let view = self.view(at, session);
        view.serial += 1;
        let message = format!("m.{at}.{}.{:04}.{session}", connection.0, view.serial);
        let more = format!(r#","prompt":"{message}","wait":{wait}"#);
        let kind = if wait {
            Kind::SendAndWait(message)
        } else {
            Kind::Send(message)
        };
        self.call(at, session, kind, "session.send", &more);
    }

    pub(super) fn answer_tool(&mut self, at: usize, session: &str, request: &str) {
        match self.view(at, session).state {
            State::Attached => {}
            State::Out | State::Opening => return,
            State::Leaving => {
                // Should that fail, it is wanted still.
                let connection = self.clients[at].connection;
                let act = Act::Answer(at, connection, session.to_owned(), request.to_owned());
                return self.plan(300 * MS, act);
            }
        }
        let more = format!(r#","requestId":"{request}","result":"x""#);
        let method = "session.tools.handlePendingToolCall";
        self.call(at, session, Kind::Answer, method, &more);
    }

    // What it hears.

    pub(super) fn client_reads_all(&mut self, at: usize) {
        let frames = cut_frames(&mut self.clients[at].inbox);
        for body in frames {
            self.note(|| format!("c{at} hears {body}"));
            let frame = heard(&body);
            if frame.method == Some("session.event") {
                self.client_hears(at, &frame, &body);
            } else if frame.id.is_none_or(|id| id.get() != r#""c""#) {
                self.client_is_answered(at, &frame, &body);
            }
        }
    }

    fn client_hears(&mut self, at: usize, heard: &Heard<'_>, frame: &str) {
        let session = heard.params.session_id.to_owned();
        let shared = self.is_shared(&session);
        let (kind, data) = (heard.params.event.kind, &heard.params.event.data);
        let from_backend = data.link;
        let Some(view) = self.clients[at].views.get_mut(&session) else {
            panic!("c{at} hears of a session that is not its own: {frame}");
        };
        assert!(view.state != State::Out, "c{at} does not hold it: {frame}");
        if let Some(link) = from_backend {
            let (epoch, n) = (data.epoch, data.n);
            let mut next = 1;
            if let Some((l, e, last)) = view.last {
                if (l, e) == (link, epoch) {
                    next = last + 1;
                } else {
                    view.past.insert((l, e));
                    let echo = view.past.contains(&(link, epoch));
                    assert!(!echo, "c{at}: an echo: {frame}");
                }
            }
            let missed = |n| (link, session.clone(), epoch, n);
            while next < n && self.may_miss.contains(&missed(next)) {
                next += 1;
            }
            // Nor need it come at once.
            if n >= next || !self.may_miss.contains(&missed(n)) {
                assert_eq!(n, next, "c{at}: out of order, or a gap: {frame}");
                view.last = Some((link, epoch, n));
            }
        }
        match kind {
            "user.message" => {
                let message = data.message_id.to_owned();
                if !view.ended.contains(&message) {
                    view.awaiting.insert(message.clone());
                }
                assert!(!view.seen.contains(&message), "c{at}: shown twice: {frame}");
                view.seen.push(message);
            }
            "session.idle" => {
                let aborted = data.aborted;
                // Promise 7. An abort of a client, or of Taxiway for another one, drops the queue.
                let silent = |m: &&String| !view.seen.contains(*m) && !view.told.contains(*m);
                let lost = view.awaiting.iter().find(silent);
                let lost = lost.filter(|_| !aborted || from_backend.is_none());
                assert_eq!(lost, None, "c{at}: nobody said that it is lost: {frame}");
                let known = !view.seen.is_empty() || !view.awaiting.is_empty();
                let seen = std::mem::take(&mut view.seen);
                view.ended.extend(std::mem::take(&mut view.awaiting));
                view.ended.extend(seen.iter().cloned());
                let ended = data.turn.unwrap_or_default();
                let again = view.over.contains(ended);
                assert!(!again, "c{at}: a turn ends twice: {frame}");
                view.over.extend(seen.iter().cloned());
                view.over.extend(data.turn.map(str::to_owned));
                if from_backend.is_none() {
                    view.told_lost.extend(seen);
                    self.stats.lost += 1;
                    return;
                }
                assert!(
                    known || shared || view.inherits,
                    "c{at}: the end of a turn that has ended: {frame}"
                );
                view.inherits = false;
                if !aborted {
                    assert!(
                        shared || seen.iter().all(|m| !view.told_lost.contains(m)),
                        "c{at}: was told that it is lost: {frame}"
                    );
                    let connection = self.clients[at].connection.0;
                    self.stats.completed += seen.len() as u64;
                    let completed = self.completed.entry(session).or_default();
                    completed.entry(connection).or_default().extend(seen);
                }
            }
            "session.error" => view.told += &data.message,
            "external_tool.requested" => {
                let request = data.request_id.to_owned();
                let delay = self.chance.span(1500 * MS);
                let connection = self.clients[at].connection;
                self.plan(delay, Act::Answer(at, connection, session, request));
            }
            _ => {}
        }
    }

    fn client_is_answered(&mut self, at: usize, heard: &Heard<'_>, frame: &str) {
        let id = heard.id.and_then(|id| id.get().parse().ok());
        let id: u64 = id.unwrap_or_else(|| panic!("{frame}"));
        let Some(due) = self.clients[at].due.remove(&id) else {
            panic!("c{at}: answered twice, or never asked: {frame}");
        };
        self.stats.answered += 1;
        let session = due.session.clone();
        let error = heard.error.as_ref();
        assert!(error.is_some() != heard.result.is_some(), "{frame}");
        let code = error.map_or(0, |e| e.code);
        let words = error.map_or("", |e| &*e.message);
        if !matches!(due.kind, Kind::Create | Kind::Resume) {
            let lost = words.contains("not found") && !self.view(at, &session).doubt;
            assert!(!lost, "c{at}: {session} is lost: {frame}");
        }
        let ok = error.is_none();
        let has_history = self.completed.contains_key(&session);
        let shared = self.is_shared(&session);
        let now = self.now;
        let view = self.view(at, &session);
        match due.kind.clone() {
            Kind::Create | Kind::Resume if ok => {
                view.state = State::Attached;
                view.doubt = false;
                self.think_later(at, &session, 2 * SECOND);
            }
            Kind::Create | Kind::Resume => {
                view.state = State::Out;
                if words.contains("not found") {
                    assert!(
                        !has_history,
                        "c{at}: {session} had a completed turn: {frame}"
                    );
                    view.again = false;
                }
                self.think_later(at, &session, 3 * SECOND);
            }
            Kind::Detach if ok => {
                view.state = State::Out;
                view.left = Some(now);
                view.awaiting.clear();
                view.seen.clear();
                view.over.clear();
                view.approve = None;
                view.inherits = true;
                view.past.extend(view.last.take().map(|(l, e, _)| (l, e)));
                self.think_later(at, &session, 5 * SECOND);
            }
            // It may have been executed.
            Kind::Detach => {
                view.state = State::Attached;
                self.think_later(at, &session, 5 * SECOND);
            }
            Kind::Send(message) if ok => {
                let stayed = view.left.is_none_or(|left| left < due.since);
                if stayed && !view.ended.contains(&message) {
                    view.awaiting.insert(message);
                }
            }
            Kind::Read | Kind::LastRead if ok => {
                if let (Some(value), 0, false) = (&view.approve, view.approving, shared) {
                    let approve = heard.result.as_ref().and_then(|result| result.approve);
                    assert_eq!(approve, Some(value.as_str()), "c{at}: {session}");
                }
                view.last_read |= due.kind == Kind::LastRead;
            }
            Kind::LastRead => panic!("c{at}: {session} cannot be used: {frame}"),
            Kind::Mode(mode, true) if ok => {
                self.modes.entry(session).or_default().push(mode);
            }
            Kind::Approve(value) => {
                view.approving -= 1;
                view.approve = ok.then_some(value);
            }
            Kind::Send(_) | Kind::SendAndWait(_) | Kind::Read | Kind::Answer | Kind::Mode(..) => {}
        }
        let patience = 35 * SECOND;
        let late = due.since + patience < self.now && !matches!(due.kind, Kind::SendAndWait(_));
        let late = late && matches!(code, 0 | -32010);
        assert!(
            !late,
            "c{at}: answered after {} s: {frame}",
            (self.now - due.since) / SECOND
        );
    }

    /// Each client reads each of its sessions, or opens it.
    pub(super) fn use_everything(&mut self) {
        for at in 0..self.clients.len() {
            if self.clients[at].mux.is_none() {
                continue;
            }
            for session in self.clients[at].wants.clone() {
                if self.view(at, &session).state == State::Attached {
                    self.call(at, &session, Kind::LastRead, "session.getMessages", "");
                }
            }
        }
    }
}
