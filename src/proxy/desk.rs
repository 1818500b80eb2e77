//! What all connections share, as one of them asks for it: turn locks, and what its user may use at
//! a time. Carries out what follows when a turn is over.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwapOption;

use super::{
    Hub, Shared,
    hub::Message,
    quota::{Account, Thing},
};
use crate::{
    core::{
        access::Denial,
        id::{ConnectionId, SessionId},
        identity::{Caps, Person, Principal, Role},
        mux::{Commons, Over},
        turnlock::{Ask, Parting, Verdict},
    },
    store::Store,
};

/// Where a connection asks. Dropped, it gives back all that was counted for it.
pub(super) struct Desk {
    shared: Arc<Shared>,
    address: IpAddr,
    /// Who it is, once that is known.
    guest: OnceLock<Guest>,
    taken: Mutex<Vec<Taken>>,
}

/// Who is counted.
struct Guest {
    principal: ArcSwapOption<Principal>,
    account: Arc<Account>,
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
            guest: OnceLock::new(),
            taken: Mutex::default(),
        }
    }

    /// This connection has the session open, and it is too late to refuse that.
    pub(super) fn opened(&self, session: &SessionId) {
        if self.taken().iter().any(|t| t.is(Thing::Session, session)) {
            return;
        }
        let counted = self.accounts(Thing::Session, Some(session), |account, _| {
            self.count(Thing::Session, session, account, None)
        });
        counted.expect("there is no cap");
    }

    /// It is not open here any more.
    pub(super) fn closed(&self, session: &SessionId) {
        self.give_back(Thing::Session, session);
    }

    /// Its turn is not this connection's any more.
    pub(super) fn turn_over(&self, session: &SessionId) {
        self.give_back(Thing::Turn, session);
    }

    /// Goes through those whose count it is, and up to how many: for a service its own, if it has a
    /// cap, and that of the session's user.
    fn accounts(
        &self,
        thing: Thing,
        session: Option<&SessionId>,
        mut each: impl FnMut(&Arc<Account>, Option<u32>) -> Result<(), Over>,
    ) -> Result<(), Over> {
        let Some(guest) = self.guest.get() else {
            return Ok(());
        };
        let rules = self.shared.rules.load();
        let of = |caps: &Caps| match thing {
            Thing::Session => caps.sessions,
            Thing::Turn => caps.turns,
        };
        let own = match guest.principal.load().as_ref() {
            None => rules.mux.caps,
            Some(principal) if principal.role == Role::User => principal.caps.or(rules.mux.caps),
            Some(principal) => {
                let session = session.map(SessionId::as_str);
                let person = rules.mux.access.person_for(principal, session);
                if person != principal.person() {
                    each(&self.shared.quota.account(&person), of(&rules.mux.caps))?;
                }
                principal.caps
            }
        };
        each(&guest.account, of(&own))
    }

    fn take(&self, thing: Thing, session: &SessionId) -> Result<(), Over> {
        if self.taken().iter().any(|t| t.is(thing, session)) {
            return Ok(());
        }
        let counted = self.accounts(thing, Some(session), |account, most| {
            self.count(thing, session, account, most)
        });
        if counted.is_err() {
            self.give_back(thing, session);
        }
        counted
    }

    fn count(
        &self,
        thing: Thing,
        session: &SessionId,
        account: &Arc<Account>,
        most: Option<u32>,
    ) -> Result<(), Over> {
        account.take(thing, session, most)?;
        let mut taken = self.taken();
        taken.reserve_exact(1);
        taken.push(Taken {
            thing,
            session: session.clone(),
            account: account.clone(),
        });
        Ok(())
    }

    fn give_back(&self, thing: Thing, session: &SessionId) {
        self.taken().retain(|taken| {
            let gone = taken.is(thing, session);
            if gone {
                taken.account.give_back(thing, session);
            }
            !gone
        });
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn is(&self, thing: Thing, session: &SessionId) -> bool {
        self.thing == thing && self.session == *session
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        for taken in std::mem::take(&mut *self.taken()) {
            taken.account.give_back(taken.thing, &taken.session);
        }
        if let Some(guest) = self.guest.get() {
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

impl Commons for Desk {
    fn enter(&self, principal: Option<&Arc<Principal>>) -> Result<(), Over> {
        if let Some(guest) = self.guest.get() {
            guest.principal.store(principal.cloned());
            return Ok(());
        }
        let rules = self.shared.rules.load();
        let (person, caps) = match principal {
            Some(principal) => (principal.person(), principal.caps.or(rules.mux.caps)),
            // Nobody says who he is: those of one address are one.
            None => (Person::new("", &self.address.to_string()), rules.mux.caps),
        };
        let account = self.shared.quota.account(&person);
        account.enter(caps.connections)?;
        let principal = ArcSwapOption::new(principal.cloned());
        let guest = Guest { principal, account };
        if let Err(second) = self.guest.set(guest) {
            second.account.leave();
        }
        Ok(())
    }

    fn spend(&self, bytes: usize) -> Result<(), Over> {
        let Some(guest) = self.guest.get() else {
            return Ok(());
        };
        let rules = self.shared.rules.load();
        let own = guest.principal.load().as_ref().map(|p| p.caps);
        let caps = own.unwrap_or_default().or(rules.mux.caps);
        guest.account.spend(&caps, bytes, rules.mux.frame.frame)
    }

    fn seat_session(&self, session: &SessionId) -> Result<(), Over> {
        self.take(Thing::Session, session)
    }

    fn may_open(&self) -> Result<(), Over> {
        self.accounts(Thing::Session, None, |account, most| {
            account.has_room(Thing::Session, most)
        })
    }

    fn seat_turn(&self, session: &SessionId) -> Result<(), Over> {
        self.take(Thing::Turn, session)
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

    fn may_be_new(&self, session: &str) -> bool {
        let principal = self
            .guest
            .get()
            .and_then(|guest| guest.principal.load_full());
        let rules = self.shared.rules.load();
        let directory = self.shared.store.lock();
        let person = directory.person(Instant::now(), session);
        let person = person.map(|person| &**person);
        let judged = rules
            .mux
            .access
            .judge(principal.as_deref(), session, person, true);
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
