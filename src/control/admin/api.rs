//! The routes: from a request to an answer.
//!
//! Must not touch sockets, and must not answer before the gate has admitted the request.

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ActionError, Backstage, Page, SessionFilter, StateChange,
    gate::{Gate, Guard},
    reply::{self, Reply},
    uri,
};

/// Items of a page if the request does not say.
const PAGE: usize = 100;

/// Most items of a page.
const LONGEST_PAGE: usize = 1000;

/// Largest body of a request, in bytes.
const BODY: usize = 16 * 1024;

/// How long a reload may take: it waits for files, and for the pool to take it over.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);

/// What every request is answered from.
pub(super) struct Desk {
    pub(super) backstage: Arc<dyn Backstage>,
    pub(super) gate: Gate,
    /// From the end of the head to the end of the body.
    pub(super) body_timeout: Duration,
}

/// What a path names.
#[derive(PartialEq, Eq, Debug)]
enum Route {
    Alive,
    Ready,
    Metrics,
    Dashboard,
    Backends,
    Sessions,
    Explain(String),
    Config,
    SetState(String, StateChange),
    SetWeight(String),
    Reload,
}

impl Route {
    fn find(path: &str) -> Option<Self> {
        let segments: Result<Vec<String>, _> = path
            .strip_prefix('/')?
            .split('/')
            .map(uri::decode)
            .collect();
        let segments = segments.ok()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        Some(match segments[..] {
            [""] => Route::Dashboard,
            ["healthz"] => Route::Alive,
            ["readyz"] => Route::Ready,
            ["metrics"] => Route::Metrics,
            ["api", "v1", "backends"] => Route::Backends,
            ["api", "v1", "sessions"] => Route::Sessions,
            ["api", "v1", "sessions", id, "explain"] => Route::Explain(id.to_owned()),
            ["api", "v1", "config"] => Route::Config,
            ["api", "v1", "reload"] => Route::Reload,
            ["api", "v1", "backends", name, "weight"] => Route::SetWeight(name.to_owned()),
            ["api", "v1", "backends", name, action] => {
                let change = StateChange::ALL.into_iter().find(|c| c.name() == action)?;
                Route::SetState(name.to_owned(), change)
            }
            _ => return None,
        })
    }

    fn guard(&self) -> Guard {
        match self {
            Route::Alive | Route::Ready => Guard::Probe,
            Route::Metrics => Guard::Numbers,
            Route::Dashboard => Guard::Shell,
            Route::Backends
            | Route::Sessions
            | Route::Explain(_)
            | Route::Config
            | Route::SetState(..)
            | Route::SetWeight(_)
            | Route::Reload => Guard::Full,
        }
    }

    /// Methods, as `Allow` writes them; those of a change, if it is one.
    fn methods(&self) -> (&'static str, Option<&'static [Method]>) {
        match self {
            Route::Alive
            | Route::Ready
            | Route::Metrics
            | Route::Dashboard
            | Route::Backends
            | Route::Sessions
            | Route::Explain(_)
            | Route::Config => ("GET, HEAD", None),
            Route::SetState(..) | Route::Reload => ("POST", Some(&[Method::POST])),
            Route::SetWeight(_) => ("POST, PUT", Some(&[Method::POST, Method::PUT])),
        }
    }
}

