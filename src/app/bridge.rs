//! Where the planes meet: the pool's news go to the directory, the hub and the metrics; the data
//! plane's questions go to the pool.

use std::{sync::Arc, time::Duration, time::Instant};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    control::pool::{self, Answer as PoolAnswer, AskError, Lost, PoolSink},
    core::{
        event::Event,
        frame,
        id::{BackendName, SessionId},
        snapshot::{AdminState, Health, Snapshot},
    },
    observe::Observer,
    proxy::{
        Hub, Pool,
        hub::{self, Message},
        port::{Alive, Answer, Boxed},
    },
    store::{Operator, Store},
    transport::Transport,
};

/// The pool's news, on their way to everybody else.
pub(super) struct News {
    pub(super) store: Store,
    pub(super) hub: Hub,
    pub(super) observer: Observer,
}

impl PoolSink for News {
    fn lifecycle(&self, backend: &BackendName, kind: &str, session: &SessionId, body: Bytes) {
        if kind == "session.deleted" {
            self.store
                .lock()
                .learn_deleted(Instant::now(), session, backend);
        }
        if self.hub.is_empty() {
            return;
        }
        let mut header = Vec::with_capacity(32);
        frame::write_header(body.len(), &mut header);
        let mut framed = BytesMut::with_capacity(header.len() + body.len());
        framed.put_slice(&header);
        framed.put(body);
        let person = self
            .store
            .lock()
            .person(Instant::now(), session.as_str())
            .cloned();
        self.hub.tell(hub::News::Lifecycle {
            session: session.clone(),
            person,
            frame: framed.freeze(),
        });
    }

    fn disk(&self, backend: &BackendName, sessions: &[SessionId]) {
        self.store
            .lock()
            .learn_disk(Instant::now(), backend, sessions);
    }

    fn backend_lost(&self, backend: &BackendName, how: Lost) {
        // Client connections that are attached there see their own upstream connections end, and
        // give their sessions back one by one; a silent backend keeps its sessions, and one that
        // it was asked to close while it was silent may be open still.
        let mut directory = self.store.lock();
        match how {
            Lost::Gone => directory.backend_gone(Instant::now(), backend),
            Lost::Silent | Lost::Violation => directory.backend_silent(Instant::now(), backend),
        }
        drop(directory);
        if how == Lost::Silent {
            // Whoever waits for its answer is told now.
            self.hub.publish(&Message::BackendSilent(backend.clone()));
        }
    }

    fn given_up(&self, backend: &BackendName) {
        self.hub.publish(&Message::BackendReleased(backend.clone()));
    }

    fn moved_from(&self, backend: &BackendName) -> Vec<SessionId> {
        self.store.lock().moved_from(backend)
    }

    fn cleaned(&self, backend: &BackendName, sessions: &[SessionId]) {
        self.store.lock().cleaned(backend, sessions);
    }

    fn operator(&self, backend: &BackendName, state: Option<AdminState>, weight: Option<u32>) {
        // Whoever gave the command waits for the disk, on the admin server's thread.
        self.store.keep_operator_blocking(Operator {
            backend: backend.clone(),
            state,
            weight,
        });
    }

    fn in_use(&self, backend: &BackendName) -> usize {
        let sessions = self.store.lock().load(backend).sessions as usize;
        // Asked for the last time when it is gone already: that must not bring its series back.
        let connections = self
            .observer
            .metrics()
            .known_backend(backend)
            .map_or(0, |series| series.upstream_connections());
        sessions.max(usize::try_from(connections).unwrap_or(0))
    }

