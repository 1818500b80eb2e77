//! What the admin server can ask and do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{bridge, succession};
use crate::{
    config::{self, Config},
    control::{
        admin::{
            ActionError, BackendView, Backstage, BoxFuture, Page, Readiness, SessionFilter,
            SessionView, StateChange,
        },
        pool::{Pool, PoolError},
        upgrade::Primary,
    },
    core::{
        access::{Access, Relation},
        directory::Known,
        event::Event,
        identity::{Caps, Principal, Role},
        locate::{self, Refusal, Step},
        snapshot::{self, AdminState, Mode, Snapshot},
        turnlock,
    },
    observe::Observer,
    proxy::{Doorman, Quota, Rules, lobby, quota},
    store::Store,
};

/// How far the program is, for `/readyz`.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// Bound, configured, and the first probe round is done.
    pub(super) ready: AtomicBool,
    /// SIGTERM has come.
    pub(super) draining: AtomicBool,
    /// Another process has taken over, or is about to.
    pub(super) retired: AtomicBool,
}

/// A wish to read the configuration again, and where the outcome goes.
pub(super) struct ReloadWish {
    /// `file`, `signal`, `api`.
    pub(super) trigger: &'static str,
    pub(super) answer: Option<oneshot::Sender<Result<String, Value>>>,
}

/// The admin server's view of everything.
pub(super) struct Stagehand {
    pub(super) pool: Pool,
    pub(super) store: Store,
    pub(super) observer: Observer,
    pub(super) stage: Arc<Stage>,
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) rules: Arc<ArcSwap<Rules>>,
    pub(super) quota: Quota,
    pub(super) doorman: Doorman,
    pub(super) reload: mpsc::Sender<ReloadWish>,
    pub(super) open_connections: Arc<dyn Fn() -> usize + Send + Sync>,
    /// Older processes, which follow what operators say here.
    pub(super) primary: Primary,
}

