//! A multiplexer with everything around it played: clock, shell, client, backends that speak
//! frames. Each step is one handler followed by a full drain, then every invariant is checked.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};

use super::super::{
    Context, CreateExisting, Dest, Locate, Located, Mux, Note, Outbox, Output, Serve, Served,
    Settings, SlotId, WallClock,
};
use crate::core::{
    access::Relation,
    event::PlacementReason,
    frame::FrameLimits,
    id::ConnectionId,
    locate::Refusal,
    reply::ProxyError,
    snapshot::Snapshot,
    testing,
    turnlock::{Locks, Parting, Terms},
};

/// What the shell does by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shell {
    /// Locates by `homes`, connects, and the backend answers the handshake.
    Auto,
    /// Everything waits for the test.
    Manual,
}

/// One upstream socket, as its backend sees it.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) backend: String,
    unread: Vec<u8>,
    /// Bytes that the backend has written and the machine has not used up yet.
    input: Vec<u8>,
    /// They wait for a frame of another backend to have passed.
    waits: bool,
    /// Complete frames that the backend has received, handshake excluded.
    pub(super) inbox: Vec<String>,
    /// Our `connect`, once it has come.
    pub(super) greeting: Option<String>,
}

pub(super) struct Rig {
    pub(super) mux: Mux,
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) settings: Settings,
    pub(super) snapshot: Snapshot,
    pub(super) shell: Shell,
    /// Where sessions are located; others at `a`.
    pub(super) homes: BTreeMap<String, String>,
    /// Sessions that have history on disk.
    pub(super) history: BTreeSet<String>,
    /// Sessions that somebody has open already.
    pub(super) open_there: BTreeSet<String>,
    /// Sessions whose client has left in a turn, and its connection.
    pub(super) parked: BTreeMap<String, ConnectionId>,
    /// How the client stands to whatever it asks for.
    pub(super) relation: Relation,
    /// What was said to other connections.
    pub(super) told: Vec<(ConnectionId, Note)>,
    /// Backends that refuse connections.
    pub(super) down: BTreeSet<String>,
    /// Backends that accept and say nothing.
    pub(super) mute: BTreeSet<String>,
    out: Outbox,
    client_rest: Vec<u8>,
    client_input: Vec<u8>,
    inbox: Vec<String>,
    pub(super) sockets: BTreeMap<usize, (SlotId, Socket)>,
    pub(super) connects: Vec<(SlotId, String)>,
    pub(super) locates: Vec<Locate>,
    pub(super) serves: Vec<Serve>,
    /// Tickets of those that nobody waits for any more.
    pub(super) unserved: Vec<u64>,
    /// Everything else that came out.
    pub(super) log: Vec<Output>,
    /// The directory's view: sessions for which this connection is counted, and where.
    pub(super) claims: BTreeMap<String, String>,
    pub(super) closed: Option<&'static str>,
    /// Whose turn it is.
    pub(super) turns: Rc<RefCell<Locks>>,
    /// Connections whose turn it has become.
    pub(super) granted: Vec<ConnectionId>,
}

pub(super) fn settings() -> Settings {
    Settings {
        frame: FrameLimits {
            header: 8 * 1024,
            frame: 1024 * 1024,
        },
        cut_through_min: 1024 * 1024,
        frame_timeout: Duration::from_secs(30),
        handshake_timeout: Duration::from_secs(10),
        calls: 64,
        sessions: 64,
        create_existing: CreateExisting::Resume,
        session_params: 0,
        home_wait: Duration::from_secs(30),
        detach_grace: None,
        turn_stall: None,
        ends_stalled: false,
        turns: Terms {
            max: None,
            ..Terms::default()
        },
        revoke_grace: Duration::from_secs(60),
        last_turns: Duration::from_secs(600),
        caps: crate::core::identity::Caps::default(),
        access: Arc::default(),
    }
}

