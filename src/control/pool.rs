//! The pool of backends: what is configured, what operators want and what was observed, published
//! as one immutable snapshot. Never sees a client's frame and chooses no backend.

mod member;
mod sink;

use std::{
    collections::{BTreeMap, HashSet, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use member::{Member, News, SessionSet, added, compare, recheck_others, same};

pub use self::sink::PoolSink;
use super::health::{Board, Command, Comparison, Habits, Observed, Target, Watch};
pub use super::{
    connection::Answer,
    health::{Activity, AskError, Lost},
};
use crate::{
    config,
    core::{
        event::Event,
        id::{BackendName, SessionId},
        outlier::{self, Outlier, Rules, Standing},
        release::Ejection,
        snapshot::{AdminState, Backend, Health, Mode, Snapshot},
    },
    transport::{Transport, files},
};

/// Commands that may await a backend's task.
const MAX_COMMANDS: usize = 256;

/// What does not change while the pool lives.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// `routing.mode`; session lists are compared in shared storage only.
    pub mode: Mode,
    /// `[health]`, until the first reload.
    pub health: config::Health,
    /// `[failover]`, until the first reload.
    pub failover: config::Failover,
    /// What operators wished of backends before this pool began: states and weights.
    pub operators: Vec<(BackendName, Option<AdminState>, Option<u32>)>,
    /// `listener.tcp_keepalive`, for the control connections.
    pub keepalive: Option<Duration>,
    /// The protocol version that clients are told: backends with another one are not used.
    pub protocol_version: u32,
    /// Shared storage: between two comparisons of a backend's session list with the others' while
    /// something is missing.
    pub disk_recheck: Duration,
    /// The same, while nothing is.
    pub disk_reread: Duration,
}

impl PoolOptions {
    /// The usual ones.
    pub fn new(mode: Mode, health: config::Health) -> Self {
        Self {
            mode,
            health,
            failover: config::Failover {
                hang_timeout: None,
                fence_command: None,
                fence_timeout: Duration::from_secs(10),
            },
            operators: Vec::new(),
            keepalive: Some(Duration::from_secs(60)),
            protocol_version: 3,
            disk_recheck: Duration::from_secs(10),
            disk_reread: Duration::from_secs(60),
        }
    }
}

/// A change that could not be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// No backend of that name is configured.
    #[error("no backend is named {0}")]
    UnknownBackend(BackendName),
    /// A weight of 0 would be a drain in disguise.
    #[error("a weight is at least 1")]
    ZeroWeight,
}

/// What an operator may want to know beyond the snapshot.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Of which backend.
    pub name: BackendName,
    /// Moving average of its answers to `ping`.
    pub ping: Option<Duration>,
    /// Why it is down.
    pub reason: Option<Arc<str>>,
    /// The operators' override of the configured state.
    pub operator: Option<AdminState>,
    /// The operators' override of the configured weight.
    pub operator_weight: Option<u32>,
    /// For how long it has not been usable; none if it is.
    pub away: Option<Duration>,
}

/// A handle; clones share the pool. The pool ends with [`Pool::stop`] or its last handle.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    habits: Habits,
    mode: Mode,
    sink: Arc<dyn PoolSink>,
    state: Mutex<State>,
    /// Held while operators' wishes are changed and told, so that they are told in order.
    wishing: Mutex<()>,
    current: ArcSwap<Snapshot>,
    published: watch::Sender<Arc<Snapshot>>,
}

/// What operators want of one backend; none = the file decides.
#[derive(Clone, Copy, Default)]
struct Wish {
    state: Option<AdminState>,
    weight: Option<u32>,
}

struct State {
    members: BTreeMap<BackendName, Member>,
    /// By name, also of backends that are not there now.
    operators: BTreeMap<BackendName, Wish>,
    health: config::Health,
    failover: Arc<config::Failover>,
    generation: u64,
    stopped: bool,
}

