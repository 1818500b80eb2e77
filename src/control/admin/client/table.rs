//! Tables for a terminal.
//!
//! Must not print a control character that came from elsewhere.

use std::{fmt::Write, time::Duration};

use serde_json::Value;

use crate::control::admin::{BackendView, Page, Readiness, SessionView};

/// A text that cannot steer a terminal.
pub(super) fn safe(text: &str) -> String {
    text.chars()
        .map(|c| if steers(c) { '\u{fffd}' } else { c })
        .collect()
}

/// The same for text of several lines.
pub(super) fn safe_lines(text: &str) -> String {
    text.lines().map(safe).collect::<Vec<_>>().join("\n")
}

/// Control characters, and those that turn the direction of writing.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn status(readiness: &Readiness, backends: &[BackendView]) -> String {
    let mut out = if readiness.ready {
        "ready".to_owned()
    } else {
        format!("not ready: {}", safe(&readiness.reasons.join("; ")))
    };
    writeln!(
        out,
        ", {} of {} backends usable\n",
        readiness.usable_backends,
        backends.len()
    )
    .expect("writing to a String cannot fail");
    let rows = backends.iter().map(|b| {
        let state = if b.removed {
            format!("{} (removed)", b.state)
        } else {
            b.state.clone()
        };
        vec![
            b.name.clone(),
            b.address.clone(),
            state,
            health_shown(b),
            b.weight.to_string(),
            b.sessions_open.to_string(),
            b.turns_open.to_string(),
            b.ping_ms.map_or("-".into(), |ms| format!("{ms:.2} ms")),
            b.version.clone().unwrap_or("-".into()),
        ]
    });
    let head = [
        "BACKEND", "ADDRESS", "STATE", "HEALTH", "WEIGHT", "SESSIONS", "TURNS", "PING", "VERSION",
    ];
    out.push_str(&table(&head, &[4, 5, 6, 7], rows));
    for backend in backends {
        let away = backend.away_seconds.map(|seconds| {
            let since = Duration::from_secs(seconds.max(0.0) as u64);
            let since = humantime::format_duration(since);
            match backend.released {
                true => format!("away for {since}, its sessions are opened elsewhere"),
                false => format!("away for {since}"),
            }
        });
        let told: Vec<String> = [backend.health_reason.clone(), away]
            .into_iter()
            .flatten()
            .collect();
        if !told.is_empty() {
            writeln!(out, "{}: {}", safe(&backend.name), safe(&told.join("; ")))
                .expect("writing to a String cannot fail");
        }
    }
    out
}

fn health_shown(backend: &BackendView) -> String {
    match backend.released {
        true => format!("{} (released)", backend.health),
        false => backend.health.clone(),
    }
}

pub(super) fn sessions(page: &Page<SessionView>) -> String {
    let rows = page.items.iter().map(|s| {
        let state = match (s.open, s.turn_open) {
            (_, true) if s.parked => "parked",
            (_, true) => "turn",
            (true, false) => "open",
            (false, false) => "closed",
        };
        vec![
            s.id.clone(),
            s.user.clone().unwrap_or("-".into()),
            s.backend.clone().unwrap_or("-".into()),
            state.into(),
            s.connections.to_string(),
            s.idle_seconds.map_or("-".into(), |s| format!("{s:.0} s")),
        ]
    });
    let head = ["SESSION", "USER", "BACKEND", "STATE", "CLIENTS", "IDLE"];
    let mut out = table(&head, &[4, 5], rows);
    if page.next.is_some() {
        out.push_str("there are more; raise --limit to see them\n");
    }
    out
}

pub(super) fn backend(view: &BackendView) -> String {
    format!(
        "{}: {}, {}, weight {}, {} open sessions, {} open turns\n",
        safe(&view.name),
        safe(&view.state),
        safe(&health_shown(view)),
        view.weight,
        view.sessions_open,
        view.turns_open
    )
}

/// A value as indented lines: names, colon, value.
pub(super) fn tree(value: &Value) -> String {
    fn add(out: &mut String, name: &str, value: &Value, depth: usize) {
        let indent = "  ".repeat(depth);
        let text = match value {
            Value::Object(map) => {
                out.push_str(&format!("{indent}{}:\n", safe(name)));
                map.iter()
                    .for_each(|(name, value)| add(out, name, value, depth + 1));
                return;
            }
            Value::Array(items) => {
                out.push_str(&format!("{indent}{}:\n", safe(name)));
                items
                    .iter()
                    .for_each(|value| add(out, "-", value, depth + 1));
                return;
            }
            Value::String(text) => safe(text),
            Value::Null => "-".into(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
        };
        out.push_str(&format!("{indent}{}: {text}\n", safe(name)));
    }
    let mut out = String::new();
    match value.as_object() {
        Some(map) => map
            .iter()
            .for_each(|(name, value)| add(&mut out, name, value, 0)),
        None => add(&mut out, "-", value, 0),
    }
    out
}

/// Columns as wide as their widest cell; `right` are those of numbers.
fn table(head: &[&str], right: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head)
        .chain(rows.map(|row| row.iter().map(|cell| safe(cell)).collect()))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row: &Vec<String>| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = " ".repeat(width - cell.chars().count());
            match right.contains(&i) {
                true => line.extend([gap.as_str(), cell, "  "]),
                false => line.extend([cell, gap.as_str(), "  "]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
