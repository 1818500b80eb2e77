//! Who the client of a connection is: asked at its `connect`, and again when the rules change.

use std::{
    task::Context as Task,
    time::{Duration, Instant},
};

use super::{Done, Driver};
use crate::{
    core::{
        credential::{Fault, Proved},
        event::Event,
        id::Secret,
        mux::Context,
        reply::ProxyError,
    },
    proxy::doorman::Doorman,
};

impl Driver {
    /// The multiplexer asks who the client is. A right answer is given at once, a wrong one after a
    /// while.
    pub(super) fn authenticate(&mut self, cx: &Context<'_>, ticket: u64, token: Option<Secret>) {
        let judged = Doorman::judge(
            &self.rules.principals,
            token.as_ref(),
            self.proved.as_deref(),
            cx.wall(),
        );
        match judged {
            Ok(proved) => {
                let principal = proved.principal.clone();
                let is_new = self.proved.is_none();
                self.mux
                    .handle_authenticated(cx, ticket, Ok(principal), &mut self.out);
                // It may be in other groups now.
                self.ears.rejudges = true;
                if is_new {
                    self.say_opened();
                    self.say_authenticated(&proved);
                }
                self.proved = Some(Box::new(proved));
                self.hear_if_trusted();
            }
            Err(fault) => self.refuse_stranger(cx, ticket, fault),
        }
    }

    fn refuse_stranger(&mut self, cx: &Context<'_>, ticket: u64, fault: Fault) {
        let doorman = &self.shared.doorman;
        let sentence = doorman.sentence(cx.now, self.peer.ip());
        let wait = sentence.as_ref().map(|sentence| sentence.wait);
        self.say_failed(cx.now, fault, wait);
        let Some(sentence) = sentence else {
            self.say_failed(cx.now, Fault::TooMany, None);
            let answer = Err(ProxyError::AuthenticationFailed);
            self.mux
                .handle_authenticated(cx, ticket, answer, &mut self.out);
            self.mux.handle_turned_out(cx, &mut self.out);
            return;
        };
        self.work.push(Box::pin(async move {
            tokio::time::sleep(sentence.wait).await;
            drop(sentence);
            Done::Judged(ticket)
        }));
    }

    /// The answer to who has waited long enough for it.
    pub(super) fn answer_stranger(&mut self, now: Instant, task: &mut Task<'_>, ticket: u64) {
        self.step(now, task, &[], |mux, cx, out| {
            let answer = Err(ProxyError::AuthenticationFailed);
            mux.handle_authenticated(cx, ticket, answer, out);
            0
        });
    }

    /// What the client wrote behind a `connect` that was being judged.
    pub(super) fn read_again(&mut self, now: Instant, task: &mut Task<'_>) {
        self.has_unread = false;
        let bytes = std::mem::take(&mut self.client_in);
        let used = self.step(now, task, &bytes, |mux, cx, out| {
            mux.handle_client(cx, &bytes, out)
        });
        self.client_in = bytes[used..].to_vec();
    }

    /// A certificate says who the client is, before it says anything itself.
    pub(super) fn prove(&mut self, cx: &Context<'_>, proved: Proved) {
        self.mux.set_principal(cx, proved.principal.clone());
        self.say_opened();
        self.say_authenticated(&proved);
        self.proved = Some(Box::new(proved));
        self.hear_if_trusted();
    }

    /// Other rules may say otherwise of who the client is.
    pub(super) fn judge_again(&mut self, now: Instant, task: &mut Task<'_>) {
        let still = self
            .proved
            .as_ref()
            .and_then(|proved| self.rules.principals.still(proved));
        if let (Some(proved), None) = (&self.proved, &still)
            && self.rules.mux.access.authenticates
        {
            self.shared.observer.record(&Event::Revoked {
                connection: self.id,
                client: self.peer,
                principal: proved.principal.name.clone(),
                user: proved.principal.user.clone(),
            });
        }
        let principal = still.as_ref().map(|proved| proved.principal.clone());
        if still.is_some() || !self.rules.mux.access.authenticates {
            self.proved = still.map(Box::new);
        }
        self.step(now, task, &[], |mux, cx, out| {
            mux.handle_judged_again(cx, principal, out);
            0
        });
        self.hear_if_trusted();
        self.ears.rejudges = true;
    }

    /// Who has proved who it is, where that is asked, may hear news of sessions.
    pub(super) fn hear_if_trusted(&self) {
        if self.proved.is_some() || !self.rules.mux.access.authenticates {
            self.shared.hub.let_hear(&self.mailbox);
        }
    }

    /// Strangers of all connections share the lines about them.
    pub(super) fn may_log_error(&self, cx: &Context<'_>, code: i32) -> bool {
        let is_stranger = [
            ProxyError::AuthenticationFailed,
            ProxyError::AuthenticationRequired,
        ]
        .iter()
        .any(|error| error.code() == code);
        let is_stranger = is_stranger || !self.said_opened;
        !is_stranger || self.shared.doorman.admits_line(cx.now)
    }

    fn say_authenticated(&self, proved: &Proved) {
        self.shared.observer.record(&Event::Authenticated {
            connection: self.id,
            client: self.peer,
            principal: proved.principal.name.clone(),
            user: proved.principal.user.clone(),
            how: proved.how(),
        });
    }

    fn say_failed(&self, now: Instant, fault: Fault, wait: Option<Duration>) {
        let observer = &self.shared.observer;
        let reason = fault.label();
        if self.shared.doorman.admits_line(now) {
            observer.record(&Event::AuthenticationFailed {
                connection: self.id,
                client: self.peer,
                reason,
                wait,
            });
        } else {
            observer.metrics().auth_failure(reason);
        }
    }
}