impl Pool {
    /// Starts watching `backends`. Must be called in a tokio runtime.
    pub fn start(
        options: PoolOptions,
        backends: Vec<config::Backend>,
        sink: Arc<dyn PoolSink>,
    ) -> Self {
        let empty = Arc::new(Snapshot {
            generation: 0,
            mode: options.mode,
            backends: Vec::new().into(),
            panic: false,
        });
        let inner = Arc::new(Inner {
            habits: Habits {
                keepalive: options.keepalive,
                protocol_version: options.protocol_version,
                compare_disks: options.mode == Mode::SharedStorage,
                disk_recheck: options.disk_recheck,
                disk_reread: options.disk_reread,
            },
            mode: options.mode,
            sink,
            state: Mutex::new(State {
                members: BTreeMap::new(),
                operators: options
                    .operators
                    .into_iter()
                    .map(|(name, state, weight)| (name, Wish { state, weight }))
                    .collect(),
                failover: Arc::new(options.failover),
                health: options.health.clone(),
                generation: 0,
                stopped: false,
            }),
            wishing: Mutex::new(()),
            current: ArcSwap::new(empty.clone()),
            published: watch::Sender::new(empty),
        });
        let pool = Self { inner };
        pool.apply(backends, options.health);
        pool
    }

    /// Ends all control connections and publishes an empty pool. Later changes have no effect.
    pub fn stop(&self) {
        self.inner.change(|state, _| {
            state.stopped = true;
            state.members.clear();
        });
    }

