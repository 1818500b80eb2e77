//! The shell: what `proxy::driver` does with what a machine puts out, under the virtual clock.

use super::{Act, MS, World, client::Client, search::Search};
use crate::core::{
    directory::Standing,
    event::{Event, ReopenResult},
    id::{BackendName, ConnectionId, SessionId},
    mux::{Context, Mux, Outbox, Output},
    turnlock::Parting,
};

/// News for one client.
#[derive(Debug, Clone)]
pub(super) enum Mail {
    Silent(BackendName),
    Back(BackendName),
    Released(BackendName),
    Lost(SessionId, BackendName),
    Granted(SessionId),
    Inherited(SessionId, Vec<String>),
}

impl World {
    // What a machine asks for.

    pub(super) fn carry_out(
        &mut self,
        at: usize,
        mux: &mut Mux,
        cx: &Context<'_>,
        output: Output,
        out: &mut Outbox,
    ) {
        let me = self.clients[at].connection;
        match output {
            Output::Connect { slot, backend } => {
                let delay = 100 + self.chance.span(2 * MS);
                self.plan(delay, Act::Connect(at, me, slot, backend.to_string()));
            }
            Output::CloseUpstream { slot } => {
                if let Some((open, link)) = self.clients[at].sockets.get(&slot.index()).copied()
                    && open == slot
                {
                    self.clients[at].sockets.remove(&slot.index());
                    self.close_link(link);
                }
            }
            Output::Authenticate { .. } => unreachable!("nobody is asked for a token"),
            Output::Locate(question) => self.locate(at, mux, cx, question, out),
            Output::Release(session) => {
                self.directory.release(cx.now, session.as_str(), me);
            }
            Output::Attached(session) => {
                let session = session.as_str();
                self.directory.stands(session, me, Standing::Attached);
                self.wake_for_store();
            }
            Output::Lost(session) => {
                self.give_permit_back(at, session.as_str());
                self.note(|| format!("c{at}: has lost {session}"));
                self.directory.stands(session.as_str(), me, Standing::Lost);
                self.wake_for_store();
            }
            Output::Reopened(session) => self.give_permit_back(at, session.as_str()),
            Output::ClosedByBackend { session, backend } => {
                self.stats.not_found += 1;
                let holders = self.directory.holders(session.as_str());
                for holder in holders.into_iter().filter(|id| *id != me) {
                    if let Some(other) = self.clients.iter().position(|c| c.is(holder)) {
                        self.mail_to(other, Mail::Lost(session.clone(), backend.clone()));
                    }
                }
            }
            Output::Adopt { session, backend } => {
                self.directory.claim(cx.now, &session, &backend, me);
            }
            Output::Closed { session, backend } => {
                self.directory
                    .closed_by(cx.now, session.as_str(), &backend, me);
            }
            Output::Deleted(session) => self.directory.delete(cx.now, &session),
            Output::History { session, backend } => {
                self.directory.learn_history(cx.now, &session, &backend);
            }
            Output::Forked { copy, backend, .. } => {
                self.directory.learn_history(cx.now, &copy, &backend);
            }
            Output::TurnBegan(session) => {
                let reports = self.directory.begin_turn(session.as_str(), me);
                if reports && self.turns.borrow_mut().begun(cx.now, &session, me) {
                    mux.handle_turn_taken(cx.now, &session);
                }
            }
            Output::TurnOver { session, parting } => {
                if !self.pass_turn(&session, me, &parting) {
                    self.stats.orphaned += 1;
                    mux.handle_turn_orphaned(cx, &session, out);
                }
            }
            Output::TurnPassed { .. } => unreachable!("there is no grace here"),
            Output::TurnUnwanted(session) => {
                self.turns.borrow_mut().withdraw(session.as_str(), me);
            }
            Output::TurnWaited(_) => self.stats.waited += 1,
            Output::TurnEnded(record, mark) => {
                self.directory.end_turn(record.session.as_str(), me, mark);
            }
            Output::Unreachable { backend } => {
                let server = self.server_named(backend.as_str());
                self.probe_soon(server);
            }
            Output::Event(Event::SessionReopened {
                result,
                session,
                from,
                to,
                ..
            }) => {
                self.note(|| format!("c{at}: {session} {result:?} from {from} to {to:?}"));
                match result {
                    ReopenResult::Resumed | ReopenResult::Moved => self.stats.reopened += 1,
                    ReopenResult::Created => self.stats.created += 1,
                    ReopenResult::Failed => self.stats.failed += 1,
                }
            }
            Output::Tell { .. } | Output::Park { .. } => unreachable!("there is no grace here"),
            Output::Close { reason } => assert_eq!(reason, "client closed"),
            Output::Serve(_)
            | Output::Unserve(_)
            | Output::Frozen { .. }
            | Output::TurnSilent { .. }
            | Output::ProviderAnswer { .. }
            | Output::Violation { .. }
            | Output::CallEnded { .. }
            | Output::Event(_) => {}
        }
    }

