//! The house holds: which room may import which, what `core` never mentions, how files look.
//!
//! Every rule is a function from sources to complaints, so that the tests at the end can show it
//! a violation. What a rule cannot see: names that a macro of another crate makes.

#[path = "architecture/source.rs"]
mod source;

use std::{fmt, fs, path::Path};

use source::{Source, crate_paths, set_tests_apart, words};

/// From the top down: a room imports what is below it, never what is beside or above.
const LAYERS: [&[&str]; 8] = [
    &["main"],
    &["cli"],
    &["companion", "load"],
    &["app"],
    &["proxy", "control"],
    &["store", "config", "observe"],
    &["transport"],
    &["core"],
];

/// Stands for a real server: must know nothing of Taxiway but the pure rules.
const SIM: &str = "sim";

/// Rooms that may start simulated servers. Tests of every room may.
const SIM_STARTERS: [&str; 3] = ["main", "cli", "app"];

/// Lines of a file, tests included.
const LONGEST_FILE: usize = 700;

/// Files that are longer, and how long they may be. To shorten a file is to shorten this list.
const LONGER_FILES: &[(&str, usize)] = &[
    ("control/admin/tests.rs", 750),
    ("control/pool/tests.rs", 950),
];

/// What a file of `core` must not name, and what the shell does in its place.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "the shell waits and schedules"),
    ("futures_util", "the shell waits and schedules"),
    ("socket2", "the shell owns the sockets"),
    ("hyper", "the shell owns the sockets"),
    ("TcpStream", "the shell owns the sockets"),
    ("TcpListener", "the shell owns the sockets"),
    ("UdpSocket", "the shell owns the sockets"),
    ("UnixStream", "the shell owns the sockets"),
    ("UnixListener", "the shell owns the sockets"),
    ("ToSocketAddrs", "the shell resolves names"),
    ("Instant::now", "time is handed in"),
    ("SystemTime::now", "time is handed in"),
    (".elapsed()", "time is handed in"),
    ("std::thread", "the shell waits and schedules"),
    ("std::fs", "files are read by config and store"),
    ("std::env", "the environment is read by config"),
    ("std::process", "processes are the control plane's"),
    ("rand", "chance is handed in, or drawn from a seed"),
    ("getrandom", "chance is handed in, or drawn from a seed"),
    ("Mutex", "one owner changes a machine; the shell locks"),
    ("RwLock", "one owner changes a machine; the shell locks"),
    ("tracing", "what happened is an event; observe writes it"),
    ("log", "what happened is an event; observe writes it"),
    ("prometheus", "what happened is an event; observe counts it"),
    ("println!", "what happened is an event; observe writes it"),
    ("eprintln!", "what happened is an event; observe writes it"),
    ("print!", "what happened is an event; observe writes it"),
    ("eprint!", "what happened is an event; observe writes it"),
    ("static mut", "no globals"),
    ("thread_local!", "no globals"),
    ("OnceLock", "no globals"),
    ("LazyLock", "no globals"),
];

/// Words that say nothing about what a file is for.
const EMPTY_NAMES: [&str; 10] = [
    "common", "data", "helper", "helpers", "info", "manager", "misc", "utils", "util", "process",
];

/// A broken rule and where.
#[derive(Debug, PartialEq, Eq)]
struct Complaint {
    /// From `src/` on.
    path: String,
    /// From 1.
    line: usize,
    what: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.path, self.line, self.what)
    }
}

fn complaint(source: &Source, offset: usize, what: String) -> Complaint {
    Complaint {
        path: source.path.clone(),
        line: source.line(offset),
        what,
    }
}

// --- the rules -----------------------------------------------------------------------------------

