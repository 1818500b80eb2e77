//! Everything one simulated server knows, behind one lock, and how it speaks to its connections.
//!
//! All writing goes through here, under the lock, so the order of answers and notifications is the
//! order of the state's changes. It must not wait for anything.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::{
    event,
    misbehaviour::Misbehaviour,
    outbox::Outbox,
    session::{Session, ToolResult},
};

/// Most entries of the log behind [`super::SimServer::seen`]; the oldest go first.
const SEEN_MAX: usize = 65_536;
/// Most requests of the server that one connection may leave unanswered.
const ASKED_MAX: usize = 65_536;

/// A request of a client.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) connection: u64,
    /// The id as JSON.
    pub(super) id: String,
    pub(super) method: String,
    /// Empty if the params were no object.
    pub(super) params: Map<String, Value>,
}

impl Call {
    /// A string of the params.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.params.get(key).and_then(Value::as_str)
    }

    /// A flag of the params.
    pub(super) fn flag(&self, key: &str) -> bool {
        self.params
            .get(key)
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }
}

/// One message of a client, as [`super::SimServer::seen`] reports it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Number of the connection, counted from 1 in the order they were accepted.
    pub connection: u64,
    /// Method of the request or notification.
    pub method: String,
    /// `params.sessionId`, if it is a string.
    pub session: Option<String>,
}

/// What the server waits for from one client.
pub(super) enum Asked {
    /// A hook's verdict; `None` for an error.
    Hook(oneshot::Sender<Option<Value>>),
    /// An answer to `ask_user`: session and request id.
    Input { session: String, request: String },
    /// A provider's answer.
    Provider(oneshot::Sender<Option<Value>>),
}

/// One connection.
pub(super) struct Peer {
    pub(super) outbox: Arc<Outbox>,
    pub(super) authenticated: bool,
    last_request: u64,
    asked: HashMap<u64, Asked>,
}

/// An external tool call somebody has to answer.
pub(super) struct ToolWait {
    pub(super) session: String,
    pub(super) done: oneshot::Sender<ToolResult>,
}

/// A claimed provider. It stays claimed when its connection ends.
pub(super) struct Provider {
    pub(super) connection: u64,
    /// `sessionStatePath` of a session filesystem.
    pub(super) path: String,
}

/// See the module.
#[derive(Default)]
pub(super) struct State {
    pub(super) peers: BTreeMap<u64, Peer>,
    pub(super) sessions: HashMap<String, Session>,
    /// By request id, process-wide: an answer may name another session.
    pub(super) tool_calls: HashMap<String, ToolWait>,
    /// Model calls that the provider has to finish.
    pub(super) model_calls: HashMap<String, oneshot::Sender<()>>,
    /// Sessions that `sessions.open` holds; the `session.*` methods do not see them.
    pub(super) opened: HashSet<String>,
    pub(super) fs_provider: Option<Provider>,
    pub(super) llm_provider: Option<Provider>,
    pub(super) misbehaviours: Vec<Misbehaviour>,
    pub(super) seen: VecDeque<Seen>,
    pub(super) last_connection: u64,
    pub(super) last_epoch: u64,
}

impl State {
    /// Takes a connection in; returns its number.
    pub(super) fn join(&mut self, outbox: Arc<Outbox>, authenticated: bool) -> u64 {
        self.last_connection += 1;
        let peer = Peer {
            outbox,
            authenticated,
            last_request: 0,
            asked: HashMap::new(),
        };
        self.peers.insert(self.last_connection, peer);
        self.last_connection
    }

    /// Notes a message.
    pub(super) fn note(&mut self, connection: u64, method: &str, params: &Value) {
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        let session = params
            .get("sessionId")
            .and_then(Value::as_str)
            .map(str::to_owned);
        self.seen.push_back(Seen {
            connection,
            method: method.to_owned(),
            session,
        });
    }

    /// Queues a body for one connection, if it is still there.
    pub(super) fn push(&self, connection: u64, body: &str) {
        if let Some(peer) = self.peers.get(&connection) {
            peer.outbox.push(body);
        }
    }

    /// Answers with a result (JSON).
    pub(super) fn ok(&mut self, call: &Call, result: &str) {
        self.answer(call, &call.id, |id| event::result(id, result));
    }

