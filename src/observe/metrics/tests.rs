//! Every metric against the table that documents it, and the alert rules against both.

use std::{collections::BTreeSet, env, fs, path::Path};

use super::*;
use crate::{
    core::{
        event::{Identities, PlacementReason, TurnOutcome},
        snapshot::{AdminState, Health},
    },
    observe::Observer,
};

/// Moves everything there is at least once.
fn everything(metrics: &Metrics) {
    metrics.not_admitted(NotAdmitted::Certificate);
    metrics.set_certificates(&[("gone".to_owned(), 1)]);
    metrics.set_certificates(&[("listener".to_owned(), 4_102_444_800)]);
    metrics.add_frames(Direction::ClientToBackend, FrameKind::Request, 3);
    metrics.add_bytes(Direction::BackendToClient, 512);
    metrics.downstream_opened();
    metrics.downstream_opened();
    metrics.downstream_closed();
    metrics.call("session", CallOutcome::Ok, Duration::from_millis(3));
    metrics.error(-32010);
    metrics.access_denied("method");
    metrics.auth_failure("wrong_token");
    metrics.set_limit("limits.connections", 100.0);
    metrics.turn_waited(Duration::from_secs(3));
    metrics.set_queue_length("turn_lock", 2);
    metrics.set_limit_usage("limits.connections", 7.0);
    metrics.limit_hit("limits.connections");
    metrics.session_not_found("unknown");
    metrics.frame_withheld("no_session");
    metrics.frame_cut();
    metrics.buffered(4096);
    metrics.session_create_existing("resume");
    metrics.sessions_stranded(5);
    metrics.pool_panic(true);
    metrics.failover("reopened");
    metrics.store_failed("write");
    metrics.store_unwritten(3);
    metrics.session_parked();
    metrics.parked_ended("expired");
    metrics.reload(true, 1_700_000_000.0);
    metrics.adopt_log_counter(&loose_counter(&table::LOG_LINES_DROPPED));
    let backend = metrics.backend(&BackendName::from("cli-1"));
    backend.upstream_opened();
    backend.upstream_opened();
    backend.upstream_closed();
    backend.set_sessions_open(12);
    backend.set_turns_open(2);
    backend.turn_ended(
        TurnOutcome::Ok,
        Duration::from_secs(2),
        Some(Duration::from_millis(400)),
    );
    backend.turn_ended(TurnOutcome::Lost, Duration::from_secs(9), None);
    backend.session_opened();
    backend.placement(PlacementReason::Hash);
    backend.ejected("timeout");
    backend.set_health(Health::Slow);
    backend.set_admin(AdminState::Drain);
    backend.set_ping_ewma(Duration::from_micros(1500));
    backend.set_version(Some("1.0.102"), Some(3));
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
}

