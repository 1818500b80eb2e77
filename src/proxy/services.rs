//! Calls that Taxiway executes over control connections: aggregates, look-ups, server-wide calls.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use futures_util::future::join_all;
use serde_json::value::RawValue;

use super::{
    Rules, Shared,
    port::{Answer, Boxed},
    sight::Sight,
};
use crate::core::{
    access::Relation,
    aggregate::{self, Failure, Known, Merged},
    id::{BackendName, ConnectionId, SessionId},
    locate::Refusal,
    mux::{Serve, Served, Service, is_session_id},
    reply::ProxyError,
    route::{Aggregate, IdsArray, Spread},
    snapshot::{Mode, Snapshot},
};

/// Sessions that one call may list: their answers share the control connections of all clients.
const MAX_IDS: usize = 1000;

/// Where several users share servers.
const PRUNES_ALL: &str = "it deletes by age, whosever sessions they are: ask for your own with \
                          session.list, and delete them with sessions.bulkDelete";

/// Starts to execute.
pub(super) fn serve(
    shared: &Shared,
    rules: &Arc<Rules>,
    connection: ConnectionId,
    call: Serve,
) -> Boxed<Served> {
    match call.service {
        Service::Provider(kind) => return shared.providers.claim(connection, kind, call.params),
        Service::ByRequestId => {
            return shared
                .providers
                .respond(connection, &call.method, call.params);
        }
        Service::Aggregate(_) | Service::IdsArray(_) | Service::ServerWide(_) => {}
    }
    let shared = shared.clone();
    let rules = rules.clone();
    let sight = Sight::new(&shared, &rules, call.principal.as_ref());
    Box::pin(async move {
        let snapshot = shared.pool.snapshot();
        let params: Option<Box<RawValue>> = call
            .params
            .as_deref()
            .and_then(|p| RawValue::from_string(p.to_owned()).ok());
        let params = params.as_deref();
        let merged = match call.service {
            Service::Aggregate(Aggregate::PruneOld) if sight.is_guarded() => {
                Merged::ProxyError(ProxyError::MethodDenied {
                    method: call.method.clone(),
                    reason: PRUNES_ALL,
                })
            }
            Service::Aggregate(kind) => {
                let (method, mut asked) = aggregate::ask(kind, params);
                if kind == Aggregate::NonEmptyIds && sight.is_guarded() {
                    // The client's own must not be crowded out by others'.
                    asked = "{}".to_owned();
                }
                let answers = all(&shared, &rules, &snapshot, Each::Disk, method, &asked).await;
                let known = |backend: &BackendName| known_on(&shared, backend);
                merge(&answers, |answers| {
                    let visible = |session: &str| sight.of(&shared, session).is_ok();
                    aggregate::merge(kind, params, answers, &known, &visible)
                })
            }
            Service::ServerWide(spread) => {
                let each = if spread == Spread::OnDisk {
                    Each::Disk
                } else {
                    Each::Process
                };
                let asked = call.params.clone().unwrap_or_else(|| "{}".to_owned());
                let answers = all(&shared, &rules, &snapshot, each, &call.method, &asked).await;
                merge(&answers, |answers| {
                    aggregate::server_wide(&call.method, answers)
                })
            }
            Service::IdsArray(kind) => {
                by_owner(
                    &shared,
                    &sight,
                    (&rules, &snapshot),
                    kind,
                    &call.method,
                    params,
                )
                .await
            }
            Service::Provider(_) | Service::ByRequestId => {
                Merged::ProxyError(ProxyError::Cancelled)
            }
        };
        served(merged)
    })
}

/// What was merged, as the answer to the client.
pub(super) fn served(merged: Merged) -> Served {
    match merged {
        Merged::Result(text) => Served::Result(text),
        Merged::BackendError(text) => Served::Relayed(text),
        Merged::ProxyError(error) => Served::Failed(error),
    }
}

/// Which backends hold a copy of what is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Each {
    /// Each disk: one backend where the disk is shared.
    Disk,
    /// Each process.
    Process,
}

/// What each backend answered: a result, an error, or nothing.
pub(super) type Answers = Vec<(BackendName, Result<Box<RawValue>, Option<Box<RawValue>>>)>;

/// Asks all usable backends, or one after the other until one answers where one is enough. Backends
/// that cannot be asked count as silent if their disk is nobody else's.
async fn all(
    shared: &Shared,
    rules: &Rules,
    snapshot: &Snapshot,
    each: Each,
    method: &str,
    params: &str,
) -> Answers {
    if each == Each::Disk && snapshot.mode == Mode::SharedStorage {
        let mut answers = Vec::new();
        for backend in snapshot.backends.iter().filter(|b| b.is_usable()) {
            let answer = one(shared, rules, &backend.name, method, params.to_owned()).await;
            let answered = !matches!(answer.1, Err(None));
            answers.push(answer);
            if answered {
                // The last one spoke for the shared disk: those that were silent before it have
                // nothing to add.
                return answers.split_off(answers.len() - 1);
            }
        }
        return answers;
    }
    let questions = snapshot
        .backends
        .iter()
        .filter(|b| !b.removed || b.is_usable())
        .map(|backend| async move {
            if backend.is_usable() {
                one(shared, rules, &backend.name, method, params.to_owned()).await
            } else {
                (backend.name.clone(), Err(None))
            }
        });
    let mut answers = join_all(questions).await;
    if each == Each::Process {
        // What is down starts anew and reads its settings then.
        answers.retain(|(name, _)| snapshot.get(name).is_some_and(|b| b.is_usable()));
    }
    answers
}