    /// Follows the published snapshots.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.inner.published.subscribe()
    }

    /// The snapshot of now.
    pub fn current(&self) -> Arc<Snapshot> {
        self.inner.current.load_full()
    }

    /// Takes over a new configuration. Backends that are not in it are kept, without placements,
    /// until nothing uses them; operators' wishes stay in force.
    pub fn apply(&self, backends: Vec<config::Backend>, health: config::Health) {
        let inner = &self.inner;
        let mut removed = Vec::new();
        let mut moving = Vec::new();
        inner.change(|state, news| {
            if state.stopped {
                return;
            }
            let rules = rules(&health);
            let failover = state.failover.clone();
            state.health = health;
            let kept: HashSet<BackendName> = backends.iter().map(|b| b.name.clone()).collect();
            for configured in backends {
                match state.members.entry(configured.name.clone()) {
                    Entry::Occupied(mut member) => member.get_mut().reconfigure(configured, news),
                    Entry::Vacant(place) => {
                        news.push(added(&configured));
                        let wish = state.operators.get(place.key()).copied();
                        let wish = wish.unwrap_or_default();
                        place.insert(inner.member(configured, wish, rules, &failover));
                    }
                }
            }
            for (name, member) in &mut state.members {
                if !kept.contains(name) && !member.removed {
                    member.removed = true;
                    removed.push(name.clone());
                }
                if member.is_moving() && !member.removed {
                    moving.push(name.clone());
                }
                member.retarget(rules, &failover);
            }
        });
        for name in moving {
            inner.purge(&name);
            let state = inner.lock();
            if let Some(remark) = state
                .members
                .get(&name)
                .filter(|member| member.is_moving())
                .and_then(Member::remark)
            {
                tracing::warn!(backend = %name, "{remark}; no new sessions until then");
            }
        }
        for name in removed {
            let sessions = inner.sink.in_use(&name);
            if sessions > 0 {
                inner.sink.event(Event::BackendRemoved {
                    backend: name,
                    sessions,
                });
            } else {
                inner.purge(&name);
            }
        }
    }

    /// Takes over when silent backends are given up.
    pub fn set_failover(&self, failover: config::Failover) {
        let mut state = self.inner.lock();
        let rules = rules(&state.health);
        state.failover = Arc::new(failover);
        for member in state.members.values() {
            member.retarget(rules, &state.failover);
        }
    }

    /// Sets the operators' state of a backend, or with `None` gives it back to the file. `by` is
    /// for the log: `"api"`, `"signal"`.
    pub fn set_admin(
        &self,
        name: &str,
        state: Option<AdminState>,
        by: &'static str,
    ) -> Result<(), PoolError> {
        self.inner.wish(name, |member, news| {
            let from = member.admin();
            member.wish.state = state;
            let to = member.admin();
            if from != to {
                let backend = member.configured.name.clone();
                news.push(Event::BackendAdmin {
                    backend,
                    from,
                    to,
                    by,
                });
            }
        })
    }

    /// Sets the operators' weight of a backend, or with `None` gives it back to the file.
    pub fn set_weight(&self, name: &str, weight: Option<u32>) -> Result<(), PoolError> {
        if weight == Some(0) {
            return Err(PoolError::ZeroWeight);
        }
        self.inner
            .wish(name, |member, _| member.wish.weight = weight)
    }

    /// The data plane could not connect to a backend.
    pub fn report_connect_failed(&self, name: &BackendName) {
        self.inner.report(name, Command::ConnectFailed);
    }

    /// A backend broke the protocol on another connection: it is ejected.
    pub fn report_violation(&self, name: &BackendName, what: &str) {
        self.inner.report(name, Command::Violation(Arc::from(what)));
    }

    /// The process of a backend has ended, whatever its connections say.
    pub fn report_gone(&self, name: &BackendName) {
        self.inner.report(name, Command::Gone);
    }

    /// What goes between TCP and the first frame of a connection to a backend's address in force.
    pub fn transport(&self, name: &BackendName) -> Transport {
        let state = self.inner.lock();
        let member = state.members.get(name);
        member
            .map(|member| member.transport.clone())
            .unwrap_or_default()
    }

    /// Where to mark that frames come from a backend; to be fetched once per connection.
    pub fn activity(&self, name: &BackendName) -> Option<Arc<Activity>> {
        self.inner
            .lock()
            .members
            .get(name)
            .map(|member| member.activity.clone())
    }

    /// Calls a method on a backend's control connection and awaits the answer; `params` is a JSON
    /// text.
    pub async fn ask(
        &self,
        name: &BackendName,
        method: &str,
        params: &str,
        timeout: Duration,
    ) -> Result<Answer, AskError> {
        let commands = self.inner.commands_of(name)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Ask {
            method: method.into(),
            params: params.into(),
            reply,
        };
        let answered = async {
            // Waits for room. The task ends with its backend's place in the pool.
            let sent = commands.send(command).await;
            sent.map_err(|_ended| AskError::Unusable)?;
            answer.await.unwrap_or(Err(AskError::Unusable))
        };
        tokio::time::timeout(timeout, answered)
            .await
            .unwrap_or(Err(AskError::TimedOut))
    }

    /// What is known beyond the snapshot, ordered by name.
    pub fn observations(&self) -> Vec<Observation> {
        let state = self.inner.lock();
        state
            .members
            .iter()
            .map(|(name, member)| Observation {
                name: name.clone(),
                ping: member.ping,
                reason: member.remark(),
                operator: member.wish.state,
                operator_weight: member.wish.weight,
                away: (member.observed.away)
                    .map(|since| super::health::now().saturating_duration_since(since)),
            })
            .collect()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock leaves values that the next publication makes whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, publishes what follows from it, then tells the news.
    fn change(&self, change: impl FnOnce(&mut State, &mut News)) {
        let mut news = Vec::new();
        {
            let mut state = self.lock();
            change(&mut state, &mut news);
            self.publish(&mut state, &mut news);
        }
        for event in news {
            self.sink.event(event);
        }
    }

    /// Changes what operators want of a backend; returns once the sink knows.
    fn wish(
        &self,
        name: &str,
        change: impl FnOnce(&mut Member, &mut News),
    ) -> Result<(), PoolError> {
        let _in_order = self.wishing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = None;
        self.change(|state, news| {
            if let Some((name, member)) = state.members.get_key_value(name) {
                changed = Some((name.clone(), member.wish));
            }
            if let Some(member) = state.members.get_mut(name)
                && let Some((name, wish)) = &mut changed
            {
                change(member, news);
                *wish = member.wish;
                state.operators.insert(name.clone(), *wish);
            }
        });
        let (name, wish) = changed.ok_or_else(|| PoolError::UnknownBackend(name.into()))?;
        self.sink.operator(&name, wish.state, wish.weight);
        Ok(())
    }

    fn report(&self, name: &BackendName, command: Command) {
        if let Some(member) = self.lock().members.get(name) {
            // A full queue has enough to judge by.
            let _full = member.commands.try_send(command);
        }
    }

    /// Where questions to a backend go, if it can be asked now.
    fn commands_of(&self, name: &BackendName) -> Result<mpsc::Sender<Command>, AskError> {
        let usable = self
            .current
            .load()
            .get(name)
            .is_some_and(Backend::is_usable);
        let state = self.lock();
        let member = state.members.get(name).ok_or(AskError::Unusable)?;
        if usable {
            return Ok(member.commands.clone());
        }
        let gone = member.observed.gone && member.admin() != AdminState::Maint;
        Err(if gone {
            AskError::Lost
        } else {
            AskError::Unusable
        })
    }

    fn member(
        self: &Arc<Self>,
        configured: config::Backend,
        wish: Wish,
        rules: Rules,
        failover: &Arc<config::Failover>,
    ) -> Member {
        let target = Target {
            address: configured.address.clone(),
            transport: configured.transport(),
            token: configured.connection_token.clone(),
            rules,
            failover: failover.clone(),
            leaving: false,
        };
        let activity = Arc::new(Activity::default());
        let weak: Weak<dyn Board> = Arc::downgrade(self) as Weak<dyn Board>;
        let watch = Watch::new(
            configured.name.clone(),
            self.habits,
            weak,
            target.clone(),
            activity.clone(),
        );
        let (target, follow_target) = watch::channel(target);
        let (commands, take_commands) = mpsc::channel(MAX_COMMANDS);
        // Ends when `commands` is dropped with the member.
        tokio::spawn(watch.run(follow_target, take_commands));
        Member {
            address: configured.address.clone(),
            transport: configured.transport(),
            configured,
            removed: false,
            wish,
            observed: Observed::nothing(),
            heard: None,
            ping: None,
            disk: None,
            target,
            commands,
            activity,
        }
    }

    /// Publishes a snapshot if anything in it changed.
    fn publish(&self, state: &mut State, news: &mut News) {
        let (names, standings): (Vec<&BackendName>, Vec<Standing>) = state
            .members
            .iter()
            .filter_map(|(name, member)| Some((name, member.standing()?)))
            .unzip();
        let limited = outlier::limit_ejections(&standings, state.health.max_ejected);
        let kept: HashSet<&BackendName> = limited.kept.iter().map(|&i| names[i]).collect();
        let backends: Vec<Backend> = state
            .members
            .iter()
            .map(|(name, member)| member.backend(kept.contains(name)))
            .collect();
        files::keep_back_for(backends.len());

        let old = self.current.load_full();
        if old.panic == limited.panic && same(&old.backends, &backends) && state.generation > 0 {
            return;
        }
        for backend in &backends {
            let from = old.get(&backend.name).map_or(Health::Unknown, |b| b.health);
            if from != backend.health {
                let member = state.members.get(&backend.name);
                let reason = member.and_then(Member::reason);
                let cause = member.and_then(|m| Some(m.observed.cause.as_ref()?.label()));
                news.push(Event::BackendHealth {
                    backend: backend.name.clone(),
                    from,
                    to: backend.health,
                    reason: reason.unwrap_or_else(|| Arc::from("answers")),
                    cause,
                });
            }
        }
        state.generation += 1;
        let snapshot = Arc::new(Snapshot {
            generation: state.generation,
            mode: self.mode,
            backends: backends.into(),
            panic: limited.panic,
        });
        self.current.store(snapshot.clone());
        self.published.send_replace(snapshot);
    }
}

