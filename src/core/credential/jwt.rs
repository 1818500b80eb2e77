//! JSON Web Tokens (RFC 7519) of issuers that the configuration trusts.
//!
//! Which algorithm a token may use follows from the key, never from the token. What a header says
//! of where to get keys (`jku`, `x5u`, `jwk`) is not looked at.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Header, decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use ring::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
        UnparsedPublicKey,
    },
};
use serde_json::{Map, Value};

use super::{Fault, Fingerprint, Proof, Proved, is_name};
use crate::core::{
    id::Secret,
    identity::{Caps, Principal, Role},
};

/// Groups of one token that are looked at; a session is not shared with more.
const MAX_GROUPS: usize = 256;

/// Far beyond any date that a token may have in earnest, in seconds.
const LATEST: f64 = 1e11;

/// An RSA key shorter than this proves nothing, in bits.
const RSA_BITS: usize = 2048;

/// A shared secret shorter than this can be guessed, in bytes (RFC 7518 §3.2).
const SECRET_BYTES: usize = 32;

/// What one issuer is trusted with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Its name here: first part of its principals' names.
    pub name: Arc<str>,
    /// What `iss` must be.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// The claim that holds the user.
    pub user_claim: String,
    /// The claim that holds the user's groups.
    pub groups_claim: Option<String>,
    /// The realm of its users; with `realm_claim` that of tokens without it.
    pub realm: Arc<str>,
    /// The claim that holds the realm.
    pub realm_claim: Option<String>,
    /// For whom its principals speak.
    pub role: Role,
    /// How far its clock and ours may differ.
    pub leeway: Duration,
    /// As [`Principal::allow`].
    pub allow: Vec<Arc<str>>,
    /// As [`Principal::deny`].
    pub deny: Vec<Arc<str>>,
}

/// Who may issue tokens, and the keys to check them.
#[derive(Clone, PartialEq, Debug)]
pub struct Issuer {
    /// What it is trusted with.
    pub rules: Rules,
    /// Several while one is replaced by another.
    pub keys: Vec<Key>,
}

/// One key of an issuer: for one algorithm.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name in the header of tokens, if it has one.
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    fingerprint: Fingerprint,
}

/// Why something cannot be a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyFault {
    /// The private half has no business here.
    #[error("this is a private key: only the public one belongs here")]
    Private,
    /// None of the formats that are read.
    #[error("not a public key in PEM form (RSA, EC P-256 or Ed25519)")]
    NotPem,
    /// RSA that is too short to prove anything.
    #[error("an RSA key of less than {RSA_BITS} bits proves nothing")]
    Short,
    /// A shared secret that is too short to prove anything.
    #[error("a secret of less than {SECRET_BYTES} bytes can be guessed")]
    ShortSecret,
    /// A public key in the place of a shared secret: everybody knows it.
    #[error("this is a key in PEM form, not a shared secret: name it with `key_file`")]
    PemAsSecret,
    /// Not `{"keys": […]}`.
    #[error("not a JSON Web Key Set")]
    NotKeySet,
}

impl Key {
    /// An RSA (RS256), EC P-256 (ES256) or Ed25519 (EdDSA) public key in PEM form.
    ///
    /// # Errors
    /// Why it cannot be one.
    pub fn from_pem(pem: &str) -> Result<Self, KeyFault> {
        if pem.contains("PRIVATE KEY") {
            return Err(KeyFault::Private);
        }
        // A certificate says nothing here that could be held to.
        if !pem.contains("PUBLIC KEY") {
            return Err(KeyFault::NotPem);
        }
        let bytes = pem.as_bytes();
        let (algorithm, key) = if let Ok(key) = DecodingKey::from_ec_pem(bytes) {
            (Algorithm::ES256, key)
        } else if let Ok(key) = DecodingKey::from_ed_pem(bytes) {
            (Algorithm::EdDSA, key)
        } else {
            let key = DecodingKey::from_rsa_pem(bytes).map_err(|_| KeyFault::NotPem)?;
            (Algorithm::RS256, key)
        };
        Self::checked(None, algorithm, key)
    }

    /// A secret that the issuer shares with us (HS256).
    ///
    /// # Errors
    /// Why it cannot be one.
    pub fn from_secret(secret: &Secret) -> Result<Self, KeyFault> {
        let text = secret.expose();
        // Tokens signed with a public key as if it were a secret: the oldest trick.
        if text.contains("-----BEGIN") {
            return Err(KeyFault::PemAsSecret);
        }
        if text.len() < SECRET_BYTES {
            return Err(KeyFault::ShortSecret);
        }
        let key = DecodingKey::from_secret(text.as_bytes());
        Self::checked(None, Algorithm::HS256, key)
    }

