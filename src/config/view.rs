//! The effective configuration as JSON, secrets redacted: for the admin API, and to compare two.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Map, Value, json};

use super::{
    Backend, Config, CreateExisting, Granularity, Identities, Identity, IssuerFiles, Key,
    ListenerTls, LogFormat, Placement, StallAction,
    quantity::{show_duration, show_size},
};
use crate::{
    core::{
        access::Share,
        credential::{Entry, Issuer, role_name},
        id::Secret,
        network::Networks,
        proxy_header::Version,
        snapshot::{AdminState, Mode},
        turnlock,
    },
    transport::ClientAuth,
};

/// The configuration in force, defaults included, as `section → key → value`.
///
/// Values are written as in the file. A secret shows as `"[redacted]"`, whatever it is.
pub fn redacted(config: &Config) -> Value {
    let Config {
        source,
        listener,
        admin,
        routing,
        identity,
        sessions,
        health,
        failover,
        drain,
        upgrade,
        limits,
        log,
        store,
        backends,
        managed,
        secret_variables: _,
    } = config;
    json!({
        "source": source.as_ref().map(|path| path.display().to_string()),
        "listener": {
            "address": listener.address.to_string(),
            "tcp_keepalive": show_duration(listener.tcp_keepalive.unwrap_or_default()),
            "handshake_timeout": show_duration(listener.handshake_timeout),
            "write_stall": show_duration(listener.write_stall),
            "allow_anonymous": listener.allow_anonymous,
            "allow_from": listener.allow_from.as_ref().map(Networks::texts),
            "proxy_protocol": if listener.proxy_protocol_from.is_some() { "required" } else { "off" },
            "proxy_protocol_from": listener.proxy_protocol_from.as_ref().map(Networks::texts),
            "tls": listener.tls.as_ref().map(listener_tls),
        },
        "admin": {
            "address": admin.address.to_string(),
            "token": secret(admin.token.as_ref()),
        },
        "routing": {
            "mode": match routing.mode {
                Mode::Sticky => "sticky",
                Mode::SharedStorage => "shared-storage",
            },
            "key": match routing.key {
                Key::User => "user",
                Key::Session => "session",
            },
            "placement": match routing.placement {
                Placement::LeastLoaded => "least-loaded",
                Placement::P2c => "p2c",
                Placement::RoundRobin => "round-robin",
            },
            "load_factor": routing.load_factor.unwrap_or(0.0),
            "granularity": match routing.granularity {
                Granularity::Session => "session",
                Granularity::Connection => "connection",
            },
            "aggregate_timeout": show_duration(routing.aggregate_timeout),
            "home_wait": show_duration(routing.home_wait),
        },
        "identity": identity_view(identity),
        "access": {
            "profile": identity.access.methods.profile.word(),
            "allow": words(&identity.access.methods.allow),
            "deny": words(&identity.access.methods.deny),
            "deny_params": words(&identity.access.methods.deny_params),
        },
        "sessions": {
            "create_existing": match sessions.create_existing {
                CreateExisting::Resume => "resume",
                CreateExisting::Pass => "pass",
                CreateExisting::Reject => "reject",
            },
            "detach_grace": show_duration(sessions.detach_grace.unwrap_or_default()),
            "max_open_per_user": limits.caps.sessions.unwrap_or(0),
            "turn_lock": match sessions.turns.rule {
                turnlock::Rule::Queue => "queue",
                turnlock::Rule::Reject => "reject",
                turnlock::Rule::Off => "off",
            },
            "turn_lock_timeout": show_duration(sessions.turns.timeout),
            "turn_lock_holder": match sessions.turns.unit {
                turnlock::Unit::Connection => "connection",
                turnlock::Unit::Send => "send",
            },
            "turn_max": show_duration(sessions.turns.max.unwrap_or_default()),
            "turn_stall": show_duration(sessions.turn_stall.unwrap_or_default()),
            "turn_stall_action": match sessions.turn_stall_action {
                StallAction::Log => "log",
                StallAction::End => "end",
            },
        },
        "health": {
            "interval": show_duration(health.interval),
            "timeout": show_duration(health.timeout),
            "unhealthy_after": health.unhealthy_after,
            "healthy_after": health.healthy_after,
            "slow_start": show_duration(health.slow_start),
            "max_ejected": health.max_ejected,
        },
        "failover": {
            "hang_timeout": show_duration(failover.hang_timeout.unwrap_or_default()),
            "fence_command": failover.fence_command,
            "fence_timeout": show_duration(failover.fence_timeout),
        },
        "drain": {
            "timeout": show_duration(drain.timeout),
            "accept_grace": show_duration(drain.accept_grace),
        },
        "upgrade": {
            "socket": upgrade.socket.path().map(|path| path.display().to_string()),
            "timeout": show_duration(upgrade.timeout),
        },
        "limits": {
            "frame": show_size(limits.frame as u64),
            "header": show_size(limits.header as u64),
            "cut_through_min": show_size(limits.cut_through_min as u64),
            "frame_timeout": show_duration(limits.frame_timeout),
            "calls_per_connection": limits.calls_per_connection,
            "sessions_per_connection": limits.sessions_per_connection,
            "connections": limits.connections,
            "unauthenticated_connections": limits.unauthenticated_connections,
            "unauthenticated_per_address": limits.unauthenticated_per_address.unwrap_or(0),
            "directory_sessions": limits.directory_sessions,
            "session_params": show_size(limits.session_params as u64),
            "connections_per_user": limits.caps.connections.unwrap_or(0),
            "turns_per_user": limits.caps.turns.unwrap_or(0),
            "calls_per_second": limits.caps.calls_per_second.unwrap_or(0),
            "bytes_per_second": show_size(limits.caps.bytes_per_second.unwrap_or(0)),
        },
        "log": {
            "level": log.level.as_str().to_ascii_lowercase(),
            "format": match log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
            "identities": match log.identities {
                Identities::Plain => "plain",
                Identities::Hash => "hash",
            },
        },
        "store": {
            "kind": if store.path.is_some() { "embedded" } else { "memory" },
            "path": store.path.as_ref().map(|path| path.display().to_string()),
            "expire": show_duration(store.expire.unwrap_or_default()),
        },
        "backends": backends.iter().map(backend).collect::<Vec<_>>(),
        "managed": managed.as_ref().map(|managed| json!({
            "command": managed.command,
            "servers": managed.servers,
            "state_dir": managed.state_dir.display().to_string(),
            "start_timeout": show_duration(managed.start_timeout),
        })),
    })
}

