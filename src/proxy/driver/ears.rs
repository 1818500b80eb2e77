//! Whose sessions are, as this connection learns and tells it; which news of sessions its client
//! hears; and what becomes of its sessions when the rules change.
//!
//! Who may see what is decided in `core::access`, what follows in the multiplexer.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Driver, Task};
use crate::{
    core::{
        access::Denial,
        event::{Event, NotFound},
        id::{BackendName, SessionId},
        identity::Person,
        mux::Context,
        scan,
    },
    proxy::{hub::News, sight::Sight},
};

/// News of sessions of which nobody knows yet whose they are: a copy, or one under an id that its
/// backend chose, is heard of before the call that made it is answered.
const HELD: usize = 64;

/// Whoever owns a session is known sooner than this, or not at all.
const HELD_FOR: Duration = Duration::from_secs(10);

/// Requests of backends to a process-wide provider whose parts are still under way.
const EXCHANGES: usize = 4096;

/// What a connection has heard that may not be for its client.
#[derive(Debug, Default)]
pub(super) struct Ears {
    /// Mostly nothing, and then nowhere.
    kept: Option<Box<Kept>>,
    /// The rules have changed, and what this connection has was judged by the old ones.
    pub(super) rejudges: bool,
    /// What is under way may be judged by the old rules, too.
    pub(super) unsettled: bool,
}

#[derive(Debug, Default)]
struct Kept {
    held: VecDeque<(Instant, SessionId, Bytes)>,
    /// The provider's requests, by `requestId`, that were about sessions that the client may see.
    exchanges: VecDeque<String>,
}

impl Ears {
    /// Until it is known whose the session is.
    fn hold(&mut self, now: Instant, session: SessionId, frame: Bytes) {
        let held = &mut self.kept.get_or_insert_default().held;
        while held.front().is_some_and(|(since, ..)| is_late(now, *since)) || held.len() >= HELD {
            held.pop_front();
        }
        held.push_back((now, session, frame));
    }

    /// What is held of that session, unless it is too late for it.
    fn take(&mut self, now: Instant, session: &SessionId, frames: &mut Vec<Bytes>) {
        if let Some(kept) = &mut self.kept {
            kept.held.retain(|(since, held, frame)| {
                if held == session && !is_late(now, *since) {
                    frames.push(frame.clone());
                }
                held != session && !is_late(now, *since)
            });
            self.forget_empty();
        }
    }

    fn drop_held(&mut self, session: &SessionId) {
        if let Some(kept) = &mut self.kept {
            kept.held.retain(|(_, held, _)| held != session);
            self.forget_empty();
        }
    }

    fn note_exchange(&mut self, request: String) {
        let exchanges = &mut self.kept.get_or_insert_default().exchanges;
        if exchanges.len() >= EXCHANGES {
            exchanges.pop_front();
        }
        exchanges.push_back(request);
    }

    fn knows_exchange(&self, request: &str) -> bool {
        let kept = self.kept.as_ref();
        kept.is_some_and(|kept| kept.exchanges.iter().any(|known| known == request))
    }

    fn forget_empty(&mut self) {
        self.kept
            .take_if(|kept| kept.held.is_empty() && kept.exchanges.is_empty());
    }
}

fn is_late(now: Instant, since: Instant) -> bool {
    now.saturating_duration_since(since) >= HELD_FOR
}

impl Driver {
    fn sight(&self) -> Sight {
        Sight::new(&self.shared, &self.rules, self.mux.principal())
    }

    // News.

    /// News of sessions: for the client, if it may see them. All that it may hear is one write.
    pub(super) fn hear(&mut self, now: Instant, task: &mut Task<'_>, news: &[News]) {
        let sight = self.sight();
        let mut frames = Vec::new();
        for news in news {
            match news {
                News::Lifecycle { frame, .. } if !sight.is_guarded() => frames.push(frame.clone()),
                News::Lifecycle {
                    session,
                    person,
                    frame,
                } => {
                    let known = || {
                        self.shared
                            .store
                            .lock()
                            .person(now, session.as_str())
                            .cloned()
                    };
                    let person = person.clone().or_else(known);
                    match sight.judge(session.as_str(), person.as_deref(), true) {
                        Ok(_) => {
                            self.ears.take(now, session, &mut frames);
                            frames.push(frame.clone());
                        }
                        Err(Denial::Unowned) if person.is_none() && sight.principal().is_some() => {
                            self.ears.hold(now, session.clone(), frame.clone());
                        }
                        Err(_) => {}
                    }
                }
                // Somebody owns a session that nobody did.
                News::Owned(session, person) => {
                    let judged = sight.judge(session.as_str(), Some(person), true);
                    match judged {
                        Ok(_) => self.ears.take(now, session, &mut frames),
                        Err(_) => self.ears.drop_held(session),
                    }
                }
            }
        }
        if !frames.is_empty() {
            self.step(now, task, &[], |mux, cx, out| {
                for frame in &frames {
                    mux.handle_lifecycle(cx, frame, out);
                }
                0
            });
        }
    }