#[test]
fn every_number_shows_where_it_belongs() {
    let metrics = Metrics::new();
    everything(&metrics);
    let text = metrics.render();
    for line in [
        concat!(
            "taxiway_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ),
        "taxiway_frames_total{direction=\"client_to_backend\",kind=\"request\"} 3",
        "taxiway_frames_total{direction=\"backend_to_client\",kind=\"invalid\"} 0",
        "taxiway_bytes_total{direction=\"backend_to_client\"} 512",
        "taxiway_downstream_connections 1",
        "taxiway_connections_not_admitted_total{reason=\"certificate\"} 1",
        "taxiway_auth_failures_total{reason=\"certificate\"} 1",
        "taxiway_tls_certificate_not_after_timestamp_seconds{cert=\"listener\"} 4102444800",
        "taxiway_calls_total{class=\"session\",outcome=\"ok\"} 1",
        "taxiway_calls_total{class=\"session\",outcome=\"proxy_error\"} 0",
        "taxiway_call_duration_seconds_bucket{class=\"session\",le=\"0.0025\"} 0",
        "taxiway_call_duration_seconds_bucket{class=\"session\",le=\"0.005\"} 1",
        "taxiway_errors_total{code=\"-32010\"} 1",
        "taxiway_limit{limit=\"limits.connections\"} 100",
        "taxiway_limit_usage{limit=\"limits.connections\"} 7",
        "taxiway_limit_hits_total{limit=\"limits.connections\"} 1",
        "taxiway_session_not_found_total{reason=\"unknown\"} 1",
        "taxiway_session_create_existing_total{action=\"resume\"} 1",
        "taxiway_sessions_stranded 5",
        "taxiway_pool_panic 1",
        "taxiway_store_up 0",
        "taxiway_store_errors_total{op=\"write\"} 1",
        "taxiway_store_unwritten_sessions 3",
        "taxiway_config_reloads_total{result=\"success\"} 1",
        "taxiway_config_reloads_total{result=\"failure\"} 0",
        "taxiway_config_last_reload_successful 1",
        "taxiway_config_last_reload_success_timestamp_seconds 1700000000",
        "taxiway_upstream_connections{backend=\"cli-1\"} 1",
        "taxiway_sessions_open{backend=\"cli-1\"} 12",
        "taxiway_turns_open{backend=\"cli-1\"} 2",
        "taxiway_turns_total{backend=\"cli-1\",outcome=\"ok\"} 1",
        "taxiway_turns_total{backend=\"cli-1\",outcome=\"lost\"} 1",
        "taxiway_turns_total{backend=\"cli-1\",outcome=\"aborted\"} 0",
        "taxiway_turn_duration_seconds_bucket{le=\"2.5\"} 1",
        "taxiway_turn_duration_seconds_sum 11",
        "taxiway_turn_duration_seconds_count 2",
        "taxiway_turn_first_event_seconds_count 1",
        "taxiway_backend_sessions_opened_total{backend=\"cli-1\"} 1",
        "taxiway_placements_total{backend=\"cli-1\",reason=\"hash\"} 1",
        "taxiway_backend_ejections_total{backend=\"cli-1\",reason=\"timeout\"} 1",
        "taxiway_backend_up{backend=\"cli-1\"} 1",
        "taxiway_backend_state{backend=\"cli-1\",state=\"slow\"} 1",
        "taxiway_backend_state{backend=\"cli-1\",state=\"up\"} 0",
        "taxiway_backend_state{backend=\"cli-1\",state=\"drain\"} 1",
        "taxiway_backend_state{backend=\"cli-1\",state=\"ready\"} 0",
        "taxiway_backend_ping_ewma_seconds{backend=\"cli-1\"} 0.0015",
        "taxiway_backend_info{backend=\"cli-1\",protocol_version=\"3\",version=\"1.0.102\"} 1",
    ] {
        has(&text, line);
    }
}

#[test]
fn what_is_rendered_and_the_table_are_the_same() {
    let metrics = Metrics::new();
    everything(&metrics);
    let rendered: BTreeSet<(String, String)> = metrics
        .render()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    let process: &[Metric] = if cfg!(target_os = "linux") {
        table::PROCESS
    } else {
        &[]
    };
    let told = table::TABLE
        .iter()
        .chain(process)
        .map(|metric| (metric.name.to_owned(), metric.kind.name().to_owned()))
        .collect();
    assert_eq!(rendered, told);
    // Label names: each sample has those of its row, `le` aside.
    for line in metrics.render().lines().filter(|l| !l.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let stem = |suffix| name.strip_suffix(suffix).unwrap_or(name);
        let row = table::TABLE.iter().chain(table::PROCESS).find(|metric| {
            [name, stem("_bucket"), stem("_sum"), stem("_count")].contains(&metric.name)
        });
        let row = row.unwrap_or_else(|| panic!("{line} has no row"));
        let labels: BTreeSet<&str> = line
            .split_once('{')
            .map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0)
            .split(',')
            .filter_map(|pair| pair.split_once('=').map(|(label, _)| label))
            .filter(|label| *label != "le")
            .collect();
        assert_eq!(labels, row.labels.iter().copied().collect(), "{line}");
    }
}

