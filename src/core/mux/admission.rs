//! The client's own handshake: its `connect` ends here, and says who it is where principals are
//! configured. Whether a token proves anything is the shell's to find out; until it has, no more
//! of the client's bytes are taken.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{
    Context, Mux, Output,
    outbox::{Dest, Outbox},
};
use crate::core::{
    connect,
    event::{CallOutcome, Direction, FrameKind},
    frame::FrameLimits,
    identity::Principal,
    idmap::RequestId,
    locate::Refusal,
    reply::{self, ProxyError},
    route::{Class, Profile},
    scan::Head,
};

/// Largest frame of a client that has not said who it is (DESIGN §7).
const STRANGER_FRAME: usize = 64 * 1024;

/// A `connect` whose token is being looked at.
#[derive(Debug)]
pub(super) struct Connecting {
    ticket: u64,
    id: RequestId,
    /// The other fields, or what is wrong with them.
    options: Result<connect::Options, ProxyError>,
}

impl Mux {
    /// Who the client has proved to be; none if nobody asks, or it has not yet.
    pub fn principal(&self) -> Option<&Arc<Principal>> {
        self.principal.as_ref()
    }

    /// The client has proved who it is otherwise than by a token: by its certificate.
    pub fn set_principal(&mut self, principal: Arc<Principal>, limits: FrameLimits) {
        self.principal = Some(principal);
        self.cutter.set_limits(limits);
    }

    /// Whether the shell owes the answer to an [`Output::Authenticate`]. Until then no bytes of the
    /// client are taken: what [`Mux::handle_client`] has left comes again after it.
    pub fn is_judged(&self) -> bool {
        self.connecting.is_some()
    }

    /// Whether the client may do nothing but `connect`.
    pub(super) fn is_stranger(&self, cx: &Context<'_>) -> bool {
        cx.settings.access.authenticates && self.principal.is_none()
    }

    /// How large a frame may be that comes first.
    pub(super) fn first_limits(frame: FrameLimits, authenticates: bool) -> FrameLimits {
        if authenticates {
            FrameLimits {
                frame: frame.frame.min(STRANGER_FRAME),
                ..frame
            }
        } else {
            frame
        }
    }

    /// A whole frame is there. A stranger's time goes on until it has said who it is.
    pub(super) fn note_frame(&mut self, cx: &Context<'_>) {
        if self.greeted || !self.is_stranger(cx) {
            self.greeted = true;
            self.partial_since = None;
        }
    }

    /// The client's own handshake; its options are replayed to each backend.
    pub(super) fn handle_connect(
        &mut self,
        cx: &Context<'_>,
        head: &Head,
        body: &[u8],
        id: RequestId,
        out: &mut Outbox,
    ) {
        let params = head
            .params
            .and_then(|p| serde_json::from_slice::<&RawValue>(p.of(body)).ok());
        let request = connect::parse(params);
        if cx.settings.access.authenticates {
            let ticket = self.ticket();
            let connect::Request { token, options } = request;
            self.connecting = Some(Connecting {
                ticket,
                id,
                options,
            });
            self.outputs
                .push_back(Output::Authenticate { ticket, token });
            return;
        }
        self.accept(cx, &id, request.without_tokens(), out);
    }

    /// The answer to [`Output::Authenticate`]. A connection stays who it is: a later `connect` may
    /// renew that, and a failing one takes nothing back (PROTOCOL §3).
    pub fn handle_authenticated(
        &mut self,
        cx: &Context<'_>,
        ticket: u64,
        answer: Result<Arc<Principal>, ProxyError>,
        out: &mut Outbox,
    ) {
        let Some(connecting) = self.connecting.take_if(|c| c.ticket == ticket) else {
            return;
        };
        let same = |now: &Principal| self.principal.as_ref().is_none_or(|p| p.is_renewed_by(now));
        match answer {
            Ok(principal) if same(&principal) => {
                self.set_principal(principal, cx.settings.frame);
                self.note_frame(cx);
                // The token counts even if the rest is wrong.
                self.accept(cx, &connecting.id, connecting.options, out);
            }
            Ok(_) => self.turn_away(&connecting.id, &ProxyError::AuthenticationFailed, out),
            Err(error) => self.turn_away(&connecting.id, &error, out),
        }
    }

    fn accept(
        &mut self,
        cx: &Context<'_>,
        id: &RequestId,
        options: Result<connect::Options, ProxyError>,
        out: &mut Outbox,
    ) {
        let facts = connect::Facts::of(cx.snapshot).ok_or(ProxyError::NotLocated {
            session: None,
            why: Refusal::NoBackend,
        });
        let accepted = options
            .and_then(|options| facts.map(|facts| (connect::answer(&options, &facts), options)));
        match accepted {
            Ok((answer, options)) => {
                self.connect = match cx.settings.access.methods.profile {
                    Profile::MultiTenant => options.without_telemetry(),
                    Profile::SingleTenant => options,
                };
                let mut token = Vec::with_capacity(40);
                id.write(&mut token);
                let size = out.write(Dest::Client, |b| reply::result(b, &token, &answer));
                self.tally
                    .add(Direction::BackendToClient, FrameKind::Response, size);
                self.answered_here(Class::Connect, CallOutcome::Ok);
            }
            Err(error) => self.turn_away(id, &error, out),
        }
    }

    fn turn_away(&mut self, id: &RequestId, error: &ProxyError, out: &mut Outbox) {
        let mut token = Vec::with_capacity(40);
        id.write(&mut token);
        self.refuse(&token, "connect", None, error, out);
        self.answered_here(Class::Connect, CallOutcome::ProxyError);
    }
}
