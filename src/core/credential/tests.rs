//! Tokens, certificates and JSON Web Tokens, good and bad. The keys beside this file are for it alone.

use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
        RsaKeyPair,
    },
};
use serde_json::{Value, json};

use super::*;
use crate::core::identity::Caps;

const SECRET: &str = "a secret of thirty-two bytes, or more";
const RSA_PEM: &str = include_str!("tests/rsa.pub.pem");
const P256_PEM: &str = include_str!("tests/p256.pub.pem");
const ED_PEM: &str = include_str!("tests/ed25519.pub.pem");

fn rsa() -> RsaKeyPair {
    RsaKeyPair::from_pkcs8(include_bytes!("tests/rsa.pk8")).unwrap()
}

fn p256() -> EcdsaKeyPair {
    let bytes = include_bytes!("tests/p256.pk8");
    let (kind, chance) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
    EcdsaKeyPair::from_pkcs8(kind, bytes, &chance).unwrap()
}

fn ed25519() -> Ed25519KeyPair {
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(include_bytes!("tests/ed25519.pk8")).unwrap()
}

fn sign(algorithm: &str, message: &[u8], secret: &str) -> Vec<u8> {
    match algorithm {
        "HS256" => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            hmac::sign(&key, message).as_ref().to_vec()
        }
        "RS256" => {
            let mut signature = vec![0; 256];
            rsa()
                .sign(
                    &RSA_PKCS1_SHA256,
                    &SystemRandom::new(),
                    message,
                    &mut signature,
                )
                .unwrap();
            signature
        }
        "ES256" => p256()
            .sign(&SystemRandom::new(), message)
            .unwrap()
            .as_ref()
            .to_vec(),
        "EdDSA" => ed25519().sign(message).as_ref().to_vec(),
        _ => Vec::new(),
    }
}

fn jwt(head: Value, claims: &Value, secret: &str) -> Secret {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&head), part(claims));
    let algorithm = head["alg"].as_str().unwrap_or_default();
    let signature = URL_SAFE_NO_PAD.encode(sign(algorithm, message.as_bytes(), secret));
    Secret::from(format!("{message}.{signature}"))
}

