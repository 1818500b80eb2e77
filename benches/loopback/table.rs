//! The numbers as people read them: medians over the rounds, and ratios to the yardstick taken
//! within each round before their median is.

use std::time::Duration;

use crate::{
    Args,
    load::{Done, Work},
    subject::Subject,
};

/// The row that others are compared with.
pub(crate) const YARDSTICK: &str = "haproxy";

/// One measurement of one subject.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) done: Done,
    pub(crate) took: Duration,
    /// CPU seconds of the proxy, if there is one.
    pub(crate) used: Option<f64>,
}

/// Connections that do nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) connections: usize,
    /// Resident bytes for each.
    pub(crate) bytes: f64,
    /// CPU seconds per second.
    pub(crate) busy: f64,
}

/// All measurements of one subject.
pub(crate) struct Row {
    name: String,
    installed: bool,
    measured: Vec<(&'static str, Measured)>,
    pub(crate) idle: Option<Idle>,
}

impl Row {
    pub(crate) fn new(subject: &Subject, installed: bool) -> Self {
        Self {
            name: subject.name.clone(),
            installed,
            measured: Vec::new(),
            idle: None,
        }
    }

    pub(crate) fn add(&mut self, work: &Work, measured: Measured) {
        self.measured.push((work.name, measured));
    }

    /// One value per round; empty where it does not apply.
    fn rounds(&self, work: &Work, value: impl Fn(&Measured) -> Option<f64>) -> Vec<f64> {
        self.measured
            .iter()
            .filter(|(name, _)| *name == work.name)
            .filter_map(|(_, measured)| value(measured))
            .collect()
    }
}

fn per_gigabyte(m: &Measured) -> Option<f64> {
    m.used.map(|used| used * 1e9 / m.done.bytes as f64)
}

/// In microseconds.
fn per_turn(m: &Measured) -> Option<f64> {
    m.used.map(|used| used * 1e6 / m.done.turns as f64)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
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

/// Prints everything.
pub(crate) fn print(rows: &[Row], works: &[Work], args: &Args) {
    println!(
        "medians of {} interleaved rounds of {} s, {} servers; ratios to {YARDSTICK} per round",
        args.rounds, args.seconds, args.backends
    );
    for work in works {
        println!(
            "\n{}: {} connections × {} sessions, turns of {} events",
            work.name, work.connections, work.sessions, work.events
        );
        println!(
            "{:<20}{:>10}{:>12}{:>11}{:>12}   {:<18}",
            "", "CPU s/GB", "CPU µs/turn", "turns/s", "frames/s", "ratio (least–greatest)"
        );
        let yardstick = rows.iter().find(|row| row.name == YARDSTICK);
        let yardstick = yardstick.map_or_else(Vec::new, |row| row.rounds(work, per_turn));
        for row in rows {
            if !row.installed {
                println!("{:<20}not installed: left out", row.name);
                continue;
            }
            let per_second = |count: fn(&Done) -> u64| {
                median(row.rounds(work, |m| Some(count(&m.done) as f64 / m.took.as_secs_f64())))
            };
            println!(
                "{:<20}{:>10}{:>12}{:>11}{:>12}   {:<18}",
                row.name,
                cell(median(row.rounds(work, per_gigabyte)), 3),
                cell(median(row.rounds(work, per_turn)), 2),
                cell(per_second(|done| done.turns), 0),
                cell(per_second(|done| done.frames), 0),
                ratio(&row.rounds(work, per_turn), &yardstick),
            );
        }
    }
    if let Some(connections) = rows.iter().find_map(|row| Some(row.idle?.connections)) {
        println!("\nidle: {connections} connections, each with one open session");
        println!("{:<20}{:>16}{:>14}", "", "KiB/connection", "CPU at rest");
        for row in rows {
            println!(
                "{:<20}{:>16}{:>13}%",
                row.name,
                cell(row.idle.map(|idle| idle.bytes / 1024.0), 2),
                cell(row.idle.map(|idle| idle.busy * 100.0), 1),
            );
        }
    }
}