    /// Whether a request to the process-wide provider that this client is may be put to it: about
    /// a session that it may see, or one more part of such a request.
    pub(super) fn may_be_asked(&mut self, body: &[u8]) -> bool {
        let sight = self.sight();
        if !sight.is_guarded() {
            return true;
        }
        let Ok(head) = scan::scan_backend(body) else {
            return false;
        };
        let request = head.places.request_id.map(|id| id.get(body));
        let Some(session) = head.session else {
            return request.is_some_and(|id| self.ears.knows_exchange(&id));
        };
        if sight.of(&self.shared, &session.get(body)).is_err() {
            return false;
        }
        if let Some(id) = request {
            self.ears.note_exchange(id.into_owned());
        }
        true
    }

    // Whose sessions are.

    /// A session that the client has created under an id of the backend's choice.
    pub(super) fn adopt(&mut self, cx: &Context<'_>, session: &SessionId, backend: &BackendName) {
        let sight = self.sight();
        let person = sight.person_for(session);
        let mut directory = self.shared.store.lock();
        directory.claim(cx.now, session, backend, self.id);
        let is_news = person
            .as_ref()
            .is_some_and(|person| directory.belongs(cx.now, session, person));
        drop(directory);
        if let Some(person) = person.filter(|_| is_news) {
            self.say_owned(session, Arc::new(person));
        }
        if let Err(denial) = sight.of(&self.shared, session.as_str()) {
            self.mux
                .handle_forbidden(cx, session.as_str(), denial, &mut self.out);
        }
    }

    /// The client has copied a session: the copy belongs to whom the source belongs.
    pub(super) fn forked(
        &mut self,
        cx: &Context<'_>,
        source: &SessionId,
        copy: &SessionId,
        backend: &BackendName,
    ) {
        let sight = self.sight();
        let mut directory = self.shared.store.lock();
        directory.learn_history(cx.now, copy, backend);
        let mut person = directory.forked(cx.now, source.as_str(), copy);
        if person.is_none()
            && let Some(by_id) = sight.person_for(source)
        {
            directory.belongs(cx.now, copy, &by_id);
            person = directory.person(cx.now, copy.as_str()).cloned();
        }
        drop(directory);
        if let Some(person) = person {
            self.say_owned(copy, person);
        }
    }

    fn say_owned(&self, session: &SessionId, person: Arc<Person>) {
        let news = News::Owned(session.clone(), person);
        self.shared.hub.tell(news);
    }

    /// The user whose session it is.
    pub(super) fn user_of(&self, now: Instant, session: &str) -> Option<Arc<str>> {
        let directory = self.shared.store.lock();
        let recorded = directory.person(now, session);
        let by_id = || self.rules.mux.access.user_of(session).map(Arc::<str>::from);
        recorded.map(|person| person.user.clone()).or_else(by_id)
    }

    // Events.

    /// Makes an event more exact; and says whether it is written down, or only counted: a client
    /// may cause these as fast as it can write.
    pub(super) fn admits(&mut self, cx: &Context<'_>, event: &mut Event) -> bool {
        if let Event::SessionNotFound { session, reason } = event
            && *reason == NotFound::Unknown
            && self.shared.store.known(session.as_str()).deleted
        {
            *reason = NotFound::Deleted;
        }
        let metrics = self.shared.observer.metrics();
        if let Event::Denied { reason, .. } = event {
            let admitted = self.error_lines.admit(cx.now);
            if !admitted {
                metrics.access_denied(reason.label());
            }
            return admitted;
        }
        if let Event::LimitHit { limit, .. } = event
            && !self.said_opened
        {
            // Its end says so, in a line that floods do not fill the log with.
            metrics.limit_hit(limit);
            return false;
        }
        if let Event::ErrorAnswered { code, .. } = event {
            let admitted = self.error_lines.admit(cx.now) && self.may_log_error(cx, *code);
            if !admitted {
                metrics.error(*code);
            }
            return admitted;
        }
        true
    }

    // Other rules.

    /// Judges by the rules in force what was judged by others.
    pub(super) fn rejudge(&mut self, now: Instant, task: &mut Task<'_>) {
        self.ears.unsettled = !self.work.is_empty();
        let sight = self.sight();
        for session in self.mux.sessions() {
            match sight.of(&self.shared, session.as_str()) {
                Ok(relation) => self.mux.handle_relation(session.as_str(), relation),
                Err(denial) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_forbidden(cx, session.as_str(), denial, out);
                        0
                    });
                }
            }
        }
    }
}
