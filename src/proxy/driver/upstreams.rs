//! The sockets of upstream connections: made, read, ended.

use std::{io, sync::Arc, task::Poll, time::Instant};

use super::{Done, Driver, Task};
use crate::{
    core::{id::BackendName, mux::SlotId},
    observe::BackendMetrics,
    proxy::{
        outbuf::OutBuf,
        port::Alive,
        readbuf::{carry_over, give_back, keep_rest, read, restore, take_buffer},
    },
    transport::{Stream, files},
};

/// Why an upstream connection ends.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// Taxiway gives it up.
    Given(&'static str),
    /// It could not be made, or the backend ended it.
    Met(&'static str),
    /// It could not be made for want of something of our own.
    Wanted(&'static str),
}

/// One upstream connection.
pub(super) struct Upstream {
    pub(super) slot: SlotId,
    pub(super) socket: Stream,
    pub(super) input: Vec<u8>,
    /// From when on the next [`PIECE`] of a frame whose end has not come is awaited.
    pub(super) partial_since: Option<Instant>,
    /// How much of it has come since; no read brings 4 GiB.
    come: u32,
    pub(super) output: OutBuf,
    pub(super) activity: Option<Arc<dyn Alive>>,
    pub(super) metrics: Arc<BackendMetrics>,
    /// As the driver's `client_is_quiet`.
    pub(super) is_quiet: bool,
}

/// So much of a frame has to come within `limits.frame_timeout`: a backend that sends drops would hold
/// up its client for as long as it likes. What the slowest of lines carries, so that no size is too
/// large for it.
const PIECE: u32 = 64 * 1024;

impl Upstream {
    /// So many bytes have come, of the frame that was under way or of another one.
    fn note_partial(&mut self, now: Instant, is_within: bool, (is_same, bytes): (bool, usize)) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.come = self.come.saturating_add(bytes);
        if !is_within {
            self.partial_since = None;
        } else if self.partial_since.is_none() || !is_same || self.come >= PIECE {
            self.partial_since = Some(now);
            self.come = 0;
        }
    }
}

impl Driver {
    pub(super) fn connect(&mut self, slot: SlotId, backend: &BackendName) {
        // Not the picture of this step: the backend may have been chosen by a newer one.
        let address = self
            .shared
            .pool
            .snapshot()
            .get(backend)
            .map(|b| b.address.clone());
        let keepalive = self.rules.tcp_keepalive;
        let transport = self.shared.pool.transport(backend);
        let source = self.source(&transport);
        self.work.push(Box::pin(async move {
            let connected = match address {
                Some(address) => {
                    let connected = transport.connect(&address, keepalive, source).await;
                    connected.map_err(io::Error::from)
                }
                None => Err(io::ErrorKind::AddrNotAvailable.into()),
            };
            Done::Connected(slot, connected)
        }));
        let at = slot.index();
        if self.upstreams.len() <= at {
            self.upstreams.reserve_exact(at + 1 - self.upstreams.len());
            self.upstreams.resize_with(at + 1, || None);
        }
    }

    pub(super) fn drop_upstream(&mut self, slot: SlotId) {
        if let Some(place) = self.upstreams.get_mut(slot.index())
            && place.as_ref().is_some_and(|u| u.slot == slot)
            && let Some(upstream) = place.take()
        {
            upstream.metrics.upstream_closed();
        }
    }

    /// Why one ends that could not be made. Said at once: files may be free again the next moment.
    pub(super) fn why_unmade(&self, error: &io::Error) -> End {
        if files::is_own_want(error) {
            let metrics = self.shared.observer.metrics();
            metrics.limit_hit(files::OPEN_FILES);
            End::Wanted("no file was left for it")
        } else {
            End::Met("connect failed")
        }
    }

    pub(super) fn end_upstream(
        &mut self,
        now: Instant,
        task: &mut Task<'_>,
        slot: SlotId,
        end: End,
    ) {
        self.drop_upstream(slot);
        self.step(now, task, &[], |mux, cx, out| {
            match end {
                End::Given(why) => mux.handle_upstream_dropped(cx, slot, why, out),
                End::Met(why) => mux.handle_upstream_closed(cx, slot, why, out),
                End::Wanted(why) => mux.handle_upstream_unmade(cx, slot, why, out),
            }
            0
        });
    }

    pub(super) fn upstream_connected(
        &mut self,
        now: Instant,
        task: &mut Task<'_>,
        slot: SlotId,
        socket: Stream,
    ) {
        let Some(backend) = self.mux.backend_of(slot).cloned() else {
            return;
        };
        let metrics = self.shared.observer.metrics().backend(&backend);
        metrics.upstream_opened();
        let activity = self.shared.pool.activity(&backend);
        self.upstreams[slot.index()] = Some(Upstream {
            slot,
            socket,
            input: Vec::new(),
            partial_since: None,
            come: 0,
            output: OutBuf::default(),
            activity,
            metrics,
            is_quiet: false,
        });
        self.step(now, task, &[], |mux, cx, out| {
            mux.handle_upstream_connected(cx, slot, out);
            0
        });
    }

    /// Who is not read is not late.
    pub(super) fn excuse_upstreams(&mut self, now: Instant) {
        for upstream in self.upstreams.iter_mut().flatten() {
            upstream.partial_since = upstream.partial_since.map(|_| now);
        }
    }

    pub(super) fn poll_upstreams(&mut self, now: Instant, task: &mut Task<'_>) -> bool {
        let mut progress = false;
        let count = self.upstreams.len();
        for nth in 0..count {
            let at = (self.first_read + nth) % count;
            if self.client_holds_back() || self.closing.is_some() {
                self.first_read = at;
                self.excuse_upstreams(now);
                break;
            }
            let passing = self.mux.passing();
            let Some(upstream) = &mut self.upstreams[at] else {
                continue;
            };
            let slot = upstream.slot;
            // A large frame of another backend passes: this one waits, and is not late meanwhile.
            if passing.is_some_and(|passing| passing != slot) {
                upstream.partial_since = upstream.partial_since.map(|_| now);
                continue;
            }
            if upstream.is_quiet || upstream.socket.poll_read_ready(task).is_pending() {
                upstream.is_quiet = true;
                continue;
            }
            let mut buffer = take_buffer();
            let kept = carry_over(&mut upstream.input, &mut buffer);
            // Nothing is read behind a frame that is held for its size.
            let room = if upstream.input.is_empty() {
                usize::MAX
            } else {
                self.mux.missing(slot, upstream.input.len())
            };
            let read = read(
                &mut upstream.socket,
                &mut upstream.input,
                &mut buffer,
                (kept, room),
                task,
            );
            let (input, whole) = match read {
                Poll::Pending => {
                    restore(&mut upstream.input, &buffer[..kept]);
                    give_back(buffer);
                    continue;
                }
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => {
                    give_back(buffer);
                    progress = true;
                    let why = if matches!(read, Poll::Ready(Ok(_))) {
                        "the backend closed the connection"
                    } else {
                        "the connection to the backend broke"
                    };
                    self.end_upstream(now, task, slot, End::Met(why));
                    continue;
                }
                Poll::Ready(Ok(n)) => (kept + n, !upstream.input.is_empty()),
            };
            progress = true;
            if let Some(activity) = &upstream.activity {
                activity.mark();
            }
            let large = std::mem::take(&mut upstream.input);
            let bytes = if whole { &large[..] } else { &buffer[..input] };
            let passed = self.mux.is_within(slot);
            let used = self.step(now, task, bytes, |mux, cx, out| {
                mux.handle_upstream(cx, slot, bytes, out)
            });
            if let Some(upstream) = self.upstreams[at].as_mut().filter(|u| u.slot == slot) {
                keep_rest(&mut upstream.input, large, &buffer[..input], whole, used);
                let passes = self.mux.is_within(slot);
                let is_within = !upstream.input.is_empty() || passes;
                let is_same = used == 0 || passed && passes;
                upstream.note_partial(now, is_within, (is_same, input - kept));
            }
            give_back(buffer);
            // As with the client.
            if let Some(upstream) = self.upstreams[at].as_mut().filter(|u| u.slot == slot) {
                upstream.is_quiet = upstream.socket.poll_read_ready(task).is_pending();
            }
        }
        progress
    }
}