/// May production code of `from` name the room `to`? If not, why not.
fn may_import(from: &str, to: &str) -> Result<(), String> {
    let layer = |room| LAYERS.iter().position(|rooms| rooms.contains(&room));
    if from == to {
        return Ok(());
    }
    if from == SIM {
        return match to {
            "core" => Ok(()),
            _ => Err("a simulated server knows nothing of Taxiway but `core`".into()),
        };
    }
    if to == SIM {
        return match SIM_STARTERS.contains(&from) {
            true => Ok(()),
            false => Err("only main, cli, app and tests start simulated servers".into()),
        };
    }
    let Some(upper) = layer(from) else {
        return Err(format!("the room `{from}` has no place in LAYERS"));
    };
    let Some(lower) = layer(to) else {
        return Err(format!("`{to}` is no room of LAYERS"));
    };
    match upper.cmp(&lower) {
        std::cmp::Ordering::Less => Ok(()),
        std::cmp::Ordering::Equal => Err("rooms side by side never import each other".into()),
        std::cmp::Ordering::Greater => Err("imports point downwards only".into()),
    }
}

/// Imports point one way: main → cli → {companion, load} → app → {proxy, control} →
/// {store, config, observe} → transport → core.
fn import_direction(source: &Source) -> Vec<Complaint> {
    let from = source.room();
    let mut found = Vec::new();
    for (offset, path) in crate_paths(source) {
        let is_test = source.production.as_bytes()[offset] == b' ';
        let Some(to) = path.first() else {
            let what = format!("{from} imports the whole crate: name the room");
            found.push(complaint(source, offset, what));
            continue;
        };
        if is_test && to == SIM {
            continue;
        }
        if let Err(why) = may_import(from, to) {
            let what = format!("{from} must not import crate::{}: {why}", path.join("::"));
            found.push(complaint(source, offset, what));
        }
    }
    found
}

/// `core` names no runtime, socket, clock, lock, log or global.
fn purity(source: &Source) -> Vec<Complaint> {
    if source.room() != "core" {
        return Vec::new();
    }
    let code = &source.production;
    let mut found = Vec::new();
    for (offset, _) in code.char_indices() {
        for (name, instead) in IMPURE {
            if stands_at(code, offset, name) {
                let what = format!("`core` must not mention `{name}`: {instead}");
                found.push(complaint(source, offset, what));
            }
        }
    }
    for (offset, path) in braced_std_paths(code) {
        for (name, instead) in IMPURE {
            if path == *name {
                let what = format!("`core` must not mention `{name}`: {instead}");
                found.push(complaint(source, offset, what));
            }
        }
    }
    found
}

/// Whether `name` stands at `offset` as whole words.
fn stands_at(code: &str, offset: usize, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if !code[offset..].starts_with(name) {
        return false;
    }
    // A crate's name only counts where a path starts: `log` is also a fair name for a value.
    let is_crate = matches!(name, "log" | "rand" | "tokio" | "hyper" | "tracing");
    let before = code[..offset].chars().next_back();
    let after = &code[offset + name.len()..];
    if name.starts_with(is_word) && before.is_some_and(|c| is_word(c) || c == '.') {
        return false;
    }
    if name.ends_with(is_word) && after.starts_with(is_word) {
        return false;
    }
    !is_crate || after.starts_with("::")
}

/// `use std::{fs, thread}` as `std::fs`, `std::thread`.
fn braced_std_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("std::{") {
        let mut depth = 1;
        let from = start + "std::{".len();
        for (at, word) in words(&code[from..]) {
            let between = &code[from..from + at];
            depth = 1 + between.matches('{').count() - between.matches('}').count().min(depth);
            if between.matches('}').count() > between.matches('{').count() {
                break;
            }
            let is_first = !code[..from + at].trim_end().ends_with("::");
            if depth == 1 && is_first {
                found.push((from + at, format!("std::{word}")));
            }
        }
    }
    found
}

/// Production code says why a value is there instead of unwrapping it.
fn no_unwrap(source: &Source) -> Vec<Complaint> {
    let squeezed = |offset: usize| {
        let rest: String = source.production[offset..]
            .chars()
            .filter(|c| !c.is_whitespace())
            .take(".unwrap()".len())
            .collect();
        rest == ".unwrap()"
    };
    source
        .production
        .match_indices('.')
        .filter(|(offset, _)| squeezed(*offset))
        .map(|(offset, _)| {
            let what = "`.unwrap()` outside tests: handle it, or `expect(\"why it holds\")`";
            complaint(source, offset, what.into())
        })
        .collect()
}