    /// As `proxy::desk` does.
    pub(super) fn pass_turn(
        &mut self,
        session: &SessionId,
        by: ConnectionId,
        parting: &Parting,
    ) -> bool {
        let turns = self.turns.clone();
        let mut turns = turns.borrow_mut();
        let mut holder = by;
        let hearers = self.directory.hearers(session.as_str());
        let lost = self.directory.losers(session.as_str());
        for heir in parting.heirs(by, hearers, lost) {
            if !turns.pass(session.as_str(), holder, heir) {
                return true;
            }
            let mail = Mail::Inherited(session.clone(), parting.asked().to_vec());
            if self.reaches(heir, mail) {
                return true;
            }
            holder = heir;
        }
        if matches!(parting, Parting::Unasked(_)) {
            return holder != by && !turns.pass(session.as_str(), holder, by);
        }
        while let Some(next) = turns.release(self.instant(), session.as_str(), holder) {
            if self.reaches(next, Mail::Granted(session.clone())) {
                break;
            }
            holder = next;
        }
        true
    }

    fn reaches(&mut self, connection: ConnectionId, mail: Mail) -> bool {
        let there = |c: &Client| c.connection == connection && !c.has_left;
        let at = self.clients.iter().position(there);
        if let Some(at) = at {
            self.post(at, mail);
        }
        at.is_some()
    }

    /// Those who wait for a change of the directory hear of it.
    pub(super) fn follow_store(&mut self) {
        if self.directory.is_dirty() {
            drop(self.directory.take_dirty());
            self.wake_for_store();
        }
    }

    pub(super) fn wake_for_store(&mut self) {
        self.wake_those(|search| search.wants_store);
    }

    pub(super) fn wake_for_pool(&mut self) {
        self.wake_those(|search| search.wants_pool);
    }

    fn wake_those(&mut self, wants: impl Fn(&Search) -> bool) {
        let woken: Vec<(u64, u64)> = self
            .searches
            .iter_mut()
            .filter(|(_, search)| wants(search))
            .map(|(n, search)| {
                search.wants_pool = false;
                search.wants_store = false;
                (*n, search.round)
            })
            .collect();
        for (search, round) in woken {
            let delay = 20 + self.chance.below(200);
            self.plan(delay, Act::Wake(search, round));
        }
    }

    // Mail.

    pub(super) fn mail_to(&mut self, at: usize, mail: Mail) {
        if self.clients[at].mux.is_some() {
            self.post(at, mail);
        }
    }

    fn post(&mut self, at: usize, mail: Mail) {
        let delay = 20 + self.chance.span(3 * MS);
        let due = (self.now + delay).max(self.clients[at].mail_at);
        self.clients[at].mail_at = due;
        let me = self.clients[at].connection;
        self.plan_at(due, Act::Mail(at, me, mail));
    }

    pub(super) fn mail_all(&mut self, mail: &Mail) {
        for at in 0..self.clients.len() {
            self.mail_to(at, mail.clone());
        }
    }

    pub(super) fn mail(&mut self, at: usize, mail: Mail) {
        self.note(|| format!("c{at}: hears {mail:?}"));
        self.step(at, &[], |mux, cx, out| {
            match &mail {
                Mail::Silent(backend) => mux.handle_backend_silent(cx, backend, out),
                Mail::Back(backend) => mux.handle_backend_back(cx, backend, out),
                Mail::Released(backend) => mux.handle_backend_released(cx, backend, out),
                Mail::Lost(session, backend) => {
                    mux.handle_session_lost(cx, session.as_str(), backend, out);
                }
                Mail::Granted(session) => mux.handle_turn_granted(cx, session, out),
                Mail::Inherited(session, asked) => {
                    mux.handle_turn_inherited(cx, session, asked, out)
                }
            }
            0
        });
    }
}
