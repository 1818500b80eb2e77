//! What must hold: after each step, and at the end.

use super::{
    World,
    cli::Server,
    client::State,
    json::Call,
    session::{Line, Open, What},
};
use crate::core::id::{BackendName, ConnectionId};

/// Methods that are work for a session, hence its owner's alone.
const WORK: &[&str] = &[
    "session.create",
    "session.resume",
    "session.send",
    "session.abort",
    "session.mode.set",
    "session.permissions.setApproveAll",
    "session.tools.handlePendingToolCall",
];

impl World {
    fn owner(&self, session: &str) -> Option<BackendName> {
        self.directory.known(self.instant(), session).owner
    }

    /// A machine writes a frame to a backend: work for a session goes to its owner only, and sends
    /// in the order written.
    pub(super) fn check_written(&mut self, at: usize, link: u64, call: &Call) {
        let (method, session) = (call.method.as_str(), call.session.as_str());
        if !WORK.contains(&method) {
            return;
        }
        let backend = self.servers[self.links[&link].server].name.clone();
        let owner = self.owner(session);
        let opens = matches!(method, "session.create" | "session.resume");
        // Work behind a detach goes where it was; nobody has it open there.
        let fine = owner.as_ref().map_or(!opens, |o| o.as_str() == backend);
        assert!(
            fine,
            "c{at} sends work to {backend}, but the owner is {owner:?}: {call:?}"
        );
        if method == "session.send" {
            let message = call.prompt.clone();
            let key = (self.clients[at].connection.0, session.to_owned());
            let last = self.last_send.get(&key);
            assert!(
                last.is_none_or(|last| *last <= message),
                "c{at}: sends out of order: {message} after {last:?}"
            );
            self.last_send.insert(key, message);
        }
    }

    /// A process writes to the log: only the owner may, and one that was given up and has not been
    /// cleaned yet. Whether it is that.
    pub(super) fn check_log(&self, server: usize, session: &str, lines: &[What]) -> bool {
        let name = self.servers[server].name.as_str().into();
        let moved = self.directory.moved_from(&name);
        if moved.iter().any(|s| s.as_str() == session) {
            return true;
        }
        if self.snapshot.mode == crate::core::snapshot::Mode::SharedStorage
            && let Some(owner) = self.owner(session)
        {
            assert_eq!(owner, name, "two processes write {session}: {lines:?}");
        }
        false
    }

    /// After each step: what it may have changed.
    pub(super) fn check_touched(&mut self) {
        let news = self.directory.take_news(usize::MAX);
        let mut touched = std::mem::take(&mut self.touched);
        touched.extend(news.iter().map(ToString::to_string));
        touched.sort_unstable();
        touched.dedup();
        for session in touched.drain(..) {
            for server in &self.servers {
                let process = server.process.as_ref();
                if let Some(open) = process.and_then(|p| p.sessions.get(&session)) {
                    self.check_owner(server, &session, open);
                }
            }
            self.check_holders(&session);
        }
        self.touched = touched;
        while let Some(at) = self.stepped.pop_first() {
            self.check_counted(at);
        }
    }

    /// After some steps, and at the end.
    pub(super) fn check(&self) {
        self.directory.check_invariants();
        self.check_owners();
        self.check_claims();
    }

    /// Who has a session open with a living connection of ours is its owner.
    fn check_owners(&self) {
        for server in &self.servers {
            for (session, open) in server.process.iter().flat_map(|p| &p.sessions) {
                self.check_owner(server, session, open);
            }
        }
    }

    fn check_owner(&self, server: &Server, session: &str, open: &Open) {
        let ours = |link: &u64| self.links.get(link).is_some_and(|l| l.here && l.there);
        if !open.attached.keys().any(ours) {
            return;
        }
        let owner = self.owner(session);
        if owner.as_ref().map(BackendName::as_str) == Some(server.name.as_str()) {
            return;
        }
        // Its own client may have heard of the end before.
        let name = server.name.as_str().into();
        let moved = self.directory.moved_from(&name);
        assert!(
            owner.is_none() || moved.iter().any(|s| s.as_str() == session),
            "{session} is open at {}, and its owner is {owner:?}",
            server.name
        );
    }

    /// The directory counts a connection exactly where its machine thinks so.
    fn check_claims(&self) {
        for at in 0..self.clients.len() {
            self.check_counted(at);
            for session in &self.clients[at].wants {
                self.check_holders(session);
            }
        }
    }