impl Board for Inner {
    fn observe(&self, backend: &BackendName, observed: Observed, outlier: &Outlier) {
        {
            let mut state = self.lock();
            let Some(member) = state.members.get_mut(backend) else {
                return;
            };
            member.heard = outlier.heard();
            member.ping = outlier.ping();
            if member.observed == observed {
                return;
            }
        }
        self.change(|state, _| {
            if let Some(member) = state.members.get_mut(backend) {
                member.observed = observed;
            }
        });
    }

    fn lifecycle(&self, backend: &BackendName, kind: &str, session: &SessionId, body: Bytes) {
        if kind == "session.deleted" && self.habits.compare_disks {
            // One disk: gone for all.
            for member in self.lock().members.values_mut() {
                if let Some((sessions, _)) = &mut member.disk {
                    sessions.remove(session);
                }
            }
        }
        self.sink.lifecycle(backend, kind, session, body);
    }

    fn disk(&self, backend: &BackendName, sessions: Vec<SessionId>, asked: Instant) -> Comparison {
        self.sink.disk(backend, &sessions);
        if !self.habits.compare_disks {
            return Comparison::Fits;
        }
        let mut state = self.lock();
        let listed: SessionSet = sessions.into_iter().collect();
        let comparison = compare(&state.members, backend, &listed, asked);
        // Only a list that fits may be what others are compared with.
        let fits = matches!(comparison, Comparison::Fits);
        let joins = state
            .members
            .get(backend)
            .is_some_and(|member| fits && member.disk.is_none());
        if joins {
            recheck_others(&state.members, backend, &listed);
        }
        if let Some(member) = state.members.get_mut(backend) {
            member.disk = fits.then(|| (listed, super::health::now()));
        }
        comparison
    }