/// Who is in `tokens_file` is not shown: there may be thousands.
fn identity_view(identity: &Identity) -> Value {
    let Identity {
        access,
        principals,
        written,
        tokens_file,
        issuers,
        revoke_grace,
    } = identity;
    let share = |share: &Share| {
        json!({
            "pattern": share.pattern.as_str(),
            "groups": texts(&share.groups),
        })
    };
    json!({
        "session_id_user": access.session_id_user.as_ref().map(regex::Regex::as_str),
        "principals": principals.entries()[..*written].iter().map(entry).collect::<Vec<_>>(),
        "tokens_file": tokens_file.as_ref().map(|path| path.display().to_string()),
        "jwt": principals.issuers().zip(issuers).map(issuer).collect::<Vec<_>>(),
        "shared": access.shares.iter().map(share).collect::<Vec<_>>(),
        "adopt_by": access.adopt_by.as_deref(),
        "revoke_grace": show_duration(*revoke_grace),
    })
}

/// A principal and how it proves itself.
pub(super) fn entry(entry: &Entry) -> Value {
    let principal = &entry.principal;
    json!({
        "name": *principal.name,
        "role": role_name(principal.role),
        "realm": *principal.realm,
        "groups": texts(&principal.groups),
        "token": (!entry.tokens.is_empty())
            .then(|| vec!["[redacted]"; entry.tokens.len()]),
        "tls_name": texts(&entry.certificates),
        "allow": texts(&principal.allow),
        "deny": texts(&principal.deny),
        "connections": most(principal.caps.connections),
        "sessions": most(principal.caps.sessions),
        "turns": most(principal.caps.turns),
        "calls_per_second": most(principal.caps.calls_per_second),
        "bytes_per_second": principal.caps.bytes_per_second
            .map(|n| show_size(if n == u64::MAX { 0 } else { n })),
    })
}

/// A cap of a principal's own: zero where there is none, whatever others have.
fn most(cap: Option<u32>) -> Option<u32> {
    cap.map(|n| if n == u32::MAX { 0 } else { n })
}

fn texts(list: &[Arc<str>]) -> Vec<&str> {
    list.iter().map(AsRef::as_ref).collect()
}

fn issuer((issuer, files): (&Issuer, &IssuerFiles)) -> Value {
    let rules = &issuer.rules;
    json!({
        "name": *rules.name,
        "issuer": rules.issuer,
        "audience": rules.audiences,
        "key_file": files.keys,
        "jwks_file": files.key_set,
        "secret": files.has_secret.then_some("[redacted]"),
        "user_claim": rules.user_claim,
        "groups_claim": rules.groups_claim,
        "realm": *rules.realm,
        "realm_claim": rules.realm_claim,
        "role": role_name(rules.role),
        "leeway": show_duration(rules.leeway),
        "allow": texts(&rules.allow),
        "deny": texts(&rules.deny),
    })
}

/// One section of [`redacted`], or none.
pub(super) fn section<'a>(view: &'a Value, name: &str) -> Option<&'a Map<String, Value>> {
    let place = name.split('.').try_fold(view, |view, part| view.get(part));
    place.and_then(Value::as_object)
}

/// As written in the file.
pub(super) fn state(state: AdminState) -> &'static str {
    match state {
        AdminState::Ready => "ready",
        AdminState::Drain => "drain",
        AdminState::Maint => "maint",
    }
}

fn backend(backend: &Backend) -> Value {
    json!({
        "name": backend.name.as_str(),
        "address": *backend.address,
        "weight": backend.weight,
        "state": state(backend.state),
        "connection_token": secret(backend.connection_token.as_ref()),
        "proxy_protocol": match backend.proxy_protocol {
            None => "off",
            Some(Version::V1) => "v1",
            Some(Version::V2) => "v2",
        },
        "tls": backend.tls.as_ref().map(|tls| json!({
            "ca": path(tls.ca.as_ref()),
            "server_name": tls.server_name,
            "cert": path(tls.cert.as_ref()),
            "key": path(tls.key.as_ref()),
        })),
    })
}

/// Files by name; what they hold is nobody's business.
fn listener_tls(tls: &ListenerTls) -> Value {
    json!({
        "cert": path(Some(&tls.cert)),
        "key": path(Some(&tls.key)),
        "client_ca": path(tls.client_ca.as_ref()),
        "client_auth": match tls.client_auth {
            ClientAuth::None => "none",
            ClientAuth::Optional => "optional",
            ClientAuth::Required => "required",
        },
    })
}

fn path(path: Option<&PathBuf>) -> Option<String> {
    path.map(|path| path.display().to_string())
}

fn secret(secret: Option<&Secret>) -> Option<&'static str> {
    secret.map(|_| "[redacted]")
}

fn words(list: &[Arc<str>]) -> Vec<&str> {
    list.iter().map(|word| &**word).collect()
}
