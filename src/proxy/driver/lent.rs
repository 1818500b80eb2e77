//! Memory that a connection needs only while it is at the processor: what its multiplexer wants
//! written and done. The thread lends it, so that an idle connection owns none and a busy one
//! allocates none.

use std::cell::RefCell;

use super::Driver;
use crate::core::mux::{Memory, OutboxMemory};

#[derive(Default)]
struct Lent {
    out: OutboxMemory,
    mux: Memory,
}

thread_local! {
    static LENT: RefCell<Lent> = RefCell::default();
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
