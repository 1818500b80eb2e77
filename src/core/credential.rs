//! Whether a token or a certificate proves anything: values in, a decision out. Reads no file and
//! no clock, and keeps nothing of a token but what is needed to judge its bearer again.
//!
//! Who fails is told only that; [`Fault`] is for operators and counters.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use ahash::RandomState;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{
    id::Secret,
    identity::{Principal, Role},
};

mod jwt;

#[cfg(test)]
mod tests;

pub use jwt::{Issuer, Key, KeyFault, Rules};

/// Longest token that is looked at, in bytes. A client that has not said who it is cannot send one
/// of four times that size anyway.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Longest name of a user or group that a token may bring, in bytes: it stands in logs and tables.
const MAX_NAME: usize = 256;

/// SHA-256 of a token: all that is kept of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Whether it is that of a token that is none: nothing at all, or the end of an empty line, which
    /// is what comes of `echo "$TOKEN" | sha256sum` without a `TOKEN`.
    pub fn is_of_nothing(&self) -> bool {
        ["", "\n", "\r\n"]
            .iter()
            .any(|text| *self == Self::of(text))
    }

    /// Of this text.
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// From 64 hexadecimal digits.
    pub fn parse(digits: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(high << 4 | low).ok()?;
        }
        Some(Self(bytes))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Where it is looked up. Who could steer this could find tokens by their hash anyway.
    fn bucket(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Why somebody is not believed. Clients are told `AUTHENTICATION_FAILED`, whatever it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Fault {
    /// No token, or one that is no text.
    Missing,
    /// A token of nobody.
    WrongToken,
    /// Longer than [`MAX_TOKEN`].
    TooLong,
    /// It looks like a JWT, and is none that can be read.
    Malformed,
    /// A JWT without a signature (`alg: none`).
    Unsigned,
    /// By an algorithm that no key of its issuer is for.
    WrongAlgorithm,
    /// No key of its issuer made this signature.
    BadSignature,
    /// Its time is over, or it has no end.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It is meant for somebody else.
    WrongAudience,
    /// Nobody trusts who issued it.
    WrongIssuer,
    /// It does not say who the user is, or says so in a way that cannot be used.
    NoUser,
    /// It proves somebody, but another one than this connection is.
    OtherPrincipal,
    /// A certificate of nobody, or of several.
    Certificate,
    /// Too many failures from this address wait for their answer.
    TooMany,
}

impl Fault {
    /// The label of `auth_failures_total`, and the reason in the log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::WrongToken => "wrong_token",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Unsigned => "unsigned",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongAudience => "wrong_audience",
            Self::WrongIssuer => "wrong_issuer",
            Self::NoUser => "no_user",
            Self::OtherPrincipal => "other_principal",
            Self::Certificate => "certificate",
            Self::TooMany => "too_many",
        }
    }
}

/// A principal and what proves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Who it is. Its expiry is none: what proves it here does not run out.
    pub principal: Arc<Principal>,
    /// Its tokens; several while one is replaced by another.
    pub tokens: Vec<Fingerprint>,
    /// Names in client certificates.
    pub certificates: Vec<Arc<str>>,
}

/// What proved who a connection is: enough to judge it again when the rules change.
#[derive(Clone, Debug)]
enum Proof {
    Token(Fingerprint),
    Certificate(Arc<str>),
    Jwt {
        issuer: Arc<Issuer>,
        key: Fingerprint,
    },
}

/// Somebody who has proved who it is.
#[derive(Clone, Debug)]
pub struct Proved {
    /// Who.
    pub principal: Arc<Principal>,
    proof: Proof,
}

impl Proved {
    /// How: `token`, `certificate`, `jwt`.
    pub fn how(&self) -> &'static str {
        match self.proof {
            Proof::Token(_) => "token",
            Proof::Certificate(_) => "certificate",
            Proof::Jwt { .. } => "jwt",
        }
    }

    /// Whether it needs no token, because the connection itself proves it.
    pub fn is_by_certificate(&self) -> bool {
        matches!(self.proof, Proof::Certificate(_))
    }
}

/// Two principals claim the same thing: the positions of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clash {
    /// The one that came first.
    pub first: usize,
    /// The one that wants it as well.
    pub second: usize,
    /// What it is.
    pub over: Claim,
}

/// What only one principal can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// A token.
    Token,
    /// A name in a certificate.
    Certificate,
}

/// Everybody who is let in, and how they prove it. Built once for each configuration.
#[derive(Clone, Default)]
pub struct Principals {
    entries: Vec<Entry>,
    issuers: Vec<Arc<Issuer>>,
    /// Positions in `entries`, by the first bytes of the fingerprint.
    by_token: HashMap<u64, Vec<(Fingerprint, usize)>, RandomState>,
    by_certificate: HashMap<Arc<str>, usize, RandomState>,
}