    /// The keys of a JSON Web Key Set (RFC 7517) that can be used here, and how many cannot.
    ///
    /// # Errors
    /// It is not one.
    pub fn from_key_set(text: &str) -> Result<(Vec<Self>, usize), KeyFault> {
        let set: Value = serde_json::from_str(text).map_err(|_| KeyFault::NotKeySet)?;
        let keys = set
            .get("keys")
            .and_then(Value::as_array)
            .ok_or(KeyFault::NotKeySet)?;
        // One that is not understood says nothing of the others.
        let usable: Vec<Self> = keys
            .iter()
            .filter_map(|key| Self::from_jwk(&serde_json::from_value(key.clone()).ok()?))
            .collect();
        let others = keys.len() - usable.len();
        Ok((usable, others))
    }

    fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        if common
            .public_key_use
            .as_ref()
            .is_some_and(|purpose| *purpose != PublicKeyUse::Signature)
        {
            return None;
        }
        // A shared secret has no place in a set that others may read; other kinds are not built.
        let algorithm = if let AlgorithmParameters::RSA(_) = &jwk.algorithm {
            Algorithm::RS256
        } else if let AlgorithmParameters::EllipticCurve(key) = &jwk.algorithm {
            (key.curve == EllipticCurve::P256).then_some(Algorithm::ES256)?
        } else if let AlgorithmParameters::OctetKeyPair(key) = &jwk.algorithm {
            (key.curve == EllipticCurve::Ed25519).then_some(Algorithm::EdDSA)?
        } else {
            return None;
        };
        let named = common.key_algorithm.map(|name| name.to_string());
        if named.is_some_and(|name| name != format!("{algorithm:?}")) {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        Self::checked(common.key_id.clone(), algorithm, key).ok()
    }

    fn checked(
        id: Option<String>,
        algorithm: Algorithm,
        key: DecodingKey,
    ) -> Result<Self, KeyFault> {
        let material = match key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => bytes.clone(),
            DecodingKeyKind::RsaModulusExponent { n, e } => [n.as_slice(), e].concat(),
        };
        // Each form of an RSA key holds its modulus and little else.
        let is_short = match key.family() {
            AlgorithmFamily::Rsa => material.len() < RSA_BITS / 8,
            AlgorithmFamily::Hmac | AlgorithmFamily::Ec | AlgorithmFamily::Ed => false,
        };
        if is_short {
            return Err(KeyFault::Short);
        }
        let length = match key.family() {
            AlgorithmFamily::Ec => Some(65),
            AlgorithmFamily::Ed => Some(32),
            AlgorithmFamily::Hmac | AlgorithmFamily::Rsa => None,
        };
        if length.is_some_and(|length| material.len() != length) {
            return Err(KeyFault::NotPem);
        }
        let fingerprint = Fingerprint::of_bytes(&material);
        Ok(Self {
            id,
            algorithm,
            key,
            fingerprint,
        })
    }

    /// Whether it made this signature.
    fn made(&self, signature: &[u8], message: &[u8]) -> bool {
        let verified = match (self.key.family(), self.key.kind()) {
            (AlgorithmFamily::Hmac, DecodingKeyKind::SecretOrDer(secret)) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::verify(&key, message, signature)
            }
            (AlgorithmFamily::Rsa, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(message, signature)
            }
            (AlgorithmFamily::Rsa, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(
                    &RSA_PKCS1_2048_8192_SHA256,
                    message,
                    signature,
                )
            }
            (AlgorithmFamily::Ec, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature)
            }
            (AlgorithmFamily::Ed, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&ED25519, key).verify(message, signature)
            }
            (
                AlgorithmFamily::Hmac | AlgorithmFamily::Ec | AlgorithmFamily::Ed,
                DecodingKeyKind::RsaModulusExponent { .. },
            ) => return false,
        };
        verified.is_ok()
    }
}

/// Keys of the same name and material are the same.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.algorithm == other.algorithm
            && self.fingerprint == other.fingerprint
    }
}

impl Issuer {
    /// Whether a token that `other` vouched for would say the same here, keys aside.
    pub(super) fn trusts_as(&self, other: &Self) -> bool {
        self.rules == other.rules
    }

    pub(super) fn has_key(&self, fingerprint: Fingerprint) -> bool {
        self.keys.iter().any(|key| key.fingerprint == fingerprint)
    }

