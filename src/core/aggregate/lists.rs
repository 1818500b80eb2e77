//! What is read out of the session lists of all backends: the one list, the last session, the
//! session of a prefix. Ranks as CLI 1.0.102 was seen to rank; asks nobody.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    time::SystemTime,
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Answer, Heard, Known, Merged, Params, comma_separated, found, lacks, missing, object,
    unavailable,
};
use crate::core::{id::BackendName, reply::quoted};

/// One entry of a session list.
struct Entry<'a> {
    session: Cow<'a, str>,
    modified: SystemTime,
    context: Option<Context<'a>>,
    raw: Cow<'a, str>,
}

/// Where a session works, as far as relevance is judged by it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Context<'a> {
    #[serde(borrow, default)]
    cwd: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    git_root: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    repository: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    branch: Option<Cow<'a, str>>,
}

impl Context<'_> {
    /// As a CLI 1.0.102 ranks: repository and branch, repository, git root, directory, anything.
    fn relevance(&self, session: &Context<'_>) -> u8 {
        fn same(a: Option<&Cow<'_, str>>, b: Option<&Cow<'_, str>>) -> bool {
            a.is_some() && a == b
        }
        if same(self.repository.as_ref(), session.repository.as_ref()) {
            3 + u8::from(same(self.branch.as_ref(), session.branch.as_ref()))
        } else if same(self.git_root.as_ref(), session.git_root.as_ref()) {
            2
        } else {
            u8::from(same(self.cwd.as_ref(), session.cwd.as_ref()))
        }
    }
}

/// The entries of one answer to `session.list` or `sessions.list`.
fn entries(result: &RawValue) -> Option<Vec<Entry<'_>>> {
    #[derive(Deserialize)]
    struct Sessions<'a> {
        #[serde(borrow)]
        sessions: Vec<&'a RawValue>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head<'a> {
        #[serde(borrow)]
        session_id: Cow<'a, str>,
        #[serde(borrow, default)]
        modified_time: Option<&'a RawValue>,
        #[serde(borrow, default)]
        context: Option<&'a RawValue>,
    }
    let list: Sessions<'_> = object(result)?;
    list.sessions
        .into_iter()
        .map(|raw| {
            let head: Head<'_> = object(raw)?;
            Some(Entry {
                session: head.session_id,
                modified: head.modified_time.map_or(SystemTime::UNIX_EPOCH, time),
                context: head
                    .context
                    .and_then(|c| serde_json::from_str(c.get()).ok()),
                raw: Cow::Borrowed(raw.get()),
            })
        })
        .collect()
}

/// A JSON string with a time; the epoch if it is none, so that the entry sorts last.
fn time(text: &RawValue) -> SystemTime {
    serde_json::from_str::<Cow<'_, str>>(text.get())
        .ok()
        .and_then(|text| humantime::parse_rfc3339(&text).ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Sorts newest first and keeps the newest of each session.
fn newest_first(entries: &mut Vec<Entry<'_>>) {
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.modified));
    let mut seen = HashSet::new();
    let first: Vec<bool> = entries
        .iter()
        .map(|e| seen.insert(e.session.to_string()))
        .collect();
    let mut first = first.into_iter();
    entries.retain(|_| first.next() == Some(true));
}

