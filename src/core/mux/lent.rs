//! Memory that a machine needs only while it does something. Whoever has many machines lends it to
//! the one that is at work, so that an idle one owns none; a machine to which nobody lends has its
//! own.

use std::collections::VecDeque;

use super::{Mux, Output, calls::Call};
use crate::core::idmap::CallsMemory;

/// What is lent. Nothing in it means anything.
#[derive(Debug, Default)]
pub struct Memory {
    outputs: VecDeque<Output>,
    spare: Vec<Vec<u8>>,
    /// Of calls: machines whose calls are not answered yet have some of it still.
    calls: Vec<CallsMemory<Call>>,
}

/// Things to do at a time that memory is kept for; few connections ever have more.
const OUTPUTS: usize = 64;

/// Machines at a time whose calls memory is kept for.
const CALLS: usize = 64;

impl Mux {
    /// Takes memory for the work to come.
    #[inline]
    pub fn lend(&mut self, memory: &mut Memory) {
        if self.outputs.is_empty() {
            std::mem::swap(&mut self.outputs, &mut memory.outputs);
        }
        std::mem::swap(&mut self.spare, &mut memory.spare);
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
        std::mem::swap(&mut self.spare, &mut memory.spare);
        if let Some(calls) = self.calls.give_back()
            && memory.calls.len() < CALLS
        {
            memory.calls.push(calls);
        }
    }
}
