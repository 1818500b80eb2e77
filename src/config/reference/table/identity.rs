//! `[identity]` and the tables in it.

use super::{
    super::{Absent, Kind, Reload, Section, Shape},
    HOUR, at_most, choice, key, secs, span_or,
};

pub(super) const IDENTITY: Section = Section {
    name: "identity",
    shape: Shape::Table,
    text: "Who clients are, and who a session belongs to.",
    keys: &[
        key(
            "session_id_user",
            Kind::Pattern,
            Absent::Means("users are unknown"),
            Reload::Live,
            "Reads the user out of a session id: a group named `user`, as in \
             `'^user-(?<user>.+?)--'`. Try it with `taxiway check --session-id ID`.",
        ),
        key(
            "principals",
            Kind::Tables,
            Absent::Means("clients need no token"),
            Reload::Live,
            "Who may connect, and the tokens that prove it.",
        ),
        key(
            "tokens_file",
            Kind::Path,
            Absent::Means("none"),
            Reload::Live,
            "More principals, thousands of them: one a line, `NAME SHA256 [REALM] [ROLE] \
             [GROUP,GROUP…]`, with `-` for a default; the same name on several lines is one \
             principal with several tokens. `#` starts a comment.",
        ),
        key(
            "jwt",
            Kind::Tables,
            Absent::Means("no JSON Web Token is accepted"),
            Reload::Live,
            "Whose JSON Web Tokens are accepted.",
        ),
        key(
            "shared",
            Kind::Tables,
            Absent::Means("sessions are their user's alone"),
            Reload::Live,
            "Sessions that groups of users share.",
        ),
        key(
            "adopt_by",
            Kind::Text,
            Absent::Means("nobody sees them"),
            Reload::Live,
            "The principal that sees sessions of which nobody knows whose they are, as those \
             found on a server's disk.",
        ),
        key(
            "revoke_grace",
            span_or(secs(1), HOUR, "none"),
            Absent::Value("60s"),
            Reload::Live,
            "How long a client may go on after its token has run out, for a new `connect` with \
             a fresh one. Then, and at once when a reload takes its token or principal away, \
             new calls get -32001, and the connection ends with its running turns, at the \
             latest after `drain.timeout`.",
        ),
    ],
};

pub(super) const PRINCIPALS: Section = Section {
    name: "identity.principals",
    shape: Shape::NestedList,
    text: "One block for each principal. A token is never written here: its hash is, or where to \
           read it. `taxiway token NAME` makes one. Several tokens are accepted at a time, so \
           that one can be replaced by another. See [security](security.md#tokens).",
    keys: &[
        key(
            "name",
            Kind::Principal,
            Absent::Refused,
            Reload::Live,
            "Its name. Another name is another principal.",
        ),
        key(
            "role",
            choice(&["user", "service"]),
            Absent::Value("user"),
            Reload::Live,
            "`user`: it speaks for itself, and its sessions are its own. `service`: an \
             application that acts for many users, each read from the session id with \
             `session_id_user`; within its realm it is trusted.",
        ),
        key(
            "realm",
            Kind::Principal,
            Absent::Means("`name`"),
            Reload::Live,
            "Users of different realms never meet, whatever their names.",
        ),
        key(
            "groups",
            Kind::Several(&Kind::Principal),
            Absent::Means("none"),
            Reload::Live,
            "Groups that it is in, for `[[identity.shared]]`.",
        ),
        key(
            "token_env",
            Kind::Several(&Kind::Variable),
            Absent::Means("no such token"),
            Reload::Live,
            "Environment variables that hold a token each.",
        ),
        key(
            "token_file",
            Kind::Several(&Kind::SecretFile),
            Absent::Means("no such token"),
            Reload::Live,
            "Files that hold tokens, one a line.",
        ),
        key(
            "token_sha256",
            Kind::Several(&Kind::Hash),
            Absent::Means("no such token"),
            Reload::Live,
            "SHA-256 hashes of tokens.",
        ),
        key(
            "tls_name",
            Kind::Several(&Kind::Text),
            Absent::Means("certificates prove nothing"),
            Reload::Live,
            "Names in client certificates (subject alternative name or common name): who shows \
             such a certificate needs no token.",
        ),
        key(
            "allow",
            Kind::Several(&Kind::Text),
            Absent::Means("what the profile allows"),
            Reload::Live,
            "Methods that it may use besides: whole names, or a prefix with `*`.",
        ),
        key(
            "deny",
            Kind::Several(&Kind::Text),
            Absent::Means("what the profile denies"),
            Reload::Live,
            "Methods that it may not use: whole names, or a prefix with `*`.",
        ),
        key(
            "connections",
            at_most(1_000_000),
            Absent::Means("`limits.connections_per_user`"),
            Reload::NewConnections,
            "Its client connections; here and below 0 = any number. A service's own: for the users \
             that it speaks for, sessions and turns are counted as for all.",
        ),
        key(
            "sessions",
            at_most(1_000_000),
            Absent::Means("`sessions.max_open_per_user`; none for a service"),
            Reload::Live,
            "Sessions that it may have open.",
        ),
        key(
            "turns",
            at_most(1_000_000),
            Absent::Means("`limits.turns_per_user`; none for a service"),
            Reload::Live,
            "Its turns that may run at a time.",
        ),
        key(
            "calls_per_second",
            at_most(1_000_000),
            Absent::Means("`limits.calls_per_second`"),
            Reload::Live,
            "Its calls per second.",
        ),
        key(
            "bytes_per_second",
            Kind::Size {
                min: 0,
                max: 1 << 30,
            },
            Absent::Means("`limits.bytes_per_second`"),
            Reload::Live,
            "Bytes of its calls per second.",
        ),
    ],
};