/// The first line of a file says what it is for.
fn header(source: &Source) -> Vec<Complaint> {
    let first = source.text.lines().next().unwrap_or_default();
    match first.strip_prefix("//! ") {
        Some(text) if !text.trim().is_empty() => Vec::new(),
        _ => vec![complaint(
            source,
            0,
            "the first line must be a `//!` that says what the file is for".into(),
        )],
    }
}

/// A file that outgrows its neighbours asks to be split by role.
fn size(source: &Source, longer: &[(&str, usize)]) -> Vec<Complaint> {
    let lines = source.text.lines().count();
    let exception = longer.iter().find(|(path, _)| *path == source.path);
    let what = match exception {
        None if lines > LONGEST_FILE => {
            format!("{lines} lines; split what is longer than {LONGEST_FILE} by role")
        }
        Some((_, most)) if lines > *most => {
            format!("{lines} lines; even its exception ends at {most}")
        }
        Some(_) if lines <= LONGEST_FILE => {
            format!("{lines} lines need no exception: take it out of LONGER_FILES")
        }
        _ => return Vec::new(),
    };
    vec![complaint(source, 0, what)]
}

/// Names of files say what is in them.
fn names(source: &Source) -> Vec<Complaint> {
    source
        .module()
        .iter()
        .filter(|name| EMPTY_NAMES.contains(&name.as_str()))
        .map(|name| complaint(source, 0, format!("`{name}` does not say what is in it")))
        .collect()
}

// --- the house -----------------------------------------------------------------------------------

/// Every file under `src/`, in order.
fn house() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src/ can be listed") {
            let path = entry.expect("src/ can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                let name = path.strip_prefix(&root).expect("it was listed there");
                sources.push(Source::new(&name.to_string_lossy(), &text));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    set_tests_apart(&mut sources);
    sources
}

