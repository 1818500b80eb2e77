//! Memory that a connection needs only while it is at the processor: what its multiplexer wants
//! written and done. The thread lends it, so that an idle connection owns none and a busy one
//! allocates none.

use std::{cell::RefCell, collections::VecDeque};

use super::Driver;
use crate::core::mux::{OutboxMemory, Output};

/// Things to do at a time that memory is kept for; few connections ever have more.
const KEPT: usize = 64;

#[derive(Default)]
struct Lent {
    out: OutboxMemory,
    outputs: VecDeque<Output>,
}

thread_local! {
    static LENT: RefCell<Lent> = RefCell::default();
}

impl Driver {
    /// Takes the thread's memory for one turn at the processor.
    pub(super) fn borrow_memory(&mut self) {
        let lent = LENT.take();
        self.out.lend(lent.out);
        self.mux.lend_outputs(lent.outputs);
    }

    /// Gives it back.
    pub(super) fn return_memory(&mut self) {
        let mut outputs = self.mux.return_outputs();
        outputs.shrink_to(KEPT);
        let out = self.out.return_memory();
        LENT.set(Lent { out, outputs });
    }
}