    /// The key that made the signature of a token.
    fn key_of(&self, header: &Header, signature: &[u8], message: &[u8]) -> Result<&Key, Fault> {
        let right = || self.keys.iter().filter(|key| key.algorithm == header.alg);
        if right().next().is_none() {
            return Err(Fault::WrongAlgorithm);
        }
        // A key without a name may be the one that the issuer knows by some name.
        let named = |key: &&Key| match (&key.id, &header.kid) {
            (Some(id), Some(wanted)) => id == wanted,
            (None, _) | (_, None) => true,
        };
        right()
            .filter(named)
            .find(|key| key.made(signature, message))
            .ok_or(Fault::BadSignature)
    }

    fn principal(&self, claims: &Map<String, Value>, expires: SystemTime) -> Option<Principal> {
        let rules = &self.rules;
        let user = match claims.get(&rules.user_claim)? {
            Value::String(text) => text.clone(),
            // Some issuers number their users.
            Value::Number(number) if number.is_u64() => number.to_string(),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => {
                return None;
            }
        };
        let realm = match rules.realm_claim.as_ref().and_then(|name| claims.get(name)) {
            None => rules.realm.clone(),
            Some(claim) => Arc::from(claim.as_str().filter(|realm| is_name(realm))?),
        };
        let groups = rules.groups_claim.as_ref().map(|name| claims.get(name));
        is_name(&user).then(|| Principal {
            // Its own kind of name: no principal of the file can have one with a slash.
            name: Arc::from(format!("{}/{user}", rules.name)),
            role: rules.role,
            realm,
            user: Arc::from(user),
            groups: texts(groups.flatten())
                .filter(|group| is_name(group))
                .take(MAX_GROUPS)
                .map(Arc::from)
                .collect(),
            expires: Some(expires),
            allow: rules.allow.clone(),
            deny: rules.deny.clone(),
            caps: Caps::default(),
        })
    }
}

/// Who has this JWT. Claims are not believed before the signature is, but for whose it claims to be.
pub(super) fn judge(
    issuers: &[Arc<Issuer>],
    token: &str,
    now: SystemTime,
) -> Result<Proved, Fault> {
    let (message, signature) = token.rsplit_once('.').ok_or(Fault::Malformed)?;
    let (head, claims) = message.split_once('.').ok_or(Fault::Malformed)?;
    let header = decode_header(token).map_err(|_| {
        if is_unsigned(head) {
            Fault::Unsigned
        } else {
            Fault::Malformed
        }
    })?;
    // What must be understood and is not.
    if header.crit.is_some() {
        return Err(Fault::Malformed);
    }
    let claims = object(claims).ok_or(Fault::Malformed)?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| Fault::Malformed)?;
    let claimed = claims.get("iss").and_then(Value::as_str);
    let issuer = issuers
        .iter()
        .find(|issuer| Some(issuer.rules.issuer.as_str()) == claimed)
        .ok_or(Fault::WrongIssuer)?;
    let key = issuer.key_of(&header, &signature, message.as_bytes())?;

    let meant = |audience: &str| issuer.rules.audiences.iter().any(|a| a == audience);
    if !texts(claims.get("aud")).any(meant) {
        return Err(Fault::WrongAudience);
    }
    let leeway = issuer.rules.leeway;
    let expires = date(claims.get("exp")).ok_or(Fault::Expired)?;
    if now >= expires + leeway {
        return Err(Fault::Expired);
    }
    if let Some(begin) = claims.get("nbf") {
        let begin = date(Some(begin)).ok_or(Fault::Malformed)?;
        if now + leeway < begin {
            return Err(Fault::NotYetValid);
        }
    }
    let principal = issuer.principal(&claims, expires).ok_or(Fault::NoUser)?;
    Ok(Proved {
        principal: Arc::new(principal),
        proof: Proof::Jwt {
            issuer: issuer.clone(),
            key: key.fingerprint,
        },
    })
}

/// One part of a token.
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn is_unsigned(head: &str) -> bool {
    let algorithm = object(head).and_then(|mut head| head.remove("alg"));
    algorithm.is_some_and(|name| {
        name.as_str()
            .is_some_and(|name| name.eq_ignore_ascii_case("none"))
    })
}

/// A claim that is one text or several.
fn texts(claim: Option<&Value>) -> impl Iterator<Item = &str> {
    let one = claim.and_then(Value::as_str);
    let several = claim.and_then(Value::as_array).into_iter().flatten();
    one.into_iter().chain(several.filter_map(Value::as_str))
}

/// Seconds since 1970, which may have a fraction.
fn date(claim: Option<&Value>) -> Option<SystemTime> {
    let seconds = claim?.as_f64().filter(|s| (0.0..LATEST).contains(s))?;
    Some(UNIX_EPOCH + Duration::from_secs_f64(seconds))
}
