//! The numbers as people read them: medians over the rounds, and ratios to the yardstick taken
//! within each round before their median is. Plain text, or Markdown for `docs/performance.md`.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Args,
    measure::{Closed, Connects, Idle, Open, Work},
    subject::Subject,
};

/// The row that others are compared with.
pub(crate) const YARDSTICK: &str = "haproxy";

/// What latencies are added to.
pub(crate) const DIRECT: &str = "direct";

/// How tables are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    Plain,
    Markdown,
}

/// All measurements of one subject, one of each kind per round.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) installed: bool,
    pub(crate) closed: Vec<(&'static str, Closed)>,
    pub(crate) open: Vec<(&'static str, Open)>,
    pub(crate) connects: Vec<Connects>,
    pub(crate) idle: Option<Idle>,
}

impl Row {
    pub(crate) fn new(subject: &Subject, installed: bool) -> Self {
        Self {
            name: subject.name.clone(),
            installed,
            closed: Vec::new(),
            open: Vec::new(),
            connects: Vec::new(),
            idle: None,
        }
    }

    /// One value per round; empty where it does not apply.
    pub(crate) fn closed(&self, work: &Work, value: impl Fn(&Closed) -> Option<f64>) -> Vec<f64> {
        let of_work = self.closed.iter().filter(|(name, _)| *name == work.name);
        of_work.filter_map(|(_, closed)| value(closed)).collect()
    }

    /// The same for latencies.
    pub(crate) fn open(&self, work: &Work, value: impl Fn(&Open) -> f64) -> Vec<f64> {
        let of_work = self.open.iter().filter(|(name, _)| *name == work.name);
        of_work.map(|(_, open)| value(open)).collect()
    }

    /// Turns per second, in the median.
    pub(crate) fn most(&self, work: &Work) -> Option<f64> {
        median(self.closed(work, |m| Some(m.turns as f64 / m.seconds)))
    }

    /// What a percentile is above that of no proxy, round by round.
    pub(crate) fn added(
        &self,
        direct: Option<&Self>,
        work: &Work,
        value: impl Fn(&Open) -> f64,
    ) -> Vec<f64> {
        let base = direct.map_or_else(Vec::new, |row| row.open(work, &value));
        let own = self.open(work, &value);
        own.iter().zip(base).map(|(own, base)| own - base).collect()
    }
}

/// CPU seconds for a gigabyte.
pub(crate) fn per_gigabyte(m: &Closed) -> Option<f64> {
    m.cpu.map(|used| used * 1e9 / m.bytes as f64)
}

/// In microseconds.
pub(crate) fn per_turn(m: &Closed) -> Option<f64> {
    m.cpu.map(|used| used * 1e6 / m.turns as f64)
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A cell, or a dash.
fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"))
}

/// Median, least and greatest of the ratios of two rows, round by round.
fn ratio(row: &[f64], yardstick: &[f64]) -> String {
    let ratios: Vec<f64> = row.iter().zip(yardstick).map(|(a, b)| a / b).collect();
    let least = ratios.iter().copied().reduce(f64::min);
    let greatest = ratios.iter().copied().reduce(f64::max);
    match (median(ratios), least, greatest) {
        (Some(median), Some(least), Some(greatest)) => {
            format!("{median:.2} ({least:.2}–{greatest:.2})")
        }
        _ => "–".to_owned(),
    }
}

/// A table; the first column is text, all others are numbers.
struct Table {
    title: String,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: String, head: &[&'static str]) -> Self {
        Self {
            title,
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    fn show(&self, style: Style) -> String {
        let mut out = format!("\n{}\n", self.title);
        let head: Vec<String> = self.head.iter().map(|&text| text.to_owned()).collect();
        // Writing to a string does not fail.
        match style {
            Style::Markdown => {
                let rule = std::iter::once("---").chain(head.iter().skip(1).map(|_| "---:"));
                let rule: Vec<String> = rule.map(str::to_owned).collect();
                out.push('\n');
                for row in [&head, &rule].into_iter().chain(&self.rows) {
                    let _ = writeln!(out, "| {} |", row.join(" | "));
                }
            }
            Style::Plain => {
                for row in std::iter::once(&head).chain(&self.rows) {
                    for (at, text) in row.iter().enumerate() {
                        let width = head[at].chars().count().max(9);
                        let _ = match at {
                            0 => write!(out, "{text:<20}"),
                            _ => write!(out, "  {text:>width$}"),
                        };
                    }
                    out.push('\n');
                }
            }
        }
        out
    }
}

/// All tables.
pub(crate) fn tables(rows: &[Row], works: &[Work], args: &Args, style: Style) -> String {
    let mut out = format!(
        "Medians of {} interleaved rounds of {} s; {} servers; {} proxy thread(s); ratios to \
         {YARDSTICK}, round by round (least–greatest).\n",
        args.rounds, args.seconds, args.backends, args.threads
    );
    for row in rows.iter().filter(|row| !row.installed) {
        out += &format!("{} is not installed: its rows are missing.\n", row.name);
    }
    let tables = works
        .iter()
        .map(|work| throughput(rows, work))
        .chain(works.iter().map(|work| latency(rows, work)))
        .chain([connects(rows), idle(rows)]);
    for table in tables.filter(|table| !table.rows.is_empty()) {
        out += &table.show(style);
    }
    out
}

fn find<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.name == name && row.installed)
}

fn throughput(rows: &[Row], work: &Work) -> Table {
    let title = format!(
        "{}, as much as it takes: {} connections × {} sessions, turns of {} events",
        work.name, work.connections, work.sessions, work.events
    );
    let head = [
        "",
        "CPU s/GB",
        "CPU µs/turn",
        "turns/s",
        "frames/s",
        "load's own µs/turn",
        "CPU ratio",
    ];
    let mut table = Table::new(title, &head);
    let yardstick = find(rows, YARDSTICK).map_or_else(Vec::new, |row| row.closed(work, per_turn));
    for row in rows.iter().filter(|row| row.most(work).is_some()) {
        let frames = row.closed(work, |m| Some(m.frames as f64 / m.seconds));
        let own = row.closed(work, |m| Some(m.own_cpu * 1e6 / m.turns as f64));
        table.rows.push(vec![
            row.name.clone(),
            cell(median(row.closed(work, per_gigabyte)), 3),
            cell(median(row.closed(work, per_turn)), 2),
            cell(row.most(work), 0),
            cell(median(frames), 0),
            cell(median(own), 2),
            ratio(&row.closed(work, per_turn), &yardstick),
        ]);
    }
    table
}

fn latency(rows: &[Row], work: &Work) -> Table {
    let rate = rows.iter().find_map(|row| row.open(work, |m| m.rate).pop());
    let title = format!(
        "{}, {} turns/s: µs from the planned send to the turn's end; of {DIRECT} as they are, of \
         others what they add",
        work.name,
        cell(rate, 0)
    );
    let head = ["", "p50", "p99", "p99.9", "load's lag p99", "ratio of p99"];
    let mut table = Table::new(title, &head);
    let direct = find(rows, DIRECT);
    let values: [fn(&Open) -> f64; 3] = [|m| m.p50, |m| m.p99, |m| m.p99_9];
    let yardstick = find(rows, YARDSTICK);
    let yardstick = yardstick.and_then(|row| median(row.added(direct, work, values[1])));
    for row in rows
        .iter()
        .filter(|row| !row.open(work, |m| m.p50).is_empty())
    {
        let is_direct = row.name == DIRECT;
        let told = values.map(|value| match is_direct {
            true => median(row.open(work, value)),
            false => median(row.added(direct, work, value)),
        });
        let ratio = told[1]
            .zip(yardstick)
            .filter(|_| !is_direct)
            .map(|(own, yardstick)| own / yardstick);
        let mut cells = vec![row.name.clone()];
        cells.extend(told.map(|value| cell(value, 0)));
        cells.push(cell(median(row.open(work, |m| m.lag_p99)), 0));
        cells.push(cell(ratio, 2));
        table.rows.push(cells);
    }
    table
}

fn connects(rows: &[Row]) -> Table {
    let title = "connections that get a session and end".to_owned();
    let head = ["", "connections/s", "CPU µs each", "CPU ratio"];
    let mut table = Table::new(title, &head);
    let cost = |row: &Row| -> Vec<f64> {
        let each = |m: &Connects| Some(m.cpu? * 1e6 / m.connections as f64);
        row.connects.iter().filter_map(each).collect()
    };
    let yardstick = find(rows, YARDSTICK).map_or_else(Vec::new, cost);
    for row in rows.iter().filter(|row| !row.connects.is_empty()) {
        let rate = row
            .connects
            .iter()
            .map(|m| m.connections as f64 / m.seconds);
        table.rows.push(vec![
            row.name.clone(),
            cell(median(rate.collect()), 0),
            cell(median(cost(row)), 0),
            ratio(&cost(row), &yardstick),
        ]);
    }
    table
}

fn idle(rows: &[Row]) -> Table {
    let connections = rows.iter().find_map(|row| Some(row.idle?.connections));
    let title = format!(
        "idle: {} connections, each with one open session",
        connections.unwrap_or_default()
    );
    let mut table = Table::new(
        title,
        &["", "KiB/connection", "CPU at rest, %", "ratio of KiB"],
    );
    let yardstick = find(rows, YARDSTICK).and_then(|row| Some(row.idle?.bytes));
    for (row, idle) in rows.iter().filter_map(|row| Some((row, row.idle?))) {
        table.rows.push(vec![
            row.name.clone(),
            cell(Some(idle.bytes / 1024.0), 2),
            cell(Some(idle.busy * 100.0), 1),
            cell(yardstick.map(|bytes| idle.bytes / bytes), 2),
        ]);
    }
    table
}

/// Every measurement, for programs.
pub(crate) fn json(rows: &[Row], works: &[Work], args: &Args) -> Value {
    let work = |work: &Work| {
        json!({ "name": work.name, "connections": work.connections, "sessions": work.sessions,
                "events": work.events })
    };
    json!({
        "rounds": args.rounds, "seconds": args.seconds, "backends": args.backends,
        "threads": args.threads, "work": works.iter().map(work).collect::<Vec<_>>(),
        "subjects": rows,
    })
}
