//! Large frames of backends, taken as they arrive: passed to the client piece by piece, or eaten if
//! it has left. So they cost no memory, whatever their size.
//!
//! Only what Taxiway need not look into: answers that are for the client alone, and events that tell
//! nothing of their turn. What a frame is has to stand at its very beginning, where the CLI writes it;
//! all else is held until it is there as a whole. While a frame passes, the client can be told nothing
//! else: what is written to it waits in the outbox, and the other backends in their sockets. If the
//! rest does not come, nobody can tell the client where the next frame begins, so it is left.

use std::ops::ControlFlow;

use super::{
    Context, Mux, Output, UPSTREAM_DEADLINE,
    calls::Call,
    outbox::Outbox,
    run::is_open,
    tells::Tells,
    upstream::{Phase, SlotId},
};
use crate::core::{
    event::{ClosedBy, Direction, Event, FrameKind},
    frame::write_header,
    idmap::RequestId,
    replay::Effect,
    route::Class,
    scan::{self, Opening},
};

/// Why a client is left in the middle of a frame.
const CUT: &str = "cut_frame: a backend's connection ended in the middle of a large message";

/// A frame that is taken as it arrives.
#[derive(Debug)]
pub(super) struct Through {
    what: What,
    /// Bytes of its body that have not been taken.
    left: usize,
    /// Of header and body.
    size: usize,
}

#[derive(Debug)]
enum What {
    /// Of this call.
    Answer(RequestId),
    Event,
}

impl Through {
    /// What it has to end with.
    fn end(&self) -> &'static [u8] {
        match self.what {
            What::Answer(_) => Opening::RESULT_END,
            What::Event => Opening::EVENT_END,
        }
    }
}

impl Mux {
    /// The upstream connection of which a frame passes to the client in pieces. No other one is to
    /// be read meanwhile.
    pub fn passing(&self) -> Option<SlotId> {
        self.passing.filter(|_| self.is_heard())
    }

    /// Whether the backend is in the middle of a frame, all of whose bytes so far were used up.
    pub fn is_within(&self, slot: SlotId) -> bool {
        let upstream = self.upstreams.get(slot);
        upstream.is_some_and(|upstream| upstream.through.is_some())
    }

    /// How many bytes a backend's frame lacks of which `here` have come; any number while nobody
    /// knows, and at least one.
    pub fn missing(&self, slot: SlotId, here: usize) -> usize {
        let begun = self.upstreams.get(slot).and_then(|u| u.cutter.begun());
        let missing = begun.and_then(|(header, length)| (header + length).checked_sub(here));
        missing.filter(|bytes| *bytes > 0).unwrap_or(usize::MAX)
    }

    /// Whether what this one says is looked at: not while a large frame of another one passes.
    pub(super) fn is_read(&self, slot: SlotId) -> bool {
        self.passing().is_none_or(|passing| passing == slot)
    }

    /// Whether frames are not simply to be cut off what has come.
    #[inline]
    pub(super) fn is_through(&self, slot: SlotId) -> bool {
        self.passing.is_some() || self.is_within(slot)
    }

    /// Whether the backend of a session is in the middle of a frame, or waits for another one to be.
    pub(super) fn is_in_frame(&self, slot: Option<SlotId>) -> bool {
        let upstream = slot.and_then(|slot| self.upstreams.get(slot));
        self.passing().is_some() || upstream.is_some_and(|upstream| upstream.in_frame)
    }

