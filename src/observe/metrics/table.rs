//! Every metric that `/metrics` shows: one row each, and the reference page made from the rows.
//!
//! Must not hold values: [`super::Metrics`] makes its series from these rows, so that no metric
//! exists without one.

use std::fmt::Write;

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Kind {
    /// As Prometheus writes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Full name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Label names, in order.
    pub labels: &'static [&'static str],
    /// One sentence for people.
    pub help: &'static str,
}

macro_rules! table {
    ($($row:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(pub(in crate::observe) const $row: Metric = Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)+

        /// Every metric of Taxiway's own, in the order of the reference page.
        pub const TABLE: &[Metric] = &[$($row),+];
    };
}

table! {
    BUILD_INFO: Gauge "taxiway_build_info" ["version"]
        "Always 1; the version of this Taxiway.";
    DOWNSTREAM_CONNECTIONS: Gauge "taxiway_downstream_connections" []
        "Client connections that are open.";
    CONNECTIONS_NOT_ADMITTED: Counter "taxiway_connections_not_admitted_total" ["reason"]
        "Client connections closed before their first frame or, where clients have to, before they \
         proved who they are: allow_from, proxy_protocol_from (not from where the configuration \
         allows), proxy_header, plain_on_tls, tls_on_plain (the wrong protocol), certificate, tls \
         (the handshake failed), timeout, evicted (made room for others), refused (what they sent \
         was no good), left.";
    TLS_NOT_AFTER: Gauge "taxiway_tls_certificate_not_after_timestamp_seconds" ["cert"]
        "When a certificate that Taxiway shows expires, in Unix time: that of the listener, and \
         those for backends. With a chain, the end of the first that expires.";
    UPSTREAM_CONNECTIONS: Gauge "taxiway_upstream_connections" ["backend"]
        "Connections to a backend that serve clients; its control connection is not counted.";
    SESSIONS_OPEN: Gauge "taxiway_sessions_open" ["backend"]
        "Sessions that are open on a backend.";
    TURNS_OPEN: Gauge "taxiway_turns_open" ["backend"]
        "Turns that are running on a backend.";
    TURNS_SILENT: Gauge "taxiway_turns_silent" ["backend"]
        "Running turns without an event for sessions.turn_stall; looked at once in that time.";
    TURNS: Counter "taxiway_turns_total" ["backend", "outcome"]
        "Turns that ended, by outcome: ok, error, aborted, lost, stalled.";
    TURN_DURATION: Histogram "taxiway_turn_duration_seconds" []
        "From forwarding a turn's send to the turn's end.";
    TURN_FIRST_EVENT: Histogram "taxiway_turn_first_event_seconds" []
        "From forwarding a turn's send to its first event; turns without an event are left out.";
    BACKEND_INFO: Gauge "taxiway_backend_info" ["backend", "version", "protocol_version"]
        "Always 1; what a backend said of itself when it was connected to.";
    BACKEND_UP: Gauge "taxiway_backend_up" ["backend"]
        "1 while a backend answers probes, however late; 0 while it is down or not probed yet.";
    BACKEND_STATE: Gauge "taxiway_backend_state" ["backend", "state"]
        "1 for the operator's state in force (ready, drain, maint) and for the observed one \
         (unknown, up, slow, down, probation, storage_mismatch), 0 for the others.";
    BACKEND_PING: Gauge "taxiway_backend_ping_ewma_seconds" ["backend"]
        "Moving average of a backend's answer time to ping.";
    BACKEND_EJECTIONS: Counter "taxiway_backend_ejections_total" ["backend", "reason"]
        "Times a backend was taken out of placement by observation.";
    BACKEND_SESSIONS_OPENED: Counter "taxiway_backend_sessions_opened_total" ["backend"]
        "Sessions created or resumed on a backend.";
    FAILOVERS: Counter "taxiway_failovers_total" ["result"]
        "What became of silent backends: fenced, unfenced (given up without a fence command), \
         fence_failed; and of sessions that lost their backend: reopened, recreated, failed; moved = \
         taken elsewhere on purpose.";
    SESSIONS_PARKED: Gauge "taxiway_sessions_parked" []
        "Sessions whose turn goes on although their client's connection has broken.";
    TAKEOVERS: Counter "taxiway_takeovers_total" ["result"]
        "What became of them: taken_over (by a new connection of the client), expired (nobody came \
         within sessions.detach_grace), ended (the turn ended first, or its backend was lost).";
    POOL_PANIC: Gauge "taxiway_pool_panic" []
        "1 while more backends are unhealthy than health.max_ejected allows to eject.";
    FRAMES: Counter "taxiway_frames_total" ["direction", "kind"]
        "Frames read: request, notification, response, error, invalid.";
    BYTES: Counter "taxiway_bytes_total" ["direction"]
        "Bytes relayed, headers included.";
    CALLS: Counter "taxiway_calls_total" ["class", "outcome"]
        "Calls of clients that ended, by routing class and outcome: ok, backend_error, \
         proxy_error, abandoned.";
    CALL_DURATION: Histogram "taxiway_call_duration_seconds" ["class"]
        "From reading a client's call to writing its answer, by routing class.";
    PLACEMENTS: Counter "taxiway_placements_total" ["backend", "reason"]
        "Sessions put on a backend, by reason: hash, bounded, least_loaded, owner, home, \
         round_robin, two_choices.";
    SESSION_NOT_FOUND: Counter "taxiway_session_not_found_total" ["reason"]
        "Calls that found no session, by the true reason, whatever the client was told: unknown, \
         denied (its client may not see it), deleted, closed_by_backend, owner_away, home_away, \
         no_answer, disk_unread, unreachable, unconfirmed, no_backend.";
    FRAMES_WITHHELD: Counter "taxiway_frames_withheld_total" ["reason"]
        "Frames of backends kept from a client that may not hear them: not_attached (about a \
         session that the client is not attached to), no_session (of a kind that may be about any \
         session, and names none).";
    FRAMES_CUT: Counter "taxiway_cut_frames_total" []
        "Client connections closed in the middle of a large message of a backend, of which they had \
         the beginning: that one's connection ended there, or Taxiway's own time was over.";
    BUFFERED: Gauge "taxiway_buffered_bytes" []
        "What waits in memory for a client or a backend to take it, and what has come of large \
         messages that are held until they are complete.";
    SESSION_CREATE_EXISTING: Counter "taxiway_session_create_existing_total" ["action"]
        "session.create calls on the id of a closed session that has a history, by what was done.";
    SESSIONS_STRANDED: Gauge "taxiway_sessions_stranded" []
        "Sessions known to be on the disk of a backend that is no longer in the pool.";
    TURN_LOCK_WAIT: Histogram "taxiway_turn_lock_wait_seconds" []
        "How long sends waited for somebody else's turn in their session to end; those that did not \
         have to are not counted.";
    QUEUE_LENGTH: Gauge "taxiway_queue_length" ["queue"]
        "What waits: turn_lock (connections that wait for their turn in a session).";
    LIMIT: Gauge "taxiway_limit" ["limit"]
        "A configured limit, by its key.";
    LIMIT_USAGE: Gauge "taxiway_limit_usage" ["limit"]
        "How much of a limit is in use.";
    LIMIT_HITS: Counter "taxiway_limit_hits_total" ["limit"]
        "Times something was refused or closed because of a limit.";
    ERRORS: Counter "taxiway_errors_total" ["code"]
        "Errors made by Taxiway and sent to clients, by JSON-RPC code.";
    AUTH_FAILURES: Counter "taxiway_auth_failures_total" ["reason"]
        "Clients that did not prove who they are, by reason: missing, wrong_token, too_long, \
         malformed, unsigned, wrong_algorithm, bad_signature, expired, not_yet_valid, \
         wrong_audience, wrong_issuer, no_user, other_principal, certificate, too_many (of one \
         address at a time).";
    ACCESS_DENIED: Counter "taxiway_access_denied_total" ["reason"]
        "Calls refused by policy: method (not allowed through this proxy), unknown_method (in no \
         table, with access.profile = \"multi-tenant\"), other_user, other_realm (the session is \
         somebody else's), unowned (nobody knows whose it is), id_of_other (a new session under an \
         id that names somebody else), request_of_other (the answer to a request that the session \
         has not made).";
    STORE_UP: Gauge "taxiway_store_up" []
        "1 while what is to be kept is written to disk; 0 while that fails and Taxiway goes on in \
         memory. Always 1 with store.kind = \"memory\".";
    STORE_ERRORS: Counter "taxiway_store_errors_total" ["op"]
        "Failures of the store: open, write, stall (the disk took nothing for 5 s).";
    STORE_UNWRITTEN: Gauge "taxiway_store_unwritten_sessions" []
        "Sessions whose latest change is not on disk yet.";
    RELOADS: Counter "taxiway_config_reloads_total" ["result"]
        "Reloads of the configuration: success, failure.";
    RELOAD_SUCCESSFUL: Gauge "taxiway_config_last_reload_successful" []
        "1 if the last reload (or the start) succeeded, 0 if the file is refused.";
    RELOAD_TIMESTAMP: Gauge "taxiway_config_last_reload_success_timestamp_seconds" []
        "When the configuration in force was taken over, in Unix time.";
    UPGRADES: Counter "taxiway_upgrades_total" ["result"]
        "Upgrades this process had part in: offered, failed, taken_over (as the new process), \
         retired (as the old one).";
    UPGRADE_PEERS: Gauge "taxiway_upgrade_peers" []
        "Older processes that still serve clients and share this one's owner table.";
    LOG_LINES_DROPPED: Counter "taxiway_log_lines_dropped_total" []
        "Log lines lost because standard error took them too slowly, or not at all.";
}

/// What the `prometheus` crate tells of the process itself; Linux only.
pub const PROCESS: &[Metric] = &[
    process(
        "process_cpu_seconds_total",
        Kind::Counter,
        "User and system CPU time spent.",
    ),
    process(
        "process_max_fds",
        Kind::Gauge,
        "How many file descriptors may be open.",
    ),
    process(
        "process_open_fds",
        Kind::Gauge,
        "How many file descriptors are open.",
    ),
    process(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Memory that is resident.",
    ),
    process(
        "process_start_time_seconds",
        Kind::Gauge,
        "When the process started, in Unix time.",
    ),
    process(
        "process_threads",
        Kind::Gauge,
        "Threads of the operating system.",
    ),
    process(
        "process_virtual_memory_bytes",
        Kind::Gauge,
        "Size of the address space.",
    ),
];

const fn process(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        labels: &[],
        help,
    }
}

/// The text of `docs/metrics.md`.
pub fn reference() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Made from src/observe/metrics/table.rs: UPDATE_DOCS=1 cargo test --lib observe -->\n\n\
         `GET /metrics` on the admin address, in Prometheus' text format. Units are base units. \
         No label ever holds a user or a session. The series of a backend vanish when it leaves \
         the pool.\n\n\
         | Metric | Type | Labels | Meaning |\n|---|---|---|---|\n",
    );
    for metric in TABLE.iter().chain(PROCESS) {
        let labels: Vec<String> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        let (name, kind, labels, help) = (
            metric.name,
            metric.kind.name(),
            labels.join(", "),
            metric.help,
        );
        writeln!(page, "| `{name}` | {kind} | {labels} | {help} |")
            .expect("writing to a String cannot fail");
    }
    page
}
