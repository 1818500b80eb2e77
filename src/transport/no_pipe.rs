//! In place of `pipe`, where the system cannot move bytes between sockets by itself: there is never one.

#[cfg(test)]
use std::cell::Cell;
use std::io;

use tokio::net::TcpStream;

pub(super) const SIZE: usize = super::scratch::SIZE;

/// None there is.
#[derive(Debug)]
pub(super) enum Pipe {}

impl Pipe {
    pub(super) fn take() -> Option<Self> {
        None
    }

    pub(super) fn give_back(self) {
        match self {}
    }

    pub(super) fn held(&self) -> usize {
        match *self {}
    }

    pub(super) fn fill(&mut self, _: &TcpStream) -> io::Result<usize> {
        match *self {}
    }

    pub(super) fn drain(&mut self, _: &TcpStream) -> io::Result<usize> {
        match *self {}
    }
}

#[cfg(test)]
pub(super) fn refuse() {}

#[cfg(test)]
thread_local! {
    /// As of the other kind.
    pub(super) static FILLED: Cell<usize> = const { Cell::new(0) };
}
