//! Instructions per frame, turn and placement, counted by callgrind. Unlike times they are the same on
//! a busy machine, so they are kept in `benches/instructions.tsv`, and a change shows in its commit.
//!
//! ```sh
//! cargo bench --profile counts --bench instructions             # count, and say what has changed
//! cargo bench --profile counts --bench instructions -- --keep   # the same, and keep the counts
//! cargo bench --profile counts --bench instructions -- mux      # only what has `mux` in its name
//! ```
//!
//! Counts of another profile or compiler do not compare. Valgrind has to be there: what is not counted
//! is an error. Run as a test, everything is done once and nothing is counted.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail, ensure};
use taxiway::core::{
    balance::{self, Load, Policy},
    frame::{Cut, Cutter, FrameLimits, write_header},
    ring::{self, Among},
    scan,
};

mod stage;

use stage::{Stage, event, framed, pool, request, response};

/// Changes beyond that are told.
const NOTABLE: f64 = 0.02;

/// How often each is done while it is counted.
const TIMES: u64 = 200;

/// Frames in one read.
const RUN: u32 = 64;

/// What is done, and how many units (frames, turns, placements) that is.
type Work = (u64, Box<dyn FnMut()>);

type Make = fn() -> Work;

/// Name, unit, and how to set it up.
const ALL: &[(&str, &str, Make)] = &[
    ("frame/cut", "frame", cut),
    ("scan/event of a backend", "frame", || scanned(EVENT, true)),
    ("scan/event, general path", "frame", || {
        scanned(EVENT, false)
    }),
    ("scan/send", "frame", || scanned(SEND, false)),
    ("mux/events of one session", "frame", || events(&[0])),
    ("mux/events of two sessions in turn", "frame", || {
        events(&[0, 1])
    }),
    ("mux/request and response", "call", calls),
    ("mux/turn", "turn", || turn(0, false)),
    ("mux/turn with its lock", "turn", || turn(0, true)),
    ("mux/turn of 200 events with its lock", "turn", || {
        turn(200, true)
    }),
    ("ring/first of 100, equal weights", "key", || first(|_| 1)),
    ("ring/first of 100, mixed weights", "key", || {
        first(|i| i % 7 + 1)
    }),
    ("place/sticky, 100 backends", "session", || {
        place(Policy::Sticky {
            load_factor: Some(1.25),
        })
    }),
    ("place/least loaded, 100 backends", "session", || {
        place(Policy::LeastLoaded)
    }),
    ("place/two choices, 100 backends", "session", || {
        place(Policy::TwoChoices)
    }),
];

const EVENT: &str = concat!(
    r#"{"jsonrpc":"2.0","method":"session.event","params":{"#,
    r#""sessionId":"team-review-1795329020660","event":{"type":"assistant.message_delta","#,
    r#""data":{"messageId":"872e421f-25dd-4618-b3d5-3cdd0246f60a","deltaContent":"w0 "},"#,
    r#""ephemeral":true,"id":"b79c4e42-b41d-42f2-88a9-f77064e61e87","#,
    r#""timestamp":"2026-11-22T06:30:20.965Z","parentId":"f5743f18-f798-49a4-a0ba-eeba7b699673"}}}"#
);

const SEND: &str = concat!(
    r#"{"jsonrpc":"2.0","id":21,"method":"session.send","#,
    r#""params":{"sessionId":"user0-chat-1795328978763","prompt":"second 0"}}"#
);

fn cut() -> Work {
    const LIMITS: FrameLimits = FrameLimits {
        header: 8 * 1024,
        frame: 1024 * 1024,
    };
    let mut stream = Vec::new();
    for _ in 0..RUN {
        write_header(370, &mut stream);
        stream.extend_from_slice(&[b' '; 370]);
    }
    let work = move || {
        let mut cutter = Cutter::new(LIMITS);
        let mut consumed = 0;
        while let Ok(Cut::Frame { body, .. }) = cutter.cut(black_box(&stream[consumed..])) {
            consumed += body.end;
        }
        assert_eq!(consumed, stream.len());
    };
    (u64::from(RUN), Box::new(work))
}

fn scanned(body: &'static str, of_backend: bool) -> Work {
    let work = move || {
        let body = black_box(body.as_bytes());
        let head = match of_backend {
            true => scan::scan_backend(body),
            false => scan::scan(body),
        };
        assert!(black_box(head).is_ok());
    };
    (1, Box::new(work))
}

fn events(sessions: &[u8]) -> Work {
    let mut stage = Stage::new();
    let each = sessions.iter().cycle().take(RUN as usize);
    let run: Vec<u8> = each
        .flat_map(|session| event(*session, "assistant.message_delta"))
        .collect();
    stage.backend(&run);
    assert!(stage.written() >= run.len(), "they do pass");
    (u64::from(RUN), Box::new(move || stage.backend(&run)))
}

fn calls() -> Work {
    let mut stage = Stage::new();
    let requests: Vec<u8> = (0..RUN).flat_map(|id| request(id, 0)).collect();
    let responses: Vec<u8> = (0..RUN).flat_map(response).collect();
    let work = move || {
        stage.client(&requests);
        stage.backend(&responses);
        assert_eq!(stage.mux.open_calls(), 0);
    };
    (u64::from(RUN), Box::new(work))
}

