//! Taxiway's own registrations as the process-wide provider of every backend, relayed to the client
//! that claimed the place (`core::provider` has the rules). No frame of a session comes through
//! here, and a claim moves no session.
//!
//! From the first claim on there is one connection to each usable backend, for all places. It stays
//! when the client leaves: a CLI would never take another. A backend that joins or comes back is
//! given its registrations first and sessions only then (`Providers::unprepared`).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ahash::RandomState;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, oneshot};

use self::link::{Command, Link};
use super::{
    Rules,
    hub::{Hub, Message},
    port::{Answer, Boxed, Pool},
    services,
};
use crate::{
    core::{
        aggregate,
        event::Event,
        frame::write_header,
        id::{BackendName, ConnectionId},
        mux::Served,
        provider::{self, Board, Claim, Exchange, Failure, Unasked},
        reply::ProxyError,
        route::Provider,
        snapshot::Snapshot,
    },
    observe::Observer,
    store::Store,
};

mod link;
#[cfg(test)]
pub(super) mod tests;

/// How often the pool is looked at for backends that joined or came back.
const LOOK: Duration = Duration::from_millis(100);

/// How long a claim waits for a backend's answer, its connection included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest params of a claim, in bytes: they are kept as long as Taxiway runs.
const MAX_PARAMS: usize = 64 * 1024;

/// The provider places of the pool; clones share them.
#[derive(Clone)]
pub struct Providers {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Arc<dyn Pool>,
    store: Store,
    hub: Hub,
    observer: Observer,
    rules: Arc<ArcSwap<Rules>>,
    board: Mutex<Board>,
    links: Mutex<HashMap<BackendName, Link, RandomState>>,
    /// Whether any place is in force; lets every other path go by without a lock.
    in_force: AtomicBool,
    /// Whether somebody looks after the links.
    tended: AtomicBool,
    /// A backend waits for its registrations.
    wanted: Notify,
}

