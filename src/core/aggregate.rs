//! Merging the answers of several backends into one: questions about all sessions, questions that
//! list sessions, and server-wide changes. Asks nobody, waits for nobody, and does not re-encode
//! the entries it passes on.
//!
//! What happens where a backend is silent depends on what the answer is for:
//! - *Lists* (`session.list`, `sessions.list`, `getSizes`, `listNonEmptySessionIds`,
//!   `getClientMetadata`, `enrichMetadata`) are partial, and say so. `findByTaskId` is complete as
//!   soon as there is a hit.
//! - *Decisions* (`getLastId`, `getLastForContext`, `findByPrefix`, `checkInUse`: the caller opens,
//!   or leaves alone, the session they name) and *changes* (`bulkDelete`, `pruneOld`) are refused:
//!   a wrong session would be worse than none. Changes may be partly done by then, and may be
//!   repeated.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    time::SystemTime,
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    id::{BackendName, SessionId},
    reply::{ProxyError, quoted},
    route::Aggregate,
};

mod ids;
mod lists;

pub use ids::{Part, Split, split};
use lists::{find_by_prefix, last_for_context, last_id, list};

/// What one backend made of a question.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Who was asked.
    pub backend: &'a BackendName,
    /// The `result` of its answer, or why there is none.
    pub outcome: Result<&'a RawValue, Failure<'a>>,
}

/// Why a backend gave no result.
#[derive(Clone, Copy, Debug)]
pub enum Failure<'a> {
    /// Unusable, lost, or too late.
    Silent,
    /// It refused: the `error` of its answer.
    Refused(&'a RawValue),
}

/// The one answer for the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Merged {
    /// JSON text of a `result`.
    Result(String),
    /// JSON text of an `error` that a backend made.
    BackendError(String),
    /// An error that Taxiway makes.
    ProxyError(ProxyError),
}

/// A session on a silent backend, as far as the directory knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// Its id.
    pub session: SessionId,
    /// When it was last heard of; SDKs cannot read an entry without a time.
    pub last_used: SystemTime,
}

/// What to ask each backend in place of the client's question: method and params.
///
/// Where the backends' own answers could not be compared (a last id carries no time; an ambiguous
/// prefix looks like an unknown one), all are asked for their lists instead.
pub fn ask(kind: Aggregate, params: Option<&RawValue>) -> (&'static str, String) {
    let same = || params.map_or_else(|| "{}".to_owned(), |params| params.get().to_owned());
    match kind {
        Aggregate::SessionList => ("session.list", same()),
        Aggregate::SessionsList => ("sessions.list", same()),
        Aggregate::LastId | Aggregate::LastForContext | Aggregate::FindByPrefix => {
            ("session.list", "{}".to_owned())
        }
        Aggregate::Sizes => ("sessions.getSizes", same()),
        Aggregate::NonEmptyIds => ("sessions.listNonEmptySessionIds", same()),
        Aggregate::FindByTaskId => ("sessions.findByTaskId", same()),
        Aggregate::PruneOld => ("sessions.pruneOld", same()),
    }
}

