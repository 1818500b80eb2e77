//! The process-wide places (`llmInference.setProvider` and its like): which client holds each, on
//! which backends Taxiway has registered it, and which requests of backends await the holder.
//!
//! Decides only: it connects to nothing, sends nothing and keeps no time. What the CLI does, and
//! what these rules therefore rest on (seen on 1.0.102): a place belongs to the connection that
//! registered first until the process ends; that connection may register again, also with other
//! params, which then count; nobody may while a session is open. So Taxiway registers on a
//! connection of its own that stays, and here the place passes from client to client.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;

use super::{
    id::{BackendName, ConnectionId},
    reply::ProxyError,
    route::Provider,
    snapshot::Snapshot,
};

#[cfg(test)]
mod tests;

/// Requests of one place that may await its holder.
pub const MAX_REQUESTS: usize = 1024;

/// Bytes of such requests. One request alone may be larger.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024 * 1024;

/// HTTP exchanges of the LLM inference place that may be under way.
pub const MAX_EXCHANGES: usize = 1024;

/// Longest `requestId` that is kept, in bytes; the CLI's are UUIDs.
const MAX_REQUEST_ID: usize = 256;

/// Every place, in the order in which SDKs set them.
pub const PLACES: [Provider; 4] = [
    Provider::BuiltinPlugins,
    Provider::SessionFs,
    Provider::LlmInference,
    Provider::ExtensionLaunch,
];

/// The method that claims a place.
pub fn method(kind: Provider) -> &'static str {
    match kind {
        Provider::SessionFs => "sessionFs.setProvider",
        Provider::LlmInference => "llmInference.setProvider",
        Provider::ExtensionLaunch => "registerExtensionLaunchProvider",
        Provider::BuiltinPlugins => "plugins.builtin.set",
    }
}

/// Who a place asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Holder {
    #[default]
    Vacant,
    /// Its claim is being registered on the backends; asked already.
    Claiming(ConnectionId),
    Held(ConnectionId),
}

impl Holder {
    fn client(self) -> Option<ConnectionId> {
        match self {
            Self::Vacant => None,
            Self::Claiming(client) | Self::Held(client) => Some(client),
        }
    }
}

#[derive(Debug, Default)]
struct Place {
    holder: Holder,
    /// Params of the last claim that succeeded. Never empty again: no CLI releases a place.
    in_force: Option<Arc<str>>,
    /// The params with which it is registered on each backend's present process.
    at: HashMap<BackendName, Arc<str>, RandomState>,
    requests: usize,
    request_bytes: usize,
}

/// What follows from a claim that may be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Register on every usable backend, then [`Board::settle`].
    Register,
    /// Nothing would change: the same is in force already.
    InForce,
}

/// What a request has to do with an HTTP exchange of the LLM inference place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exchange<'a> {
    /// Nothing.
    Apart,
    /// `httpRequestStart`: opens the exchange of this `requestId`.
    Opens(&'a str),
    /// A part of it.
    Continues(&'a str),
    /// The backend gives it up.
    Cancels(&'a str),
}

impl<'a> Exchange<'a> {
    fn id(self) -> Option<&'a str> {
        match self {
            Self::Apart => None,
            Self::Opens(id) | Self::Continues(id) | Self::Cancels(id) => Some(id),
        }
    }
}

/// Why a backend's request cannot be put to a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unasked {
    /// Nobody holds the place, or not any more.
    Vacant,
    /// A limit is reached; its name.
    Limit(&'static str, usize),
}

impl Unasked {
    /// What the backend is answered.
    pub fn error(self, kind: Provider) -> ProxyError {
        match self {
            Self::Vacant => ProxyError::ProviderLeft { place: name(kind) },
            Self::Limit(limit, value) => ProxyError::LimitExceeded {
                limit,
                value: value as u64,
            },
        }
    }
}

/// What a backend still has to be told about something that nobody will answer any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Whom to tell.
    pub backend: BackendName,
    /// Of which place.
    pub kind: Provider,
    /// The request to answer with an error: its id token.
    pub id: Option<Box<[u8]>>,
    /// The HTTP exchange to end with an error. A CLI does not end one because the request about it
    /// was refused; its turn would hang.
    pub exchange: Option<Arc<str>>,
}

