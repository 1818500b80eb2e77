//! Who may ask what: the bearer token, and the checks that keep other people's web pages out.
//!
//! A page from anywhere can make a browser on this machine talk to a loopback address, under the
//! page's own name if it controls that name's DNS. So on loopback the `Host` must be a loopback
//! name, everywhere an `Origin` must be the host itself, and a change must say that it is JSON,
//! which a foreign page cannot without asking first. Must not decide by the peer's address: behind
//! a port forward everybody is local.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN},
    uri::Authority,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::core::id::Secret;

/// How much a route gives away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Guard {
    /// Yes or no: for anybody.
    Probe,
    /// Numbers: for anybody but foreign web pages.
    Numbers,
    /// The dashboard, empty without the API: where the API can be used at all.
    Shell,
    /// Names of users and sessions, or power.
    Full,
}

/// Why a request was turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the Host header names no loopback address")]
    ForeignHost,
    #[error("the Origin header names another site")]
    ForeignOrigin,
    #[error("set admin.token_env or admin.token_file to use this on a non-loopback address")]
    TokenNotConfigured,
    #[error("a bearer token is needed")]
    Unauthorized,
    #[error("the Content-Type must be application/json")]
    NotJson,
}

/// The rules of one admin listener.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    loopback: bool,
    /// Hash of the token: what is compared has one length whatever is offered.
    token: Option<[u8; 32]>,
}

impl Gate {
    /// Rules for a listener bound to `address`.
    pub(super) fn new(address: IpAddr, token: Option<&Secret>) -> Self {
        Self {
            loopback: address.is_loopback(),
            token: token.map(|token| Sha256::digest(token.expose()).into()),
        }
    }

    /// May a request with these headers have what the guard guards?
    pub(super) fn admit(&self, guard: Guard, headers: &HeaderMap) -> Result<(), Refusal> {
        if guard == Guard::Probe {
            return Ok(());
        }
        let host = single(headers, &HOST).and_then(|host| host.parse::<Authority>().ok());
        if self.loopback && !host.as_ref().is_some_and(is_loopback) {
            return Err(Refusal::ForeignHost);
        }
        if headers.contains_key(ORIGIN) {
            let origin = single(headers, &ORIGIN).and_then(|origin| origin.split_once("://"));
            let own = match (origin, &host) {
                (Some((_, origin)), Some(host)) => origin.eq_ignore_ascii_case(host.as_str()),
                _ => false,
            };
            if !own {
                return Err(Refusal::ForeignOrigin);
            }
        }
        if matches!(guard, Guard::Shell | Guard::Full) && self.token.is_none() && !self.loopback {
            return Err(Refusal::TokenNotConfigured);
        }
        match &self.token {
            Some(token) if guard == Guard::Full => {
                let offered = single(headers, &AUTHORIZATION).and_then(bearer);
                let offered: [u8; 32] = Sha256::digest(offered.unwrap_or_default()).into();
                if bool::from(offered.ct_eq(token)) {
                    Ok(())
                } else {
                    Err(Refusal::Unauthorized)
                }
            }
            Some(_) | None => Ok(()),
        }
    }

    /// May a request with these headers change something? Asked after [`Gate::admit`].
    pub(super) fn admit_change(headers: &HeaderMap) -> Result<(), Refusal> {
        let media = single(headers, &CONTENT_TYPE).map(|value| value.split(';').next());
        match media.flatten() {
            Some(media) if media.trim().eq_ignore_ascii_case("application/json") => Ok(()),
            Some(_) | None => Err(Refusal::NotJson),
        }
    }
}

/// The value of a header that must be there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn is_loopback(host: &Authority) -> bool {
    let name = host.host();
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn gate(address: &str, token: Option<&str>) -> Gate {
        Gate::new(address.parse().unwrap(), token.map(Secret::new).as_ref())
    }

    #[test]
    fn loopback_knows_only_loopback_names() {
        let gate = gate("127.0.0.1", None);
        let with = |host: &str| gate.admit(Guard::Numbers, &headers(&[("host", host)]));
        for host in [
            "127.0.0.1:9321",
            "localhost",
            "LOCALHOST:1",
            "[::1]:9321",
            "127.8.8.8",
        ] {
            assert_eq!(with(host), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "localhost.evil",
            "",
        ] {
            assert_eq!(with(host), Err(Refusal::ForeignHost), "{host}");
        }
        assert_eq!(
            gate.admit(Guard::Full, &headers(&[])),
            Err(Refusal::ForeignHost)
        );
        let two = headers(&[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(gate.admit(Guard::Full, &two), Err(Refusal::ForeignHost));
        assert_eq!(
            gate.admit(Guard::Probe, &headers(&[("host", "evil.example")])),
            Ok(())
        );
    }

    #[test]
    fn only_our_own_pages_may_ask() {
        for gate in [gate("127.0.0.1", None), gate("10.0.0.1", Some("t"))] {
            let with = |origin: &str| {
                gate.admit(
                    Guard::Full,
                    &headers(&[
                        ("host", "localhost:9321"),
                        ("origin", origin),
                        ("authorization", "Bearer t"),
                    ]),
                )
            };
            assert_eq!(with("http://localhost:9321"), Ok(()));
            assert_eq!(with("https://LOCALHOST:9321"), Ok(()));
            for origin in [
                "http://evil.example",
                "null",
                "http://localhost",
                "localhost:9321",
            ] {
                assert_eq!(with(origin), Err(Refusal::ForeignOrigin), "{origin}");
            }
        }
    }

    #[test]
    fn the_token_opens_and_nothing_else_does() {
        let gate = gate("10.0.0.1", Some("secret"));
        let with = |value: &str| gate.admit(Guard::Full, &headers(&[("authorization", value)]));
        assert_eq!(with("Bearer secret"), Ok(()));
        assert_eq!(with("bearer secret"), Ok(()));
        for value in [
            "secret",
            "Bearer",
            "Bearer ",
            "Basic secret",
            "Bearer secre",
            "Bearer secrets",
        ] {
            assert_eq!(with(value), Err(Refusal::Unauthorized), "{value}");
        }
        assert_eq!(
            gate.admit(Guard::Full, &headers(&[])),
            Err(Refusal::Unauthorized)
        );
        for guard in [Guard::Probe, Guard::Numbers, Guard::Shell] {
            assert_eq!(gate.admit(guard, &headers(&[])), Ok(()), "{guard:?}");
        }
    }

    #[test]
    fn without_a_token_the_network_sees_health_and_numbers_only() {
        for address in ["0.0.0.0", "10.0.0.1", "::"] {
            let gate = gate(address, None);
            let with = |guard| gate.admit(guard, &headers(&[("host", "localhost")]));
            assert_eq!(with(Guard::Probe), Ok(()));
            assert_eq!(with(Guard::Numbers), Ok(()));
            assert_eq!(with(Guard::Shell), Err(Refusal::TokenNotConfigured));
            assert_eq!(with(Guard::Full), Err(Refusal::TokenNotConfigured));
        }
    }

    #[test]
    fn changes_are_json() {
        let with = |media| Gate::admit_change(&headers(&[("content-type", media)]));
        assert_eq!(with("application/json"), Ok(()));
        assert_eq!(with("Application/JSON; charset=utf-8"), Ok(()));
        for media in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonx",
            "",
        ] {
            assert_eq!(with(media), Err(Refusal::NotJson), "{media}");
        }
        assert_eq!(Gate::admit_change(&headers(&[])), Err(Refusal::NotJson));
    }
}