/// Merges the answers to [`ask`]. `params` are the client's; `known` gives the directory's sessions
/// of a silent backend; `visible` tells which sessions the client may see.
///
/// An answer of another shape than a CLI gives counts as silence.
pub fn merge(
    kind: Aggregate,
    params: Option<&RawValue>,
    answers: &[Answer<'_>],
    known: &dyn Fn(&BackendName) -> Vec<Known>,
    visible: &dyn Fn(&str) -> bool,
) -> Merged {
    let params = Params::of(params);
    let merged = match kind {
        Aggregate::SessionList | Aggregate::SessionsList => list(&params, answers, known, visible),
        Aggregate::LastId => last_id(answers, visible),
        Aggregate::LastForContext => last_for_context(&params, answers, visible),
        Aggregate::FindByPrefix => find_by_prefix(&params, answers, visible),
        Aggregate::FindByTaskId => find_by_task(answers, visible),
        Aggregate::Sizes => sizes(answers, visible),
        Aggregate::NonEmptyIds => non_empty(&params, answers, visible),
        Aggregate::PruneOld => prune(answers, visible),
    };
    merged.unwrap_or_else(|failure| failure)
}

/// Merges the answers to a server-wide change: the first result if all have one, else a failure
/// that names its backend.
pub fn server_wide(method: &str, answers: &[Answer<'_>]) -> Merged {
    let failed = answers
        .iter()
        .find_map(|a| a.outcome.err().map(|failure| (a.backend, failure)));
    match (failed, answers) {
        (None, []) => unavailable(None),
        (None, [first, ..]) => Merged::Result(
            first
                .outcome
                .map(RawValue::get)
                .unwrap_or("null")
                .to_owned(),
        ),
        (Some((backend, Failure::Silent)), _) => Merged::ProxyError(ProxyError::BackendLost {
            backend: backend.clone(),
            method: method.to_owned(),
        }),
        (Some((_, Failure::Refused(error))), [_]) => Merged::BackendError(error.get().to_owned()),
        (Some((backend, Failure::Refused(error))), _) => named(backend, error),
    }
}

/// A backend's error with the backend's name before its message.
fn named(backend: &BackendName, error: &RawValue) -> Merged {
    #[derive(Deserialize)]
    struct Error<'a> {
        code: i64,
        #[serde(borrow)]
        message: Cow<'a, str>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    let Some(error) = object::<Error<'_>>(error) else {
        return unavailable(Some(backend));
    };
    let message = quoted(&format!("Backend {backend}: {}", error.message));
    let data = error
        .data
        .map_or_else(String::new, |data| format!(",\"data\":{}", data.get()));
    Merged::BackendError(format!(
        "{{\"code\":{},\"message\":{message}{data}}}",
        error.code
    ))
}

fn unavailable(backend: Option<&BackendName>) -> Merged {
    Merged::ProxyError(ProxyError::BackendUnavailable {
        session: None,
        backend: backend.cloned(),
    })
}

/// A client's params by member; of duplicates the last counts, as in the CLI.
struct Params<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Params<'a> {
    fn of(params: Option<&'a RawValue>) -> Self {
        Self(
            params
                .and_then(|p| serde_json::from_str(p.get()).ok())
                .unwrap_or_default(),
        )
    }

    fn read<T: Deserialize<'a>>(&self, member: &str) -> Option<T> {
        self.0
            .get(member)
            .and_then(|value| serde_json::from_str(value.get()).ok())
    }
}

/// Reads a struct from a JSON object. Not from an array, which serde would take for one, too.
fn object<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    let text = value.get();
    text.trim_start()
        .starts_with('{')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// Answers that could be read, and who gave none.
struct Heard<'a, T> {
    answers: Vec<T>,
    missing: Vec<&'a BackendName>,
}

