//! The client's own handshake: its `connect` ends here, and says who it is where principals are
//! configured. Whether a token proves anything is the shell's to find out; until it has, no more
//! of the client's bytes are taken.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::value::RawValue;

use super::{
    Context, Mux, Output, Settings,
    outbox::{Dest, Outbox},
};
use crate::core::{
    connect,
    event::{CallOutcome, ClosedBy, Direction, FrameKind},
    frame::FrameLimits,
    identity::Principal,
    idmap::RequestId,
    locate::Refusal,
    reply::{self, LostBy, ProxyError},
    route::{Class, Profile},
    scan::Head,
};

/// Largest frame of a client that has not said who it is (DESIGN §7).
const STRANGER_FRAME: usize = 64 * 1024;

/// Longer than any connection lasts.
const FAR: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Failures to say who it is that a connection may have.
const MAX_FAILURES: u32 = 10;

/// Why a connection ends that proves nothing any more.
pub(super) const REVOKED: &str = "the client is nobody any more: its token has run out or was \
                                  taken back";

/// What became of the proof of who the client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Standing {
    /// It holds, or was never asked for.
    #[default]
    Good,
    /// It holds until then; the grace comes on top.
    Until(Instant),
    /// It does not hold any more, since then.
    Revoked(Instant),
}

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

    /// The client has proved who it is, by a token or by its certificate.
    pub fn set_principal(&mut self, cx: &Context<'_>, principal: Arc<Principal>) {
        self.standing = match principal.expires {
            None => Standing::Good,
            // The clock on the wall may be set later; a proof runs out when it seemed to.
            Some(end) => {
                let left = end.duration_since(cx.wall()).unwrap_or_default();
                Standing::Until(cx.now + left.min(FAR))
            }
        };
        self.principal = Some(principal);
        self.enter_again(cx);
        self.cutter.set_limits(cx.settings.frame);
    }

    /// The rules have changed, and so has what they say of the client: the same one with other
    /// rights, or none any more. Not to be called where nothing was proved by the old rules.
    pub fn handle_judged_again(
        &mut self,
        cx: &Context<'_>,
        principal: Option<Arc<Principal>>,
        out: &mut Outbox,
    ) {
        if !self.is_heard() {
            return;
        }
        if !cx.settings.access.authenticates {
            // Nobody is asked any more: everybody is let in, and is nobody.
            self.principal = None;
            self.standing = Standing::Good;
            self.enter_again(cx);
            return;
        }
        match (principal, &self.principal) {
            (Some(new), Some(old)) => {
                let expires = old.expires;
                self.principal = Some(Arc::new(Principal {
                    expires,
                    ..(*new).clone()
                }));
                self.enter_again(cx);
            }
            // It has been asked, and has not answered yet.
            (_, None) if !self.greeted => {}
            (_, None) | (None, Some(_)) => self.revoke(cx),
        }
        self.look_at_standing(cx, out);
    }

    /// The same client, perhaps with other caps, or one that nobody asks any more: it has its place.
    fn enter_again(&self, cx: &Context<'_>) {
        if self.entered {
            let _same = cx.commons.enter(cx.settings, self.principal.as_ref());
        }
    }

    /// Too many at its address have failed to say who they are: there is no time for this one.
    pub fn handle_turned_out(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        let reason = "too many failures to authenticate";
        self.depart(cx, ClosedBy::Proxy, reason, true, out);
    }

    /// New calls are refused from now on; the connection ends with its turns.
    fn revoke(&mut self, cx: &Context<'_>) {
        if self.is_heard() && !self.is_revoked() {
            self.standing = Standing::Revoked(cx.now);
            self.close_if_quiet();
        }
    }

    pub(super) fn is_revoked(&self) -> bool {
        matches!(self.standing, Standing::Revoked(_))
    }

    /// When [`Mux::look_at_standing`] has something to do.
    pub(super) fn next_judgement(&self, settings: &Settings) -> Option<Instant> {
        match self.standing {
            _ if !self.is_heard() => None,
            Standing::Good => None,
            Standing::Until(end) => Some(end + settings.revoke_grace),
            Standing::Revoked(since) => Some(since + settings.last_turns),
        }
    }

    /// What proved the client may have run out, and so may the time of its last turns.
    pub(super) fn look_at_standing(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        if self
            .next_judgement(cx.settings)
            .is_none_or(|at| at > cx.now)
        {
            return;
        }
        match self.standing {
            Standing::Good => {}
            Standing::Until(_) => self.revoke(cx),
            Standing::Revoked(_) => {
                let (cause, unsent) = (LostBy::Revoked, ProxyError::AuthenticationRequired);
                self.end_work(cx, &cause, ClosedBy::Proxy, &unsent, out);
                self.depart(cx, ClosedBy::Proxy, REVOKED, false, out);
            }
        }
    }

    /// Whether the shell owes the answer to an [`Output::Authenticate`]. Until then no bytes of the
    /// client are taken: what [`Mux::handle_client`] has left comes again after it.
    pub fn is_judged(&self) -> bool {
        self.connecting.is_some()
    }

    /// Whether the client may call anything.
    pub(super) fn is_trusted(&self, cx: &Context<'_>) -> bool {
        !self.is_stranger(cx) && !self.is_revoked()
    }

    /// Whether the client has never said who it is, and has to.
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
            self.connecting = Some(Box::new(Connecting {
                ticket,
                id,
                options,
            }));
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
                self.set_principal(cx, principal);
                self.failures = 0;
                self.note_frame(cx);
                if let Err(error) = self.enter(cx) {
                    self.turn_away(&connecting.id, &error, out);
                    self.leave_surplus(cx, out);
                    return;
                }
                // The token counts even if the rest is wrong.
                self.accept(cx, &connecting.id, connecting.options, out);
            }
            Ok(_) => {
                let error = ProxyError::AuthenticationFailed;
                self.note_failure(cx, &connecting.id, &error, out);
            }
            Err(error) => self.note_failure(cx, &connecting.id, &error, out),
        }
    }

    fn note_failure(
        &mut self,
        cx: &Context<'_>,
        id: &RequestId,
        error: &ProxyError,
        out: &mut Outbox,
    ) {
        self.turn_away(id, error, out);
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            self.handle_turned_out(cx, out);
        }
    }

    fn accept(
        &mut self,
        cx: &Context<'_>,
        id: &RequestId,
        options: Result<connect::Options, ProxyError>,
        out: &mut Outbox,
    ) {
        let facts = connect::Facts::of(&cx.snapshot()).ok_or(ProxyError::NotLocated {
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

    /// Its user has as many connections as may be.
    pub(super) fn leave_surplus(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        let reason = "the user has as many connections as limits.connections_per_user";
        self.depart(cx, ClosedBy::Proxy, reason, false, out);
    }

    fn turn_away(&mut self, id: &RequestId, error: &ProxyError, out: &mut Outbox) {
        let mut token = Vec::with_capacity(40);
        id.write(&mut token);
        self.refuse(&token, "connect", None, error, out);
        self.answered_here(Class::Connect, CallOutcome::ProxyError);
    }
}
