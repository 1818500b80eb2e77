//! `taxiway check`: what Taxiway makes of a file, without starting.
//!
//! Prints nothing itself; the caller writes the answer and exits with its code.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Config, Diagnostic, Failure, Loaded, find, load, redacted, reference};
use crate::core::{
    access::Access,
    identity::Principal,
    route::{self, Verdict},
};

/// Everything is well.
const OK: u8 = 0;
/// `EX_CONFIG` of sysexits.h.
const CONFIG: u8 = 78;

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `-c FILE`.
    pub file: Option<PathBuf>,
    /// `--session-id ID…`.
    pub session_ids: Vec<String>,
    /// `--reference`: print the page of all keys, check nothing.
    pub reference: Wanted,
    /// `--methods`: print which methods may be used.
    pub methods: Wanted,
    /// `--as NAME`: by this principal.
    pub principal: Option<String>,
    /// `-o`.
    pub output: Output,
    /// How many files a process may have open here; none = any number.
    pub open_files: Option<u64>,
}

/// Whether something is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Yes.
    Yes,
    /// No.
    #[default]
    No,
}

impl From<bool> for Wanted {
    /// From a flag of the command line.
    fn from(flag: bool) -> Self {
        if flag { Self::Yes } else { Self::No }
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// What to print, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub out: String,
    /// For standard error.
    pub err: String,
    /// 0, or 78 if the configuration is refused or has no such principal.
    pub code: u8,
}

/// What to say if the system allows fewer open files than `limits.connections` may need: two for a
/// client that uses one server, and one more for each other server.
pub fn few_files(config: &Config, allowed: Option<u64>) -> Option<String> {
    let connections = config.limits.connections;
    let needed = (connections as u64).saturating_mul(2);
    let allowed = allowed.filter(|allowed| *allowed < needed)?;
    Some(format!(
        "limits.connections = {connections} may need {needed} open files and more, and this system \
         allows a process {allowed} (`ulimit -Hn`): clients beyond that are closed at once"
    ))
}

/// Says to which backend a new session of that id would go: text for people, none if unknown.
pub type Place<'a> = &'a dyn Fn(&Config, &str) -> Option<String>;

/// Runs `taxiway check`.
pub fn check(request: &Request, place: Place<'_>) -> Answer {
    if request.reference == Wanted::Yes {
        return Answer {
            out: reference::markdown(),
            err: String::new(),
            code: OK,
        };
    }
    let found = match find(request.file.as_deref()) {
        Ok(Some(path)) => path,
        Ok(None) => return without_file(request, place),
        Err(failure) => return refused(request, &failure),
    };
    match load(&found) {
        Ok(loaded) => accepted(request, &found, &loaded, place),
        Err(failure) => refused(request, &failure),
    }
}

fn without_file(request: &Request, place: Place<'_>) -> Answer {
    let config = Config::no_config(Vec::new(), None);
    if request.methods == Wanted::Yes {
        return methods(request, &config, String::new());
    }
    let sessions = sessions(request, &config, place);
    let out = match request.output {
        Output::Json => page(json!({ "ok": true, "file": null, "sessions": sessions })),
        Output::Text => {
            let text = "no configuration file; `taxiway` starts servers of its own\n";
            format!("{text}{}", lines(&sessions))
        }
    };
    Answer {
        out,
        err: String::new(),
        code: OK,
    }
}

fn accepted(request: &Request, path: &Path, loaded: &Loaded, place: Place<'_>) -> Answer {
    let config = &loaded.config;
    let mut warnings: String = loaded.warnings.iter().map(|w| format!("{w}\n\n")).collect();
    if let Some(warning) = few_files(config, request.open_files) {
        warnings += &format!("warning: {warning}\n\n");
    }
    if request.methods == Wanted::Yes {
        return methods(request, config, warnings);
    }
    let sessions = sessions(request, config, place);
    if request.output == Output::Json {
        let out = page(json!({
            "ok": true,
            "file": path.display().to_string(),
            "warnings": diagnostics(&loaded.warnings),
            "sessions": sessions,
            "config": redacted(config),
        }));
        return Answer {
            out,
            err: String::new(),
            code: OK,
        };
    }
    let managed = config.managed.as_ref().map_or(0, |m| m.servers);
    let view = redacted(config);
    let mode = view["routing"]["mode"].as_str().unwrap_or_default();
    let out = format!(
        "{}: ok\nmode {mode}, {} configured and {managed} managed backends, clients at {}, admin \
         at {}\n{}",
        path.display(),
        config.backends.len(),
        config.listener.address,
        config.admin.address,
        lines(&sessions),
    );
    Answer {
        out,
        err: warnings,
        code: OK,
    }
}

/// What may be used, method by method.
fn methods(request: &Request, config: &Config, warnings: String) -> Answer {
    let access = &config.identity.access;
    let principal = match &request.principal {
        None => None,
        Some(name) => {
            let mut entries = config.identity.principals.entries().iter();
            let Some(entry) = entries.find(|entry| *entry.principal.name == **name) else {
                return Answer {
                    out: String::new(),
                    err: format!("{warnings}taxiway: no principal is named {name:?}\n"),
                    code: CONFIG,
                };
            };
            Some(entry.principal.clone())
        }
    };
    let rows = rulings(access, principal.as_deref());
    let out = match request.output {
        Output::Json => page(json!({
            "profile": access.methods.profile.word(),
            "methods": rows.iter().map(Row::to_json).collect::<Vec<_>>(),
        })),
        Output::Text => {
            let width = rows.iter().map(|row| row.method.len()).max().unwrap_or(0);
            let mut text = format!("profile {}\n", access.methods.profile.word());
            for row in &rows {
                let Row {
                    method,
                    class,
                    policy,
                    verdict,
                    by,
                } = row;
                let (word, reason) = told(*verdict);
                let line =
                    format!("{method:width$}  {class:14}  {policy:6}  {word:7}  {by:9}  {reason}");
                text.push_str(line.trim_end());
                text.push('\n');
            }
            text
        }
    };
    Answer {
        out,
        err: warnings,
        code: OK,
    }
}

/// What is made of one method.
struct Row {
    method: &'static str,
    class: &'static str,
    policy: &'static str,
    verdict: Verdict,
    by: &'static str,
}

impl Row {
    fn to_json(&self) -> Value {
        let (word, reason) = told(self.verdict);
        json!({
            "method": self.method,
            "class": self.class,
            "policy": self.policy,
            "decision": word,
            "by": self.by,
            "reason": (!reason.is_empty()).then_some(reason),
        })
    }
}

/// The decision in one word, and its reason.
fn told(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Allowed => ("allowed", ""),
        Verdict::Denied(reason) => ("denied", reason),
        Verdict::Unlisted => ("unknown", "no method of this name is known"),
    }
}