/// Seconds since 1970.
const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn claims() -> Value {
    json!({
        "iss": "https://sso.example", "aud": "copilot", "sub": "alice", "exp": NOW + 60,
        "nbf": NOW - 60, "groups": ["dev", "ops"], "tenant": "acme",
    })
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn rules() -> Rules {
    Rules {
        name: "sso".into(),
        issuer: "https://sso.example".into(),
        audiences: vec!["other".into(), "copilot".into()],
        user_claim: "sub".into(),
        groups_claim: Some("groups".into()),
        realm: "acme".into(),
        realm_claim: None,
        role: Role::User,
        leeway: Duration::from_secs(30),
        allow: Vec::new(),
        deny: vec!["mcp.*".into()],
    }
}

fn issuer(keys: Vec<Key>) -> Principals {
    let rules = rules();
    Principals::new(Vec::new(), vec![Issuer { rules, keys }]).unwrap()
}

fn hs256() -> Key {
    Key::from_secret(&Secret::new(SECRET)).unwrap()
}

fn entry(name: &str, tokens: &[&str], certificates: &[&str]) -> Entry {
    Entry {
        principal: Arc::new(Principal {
            name: name.into(),
            role: Role::User,
            realm: "r".into(),
            user: name.into(),
            groups: Vec::new(),
            expires: None,
            allow: Vec::new(),
            deny: Vec::new(),
            caps: Caps::default(),
        }),
        tokens: tokens.iter().map(|token| Fingerprint::of(token)).collect(),
        certificates: certificates.iter().map(|name| Arc::from(*name)).collect(),
    }
}

fn judge(all: &Principals, token: &str) -> Result<String, Fault> {
    let proved = all.by_token(Some(&Secret::new(token)), now())?;
    Ok(proved.principal.name.to_string())
}

#[test]
fn fingerprints_are_the_sha256_that_other_tools_print() {
    let digits = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let of = Fingerprint::of("secret");
    assert_eq!(of.to_string(), digits);
    assert_eq!(Fingerprint::parse(digits), Some(of));
    assert_eq!(Fingerprint::parse(&digits.to_uppercase()), Some(of));
    for wrong in ["", "2bb8", &digits[1..], &format!("g{}", &digits[1..])] {
        assert_eq!(Fingerprint::parse(wrong), None, "{wrong}");
    }
    assert_eq!(Fingerprint::parse(&"ü".repeat(32)), None);
    assert!(!format!("{of:?}").contains("2bb8"));
}

#[test]
fn a_token_is_its_principals() {
    let all = Principals::new(
        vec![
            entry("ann", &["ann-1", "ann-2"], &[]),
            entry("bob", &["bob-1"], &[]),
        ],
        Vec::new(),
    )
    .unwrap();
    for (token, expected) in [
        ("ann-1", Ok("ann")),
        ("ann-2", Ok("ann")),
        ("bob-1", Ok("bob")),
        ("ann-3", Err(Fault::WrongToken)),
        ("ann-1 ", Err(Fault::WrongToken)),
        ("", Err(Fault::WrongToken)),
        ("a.b.c", Err(Fault::WrongToken)),
    ] {
        assert_eq!(judge(&all, token), expected.map(str::to_owned), "{token}");
    }
    assert_eq!(all.by_token(None, now()).unwrap_err(), Fault::Missing);
    let long = "x".repeat(MAX_TOKEN + 1);
    assert_eq!(judge(&all, &long), Err(Fault::TooLong));
    assert!(!format!("{all:?}").contains("ann"));
}

#[test]
fn among_thousands_each_is_found() {
    let names: Vec<String> = (0..5000).map(|n| format!("user-{n}")).collect();
    let entries = names.iter().map(|name| entry(name, &[name], &[])).collect();
    let all = Principals::new(entries, Vec::new()).unwrap();
    for name in &names {
        assert_eq!(judge(&all, name).as_ref(), Ok(name));
    }
    assert_eq!(judge(&all, "user-5000"), Err(Fault::WrongToken));
}

#[test]
fn what_proves_one_proves_no_other() {
    let clashes = Principals::new(
        vec![
            entry("ann", &["x", "x"], &["a.example"]),
            entry("bob", &["y"], &["b.example"]),
            entry("cid", &["z", "x"], &["b.example"]),
        ],
        Vec::new(),
    )
    .unwrap_err();
    let clash = |first, second, over| Clash {
        first,
        second,
        over,
    };
    assert_eq!(
        clashes,
        [clash(0, 2, Claim::Token), clash(1, 2, Claim::Certificate)]
    );
}

#[test]
fn a_certificate_must_be_of_one_principal() {
    let all = Principals::new(
        vec![
            entry("ann", &[], &["ann.example", "ann"]),
            entry("bob", &[], &["bob.example"]),
        ],
        Vec::new(),
    )
    .unwrap();
    for (names, expected) in [
        (vec!["ann.example"], Ok("ann")),
        (vec!["other", "ann"], Ok("ann")),
        (vec!["ann", "ann.example"], Ok("ann")),
        (vec!["ann", "bob.example"], Err(Fault::Certificate)),
        (vec!["ann", "bob.example", "ann"], Err(Fault::Certificate)),
        (vec!["ANN"], Err(Fault::Certificate)),
        (vec![], Err(Fault::Certificate)),
    ] {
        let found = all.by_certificate(&names);
        let found = found.map(|proved| proved.principal.name.to_string());
        assert_eq!(found, expected.map(str::to_owned), "{names:?}");
    }
    assert!(
        all.by_certificate(&["ann"]).unwrap().is_by_certificate(),
        "needs no token"
    );
}

#[test]
fn a_good_jwt_says_who_its_bearer_is() {
    let all = issuer(vec![hs256()]);
    let token = jwt(json!({"alg": "HS256", "typ": "JWT"}), &claims(), SECRET);
    let proved = all.by_token(Some(&token), now()).unwrap();
    let principal = &proved.principal;
    assert_eq!(&*principal.name, "sso/alice");
    assert_eq!((&*principal.user, &*principal.realm), ("alice", "acme"));
    assert_eq!(principal.role, Role::User);
    let groups: Vec<&str> = principal.groups.iter().map(AsRef::as_ref).collect();
    assert_eq!(groups, ["dev", "ops"]);
    assert_eq!(principal.expires, Some(now() + Duration::from_secs(60)));
    assert_eq!(principal.deny, [Arc::from("mcp.*")]);
    assert_eq!(proved.how(), "jwt");
}

#[test]
fn every_kind_of_key_checks_its_own_algorithm_only() {
    let keys = [
        ("HS256", hs256()),
        ("RS256", Key::from_pem(RSA_PEM).unwrap()),
        ("ES256", Key::from_pem(P256_PEM).unwrap()),
        ("EdDSA", Key::from_pem(ED_PEM).unwrap()),
    ];
    for (algorithm, key) in &keys {
        let all = issuer(vec![key.clone()]);
        for (used, _) in &keys {
            let token = jwt(json!({"alg": used}), &claims(), SECRET);
            let expected = if used == algorithm {
                Ok("sso/alice".to_owned())
            } else {
                Err(Fault::WrongAlgorithm)
            };
            assert_eq!(
                judge(&all, token.expose()),
                expected,
                "{used} for {algorithm}"
            );
        }
    }
    // All of them together: a key is found for each.
    let all = issuer(keys.iter().map(|(_, key)| key.clone()).collect());
    for (used, _) in &keys {
        let token = jwt(json!({"alg": used}), &claims(), SECRET);
        assert!(judge(&all, token.expose()).is_ok(), "{used}");
    }
}

#[test]
fn a_public_key_is_no_secret() {
    // Signed as if the public key, which everybody has, were the shared secret.
    for pem in [RSA_PEM, P256_PEM, ED_PEM] {
        let all = issuer(vec![Key::from_pem(pem).unwrap()]);
        let token = jwt(json!({"alg": "HS256"}), &claims(), pem);
        assert_eq!(judge(&all, token.expose()), Err(Fault::WrongAlgorithm));
        let both = issuer(vec![Key::from_pem(pem).unwrap(), hs256()]);
        assert_eq!(judge(&both, token.expose()), Err(Fault::BadSignature));
        let fault = Key::from_secret(&Secret::new(pem)).unwrap_err();
        assert_eq!(fault, KeyFault::PemAsSecret);
    }
}

#[test]
fn a_bad_jwt_says_nothing() {
    let all = issuer(vec![hs256()]);
    let head = || json!({"alg": "HS256"});
    let by = |head: Value, changes: Value| jwt(head, &with(changes), SECRET);
    for (what, token, expected) in [
        (
            "expired",
            by(head(), json!({"exp": NOW - 31})),
            Fault::Expired,
        ),
        (
            "just now",
            by(head(), json!({"exp": NOW - 30})),
            Fault::Expired,
        ),
        ("endless", by(head(), json!({"exp": null})), Fault::Expired),
        ("text", by(head(), json!({"exp": "never"})), Fault::Expired),
        ("huge", by(head(), json!({"exp": 1e300})), Fault::Expired),
        ("negative", by(head(), json!({"exp": -1})), Fault::Expired),
        (
            "future",
            by(head(), json!({"nbf": NOW + 31})),
            Fault::NotYetValid,
        ),
        ("odd nbf", by(head(), json!({"nbf": "x"})), Fault::Malformed),
        (
            "audience",
            by(head(), json!({"aud": "else"})),
            Fault::WrongAudience,
        ),
        (
            "audiences",
            by(head(), json!({"aud": ["a", 1]})),
            Fault::WrongAudience,
        ),
        (
            "for all",
            by(head(), json!({"aud": null})),
            Fault::WrongAudience,
        ),
        (
            "issuer",
            by(head(), json!({"iss": "https://evil"})),
            Fault::WrongIssuer,
        ),
        (
            "slash",
            by(head(), json!({"iss": "https://sso.example/"})),
            Fault::WrongIssuer,
        ),
        (
            "no issuer",
            by(head(), json!({"iss": null})),
            Fault::WrongIssuer,
        ),
        (
            "issuers",
            by(head(), json!({"iss": ["https://sso.example"]})),
            Fault::WrongIssuer,
        ),
        ("nobody", by(head(), json!({"sub": null})), Fault::NoUser),
        ("empty", by(head(), json!({"sub": ""})), Fault::NoUser),
        (
            "odd user",
            by(head(), json!({"sub": ["alice"]})),
            Fault::NoUser,
        ),
        ("control", by(head(), json!({"sub": "a\nb"})), Fault::NoUser),
        (
            "long user",
            by(head(), json!({"sub": "x".repeat(257)})),
            Fault::NoUser,
        ),
        (
            "wrong key",
            jwt(head(), &claims(), "another secret of 32 bytes or more"),
            Fault::BadSignature,
        ),
        (
            "none",
            by(json!({"alg": "none"}), json!({})),
            Fault::Unsigned,
        ),
        (
            "None",
            by(json!({"alg": "nOnE"}), json!({})),
            Fault::Unsigned,
        ),
        (
            "unknown",
            by(json!({"alg": "XS1"}), json!({})),
            Fault::Malformed,
        ),
        (
            "no alg",
            by(json!({"typ": "JWT"}), json!({})),
            Fault::Malformed,
        ),
        (
            "critical",
            by(json!({"alg": "HS256", "crit": ["x"]}), json!({})),
            Fault::Malformed,
        ),
    ] {
        assert_eq!(judge(&all, token.expose()), Err(expected), "{what}");
    }
}

#[test]
fn what_is_no_jwt_says_nothing() {
    let all = issuer(vec![hs256()]);
    let good = jwt(json!({"alg": "HS256"}), &claims(), SECRET);
    let good = good.expose();
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (head, body) = message.split_once('.').unwrap();
    let other = URL_SAFE_NO_PAD.encode(with(json!({"sub": "root"})).to_string());
    for (token, expected) in [
        (format!("{head}.{other}.{signature}"), Fault::BadSignature),
        (format!("{head}.{body}."), Fault::BadSignature),
        (format!("{head}.{body}.!"), Fault::Malformed),
        (format!("{head}.!.{signature}"), Fault::Malformed),
        (format!("!.{body}.{signature}"), Fault::Malformed),
        ("..".to_owned(), Fault::Malformed),
        (format!("{good}.x"), Fault::WrongToken),
        (message.to_owned(), Fault::WrongToken),
        ("\u{fc}.\u{fc}.\u{fc}".to_owned(), Fault::Malformed),
    ] {
        assert_eq!(judge(&all, &token), Err(expected), "{token}");
    }
}

#[test]
fn clocks_may_differ_a_little() {
    let all = issuer(vec![hs256()]);
    for changes in [
        json!({"exp": NOW - 29}),
        json!({"exp": (NOW as f64) - 29.5}),
        json!({"nbf": NOW + 30}),
        json!({"nbf": null}),
        json!({"aud": ["x", "other"]}),
        json!({"groups": "dev"}),
        json!({"groups": null}),
        json!({"groups": 7}),
    ] {
        let token = jwt(json!({"alg": "HS256"}), &with(changes.clone()), SECRET);
        assert!(judge(&all, token.expose()).is_ok(), "{changes}");
    }
    let number = jwt(json!({"alg": "HS256"}), &with(json!({"sub": 4711})), SECRET);
    assert_eq!(judge(&all, number.expose()), Ok("sso/4711".to_owned()));
}

#[test]
fn a_realm_may_come_with_the_token() {
    let rules = Rules {
        realm_claim: Some("tenant".into()),
        realm: "default".into(),
        ..rules()
    };
    let keys = vec![hs256()];
    let all = Principals::new(Vec::new(), vec![Issuer { rules, keys }]).unwrap();
    for (changes, expected) in [
        (json!({}), Ok("acme")),
        (json!({"tenant": null}), Ok("default")),
        (json!({"tenant": ""}), Err(Fault::NoUser)),
        (json!({"tenant": 1}), Err(Fault::NoUser)),
    ] {
        let token = jwt(json!({"alg": "HS256"}), &with(changes), SECRET);
        let realm = all.by_token(Some(&token), now());
        let realm = realm.map(|proved| proved.principal.realm.to_string());
        assert_eq!(realm, expected.map(str::to_owned));
    }
}

fn jwk(kind: &str, id: Option<&str>) -> Value {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut key = match kind {
        "RSA" => {
            let public = PublicKeyComponents::<Vec<u8>>::from(rsa().public());
            json!({
                "kty": "RSA", "alg": "RS256", "use": "sig",
                "n": text(&public.n),
                "e": text(&public.e),
            })
        }
        "EC" => {
            let public = p256();
            let point = public.public_key().as_ref();
            json!({"kty": "EC", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])})
        }
        _ => json!({
            "kty": "OKP", "crv": "Ed25519", "x": text(ed25519().public_key().as_ref()),
        }),
    };
    if let Some(id) = id {
        key["kid"] = json!(id);
    }
    key
}