impl Desk {
    /// Answers a request.
    pub(super) async fn answer<B>(&self, client: SocketAddr, request: Request<B>) -> Reply
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let Some(route) = Route::find(head.uri.path()) else {
            return match self.gate.admit(Guard::Numbers, &head.headers) {
                Ok(()) => reply::not_found(),
                Err(refusal) => refusal.into(),
            };
        };
        let (allowed, change) = route.methods();
        let Some(change) = change else {
            if let Err(refusal) = self.gate.admit(route.guard(), &head.headers) {
                return refusal.into();
            }
            if head.method != Method::GET && head.method != Method::HEAD {
                return reply::wrong_method(allowed);
            }
            return match uri::query(head.uri.query().unwrap_or_default()) {
                Ok(query) => self.read(&route, &query),
                Err(bad) => reply::bad_request(&format!("the query is {bad}")),
            };
        };
        if !change.contains(&head.method) {
            return match self.gate.admit(route.guard(), &head.headers) {
                Ok(()) => reply::wrong_method(allowed),
                Err(refusal) => refusal.into(),
            };
        }
        let (action, reply) = match self.admit_change(&route, &head.headers, body).await {
            Ok(body) => self.change(&route, &body).await,
            Err(refused) => (action(&route), refused),
        };
        self.backstage
            .audit(client, &action, reply.status().is_success());
        reply
    }

    fn read(&self, route: &Route, query: &[(String, String)]) -> Reply {
        match route {
            Route::Alive => reply::content(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
            Route::Ready => self.ready(query),
            Route::Metrics => reply::content(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                self.backstage.metrics(),
            ),
            Route::Dashboard => dashboard(),
            Route::Backends => match Listing::read(query, &[]) {
                Ok(listing) => reply::json(StatusCode::OK, &self.backends(&listing)),
                Err(message) => reply::bad_request(&message),
            },
            Route::Sessions => match Listing::read(query, &["backend", "user"]) {
                Ok(Listing {
                    after,
                    limit,
                    mut filters,
                }) => {
                    let filter = SessionFilter {
                        backend: filters.remove("backend"),
                        user: filters.remove("user"),
                    };
                    let page = self.backstage.sessions(&filter, after.as_deref(), limit);
                    reply::json(StatusCode::OK, &page)
                }
                Err(message) => reply::bad_request(&message),
            },
            Route::Explain(session) => {
                let named = query.iter().find(|(name, _)| name == "as");
                let principal = named.map(|(_, value)| value.as_str());
                reply::json(StatusCode::OK, &self.backstage.explain(session, principal))
            }
            Route::Config => reply::json(StatusCode::OK, &self.backstage.config()),
            Route::SetState(..) | Route::SetWeight(_) | Route::Reload => {
                reply::wrong_method(route.methods().0)
            }
        }
    }

    fn ready(&self, query: &[(String, String)]) -> Reply {
        let mut readiness = self.backstage.readiness();
        let pool = query
            .iter()
            .any(|(name, value)| name == "pool" && value == "1");
        if pool && readiness.usable_backends == 0 {
            readiness.ready = false;
            readiness.reasons.push("no backend is usable".into());
        }
        let status = if readiness.ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        reply::json(status, &readiness)
    }

    fn backends(&self, listing: &Listing) -> Page<super::BackendView> {
        let mut items = self.backstage.backends();
        if let Some(after) = &listing.after {
            items.retain(|backend| backend.name > *after);
        }
        let more = items.len() > listing.limit;
        items.truncate(listing.limit);
        let next = if more {
            items.last().map(|last| last.name.clone())
        } else {
            None
        };
        Page { items, next }
    }

    /// The body of a change that may be made.
    async fn admit_change<B>(
        &self,
        route: &Route,
        headers: &HeaderMap,
        body: B,
    ) -> Result<Value, Reply>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.gate.admit(route.guard(), headers)?;
        Gate::admit_change(headers)?;
        let whole = Box::pin(Limited::new(body, BODY)).collect();
        let body = match tokio::time::timeout(self.body_timeout, whole).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let message = format!("the body exceeds {BODY} bytes");
                let status = StatusCode::PAYLOAD_TOO_LARGE;
                return Err(reply::failure(status, "body_too_large", &message));
            }
            Ok(Err(error)) => return Err(reply::bad_request(&error.to_string())),
            Err(_) => {
                let status = StatusCode::REQUEST_TIMEOUT;
                return Err(reply::failure(
                    status,
                    "timeout",
                    "the body did not come in time",
                ));
            }
        };
        if body.is_empty() {
            return Ok(json!({}));
        }
        match serde_json::from_slice::<Value>(&body) {
            Ok(value) if value.is_object() => Ok(value),
            Ok(_) => Err(reply::bad_request("the body is no JSON object")),
            Err(error) => Err(reply::bad_request(&format!("the body is no JSON: {error}"))),
        }
    }

    /// Makes a change; says what was tried, for the audit.
    async fn change(&self, route: &Route, body: &Value) -> (String, Reply) {
        match route {
            Route::SetState(name, change) => {
                let done = self.backstage.set_state(name, *change);
                (action(route), self.changed(name, done))
            }
            Route::SetWeight(name) => match Weight::deserialize(body) {
                Ok(Weight { weight }) => {
                    let done = match weight {
                        0 => Err(ActionError::Invalid("the weight must be at least 1".into())),
                        _ => self.backstage.set_weight(name, weight),
                    };
                    (
                        format!("{} {weight}", action(route)),
                        self.changed(name, done),
                    )
                }
                Err(error) => (action(route), reply::bad_request(&error.to_string())),
            },
            Route::Reload => (action(route), self.reload().await),
            Route::Alive
            | Route::Ready
            | Route::Metrics
            | Route::Dashboard
            | Route::Backends
            | Route::Sessions
            | Route::Explain(_)
            | Route::Config => (action(route), reply::wrong_method(route.methods().0)),
        }
    }

    /// The backend as it is after a change.
    fn changed(&self, name: &str, done: Result<(), ActionError>) -> Reply {
        if let Err(error) = done {
            return Reply::from(&error);
        }
        let backend = self
            .backstage
            .backends()
            .into_iter()
            .find(|b| b.name == name);
        reply::json(StatusCode::OK, &json!({ "backend": backend }))
    }

    async fn reload(&self) -> Reply {
        match tokio::time::timeout(RELOAD_PATIENCE, self.backstage.reload()).await {
            Ok(Ok(summary)) => reply::json(StatusCode::OK, &json!({ "summary": summary })),
            Ok(Err(wrong)) => {
                let message = match (wrong.as_str(), wrong["message"].as_str()) {
                    (Some(text), _) | (None, Some(text)) => text.to_owned(),
                    (None, None) => "the configuration is refused".to_owned(),
                };
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                reply::detailed_failure(status, "config_refused", &message, Some(&wrong))
            }
            Err(_) => {
                let message = "the reload goes on, but takes unusually long";
                reply::failure(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
            }
        }
    }
}

