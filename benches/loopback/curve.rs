//! What a frame costs when the same load comes over more connections, or on more sessions of each.
//! The rate stays the same at every point, so that only their number changes.

use std::{fmt::Write as _, path::Path};

use clap::ValueEnum;
use serde::Serialize;

use crate::{
    Args,
    measure::{self, Open, Work},
    progress,
    subject::{Running, Subject},
    table::{self, median},
};

/// What grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Axis {
    /// Connections with one session each.
    Connections,
    /// Sessions on each of ten connections.
    Sessions,
}

impl Axis {
    fn points(self) -> &'static [usize] {
        match self {
            Self::Connections => &[10, 30, 100, 300, 1000, 3000, 8000],
            Self::Sessions => &[1, 3, 10, 30, 100, 300, 1000],
        }
    }

    fn work(self, point: usize) -> Work {
        let (connections, sessions) = match self {
            Self::Connections => (point, 1),
            Self::Sessions => (10, point),
        };
        Work {
            name: "curve",
            connections,
            sessions,
            events: 20,
        }
    }
}

/// One subject at one point, in the median of the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) subject: String,
    pub(crate) x: usize,
    /// CPU microseconds; none without a proxy.
    pub(crate) per_frame: Option<f64>,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Measures all points; `most` connections are allowed.
pub(crate) async fn measure(
    args: &Args,
    axis: Axis,
    folder: &Path,
    backends: &[u16],
    most: usize,
) -> anyhow::Result<Vec<Point>> {
    let mut run = 500_000;
    let mut points = Vec::new();
    let all = axis.points().iter().copied();
    let wanted: Vec<usize> = all
        .filter(|_| !args.quick)
        .chain(args.quick.then_some(3))
        .collect();
    for point in wanted {
        let mut work = axis.work(point);
        if work.connections > most {
            eprintln!(
                "{point} connections are cut to {most}: more need more open files (ulimit -n)"
            );
            work.connections = most;
        }
        let subjects = running(args, folder, backends, &mut run).await?;
        let mut measured: Vec<Vec<Open>> = subjects.iter().map(|_| Vec::new()).collect();
        for round in 1..=args.rounds {
            for (at, (subject, it)) in subjects.iter().enumerate() {
                run += 1;
                progress(&format!(
                    "{axis:?} {point}, round {round}: {}",
                    subject.name
                ));
                let open = measure::planned(it, run, &work, args.rate, args.seconds).await?;
                measured[at].push(open);
            }
        }
        for ((subject, _), rounds) in subjects.iter().zip(measured) {
            let of =
                |value: fn(&Open) -> Option<f64>| median(rounds.iter().filter_map(value).collect());
            points.push(Point {
                subject: subject.name.clone(),
                x: match axis {
                    Axis::Connections => work.connections,
                    Axis::Sessions => work.sessions,
                },
                per_frame: of(|m| Some(m.cpu? * 1e6 / m.frames as f64)),
                p50: of(|m| Some(m.p50)).unwrap_or_default(),
                p99: of(|m| Some(m.p99)).unwrap_or_default(),
            });
        }
    }
    progress("");
    Ok(points)
}

/// Started anew for each point: what earlier ones have left behind is no part of its cost.
async fn running(
    args: &Args,
    folder: &Path,
    backends: &[u16],
    run: &mut u32,
) -> anyhow::Result<Vec<(Subject, Running)>> {
    let mut all = Vec::new();
    for subject in args.subjects() {
        *run += 1;
        if let Some(started) = subject.start(folder, backends, *run).await? {
            all.push((subject, started));
        }
    }
    Ok(all)
}

/// For spreadsheets and plots.
pub(crate) fn csv(axis: Axis, points: &[Point]) -> String {
    let axis = match axis {
        Axis::Connections => "connections",
        Axis::Sessions => "sessions",
    };
    let mut out = format!("{axis},subject,cpu_us_per_frame,p50_us,p99_us\n");
    for point in points {
        let cost = point
            .per_frame
            .map_or_else(String::new, |cost| format!("{cost:.3}"));
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{},{},{cost},{:.0},{:.0}",
            point.x, point.subject, point.p50, point.p99
        );
    }
    out
}

/// Only rows that the curve is about, unless others are named.
pub(crate) fn usual(name: &str) -> bool {
    [
        table::DIRECT,
        table::YARDSTICK,
        "taxiway",
        "taxiway connection",
    ]
    .contains(&name)
}
