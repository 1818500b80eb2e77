//! The control plane's view of each backend: probes, ejection, release, and the cleaning before it
//! is used again.

use std::sync::Arc;

use super::{Act, MS, SECOND, World, search::Reply, shell::Mail};
use crate::core::{
    id::{BackendName, SessionId},
    snapshot::{Health, Mode, Snapshot},
};

const INTERVAL: u64 = 2 * SECOND;
const TIMEOUT: u64 = SECOND;
const UNHEALTHY_AFTER: u32 = 3;
const HANG_TIMEOUT: u64 = 10 * SECOND;
/// Who decided by an old picture of the pool has done so by then.
const LATECOMERS: u64 = 250 * MS;

/// One backend, watched.
#[derive(Debug)]
pub(super) struct Watch {
    /// The process that the control connection is to.
    linked: Option<u64>,
    /// The handshake is done.
    ready: bool,
    /// When a frame of it came last.
    pub(super) heard: u64,
    missed: u32,
    gone: bool,
    /// What it has to close before it is used, while it is being cleaned.
    closing: Option<Vec<String>>,
    closed: Vec<SessionId>,
    round: u64,
}

impl Watch {
    pub(super) fn linked(pid: u64) -> Self {
        Self {
            linked: Some(pid),
            ready: true,
            heard: 0,
            missed: 0,
            gone: false,
            closing: None,
            closed: Vec::new(),
            round: 0,
        }
    }
}

impl World {
    /// What is answered for a backend that cannot be asked; none if it can.
    pub(super) fn control_is_down(&self, server: usize) -> Option<Reply> {
        let watch = &self.watches[server];
        match watch.linked {
            // The question meets the end of the connection.
            Some(pid) if watch.ready && pid != self.servers[server].pid() => Some(Reply::Gone),
            Some(_) if watch.ready => None,
            _ if watch.gone => Some(Reply::Gone),
            _ => Some(Reply::Silent),
        }
    }

    fn name(&self, server: usize) -> BackendName {
        self.servers[server].name.as_str().into()
    }

    pub(super) fn is_released(&self, server: usize) -> bool {
        let name = self.name(server);
        self.snapshot.get(&name).is_some_and(|b| b.released)
    }

    fn health(&self, server: usize) -> Health {
        let name = self.name(server);
        self.snapshot.get(&name).unwrap().health
    }

    fn publish(&mut self, server: usize, health: Health, released: bool) {
        let name = self.name(server);
        let mut snapshot = Snapshot::clone(&self.snapshot);
        let backend = snapshot.get(&name).unwrap();
        if backend.health == health && backend.released == released {
            return;
        }
        let came_up = health == Health::Up && backend.health != Health::Up;
        let was_released = backend.released;
        snapshot.backends.change(|all| {
            let backend = all.iter_mut().find(|b| b.name == name).unwrap();
            backend.health = health;
            backend.released = released;
        });
        snapshot.generation += 1;
        self.snapshot = Arc::new(snapshot);
        self.note(|| format!("pool: {name} is {health:?}, released: {released}"));
        if released && !was_released {
            let now = self.instant();
            self.directory.backend_released(now, &name);
        } else if was_released && !released {
            self.directory.backend_returned(&name);
        }
        if came_up {
            self.directory.backend_back(&name);
            self.mail_all(&Mail::Back(name));
        }
        self.wake_for_pool();
    }

    pub(super) fn probe_soon(&mut self, server: usize) {
        self.watches[server].round += 1;
        let round = self.watches[server].round;
        self.plan(MS, Act::Probe(server, round));
    }

    /// A probe is due: the one before it is judged, too.
    pub(super) fn probe(&mut self, server: usize, round: u64) {
        if self.watches[server].round != round {
            return;
        }
        self.watches[server].round += 1;
        let round = self.watches[server].round;
        let answers = self.servers[server].answers();
        let pid = self.servers[server].pid();
        let linked = self.watches[server].linked;
        let mut next = INTERVAL;
        match linked {
            Some(at) if at == pid && answers && self.watches[server].ready => {
                let watch = &mut self.watches[server];
                watch.heard = self.now;
                watch.missed = 0;
                self.answers(server, pid);
            }
            // The handshake was waiting in its socket.
            Some(at) if at == pid && answers => self.plan(MS, Act::Linked(server, pid)),
            Some(_) => {
                // Its end is noticed apart from this.
                self.watches[server].missed += 1;
                next = TIMEOUT;
            }
            None if self.servers[server].cut => {
                self.watches[server].missed += 1;
                next = TIMEOUT;
            }
            None if self.servers[server].process.is_none() => self.gone(server),
            None => {
                self.watches[server].linked = Some(pid);
                self.watches[server].ready = false;
                if answers {
                    self.plan(MS, Act::Linked(server, pid));
                }
            }
        }
        self.judge_silence(server);
        self.plan(next, Act::Probe(server, round));
    }

