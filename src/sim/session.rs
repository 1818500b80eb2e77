//! One open session: who is attached, what it remembers, what it waits for.
//!
//! Plain state: it writes to nobody. [`super::state`] sends its events, [`super::turn`] runs its
//! turns.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::home::Record;

/// Most sends that wait for one session.
pub(super) const QUEUE_MAX: usize = 4_096;

/// One connection's hold on a session.
#[derive(Clone)]
pub(super) struct Attachment {
    pub(super) connection: u64,
    pub(super) hooks: bool,
    pub(super) user_input: bool,
    pub(super) permission: bool,
}

/// A tool that a client brought.
#[derive(Clone)]
pub(super) struct Tool {
    pub(super) connection: u64,
    pub(super) description: String,
    /// As the client gave it.
    pub(super) skip_permission: Option<bool>,
}

/// One accepted `session.send`.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) message: String,
    pub(super) prompt: String,
    /// `idle`, `queued` or `steering`: how `user.message` will say it came.
    pub(super) delivery: &'static str,
}

/// Why a running turn was told to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TurnState {
    Running,
    Aborted,
}

/// The busy period of a session, from the first send to `session.idle`.
pub(super) struct Busy {
    pub(super) cancel: CancellationToken,
    pub(super) state: TurnState,
    /// The model round that has started and not ended.
    pub(super) round: Option<usize>,
}

/// A `wait:true` send, answered at `session.idle`.
pub(super) struct Waiter {
    pub(super) call: super::state::Call,
    pub(super) message: String,
}

/// A permission somebody has to decide.
pub(super) struct Permission {
    pub(super) id: String,
    /// As `session.permissions.pendingRequests` shows it: JSON.
    pub(super) request: String,
    pub(super) decided: oneshot::Sender<Decision>,
}

/// How a permission was decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    Approved,
    Rejected,
}

/// What a tool said, or the words of its failure.
pub(super) type ToolResult = Result<String, String>;

/// A session that is open on this server.
pub(super) struct Session {
    pub(super) id: String,
    /// Told apart from an earlier opening under the same id.
    pub(super) epoch: u64,
    pub(super) start_time: String,
    pub(super) modified: String,
    pub(super) attached: Vec<Attachment>,
    pub(super) tools: HashMap<String, Tool>,
    pub(super) mode: String,
    pub(super) model: Option<String>,
    pub(super) name: Option<String>,
    pub(super) summary: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    /// Kept events this opening knows; the last `unflushed` are not on disk yet.
    pub(super) history: VecDeque<String>,
    pub(super) unflushed: usize,
    /// Id of the newest kept event.
    pub(super) last_event: Option<String>,
    /// Whether the log exists, or will at the next flush.
    pub(super) has_turn: bool,
    /// No turn has run since it was opened.
    pub(super) fresh: bool,
    /// A flush is already on its way.
    pub(super) flush_due: bool,
    pub(super) queue: VecDeque<Sent>,
    pub(super) steering: VecDeque<Sent>,
    pub(super) busy: Option<Busy>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) permissions: Vec<Permission>,
    /// Answers to `ask_user`, by request id.
    pub(super) inputs: HashMap<String, oneshot::Sender<String>>,
    pub(super) approve_all: bool,
    /// Handles given out by `registerInterest`.
    pub(super) interests: u64,
}

impl Session {
    /// A new, empty session.
    pub(super) fn new(id: &str, epoch: u64, start_time: String) -> Self {
        Self {
            id: id.to_owned(),
            epoch,
            modified: start_time.clone(),
            start_time,
            attached: Vec::new(),
            tools: HashMap::new(),
            mode: "interactive".to_owned(),
            model: None,
            name: None,
            summary: None,
            metadata: BTreeMap::new(),
            history: VecDeque::new(),
            unflushed: 0,
            last_event: None,
            has_turn: false,
            fresh: true,
            flush_due: false,
            queue: VecDeque::new(),
            steering: VecDeque::new(),
            busy: None,
            waiters: Vec::new(),
            permissions: Vec::new(),
            inputs: HashMap::new(),
            approve_all: false,
            interests: 0,
        }
    }

    /// A session read back from disk.
    pub(super) fn restored(id: &str, epoch: u64, record: &Record) -> Self {
        let mut session = Self::new(id, epoch, record.start_time.clone());
        session.modified.clone_from(&record.modified);
        session.mode.clone_from(&record.mode);
        session.model.clone_from(&record.model);
        session.name.clone_from(&record.name);
        session.summary = Some(record.summary.clone());
        session.metadata.clone_from(&record.metadata);
        session.history.clone_from(&record.events);
        session.last_event = record.events.back().and_then(|event| {
            let event: Value = serde_json::from_str(event).ok()?;
            Some(event.get("id")?.as_str()?.to_owned())
        });
        session.has_turn = true;
        session
    }

    /// Attaches a connection, or renews its attachment. `Err`: the name of a tool that another
    /// connection has registered.
    pub(super) fn attach(
        &mut self,
        connection: u64,
        params: &Map<String, Value>,
    ) -> Result<(), String> {
        let tools = params.get("tools").and_then(Value::as_array);
        let tools: Vec<_> = tools
            .into_iter()
            .flatten()
            .filter_map(tool(connection))
            .collect();
        for (name, _) in &tools {
            if self
                .tools
                .get(name)
                .is_some_and(|tool| tool.connection != connection)
            {
                return Err(name.clone());
            }
        }
        self.tools.retain(|_, tool| tool.connection != connection);
        self.tools.extend(tools);
        let flag = |key| params.get(key).and_then(Value::as_bool).unwrap_or(false);
        let attachment = Attachment {
            connection,
            hooks: flag("hooks"),
            user_input: flag("requestUserInput"),
            permission: flag("requestPermission"),
        };
        self.attached.retain(|other| other.connection != connection);
        self.attached.push(attachment);
        if let Some(model) = params.get("model").and_then(Value::as_str) {
            self.model = Some(model.to_owned());
        }
        Ok(())
    }

    /// Takes a connection off; says whether it was attached.
    pub(super) fn detach(&mut self, connection: u64) -> bool {
        let before = self.attached.len();
        self.attached.retain(|other| other.connection != connection);
        self.tools.retain(|_, tool| tool.connection != connection);
        before != self.attached.len()
    }

    /// Whether `connection` is attached, and nobody else.
    pub(super) fn is_last(&self, connection: u64) -> bool {
        matches!(&self.attached[..], [only] if only.connection == connection)
    }

    /// The result of `session.create` and `session.resume`.
    pub(super) fn opened_json(&self) -> String {
        let model = self.model.as_ref().map_or_else(String::new, |model| {
            format!(r#""modelId":{}"#, super::event::quoted(model))
        });
        let Self {
            id,
            start_time,
            mode,
            ..
        } = self;
        format!(
            r#"{{"sessionId":"{id}","nativeSessionId":"{id}","startTime":"{start_time}","isRemote":false,"mode":"{mode}","workspacePath":"{root}/session-state/{id}","capabilities":{{"ui":{{"elicitation":false,"mcpApps":false,"canvases":false}},"extensions":false}},"modelState":{{{model}}}}}"#,
            root = super::server::ROOT,
        )
    }
}

fn tool(connection: u64) -> impl Fn(&Value) -> Option<(String, Tool)> {
    move |tool| {
        let text = |key| tool.get(key).and_then(Value::as_str);
        let skip = tool.get("skipPermission").and_then(Value::as_bool);
        let entry = Tool {
            connection,
            description: text("description").unwrap_or_default().to_owned(),
            skip_permission: skip,
        };
        Some((text("name")?.to_owned(), entry))
    }
}
