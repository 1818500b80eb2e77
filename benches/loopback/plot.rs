//! Plots as SVG text, from the numbers that were measured: bars of a comparison, lines of a curve.

use std::fmt::Write as _;

use crate::{
    curve::{Axis, Point},
    measure::Work,
    table::{self, Row, median},
};

/// In the order of the rows; readable on light and on dark ground.
const COLOURS: [&str; 8] = [
    "#7f7f7f", "#d1495b", "#edae49", "#2e86ab", "#5fa8d3", "#8ab17d", "#9b5de5", "#bc6c25",
];

const WIDTH: f64 = 760.0;
/// Room for names.
const LEFT: f64 = 170.0;
const BAR: f64 = 20.0;

fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A drawing of this height around `inside`.
fn drawing(height: f64, inside: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#666\">\n{inside}</svg>\n"
    )
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(words)
    );
}

/// One panel for each thing that was compared, shorter is better.
pub(crate) fn bars(rows: &[Row], works: &[Work]) -> String {
    type Panel = (String, Vec<Option<f64>>);
    let direct = rows.iter().find(|row| row.name == table::DIRECT);
    let each = |value: &dyn Fn(&Row) -> Option<f64>| rows.iter().map(value).collect();
    let mut panels: Vec<Panel> = Vec::new();
    for work in works {
        let cost = |row: &Row| median(row.closed(work, table::per_gigabyte));
        panels.push((format!("{}: CPU seconds per GB", work.name), each(&cost)));
        let cost = |row: &Row| median(row.closed(work, table::per_turn));
        panels.push((format!("{}: CPU µs per turn", work.name), each(&cost)));
        let added = |row: &Row| match row.name == table::DIRECT {
            true => None,
            false => median(row.added(direct, work, |m| m.p99)),
        };
        panels.push((format!("{}: µs added to p99", work.name), each(&added)));
    }
    let memory = |row: &Row| row.idle.map(|idle| idle.bytes / 1024.0);
    panels.push(("idle: KiB per connection".to_owned(), each(&memory)));

    let (mut out, mut y) = (String::new(), 10.0);
    for (title, values) in panels {
        let most = values.iter().flatten().copied().fold(0.0, f64::max);
        if most <= 0.0 {
            continue;
        }
        y += 14.0;
        text(&mut out, LEFT, y, "start", &title);
        y += 6.0;
        for (at, (row, value)) in rows.iter().zip(values).enumerate() {
            let Some(value) = value else { continue };
            let length = (WIDTH - LEFT - 70.0) * value.max(0.0) / most;
            text(&mut out, LEFT - 8.0, y + 14.0, "end", &row.name);
            let _ = writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>",
                BAR - 4.0,
                colour(at)
            );
            text(
                &mut out,
                LEFT + length + 6.0,
                y + 13.0,
                "start",
                &format!("{value:.2}"),
            );
            y += BAR;
        }
        y += 8.0;
    }
    drawing(y + 4.0, &out)
}

/// CPU per frame over the number of connections or sessions, which grows by factors.
pub(crate) fn lines(axis: Axis, points: &[Point]) -> String {
    let measured: Vec<(&Point, f64)> = points
        .iter()
        .filter_map(|point| Some((point, point.per_frame?)))
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for (point, _) in &measured {
        if !names.contains(&point.subject.as_str()) {
            names.push(&point.subject);
        }
    }
    let log = |point: &Point| (point.x.max(1) as f64).ln();
    let least = measured
        .iter()
        .map(|(p, _)| log(p))
        .fold(f64::MAX, f64::min);
    let greatest = measured
        .iter()
        .map(|(p, _)| log(p))
        .fold(f64::MIN, f64::max);
    let most = measured
        .iter()
        .map(|(_, cost)| *cost)
        .fold(f64::MIN_POSITIVE, f64::max);
    let (left, right, top, bottom) = (50.0, WIDTH - 160.0, 30.0, 330.0);
    let width = (greatest - least).max(f64::MIN_POSITIVE);
    let x = |point: &Point| left + (right - left) * (log(point) - least) / width;
    let y = |cost: f64| bottom - (bottom - top) * cost / most;

    let mut out = String::new();
    let title = match axis {
        Axis::Connections => "CPU µs per frame over connections",
        Axis::Sessions => "CPU µs per frame over sessions per connection",
    };
    text(&mut out, left, 16.0, "start", title);
    for step in 0..=4 {
        let cost = most * f64::from(step) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ccc\"/>",
            y(cost)
        );
        text(
            &mut out,
            left - 6.0,
            y(cost) + 4.0,
            "end",
            &format!("{cost:.2}"),
        );
    }
    let mut marked = Vec::new();
    for (point, _) in &measured {
        if !marked.contains(&point.x) {
            marked.push(point.x);
            text(
                &mut out,
                x(point),
                bottom + 18.0,
                "middle",
                &point.x.to_string(),
            );
        }
    }
    for (at, name) in names.iter().enumerate() {
        let own = measured.iter().filter(|(point, _)| point.subject == *name);
        let path: Vec<String> = own
            .map(|(point, cost)| format!("{:.1},{:.1}", x(point), y(*cost)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            path.join(" "),
            colour(at)
        );
        let place = top + 18.0 * at as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            right + 14.0,
            place,
            colour(at)
        );
        text(&mut out, right + 32.0, place + 10.0, "start", name);
    }
    drawing(360.0, &out)
}