pub(super) fn framed(body: &str) -> Vec<u8> {
    format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(super) fn request(id: impl Into<Value>, method: &str, params: Value) -> String {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": params}).to_string()
}

pub(super) fn notification(method: &str, params: Value) -> String {
    json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string()
}

pub(super) fn result(id: impl Into<Value>, result: Value) -> String {
    // As the CLI writes it: id before result.
    format!(
        r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#,
        id.into()
    )
}

pub(super) fn failure(id: impl Into<Value>, message: &str) -> String {
    let error = json!({"code": -32603, "message": message});
    format!(r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#, id.into())
}

pub(super) fn event(session: &str, kind: &str, data: Value) -> String {
    format!(
        concat!(
            r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"sessionId":"{}","#,
            r#""event":{{"type":"{}","data":{},"id":"e"}}}}}}"#
        ),
        session, kind, data
    )
}

pub(super) fn not_found(id: impl Into<Value>, method: &str, session: &str) -> String {
    let words =
        format!("Request {method} failed with message: Session not found for sessionId: {session}");
    failure(id, &words)
}

/// Cuts whole frames off `bytes`; each must have the one header that every reader takes.
pub(super) fn cut_frames(bytes: &mut Vec<u8>) -> Vec<String> {
    let mut frames = Vec::new();
    while let Some(blank) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
        let header = std::str::from_utf8(&bytes[..blank]).unwrap();
        let digits = header.strip_prefix("Content-Length: ").unwrap();
        let length: usize = digits.parse().unwrap();
        assert_eq!(digits, length.to_string());
        if bytes.len() < blank + 4 + length {
            break;
        }
        let body = bytes[blank + 4..blank + 4 + length].to_vec();
        bytes.drain(..blank + 4 + length);
        frames.push(String::from_utf8(body).unwrap());
    }
    frames
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(Shell::Auto, settings())
    }

    pub(super) fn manual() -> Self {
        Self::with(Shell::Manual, settings())
    }

    pub(super) fn with(shell: Shell, settings: Settings) -> Self {
        let now = Instant::now();
        let peer = "127.0.0.1:50000".parse().unwrap();
        let names = ["a", "b", "c"];
        Self {
            mux: Mux::new(ConnectionId(7), peer, now, &settings),
            now,
            start: now,
            settings,
            snapshot: testing::snapshot(names.map(|n| testing::backend(n, 1)).into()),
            shell,
            homes: BTreeMap::new(),
            history: BTreeSet::new(),
            open_there: BTreeSet::new(),
            parked: BTreeMap::new(),
            relation: Relation::Anybody,
            told: Vec::new(),
            down: BTreeSet::new(),
            mute: BTreeSet::new(),
            out: Outbox::new(),
            client_rest: Vec::new(),
            client_input: Vec::new(),
            inbox: Vec::new(),
            sockets: BTreeMap::new(),
            connects: Vec::new(),
            locates: Vec::new(),
            serves: Vec::new(),
            unserved: Vec::new(),
            log: Vec::new(),
            claims: BTreeMap::new(),
            closed: None,
            turns: Rc::default(),
            granted: Vec::new(),
        }
    }

    // Steps.

    /// One handler, a full drain, and what the shell does by itself.
    pub(super) fn step(
        &mut self,
        input: &[u8],
        handle: impl FnOnce(&mut Mux, &Context<'_>, &mut Outbox) -> usize,
    ) -> usize {
        let cx = Context {
            now: self.now,
            clock: WallClock {
                read: self.start,
                said: SystemTime::UNIX_EPOCH,
            },
            pool: &self.snapshot,
            settings: &self.settings,
            commons: &*self.turns,
        };
        let used = handle(&mut self.mux, &cx, &mut self.out);
        self.drain(input);
        if self.shell == Shell::Auto {
            self.serve_shell();
        }
        used
    }

    fn drain(&mut self, input: &[u8]) {
        for (dest, bytes) in self.out.iter(input) {
            match dest {
                Dest::Client => self.client_rest.extend_from_slice(bytes),
                Dest::Upstream(slot) => {
                    let (_, socket) = self
                        .sockets
                        .get_mut(&slot.index())
                        .filter(|(at, _)| *at == slot)
                        .expect("written only to sockets that are there");
                    socket.unread.extend_from_slice(bytes);
                    for frame in cut_frames(&mut socket.unread) {
                        if socket.greeting.is_some() {
                            socket.inbox.push(frame);
                        } else {
                            assert!(frame.contains(r#""method":"connect""#), "{frame}");
                            socket.greeting = Some(frame);
                        }
                    }
                }
            }
        }
        self.out.clear();
        self.inbox.extend(cut_frames(&mut self.client_rest));
        while let Some(output) = self.mux.poll_output() {
            assert!(
                self.closed.is_none(),
                "nothing comes after Close: {output:?}"
            );
            match output {
                Output::Connect { slot, backend } => {
                    self.connects.push((slot, backend.to_string()));
                }
                Output::CloseUpstream { slot } => {
                    self.sockets.retain(|_, (at, _)| *at != slot);
                    self.connects.retain(|(at, _)| *at != slot);
                }
                Output::Locate(question) => self.locates.push(question),
                Output::Tell { to, note } => self.told.push((to, note)),
                Output::Serve(call) => self.serves.push(call),
                Output::Unserve(ticket) => self.unserved.push(ticket),
                Output::Close { reason } => self.closed = Some(reason),
                Output::TurnOver { session, parting } => {
                    // Of what it has not asked for nobody else hears.
                    if !matches!(parting, Parting::Unasked(_)) {
                        let (id, mut turns) = (self.mux.id(), self.turns.borrow_mut());
                        let next = turns.release(self.now, session.as_str(), id);
                        self.granted.extend(next);
                    }
                    self.log.push(Output::TurnOver { session, parting });
                }
                Output::TurnUnwanted(session) => {
                    self.turns
                        .borrow_mut()
                        .withdraw(session.as_str(), self.mux.id());
                    self.log.push(Output::TurnUnwanted(session));
                }
                Output::Release(session) => {
                    // Outputs are carried out in order: a claim made after this one stays.
                    self.claims.remove(session.as_str());
                    self.log.push(Output::Release(session));
                }
                Output::Adopt { session, backend } => {
                    self.claims.insert(session.to_string(), backend.to_string());
                    self.log.push(Output::Adopt { session, backend });
                }
                Output::Closed { session, backend } => {
                    if self
                        .claims
                        .get(session.as_str())
                        .is_some_and(|at| *at == backend.as_str())
                    {
                        self.claims.remove(session.as_str());
                    }
                    self.log.push(Output::Closed { session, backend });
                }
                Output::Deleted(session) => {
                    self.claims.remove(session.as_str());
                    self.log.push(Output::Deleted(session));
                }
                other => self.log.push(other),
            }
        }
        self.check();
    }

    fn check(&self) {
        self.mux.check_invariants();
        // All else would be read as a part of the frame that passes.
        let may_break = self.mux.passing().is_some() || !self.mux.is_heard();
        assert!(
            self.client_rest.is_empty() || may_break,
            "only whole frames leave"
        );
        for (_, socket) in self.sockets.values() {
            assert!(socket.unread.is_empty(), "only whole frames leave");
        }
        // The directory counts this connection exactly where the machine thinks so.
        let claimed: BTreeSet<&str> = self
            .mux
            .entries
            .iter()
            .filter(|(_, entry)| entry.claimed)
            .map(|(_, entry)| entry.id.as_str())
            .collect();
        let counted: BTreeSet<&str> = self.claims.keys().map(String::as_str).collect();
        assert_eq!(claimed, counted, "claims here and in the directory");
    }

    fn serve_shell(&mut self) {
        loop {
            if !self.locates.is_empty() {
                let question = self.locates.remove(0);
                self.answer_by_homes(question);
            } else if let Some((slot, backend)) = self.connects.pop() {
                if self.down.contains(&backend) {
                    self.step(&[], |mux, cx, out| {
                        mux.handle_upstream_closed(cx, slot, "refused", out);
                        0
                    });
                } else {
                    self.accept(slot, &backend);
                    if !self.mute.contains(&backend) {
                        self.greet(&backend);
                    }
                }
            } else {
                break;
            }
        }
    }

    fn answer_by_homes(&mut self, question: Locate) {
        let session = question.session.as_ref().map(ToString::to_string);
        let home = session
            .as_ref()
            .and_then(|s| self.homes.get(s))
            .map_or("a", |home| home);
        let names = [home, "a", "b", "c"];
        let avoided = |name: &&&str| question.avoid.iter().all(|avoid| avoid.as_str() != **name);
        match names.iter().find(avoided).map(|name| (*name).to_owned()) {
            Some(backend) => self.locate(&question, &backend),
            None => self.refuse_locate(&question),
        }
    }

    /// Answers a question: there.
    pub(super) fn locate(&mut self, question: &Locate, backend: &str) {
        let session = question.session.as_ref().map(ToString::to_string);
        if let (true, Some(session)) = (question.purpose.attaches(), &session) {
            self.claims.insert(session.clone(), backend.to_owned());
        }
        let located = Located {
            backend: backend.into(),
            reason: match &session {
                Some(session) if self.open_there.contains(session) => PlacementReason::Owner,
                _ => PlacementReason::Hash,
            },
            parked: session.as_ref().and_then(|s| self.parked.get(s)).copied(),
            relation: self.relation,
            has_history: session.is_some_and(|s| self.history.contains(&s)),
        };
        let ticket = question.ticket;
        self.step(&[], |mux, cx, out| {
            mux.handle_located(cx, ticket, Ok(located), out);
            0
        });
    }

    /// Answers a question: nowhere.
    pub(super) fn refuse_locate(&mut self, question: &Locate) {
        let ticket = question.ticket;
        let session = question.session.clone();
        self.step(&[], |mux, cx, out| {
            let error = ProxyError::NotLocated {
                session,
                why: Refusal::NoBackend,
            };
            mux.handle_located(cx, ticket, Err(error), out);
            0
        });
    }

    /// The only question that is out.
    pub(super) fn asked(&mut self) -> Locate {
        assert_eq!(self.locates.len(), 1, "{:?}", self.locates);
        self.locates.remove(0)
    }

    /// The only connect that is out; the test decides.
    pub(super) fn connecting(&mut self) -> (SlotId, String) {
        assert_eq!(self.connects.len(), 1, "{:?}", self.connects);
        self.connects.remove(0)
    }

    /// A backend accepts the connection.
    pub(super) fn accept(&mut self, slot: SlotId, backend: &str) {
        let socket = Socket {
            backend: backend.to_owned(),
            unread: Vec::new(),
            input: Vec::new(),
            waits: false,
            inbox: Vec::new(),
            greeting: None,
        };
        self.sockets.insert(slot.index(), (slot, socket));
        self.step(&[], |mux, cx, out| {
            mux.handle_upstream_connected(cx, slot, out);
            0
        });
    }

    /// A backend answers our `connect`.
    pub(super) fn greet(&mut self, backend: &str) {
        let answer = json!({"ok": true, "protocolVersion": 3, "version": "1.0.102"});
        self.backend(backend, &result(0, answer));
    }

    /// The client writes a frame.
    pub(super) fn client(&mut self, body: &str) {
        self.client_bytes(&framed(body));
    }

    /// The client writes bytes.
    pub(super) fn client_bytes(&mut self, bytes: &[u8]) {
        self.client_input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.client_input);
        let used = self.step(&input, |mux, cx, out| mux.handle_client(cx, &input, out));
        let mut rest = input[used..].to_vec();
        rest.append(&mut self.client_input);
        self.client_input = rest;
    }

    /// A backend writes a frame.
    pub(super) fn backend(&mut self, backend: &str, body: &str) {
        self.backend_bytes(backend, &framed(body));
    }

    /// A backend writes bytes.
    pub(super) fn backend_bytes(&mut self, backend: &str, bytes: &[u8]) {
        let slot = self.slot(backend);
        let (_, socket) = self.sockets.get_mut(&slot.index()).unwrap();
        let mut input = std::mem::take(&mut socket.input);
        input.extend_from_slice(bytes);
        let used = self.step(&input, |mux, cx, out| {
            mux.handle_upstream(cx, slot, &input, out)
        });
        if let Some((at, socket)) = self.sockets.get_mut(&slot.index())
            && *at == slot
        {
            socket.input = input[used..].to_vec();
            socket.waits = self.mux.passing().is_some_and(|passing| passing != slot);
        }
        // What was not read while a frame of another backend passed.
        let mut sockets = self.sockets.values_mut().map(|(_, socket)| socket);
        if self.mux.passing().is_none()
            && let Some(socket) = sockets.find(|socket| socket.waits)
        {
            socket.waits = false;
            let backend = socket.backend.clone();
            self.backend_bytes(&backend, &[]);
        }
    }

    pub(super) fn slot(&self, backend: &str) -> SlotId {
        self.try_slot(backend)
            .unwrap_or_else(|| panic!("no connection to {backend}"))
    }

    pub(super) fn try_slot(&self, backend: &str) -> Option<SlotId> {
        self.sockets
            .values()
            .find(|(_, s)| s.backend == backend)
            .map(|(slot, _)| *slot)
    }

    /// A backend's connection ends.
    pub(super) fn lose(&mut self, backend: &str) {
        let slot = self.slot(backend);
        self.sockets.remove(&slot.index());
        self.step(&[], |mux, cx, out| {
            mux.handle_upstream_closed(cx, slot, "lost", out);
            0
        });
    }

    pub(super) fn served(&mut self, ticket: u64, served: &Served) {
        self.step(&[], |mux, cx, out| {
            mux.handle_served(cx, ticket, served, out);
            0
        });
    }

    pub(super) fn hang_up(&mut self) {
        self.step(&[], |mux, cx, out| {
            mux.handle_client_closed(cx, out);
            0
        });
    }

    pub(super) fn drain_client(&mut self) {
        self.step(&[], |mux, cx, out| {
            mux.handle_drain(cx, out);
            0
        });
    }

    pub(super) fn shut_down(&mut self) {
        self.step(&[], |mux, cx, out| {
            mux.handle_shutdown(cx, out);
            0
        });
    }

    /// Time passes; each timer that comes due is handled when it is due.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1000 {
            match self.mux.poll_timeout(&self.settings) {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    self.step(&[], |mux, cx, out| {
                        mux.handle_timeout(cx, out);
                        0
                    });
                }
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("a timer that is handled stays due");
    }

    // What came of it.

    /// Raw bodies that the client has received since the last call.
    pub(super) fn said_raw(&mut self) -> Vec<String> {
        std::mem::take(&mut self.inbox)
    }

    /// The same, read.
    pub(super) fn said(&mut self) -> Vec<Value> {
        self.said_raw()
            .iter()
            .map(|body| serde_json::from_str(body).unwrap())
            .collect()
    }

    /// The beginning of a frame that the client has received, and not its end.
    pub(super) fn said_in_part(&self) -> &[u8] {
        &self.client_rest
    }

    /// The only frame that the client has received since.
    #[track_caller]
    pub(super) fn said_one(&mut self) -> Value {
        let said = self.said();
        assert_eq!(said.len(), 1, "{said:#?}");
        said.into_iter().next().unwrap()
    }

    /// The only frame that the client has received since, which is an error: its id and code.
    #[track_caller]
    pub(super) fn error(&mut self) -> (Value, i64) {
        let said = self.said_one();
        (
            said["id"].clone(),
            said["error"]["code"]
                .as_i64()
                .unwrap_or_else(|| panic!("{said}")),
        )
    }

    #[track_caller]
    pub(super) fn silent(&mut self) {
        let said = self.said_raw();
        assert!(said.is_empty(), "{said:?}");
    }

    /// Raw bodies that a backend has received since the last call.
    pub(super) fn heard_raw(&mut self, backend: &str) -> Vec<String> {
        let Some(slot) = self.try_slot(backend) else {
            return Vec::new();
        };
        std::mem::take(&mut self.sockets.get_mut(&slot.index()).unwrap().1.inbox)
    }

    /// The same, read.
    pub(super) fn heard(&mut self, backend: &str) -> Vec<Value> {
        self.heard_raw(backend)
            .iter()
            .map(|body| serde_json::from_str(body).unwrap())
            .collect()
    }

    /// Ids of the requests that a backend has received since the last call.
    pub(super) fn heard_ids(&mut self, backend: &str) -> Vec<Value> {
        self.heard(backend)
            .iter()
            .map(|frame| frame["id"].clone())
            .collect()
    }

    /// Opens a session there, and forgets what was said.
    pub(super) fn open(&mut self, session: &str, backend: &str) {
        self.homes.insert(session.to_owned(), backend.to_owned());
        let id = format!("open-{session}");
        self.client(&request(
            id.as_str(),
            "session.create",
            json!({"sessionId": session}),
        ));
        let heard = self.heard(backend);
        assert_eq!(heard.last().unwrap()["id"], json!(id));
        self.backend(backend, &result(id.as_str(), json!({"sessionId": session})));
        assert_eq!(self.said_one()["result"]["sessionId"], json!(session));
        self.log.clear();
    }

    /// A plain send.
    pub(super) fn send(&mut self, id: i64, session: &str) {
        self.client(&request(
            id,
            "session.send",
            json!({"sessionId": session, "prompt": "p"}),
        ));
    }

    /// A send that is answered at the end of its turn.
    pub(super) fn send_and_wait(&mut self, id: i64, session: &str) {
        let params = json!({"sessionId": session, "prompt": "p", "wait": true});
        self.client(&request(id, "session.send", params));
    }

    /// The log's entries that `pick` knows, and forgets the log.
    pub(super) fn logged<T>(&mut self, pick: impl Fn(&Output) -> Option<T>) -> Vec<T> {
        std::mem::take(&mut self.log)
            .iter()
            .filter_map(pick)
            .collect()
    }
}