impl Backstage for Stagehand {
    fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.stage.draining.load(Ordering::Acquire) {
            reasons.push("draining: this Taxiway is shutting down".to_owned());
        }
        if self.stage.retired.load(Ordering::Acquire) {
            reasons.push("retired: another Taxiway process has taken over".to_owned());
        }
        if !self.stage.ready.load(Ordering::Acquire) {
            reasons.push(
                "starting: servers are coming up, or the first round of probes is not done"
                    .to_owned(),
            );
        }
        let snapshot = self.pool.current();
        let unread: Vec<&str> = snapshot
            .backends
            .iter()
            .filter(|b| is_unread(b, &snapshot))
            .map(|b| b.name.as_str())
            .collect();
        let mut notes = Vec::new();
        if !unread.is_empty() {
            notes.push(format!("{}: {UNREAD}", unread.join(", ")));
        }
        if !self.store.is_up() {
            notes.push(STORE_DOWN.to_owned());
        }
        let usable_backends = snapshot
            .backends
            .iter()
            .filter(|b| b.takes_placements())
            .count();
        Readiness {
            ready: reasons.is_empty(),
            reasons,
            notes,
            usable_backends,
        }
    }

    fn metrics(&self) -> String {
        let snapshot = self.pool.current();
        bridge::refresh_gauges(&self.observer, &self.store, &snapshot, &self.pool);
        let metrics = self.observer.metrics();
        metrics.set_limit_usage("limits.connections", (self.open_connections)() as f64);
        metrics.set_limit_usage(lobby::TOTAL, self.doorman.strangers() as f64);
        metrics.set_limit_usage("limits.directory_sessions", self.store.lock().len() as f64);
        let most = self.quota.most();
        for (limit, used) in [
            (quota::CONNECTIONS, most.connections),
            (quota::SESSIONS, most.sessions),
            (quota::TURNS, most.turns),
        ] {
            metrics.set_limit_usage(limit, f64::from(used));
        }
        metrics.upgrade_peers(self.primary.count());
        metrics.render()
    }

    fn backends(&self) -> Vec<BackendView> {
        let snapshot = self.pool.current();
        let observations = self.pool.observations();
        let directory = self.store.lock();
        snapshot
            .backends
            .iter()
            .map(|backend| {
                let load = directory.load(&backend.name);
                let observed = observations.iter().find(|o| o.name == backend.name);
                let series = self.observer.metrics().known_backend(&backend.name);
                let connections = series.map_or(0, |series| series.upstream_connections());
                BackendView {
                    health_reason: reason_shown(
                        observed.and_then(|o| o.reason.as_deref()),
                        is_unread(backend, &snapshot),
                    ),
                    ping_ms: observed
                        .and_then(|o| o.ping)
                        .map(|p| p.as_secs_f64() * 1000.0),
                    away_seconds: observed.and_then(|o| o.away).map(|away| away.as_secs_f64()),
                    sessions_open: u64::from(load.sessions),
                    turns_open: u64::from(load.turns),
                    upstream_connections: u64::try_from(connections).unwrap_or(0),
                    ..BackendView::from(backend)
                }
            })
            .collect()
    }

    fn sessions(
        &self,
        filter: &SessionFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Page<SessionView> {
        let rules = self.rules.load();
        let now = Instant::now();
        let directory = self.store.lock();
        let rows = directory.page(now, after, limit + 1, &|id, known| {
            let place = known.owner.as_ref().or(known.home.as_ref());
            filter
                .backend
                .as_deref()
                .is_none_or(|b| place.is_some_and(|p| p.as_str() == b))
                && filter
                    .user
                    .as_deref()
                    .is_none_or(|u| user_of(&rules, id.as_str(), known) == Some(u))
        });
        let more = rows.len() > limit;
        let items: Vec<SessionView> = rows
            .into_iter()
            .take(limit)
            .map(|(id, known)| (self.store.turns().get(id.as_str()), id, known))
            .map(|(lock, id, known)| SessionView {
                turn_holder: lock.as_ref().map(|lock| lock.holder.connection.to_string()),
                turn_waiters: lock.map_or(0, |lock| lock.queue.len() as u64),
                user: user_of(&rules, id.as_str(), &known).map(str::to_owned),
                backend: known
                    .owner
                    .as_ref()
                    .or(known.home.as_ref())
                    .map(ToString::to_string),
                open: known.owner.is_some(),
                turn_open: known.in_turn,
                connections: known.holders as u64,
                parked: known.parked.is_some(),
                idle_seconds: directory
                    .idle(now, id.as_str())
                    .map(|idle| idle.as_secs_f64()),
                id: id.to_string(),
            })
            .collect();
        let next = more.then(|| items.last().map(|s| s.id.clone())).flatten();
        Page { items, next }
    }

    fn explain(&self, session: &str, principal: Option<&str>) -> Value {
        let rules = self.rules.load();
        let snapshot = self.pool.current();
        let known = self.store.known(session);
        let access = &rules.mux.access;
        let person = access.owner(known.person.as_deref(), session);
        let asks = principal.map(|name| self.principal(name));
        let key = rules.key_of(session, asks.as_deref());
        let unowned = self.store.lock().unowned(Instant::now());
        let next = match locate::first(locate::Purpose::Resume, &known, &snapshot) {
            Step::Go(to) => format!("goes to backend {}", to.backend),
            Step::Refuse(why) => {
                in_maint(&why, session, &snapshot).unwrap_or_else(|| why.explain(Some(session)))
            }
            Step::Ask(backends) => format!(
                "unknown here: {} are asked whether they have it open or on disk",
                backends
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        let placed = self.store.place(rules.policy, key, &snapshot);
        json!({
            "session": session,
            "user": user_of(&rules, session, &known),
            "user_rule": match (&known.person, access.user_of(session)) {
                (Some(_), _) => "recorded when it was opened",
                (None, Some(_)) => "identity.session_id_user",
                (None, None) => "none",
            },
            "realm": person.as_ref().map(|person| &*person.realm),
            "access": asks.as_deref().map(|asks| access_of(access, asks, session, &known)),
            "sessions_of_nobody": access.authenticates.then_some(unowned),
            "key": key,
            "owner": known.owner.as_ref().map(ToString::to_string),
            "home": known.home.as_ref().map(ToString::to_string),
            "has_history": known.has_history,
            "deleted_lately": known.deleted,
            "connections": known.holders,
            "parked": known.parked.is_some(),
            "turn_open": known.in_turn,
            "turn_lock": self.store.turns().get(session).map(|lock| turn_lock(&lock)),
            "moving": known.moving,
            "next_call": next,
            "placement_if_new": placed.map(|(b, reason)| json!({
                "backend": b.to_string(), "reason": format!("{reason:?}"),
            })),
        })
    }

    fn config(&self) -> Value {
        config::redacted(&self.config.load())
    }

    fn set_state(&self, backend: &str, state: StateChange) -> Result<(), ActionError> {
        let wish = match state {
            StateChange::Drain => Some(AdminState::Drain),
            StateChange::Maint => Some(AdminState::Maint),
            StateChange::Ready => Some(AdminState::Ready),
            StateChange::Reset => None,
        };
        self.pool.set_admin(backend, wish, "api").map_err(refused)?;
        if state == StateChange::Reset {
            // The file's weight is in force again, too.
            self.pool.set_weight(backend, None).map_err(refused)?;
        }
        self.tell_older(backend);
        Ok(())
    }

    fn set_weight(&self, backend: &str, weight: u32) -> Result<(), ActionError> {
        self.pool
            .set_weight(backend, Some(weight))
            .map_err(refused)?;
        self.tell_older(backend);
        Ok(())
    }

    fn reload(&self) -> BoxFuture<'_, Result<String, Value>> {
        Box::pin(async move {
            let (answer, outcome) = oneshot::channel();
            let wish = ReloadWish {
                trigger: "api",
                answer: Some(answer),
            };
            let gone = || json!({ "message": "Taxiway is shutting down" });
            self.reload.send(wish).await.map_err(|_| gone())?;
            outcome.await.map_err(|_| gone())?
        })
    }

    fn audit(&self, client: SocketAddr, action: &str, ok: bool) {
        self.observer.record(&Event::AdminCall {
            client,
            action: action.into(),
            ok,
        });
    }
}

/// Whose a session is, by what is recorded, else by its id.
fn user_of<'a>(rules: &'a Rules, session: &'a str, known: &'a Known) -> Option<&'a str> {
    let recorded = known.person.as_deref().map(|person| &*person.user);
    recorded.or_else(|| rules.mux.access.user_of(session))
}