impl<'a, T> Heard<'a, T> {
    /// Reads all answers; fails if there is not one that can be read.
    fn of(
        answers: &[Answer<'a>],
        read: impl Fn(&'a RawValue) -> Option<T>,
    ) -> Result<Self, Merged> {
        let mut heard = Self {
            answers: Vec::new(),
            missing: Vec::new(),
        };
        let mut refusal = None;
        for answer in answers {
            match answer.outcome {
                Ok(result) => {
                    if let Some(read) = read(result) {
                        heard.answers.push(read);
                        continue;
                    }
                }
                Err(Failure::Refused(error)) => {
                    refusal.get_or_insert(error);
                }
                Err(Failure::Silent) => {}
            }
            heard.missing.push(answer.backend);
        }
        match refusal {
            _ if !heard.answers.is_empty() => Ok(heard),
            Some(error) => Err(Merged::BackendError(error.get().to_owned())),
            None => Err(unavailable(match heard.missing[..] {
                [only] => Some(only),
                _ => None,
            })),
        }
    }

    /// For answers on which something depends.
    fn complete(self) -> Result<Vec<T>, Merged> {
        match self.missing.first() {
            Some(backend) => Err(unavailable(Some(backend))),
            None => Ok(self.answers),
        }
    }
}

fn find_by_task(answers: &[Answer<'_>], visible: &dyn Fn(&str) -> bool) -> Result<Merged, Merged> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Hit<'a> {
        #[serde(borrow, default)]
        session_id: Option<Cow<'a, str>>,
    }
    let heard = Heard::of(answers, object::<Hit<'_>>)?;
    let hit = heard
        .answers
        .iter()
        .filter_map(|h| h.session_id.as_deref())
        .find(|s| visible(s));
    if let (None, Some(backend)) = (hit, heard.missing.first()) {
        return Err(unavailable(Some(backend)));
    }
    Ok(found(hit))
}

fn sizes(answers: &[Answer<'_>], visible: &dyn Fn(&str) -> bool) -> Result<Merged, Merged> {
    #[derive(Deserialize)]
    struct Sizes<'a> {
        #[serde(borrow)]
        sizes: BTreeMap<String, &'a RawValue>,
    }
    let heard = Heard::of(answers, object::<Sizes<'_>>)?;
    let mut all: BTreeMap<&str, &RawValue> = BTreeMap::new();
    for (session, size) in heard.answers.iter().flat_map(|answer| &answer.sizes) {
        if visible(session) {
            all.entry(session).or_insert(size);
        }
    }
    let body = comma_separated(
        all.iter()
            .map(|(id, size)| format!("{}:{size}", quoted(id))),
    );
    Ok(Merged::Result(format!(
        "{{\"sizes\":{{{body}}}{}}}",
        missing(&heard.missing)
    )))
}

/// The ids carry no time, but each answer is newest first: the newest of each backend come first,
/// then the second newest, and so on.
fn non_empty(
    params: &Params<'_>,
    answers: &[Answer<'_>],
    visible: &dyn Fn(&str) -> bool,
) -> Result<Merged, Merged> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Ids {
        session_ids: Vec<String>,
    }
    let heard = Heard::of(answers, object::<Ids>)?;
    let mut ranked: Vec<(usize, &str)> = heard
        .answers
        .iter()
        .flat_map(|answer| answer.session_ids.iter().map(String::as_str).enumerate())
        .filter(|(_, session)| visible(session))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut seen = HashSet::new();
    ranked.retain(|(_, session)| seen.insert(*session));
    // As in the CLI: a limit that is no count is no limit.
    let limit = params.read::<usize>("limit").unwrap_or(usize::MAX);
    let body = comma_separated(
        ranked
            .iter()
            .take(limit)
            .map(|(_, session)| quoted(session)),
    );
    Ok(Merged::Result(format!(
        "{{\"sessionIds\":[{body}]{}}}",
        missing(&heard.missing)
    )))
}

fn prune(answers: &[Answer<'_>], visible: &dyn Fn(&str) -> bool) -> Result<Merged, Merged> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Pruned {
        deleted: Vec<String>,
        candidates: Vec<String>,
        skipped: Vec<String>,
        freed_bytes: u64,
        dry_run: bool,
    }
    let all = Heard::of(answers, object::<Pruned>)?.complete()?;
    let union = |part: fn(&Pruned) -> &Vec<String>| {
        let mut seen = HashSet::new();
        let sessions = all
            .iter()
            .flat_map(part)
            .filter(|s| visible(s) && seen.insert(s.as_str()));
        comma_separated(sessions.map(|session| quoted(session)))
    };
    let freed = all
        .iter()
        .fold(0u64, |sum, pruned| sum.saturating_add(pruned.freed_bytes));
    Ok(Merged::Result(format!(
        "{{\"deleted\":[{}],\"candidates\":[{}],\"skipped\":[{}],\"freedBytes\":{freed},\
         \"dryRun\":{}}}",
        union(|p| &p.deleted),
        union(|p| &p.candidates),
        union(|p| &p.skipped),
        all.iter().all(|pruned| pruned.dry_run)
    )))
}

fn found(session: Option<&str>) -> Merged {
    Merged::Result(match session {
        Some(session) => format!("{{\"sessionId\":{}}}", quoted(session)),
        None => "{}".to_owned(),
    })
}

/// The CLI's words for a member it cannot do without.
fn lacks(method: &str, member: &str) -> Merged {
    Merged::ProxyError(ProxyError::Failed {
        method: method.to_owned(),
        message: format!("missing or non-string parameter '{member}'"),
    })
}

/// The member that tells a partial answer; nothing for a complete one.
fn missing(backends: &[&BackendName]) -> String {
    if backends.is_empty() {
        return String::new();
    }
    let names = comma_separated(backends.iter().map(|backend| quoted(backend.as_str())));
    format!(",\"taxiway\":{{\"missing\":[{names}]}}")
}

fn comma_separated(parts: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut out = String::new();
    for part in parts {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(part.as_ref());
    }
    out
}

#[cfg(test)]
mod tests;
