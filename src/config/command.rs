//! `taxiway check`: what Taxiway makes of a file, without starting.
//!
//! Prints nothing itself; the caller writes the answer and exits with its code.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Config, Diagnostic, Failure, Loaded, find, load, redacted, reference};

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
    /// `-o`.
    pub output: Output,
}

/// Whether the reference is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Yes.
    Yes,
    /// No.
    #[default]
    No,
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
    /// 0, or 78 if the configuration is refused.
    pub code: u8,
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
    let err = loaded.warnings.iter().map(|w| format!("{w}\n\n")).collect();
    Answer { out, err, code: OK }
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