pub(super) fn list(
    params: &Params<'_>,
    answers: &[Answer<'_>],
    known: &dyn Fn(&BackendName) -> Vec<Known>,
    visible: &dyn Fn(&str) -> bool,
) -> Result<Merged, Merged> {
    let heard = Heard::of(answers, entries)?;
    let mut all: Vec<Entry<'_>> = heard.answers.into_iter().flatten().collect();
    let total = all.len();
    all.retain(|entry| visible(&entry.session));
    if let (
        [
            Answer {
                outcome: Ok(only), ..
            },
        ],
        true,
    ) = (answers, all.len() == total)
    {
        return Ok(Merged::Result(only.get().to_owned()));
    }
    // The directory knows no directories, branches and repositories: under a filter its sessions
    // might be wrong ones.
    let unfiltered = params
        .read::<BTreeMap<String, &RawValue>>("filter")
        .is_none_or(|filter| filter.is_empty());
    if unfiltered {
        for backend in &heard.missing {
            all.extend(
                known(backend)
                    .into_iter()
                    .filter(|k| visible(k.session.as_str()))
                    .map(|k| Entry {
                        raw: Cow::Owned(bare_entry(&k)),
                        session: Cow::Owned(k.session.as_str().to_owned()),
                        modified: k.last_used,
                        context: None,
                    }),
            );
        }
    }
    newest_first(&mut all);
    let body = comma_separated(all.iter().map(|entry| &*entry.raw));
    Ok(Merged::Result(format!(
        "{{\"sessions\":[{body}]{}}}",
        missing(&heard.missing)
    )))
}

/// What a CLI says of a session whose files it has not read.
fn bare_entry(known: &Known) -> String {
    let time = humantime::format_rfc3339_millis(known.last_used);
    format!(
        "{{\"sessionId\":{},\"startTime\":\"{time}\",\"modifiedTime\":\"{time}\",\
         \"isRemote\":false,\"isDetached\":false}}",
        quoted(known.session.as_str())
    )
}

pub(super) fn last_id(
    answers: &[Answer<'_>],
    visible: &dyn Fn(&str) -> bool,
) -> Result<Merged, Merged> {
    last(None, answers, visible)
}

fn last(
    context: Option<&Context<'_>>,
    answers: &[Answer<'_>],
    visible: &dyn Fn(&str) -> bool,
) -> Result<Merged, Merged> {
    let mut all: Vec<_> = Heard::of(answers, entries)?
        .complete()?
        .into_iter()
        .flatten()
        .collect();
    all.retain(|entry| visible(&entry.session));
    newest_first(&mut all);
    let relevance = |entry: &Entry<'_>| match (context, &entry.context) {
        (Some(wanted), Some(context)) => wanted.relevance(context),
        (Some(_) | None, _) => 0,
    };
    // Of equals the last one wins: turned round, the newest.
    let best = all.iter().rev().max_by_key(|entry| relevance(entry));
    Ok(found(best.map(|entry| &*entry.session)))
}

pub(super) fn last_for_context(
    params: &Params<'_>,
    answers: &[Answer<'_>],
    visible: &dyn Fn(&str) -> bool,
) -> Result<Merged, Merged> {
    let Some(context) = params.0.get("context").filter(|c| c.get() != "null") else {
        return last(None, answers, visible);
    };
    match object::<Context<'_>>(context) {
        Some(context @ Context { cwd: Some(_), .. }) => last(Some(&context), answers, visible),
        Some(_) | None => Err(lacks("sessions.getLastForContext", "cwd")),
    }
}

pub(super) fn find_by_prefix(
    params: &Params<'_>,
    answers: &[Answer<'_>],
    visible: &dyn Fn(&str) -> bool,
) -> Result<Merged, Merged> {
    let Some(prefix) = params.read::<Cow<'_, str>>("prefix") else {
        return Err(lacks("sessions.findByPrefix", "prefix"));
    };
    let heard = Heard::of(answers, entries)?;
    let matches: HashSet<&str> = heard
        .answers
        .iter()
        .flatten()
        .map(|entry| &*entry.session)
        .filter(|session| has_prefix(session, &prefix) && visible(session))
        .collect();
    // Ambiguous it stays, whatever the silent ones have.
    if matches.len() < 2
        && let Some(backend) = heard.missing.first()
    {
        return Err(unavailable(Some(backend)));
    }
    Ok(found(if matches.len() == 1 {
        matches.into_iter().next()
    } else {
        None
    }))
}

/// As a CLI 1.0.102 looks: only at ids in the form of a UUID, for 8 to 35 characters of them,
/// whatever their case.
fn has_prefix(session: &str, prefix: &str) -> bool {
    let is_uuid = session.len() == 36
        && session.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    is_uuid
        && (8..36).contains(&prefix.len())
        && session.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
}