async fn one(
    shared: &Shared,
    rules: &Rules,
    backend: &BackendName,
    method: &str,
    params: String,
) -> (BackendName, Result<Box<RawValue>, Option<Box<RawValue>>>) {
    let answer = shared
        .pool
        .ask(backend, method, params, rules.aggregate_timeout)
        .await;
    let answer = match answer {
        Answer::Result(text) => RawValue::from_string(text).map_err(|_| None),
        Answer::Error(text) => Err(RawValue::from_string(text).ok()),
        Answer::Silent | Answer::Gone => Err(None),
    };
    (backend.clone(), answer)
}

/// Joins what several backends answered.
pub(super) fn merge(
    answers: &Answers,
    merge: impl FnOnce(&[aggregate::Answer<'_>]) -> Merged,
) -> Merged {
    let answers: Vec<_> = answers
        .iter()
        .map(|(backend, answer)| aggregate::Answer {
            backend,
            outcome: match answer {
                Ok(result) => Ok(&**result),
                Err(Some(error)) => Err(Failure::Refused(error)),
                Err(None) => Err(Failure::Silent),
            },
        })
        .collect();
    merge(&answers)
}

/// Splits by the owners of the sessions that are named, asks each for its own, joins.
async fn by_owner(
    shared: &Shared,
    sight: &Sight,
    (rules, snapshot): (&Rules, &Snapshot),
    kind: IdsArray,
    method: &str,
    params: Option<&RawValue>,
) -> Merged {
    let owner_of = |session: &str| {
        let known = shared.store.known(session);
        known.owner.or(known.home)
    };
    let visible = |session: &str| match sight.of(shared, session) {
        // Who shares a session does not delete it.
        Ok(relation) => kind != IdsArray::BulkDelete || relation != Relation::Member,
        // What is no session's id a backend shall refuse in its own words.
        Err(_) => !is_session_id(session),
    };
    let split = aggregate::split(kind, params, &owner_of, &visible);
    if split.len() > MAX_IDS {
        return Merged::ProxyError(ProxyError::LimitExceeded {
            limit: "sessions listed in one call",
            value: MAX_IDS as u64,
        });
    }
    let usable = |name: &BackendName| snapshot.get(name).is_some_and(|b| b.is_usable());
    let any = snapshot
        .backends
        .iter()
        .find(|b| b.is_usable())
        .map(|b| b.name.clone());
    let Some(any) = any else {
        let why = Refusal::NoBackend;
        return Merged::ProxyError(ProxyError::NotLocated { session: None, why });
    };
    let questions = split.parts().iter().map(|part| {
        let backend = part.backend.clone().unwrap_or_else(|| any.clone());
        let params = part.params.clone();
        let unseen = part.unseen.clone();
        async move {
            if let Some(answer) = unseen {
                (backend, RawValue::from_string(answer).map_err(|_| None))
            } else if usable(&backend) {
                one(shared, rules, &backend, method, params).await
            } else {
                (backend, Err(None))
            }
        }
    });
    let answers = join_all(questions).await;
    if kind == IdsArray::BulkDelete {
        let asked = split.parts().iter().map(|part| part.unseen.is_none());
        let asked = answers.iter().zip(asked).filter(|(_, asked)| *asked);
        forget_deleted(shared, asked.map(|(answer, _)| answer));
    }
    merge(&answers, |answers| split.join(answers))
}

/// What `sessions.bulkDelete` says it has freed is gone.
fn forget_deleted<'a>(
    shared: &Shared,
    answers: impl Iterator<Item = &'a (BackendName, Result<Box<RawValue>, Option<Box<RawValue>>>)>,
) {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Freed {
        freed_bytes: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
    }
    let now = Instant::now();
    for result in answers.filter_map(|(_, answer)| answer.as_ref().ok()) {
        let Ok(freed) = serde_json::from_str::<Freed>(result.get()) else {
            continue;
        };
        let mut directory = shared.store.lock();
        for session in freed.freed_bytes.keys() {
            directory.delete(now, &SessionId::from(session.as_str()));
        }
    }
}

/// What the directory knows of a silent backend's disk, with wall-clock times.
fn known_on(shared: &Shared, backend: &BackendName) -> Vec<Known> {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let directory = shared.store.lock();
    directory
        .on_disk_of(now, backend)
        .into_iter()
        .map(|(session, last_use)| Known {
            session,
            last_used: wall
                .checked_sub(now.saturating_duration_since(last_use))
                .unwrap_or(SystemTime::UNIX_EPOCH),
        })
        .collect()
}
