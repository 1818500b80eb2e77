//! What the multiplexer wishes besides bytes to be written, carried out: in the directory, by the desk,
//! at other connections. Decides nothing.

use super::{Driver, Message, Parted, Shared, desk};
use crate::core::{
    directory::Standing,
    event::{Event, PlacementReason},
    mux::{Context, Output},
};

impl Driver {
    pub(super) fn carry_out(&mut self, cx: &Context<'_>, output: Output) {
        let Shared {
            store, observer, ..
        } = &*self.shared;
        match output {
            Output::Connect { slot, backend } => self.connect(slot, &backend),
            Output::CloseUpstream { slot } => self.drop_upstream(slot),
            Output::Authenticate { ticket, token } => {
                self.has_unread = true;
                self.authenticate(cx, ticket, token);
            }
            Output::Locate(question) => self.locate(cx, question),
            Output::Serve(call) => self.serve(call),
            Output::Unserve(ticket) => self.unserve(ticket),
            Output::ProviderAnswer { token, body, id } => {
                self.shared.providers.answer(token, &body, id);
            }
            Output::Release(session) => {
                self.desk.closed(&session);
                store.lock().release(cx.now, session.as_str(), self.id);
            }
            Output::Attached(session) => {
                let session = session.as_str();
                store.lock().stands(session, self.id, Standing::Attached);
                store.announce();
            }
            Output::Lost(session) => {
                // Who asks for the next one while holding this one may wait for itself.
                drop(self.permits.remove(&session));
                let session = session.as_str();
                store.lock().stands(session, self.id, Standing::Lost);
                store.announce();
            }
            Output::Frozen { ticket, .. } => self.shared.moves.frozen(ticket, self.id),
            Output::Reopened(session) => drop(self.permits.remove(&session)),
            Output::ClosedByBackend { session, backend } => {
                let holders = store.lock().holders(session.as_str());
                for holder in holders.into_iter().filter(|id| *id != self.id) {
                    let news = Message::SessionLost(session.clone(), backend.clone());
                    self.shared.hub.send(holder, news);
                }
            }
            Output::Adopt { session, backend } => {
                self.desk.opened(cx.settings, &session);
                self.adopt(cx, &session, &backend);
            }
            Output::Closed { session, backend } => {
                self.desk.closed(&session);
                let mut directory = store.lock();
                directory.closed_by(cx.now, session.as_str(), &backend, self.id);
            }
            Output::Deleted(session) => {
                self.desk.closed(&session);
                store.lock().delete(cx.now, &session);
            }
            Output::History { session, backend } => {
                store.lock().learn_history(cx.now, &session, &backend);
            }
            Output::Forked {
                source,
                copy,
                backend,
            } => self.forked(cx, &source, &copy, &backend),
            Output::TurnBegan(session) => {
                let reports = store.lock().begin_turn(session.as_str(), self.id);
                // Mostly a send has asked for it.
                let taken = || store.turns().begun(cx.now, &session, self.id);
                if reports && !self.mux.has_turn(&session) && taken() {
                    self.mux.handle_turn_taken(cx.now, &session);
                }
            }
            Output::TurnEnded(mut record, mark) => {
                let session = record.session.as_str();
                let reports = store.lock().end_turn(session, self.id, mark);
                if reports {
                    record.user = self.user_of(cx.now, session);
                    let principal = self.mux.principal();
                    record.principal = principal.map(|principal| principal.name.clone());
                    observer.record(&Event::Turn(record));
                }
            }
            Output::TurnOver { session, parting } => {
                // First: who has it next may be of the same user, and counts it for himself.
                self.desk.turn_over(&session);
                let hub = &self.shared.hub;
                match desk::end_turn(store, hub, cx.now, &session, self.id, &parting) {
                    Parted::Gone => {}
                    Parted::Watched => self.mux.handle_turn_taken(cx.now, &session),
                    Parted::Orphaned => {
                        self.mux.handle_turn_orphaned(cx, &session, &mut self.out);
                    }
                }
            }
            Output::TurnPassed { session, to } => {
                self.desk.turn_over(&session);
                store.turns().pass(session.as_str(), self.id, to);
            }
            Output::TurnUnwanted(session) => {
                store.turns().withdraw(session.as_str(), self.id);
            }
            Output::TurnWaited(took) => observer.metrics().turn_waited(took),
            Output::TurnSilent { backend, silent } => {
                if let Some(series) = observer.metrics().known_backend(&backend) {
                    series.turn_silent(silent);
                }
            }
            Output::Unreachable { backend } => self.shared.pool.report_unreachable(&backend),
            Output::Violation { backend, what } => {
                self.shared.pool.report_violation(&backend, what);
            }
            Output::CallEnded {
                class,
                outcome,
                took,
            } => {
                observer.metrics().call(class, outcome, took);
            }
            Output::Event(mut event) => {
                if let Event::Placement {
                    backend, reason, ..
                } = &event
                    && *reason != PlacementReason::Owner
                {
                    observer.metrics().backend(backend).session_opened();
                }
                if self.admits(cx, &mut event) {
                    self.shared.observer.record(&event);
                }
            }
            Output::Tell { to, note } => self.tell(cx, to, note),
            Output::Park { reason, sessions } => self.park(reason, &sessions),
            Output::Close { reason } => {
                self.closing.get_or_insert((reason, cx.now));
            }
        }
    }
}