#[test]
fn nothing_of_a_forgotten_backend_remains_or_returns() {
    let metrics = Metrics::new();
    everything(&metrics);
    let name = BackendName::from("cli-1");
    let held = metrics.backend(&name);
    metrics.forget_backend(&name);
    held.upstream_opened();
    held.turn_ended(TurnOutcome::Ok, Duration::from_secs(1), None);
    held.ejected("again");
    held.set_version(Some("2"), Some(4));
    held.set_health(Health::Up);
    let text = metrics.render();
    assert!(!text.contains("cli-1"), "{text}");
    // One that comes back starts anew.
    metrics.backend(&name).placement(PlacementReason::Home);
    let text = metrics.render();
    has(
        &text,
        "taxiway_placements_total{backend=\"cli-1\",reason=\"home\"} 1",
    );
    has(
        &text,
        "taxiway_placements_total{backend=\"cli-1\",reason=\"hash\"} 0",
    );
    has(
        &text,
        "taxiway_turns_total{backend=\"cli-1\",outcome=\"ok\"} 0",
    );
}

#[test]
fn labels_from_outside_stay_few() {
    let metrics = Metrics::new();
    let backend = metrics.backend(&BackendName::from("b"));
    for i in 0..500 {
        metrics.error(i);
        backend.ejected(&format!("reason {i}"));
        backend.set_version(Some(&i.to_string()), Some(i as u32));
    }
    let text = metrics.render();
    let count = |start: &str| text.lines().filter(|l| l.starts_with(start)).count();
    assert_eq!(count("taxiway_errors_total{"), series::MOST + 1);
    assert_eq!(count("taxiway_backend_ejections_total{"), 17);
    assert_eq!(count("taxiway_backend_info{"), 1);
    has(
        &text,
        "taxiway_backend_info{backend=\"b\",protocol_version=\"499\",version=\"499\"} 1",
    );
    metrics.forget_backend(&BackendName::from("b"));
    assert!(!metrics.render().contains("backend=\"b\""));
}

#[test]
fn only_backends_that_are_kept_or_serve_clients_have_series() {
    let metrics = Metrics::new();
    let [kept, serving, gone] = ["kept", "serving", "gone"].map(BackendName::from);
    for name in [&kept, &serving, &gone] {
        metrics.backend(name).ejected("silent");
    }
    metrics.backend(&serving).upstream_opened();
    metrics.retain_backends(|name| *name == kept);
    let text = metrics.render();
    assert!(text.contains("\"kept\"") && text.contains("\"serving\""));
    assert!(!text.contains("\"gone\""), "{text}");
    metrics.backend(&serving).upstream_closed();
    metrics.retain_backends(|name| *name == kept);
    assert!(!metrics.render().contains("\"serving\""));
}

#[test]
fn a_refused_reload_keeps_the_time_of_the_last_good_one() {
    let metrics = Metrics::new();
    has(&metrics.render(), "taxiway_config_last_reload_successful 1");
    metrics.reload(true, 5.0);
    metrics.reload(false, 9.0);
    let text = metrics.render();
    has(&text, "taxiway_config_last_reload_successful 0");
    has(
        &text,
        "taxiway_config_last_reload_success_timestamp_seconds 5",
    );
    has(&text, "taxiway_config_reloads_total{result=\"failure\"} 1");
}

#[test]
fn two_observers_share_nothing() {
    let (one, two) = (
        Observer::new(Identities::Plain),
        Observer::new(Identities::Plain),
    );
    one.metrics().downstream_opened();
    has(
        &one.clone().metrics().render(),
        "taxiway_downstream_connections 1",
    );
    has(&two.metrics().render(), "taxiway_downstream_connections 0");
}

/// `UPDATE_DOCS=1` writes the page instead.
#[test]
fn the_reference_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = table::reference();
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        page,
        "run with UPDATE_DOCS=1"
    );
}

#[test]
fn alerts_ask_only_for_metrics_that_exist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/prometheus/alerts.yml");
    let rules = fs::read_to_string(path).unwrap();
    let names = regex::Regex::new(r"\b(?:taxiway|process)_[a-z_]+").unwrap();
    let mut seen = 0;
    for name in names.find_iter(&rules).map(|m| m.as_str()) {
        let stem = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        let known = |metric: &Metric| metric.name == name || metric.name == stem;
        assert!(
            table::TABLE.iter().chain(table::PROCESS).any(known),
            "{name}"
        );
        seen += 1;
    }
    assert!(seen > 5, "the rules name too few metrics to be them");
}
