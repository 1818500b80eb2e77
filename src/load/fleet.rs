//! The clients of one thread: opened together, told when to begin turns, closed together.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;

use super::{
    Work,
    client::{Client, Desk, Refusal, SCRATCH, Shared},
    plan::{Pace, Rota, Share},
    tally::Tally,
    timer::Timer,
};
use crate::core::reply;

/// Connections that are opened, or closed, at a time.
const AT_A_TIME: usize = 64;

/// Between two looks for turns that run too long.
const SWEEP: Duration = Duration::from_secs(1);

/// When to measure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Period {
    /// When the plan begins.
    pub start: Instant,
    /// Turns that are planned within it are not measured.
    pub warmup: Duration,
    /// Measured after it.
    pub length: Duration,
}

impl Period {
    /// Begins now, without a warm-up.
    pub fn from_now(length: Duration) -> Self {
        Self {
            start: Instant::now(),
            warmup: Duration::ZERO,
            length,
        }
    }
}

/// Connections with open sessions, all of one thread. Dropped, it closes the connections; the
/// sessions stay on the servers' disks.
#[derive(Debug)]
pub struct Fleet {
    work: Rc<Work>,
    share: Share,
    clients: Vec<Client>,
    tally: Tally,
}

impl Fleet {
    /// Opens this share of the connections and their sessions, until `stop` is cancelled. Those that
    /// are refused are counted.
    pub async fn open(work: Work, share: Share, stop: &CancellationToken) -> Self {
        let work = Rc::new(work);
        let mut tally = Tally::default();
        let mut clients = Vec::new();
        {
            let opening = share
                .connections(work.connections)
                .enumerate()
                .map(|(number, connection)| Client::open(&work, number, connection, stop));
            let mut opening = futures_util::stream::iter(opening).buffer_unordered(AT_A_TIME);
            while let Some(opened) = opening.next().await {
                match opened {
                    Ok(client) => clients.extend(client),
                    Err(Refusal { code, message }) => tally.fail(&code, &message, 1),
                }
            }
        }
        clients.sort_by_key(|client| client.number);
        tally.connections = clients.len() as u64;
        tally.sessions = (clients.len() * work.sessions) as u64;
        Self {
            work,
            share,
            clients,
            tally,
        }
    }

    /// What the opening has counted.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Works turns in this period; returns when the last one has ended, or at once when `stop` is
    /// cancelled. May be called again.
    ///
    /// # Errors
    /// The kernel has no alarm for us.
    pub async fn run(
        &mut self,
        pace: Pace,
        period: Period,
        stop: &CancellationToken,
    ) -> io::Result<Tally> {
        let timer = Timer::new()?;
        let measure_from = period.start + period.warmup;
        let shared = Rc::new(Shared {
            work: self.work.clone(),
            pace,
            rota: Rota::new(self.work.connections, self.work.sessions, self.share),
            start: period.start,
            measure_from,
            end: measure_from + period.length,
            over: Cell::new(false),
            stopped: Cell::new(false),
            tally: RefCell::new(self.tally.clone()),
            scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            prompt: reply::quoted(&self.work.prompt),
        });
        let own = self.share.connections(self.work.connections).len();
        let mut desks: Vec<_> = (0..own).map(|_| Desk::lost(self.work.sessions)).collect();
        for client in &self.clients {
            desks[client.number] = client.desk();
        }
        let desks: Vec<_> = desks.into_iter().map(RefCell::new).map(Rc::new).collect();
        let set = LocalSet::new();
        let mut tasks = JoinSet::new();
        for client in self.clients.drain(..) {
            let desk = desks[client.number].clone();
            tasks.spawn_local_on(client.work(desk, shared.clone()), &set);
        }
        let clients = &mut self.clients;
        let worked = set.run_until(async {
            let all = async {
                while let Some(ended) = tasks.join_next().await {
                    match ended {
                        Ok(client) => clients.extend(client),
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    }
                }
            };
            let keeper = Keeper {
                shared: &shared,
                desks: &desks,
                timer,
                stop,
            };
            tokio::select! {
                () = all => Ok(()),
                Err(error) = keeper.keep() => Err(error),
            }
        });
        worked.await?;
        clients.sort_by_key(|client| client.number);
        let mut tally = shared.tally.take();
        if pace != Pace::Closed {
            tally.unsent = desks.iter().map(|desk| desk.borrow().unsent()).sum();
        }
        if shared.stopped.get() {
            let running = |desk: &Rc<RefCell<Desk>>| desk.borrow().running() as u64;
            tally.cut_short = desks.iter().map(running).sum();
        }
        tally.took = Instant::now().saturating_duration_since(measure_from);
        Ok(tally)
    }

    /// Deletes the sessions and closes the connections; returns how many sessions are left behind,
    /// and why.
    pub async fn close(self) -> (u64, Option<Refusal>) {
        let mut left = self.tally.sessions;
        let mut why = None;
        let closing = self.clients.into_iter().map(Client::delete);
        let mut closing = futures_util::stream::iter(closing).buffer_unordered(AT_A_TIME);
        while let Some((deleted, refusal)) = closing.next().await {
            left -= deleted;
            why = why.or(refusal);
        }
        (left, why)
    }
}

/// Tells the clients when to begin, and when it is over.
struct Keeper<'a> {
    shared: &'a Shared,
    desks: &'a [Rc<RefCell<Desk>>],
    timer: Timer,
    stop: &'a CancellationToken,
}

impl Keeper<'_> {
    /// Goes on until it is dropped, since turns that run too long are given up after the end, too.
    async fn keep(self) -> io::Result<()> {
        let shared = self.shared;
        let mut sweep = shared.start + SWEEP;
        let mut next = 0;
        if shared.pace == Pace::Closed {
            for desk in self.desks {
                desk.borrow_mut().begin_all();
            }
        }
        loop {
            let mut wake = sweep;
            if !shared.over.get() {
                wake = wake.min(shared.end).min(self.release(&mut next));
            }
            tokio::select! {
                rung = self.timer.until(wake) => rung?,
                () = self.stop.cancelled(), if !shared.stopped.get() => {
                    shared.stopped.set(true);
                    shared.over.set(true);
                    self.wake_all();
                }
            }
            let now = Instant::now();
            if now >= sweep {
                sweep = now + SWEEP;
                for desk in self.desks {
                    desk.borrow_mut().sweep(now, shared);
                }
            }
            if now >= shared.end && !shared.over.get() {
                // Whatever was planned up to the end and has not been told yet counts.
                self.release(&mut next);
                shared.over.set(true);
                self.wake_all();
            }
        }
    }

    /// Tells all turns whose time has come; returns the time of the next one.
    fn release(&self, next: &mut u64) -> Instant {
        let shared = self.shared;
        let now = Instant::now();
        loop {
            let Some((slot, offset)) = shared
                .rota
                .slot(*next)
                .and_then(|slot| Some((slot, shared.pace.at(slot.number)?)))
            else {
                return shared.end;
            };
            let time = shared.start + offset;
            if time > now || time >= shared.end {
                return time;
            }
            self.desks[slot.client].borrow_mut().plan(slot.seat, shared);
            *next += 1;
        }
    }

    fn wake_all(&self) {
        for desk in self.desks {
            desk.borrow_mut().wake();
        }
    }
}
