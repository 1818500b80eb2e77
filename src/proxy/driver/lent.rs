//! Memory that a connection needs only while it is at the processor: what its multiplexer wants
//! written and done. The thread lends it, so that an idle connection owns none and a busy one
//! allocates none.

use std::{cell::RefCell, collections::VecDeque};

use super::Driver;
use crate::core::mux::{Outbox, Output};

/// Things to do at a time that memory is kept for; few connections ever have more.
const KEPT: usize = 64;

#[derive(Default)]
struct Lent {
    out: Outbox,
    outputs: VecDeque<Output>,
}

thread_local! {
    static LENT: RefCell<Lent> = RefCell::default();
}

impl Driver {
    /// Takes the thread's memory for one turn at the processor.
    pub(super) fn borrow_memory(&mut self) {
        let lent = LENT.take();
        // What was wanted before the first turn stands in memory of its own.
        if self.out.is_empty() {
            self.out = lent.out;
        }
        self.mux.lend_outputs(lent.outputs);
    }

    /// Gives it back.
    pub(super) fn return_memory(&mut self) {
        let mut lent = Lent::default();
        if self.out.is_empty() {
            lent.out = std::mem::take(&mut self.out);
        }
        lent.outputs = self.mux.return_outputs();
        lent.outputs.shrink_to(KEPT);
        LENT.set(lent);
    }
}