pub(super) const JWT: Section = Section {
    name: "identity.jwt",
    shape: Shape::NestedList,
    text: "One block for each issuer. A token must be signed by one of its keys, name the issuer \
           (`iss`), one of the audiences (`aud`) and an end (`exp`), and be valid already (`nbf`). \
           Its principal is called `NAME/USER`. Which algorithm is used follows from the key: \
           RS256 for RSA, ES256 for P-256, EdDSA for Ed25519, HS256 for a shared secret. See \
           [security](security.md#json-web-tokens).",
    keys: &[
        key(
            "name",
            Kind::Principal,
            Absent::Refused,
            Reload::Live,
            "What the issuer is called here.",
        ),
        key(
            "issuer",
            Kind::Text,
            Absent::Refused,
            Reload::Live,
            "What `iss` has to be, to the letter.",
        ),
        key(
            "audience",
            Kind::Several(&Kind::Text),
            Absent::Refused,
            Reload::Live,
            "What `aud` has to be, or to contain: one of these.",
        ),
        key(
            "key_file",
            Kind::Several(&Kind::Path),
            Absent::Means("none"),
            Reload::Live,
            "Public keys in PEM form, one a file.",
        ),
        key(
            "jwks_file",
            Kind::Path,
            Absent::Means("none"),
            Reload::Live,
            "A JSON Web Key Set. Read again when the file changes; never fetched.",
        ),
        key(
            "secret_env",
            Kind::Variable,
            Absent::Means("none"),
            Reload::Live,
            "A secret shared with the issuer, of at least 32 bytes.",
        ),
        key(
            "secret_file",
            Kind::SecretFile,
            Absent::Means("none"),
            Reload::Live,
            "The same, from a file.",
        ),
        key(
            "user_claim",
            Kind::Text,
            Absent::Value("sub"),
            Reload::Live,
            "The claim that holds the user.",
        ),
        key(
            "groups_claim",
            Kind::Text,
            Absent::Means("none"),
            Reload::Live,
            "The claim that holds the user's groups: a text or a list of them.",
        ),
        key(
            "realm",
            Kind::Principal,
            Absent::Means("`name`"),
            Reload::Live,
            "The realm of its users.",
        ),
        key(
            "realm_claim",
            Kind::Text,
            Absent::Means("none"),
            Reload::Live,
            "The claim that holds the realm; `realm` is for tokens without it. The issuer can \
             then speak for any realm.",
        ),
        key(
            "role",
            choice(&["user", "service"]),
            Absent::Value("user"),
            Reload::Live,
            "As in `[[identity.principals]]`.",
        ),
        key(
            "leeway",
            span_or(secs(1), secs(60), "none"),
            Absent::Value("30s"),
            Reload::Live,
            "How far the issuer's clock and this one may differ.",
        ),
        key(
            "allow",
            Kind::Several(&Kind::Text),
            Absent::Means("what the profile allows"),
            Reload::Live,
            "As in `[[identity.principals]]`.",
        ),
        key(
            "deny",
            Kind::Several(&Kind::Text),
            Absent::Means("what the profile denies"),
            Reload::Live,
            "As in `[[identity.principals]]`.",
        ),
    ],
};

pub(super) const SHARED: Section = Section {
    name: "identity.shared",
    shape: Shape::NestedList,
    text: "Sessions that others than their user may use, one block for each kind.",
    keys: &[
        key(
            "pattern",
            Kind::Match,
            Absent::Refused,
            Reload::Live,
            "Their ids; the whole id has to match.",
        ),
        key(
            "groups",
            Kind::Several(&Kind::Principal),
            Absent::Refused,
            Reload::Live,
            "Who may use them: members of any of these groups, in the same realm.",
        ),
    ],
};