#[track_caller]
fn holds(rule: impl Fn(&Source) -> Vec<Complaint>) {
    let sources = house();
    assert!(
        sources.len() > 50,
        "src/ has moved: {} files",
        sources.len()
    );
    let complaints: Vec<String> = sources
        .iter()
        .flat_map(rule)
        .map(|c| c.to_string())
        .collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn imports_point_one_way() {
    holds(import_direction);
}

#[test]
fn core_is_pure() {
    holds(purity);
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    holds(no_unwrap);
}

#[test]
fn every_file_says_what_it_is_for() {
    holds(header);
}

#[test]
fn no_file_outgrows_its_neighbours() {
    holds(|source| size(source, LONGER_FILES));
    let sources = house();
    for (path, _) in LONGER_FILES {
        assert!(
            sources.iter().any(|source| source.path == *path),
            "LONGER_FILES names src/{path}, which is gone"
        );
    }
}

#[test]
fn names_of_files_say_something() {
    holds(names);
}

#[test]
fn every_room_has_a_place() {
    for source in house() {
        let room = source.room();
        let known =
            LAYERS.iter().any(|rooms| rooms.contains(&room)) || ["lib", SIM].contains(&room);
        assert!(
            known,
            "src/{}: give the room `{room}` a place in LAYERS",
            source.path
        );
    }
}

// --- the rules can fail --------------------------------------------------------------------------

/// Lines that a rule complains about in a planted file.
fn lines(rule: impl Fn(&Source) -> Vec<Complaint>, path: &str, text: &str) -> Vec<usize> {
    let source = Source::new(path, text);
    let mut lines: Vec<usize> = rule(&source).into_iter().map(|c| c.line).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

#[test]
fn a_planted_import_is_found() {
    for (path, text) in [
        ("core/frame.rs", "use crate::observe::Metrics;"),
        (
            "core/frame.rs",
            "use crate::{\n    core::id::Id,\n    config::Config,\n};",
        ),
        ("core/frame.rs", "use {std::fmt, crate::proxy::hub::Hub};"),
        ("core/frame.rs", "fn f() { crate::store::memory::open() }"),
        ("core/frame.rs", "fn f(x: &crate :: store :: Memory) {}"),
        ("core/frame.rs", "use super::super::control::pool;"),
        ("core/mux/mod.rs", "use super::super::control;"),
        (
            "core/frame.rs",
            "mod inner { use super::super::super::proxy::Hub; }",
        ),
        ("core/frame.rs", "use crate::*;"),
        ("core/frame.rs", "use crate::{self as root};"),
        ("core/frame.rs", "use crate::core::super::app::Running;"),
        (
            "core/frame.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::proxy::Hub;\n}",
        ),
        ("proxy/hub.rs", "use crate::control::pool::Pool;"),
        ("control/pool.rs", "use crate::proxy::Hub;"),
        ("config/mod.rs", "use crate::observe::log;"),
        ("store/mod.rs", "use crate::config::Config;"),
        ("observe/mod.rs", "use crate::app;"),
        ("proxy/hub.rs", "use crate::app::Running;"),
        ("app.rs", "use crate::cli::Arguments;"),
        ("control/pool.rs", "use crate::sim::SimServer;"),
        ("sim/server.rs", "use crate::config::Config;"),
        ("sim/server.rs", "use crate::{core::frame, proxy::socket};"),
        ("novel.rs", "use crate::core::id::Id;"),
        ("app.rs", "use crate::novel::Thing;"),
    ] {
        assert_ne!(
            lines(import_direction, path, text),
            [0; 0],
            "{path}: {text}"
        );
    }
    let text = "use crate::{\n    core::id,\n    app,\n};\nuse crate::cli;";
    assert_eq!(lines(import_direction, "proxy/hub.rs", text), [3, 5]);
}

#[test]
fn a_fair_import_passes() {
    for (path, text) in [
        ("main.rs", "fn main() { taxiway::cli::main() }"),
        (
            "cli.rs",
            "use crate::{app, config::Config, control::admin::client, sim};",
        ),
        (
            "app.rs",
            "use crate::{control::pool, proxy::Hub, sim::SimServer};",
        ),
        (
            "proxy/hub.rs",
            "use crate::{core::{id::{self, Id}, mux as m}, observe, store::Memory};",
        ),
        ("proxy/driver/tests.rs", "use super::super::hub::Hub;"),
        ("core/mux/mod.rs", "use super::{client, super::core::id};"),
        (
            "core/frame.rs",
            "use crate::core::{id::Id, scan::{head::*, *}};",
        ),
        (
            "core/frame.rs",
            "// use crate::proxy::Hub;\n/* crate::app::run() /* crate::x */ */",
        ),
        (
            "core/frame.rs",
            r##"const A: &str = "crate::app::x"; const B: &str = r#"" crate::app"#;"##,
        ),
        (
            "core/frame.rs",
            "fn f<'a>(x: &'a str) -> char { '\"' } // crate::app::run",
        ),
        ("core/frame.rs", "pub(crate) fn f() {}\npub(super) mod x;"),
        (
            "core/frame.rs",
            "mod tests { mod deep { use super::super::super::id::Id; } }",
        ),
        (
            "control/pool.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::sim::SimServer;\n}",
        ),
        ("sim/server.rs", "use crate::core::frame::Reader;"),
    ] {
        assert_eq!(
            lines(import_direction, path, text),
            [0; 0],
            "{path}: {text}"
        );
    }
}

#[test]
fn planted_impurities_are_found() {
    for text in [
        "use tokio::time::sleep;",
        "async fn f() { tokio::spawn(g()) }",
        "use std::net::{SocketAddr, TcpStream};",
        "let now = Instant::now();",
        "let now = std::time::SystemTime::now();",
        "let late = start.elapsed();",
        "let x = rand::random();",
        "use std::sync::{Arc, Mutex};",
        "x: RwLock<u8>,",
        "tracing::info!(\"x\");",
        "log::warn!(\"x\");",
        "static mut COUNT: u8 = 0;",
        "println!(\"x\");",
        "eprintln!(\"x\");",
        "use std::{collections::HashMap, fs};",
        "use std::{\n    collections::{BTreeMap, HashMap},\n    thread::spawn,\n};",
        "std::env::var(\"HOME\")",
        "static TABLE: LazyLock<u8> = LazyLock::new(f);",
        "#[cfg(not(test))]\nuse tokio::time::sleep;",
        "#[cfg(test)]\nmod tests;\nuse tokio::time::sleep;",
        "#[cfg(test)]\nuse crate::{a, b};\nuse tokio::time::sleep;",
        "#[cfg(test)]\n#[allow(x)]\nfn f() -> [u8; 2] { [0; 2] }\nuse tokio::time::sleep;",
    ] {
        assert_ne!(lines(purity, "core/frame.rs", text), [0; 0], "{text}");
        assert_eq!(lines(purity, "proxy/hub.rs", text), [0; 0], "{text}");
    }
}

#[test]
fn pure_code_passes() {
    for text in [
        "use std::{net::SocketAddr, time::{Duration, Instant}};",
        "//! No tokio, no Mutex.\n/// Never Instant::now().\nfn f() {}",
        "const TEXT: &str = \"tokio::spawn, Mutex\";",
        "fn operand(brand: u8) { self.log(brand); let log = 1; }",
        "#[cfg(test)]\nmod tests {\n    use std::sync::Mutex;\n    fn f() { println!(\"{}\", 1) }\n}",
        "#[cfg(test)]\nuse std::{sync::Mutex, thread};\nfn f() {}",
        "use std::{collections::HashMap, fmt};\nfn env() {}",
    ] {
        assert_eq!(lines(purity, "core/frame.rs", text), [0; 0], "{text}");
    }
}

#[test]
fn a_planted_unwrap_is_found() {
    let text = "fn f() {\n    a.unwrap();\n    b\n        .unwrap\n        ();\n}";
    assert_eq!(lines(no_unwrap, "app.rs", text), [2, 4]);
    for text in [
        "a.unwrap_or(1); b.expect(\"set above\"); // .unwrap()",
        "#[cfg(test)]\nmod tests {\n    fn f() { a.unwrap() }\n}",
    ] {
        assert_eq!(lines(no_unwrap, "app.rs", text), [0; 0], "{text}");
    }
}

#[test]
fn files_of_tests_are_told_by_their_declaration() {
    let planted = |declaration: &str| {
        let mut sources = vec![
            Source::new("core/mod.rs", declaration),
            Source::new("core/testing.rs", "fn f() { a.unwrap() }"),
            Source::new("core/testing/deep.rs", "fn f() { a.unwrap() }"),
            Source::new("core/testing_not.rs", "fn f() { a.unwrap() }"),
        ];
        set_tests_apart(&mut sources);
        sources.iter().flat_map(no_unwrap).count()
    };
    assert_eq!(
        planted("#[cfg(test)]\npub(crate) mod testing;\nmod testing_not;"),
        1
    );
    assert_eq!(planted("mod testing;\nmod testing_not;"), 3);
}

#[test]
fn looks_are_checked() {
    assert_eq!(lines(header, "app.rs", "//! Builds every room.\n"), [0; 0]);
    for text in [
        "",
        "use std::fmt;",
        "//!\n",
        "// Builds.\n",
        "\n//! Late.\n",
    ] {
        assert_eq!(lines(header, "app.rs", text), [1], "{text:?}");
    }
    let long = "x\n".repeat(LONGEST_FILE + 1);
    let full = "x\n".repeat(LONGEST_FILE);
    let longer = [("app.rs", LONGEST_FILE + 1)];
    let check = |text: &str, longer: &[(&str, usize)]| lines(|s| size(s, longer), "app.rs", text);
    assert_eq!(check(&full, &[]), [0; 0]);
    assert_eq!(check(&long, &[]), [1]);
    assert_eq!(check(&long, &longer), [0; 0]);
    assert_eq!(check(&format!("{long}x\n"), &longer), [1]);
    assert_eq!(
        check(&full, &longer),
        [1],
        "an exception that is not needed"
    );
    assert_eq!(lines(names, "core/util.rs", ""), [1]);
    assert_eq!(lines(names, "core/helpers/mod.rs", ""), [1]);
    assert_eq!(lines(names, "core/utility_curve.rs", ""), [0; 0]);
}