    /// Answers with an error of its own code and text.
    pub(super) fn fail(&mut self, call: &Call, code: i32, text: &str) {
        self.answer(call, &call.id, |id| event::error(id, code, text));
    }

    /// Answers with the error that wraps almost every failure.
    pub(super) fn refuse(&mut self, call: &Call, text: &str) {
        let text = format!("Request {} failed with message: {text}", call.method);
        self.fail(call, -32603, &text);
    }

    fn answer(&mut self, call: &Call, id: &str, body: impl Fn(&str) -> String) {
        let Some(peer) = self.peers.get(&call.connection) else {
            return;
        };
        let ordered = self
            .misbehaviours
            .iter()
            .position(|fault| fault.concerns(&call.method));
        let Some(at) = ordered else {
            peer.outbox.push(&body(id));
            return;
        };
        match &self.misbehaviours[at] {
            Misbehaviour::Silence { .. } => return,
            Misbehaviour::Garbage { .. } => {
                peer.outbox
                    .push_raw(b"\x15\x03\x01 this is no frame\r\n\r\n{\"jsonrpc\"");
            }
            Misbehaviour::HalfFrame { .. } => {
                let mut frame = Vec::new();
                event::frame_into(&mut frame, body(id).as_bytes());
                peer.outbox.push_raw(&frame[..frame.len() / 2]);
                peer.outbox.mute();
            }
            Misbehaviour::WrongId { .. } => peer.outbox.push(&body("987654321")),
        }
        self.misbehaviours.remove(at);
    }

    /// Tells every authenticated connection about a session's life.
    pub(super) fn lifecycle(&self, kind: &str, session: &str) {
        let metadata = self
            .sessions
            .get(session)
            .filter(|_| kind != "session.deleted");
        let metadata =
            metadata.map(|session| (session.start_time.as_str(), session.modified.as_str()));
        let body = event::lifecycle(kind, session, metadata);
        for peer in self.peers.values().filter(|peer| peer.authenticated) {
            peer.outbox.push(&body);
        }
    }

    /// Sends an event to everyone attached and, if it is kept, adds it to the history and tells
    /// everybody that the session changed. `None`: the session is not open.
    pub(super) fn emit(
        &mut self,
        id: &str,
        event_id: &str,
        kind: &str,
        data: &str,
        life: event::Life,
    ) -> Option<()> {
        let session = self.sessions.get_mut(id)?;
        let time = event::now();
        let parent = session.last_event.as_deref();
        let text = event::event(kind, data, life, event_id, &time, parent);
        let body = event::session_event(id, &text);
        for attachment in &session.attached {
            if let Some(peer) = self.peers.get(&attachment.connection) {
                peer.outbox.push(&body);
            }
        }
        if life == event::Life::Kept {
            session.modified = time;
            session.last_event = Some(event_id.to_owned());
            session.history.push_back(text);
            session.unflushed += 1;
            while session.history.len() > super::home::EVENTS_MAX {
                session.history.pop_front();
            }
            session.unflushed = session.unflushed.min(session.history.len());
            self.lifecycle("session.updated", id);
        }
        Some(())
    }

    /// Asks a client something. `false`: it cannot be asked.
    pub(super) fn ask(
        &mut self,
        connection: u64,
        method: &str,
        params: &str,
        asked: Asked,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(&connection) else {
            return false;
        };
        if peer.asked.len() >= ASKED_MAX {
            return false;
        }
        peer.last_request += 1;
        peer.asked.insert(peer.last_request, asked);
        peer.outbox
            .push(&event::request(peer.last_request, method, params));
        true
    }

    /// What the server asked `connection` under this id, once.
    pub(super) fn asked(&mut self, connection: u64, id: u64) -> Option<Asked> {
        self.peers.get_mut(&connection)?.asked.remove(&id)
    }

    /// Connections attached to a session that want to be asked for `flag`.
    pub(super) fn listeners(
        &self,
        session: &str,
        wants: impl Fn(&super::session::Attachment) -> bool,
    ) -> Vec<u64> {
        let Some(session) = self.sessions.get(session) else {
            return Vec::new();
        };
        session
            .attached
            .iter()
            .filter(|at| wants(at))
            .map(|at| at.connection)
            .collect()
    }
}
