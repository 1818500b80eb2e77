//! The part of the table about connections: those that come in, and those to backends.

use super::{Absent, HOUR, Kind, Reload, Section, Shape, choice, key, ms, secs, span, span_or};
use crate::config::reference::Short;

/// `[listener]`
pub(super) const LISTENER: Section = Section {
    name: "listener",
    shape: Shape::Table,
    text: "Where SDK clients connect.",
    keys: &[
        key(
            "address",
            Kind::Listen,
            Absent::Value("127.0.0.1:4321"),
            Reload::Live,
            "Where clients connect. IPv4: the Python SDK speaks nothing else. Anything but \
             loopback needs principals (`[identity]`), client certificates (`[listener.tls]`) or \
             `allow_anonymous`. Connections made to the old address stay.",
        ),
        key(
            "tcp_keepalive",
            span_or(secs(1), secs(9 * 3600), "off"),
            Absent::Value("60s"),
            Reload::NewConnections,
            "Keep-alive probes towards clients and backends; cloud balancers drop connections \
             that were silent for four minutes.",
        ),
        key(
            "handshake_timeout",
            span(ms(100), HOUR),
            Absent::Value("10s"),
            Reload::NewConnections,
            "From accept to the first complete frame; where clients need a token, to the `connect` \
             that proves who they are.",
        ),
        key(
            "write_stall",
            span(secs(1), HOUR),
            Absent::Value("30s"),
            Reload::NewConnections,
            "A client that reads nothing for so long while its buffer is full is closed.",
        ),
        key(
            "allow_anonymous",
            Kind::Flag,
            Absent::Value("false"),
            Reload::Live,
            "Allows an address that is not loopback although no principals are configured, so \
             that clients need no token: whoever reaches it can use every session.",
        ),
        key(
            "allow_from",
            Kind::Networks,
            Absent::Means("from everywhere"),
            Reload::Live,
            "Clients may connect from there, as in `[\"10.0.0.0/8\"]`; others are closed at once. \
             With `proxy_protocol` the client's own address counts.",
        ),
        key(
            "proxy_protocol",
            choice(&["off", "required"]),
            Absent::Value("off"),
            Reload::NewConnections,
            "`required`: every connection starts with a PROXY header (version 1 or 2), written \
             by a balancer in front, and the address in it is the client's everywhere.",
        ),
        key(
            "proxy_protocol_from",
            Kind::Networks,
            Absent::Means("nobody: to be written with `proxy_protocol = \"required\"`"),
            Reload::NewConnections,
            "Where those balancers are. Connections from elsewhere are closed at once.",
        ),
        key(
            "tls",
            Kind::Nested(Short::No),
            Absent::Means("plain TCP"),
            Reload::NewConnections,
            "TLS to clients. See [TLS](tls.md).",
        ),
    ],
};

/// `[listener.tls]`
pub(super) const LISTENER_TLS: Section = Section {
    name: "listener.tls",
    shape: Shape::Nested,
    text: "TLS 1.2 and 1.3 to clients; no SDK speaks it: `taxiway companion` does for them. When \
           one of these files changes, new connections get the new one, and open ones go on. A \
           file that cannot be used changes nothing.",
    keys: &[
        key(
            "cert",
            Kind::Path,
            Absent::Refused,
            Reload::NewConnections,
            "Certificate of this Taxiway in PEM form, then those between it and its authority.",
        ),
        key(
            "key",
            Kind::Path,
            Absent::Refused,
            Reload::NewConnections,
            "Its private key in PEM form, not encrypted; readable by Taxiway's user only.",
        ),
        key(
            "client_ca",
            Kind::Path,
            Absent::Means("clients are not asked for a certificate"),
            Reload::NewConnections,
            "Authorities that sign clients' certificates.",
        ),
        key(
            "client_auth",
            choice(&["none", "optional", "required"]),
            Absent::Means("`required` with `client_ca`, else `none`"),
            Reload::NewConnections,
            "`required`: a client without a certificate of such an authority is not let in. \
             `optional`: only one with a wrong certificate is not.",
        ),
    ],
};

/// `[[backends]]`
pub(super) const BACKENDS: Section = Section {
    name: "backends",
    shape: Shape::List,
    text: "The CLI servers, one block each. A backend that is taken out of the file takes no \
           new sessions and keeps serving the open ones.",
    keys: &[
        key(
            "name",
            Kind::Name,
            Absent::Refused,
            Reload::Live,
            "Its identity: sessions remember it, placement hashes it. Another name is another \
             backend.",
        ),
        key(
            "address",
            Kind::Dial,
            Absent::Refused,
            Reload::Live,
            "Where it listens. May change: the name and the sessions on its disk stay. While something is open at the old address, that stays in use, without new sessions.",
        ),
        key(
            "weight",
            Kind::Integer { min: 1, max: 1000 },
            Absent::Value("1"),
            Reload::Live,
            "Its share, relative to the others.",
        ),
        key(
            "state",
            choice(&["ready", "drain", "maint"]),
            Absent::Value("ready"),
            Reload::Live,
            "`drain`: no new sessions. `maint`: as if it were not there. An operator's command \
             wins over it until `taxiway reset NAME`.",
        ),
        key(
            "connection_token_env",
            Kind::Variable,
            Absent::Means("no token"),
            Reload::Live,
            "The token that the server wants (its `COPILOT_CONNECTION_TOKEN`).",
        ),
        key(
            "connection_token_file",
            Kind::SecretFile,
            Absent::Means("no token"),
            Reload::Live,
            "The same, from a file.",
        ),
        key(
            "proxy_protocol",
            choice(&["off", "v1", "v2"]),
            Absent::Value("off"),
            Reload::NewConnections,
            "Write a PROXY header of that version first, with the client's address; on \
             Taxiway's own connections one that says so. The CLI itself does not read it: for a \
             balancer or companion of its own in front of the server.",
        ),
        key(
            "tls",
            Kind::Nested(Short::Flag),
            Absent::Means("plain TCP"),
            Reload::NewConnections,
            "TLS to what stands in front of the server, which speaks none itself.",
        ),
    ],
};

/// `[backends.tls]`
pub(super) const BACKENDS_TLS: Section = Section {
    name: "backends.tls",
    shape: Shape::Nested,
    text: "Of the `[[backends]]` block above it. `tls = true` in that block is all defaults.",
    keys: &[
        key(
            "ca",
            Kind::Path,
            Absent::Means("those that this system trusts"),
            Reload::NewConnections,
            "Authorities that the server's certificate may be of.",
        ),
        key(
            "server_name",
            Kind::ServerName,
            Absent::Means("the host of `address`"),
            Reload::NewConnections,
            "What the server's certificate has to be for.",
        ),
        key(
            "cert",
            Kind::Path,
            Absent::Means("none is shown"),
            Reload::NewConnections,
            "Taxiway's own certificate for it in PEM form; with `key`.",
        ),
        key(
            "key",
            Kind::Path,
            Absent::Means("none"),
            Reload::NewConnections,
            "Its private key; with `cert`.",
        ),
    ],
};
