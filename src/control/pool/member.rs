//! One backend as the pool keeps it: what the file says, what operators say, what was observed.
//! Runs under the pool's lock: no waiting and no calls to the sink in here.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::Wish;
use crate::{
    config,
    control::{
        connection::Answer,
        health::{Activity, AskError, Command, Comparison, Observed, Target},
    },
    core::{
        event::Event,
        id::{BackendName, SessionId},
        outlier::{Cause, Rules, Standing},
        snapshot::{AdminState, Backend, Health},
    },
    transport::Transport,
};

/// Weight of a silent backend that stays in placement because too many are silent.
const KEPT_PERMILLE: u32 = 250;

/// The ids of one session list.
pub(super) type SessionSet = HashSet<SessionId, ahash::RandomState>;

/// What happened in a locked section and is told outside of it.
pub(super) type News = Vec<Event>;

pub(super) struct Member {
    pub(super) configured: config::Backend,
    /// The address in force: the configured one once nothing uses the one before.
    pub(super) address: Arc<str>,
    /// That of the address in force.
    pub(super) transport: Transport,
    pub(super) removed: bool,
    pub(super) wish: Wish,
    pub(super) observed: Observed,
    pub(super) heard: Option<Instant>,
    pub(super) ping: Option<Duration>,
    /// Ids of its last session list, and when it was read (shared storage only).
    pub(super) disk: Option<(SessionSet, Instant)>,
    pub(super) target: watch::Sender<Target>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) activity: Arc<Activity>,
}

impl Member {
    pub(super) fn admin(&self) -> AdminState {
        self.wish.state.unwrap_or(self.configured.state)
    }

    /// Whether it has another address from now on, but something still uses the old one.
    pub(super) fn is_moving(&self) -> bool {
        self.address != self.configured.address
    }

    /// What an operator is told of its state.
    pub(super) fn remark(&self) -> Option<Arc<str>> {
        if self.is_moving() {
            let (old, new) = (&self.address, &self.configured.address);
            return Some(Arc::from(format!(
                "moves to {new} once nothing uses {old} any more"
            )));
        }
        self.observed.cause.as_ref().map(Cause::describe)
    }

    /// Nothing uses the old address any more.
    pub(super) fn finish_move(&mut self, rules: Rules, failover: &Arc<config::Failover>) {
        self.address = self.configured.address.clone();
        self.transport = self.configured.transport();
        self.disk = None;
        self.retarget(rules, failover);
    }

    pub(super) fn reason(&self) -> Option<Arc<str>> {
        match self.observed.health {
            Health::StorageMismatch => Some(Arc::from(
                "does not list sessions that are on the common disk",
            )),
            Health::Slow => Some(Arc::from("answers late")),
            Health::Unknown | Health::Up | Health::Down | Health::Probation => {
                self.observed.cause.as_ref().map(Cause::describe)
            }
        }
    }

    /// `None` for those that nobody is to use: they are no part of what may be ejected.
    pub(super) fn standing(&self) -> Option<Standing> {
        if self.removed || self.admin() == AdminState::Maint {
            return None;
        }
        Some(match self.observed.cause {
            // It is out for good until it returns, and others are kept before it.
            Some(Cause::Silent) if self.observed.released => Standing::Silent { heard: None },
            Some(Cause::Silent) if self.observed.fits => Standing::Silent { heard: self.heard },
            Some(_) | None => Standing::Settled,
        })
    }

    /// `kept`: silent, but in placement because too many are.
    pub(super) fn backend(&self, kept: bool) -> Backend {
        Backend {
            name: self.configured.name.clone(),
            address: self.address.clone(),
            token: self.configured.connection_token.clone(),
            weight: self.wish.weight.unwrap_or(self.configured.weight),
            weight_permille: if kept {
                KEPT_PERMILLE
            } else {
                self.observed.weight_permille
            },
            admin: match self.admin() {
                // What is opened now would keep it from moving.
                AdminState::Ready if self.is_moving() => AdminState::Drain,
                admin @ (AdminState::Ready | AdminState::Drain | AdminState::Maint) => admin,
            },
            health: if kept {
                Health::Slow
            } else {
                self.observed.health
            },
            removed: self.removed,
            released: self.observed.released,
            protocol_version: self.observed.protocol_version,
            version: self.observed.version.clone(),
            task_kinds: self.observed.task_kinds.clone(),
            disk_read: self.observed.disk_read,
        }
    }