/// Whether a principal may use a session: the other side of what a client is told.
fn access_of(access: &Access, principal: &Principal, session: &str, known: &Known) -> Value {
    let exists = known.owner.is_some() || known.home.is_some() || known.has_history;
    let judged = access.judge(Some(principal), session, known.person.as_deref(), exists);
    let (decision, reason) = match judged {
        Ok(Relation::Anybody | Relation::Owner) => ("allowed", "it is its own"),
        Ok(Relation::Member) => ("allowed", "it shares it, and may not change it for others"),
        Ok(Relation::Adopter) => ("allowed", "it takes sessions of nobody"),
        Err(denial) => ("denied", denial.label()),
    };
    json!({
        "principal": principal.name.as_ref(),
        "realm": principal.realm.as_ref(),
        "user": principal.user.as_ref(),
        "decision": decision,
        "reason": reason,
    })
}

impl Stagehand {
    /// The principal of this name; one that no configuration names, such as a token's claim, is
    /// taken to be a user.
    fn principal(&self, name: &str) -> Arc<Principal> {
        let rules = self.rules.load();
        let mut configured = rules.principals.entries().iter().map(|e| &e.principal);
        if let Some(principal) = configured.find(|principal| *principal.name == *name) {
            return principal.clone();
        }
        let sole_realm = rules.mux.access.sole_realm.clone();
        let name: Arc<str> = Arc::from(name);
        Arc::new(Principal {
            role: Role::User,
            realm: sole_realm.unwrap_or_else(|| name.clone()),
            user: name.clone(),
            groups: Vec::new(),
            expires: None,
            allow: Vec::new(),
            deny: Vec::new(),
            caps: Caps::default(),
            name,
        })
    }

    fn tell_older(&self, backend: &str) {
        for wish in succession::wishes(&self.pool, Some(backend)) {
            self.primary.tell(&wish);
        }
    }
}

/// Who has the turn of a session, and who waits for it.
fn turn_lock(lock: &turnlock::Lock) -> Value {
    let seconds = |since: Instant| since.elapsed().as_secs_f64();
    let waiting: Vec<Value> = lock
        .queue
        .iter()
        .map(|waiter| {
            json!({
                "connection": waiter.connection.to_string(),
                "user": waiter.user.as_ref().map(ToString::to_string),
                "waits_seconds": seconds(waiter.since),
            })
        })
        .collect();
    let holder = &lock.holder;
    json!({
        "holder": holder.connection.to_string(),
        "user": holder.user.as_ref().map(ToString::to_string),
        "begun_by_server": holder.background,
        "held_seconds": seconds(holder.since),
        "waiting": waiting,
    })
}

/// What a store that cannot be written means.
const STORE_DOWN: &str = "the store cannot be written, goes on in memory: what changes from now on \
                          is lost if Taxiway ends; see the log, and taxiway_store_errors_total";

/// What a disk that was never read means for clients (separate disks only).
const UNREAD: &str = "disk never read: calls on sessions that are known nowhere, and creates with \
                      an id of the client's own, are refused (-32010) until it is read or the \
                      backend is taken out of the configuration";

fn is_unread(backend: &snapshot::Backend, pool: &Snapshot) -> bool {
    pool.mode == Mode::Sticky && !backend.disk_read && !backend.removed
}

fn reason_shown(reason: Option<&str>, unread: bool) -> Option<String> {
    match (reason, unread) {
        (Some(reason), true) => Some(format!("{reason}; {UNREAD}")),
        (None, true) => Some(UNREAD.to_owned()),
        (reason, false) => reason.map(str::to_owned),
    }
}

/// The refusal in words, if it is an operator's doing and not a backend's silence.
fn in_maint(why: &Refusal, session: &str, pool: &Snapshot) -> Option<String> {
    let (Refusal::OwnerAway(backend) | Refusal::HomeAway(backend)) = why else {
        return None;
    };
    pool.get(backend).filter(|b| b.admin == AdminState::Maint)?;
    let tie = if matches!(why, Refusal::OwnerAway(_)) {
        "is open on"
    } else {
        "lives on the disk of"
    };
    Some(format!(
        "session {session} {tie} backend {backend}, which is in maint: `taxiway ready {backend}` \
         gives it back"
    ))
}

fn refused(error: PoolError) -> ActionError {
    match error {
        PoolError::UnknownBackend(name) => ActionError::UnknownBackend(name.to_string()),
        PoolError::ZeroWeight => ActionError::Invalid(error.to_string()),
    }
}
