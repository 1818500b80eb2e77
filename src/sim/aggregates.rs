//! Lists and look-ups over the disk: `session.list`, `session.getMetadata`, and `sessions.*`.
//!
//! It must not open a session for `session.*` calls.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::{
    answers,
    event::{self, Life},
    home::{Home, Record},
    lifetime::{self, Closing},
    opening::{self, is_valid},
    server::{ROOT, Shared, WORK},
    state::{Call, State},
};

/// How much of each session a list shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Detail {
    Full,
    /// Beyond `metadataLimit`.
    Brief,
}

/// Answers one method of this file.
pub(super) fn answer(shared: &Arc<Shared>, state: &mut State, call: &Call) {
    let home = &shared.options.home;
    match call.method.as_str() {
        "session.list" => list(state, call, home, usize::MAX),
        "sessions.list" => {
            let limit = call.params.get("metadataLimit").and_then(Value::as_u64);
            let limit = limit.and_then(|limit| usize::try_from(limit).ok());
            list(state, call, home, limit.unwrap_or(usize::MAX));
        }
        "session.getLastId" | "sessions.getLastForContext" => {
            let newest = home.newest(|id, _| id.to_owned()).into_iter().next();
            let result = newest.map_or_else(|| "{}".to_owned(), |id| id_json(&id));
            state.ok(call, &result);
        }
        "session.getMetadata" => match call.text("sessionId") {
            Some(id) => metadata(state, call, home, id),
            None => state.refuse(call, "Missing sessionId parameter"),
        },
        "sessions.getSizes" => {
            let sizes = home.newest(|id, record| format!(r#""{id}":{}"#, record.size()));
            state.ok(call, &format!(r#"{{"sizes":{{{}}}}}"#, sizes.join(",")));
        }
        "sessions.listNonEmptySessionIds" => {
            let ids = home.newest(|id, _| format!("\"{id}\""));
            state.ok(call, &format!(r#"{{"sessionIds":[{}]}}"#, ids.join(",")));
        }
        "sessions.findByPrefix" => find_by_prefix(state, call, home),
        "sessions.findByTaskId" => match call.text("taskId") {
            Some(_) => state.ok(call, "{}"),
            None => state.refuse(call, "missing or non-string parameter 'taskId'"),
        },
        "sessions.checkInUse" => check_in_use(shared, state, call),
        "sessions.getClientMetadata" => client_metadata(shared, state, call),
        "sessions.enrichMetadata" => enrich(state, call, home),
        "sessions.bulkDelete" => bulk_delete(shared, state, call),
        "sessions.pruneOld" => state.ok(
            call,
            r#"{"deleted":[],"candidates":[],"skipped":[],"freedBytes":0,"dryRun":true}"#,
        ),
        "sessions.open" => open(shared, state, call),
        "sessions.getRemoteControlStatus" => {
            state.ok(call, r#"{"status":{"state":"off"}}"#);
        }
        "sessions.transferRemoteControl" => {
            state.ok(call, r#"{"status":{"state":"off"},"transferred":false}"#);
        }
        "sessions.stopRemoteControl" => {
            state.ok(call, r#"{"status":{"state":"off"},"stopped":false}"#);
        }
        "sessions.setAdditionalPlugins" | "sessions.setRemoteControlSteering" => {
            state.ok(call, "{}");
        }
        _ => of_one(shared, state, call),
    }
}

fn id_json(id: &str) -> String {
    format!(r#"{{"sessionId":"{id}"}}"#)
}

fn entry(id: &str, record: &Record, detail: Detail) -> String {
    let Record {
        start_time,
        modified,
        summary,
        ..
    } = record;
    let more = match detail {
        Detail::Brief => String::new(),
        Detail::Full => format!(
            r#","summary":{},"name":{},"clientName":"sdk","context":{{"cwd":"{WORK}"}}"#,
            event::quoted(summary),
            event::quoted(record.title()),
        ),
    };
    format!(
        r#"{{"sessionId":"{id}","startTime":"{start_time}","modifiedTime":"{modified}","isRemote":false,"isDetached":false{more}}}"#
    )
}

fn list(state: &mut State, call: &Call, home: &Home, limit: usize) {
    // Every simulated session lives in one directory without a repository.
    let filter = call.params.get("filter").and_then(Value::as_object);
    let shows = filter.is_none_or(|filter| {
        filter.get("cwd").is_none_or(|cwd| cwd == WORK)
            && !["repository", "branch", "gitRoot"]
                .iter()
                .any(|key| filter.contains_key(*key))
    });
    let mut shown = 0;
    let sessions = home.newest(|id, record| {
        let detail = if shown < limit {
            Detail::Full
        } else {
            Detail::Brief
        };
        shown += 1;
        entry(id, record, detail)
    });
    let sessions = if shows {
        sessions.join(",")
    } else {
        String::new()
    };
    state.ok(call, &format!(r#"{{"sessions":[{sessions}]}}"#));
}

fn metadata(state: &mut State, call: &Call, home: &Home, id: &str) {
    let shown = home.with(id, |record| {
        record
            .has_turn
            .then(|| format!(r#"{{"session":{}}}"#, entry(id, record, Detail::Full)))
    });
    state.ok(call, &shown.flatten().unwrap_or_else(|| "{}".to_owned()));
}

/// Only UUIDs are found, by eight characters or more, and not by the whole id.
fn find_by_prefix(state: &mut State, call: &Call, home: &Home) {
    let Some(prefix) = call.text("prefix") else {
        return state.refuse(call, "missing or non-string parameter 'prefix'");
    };
    let prefix = prefix.to_ascii_lowercase();
    let mut found: Vec<_> = Vec::new();
    if (8..36).contains(&prefix.len()) {
        found = home.newest(|id, _| id.to_owned());
        found.retain(|id| is_uuid(id) && id.to_ascii_lowercase().starts_with(&prefix));
    }
    match &found[..] {
        [only] => state.ok(call, &id_json(only)),
        _ => state.ok(call, "{}"),
    }
}

fn is_uuid(id: &str) -> bool {
    id.len() == 36
        && id.bytes().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The ids of `params.sessionIds`; refuses the call if there is something else.
fn ids(state: &mut State, call: &Call) -> Option<Vec<String>> {
    let Some(given) = call.params.get("sessionIds").and_then(Value::as_array) else {
        state.refuse(call, "missing or non-array parameter 'sessionIds'");
        return None;
    };
    let valid = |id: &Value| id.as_str().filter(|id| is_valid(id)).map(str::to_owned);
    let mut found = Vec::with_capacity(given.len());
    for id in given {
        let Some(id) = valid(id) else {
            state.refuse(call, &format!("Invalid sessionId: {id}"));
            return None;
        };
        found.push(id);
    }
    Some(found)
}

fn check_in_use(shared: &Shared, state: &mut State, call: &Call) {
    let Some(ids) = ids(state, call) else { return };
    let held = |id: &String| {
        let others = |record: &mut Record| record.holders.iter().any(|one| *one != shared.process);
        shared.options.home.with(id, others) == Some(true)
    };
    let held: Vec<_> = ids
        .into_iter()
        .filter(held)
        .map(|id| format!("\"{id}\""))
        .collect();
    state.ok(call, &format!(r#"{{"inUse":[{}]}}"#, held.join(",")));
}

/// Client metadata as JSON.
pub(super) fn metadata_json(metadata: &BTreeMap<String, String>) -> String {
    let pair = |(key, value): (&String, &String)| {
        format!("{}:{}", event::quoted(key), event::quoted(value))
    };
    format!(
        "{{{}}}",
        metadata.iter().map(pair).collect::<Vec<_>>().join(",")
    )
}

fn client_metadata(shared: &Shared, state: &mut State, call: &Call) {
    let Some(ids) = ids(state, call) else { return };
    let one = |id: &String| {
        let open = state
            .sessions
            .get(id)
            .map(|session| metadata_json(&session.metadata));
        let stored = || {
            shared
                .options
                .home
                .load(id)
                .map(|record| metadata_json(&record.metadata))
        };
        match open.or_else(stored) {
            Some(metadata) => {
                format!(r#"{{"sessionId":"{id}","status":"ok","metadata":{metadata}}}"#)
            }
            None => format!(r#"{{"sessionId":"{id}","status":"notFound"}}"#),
        }
    };
    let found: Vec<_> = ids.iter().map(one).collect();
    state.ok(call, &format!("[{}]", found.join(",")));
}

/// Returns what was given, with what the disk knows besides.
fn enrich(state: &mut State, call: &Call, home: &Home) {
    let Some(given) = call.params.get("sessions").and_then(Value::as_array) else {
        return state.refuse(call, "missing or non-array parameter 'sessions'");
    };
    let enriched = given.iter().map(|session| {
        let Some(session) = session.as_object() else {
            return session.to_string();
        };
        let id = session.get("sessionId").and_then(Value::as_str);
        let mut session = session.clone();
        if let Some(record) = id.and_then(|id| home.load(id)) {
            session.insert("summary".to_owned(), record.summary.clone().into());
            session.insert("name".to_owned(), record.title().into());
            session.insert("clientName".to_owned(), "sdk".into());
            session.insert("context".to_owned(), serde_json::json!({ "cwd": WORK }));
        }
        session.remove("isDetached");
        let text = Value::Object(session).to_string();
        let comma = if text == "{}" { "" } else { "," };
        format!(r#"{}{comma}"isDetached":false}}"#, &text[..text.len() - 1])
    });
    let enriched: Vec<_> = enriched.collect();
    state.ok(call, &format!(r#"{{"sessions":[{}]}}"#, enriched.join(",")));
}

/// Unknown ids count as deleted too, and are announced.
fn bulk_delete(shared: &Arc<Shared>, state: &mut State, call: &Call) {
    let Some(ids) = ids(state, call) else { return };
    let mut freed = Vec::new();
    for id in ids {
        let size = opening::remove(shared, state, &id).unwrap_or(0);
        freed.push(format!(r#""{id}":{size}"#));
        state.lifecycle("session.deleted", &id);
    }
    state.ok(
        call,
        &format!(r#"{{"freedBytes":{{{}}}}}"#, freed.join(",")),
    );
}

/// `sessions.open`: such a session is held, but invisible to the `session.*` methods.
fn open(shared: &Arc<Shared>, state: &mut State, call: &Call) {
    let done = |status: &str, id: &str| {
        format!(r#"{{"status":"{status}","sessionId":"{id}","startupPrompts":[]}}"#)
    };
    let options = call.params.get("options");
    let kind = call.text("kind").unwrap_or_default();
    let id = match kind {
        "attach" | "resume" => call.params.get("sessionId"),
        "create" => options.and_then(|options| options.get("sessionId")),
        _ => None,
    };
    let id = id.and_then(Value::as_str).map(str::to_owned);
    if matches!(kind, "attach" | "resume") && id.is_none() {
        return state.refuse(call, "missing or non-string parameter 'sessionId'");
    }
    if let Some(id) = id.as_ref().filter(|id| !is_valid(id)) {
        return state.refuse(call, &format!("Invalid sessionId: {}", event::quoted(id)));
    }
    let home = &shared.options.home;
    let is_open = |id: &String| state.sessions.contains_key(id) || state.opened.contains(id);
    let (status, id) = match kind {
        "create" => ("created", Some(id.unwrap_or_else(|| shared.numbers.uuid()))),
        "attach" => ("resumed", id.filter(is_open)),
        "resume" => (
            "resumed",
            id.filter(|id| is_open(id) || home.load(id).is_some()),
        ),
        "resumeLast" => (
            "resumed",
            home.newest(|id, _| id.to_owned()).into_iter().next(),
        ),
        _ => ("not_found", None),
    };
    let Some(id) = id else {
        return state.ok(call, r#"{"status":"not_found"}"#);
    };
    if home.make(&id, &event::now()) {
        home.with(&id, |record| record.holders.insert(shared.process));
    }
    if !state.sessions.contains_key(&id) {
        state.opened.insert(id.clone());
    }
    state.ok(call, &done(status, &id));
}

/// Methods about one session, open or not.
fn of_one(shared: &Arc<Shared>, state: &mut State, call: &Call) {
    let known = [
        "fork",
        "connect",
        "getMetadata",
        "readPersistedEvents",
        "getEventFilePath",
        "getPersistedRemoteSteerable",
        "close",
        "delete",
        "save",
        "releaseLock",
        "reloadPluginHooks",
        "loadDeferredRepoHooks",
        "getBoardEntryCount",
        "startRemoteControl",
        "configureSessionExtensions",
    ];
    let name = call.method.strip_prefix("sessions.").unwrap_or_default();
    if !known.contains(&name) {
        return answers::unhandled(state, call);
    }
    let Some(id) = call.text("sessionId").map(str::to_owned) else {
        let given = call
            .params
            .get("sessionId")
            .map_or("undefined".to_owned(), Value::to_string);
        return state.refuse(call, &format!("Invalid sessionId: {given}"));
    };
    let home = &shared.options.home;
    match name {
        "fork" => fork(shared, state, call, &id),
        "connect" => state.refuse(call, "sessions.connect requires authentication"),
        "getMetadata" => metadata(state, call, home, &id),
        "readPersistedEvents" => match home.load(&id) {
            Some(record) => {
                let events: Vec<_> = record.events.into_iter().collect();
                state.ok(call, &format!(r#"{{"events":[{}]}}"#, events.join(",")));
            }
            None => {
                let text = format!("Persisted event journal is unavailable for session {id}");
                state.refuse(call, &text);
            }
        },
        "getEventFilePath" => {
            let path = event::quoted(&format!("{ROOT}/session-state/{id}/events.jsonl"));
            state.ok(call, &format!(r#"{{"filePath":{path}}}"#));
        }
        "close" => {
            lifetime::close(shared, state, &id, Closing::Silent);
            state.opened.remove(&id);
            state.ok(call, "{}");
        }
        "delete" => {
            if opening::remove(shared, state, &id).is_none() {
                return state.refuse(call, &format!("Session file not found for {id}"));
            }
            state.lifecycle("session.deleted", &id);
            state.ok(call, "{}");
        }
        "loadDeferredRepoHooks" => {
            state.ok(call, r#"{"startupPrompts":[],"hookCount":0}"#);
        }
        "startRemoteControl" => start_remote_control(state, call, &id),
        "configureSessionExtensions" => state.ok(call, "null"),
        _ => state.ok(call, "{}"),
    }
}

/// It needs a GitHub login, so it works on no session.
fn start_remote_control(state: &mut State, call: &Call, id: &str) {
    let Some(config) = call.params.get("config").and_then(Value::as_object) else {
        return state.refuse(call, "missing remote control config");
    };
    let missing = ["remote", "steerable", "explicit", "silent"]
        .into_iter()
        .find(|field| !config.contains_key(*field));
    let text = match missing {
        Some(field) => format!("missing field `{field}`"),
        None if config["remote"] == true => {
            format!("startRemoteControl: session {id} not found")
        }
        None => format!("session not found: {id}"),
    };
    state.refuse(call, &text);
}

/// The copy is on disk, not open, and nobody hears of it but the caller; an open source notes it.
fn fork(shared: &Arc<Shared>, state: &mut State, call: &Call, id: &str) {
    lifetime::flush(shared, state, id);
    let in_memory = || {
        let session = state.sessions.get(id)?;
        let mut record = shared.options.home.with(id, |record| record.clone())?;
        record.has_turn = true;
        record.name = Some(
            session
                .name
                .clone()
                .unwrap_or_else(|| format!("Session {id}")),
        );
        record.events.clone_from(&session.history);
        Some(record)
    };
    let Some(mut record) = shared.options.home.load(id).or_else(in_memory) else {
        let text = format!("Cannot fork session {id}: no persisted or in-memory events found");
        return state.refuse(call, &text);
    };
    let copy = shared.numbers.uuid();
    let name = format!("{} (fork)", record.title());
    record.start_time = event::now();
    record.modified.clone_from(&record.start_time);
    record.name = Some(name.clone());
    record.summary.clone_from(&name);
    record.holders.clear();
    shared.options.home.store(&copy, record);
    let text = event::quoted(&format!("Forked this session into \"{name}\" ({copy})."));
    let data = format!(r#"{{"infoType":"fork","message":{text}}}"#);
    shared.emit(state, id, "session.info", &data, Life::Kept);
    let name = event::quoted(&name);
    state.ok(call, &format!(r#"{{"sessionId":"{copy}","name":{name}}}"#));
}