#[test]
fn key_sets_are_read_and_what_cannot_be_used_is_left_out() {
    let set = json!({"keys": [
        jwk("RSA", Some("r")),
        jwk("EC", Some("e")),
        jwk("OKP", None),
        // A secret that everybody can read who can read the set.
        {"kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET), "alg": "HS256"},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "alg": "RS512", "n": jwk("RSA", None)["n"], "e": "AQAB"},
        {"kty": "RSA", "use": "enc", "n": jwk("RSA", None)["n"], "e": "AQAB"},
        {"kty": "future", "x": 1},
        "no key",
    ]});
    let (keys, others) = Key::from_key_set(&set.to_string()).unwrap();
    assert_eq!((keys.len(), others), (3, 8));
    let all = issuer(keys);
    for (head, expected) in [
        (json!({"alg": "RS256", "kid": "r"}), Ok(())),
        (json!({"alg": "RS256"}), Ok(())),
        (
            json!({"alg": "RS256", "kid": "other"}),
            Err(Fault::BadSignature),
        ),
        (json!({"alg": "ES256", "kid": "e"}), Ok(())),
        (
            json!({"alg": "ES256", "kid": "r"}),
            Err(Fault::BadSignature),
        ),
        (json!({"alg": "EdDSA", "kid": "unheard of"}), Ok(())),
        (json!({"alg": "HS256"}), Err(Fault::WrongAlgorithm)),
    ] {
        let token = jwt(head.clone(), &claims(), SECRET);
        let judged = judge(&all, token.expose()).map(|_| ());
        assert_eq!(judged, expected, "{head}");
    }
    for wrong in ["", "[]", "{}", r#"{"keys": 1}"#] {
        let fault = Key::from_key_set(wrong).unwrap_err();
        assert_eq!(fault, KeyFault::NotKeySet, "{wrong}");
    }
}

#[test]
fn what_is_no_public_key_is_refused() {
    for (pem, expected) in [
        ("", KeyFault::NotPem),
        (
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            KeyFault::NotPem,
        ),
        (include_str!("tests/p384.pub.pem"), KeyFault::NotPem),
        (include_str!("tests/rsa1024.pub.pem"), KeyFault::Short),
        ("-----BEGIN PRIVATE KEY-----\n", KeyFault::Private),
        ("-----BEGIN CERTIFICATE-----\n", KeyFault::NotPem),
    ] {
        assert_eq!(Key::from_pem(pem).unwrap_err(), expected, "{pem}");
    }
    let fault = Key::from_secret(&Secret::new("too short")).unwrap_err();
    assert_eq!(fault, KeyFault::ShortSecret);
    assert!(!format!("{:?}", hs256()).contains("thirty-two"));
}

#[test]
fn other_rules_may_say_otherwise() {
    let before = Principals::new(
        vec![entry("ann", &["old", "new"], &["ann.example"])],
        Vec::new(),
    )
    .unwrap();
    let by = |token: &str| before.by_token(Some(&Secret::new(token)), now()).unwrap();
    let certified = before.by_certificate(&["ann.example"]).unwrap();
    let name = |proved: Option<Proved>| proved.map(|p| p.principal.name.to_string());

    let rotated = Principals::new(vec![entry("ann", &["new"], &[])], Vec::new()).unwrap();
    assert!(name(rotated.still(&by("old"))).is_none(), "taken back");
    assert_eq!(name(rotated.still(&by("new"))), Some("ann".to_owned()));
    assert!(name(rotated.still(&certified)).is_none());

    let mut regrouped = entry("ann", &["old"], &["ann.example"]);
    Arc::make_mut(&mut regrouped.principal).groups = vec!["dev".into()];
    let regrouped = Principals::new(vec![regrouped], Vec::new()).unwrap();
    for proved in [by("old"), certified] {
        let now = regrouped.still(&proved).unwrap();
        assert_eq!(now.principal.groups, [Arc::from("dev")]);
    }

    let given_away = Principals::new(vec![entry("bob", &["old"], &[])], Vec::new()).unwrap();
    assert!(
        name(given_away.still(&by("old"))).is_none(),
        "another's now"
    );
    let mut promoted = entry("ann", &["old"], &[]);
    Arc::make_mut(&mut promoted.principal).role = Role::Service;
    let promoted = Principals::new(vec![promoted], Vec::new()).unwrap();
    assert!(name(promoted.still(&by("old"))).is_none(), "another role");
}

#[test]
fn a_jwt_counts_as_long_as_its_key_and_issuer_do() {
    let (first, second) = (hs256(), Key::from_pem(ED_PEM).unwrap());
    let before = issuer(vec![first.clone()]);
    let token = jwt(json!({"alg": "HS256"}), &claims(), SECRET);
    let proved = before.by_token(Some(&token), now()).unwrap();
    let rotating = issuer(vec![second.clone(), first.clone()]);
    let still = rotating.still(&proved).unwrap();
    assert_eq!(still.principal, proved.principal);
    // And by what was judged again, too.
    assert!(before.still(&still).is_some());
    assert!(issuer(vec![second]).still(&proved).is_none(), "key gone");
    assert!(Principals::default().still(&proved).is_none());
    let strict = Issuer {
        rules: Rules {
            audiences: vec!["copilot-2".into()],
            ..rules()
        },
        keys: vec![first],
    };
    let strict = Principals::new(Vec::new(), vec![strict]).unwrap();
    assert!(strict.still(&proved).is_none(), "other rules");
}
