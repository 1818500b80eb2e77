//! Searches that are under way for this connection's sessions. Each of them counts the connection
//! as a holder in the directory before it answers, so none may outlive the wish for its answer: one
//! that the multiplexer has forgotten is dropped, and what it has counted is put right.
//!
//! Where a session is to go is not decided here.

use std::time::Instant;

use tokio::sync::oneshot;

use super::{Done, Driver, Task};
use crate::{
    core::{
        directory::Standing,
        id::SessionId,
        mux::{Context, Locate},
    },
    proxy::locator::{self, Found, Locating},
};

/// A search for a session that its finder is to hold.
#[derive(Debug)]
struct Search {
    question: Locate,
    session: SessionId,
    /// Dropped, it ends the search.
    goes_on: oneshot::Sender<()>,
}

/// Those of one connection.
#[derive(Debug, Default)]
pub(super) struct Searches {
    /// Mostly none; as many as sessions that are being opened.
    under_way: Vec<Search>,
}

impl Searches {
    fn is_for(&self, session: &SessionId) -> bool {
        self.under_way.iter().any(|s| s.session == *session)
    }

    fn take(&mut self, ticket: u64) -> Option<Search> {
        let at = self
            .under_way
            .iter()
            .position(|s| s.question.ticket == ticket)?;
        let search = self.under_way.swap_remove(at);
        if self.under_way.is_empty() {
            // Searches are few and far between: an idle connection keeps no room for them.
            self.under_way = Vec::new();
        }
        Some(search)
    }
}

impl Driver {
    /// Carries out a question of the multiplexer's.
    pub(super) fn locate(&mut self, cx: &Context<'_>, question: Locate) {
        let ticket = question.ticket;
        match locator::locate(&self.shared, &self.rules, self.id, &question) {
            Locating::Done(outcome) => {
                self.mux.handle_located(cx, ticket, outcome, &mut self.out);
            }
            Locating::Asking(future) => {
                let (goes_on, ends) = oneshot::channel();
                let session = question.session.clone();
                let held = session.filter(|_| question.purpose.attaches());
                let counts = held.is_some();
                if let Some(session) = held {
                    self.searches.under_way.reserve_exact(1);
                    self.searches.under_way.push(Search {
                        question,
                        session,
                        goes_on,
                    });
                }
                self.work.push(Box::pin(async move {
                    let found = tokio::select! {
                        biased;
                        _ = ends, if counts => None,
                        found = future => Some(found),
                    };
                    Done::Located(ticket, found)
                }));
            }
        }
    }

    /// Ends searches whose answer nobody waits for any more.
    pub(super) fn end_forgotten_searches(&mut self) {
        for search in &mut self.searches.under_way {
            if !self.mux.awaits(search.question.ticket) && !search.goes_on.is_closed() {
                search.goes_on = oneshot::channel().0;
            }
        }
    }

    /// A search has ended.
    pub(super) fn located(
        &mut self,
        now: Instant,
        task: &mut Task<'_>,
        (ticket, found): (u64, Option<Found>),
    ) {
        let search = self.searches.take(ticket);
        let awaited = self.mux.awaits(ticket);
        let Some(Found { outcome, permit }) = found.filter(|_| awaited) else {
            if let Some(search) = search {
                self.put_right(now, &search.session);
            }
            return;
        };
        if let (Some(search), Ok(located)) = (&search, &outcome) {
            let (session, store) = (search.session.as_str(), &self.shared.store);
            let stands = store.lock().confirm(session, &located.backend, self.id);
            if !stands {
                // What it had counted was taken back meanwhile: by the multiplexer for another
                // reason, or by who has deleted the session.
                drop(permit);
                let question = search.question.clone();
                self.step(now, task, &[], |mux, _, _| {
                    mux.handle_astray(question);
                    0
                });
                return;
            }
        }
        if let (Some(permit), Some(search)) = (permit, &search) {
            self.permits.insert(search.session.clone(), permit);
        }
        self.step(now, task, &[], |mux, cx, out| {
            mux.handle_located(cx, ticket, outcome, out);
            0
        });
        if let Some(search) = search {
            self.put_right(now, &search.session);
        }
    }

    /// Makes the directory agree with the multiplexer about a session that a search may have
    /// counted.
    fn put_right(&mut self, now: Instant, session: &SessionId) {
        let store = &self.shared.store;
        if self.mux.has_lost(session.as_str()) {
            store
                .lock()
                .stands(session.as_str(), self.id, Standing::Lost);
            store.announce();
        } else if !self.mux.holds(session.as_str()) && !self.searches.is_for(session) {
            // The last search for it: no other has counted it for an answer that is to come.
            store.lock().release(now, session.as_str(), self.id);
        }
    }

    /// The connection has ended: what searches have counted for it ends, too.
    pub(super) fn end_searches(&mut self) {
        self.work.clear();
        let now = Instant::now();
        for search in std::mem::take(&mut self.searches.under_way) {
            let mut directory = self.shared.store.lock();
            directory.release(now, search.session.as_str(), self.id);
        }
    }
}