    pub(super) fn control_linked(&mut self, server: usize, pid: u64) {
        let there = self.servers[server].answers() && self.servers[server].pid() == pid;
        let watch = &mut self.watches[server];
        if watch.linked != Some(pid) || !there || watch.ready {
            return;
        }
        watch.ready = true;
        watch.gone = false;
        watch.heard = self.now;
        watch.missed = 0;
        self.answers(server, pid);
    }

    /// It has answered a call: it is used again, once it is clean.
    fn answers(&mut self, server: usize, pid: u64) {
        if self.is_released(server) {
            if self.watches[server].closing.is_none() {
                self.begin_closing(server, pid);
            }
        } else if self.watches[server].closing.is_none() {
            self.publish(server, Health::Up, false);
        }
    }

    fn begin_closing(&mut self, server: usize, pid: u64) {
        let moved = self.directory.moved_from(&self.name(server));
        let moved: Vec<String> = moved.iter().map(ToString::to_string).collect();
        self.note(|| format!("pool: b{server} has to close {moved:?}"));
        for session in &moved {
            let delay = MS + self.chance.span(30 * MS);
            self.plan(delay, Act::Close(server, pid, session.clone()));
        }
        self.watches[server].closing = Some(moved);
        self.watches[server].closed.clear();
        self.go_on_closing(server, pid);
    }

    pub(super) fn control_closes(&mut self, server: usize, pid: u64, session: &str) {
        if self.watches[server].linked != Some(pid) || self.watches[server].closing.is_none() {
            return;
        }
        if !self.servers[server].answers() {
            // Tried again: the call waits in its socket.
            self.plan(50 * MS, Act::Close(server, pid, session.to_owned()));
            return;
        }
        self.close_session(pid, session);
        let watch = &mut self.watches[server];
        watch.heard = self.now;
        watch.closed.push(session.into());
        if let Some(closing) = &mut watch.closing {
            closing.retain(|s| s != session);
        }
        self.go_on_closing(server, pid);
    }

    fn go_on_closing(&mut self, server: usize, pid: u64) {
        if !self.watches[server]
            .closing
            .as_ref()
            .is_some_and(Vec::is_empty)
        {
            return;
        }
        let name = self.name(server);
        let closed = std::mem::take(&mut self.watches[server].closed);
        self.directory.cleaned(&name, &closed);
        self.touched.extend(closed.iter().map(ToString::to_string));
        self.watches[server].closing = None;
        if !self.directory.moved_from(&name).is_empty() {
            self.begin_closing(server, pid);
            return;
        }
        if self.is_released(server) {
            self.plan(LATECOMERS, Act::Look(server, pid));
        }
        self.publish(server, Health::Up, false);
    }

    /// What was moved by somebody who had not heard yet that it is back.
    pub(super) fn look_again(&mut self, server: usize, pid: u64) {
        let moved = self.directory.moved_from(&self.name(server));
        if self.watches[server].linked == Some(pid) && !moved.is_empty() {
            self.begin_closing(server, pid);
        }
    }

    /// The control connection has ended.
    pub(super) fn control_ended(&mut self, server: usize, pid: u64) {
        if self.servers[server].cut {
            self.plan(500 * MS, Act::ControlEnd(server, pid));
            return;
        }
        if self.watches[server].linked == Some(pid) {
            self.gone(server);
            self.probe_soon(server);
        }
    }

    fn gone(&mut self, server: usize) {
        let name = self.name(server);
        let watch = &mut self.watches[server];
        watch.linked = None;
        watch.ready = false;
        watch.closing = None;
        if !std::mem::replace(&mut watch.gone, true) {
            let now = self.instant();
            self.directory.backend_gone(now, &name);
        }
        let released = self.snapshot.mode == Mode::SharedStorage;
        self.publish(server, Health::Down, released);
    }

    fn judge_silence(&mut self, server: usize) {
        let watch = &self.watches[server];
        let silent = self.now - watch.heard;
        if watch.missed < UNHEALTHY_AFTER || silent < TIMEOUT {
            return;
        }
        let name = self.name(server);
        let released = self.is_released(server);
        if self.health(server) != Health::Down {
            self.publish(server, Health::Down, released);
            let now = self.instant();
            self.directory.backend_silent(now, &name);
            self.mail_all(&Mail::Silent(name.clone()));
        }
        let shared = self.snapshot.mode == Mode::SharedStorage;
        if shared && !released && silent >= HANG_TIMEOUT {
            self.publish(server, Health::Down, true);
            self.mail_all(&Mail::Released(name));
        }
    }
}