    fn event(&self, event: Event) {
        if let Event::BackendHealth {
            backend, to, cause, ..
        } = &event
        {
            let cause = match to {
                Health::Down => Some(cause.unwrap_or("other")),
                Health::StorageMismatch => Some("storage_mismatch"),
                Health::Unknown | Health::Up | Health::Slow | Health::Probation => None,
            };
            if let Some(cause) = cause {
                self.observer.metrics().backend(backend).ejected(cause);
            }
        }
        if let Event::BackendHealth {
            backend,
            to: Health::Up | Health::Probation,
            ..
        } = &event
        {
            self.store.lock().backend_back(backend);
            self.hub.publish(&Message::BackendBack(backend.clone()));
        }
        if let Event::BackendRemoved {
            backend,
            sessions: 0,
        } = &event
        {
            let mut directory = self.store.lock();
            directory.backend_gone(Instant::now(), backend);
            directory.backend_returned(backend);
            drop(directory);
            self.observer.metrics().forget_backend(backend);
        }
        if let Event::BackendReleased { backend, .. } = &event {
            let now = Instant::now();
            self.store.lock().backend_released(now, backend);
        }
        if let Event::BackendReturned { backend, .. } = &event {
            self.store.lock().backend_returned(backend);
        }
        self.observer.record(&event);
    }
}

/// Brings the gauges of every backend up to date; called before each scrape.
pub(super) fn refresh_gauges(
    observer: &Observer,
    store: &Store,
    snapshot: &Snapshot,
    pool: &pool::Pool,
) {
    let metrics = observer.metrics();
    metrics.pool_panic(snapshot.panic);
    metrics.store_unwritten(store.unwritten());
    metrics.set_queue_length("turn_lock", store.turns().waiting());
    let loads: Vec<_> = {
        let directory = store.lock();
        let configured = |home: &BackendName| snapshot.get(home).is_some_and(|b| !b.removed);
        let stranded = directory.stranded(configured);
        metrics.sessions_stranded(i64::try_from(stranded).unwrap_or(i64::MAX));
        snapshot
            .backends
            .iter()
            .map(|b| directory.load(&b.name))
            .collect()
    };
    for (backend, load) in snapshot.backends.iter().zip(loads) {
        let series = metrics.backend(&backend.name);
        series.set_sessions_open(i64::from(load.sessions));
        series.set_turns_open(i64::from(load.turns));
        series.set_health(backend.health);
        series.set_admin(backend.admin);
        series.set_version(backend.version.as_deref(), backend.protocol_version);
    }
    for observation in pool.observations() {
        if let Some(ping) = observation.ping
            && snapshot.get(&observation.name).is_some()
        {
            metrics.backend(&observation.name).set_ping_ewma(ping);
        }
    }
    metrics.retain_backends(|name| pool.current().get(name).is_some());
}

/// The pool, as the data plane sees it.
#[derive(Clone)]
pub(super) struct Port(pub(super) pool::Pool);

struct Mark(Arc<pool::Activity>);

impl Alive for Mark {
    fn mark(&self) {
        self.0.mark();
    }
}

impl Pool for Port {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.current()
    }

    fn ask(
        &self,
        backend: &BackendName,
        method: &str,
        params: String,
        timeout: Duration,
    ) -> Boxed<Answer> {
        let (pool, backend, method) = (self.0.clone(), backend.clone(), method.to_owned());
        Box::pin(async move {
            match pool.ask(&backend, &method, &params, timeout).await {
                Ok(PoolAnswer::Result(text)) => Answer::Result(text.get().to_owned()),
                Ok(PoolAnswer::Error { raw, .. }) => Answer::Error(raw.get().to_owned()),
                Err(AskError::TimedOut | AskError::Unusable) => Answer::Silent,
                Err(AskError::Lost) => Answer::Gone,
            }
        })
    }

    fn changed(&self, since: u64) -> Boxed<()> {
        let mut snapshots = self.0.snapshots();
        Box::pin(async move {
            // A pool that has ended does not change any more.
            if snapshots
                .wait_for(|now| now.generation != since)
                .await
                .is_err()
            {
                std::future::pending().await
            }
        })
    }

    fn report_unreachable(&self, backend: &BackendName) {
        self.0.report_connect_failed(backend);
    }

    fn report_violation(&self, backend: &BackendName, what: &str) {
        self.0.report_violation(backend, what);
    }

    fn transport(&self, backend: &BackendName) -> Transport {
        self.0.transport(backend)
    }

    fn activity(&self, backend: &BackendName) -> Option<Arc<dyn Alive>> {
        let activity = self.0.activity(backend)?;
        Some(Arc::new(Mark(activity)))
    }
}