    pub(super) fn reconfigure(&mut self, configured: config::Backend, news: &mut News) {
        let from = self.admin();
        if self.removed {
            news.push(added(&configured));
        }
        self.removed = false;
        self.configured = configured;
        if !self.is_moving() {
            self.transport = self.configured.transport();
        }
        let to = self.admin();
        if from != to {
            let backend = self.configured.name.clone();
            news.push(Event::BackendAdmin {
                backend,
                from,
                to,
                by: "config",
            });
        }
    }

    pub(super) fn retarget(&self, rules: Rules, failover: &Arc<config::Failover>) {
        let target = Target {
            address: self.address.clone(),
            transport: self.transport.clone(),
            token: self.configured.connection_token.clone(),
            rules,
            failover: failover.clone(),
            leaving: self.removed || self.is_moving(),
        };
        self.target.send_if_modified(|old| {
            let modified = *old != target;
            *old = target;
            modified
        });
    }
}

/// Compares a list with that of another backend whose disk is known to be the common one.
pub(super) fn compare(
    members: &BTreeMap<BackendName, Member>,
    backend: &BackendName,
    listed: &SessionSet,
    asked: Instant,
) -> Comparison {
    let mut postponed = Comparison::Fits;
    for (name, member) in members {
        let Some((known, read)) = &member.disk else {
            continue;
        };
        if name == backend || member.removed || member.observed.health == Health::Down {
            continue;
        }
        let missing: Vec<SessionId> = known.difference(listed).cloned().collect();
        if missing.is_empty() {
            return Comparison::Fits;
        }
        if *read >= asked {
            // These may have come into being after the list was made.
            return Comparison::ReadAgain;
        }
        match send_ask(&member.commands, "session.list", "{}") {
            Some(fresh) => return Comparison::Confirm { missing, fresh },
            None => postponed = Comparison::Postponed,
        }
    }
    postponed
}

/// What a joining backend lists may show that another, which was there before it and had nothing
/// to be compared with, has a disk of its own: those that miss something look again.
pub(super) fn recheck_others(
    members: &BTreeMap<BackendName, Member>,
    joining: &BackendName,
    listed: &SessionSet,
) {
    for (name, member) in members {
        let Some((known, _)) = &member.disk else {
            continue;
        };
        if name != joining && !member.removed && !listed.is_subset(known) {
            // A full queue delays it to the next regular look.
            let _full = member.commands.try_send(Command::ReadDisk);
        }
    }
}

fn send_ask(
    commands: &mpsc::Sender<Command>,
    method: &str,
    params: &str,
) -> Option<oneshot::Receiver<Result<Answer, AskError>>> {
    let (reply, answer) = oneshot::channel();
    let command = Command::Ask {
        method: method.into(),
        params: params.into(),
        reply,
    };
    commands.try_send(command).ok().map(|()| answer)
}

pub(super) fn same(old: &[Backend], new: &[Backend]) -> bool {
    old.len() == new.len()
        && old.iter().zip(new).all(|(a, b)| {
            a.name == b.name
                && a.address == b.address
                && a.token == b.token
                && a.weight == b.weight
                && a.weight_permille == b.weight_permille
                && a.admin == b.admin
                && a.health == b.health
                && a.removed == b.removed
                && a.released == b.released
                && a.protocol_version == b.protocol_version
                && a.version == b.version
                && a.task_kinds == b.task_kinds
                && a.disk_read == b.disk_read
        })
}

pub(super) fn added(configured: &config::Backend) -> Event {
    Event::BackendAdded {
        backend: configured.name.clone(),
        address: configured.address.clone(),
    }
}