/// What a change is called in the audit.
fn action(route: &Route) -> String {
    match route {
        Route::SetState(name, change) => format!("{} {name}", change.name()),
        Route::SetWeight(name) => format!("weight {name}"),
        Route::Reload => "reload".to_owned(),
        Route::Alive
        | Route::Ready
        | Route::Metrics
        | Route::Dashboard
        | Route::Backends
        | Route::Sessions
        | Route::Explain(_)
        | Route::Config => "read".to_owned(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Weight {
    weight: u32,
}

/// The parameters of a list.
struct Listing {
    after: Option<String>,
    limit: usize,
    filters: std::collections::BTreeMap<String, String>,
}

impl Listing {
    fn read(query: &[(String, String)], filters: &[&str]) -> Result<Self, String> {
        let mut listing = Self {
            after: None,
            limit: PAGE,
            filters: Default::default(),
        };
        for (name, value) in query {
            match name.as_str() {
                "limit" => match value.parse() {
                    Ok(limit @ 1..=LONGEST_PAGE) => listing.limit = limit,
                    _ => return Err(format!("limit must be from 1 to {LONGEST_PAGE}")),
                },
                "after" => listing.after = Some(value.clone()),
                name if filters.contains(&name) => {
                    listing.filters.insert(name.to_owned(), value.clone());
                }
                _ => return Err(format!("there is no parameter \"{name}\" here")),
            }
        }
        Ok(listing)
    }
}

/// The page, with a fresh nonce: only the script and style that came with it run.
fn dashboard() -> Reply {
    const PAGE: &str = include_str!("dashboard.html");
    let nonce = format!("{:016x}{:016x}", fresh_bits(), fresh_bits());
    let page = PAGE.replace("NONCE", &nonce);
    let mut reply = reply::content(StatusCode::OK, "text/html; charset=utf-8", page);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::try_from(policy).expect("a policy is visible ASCII");
    reply::set(
        &mut reply,
        HeaderName::from_static("content-security-policy"),
        policy,
    );
    reply::set(
        &mut reply,
        HeaderName::from_static("referrer-policy"),
        HeaderValue::from_static("no-referrer"),
    );
    reply
}

/// Bits that a page's author cannot foresee: a keyed hash under fresh random keys.
fn fresh_bits() -> u64 {
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_routes() {
        let explain = |id: &str| Some(Route::Explain(id.to_owned()));
        assert_eq!(
            Route::find("/api/v1/sessions/a%2Fb%20c/explain"),
            explain("a/b c")
        );
        assert_eq!(
            Route::find("/api/v1/backends/cli-1/drain"),
            Some(Route::SetState("cli-1".into(), StateChange::Drain))
        );
        for path in [
            "",
            "*",
            "//",
            "/healthz/",
            "/api/v1/backends/cli-1/eat",
            "/api/v1/x",
            "/%zz",
        ] {
            assert_eq!(Route::find(path), None, "{path}");
        }
    }

    #[test]
    fn listings_are_bounded() {
        let read = |name: &str, value: &str| {
            Listing::read(&[(name.to_owned(), value.to_owned())], &["user"])
        };
        for limit in ["0", "1001", "-1", "x", ""] {
            assert!(read("limit", limit).is_err(), "{limit}");
        }
        assert_eq!(
            read("limit", "1000")
                .unwrap_or_else(|e| panic!("{e}"))
                .limit,
            1000
        );
        assert!(read("users", "x").is_err());
        assert!(read("user", "x").is_ok());
    }
}