fn rulings(access: &Access, principal: Option<&Principal>) -> Vec<Row> {
    let row = |method: &'static str| {
        let (class, policy) = route::look_up(method);
        let (verdict, by) = access.method(principal, method, policy);
        Row {
            method,
            class: route::class_name(class),
            policy: policy.word(),
            verdict,
            by: by.word(),
        }
    };
    route::methods().into_iter().map(row).collect()
}

fn refused(request: &Request, failure: &Failure) -> Answer {
    match request.output {
        Output::Text => Answer {
            out: String::new(),
            err: format!("{failure}\n"),
            code: CONFIG,
        },
        Output::Json => {
            let out = page(json!({ "ok": false, "diagnostics": failure.to_json() }));
            Answer {
                out,
                err: String::new(),
                code: CONFIG,
            }
        }
    }
}

fn sessions(request: &Request, config: &Config, place: Place<'_>) -> Vec<Value> {
    let row = |id: &String| {
        json!({
            "id": id,
            "user": config.identity.access.user_of(id),
            "placement": place(config, id),
        })
    };
    request.session_ids.iter().map(row).collect()
}

fn lines(sessions: &[Value]) -> String {
    let line = |session: &Value| {
        let id = session["id"].as_str().unwrap_or_default();
        let user = session["user"].as_str().unwrap_or("unknown");
        let place = session["placement"].as_str().unwrap_or("unknown");
        format!("session {id}: user {user}, placement {place}\n")
    };
    sessions.iter().map(line).collect()
}

fn diagnostics(list: &[Diagnostic]) -> Value {
    list.iter().map(Diagnostic::to_json).collect()
}

fn page(value: Value) -> String {
    format!("{value:#}\n")
}
