//! What all connections share, as one of them asks for it: turn locks, and what its user may use at
//! a time. Carries out what follows when a turn is over.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    Hub, Shared,
    hub::Message,
    quota::{Account, Quota},
};
use crate::{
    core::{
        access::Denial,
        id::{ConnectionId, SessionId},
        identity::{Caps, Person, Principal, Role},
        mux::{Commons, Over, Settings},
        snapshot::{Published, Snapshot},
        turnlock::{Ask, Parting, Verdict},
    },
    store::Store,
};

/// Where a connection asks. Dropped, it gives back all that was counted for it.
pub(super) struct Desk {
    shared: Arc<Shared>,
    address: IpAddr,
    book: Mutex<Book>,
}

/// What is counted for one connection.
#[derive(Default)]
struct Book {
    /// Whose count it is, once that is known.
    guest: Option<Guest>,
    taken: Vec<Taken>,
}

/// Who is counted.
struct Guest {
    principal: Option<Arc<Principal>>,
    account: Arc<Account>,
}

/// What is counted of sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thing {
    /// It is open.
    Session,
    /// A turn runs in it.
    Turn,
}

/// Whether it is too late to refuse something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cap {
    Binds,
    Waived,
}

/// What is counted for this connection.
struct Taken {
    thing: Thing,
    session: SessionId,
    account: Arc<Account>,
}

impl Desk {
    pub(super) fn new(shared: Arc<Shared>, address: IpAddr) -> Self {
        Self {
            shared,
            address,
            book: Mutex::default(),
        }
    }

    /// This connection has the session open, and it is too late to refuse that.
    pub(super) fn opened(&self, settings: &Settings, session: &SessionId) {
        self.take(settings, Thing::Session, session, Cap::Waived)
            .expect("no cap binds");
    }

    /// It is not open here any more.
    pub(super) fn closed(&self, session: &SessionId) {
        self.book().give_back(Thing::Session, session);
    }

    /// Its turn is not this connection's any more.
    pub(super) fn turn_over(&self, session: &SessionId) {
        self.book().give_back(Thing::Turn, session);
    }

