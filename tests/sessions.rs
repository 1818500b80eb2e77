//! What a million remembered sessions cost, by a counting allocator.

use std::time::{Duration, Instant};

use allocation_counter::AllocationInfo;
use taxiway::core::{
    directory::{Claim, Directory, Saved},
    id::{BackendName, ConnectionId, SessionId},
    identity::Person,
    snapshot::Mode,
};

const SESSIONS: u32 = 1_000_000;
const BACKENDS: usize = 100;
const USERS: u32 = 1000;
/// 200 MB for a million.
const MOST: f64 = 200.0;

fn id(n: u32) -> SessionId {
    // As long as those that SDKs make.
    SessionId::from(format!("59e32a26-9b05-4dee-9192-{n:012}"))
}

fn backends() -> Vec<BackendName> {
    (0..BACKENDS)
        .map(|n| BackendName::from(format!("cli-{n}")))
        .collect()
}

fn user(n: u32) -> Person {
    Person::new("service", &format!("user-{}", n % USERS))
}

/// Bytes of each of them that are still there.
fn kept(info: &AllocationInfo) -> f64 {
    info.bytes_current as f64 / f64::from(SESSIONS)
}

/// Opened, used, closed: what a Taxiway has seen in its life.
#[test]
fn a_million_sessions_that_were_open_take_less_than_200_mb() {
    let backends = backends();
    let now = Instant::now();
    let mut directory = None;
    let info = allocation_counter::measure(|| {
        let all = directory.insert(Directory::new(Mode::Sticky, SESSIONS as usize));
        for n in 0..SESSIONS {
            let (session, holder) = (id(n), ConnectionId(u64::from(n)));
            let backend = &backends[n as usize % BACKENDS];
            assert_eq!(all.claim(now, &session, backend, holder), Claim::Granted);
            all.belongs(now, &session, &user(n));
            all.begin_turn(session.as_str(), holder);
            all.end_turn(session.as_str(), holder, Some(u64::from(n)));
            all.learn_history(now, &session, backend);
            all.release(now, session.as_str(), holder);
            if n % 64 == 0 {
                all.take_dirty();
            }
        }
    });
    let directory = directory.unwrap();
    assert_eq!(directory.len(), SESSIONS as usize);
    directory.check_invariants();
    let bytes = kept(&info);
    println!("{bytes:.0} bytes for a session");
    assert!(bytes <= MOST, "{bytes:.0} bytes for a session");
}

/// Read from the store: whatever the rows say, names are kept once.
#[test]
fn a_million_sessions_of_a_former_process_take_less_than_200_mb() {
    let names = backends();
    let now = Instant::now();
    let mut directory = None;
    let info = allocation_counter::measure(|| {
        let all = directory.insert(Directory::new(Mode::Sticky, SESSIONS as usize));
        for n in 0..SESSIONS {
            let home = names[n as usize % BACKENDS].as_str();
            let saved = Saved {
                home: Some(BackendName::from(home)),
                has_history: true,
                idle: Duration::from_secs(u64::from(n % 100)),
                person: Some(user(n).into()),
                ..Saved::default()
            };
            all.restore(now, &id(n), saved);
        }
    });
    let directory = directory.unwrap();
    assert_eq!(directory.len(), SESSIONS as usize);
    let bytes = kept(&info);
    println!("{bytes:.0} bytes for a session");
    assert!(bytes <= MOST, "{bytes:.0} bytes for a session");
}

/// No promise, but a bound: a million *open* ones are more than clients can have.
#[test]
fn sessions_that_are_open_take_less_than_400_bytes() {
    let backends = backends();
    let now = Instant::now();
    let mut directory = None;
    let info = allocation_counter::measure(|| {
        let all = directory.insert(Directory::new(Mode::Sticky, SESSIONS as usize));
        for n in 0..SESSIONS {
            let backend = &backends[n as usize % BACKENDS];
            all.claim(now, &id(n), backend, ConnectionId(u64::from(n)));
            if n % 64 == 0 {
                all.take_dirty();
            }
        }
    });
    let bytes = kept(&info);
    println!("{bytes:.0} bytes for an open session");
    assert!(bytes <= 400.0, "{bytes:.0} bytes for a session");
    assert_eq!(directory.unwrap().open(), SESSIONS);
}