    fn lost(&self, backend: &BackendName, how: Lost) {
        self.sink.backend_lost(backend, how);
    }

    fn violation(&self, backend: &BackendName, what: &Arc<str>) {
        self.sink.event(Event::BackendViolation {
            backend: backend.clone(),
            what: what.clone(),
        });
    }

    fn ejection(&self, backend: &BackendName) -> Ejection {
        match self.current.load().get(backend) {
            Some(published) if published.health == Health::Down => Ejection::Out,
            Some(_) | None => Ejection::In,
        }
    }

    fn given_up(&self, backend: &BackendName) {
        self.sink.given_up(backend);
    }

    fn moved_from(&self, backend: &BackendName) -> Vec<SessionId> {
        self.sink.moved_from(backend)
    }

    fn cleaned(&self, backend: &BackendName, sessions: &[SessionId]) {
        self.sink.cleaned(backend, sessions);
    }

    fn event(&self, event: Event) {
        self.sink.event(event);
    }

    fn purge(&self, backend: &BackendName) {
        let in_use = self.sink.in_use(backend) > 0;
        self.change(|state, news| {
            let rules = rules(&state.health);
            let failover = state.failover.clone();
            let Some(member) = state.members.get_mut(backend) else {
                return;
            };
            if !member.removed {
                // At the old address nothing can be in use any more if nobody is there: sessions
                // that are still counted wait for their home to come back, at the new one.
                if member.is_moving() && (!in_use || member.observed.gone) {
                    member.finish_move(rules, &failover);
                }
            } else if !in_use {
                state.members.remove(backend);
                news.push(Event::BackendRemoved {
                    backend: backend.clone(),
                    sessions: 0,
                });
            }
        });
    }
}

/// The part of `[health]` that judges a single backend.
fn rules(health: &config::Health) -> Rules {
    Rules {
        interval: health.interval,
        timeout: health.timeout,
        unhealthy_after: health.unhealthy_after,
        healthy_after: health.healthy_after,
        slow_start: health.slow_start,
    }
}

#[cfg(test)]
mod tests;