impl Providers {
    /// No place is taken. The arguments are those of [`Shared`](super::Shared).
    pub fn new(
        pool: Arc<dyn Pool>,
        store: Store,
        hub: Hub,
        observer: Observer,
        rules: Arc<ArcSwap<Rules>>,
    ) -> Self {
        let inner = Inner {
            pool,
            store,
            hub,
            observer,
            rules,
            board: Mutex::default(),
            links: Mutex::default(),
            in_force: AtomicBool::new(false),
            tended: AtomicBool::new(false),
            wanted: Notify::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Usable backends that have not taken the registrations in force yet: a session there would
    /// bypass the provider. Has them looked after.
    pub(super) fn unprepared(&self, pool: &Snapshot) -> Vec<BackendName> {
        if !self.inner.in_force.load(Ordering::Acquire) {
            return Vec::new();
        }
        let unprepared = self.inner.board().unprepared(pool);
        if !unprepared.is_empty() {
            self.inner.wanted.notify_one();
        }
        unprepared
    }

    /// Whether this backend is one of [`unprepared`](Self::unprepared).
    pub(super) fn awaits(&self, backend: &BackendName) -> bool {
        self.inner.in_force.load(Ordering::Acquire) && !self.inner.board().due(backend).is_empty()
    }

    /// A client claims a place; the future is the answer to its call. If it is dropped, the client
    /// must [`leave`](Self::leave).
    pub(super) fn claim(
        &self,
        client: ConnectionId,
        kind: Provider,
        params: Option<String>,
    ) -> Boxed<Served> {
        let params: Arc<str> = params.unwrap_or_else(|| "{}".to_owned()).into();
        if params.len() > MAX_PARAMS {
            self.inner.limit_hit("provider_params");
            let limit = "provider_params";
            let error = ProxyError::LimitExceeded {
                limit,
                value: MAX_PARAMS as u64,
            };
            return ready(Served::Failed(error));
        }
        let sessions_open = self.inner.store.lock().open() > 0;
        match self
            .inner
            .board()
            .claim(kind, client, &params, sessions_open)
        {
            Ok(Claim::Register) => {}
            Ok(Claim::InForce) => return ready(Served::Result("null".to_owned())),
            Err(error) => return ready(Served::Failed(error)),
        }
        self.tend();
        let snapshot = self.inner.pool.snapshot();
        let answers = snapshot
            .backends
            .iter()
            .filter(|b| b.is_usable())
            .map(|backend| {
                let (reply, answer) = oneshot::channel();
                let params = params.clone();
                let register = Command::Register {
                    kind,
                    params,
                    reply,
                };
                // If it cannot be queued, `reply` is dropped: the backend counts as silent.
                self.inner.link(&backend.name).send(register);
                let name = backend.name.clone();
                async move { (name, settled(tokio::time::timeout(PATIENCE, answer).await)) }
            });
        let answers = join_all(answers.collect::<Vec<_>>());
        let inner = self.inner.clone();
        Box::pin(async move {
            let answers = answers.await;
            let succeeded = !answers.is_empty() && answers.iter().all(|(_, a)| a.is_ok());
            inner.board().settle(kind, client, &params, succeeded);
            if succeeded {
                inner.in_force.store(true, Ordering::Release);
            }
            let merge = |answers: &[aggregate::Answer<'_>]| {
                aggregate::server_wide(provider::method(kind), answers)
            };
            services::served(services::merge(&answers, merge))
        })
    }

    /// A client's call about a request of a backend, by `params.requestId`. What it writes goes out
    /// in the order of these calls.
    pub(super) fn respond(
        &self,
        client: ConnectionId,
        method: &str,
        params: Option<String>,
    ) -> Boxed<Served> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Part {
            request_id: String,
            #[serde(default)]
            end: bool,
        }
        // The CLI's answer about a request that it does not know, whatever the reason.
        let unknown = || ready(Served::Result(link::NOT_ACCEPTED.to_owned()));
        let Some(params) = params else {
            return unknown();
        };
        let Ok(Part { request_id, end }) = serde_json::from_str(&params) else {
            return unknown();
        };
        let backend = {
            let mut board = self.inner.board();
            let backend = board.responds(client, &request_id);
            if end && backend.is_some() {
                board.finish(&request_id);
            }
            backend
        };
        let Some(backend) = backend else {
            return unknown();
        };
        let (reply, answer) = oneshot::channel();
        let exchange = (!end).then(|| request_id.into_boxed_str());
        let call = Command::Call {
            method: method.to_owned(),
            params,
            exchange,
            reply,
        };
        if !self.inner.link(&backend).send(call) {
            self.inner.limit_hit("provider_link");
            let value = link::MAX_QUEUED as u64;
            let error = ProxyError::LimitExceeded {
                limit: "provider_link",
                value,
            };
            return ready(Served::Failed(error));
        }
        let method = method.to_owned();
        Box::pin(async move {
            match answer.await {
                Ok(Answer::Result(result)) => Served::Result(result),
                Ok(Answer::Error(error)) => Served::Relayed(error),
                Ok(Answer::Silent | Answer::Gone) | Err(_) => {
                    Served::Failed(ProxyError::BackendLost { backend, method })
                }
            }
        })
    }

    /// The client's answer to a request under `token`: the body, and where its id stands.
    pub(super) fn answer(&self, token: u64, body: &[u8], id: std::ops::Range<usize>) {
        let Some((backend, original)) = self.inner.board().answered(token) else {
            return;
        };
        let mut frame = Vec::with_capacity(body.len() + original.len() + 32);
        write_header(body.len() - id.len() + original.len(), &mut frame);
        frame.extend_from_slice(&body[..id.start]);
        frame.extend_from_slice(&original);
        frame.extend_from_slice(&body[id.end..]);
        let link = self.inner.link(&backend);
        if !link.send(Command::Write(frame)) {
            self.inner.limit_hit("provider_link");
            let why = Unasked::Limit("provider_link", link::MAX_QUEUED);
            // Only the words of the error depend on the place.
            let kind = Provider::LlmInference;
            let failure = Failure {
                backend,
                kind,
                id: Some(original),
                exchange: None,
            };
            link.send(Command::Fail(failure, why));
        }
    }

    /// The client cannot be asked what stands under `token`.
    pub(super) fn refused(&self, token: u64) {
        let failure = self.inner.board().refused(token);
        if let Some(failure) = failure {
            let why = Unasked::Limit("provider_requests", provider::MAX_REQUESTS);
            self.inner.limit_hit("provider_requests");
            self.inner.fail(failure, why);
        }
    }

    /// The client has left: what awaits it fails, and the next may claim.
    pub(super) fn leave(&self, client: ConnectionId) {
        if !self.inner.tended.load(Ordering::Acquire) {
            return;
        }
        let failures = self.inner.board().leave(client);
        for failure in failures {
            self.inner.fail(failure, Unasked::Vacant);
        }
    }

    /// Starts to look after the links, once.
    fn tend(&self) {
        if self.inner.tended.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = self.inner.clone();
        // For as long as the process runs: no CLI releases a registration.
        tokio::spawn(async move {
            loop {
                // Nothing is due in time: either it is asked for, or the next look finds it.
                let _ = tokio::time::timeout(LOOK, inner.wanted.notified()).await;
                inner.look();
            }
        });
    }
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Providers").finish_non_exhaustive()
    }
}