/// A request that awaits a client's answer.
#[derive(Debug)]
struct Asked {
    backend: BackendName,
    kind: Provider,
    client: ConnectionId,
    id: Box<[u8]>,
    bytes: usize,
    exchange: Option<Arc<str>>,
}

/// All places of one pool.
#[derive(Debug, Default)]
pub struct Board {
    places: [Place; PLACES.len()],
    asked: HashMap<u64, Asked, RandomState>,
    exchanges: HashMap<Arc<str>, BackendName, RandomState>,
    next_token: u64,
}

impl Board {
    // Getters.

    /// Whether any place was ever taken, so that backends have to be registered.
    pub fn is_in_force(&self) -> bool {
        self.places.iter().any(|place| place.in_force.is_some())
    }

    /// What is to be registered on `backend`: places in force that its process does not know, or
    /// knows with other params.
    pub fn due(&self, backend: &BackendName) -> Vec<(Provider, Arc<str>)> {
        let due = |kind: &Provider| {
            let place = self.place(*kind);
            let wanted = place.in_force.as_ref()?;
            (place.at.get(backend) != Some(wanted)).then(|| (*kind, wanted.clone()))
        };
        PLACES.iter().filter_map(due).collect()
    }

    /// Usable backends that must not be given a session yet: it would bypass the provider.
    pub fn unprepared(&self, pool: &Snapshot) -> Vec<BackendName> {
        let unprepared = |name: &BackendName| {
            self.places.iter().any(|place| {
                place
                    .in_force
                    .as_ref()
                    .is_some_and(|wanted| place.at.get(name) != Some(wanted))
            })
        };
        pool.backends
            .iter()
            .filter(|b| b.is_usable() && unprepared(&b.name))
            .map(|b| b.name.clone())
            .collect()
    }

    /// Where a call of `client` about the exchange `request` goes; none if it is not under way or
    /// not this client's.
    pub fn responds(&self, client: ConnectionId, request: &str) -> Option<BackendName> {
        let holder = self.place(Provider::LlmInference).holder.client();
        self.exchanges
            .get(request)
            .filter(|_| holder == Some(client))
            .cloned()
    }

    // The places.

    /// `client` wants a place. `sessions_open` is whether any session of the pool is open.
    ///
    /// # Errors
    /// In the CLI's words and order.
    pub fn claim(
        &mut self,
        kind: Provider,
        client: ConnectionId,
        params: &str,
        sessions_open: bool,
    ) -> Result<Claim, ProxyError> {
        let refuse = |message: &str| {
            let message = message.to_owned();
            Err(ProxyError::Failed {
                method: method(kind).to_owned(),
                message,
            })
        };
        let place = self.place_mut(kind);
        if kind == Provider::BuiltinPlugins {
            // Every client of one application sends the same, right after `connect`.
            if place.in_force.as_deref() == Some(params) {
                return Ok(Claim::InForce);
            }
            return if sessions_open {
                refuse(active(kind))
            } else {
                Ok(Claim::Register)
            };
        }
        if sessions_open {
            return refuse(active(kind));
        }
        match place.holder.client() {
            Some(holder) if holder != client => {
                return refuse(&format!("Another client is already the {}.", name(kind)));
            }
            Some(_) => {}
            None => place.holder = Holder::Claiming(client),
        }
        Ok(Claim::Register)
    }

    /// The claim was registered everywhere, or was not.
    pub fn settle(
        &mut self,
        kind: Provider,
        client: ConnectionId,
        params: &Arc<str>,
        succeeded: bool,
    ) {
        let place = self.place_mut(kind);
        if succeeded {
            place.in_force = Some(params.clone());
        }
        if place.holder == Holder::Claiming(client) {
            place.holder = if succeeded {
                Holder::Held(client)
            } else {
                Holder::Vacant
            };
        }
    }

    /// `backend` has accepted the registration.
    pub fn registered(&mut self, backend: &BackendName, kind: Provider, params: &Arc<str>) {
        self.place_mut(kind)
            .at
            .insert(backend.clone(), params.clone());
    }

