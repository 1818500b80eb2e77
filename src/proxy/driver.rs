//! One task per client connection: moves bytes between its sockets and its multiplexer, and carries
//! out what the multiplexer asks for. Chooses nothing itself.
//!
//! All sockets of the connection live in this one task, so a frame crosses no channel and wakes no
//! other task. Bytes are read into a buffer that all connections of a thread share, and a run of
//! frames that pass unchanged is written from there; an idle connection owns no buffer.

mod carry;
mod ears;
mod judging;
mod lent;
mod mail;
mod parting;
mod reach;
mod searches;
mod serving;
mod tally;
mod timer;
mod upstreams;
mod work;

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll},
    time::{Duration, Instant},
};

use tokio::time::Sleep;

use self::{
    ears::Ears,
    lent::wall_clock,
    searches::Searches,
    serving::Serving,
    upstreams::{End, Upstream},
    work::Work,
};
use super::{
    Rules, Shared,
    desk::{self, Desk, Parted},
    error_lines::ErrorLines,
    front,
    hub::{Mailbox, Message},
    lobby::Seat,
    locator::Found,
    outbuf::OutBuf,
    pacer::Permit,
    readbuf::{self, carry_over, give_back, keep_rest, read, restore, take_buffer},
};
use crate::{
    core::{
        credential::Proved,
        event::NotAdmitted,
        id::{ConnectionId, SessionId},
        mux::{Context, Dest, Mux, Outbox, Served, SlotId},
        rare::Rare,
    },
    transport::Stream,
};

/// Beyond this many bytes that a client has not taken, its backends are not read: they feel it.
const CLIENT_HIGH: usize = 256 * 1024;

/// Beyond this many bytes that a backend has not taken, the client is not read: with one read more
/// they are 1 MiB.
const UPSTREAM_HIGH: usize = 1024 * 1024 - readbuf::SCRATCH;

/// Rounds of work before other connections get their turn.
const ROUNDS: usize = 16;

/// How long the last bytes may take to leave when a connection is closed.
const LINGER: Duration = Duration::from_secs(2);

/// What leaves in one write at most.
type Slices<'a> = [IoSlice<'a>; 64];

/// What a started piece of work ends with.
enum Done {
    Connected(SlotId, io::Result<Stream>),
    /// None if it was ended before it was over.
    Located(u64, Option<Found>),
    Served(u64, Served),
    Judged(u64),
    SeenOff,
}

/// The task of one client connection.
pub struct Driver {
    shared: Arc<Shared>,
    rules: Arc<Rules>,
    id: ConnectionId,
    peer: SocketAddr,
    opened: Instant,
    mux: Mux,
    desk: Arc<Desk>,
    /// None once it has left and its sessions go on.
    client: Option<Stream>,
    client_in: Vec<u8>,
    client_out: OutBuf,
    /// Nothing has come from it yet.
    client_is_new: bool,
    /// It has nothing more to say in this turn at the processor, as far as was known when it was
    /// asked last; what comes later wakes the task.
    client_is_quiet: bool,
    upstreams: Vec<Option<Upstream>>,
    /// The one that is read first next time: where the client was full last.
    first_read: usize,
    work: Work,
    /// Calls that are executed here; none most of the time.
    serving: Option<Box<Serving>>,
    mailbox: Arc<Mailbox>,
    sleep: Pin<Box<Sleep>>,
    armed: Option<Instant>,
    /// The timer has been asked since it was set, and is not due.
    is_asleep: bool,
    out: Outbox,
    /// Bytes that wait here, as they are counted in the metrics.
    buffered: usize,
    /// Why, and since when the connection is being closed.
    closing: Option<(&'static str, Instant)>,
    client_gone: bool,
    /// Why, if not for a reason of the multiplexer's.
    gone_why: Option<&'static str>,
    /// What ends up in the log as an open connection: it has said something, and who it is.
    said_opened: bool,
    said_closed: bool,
    /// Why it came to nothing, if not for a reason of the multiplexer's.
    not_admitted: Option<NotAdmitted>,
    /// Until it has proved who it is, where it has to.
    seat: Option<Box<Seat>>,
    error_lines: ErrorLines,
    searches: Searches,
    ears: Ears,
    /// One for each session that is being opened again.
    permits: Rare<SessionId, Permit>,
    /// What proved who the client is.
    proved: Option<Box<Proved>>,
    /// The rules are new: who the client is has to be judged again.
    rejudge: bool,
    /// Frames behind a `connect` wait in `client_in` until that is answered.
    has_unread: bool,
}

impl Driver {
    /// The task of a connection that was just accepted.
    pub(super) fn new(
        shared: Arc<Shared>,
        id: ConnectionId,
        peer: SocketAddr,
        client: Stream,
        seat: Option<Seat>,
    ) -> Self {
        let rules = shared.rules.load_full();
        let now = Instant::now();
        let mux = Mux::new(id, peer, now, &rules.mux);
        let mailbox = shared.hub.join(id);
        if !rules.mux.access.authenticates {
            shared.hub.let_hear(&mailbox);
        }
        let desk = Arc::new(Desk::new(shared.clone(), peer.ip()));
        Self {
            shared,
            id,
            peer,
            opened: now,
            mux,
            desk,
            client: Some(client),
            client_in: Vec::new(),
            client_out: OutBuf::default(),
            client_is_new: true,
            client_is_quiet: false,
            upstreams: Vec::new(),
            first_read: 0,
            work: Work::default(),
            serving: None,
            mailbox,
            sleep: Box::pin(tokio::time::sleep_until(now.into())),
            armed: None,
            is_asleep: false,
            out: Outbox::new(),
            buffered: 0,
            closing: None,
            client_gone: false,
            gone_why: None,
            said_opened: false,
            said_closed: false,
            not_admitted: None,
            seat: seat.map(Box::new),
            error_lines: ErrorLines::default(),
            searches: Searches::default(),
            ears: Ears::default(),
            permits: Rare::default(),
            proved: None,
            rejudge: false,
            has_unread: false,
            rules,
        }
    }