    fn take(
        &self,
        settings: &Settings,
        thing: Thing,
        session: &SessionId,
        cap: Cap,
    ) -> Result<(), Over> {
        let mut book = self.book();
        let Book { guest, taken } = &mut *book;
        let Some(guest) = guest.as_ref().filter(|_| !has(taken, thing, session)) else {
            return Ok(());
        };
        let (user, own) = guest.shares(&self.shared.quota, settings, thing, Some(session));
        let own = (guest.account.clone(), own);
        for (account, most) in user.into_iter().chain([own]) {
            let most = most.filter(|_| cap == Cap::Binds);
            let taken_up = match thing {
                Thing::Session => account.open(session, most),
                Thing::Turn => account.begin_turn(most),
            };
            if let Err(over) = taken_up {
                book.give_back(thing, session);
                return Err(over);
            }
            taken.reserve_exact(1);
            taken.push(Taken {
                thing,
                session: session.clone(),
                account,
            });
        }
        Ok(())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An account, and up to how many there may be in it.
type Share = (Arc<Account>, Option<u32>);

impl Guest {
    /// The account in which it counts besides the guest's own, for a service that of the session's user,
    /// and up to how many there may be in each of the two: first that one, then the own one.
    fn shares(
        &self,
        quota: &Quota,
        settings: &Settings,
        thing: Thing,
        session: Option<&SessionId>,
    ) -> (Option<Share>, Option<u32>) {
        let of = |caps: &Caps| match thing {
            Thing::Session => caps.sessions,
            Thing::Turn => caps.turns,
        };
        let all = &settings.caps;
        match &self.principal {
            None => (None, of(all)),
            Some(principal) if principal.role == Role::User => (None, of(&principal.caps.or(*all))),
            Some(principal) => {
                let session = session.map(SessionId::as_str);
                let person = settings.access.person_for(principal, session);
                let user =
                    (person != principal.person()).then(|| (quota.account(&person), of(all)));
                (user, of(&principal.caps))
            }
        }
    }
}

fn has(taken: &[Taken], thing: Thing, session: &SessionId) -> bool {
    taken.iter().any(|taken| taken.is(thing, session))
}

impl Book {
    fn give_back(&mut self, thing: Thing, session: &SessionId) {
        self.taken.retain(|taken| {
            let gone = taken.is(thing, session);
            if gone {
                taken.end();
            }
            !gone
        });
    }
}

impl Taken {
    fn is(&self, thing: Thing, session: &SessionId) -> bool {
        self.thing == thing && self.session == *session
    }

    fn end(&self) {
        match self.thing {
            Thing::Session => self.account.close(&self.session),
            Thing::Turn => self.account.end_turn(),
        }
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        self.taken.iter().for_each(Taken::end);
        if let Some(guest) = &self.guest {
            guest.account.leave();
        }
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Published for Desk {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.pool.snapshot()
    }
}

impl Commons for Desk {
    fn enter(&self, settings: &Settings, principal: Option<&Arc<Principal>>) -> Result<(), Over> {
        let mut book = self.book();
        if let Some(guest) = &mut book.guest {
            guest.principal = principal.cloned();
            return Ok(());
        }
        let (person, caps) = match principal {
            Some(principal) => (principal.person(), principal.caps.or(settings.caps)),
            // Nobody says who he is: those of one address are one.
            None => (Person::new("", &self.address.to_string()), settings.caps),
        };
        let account = self.shared.quota.account(&person);
        account.enter(caps.connections)?;
        let principal = principal.cloned();
        book.guest = Some(Guest { principal, account });
        Ok(())
    }

    fn spend(&self, settings: &Settings, bytes: usize) -> Result<(), Over> {
        let book = self.book();
        let Some(guest) = &book.guest else {
            return Ok(());
        };
        let own = guest.principal.as_ref().map(|p| p.caps);
        let caps = own.unwrap_or_default().or(settings.caps);
        guest.account.spend(&caps, bytes, settings.frame.frame)
    }

    fn seat_session(&self, settings: &Settings, session: &SessionId) -> Result<(), Over> {
        self.take(settings, Thing::Session, session, Cap::Binds)
    }

    fn may_open(&self, settings: &Settings) -> Result<(), Over> {
        let book = self.book();
        let Some(guest) = &book.guest else {
            return Ok(());
        };
        let (user, own) = guest.shares(&self.shared.quota, settings, Thing::Session, None);
        if let Some((account, most)) = user {
            account.has_room(most)?;
        }
        guest.account.has_room(own)
    }

    fn seat_turn(&self, settings: &Settings, session: &SessionId) -> Result<(), Over> {
        self.take(settings, Thing::Turn, session, Cap::Binds)
    }

    fn ask_turn(&self, now: Instant, session: &SessionId, ask: &Ask) -> Verdict {
        self.shared.store.turns().ask(now, session, ask)
    }

    fn may_end_turn(&self, session: &str, by: ConnectionId, user: Option<&Person>) -> bool {
        self.shared.store.turns().may_end(session, by, user)
    }

    fn has_others(&self, session: &str, than: ConnectionId) -> bool {
        let directory = self.shared.store.lock();
        // Those of another process stand in the primary's directory alone. Who follows one takes it
        // that they are there: if they are not, a turn is aborted that ends with its connection.
        directory.follows()
            || directory
                .holders(session)
                .iter()
                .any(|holder| *holder != than)
    }

    fn is_in_turn(&self, now: Instant, session: &str) -> bool {
        // What those of another process do stands in the primary's directory alone. Who follows one
        // does not know, and the one that it may hurt is somebody's turn.
        self.shared.store.turns().get(session).is_some()
            || self.shared.store.follows()
            || self.shared.store.lock().known(now, session).in_turn
    }

    fn may_be_new(&self, settings: &Settings, session: &str) -> bool {
        let book = self.book();
        let guest = book.guest.as_ref();
        let principal = guest.and_then(|guest| guest.principal.as_deref());
        let directory = self.shared.store.lock();
        let person = directory.person(Instant::now(), session);
        let person = person.map(|person| &**person);
        let judged = settings.access.judge(principal, session, person, true);
        matches!(judged, Ok(_) | Err(Denial::Unowned))
    }
}

/// What has become of a turn that a connection gives away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Parted {
    /// It is over, or somebody else's.
    Gone,
    /// It goes on, and is still the connection's. Who was asked what it waits for may be somebody who
    /// cannot be given it: a client of another process, or one that is opening the session again.
    Watched,
    /// It goes on, and is still the connection's; nobody is left who was asked what it waits for.
    Orphaned,
}

/// A connection gives the turn of `session` away: somebody else may have it now.
pub(super) fn end_turn(
    store: &Store,
    hub: &Hub,
    now: Instant,
    session: &SessionId,
    by: ConnectionId,
    parting: &Parting,
) -> Parted {
    let turns = store.turns();
    let mut holder = by;
    if *parting != Parting::Over {
        let (hearers, lost) = {
            let directory = store.lock();
            let session = session.as_str();
            (directory.hearers(session), directory.losers(session))
        };
        let asked: Arc<[String]> = parting.asked().into();
        for heir in parting.heirs(by, hearers, lost) {
            if !turns.pass(session.as_str(), holder, heir) {
                return Parted::Gone;
            }
            let news = Message::TurnInherited(session.clone(), asked.clone());
            if hub.send(heir, news) {
                return Parted::Gone;
            }
            // It has left meanwhile.
            holder = heir;
        }
        if matches!(parting, Parting::Unasked(_)) {
            if holder != by && !turns.pass(session.as_str(), holder, by) {
                return Parted::Gone;
            }
            return if store.lock().is_heard_elsewhere(session.as_str()) {
                Parted::Watched
            } else {
                Parted::Orphaned
            };
        }
    }
    while let Some(next) = turns.release(now, session.as_str(), holder) {
        if hub.send(next, Message::TurnGranted(session.clone())) {
            break;
        }
        holder = next;
    }
    Parted::Gone
}

/// The connection is gone: what it had and waited for is somebody else's.
pub(super) fn leave(store: &Store, hub: &Hub, connection: ConnectionId) {
    let unheard = Parting::Unheard(Vec::new());
    for session in store.turns().leave(connection) {
        end_turn(store, hub, Instant::now(), &session, connection, &unheard);
    }
}