impl Principals {
    /// Everybody, or what two of them have in common.
    ///
    /// # Errors
    /// Every clash: whose a token is must be certain.
    pub fn new(entries: Vec<Entry>, issuers: Vec<Issuer>) -> Result<Self, Vec<Clash>> {
        let mut all = Self {
            issuers: issuers.into_iter().map(Arc::new).collect(),
            ..Self::default()
        };
        let mut clashes = Vec::new();
        for (second, entry) in entries.iter().enumerate() {
            let mut clash = |first, over| {
                // The same twice for one principal does no harm.
                if first != second {
                    clashes.push(Clash {
                        first,
                        second,
                        over,
                    });
                }
            };
            for token in &entry.tokens {
                let bucket = all.by_token.entry(token.bucket()).or_default();
                match bucket.iter().find(|(other, _)| other == token) {
                    Some((_, first)) => clash(*first, Claim::Token),
                    None => bucket.push((*token, second)),
                }
            }
            for name in &entry.certificates {
                match all.by_certificate.entry(name.clone()) {
                    Slot::Occupied(slot) => clash(*slot.get(), Claim::Certificate),
                    Slot::Vacant(slot) => {
                        slot.insert(second);
                    }
                }
            }
        }
        all.entries = entries;
        if clashes.is_empty() {
            Ok(all)
        } else {
            Err(clashes)
        }
    }

    /// Nobody is let in, so nobody is asked.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.issuers.is_empty()
    }

    /// In the order given.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// In the order given.
    pub fn issuers(&self) -> impl Iterator<Item = &Issuer> {
        self.issuers.iter().map(AsRef::as_ref)
    }

    /// Who has this token.
    ///
    /// # Errors
    /// Why nobody is believed to.
    pub fn by_token(&self, token: Option<&Secret>, now: SystemTime) -> Result<Proved, Fault> {
        let token = token.ok_or(Fault::Missing)?.expose();
        if token.len() > MAX_TOKEN {
            return Err(Fault::TooLong);
        }
        if let Some(proved) = self.by_fingerprint(Fingerprint::of(token)) {
            return Ok(proved);
        }
        if self.issuers.is_empty() || token.matches('.').count() != 2 {
            return Err(Fault::WrongToken);
        }
        jwt::judge(&self.issuers, token, now)
    }

    /// Who has a certificate with these names (subject alternative names, common name).
    ///
    /// # Errors
    /// Nobody has, or it could be several.
    pub fn by_certificate(&self, names: &[impl AsRef<str>]) -> Result<Proved, Fault> {
        let found = names.iter().filter_map(|name| {
            let (name, at) = self.by_certificate.get_key_value(name.as_ref())?;
            Some((name.clone(), *at))
        });
        let mut found: Vec<_> = found.collect();
        found.dedup_by_key(|(_, at)| *at);
        match found.as_slice() {
            [(name, at)] => Ok(Proved {
                principal: self.entries[*at].principal.clone(),
                proof: Proof::Certificate(name.clone()),
            }),
            _ => Err(Fault::Certificate),
        }
    }

    /// Who somebody is by these rules that was proved by others: the same principal, perhaps with
    /// other groups, methods or caps; none if what proved it does not any more, or proves another.
    pub fn still(&self, proved: &Proved) -> Option<Proved> {
        let now = match &proved.proof {
            Proof::Token(token) => self.by_fingerprint(*token)?,
            Proof::Certificate(name) => self.by_certificate(std::slice::from_ref(name)).ok()?,
            Proof::Jwt { issuer, key } => {
                let same = self.issuers.iter().find(|i| i.trusts_as(issuer))?;
                same.has_key(*key).then(|| Proved {
                    principal: proved.principal.clone(),
                    proof: Proof::Jwt {
                        issuer: same.clone(),
                        key: *key,
                    },
                })?
            }
        };
        proved
            .principal
            .is_renewed_by(&now.principal)
            .then_some(now)
    }

    fn by_fingerprint(&self, wanted: Fingerprint) -> Option<Proved> {
        let bucket = self.by_token.get(&wanted.bucket())?;
        let (token, at) = bucket
            .iter()
            .find(|(token, _)| bool::from(token.0.ct_eq(&wanted.0)))?;
        Some(Proved {
            principal: self.entries[*at].principal.clone(),
            proof: Proof::Token(*token),
        })
    }
}

/// The tables follow from these.
impl PartialEq for Principals {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries && self.issuers == other.issuers
    }
}

impl fmt::Debug for Principals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Principals")
            .field("entries", &self.entries.len())
            .field("issuers", &self.issuers.len())
            .finish_non_exhaustive()
    }
}

/// How a role is written in files and shown to operators.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Service => "service",
    }
}

/// Whether `text` can be the name of a principal, user, realm or group that a token brings: it
/// stands in logs and tables.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control)
}