    /// The frame at `done`, of which a part is there, is taken as it arrives if it may be. Returns
    /// what is used up then.
    pub(super) fn begin_through(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        input: &[u8],
        done: usize,
        out: &mut Outbox,
    ) -> usize {
        let Some(upstream) = self.upstreams.get(slot) else {
            return done;
        };
        let Some((start, length)) = upstream.cutter.begun() else {
            return done;
        };
        let body = &input[done + start..];
        if length <= cx.settings.cut_through_min || upstream.phase != Phase::Ready {
            return done;
        }
        let Some(opening) = scan::opening(body) else {
            return done;
        };
        let (what, heard) = match opening {
            Opening::Event {
                session,
                event_type,
            } => {
                let tells = Tells::by(event_type.span.of(body));
                let session = session.plain(body).unwrap_or_default();
                let key = self.by_session.get(session).copied();
                let key = key.filter(|key| is_open(&self.entries[*key], slot));
                let Some(key) = key.filter(|_| tells == Tells::Nothing && self.may_begin()) else {
                    return done;
                };
                self.count_events(cx.now, key, 1, length);
                (What::Event, true)
            }
            Opening::Result { id } => {
                let id = RequestId::read(&id, body);
                let given_up = upstream.given_up.get(&id);
                let heard = match given_up {
                    // Whether a session was deleted is in it.
                    Some(late) if late.class == Class::Delete => return done,
                    Some(_) => false,
                    None => true,
                };
                if heard {
                    let may_begin = self.may_begin();
                    let call = self.calls.get_mut(&id);
                    let call = call.filter(|call| call.at() == Some(slot) && is_unread(call));
                    let Some(call) = call.filter(|_| may_begin) else {
                        return done;
                    };
                    call.passing = true;
                }
                (What::Answer(id), heard)
            }
        };
        if heard && self.is_heard() {
            self.passing = Some(slot);
            out.begin_pieces(|own| write_header(length, own));
        }
        if let Some(upstream) = self.upstreams.get_mut(slot) {
            upstream.cutter.give_over();
            upstream.in_frame = true;
            upstream.through = Some(Box::new(Through {
                what,
                left: length,
                size: start + length,
            }));
            upstream.note_idle(cx.now);
        }
        match self.take_piece(cx, slot, input, done + start, out) {
            ControlFlow::Break(done) | ControlFlow::Continue(done) => done,
        }
    }

    /// One frame at a time.
    fn may_begin(&self) -> bool {
        self.passing().is_none()
    }

    /// More of a frame that has begun. `Continue` with where it ends if it does, `Break` if nothing
    /// more is to be taken.
    #[cold]
    pub(super) fn go_on(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        input: &[u8],
        out: &mut Outbox,
    ) -> ControlFlow<usize, usize> {
        if self.passing().is_some_and(|passing| passing != slot) {
            return ControlFlow::Break(0);
        }
        if self.is_within(slot) {
            self.take_piece(cx, slot, input, 0, out)
        } else {
            ControlFlow::Continue(0)
        }
    }

    fn take_piece(
        &mut self,
        cx: &Context<'_>,
        slot: SlotId,
        input: &[u8],
        from: usize,
        out: &mut Outbox,
    ) -> ControlFlow<usize, usize> {
        let upstream = self.upstreams.get_mut(slot);
        let Some(through) = upstream.and_then(|upstream| upstream.through.as_mut()) else {
            return ControlFlow::Continue(from);
        };
        let here = input.len() - from;
        let is_last = here >= through.left;
        // Its last bytes are looked at together, and only then passed.
        let before = through.left.saturating_sub(through.end().len());
        let size = if is_last {
            through.left
        } else {
            here.min(before)
        };
        let piece = from..from + size;
        if is_last && !input[piece.clone()].ends_with(through.end()) {
            self.violated(cx, slot, "sent a frame that is not JSON-RPC", out);
            return ControlFlow::Break(piece.end);
        }
        through.left -= size;
        if self.passing() == Some(slot) {
            out.pass_piece(piece.clone());
        }
        if !is_last {
            return ControlFlow::Break(piece.end);
        }
        self.end_through(cx, slot, out);
        ControlFlow::Continue(piece.end)
    }

