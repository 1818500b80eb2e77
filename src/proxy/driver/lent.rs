//! Memory that a connection needs only while it is at the processor: what its multiplexer wants
//! written and done. The thread lends it, so that an idle connection owns none and a busy one
//! allocates none.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant, SystemTime},
};

use super::Driver;
use crate::core::mux::{Memory, OutboxMemory, WallClock};

#[derive(Default)]
struct Lent {
    out: OutboxMemory,
    mux: Memory,
}

/// How long it is believed that the wall clock goes as the monotonic one does.
const SET: Duration = Duration::from_secs(1);

thread_local! {
    static LENT: RefCell<Lent> = RefCell::default();
    /// When the wall clock was read, and what it said; and until when that is believed.
    static WALL: Cell<Option<(WallClock, Instant)>> = const { Cell::new(None) };
}

/// The wall clock's time at this moment, at most [`SET`] behind when somebody sets it: it stands in a
/// few answers, and is asked for at each wake-up.
pub(super) fn wall_clock(now: Instant) -> WallClock {
    if let Some((clock, until)) = WALL.get()
        && (clock.read..until).contains(&now)
    {
        return clock;
    }
    let said = SystemTime::now();
    let clock = WallClock { read: now, said };
    WALL.set(Some((clock, now + SET)));
    clock
}

impl Driver {
    /// Takes the thread's memory for one turn at the processor.
    pub(super) fn borrow_memory(&mut self) {
        LENT.with_borrow_mut(|lent| {
            self.out.lend(std::mem::take(&mut lent.out));
            self.mux.lend(&mut lent.mux);
        });
    }

    /// Gives it back.
    pub(super) fn return_memory(&mut self) {
        LENT.with_borrow_mut(|lent| {
            lent.out = self.out.return_memory();
            self.mux.give_back(&mut lent.mux);
        });
    }
}