    /// The connection to `backend` has ended: with it what was registered and asked over it.
    pub fn lost(&mut self, backend: &BackendName) {
        for place in &mut self.places {
            place.at.remove(backend);
        }
        let gone: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, a)| a.backend == *backend)
            .map(|(t, _)| *t)
            .collect();
        for token in gone {
            self.take(token);
        }
        self.exchanges.retain(|_, at| at != backend);
    }

    /// `client` has left: its places are free, and what awaited it fails.
    pub fn leave(&mut self, client: ConnectionId) -> Vec<Failure> {
        let mut failures = Vec::new();
        for kind in PLACES {
            let place = self.place_mut(kind);
            if place.holder.client() != Some(client) {
                continue;
            }
            place.holder = Holder::Vacant;
            if kind == Provider::LlmInference {
                failures.extend(self.exchanges.drain().map(|(exchange, backend)| Failure {
                    backend,
                    kind,
                    id: None,
                    exchange: Some(exchange),
                }));
            }
        }
        let gone: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, a)| a.client == client)
            .map(|(t, _)| *t)
            .collect();
        // Exchanges have ended above; their requests still await an answer each.
        failures.extend(gone.into_iter().filter_map(|token| self.refused(token)));
        failures
    }

    // The ledger.

    /// `backend` asks the holder of a place: whom, and the token under which the answer comes.
    /// `id` is the request's id token, `bytes` its size.
    ///
    /// # Errors
    /// Nobody to ask, or too much asked already; and what the backend is to be told.
    pub fn ask(
        &mut self,
        backend: &BackendName,
        kind: Provider,
        id: &[u8],
        exchange: Exchange<'_>,
        bytes: usize,
    ) -> Result<(u64, ConnectionId), (Unasked, Failure)> {
        match self.admit(kind, exchange, bytes) {
            Ok(client) => {
                match exchange {
                    Exchange::Opens(request) => {
                        self.exchanges.insert(request.into(), backend.clone());
                    }
                    Exchange::Cancels(request) => self.finish(request),
                    Exchange::Apart | Exchange::Continues(_) => {}
                }
                let place = self.place_mut(kind);
                place.requests += 1;
                place.request_bytes += bytes;
                self.next_token += 1;
                let token = self.next_token;
                let exchange = exchange.id().map(Arc::from);
                let (backend, id) = (backend.clone(), id.into());
                self.asked.insert(
                    token,
                    Asked {
                        backend,
                        kind,
                        client,
                        id,
                        bytes,
                        exchange,
                    },
                );
                Ok((token, client))
            }
            Err(why) => {
                let ended = match exchange {
                    Exchange::Opens(request) => Some(request),
                    Exchange::Continues(request) => {
                        self.exchanges.remove(request).is_some().then_some(request)
                    }
                    Exchange::Apart | Exchange::Cancels(_) => None,
                };
                if let Exchange::Cancels(request) = exchange {
                    self.finish(request);
                }
                let exchange = ended.map(Arc::from);
                let (backend, id) = (backend.clone(), Some(id.into()));
                Err((
                    why,
                    Failure {
                        backend,
                        kind,
                        id,
                        exchange,
                    },
                ))
            }
        }
    }

    /// Whether one more may be asked, and whom.
    fn admit(
        &self,
        kind: Provider,
        exchange: Exchange<'_>,
        bytes: usize,
    ) -> Result<ConnectionId, Unasked> {
        let place = self.place(kind);
        let client = place.holder.client().ok_or(Unasked::Vacant)?;
        match exchange {
            Exchange::Opens(request) if request.len() > MAX_REQUEST_ID => {
                return Err(Unasked::Limit("provider_request_id", MAX_REQUEST_ID));
            }
            Exchange::Opens(_) if self.exchanges.len() >= MAX_EXCHANGES => {
                return Err(Unasked::Limit("provider_exchanges", MAX_EXCHANGES));
            }
            // Of a time before this holder, or over already.
            Exchange::Continues(request) | Exchange::Cancels(request)
                if !self.exchanges.contains_key(request) =>
            {
                return Err(Unasked::Vacant);
            }
            Exchange::Apart
            | Exchange::Opens(_)
            | Exchange::Continues(_)
            | Exchange::Cancels(_) => {}
        }
        if place.requests >= MAX_REQUESTS {
            return Err(Unasked::Limit("provider_requests", MAX_REQUESTS));
        }
        if place.requests > 0 && place.request_bytes + bytes > MAX_REQUEST_BYTES {
            return Err(Unasked::Limit("provider_request_bytes", MAX_REQUEST_BYTES));
        }
        Ok(client)
    }

    /// The client has answered: where the answer goes, and the id token to restore. None if it is
    /// not awaited any more.
    pub fn answered(&mut self, token: u64) -> Option<(BackendName, Box<[u8]>)> {
        self.take(token).map(|asked| (asked.backend, asked.id))
    }

    /// The client could not be asked after all.
    pub fn refused(&mut self, token: u64) -> Option<Failure> {
        let Asked {
            backend,
            kind,
            id,
            exchange,
            ..
        } = self.take(token)?;
        let exchange = exchange.filter(|request| self.exchanges.remove(request).is_some());
        Some(Failure {
            backend,
            kind,
            id: Some(id),
            exchange,
        })
    }

    /// The exchange has had its last part.
    pub fn finish(&mut self, request: &str) {
        self.exchanges.remove(request);
        if self.exchanges.is_empty() {
            self.exchanges.shrink_to(0);
        }
    }

    fn take(&mut self, token: u64) -> Option<Asked> {
        let asked = self.asked.remove(&token)?;
        let place = self.place_mut(asked.kind);
        place.requests -= 1;
        place.request_bytes -= asked.bytes;
        if self.asked.is_empty() {
            self.asked.shrink_to(0);
        }
        Some(asked)
    }

    fn place(&self, kind: Provider) -> &Place {
        &self.places[index(kind)]
    }

    fn place_mut(&mut self, kind: Provider) -> &mut Place {
        &mut self.places[index(kind)]
    }

    /// What must hold between two calls; for tests.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_invariants(&self) {
        for kind in PLACES {
            let place = self.place(kind);
            let asked = || self.asked.values().filter(|a| a.kind == kind);
            assert_eq!(asked().count(), place.requests, "requests of {kind:?}");
            assert_eq!(asked().map(|a| a.bytes).sum::<usize>(), place.request_bytes);
            assert!(place.requests <= MAX_REQUESTS);
            for asked in asked() {
                assert_eq!(
                    place.holder.client(),
                    Some(asked.client),
                    "asked of a stranger"
                );
            }
        }
        assert!(self.exchanges.len() <= MAX_EXCHANGES);
        let llm = self.place(Provider::LlmInference);
        assert!(
            self.exchanges.is_empty() || llm.holder != Holder::Vacant,
            "ownerless exchange"
        );
    }
}