    /// It has come as a whole.
    fn end_through(&mut self, cx: &Context<'_>, slot: SlotId, out: &mut Outbox) {
        let Some(upstream) = self.upstreams.get_mut(slot) else {
            return;
        };
        let Some(through) = upstream.through.take() else {
            return;
        };
        upstream.in_frame = false;
        upstream.note_idle(cx.now);
        if self.passing.take_if(|passing| *passing == slot).is_some() {
            out.end_pieces();
            // Nobody has looked whether these have answered.
            for slot in self.upstreams.ids() {
                if let Some(upstream) = self.upstreams.get_mut(slot)
                    && let Some(deadline) = &mut upstream.deadline
                {
                    *deadline = cx.now + UPSTREAM_DEADLINE;
                }
            }
        }
        let kind = match through.what {
            What::Event => FrameKind::Notification,
            What::Answer(id) => {
                // What it says is the client's own affair.
                let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":null}}"#, id.token());
                if let Ok(head) = scan::scan_backend(body.as_bytes()) {
                    self.handle_backend_answer(cx, slot, &head, body.as_bytes(), true, out);
                    self.settle_takings(cx, out);
                }
                FrameKind::Response
            }
        };
        self.tally
            .add(Direction::BackendToClient, kind, through.size);
        self.close_if_quiet();
    }

    /// An upstream connection has ended. Whether it was in the middle of a frame of which the client
    /// has the beginning: nothing more is written to that one.
    pub(super) fn is_cut_by(&mut self, slot: SlotId, out: &mut Outbox) -> bool {
        self.passing == Some(slot) && self.cut(out)
    }

    /// Whatever passes will not come to its end, since the client's connection is about to. Whether
    /// something passes.
    pub(super) fn cut(&mut self, out: &mut Outbox) -> bool {
        let is_heard = self.is_heard();
        let upstream = self
            .passing
            .take()
            .and_then(|slot| self.upstreams.get(slot));
        let Some(upstream) = upstream.filter(|_| is_heard) else {
            return false;
        };
        out.shut();
        self.outputs.push_back(Output::Event(Event::FrameCut {
            connection: self.id,
            backend: upstream.backend.clone(),
        }));
        true
    }

    /// Its connection is closed; its turns elsewhere go on as if it had broken.
    pub(super) fn leave_cut(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        self.depart(cx, ClosedBy::Proxy, CUT, true, out);
    }

    /// See [`Mux::check_invariants`].
    pub(super) fn check_through(&self) {
        let mut answers = 0;
        for (slot, upstream) in self.upstreams.iter() {
            let Some(through) = &upstream.through else {
                assert_ne!(self.passing, Some(slot), "nothing passes");
                continue;
            };
            assert!(upstream.in_frame && upstream.cutter.is_between_frames());
            assert!(through.left >= through.end().len(), "its end is to come");
            if let What::Answer(id) = &through.what {
                let owed = self.calls.get(id).is_some_and(|call| call.passing);
                assert!(owed || upstream.given_up.contains_key(id), "nobody's");
                answers += usize::from(owed);
            }
        }
        assert_eq!(self.calls.count(|call| call.passing), answers);
        if let Some(slot) = self.passing {
            assert!(self.upstreams.get(slot).is_some(), "it has ended");
        }
    }
}

/// Whether the success of a call changes nothing here that its answer would have to be read for.
fn is_unread(call: &Call) -> bool {
    match call.class {
        Class::Session => matches!(call.effect, Effect::Read | Effect::Kept),
        Class::Any | Class::RemoteControl | Class::Unknown => true,
        Class::Ping
        | Class::Connect
        | Class::Create
        | Class::Resume
        | Class::Open
        | Class::Fork
        | Class::Detach
        | Class::Delete
        | Class::Close
        | Class::Send(_)
        | Class::Abort
        | Class::Aggregate(_)
        | Class::IdsArray(_)
        | Class::ServerWide(_)
        | Class::Provider(_)
        | Class::ByRequestId
        | Class::Cancel
        | Class::Denied(_) => false,
    }
}