impl Inner {
    fn board(&self) -> MutexGuard<'_, Board> {
        // A panic under the lock is a bug of ours; the table itself is whole between two calls.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<BackendName, Link, RandomState>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link to `backend`: the one there is, or a new one.
    fn link(self: &Arc<Self>, backend: &BackendName) -> Link {
        let mut links = self.links();
        let link = links.entry(backend.clone()).or_insert_with(|| {
            let (link, commands) = Link::new();
            tokio::spawn(link::run(self.clone(), backend.clone(), commands));
            link
        });
        link.clone()
    }

    /// Has every backend registered that is due, and lets go of those that have left the pool.
    fn look(self: &Arc<Self>) {
        let snapshot = self.pool.snapshot();
        let gone = |name: &BackendName| match snapshot.get(name) {
            Some(backend) => backend.removed && self.store.lock().load(name).sessions == 0,
            None => true,
        };
        self.links().retain(|name, _| !gone(name));
        if !self.in_force.load(Ordering::Acquire) {
            return;
        }
        for backend in snapshot
            .backends
            .iter()
            .filter(|b| b.is_usable() && !gone(&b.name))
        {
            if !self.board().due(&backend.name).is_empty() {
                self.link(&backend.name).send(Command::Prepare);
            }
        }
    }

    /// Puts a backend's request to the client that holds the place. The error is for the backend.
    fn relay(
        &self,
        backend: &BackendName,
        kind: Provider,
        id: &[u8],
        exchange: Exchange<'_>,
        body: &bytes::Bytes,
    ) -> Result<(), (Unasked, Failure)> {
        let asked = self.board().ask(backend, kind, id, exchange, body.len());
        let (token, client) = asked.inspect_err(|(why, _)| {
            if let Unasked::Limit(limit, _) = why {
                self.limit_hit(limit);
            }
        })?;
        let request = Message::ProviderRequest {
            token,
            body: body.clone(),
        };
        if self.hub.send(client, request) {
            return Ok(());
        }
        match self.board().refused(token) {
            Some(failure) => Err((Unasked::Vacant, failure)),
            // It was failed by the client's leaving.
            None => Ok(()),
        }
    }

    /// Tells a backend that nobody will answer.
    fn fail(&self, failure: Failure, why: Unasked) {
        let link = self.links().get(&failure.backend).cloned();
        if let Some(link) = link {
            link.send(Command::Fail(failure, why));
        }
    }

    fn limit_hit(&self, limit: &'static str) {
        self.observer.record(&Event::LimitHit {
            connection: None,
            limit,
        });
    }
}

fn ready(served: Served) -> Boxed<Served> {
    Box::pin(std::future::ready(served))
}

/// What a backend said to a registration.
fn settled<T, E>(
    answer: Result<Result<Answer, T>, E>,
) -> Result<Box<RawValue>, Option<Box<RawValue>>> {
    match answer {
        Ok(Ok(Answer::Result(text))) => RawValue::from_string(text).map_err(|_| None),
        Ok(Ok(Answer::Error(text))) => Err(RawValue::from_string(text).ok()),
        Ok(Ok(Answer::Silent | Answer::Gone) | Err(_)) | Err(_) => Err(None),
    }
}