    /// The same, of a client whose certificate says who it is.
    #[must_use]
    pub fn known_as(mut self, proved: Proved) -> Self {
        let (rules, desk) = (self.rules.clone(), self.desk.clone());
        let cx = Context {
            now: self.opened,
            clock: wall_clock(self.opened),
            pool: &*desk,
            settings: &rules.mux,
            commons: &*desk,
        };
        self.prove(&cx, proved);
        self
    }

    /// Runs until the connection has ended.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has room for its argument and, besides, for what becomes of it"
    )]
    pub fn run(mut self) -> impl Future<Output = ()> + Send {
        async move {
            self.shared.observer.metrics().downstream_opened();
            std::future::poll_fn(|task| self.poll(task)).await;
            // From here on nobody hears this connection, so nothing may count it as attached.
            self.end_searches();
            self.shared.hub.leave(self.id);
            desk::leave(&self.shared.store, &self.shared.hub, self.id);
            self.shared.providers.leave(self.id);
            self.weigh(0);
            let (reason, _) = self.closing.unwrap_or(("closed", self.opened));
            self.say_closed(reason);
        }
    }

    fn poll(&mut self, task: &mut Task<'_>) -> Poll<()> {
        self.borrow_memory();
        let polled = self.poll_rounds(task);
        self.return_memory();
        self.tally();
        polled
    }

    fn poll_rounds(&mut self, task: &mut Task<'_>) -> Poll<()> {
        // The rounds of one turn at the processor are as good as one moment.
        let now = Instant::now();
        self.mailbox.register(task);
        // Who replaces the rules says so to all connections.
        if self.client_is_new || !self.mailbox.is_quiet() {
            self.follow_rules();
        }
        self.client_is_quiet = false;
        for upstream in self.upstreams.iter_mut().flatten() {
            upstream.is_quiet = false;
        }
        for _ in 0..ROUNDS {
            let mut progress = self.poll_writes(now, task);
            if let Some((_, since)) = self.closing {
                let late = now.saturating_duration_since(since) >= LINGER;
                if self.client_out.is_empty() || self.client_gone || late {
                    return Poll::Ready(());
                }
                // Nothing else is due any more: only the last bytes, or the end of their time.
                self.sleep.as_mut().reset((since + LINGER).into());
                (self.armed, self.is_asleep) = (None, false);
                if self.sleep.as_mut().poll(task).is_ready() {
                    return Poll::Ready(());
                }
                return Poll::Pending;
            }
            if std::mem::take(&mut self.rejudge) {
                self.judge_again(now, task);
                progress = true;
            }
            if std::mem::take(&mut self.ears.rejudges) {
                self.rejudge(now, task);
            }
            progress |= self.poll_seat(now, task);
            progress |= self.poll_mailbox(now, task);
            progress |= self.poll_work(now, task);
            progress |= self.poll_upstreams(now, task);
            progress |= self.poll_client(now, task);
            let more = progress && self.may_have_more();
            if !more && !self.poll_timer(now, task) {
                return Poll::Pending;
            }
        }
        self.poll_timer(now, task);
        task.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether another round may find something to do. Mostly not: sockets have been asked again once
    /// they were read, and will wake the task.
    fn may_have_more(&self) -> bool {
        let mut quiet = self.client_is_quiet || self.client.is_none();
        for upstream in self.upstreams.iter().flatten() {
            quiet &= upstream.is_quiet;
        }
        !quiet
            || !self.work.is_empty()
            || self.serving.is_some()
            || !self.mailbox.is_quiet()
            || self.closing.is_some()
            || self.rejudge
            || self.ears.rejudges
            || self.has_unread
    }

    /// Whether so much waits for the client that nothing is done which would make it more.
    fn client_is_full(&self) -> bool {
        self.client_out.len() + self.out.behind() >= CLIENT_HIGH
    }

    /// Whether backends are not read, for what waits for the client: with it counts what has come of
    /// their frames, since it will wait there next. What waits behind a frame that passes does not:
    /// it waits for that frame.
    fn client_holds_back(&self) -> bool {
        let waits = self.client_out.len();
        let held = || self.upstreams.iter().flatten().map(|u| u.input.len());
        waits > 0 && waits + held().sum::<usize>() >= CLIENT_HIGH
    }

    /// Whether this backend is not read: the client takes nothing, or a frame of another one passes.
    fn is_held_back(&self, slot: SlotId) -> bool {
        let other = self.mux.passing().is_some_and(|passing| passing != slot);
        other || self.client_holds_back()
    }

    /// A reload replaces the rules; connections that are open follow it.
    fn follow_rules(&mut self) {
        let rules = self.shared.rules.load();
        if !Arc::ptr_eq(&rules, &self.rules) {
            self.rejudge = true;
            self.rules = Arc::clone(&rules);
        }
    }

    /// One step of the multiplexer, and everything that follows from it.
    fn step(
        &mut self,
        now: Instant,
        task: &mut Task<'_>,
        input: &[u8],
        handle: impl FnOnce(&mut Mux, &Context<'_>, &mut Outbox) -> usize,
    ) -> usize {
        let cx = Context {
            now,
            clock: wall_clock(now),
            pool: &*self.desk,
            settings: &self.rules.mux,
            commons: &*self.desk,
        };
        let used = handle(&mut self.mux, &cx, &mut self.out);
        if !self.said_opened && self.mux.has_greeted() {
            self.say_opened();
        }
        let mut failed = self.write(input, now, task);
        self.out.clear();
        let mut output = self.mux.poll_output();
        // Mostly that is all.
        if output.is_none() && failed.is_empty() && !self.client_gone {
            return used;
        }
        let (rules, desk) = (self.rules.clone(), self.desk.clone());
        let cx = Context {
            now,
            clock: wall_clock(now),
            pool: &*desk,
            settings: &rules.mux,
            commons: &*desk,
        };
        loop {
            for slot in failed {
                self.drop_upstream(slot);
                self.mux
                    .handle_upstream_dropped(&cx, slot, "write failed", &mut self.out);
            }
            if self.client_gone && self.closing.is_none() {
                self.mux.handle_client_closed(&cx, &mut self.out);
            }
            let mut next = output.take().or_else(|| self.mux.poll_output());
            while let Some(wish) = next {
                self.carry_out(&cx, wish);
                next = self.mux.poll_output();
            }
            if self.out.is_empty() {
                break;
            }
            failed = self.write(&[], now, task);
            self.out.clear();
        }
        used
    }

    /// Writes the outbox; returns the upstream connections that broke.
    fn write(&mut self, input: &[u8], now: Instant, task: &mut Task<'_>) -> Vec<SlotId> {
        let Self {
            out,
            client,
            client_out,
            upstreams,
            client_gone,
            ..
        } = self;
        let mut failed = Vec::new();
        if out.is_empty() {
            return failed;
        }
        let mut gathered: Slices<'_>;
        let mut writes = out.iter(input).peekable();
        while let Some((dest, bytes)) = writes.next() {
            let alone = [IoSlice::new(bytes)];
            // Mostly it is.
            let slices = if writes.peek().is_none_or(|(next, _)| *next != dest) {
                &alone[..]
            } else {
                gathered = [IoSlice::new(&[]); _];
                gathered[0] = alone[0];
                let mut count = 1;
                while count < gathered.len()
                    && let Some((_, more)) = writes.next_if(|(next, _)| *next == dest)
                {
                    gathered[count] = IoSlice::new(more);
                    count += 1;
                }
                &gathered[..count]
            };
            match dest {
                Dest::Client => {
                    if let Some(client) = client.as_mut().filter(|_| !*client_gone)
                        && client_out.write(client, slices, now, task).is_err()
                    {
                        *client_gone = true;
                    }
                }
                Dest::Upstream(slot) => {
                    let upstream = upstreams.get_mut(slot.index()).and_then(Option::as_mut);
                    let Some(upstream) = upstream.filter(|u| u.slot == slot) else {
                        continue;
                    };
                    if upstream
                        .output
                        .write(&mut upstream.socket, slices, now, task)
                        .is_err()
                    {
                        failed.push(slot);
                    }
                }
            }
        }
        failed
    }

    fn poll_writes(&mut self, now: Instant, task: &mut Task<'_>) -> bool {
        if self.client_holds_back() {
            // Until now; nothing was asked while the client took nothing.
            self.excuse_upstreams(now);
        }
        if let Some(client) = self.client.as_mut().filter(|_| !self.client_gone)
            && self.client_out.flush(client, now, task).is_err()
        {
            self.client_gone = true;
            self.step(now, task, &[], |_, _, _| 0);
        }
        let mut broken = Vec::new();
        for upstream in self.upstreams.iter_mut().flatten() {
            if upstream
                .output
                .flush(&mut upstream.socket, now, task)
                .is_err()
            {
                broken.push(upstream.slot);
            }
        }
        for slot in &broken {
            self.end_upstream(now, task, *slot, End::Given("write failed"));
        }
        !broken.is_empty()
    }

    fn poll_work(&mut self, now: Instant, task: &mut Task<'_>) -> bool {
        let mut progress = false;
        self.end_forgotten_searches();
        self.begin_serving();
        while let Some(done) = self.work.poll_next(task) {
            progress = true;
            self.ears.rejudges |= self.ears.unsettled;
            match done {
                Done::Connected(slot, Ok(socket)) => {
                    self.upstream_connected(now, task, slot, socket);
                }
                Done::Connected(slot, Err(error)) => {
                    let end = self.why_unmade(&error);
                    self.end_upstream(now, task, slot, end);
                }
                Done::Located(ticket, found) => {
                    self.located(now, task, (ticket, found));
                }
                Done::Judged(ticket) => self.answer_stranger(now, task, ticket),
                Done::SeenOff => {}
                Done::Served(ticket, served) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_served(cx, ticket, &served, out);
                        0
                    });
                    self.end_serving(ticket);
                    self.begin_serving();
                }
            }
        }
        progress
    }

    fn poll_client(&mut self, now: Instant, task: &mut Task<'_>) -> bool {
        // Answers made here wait in front of a client that does not read, too.
        let pressed = self.client_is_full()
            || self
                .upstreams
                .iter()
                .flatten()
                .any(|u| u.output.len() >= UPSTREAM_HIGH);
        if pressed
            || self.mux.is_judged()
            || self.mux.is_closed()
            || self.closing.is_some()
            || self.client_gone
        {
            self.mux.handle_client_unread(now);
            return false;
        }
        if self.has_unread {
            self.read_again(now, task);
            return true;
        }
        let Some(client) = &mut self.client else {
            return false;
        };
        // Once in a turn at the processor is enough to be woken by what comes later.
        if self.client_is_quiet || client.poll_read_ready(task).is_pending() {
            self.client_is_quiet = true;
            return false;
        }
        let mut buffer = take_buffer();
        let kept = carry_over(&mut self.client_in, &mut buffer);
        let room = usize::MAX;
        let (input, whole) =
            match read(client, &mut self.client_in, &mut buffer, (kept, room), task) {
                Poll::Pending => {
                    restore(&mut self.client_in, &buffer[..kept]);
                    give_back(buffer);
                    return false;
                }
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => {
                    give_back(buffer);
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_client_closed(cx, out);
                        0
                    });
                    return true;
                }
                Poll::Ready(Ok(n)) => (kept + n, !self.client_in.is_empty()),
            };
        if std::mem::take(&mut self.client_is_new)
            && let Some(why) = front::stranger(&buffer[..input])
        {
            give_back(buffer);
            self.send_away(why);
            self.step(now, task, &[], |_, _, _| 0);
            return true;
        }
        let large = std::mem::take(&mut self.client_in);
        let bytes = if whole { &large[..] } else { &buffer[..input] };
        let used = self.step(now, task, bytes, |mux, cx, out| {
            mux.handle_client(cx, bytes, out)
        });
        keep_rest(&mut self.client_in, large, &buffer[..input], whole, used);
        give_back(buffer);
        // Mostly it has said all, and another round can be spared.
        let client = self.client.as_mut();
        self.client_is_quiet =
            client.is_none_or(|client| client.poll_read_ready(task).is_pending());
        true
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