    /// The machine's claims are in the directory.
    fn check_counted(&self, at: usize) {
        let client = &self.clients[at];
        let Some(mux) = &client.mux else { return };
        for (_, entry) in mux.entries.iter().filter(|(_, e)| e.claimed) {
            let holders = self.directory.holders(entry.id.as_str());
            assert!(
                holders.contains(&client.connection),
                "c{at} is not counted for {}",
                entry.id
            );
        }
    }

    /// The directory's claims are a machine's, or of one that is being answered.
    fn check_holders(&self, session: &str) {
        for holder in self.directory.holders(session) {
            let claims = |holder: ConnectionId| {
                let client = self.clients.iter().find(|c| c.is(holder))?;
                let mux = client.mux.as_ref()?;
                let key = mux.by_session.get(session)?;
                Some(mux.entries[*key].claimed)
            };
            assert!(
                claims(holder) == Some(true) || self.claims_soon(session, holder),
                "{session}: {holder} is counted for nothing"
            );
        }
    }

    /// Faults have ended long ago: nothing waits any more.
    pub(super) fn check_rest(&self) {
        assert!(self.searches.is_empty(), "searches: {:#?}", self.searches);
        let turns = self.turns.borrow();
        assert!(turns.is_empty(), "turns: {turns:#?}");
        assert!(self.doors_are_free(), "permits: {:#?}", self.doors);
        for backend in &self.snapshot.backends {
            assert!(
                backend.is_usable() && !backend.released,
                "{} is not back",
                backend.name
            );
        }
        for (at, client) in self.clients.iter().enumerate() {
            let Some(mux) = &client.mux else { continue };
            let unanswered = client.unanswered();
            assert!(unanswered.is_empty(), "c{at}: unanswered: {unanswered:#?}");
            assert!(
                client.permits.is_empty(),
                "c{at}: permits: {:?}",
                client.permits
            );
            assert_eq!(mux.open_calls(), 0, "c{at}");
            assert_eq!(mux.open_turns(), 0, "c{at}: turns");
            assert!(mux.questions.is_empty() && mux.gates.is_empty(), "c{at}");
            assert_eq!(mux.waiting, 0, "c{at}: waiting");
            assert!(mux.own.is_empty(), "c{at}: {:?}", mux.own);
            for (session, view) in &client.views {
                assert_eq!(view.state, State::Attached, "c{at}: {session}");
                assert!(
                    view.awaiting.is_empty(),
                    "c{at}: the turn of {:?} never ends",
                    view.awaiting
                );
            }
        }
    }

    pub(super) fn check_used(&self) {
        for (at, client) in self.clients.iter().enumerate() {
            if client.mux.is_none() {
                continue;
            }
            for (session, view) in &client.views {
                assert!(view.last_read, "c{at}: {session} was not read");
            }
        }
    }

    /// Everybody has left.
    pub(super) fn check_end(&self) {
        self.check();
        assert_eq!(self.directory.open(), 0, "sessions that nobody holds");
        assert!(self.searches.is_empty() && self.doors_are_free());
        for server in &self.servers {
            let sessions = &server.process.as_ref().unwrap().sessions;
            assert!(sessions.is_empty(), "{}: {sessions:#?}", server.name);
        }
        for (session, completed) in &self.completed {
            let logs: Vec<&Vec<Line>> = self.disks.iter().filter_map(|d| d.get(session)).collect();
            assert_eq!(logs.len(), 1, "{session} lies on one disk");
            let starts = logs[0].iter().filter(|l| l.what == What::Start).count();
            assert_eq!(starts, 1, "{session}: a history over a history");
            let of = |pick: &dyn Fn(&What) -> Option<String>| -> Vec<String> {
                let lines = logs[0].iter().filter(|l| !l.stale);
                lines.filter_map(|l| pick(&l.what)).collect()
            };
            let users = of(&|what| match what {
                What::User(message) => Some(message.clone()),
                _ => None,
            });
            let answers = of(&|what| match what {
                What::Answer(message) => Some(message.clone()),
                _ => None,
            });
            for (connection, completed) in completed {
                for said in [&users, &answers] {
                    let theirs: Vec<&String> =
                        said.iter().filter(|m| completed.contains(m)).collect();
                    let all: Vec<&String> = completed.iter().collect();
                    assert_eq!(theirs, all, "{session}: turns completed for {connection}");
                }
            }
            for mode in self.modes.get(session).into_iter().flatten() {
                let kept = logs[0].iter().any(|l| l.what == What::Mode(mode.clone()));
                assert!(kept, "{session}: {mode} was acknowledged");
            }
        }
    }
}