fn index(kind: Provider) -> usize {
    match kind {
        Provider::BuiltinPlugins => 0,
        Provider::SessionFs => 1,
        Provider::LlmInference => 2,
        Provider::ExtensionLaunch => 3,
    }
}

fn active(kind: Provider) -> &'static str {
    match kind {
        Provider::SessionFs => {
            "Cannot set session filesystem provider while sessions are active. Call \
             sessionFs.setProvider before creating any sessions."
        }
        Provider::LlmInference => {
            "Cannot set LLM inference provider while sessions are active. Call \
             llmInference.setProvider before creating any sessions."
        }
        Provider::ExtensionLaunch => {
            "Cannot register an extension launch provider while sessions are active. Call \
             registerExtensionLaunchProvider before creating any sessions."
        }
        Provider::BuiltinPlugins => {
            "Cannot set built-in plugins while sessions are active. Call plugins.builtin.set \
             before creating any sessions."
        }
    }
}

/// What the CLI calls the one who holds the place.
fn name(kind: Provider) -> &'static str {
    match kind {
        Provider::SessionFs => "session filesystem provider",
        Provider::LlmInference => "LLM inference provider",
        Provider::ExtensionLaunch => "extension launch provider",
        Provider::BuiltinPlugins => "source of built-in plugins",
    }
}
