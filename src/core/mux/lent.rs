//! Memory that a machine needs only while it does something. Whoever has many machines lends it to
//! the one that is at work, so that an idle one owns none; a machine to which nobody lends has its
//! own.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Mux, Output,
    calls::Call,
    session::{Gate, Turn},
};
use crate::core::idmap::CallsMemory;

/// What is lent. Nothing in it means anything.
#[derive(Debug, Default)]
pub struct Memory {
    outputs: VecDeque<Output>,
    spares: Option<Box<Spares>>,
    /// Of calls: machines whose calls are not answered yet have some of it still.
    calls: Vec<CallsMemory<Call>>,
}

/// Things to do at a time that memory is kept for; few connections ever have more.
const OUTPUTS: usize = 64;

/// Machines at a time whose calls memory is kept for.
const CALLS: usize = 64;

/// Calls, and turns, at a time whose memory is kept.
const AT_A_TIME: usize = 64;

/// Pieces of memory that come and go with calls and turns, to be used again: the steady state
/// allocates nothing for them.
#[derive(Debug, Default)]
pub(super) struct Spares {
    /// For copies of calls.
    pub(super) copies: Vec<Vec<u8>>,
    #[expect(clippy::vec_box, reason = "they stand in tables as boxes")]
    calls: Vec<Box<Call>>,
    #[expect(clippy::vec_box, reason = "as above")]
    turns: Vec<Box<Turn>>,
    #[expect(clippy::vec_box, reason = "as above")]
    gates: Vec<Box<Gate>>,
}

impl Spares {
    /// A call that has come.
    pub(super) fn call(&mut self, call: Call) -> Box<Call> {
        match self.calls.pop() {
            Some(mut old) => {
                *old = call;
                old
            }
            None => Box::new(call),
        }
    }

    /// One that is over.
    pub(super) fn keep_call(&mut self, mut call: Box<Call>) {
        if self.calls.len() < AT_A_TIME && call.kept_bytes() == 0 {
            (call.session, call.vouching) = (None, None);
            (call.also, call.avoided) = (Vec::new(), Vec::new());
            self.calls.push(call);
        }
    }

    /// A turn that begins.
    pub(super) fn turn(&mut self, since: Instant, queued: Duration) -> Box<Turn> {
        match self.turns.pop() {
            Some(old) => old.anew(since, queued),
            None => Turn::new(since, queued),
        }
    }

    /// One that is over.
    pub(super) fn keep_turn(&mut self, mut turn: Box<Turn>) {
        if self.turns.len() < AT_A_TIME {
            turn.forget();
            self.turns.push(turn);
        }
    }

    /// A gate that closes.
    pub(super) fn gate(&mut self, gate: Gate) -> Box<Gate> {
        match self.gates.pop() {
            Some(mut old) => {
                *old = gate;
                old
            }
            None => Box::new(gate),
        }
    }

    /// One that is open.
    pub(super) fn keep_gate(&mut self, gate: Option<Box<Gate>>) {
        if self.gates.len() < AT_A_TIME {
            // A long id is as long as its client likes.
            self.gates
                .extend(gate.filter(|gate| gate.call.heap_bytes() == 0));
        }
    }
}

impl Mux {
    /// Takes memory for the work to come.
    #[inline]
    pub fn lend(&mut self, memory: &mut Memory) {
        if self.outputs.is_empty() {
            std::mem::swap(&mut self.outputs, &mut memory.outputs);
        }
        if self.spares.is_none() {
            self.spares = memory.spares.take();
        }
        if self.calls.owns_nothing()
            && let Some(calls) = memory.calls.pop()
        {
            self.calls.lend(calls);
        }
    }

    /// Gives back what is not in use.
    #[inline]
    pub fn give_back(&mut self, memory: &mut Memory) {
        if self.outputs.is_empty() {
            self.outputs.shrink_to(OUTPUTS);
            std::mem::swap(&mut self.outputs, &mut memory.outputs);
        }
        let spares = self.spares.take();
        memory.spares = memory.spares.take().or(spares);
        if let Some(calls) = self.calls.give_back()
            && memory.calls.len() < CALLS
        {
            memory.calls.push(calls);
        }
    }

    pub(super) fn spares(&mut self) -> &mut Spares {
        self.spares.get_or_insert_default()
    }
}