fn turn(deltas: usize, locks: bool) -> Work {
    let mut stage = Stage::new();
    if locks {
        stage.lock_turns();
    }
    let send = framed(
        r#"{"jsonrpc":"2.0","id":1,"method":"session.send","params":{"sessionId":"s0","prompt":"hello"}}"#,
    );
    let answer = [
        response(1),
        event(0, "assistant.turn_start"),
        event(0, "assistant.message_delta").repeat(deltas),
        event(0, "session.idle"),
    ]
    .concat();
    let work = move || {
        stage.client(&send);
        stage.backend(&answer);
    };
    (1, Box::new(work))
}

fn keys() -> Vec<String> {
    (0..RUN)
        .map(|n| format!("59e32a26-9b05-4dee-9192-{n:012}"))
        .collect()
}

fn first(weight: fn(u32) -> u32) -> Work {
    let (pool, keys) = (pool::hundred(weight), keys());
    let work = move || {
        for key in &keys {
            let key = ring::placement_hash(key);
            black_box(pool.backends.ring().first(key, Among::Open, |_| true));
        }
    };
    (u64::from(RUN), Box::new(work))
}

fn place(policy: Policy) -> Work {
    let pool = pool::hundred(|_| 1);
    let loads: Vec<Load> = (0..100)
        .map(|n| Load {
            turns: n % 3,
            sessions: 10 + n % 5,
        })
        .collect();
    let keys = keys();
    let work = move || {
        for key in &keys {
            black_box(balance::place(policy, key, &pool, &loads, 7));
        }
    };
    (u64::from(RUN), Box::new(work))
}

/// What callgrind looks for: only what happens in here is counted.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    for _ in 0..TIMES {
        work();
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = arguments.as_slice()
        && flag == "--counted"
    {
        let (_, _, make) = ALL
            .iter()
            .find(|(known, _, _)| known == name)
            .context("no such work")?;
        let (_, mut work) = make();
        // Until every table has its size.
        for _ in 0..20 {
            work();
        }
        counted(&mut work);
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.iter().any(|a| a == "--bench") {
        for (_, _, make) in ALL {
            make().1();
        }
        println!(
            "{} kinds of work done once; counted by `cargo bench`",
            ALL.len()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let keep = arguments.iter().any(|a| a == "--keep");
    let only: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    ensure!(!keep || only.is_empty(), "all counts are kept together");
    compare(keep, &only)
}

fn compare(keep: bool, only: &[&String]) -> anyhow::Result<ExitCode> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.tsv");
    let kept = kept(&file)?;
    let mut table = "# Instructions, by benches/instructions.rs; `--keep` writes this.\n\
                     work\tper\tinstructions\n"
        .to_owned();
    let mut more = 0;
    println!("{:<40} {:>10} {:>10} {:>8}", "", "kept", "now", "");
    for (name, unit, make) in ALL {
        if !only.is_empty() && !only.iter().any(|only| name.contains(only.as_str())) {
            continue;
        }
        let now = count(name)? / (TIMES * make().0);
        writeln!(table, "{name}\t{unit}\t{now}")?;
        let (before, change) = match kept.get(*name) {
            None => ("–".to_owned(), "new".to_owned()),
            Some(before) => {
                let change = now as f64 / *before as f64 - 1.0;
                more += usize::from(change > NOTABLE);
                let notable = change.abs() > NOTABLE;
                let told = if notable {
                    format!("{:+.1} %", change * 100.0)
                } else {
                    String::new()
                };
                (before.to_string(), told)
            }
        };
        println!("{name:<40} {before:>10} {now:>10} {change:>8}  per {unit}");
    }
    if keep {
        fs::write(&file, table)?;
        println!("kept in {}", file.display());
    } else if more > 0 {
        println!(
            "{more} more than {:.0} % above what is kept",
            NOTABLE * 100.0
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn kept(file: &PathBuf) -> anyhow::Result<BTreeMap<String, u64>> {
    let Ok(text) = fs::read_to_string(file) else {
        return Ok(BTreeMap::new());
    };
    let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    let rows = rows.map(|row| {
        let fields: Vec<&str> = row.split('\t').collect();
        let [name, _, count] = fields.as_slice() else {
            bail!("{}: {row:?} is no row", file.display());
        };
        Ok(((*name).to_owned(), count.parse()?))
    });
    rows.collect()
}

/// Instructions of all that [`counted`] does for this work.
fn count(name: &str) -> anyhow::Result<u64> {
    let counter = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*instructions*counted*")
        .arg(std::env::current_exe()?)
        .args(["--counted", name])
        .output()
        .context("valgrind counts the instructions, and cannot be run: install it")?;
    let said = String::from_utf8_lossy(&counter.stderr);
    ensure!(counter.status.success(), "{name} failed:\n{said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = collected.with_context(|| format!("no count in:\n{said}"))?;
    let count = count.trim().parse()?;
    ensure!(
        count > 0,
        "{name}: nothing was counted; is the program stripped?"
    );
    Ok(count)
}
