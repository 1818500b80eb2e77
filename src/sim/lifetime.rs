//! How sessions get on disk and how they, and the server, end.

use std::sync::Arc;

use super::{
    event::{Life, now},
    server::Shared,
    session::{Session, TurnState},
    state::State,
};

/// How a session closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    /// Its last connection detached: the end is announced.
    Announced,
    /// `sessions.close`, the end of the last connection, SIGTERM: only the log tells.
    Silent,
    /// Deleted: nothing is written.
    Deleted,
}

/// Closes a session that is open here.
pub(super) fn close(shared: &Arc<Shared>, state: &mut State, id: &str, how: Closing) {
    let Some(session) = state.sessions.get_mut(id) else {
        return;
    };
    if let Some(busy) = &session.busy {
        busy.cancel.cancel();
    }
    let data = shutdown_data(session);
    match how {
        Closing::Deleted => {}
        Closing::Announced => {
            shared.emit(state, id, "session.shutdown", &data, Life::Kept);
        }
        Closing::Silent => {
            session.attached.clear();
            let (event, time) = (shared.numbers.uuid(), now());
            let parent = session.last_event.as_deref();
            let kind = "session.shutdown";
            let text = super::event::event(kind, &data, Life::Kept, &event, &time, parent);
            session.history.push_back(text);
            session.unflushed += 1;
        }
    }
    if how != Closing::Deleted {
        flush(shared, state, id);
    }
    shared
        .options
        .home
        .with(id, |record| record.holders.remove(&shared.process));
    let Some(session) = state.sessions.remove(id) else {
        return;
    };
    state.tool_calls.retain(|_, wait| wait.session != id);
    for waiter in session.waiters {
        let text = format!("Session not found for sessionId: {id}");
        state.refuse(&waiter.call, &text);
    }
}

fn shutdown_data(session: &Session) -> String {
    let users = session
        .history
        .iter()
        .filter(|event| event.contains("\"user.message\""))
        .count();
    format!(
        r#"{{"accountingSnapshot":{{"totalPremiumRequestCost":0.0,"totalUserRequests":{users},"totalNanoAiu":0.0,"aiCreditsStatus":"unavailable","totalApiDurationMs":0,"sessionStartTime":"{}"}},"currentModel":{}}}"#,
        session.start_time,
        super::event::quoted(session.model.as_deref().unwrap_or_default()),
    )
}

/// Writes what is in memory only. A session without a turn has no log.
pub(super) fn flush(shared: &Shared, state: &mut State, id: &str) {
    let Some(session) = state.sessions.get_mut(id) else {
        return;
    };
    session.flush_due = false;
    if !session.has_turn || session.unflushed == 0 {
        return;
    }
    let start = session.history.len() - session.unflushed;
    shared
        .options
        .home
        .append(id, session.history.iter().skip(start).cloned());
    session.unflushed = 0;
    shared.options.home.with(id, |record| {
        record.modified.clone_from(&session.modified);
        record.mode.clone_from(&session.mode);
        record.model.clone_from(&session.model);
        record.name.clone_from(&session.name);
        record.metadata.clone_from(&session.metadata);
        if record.summary.is_empty() {
            record.summary = session.summary.clone().unwrap_or_default();
        }
    });
}

/// Has the session flushed after the configured delay.
pub(super) fn flush_later(shared: &Arc<Shared>, state: &mut State, id: &str) {
    let Some(session) = state.sessions.get_mut(id) else {
        return;
    };
    if session.flush_due || !session.has_turn {
        return;
    }
    session.flush_due = true;
    let (shared_then, id, epoch) = (shared.clone(), id.to_owned(), session.epoch);
    let delay = shared.options.flush_after;
    shared.tasks.spawn(async move {
        let flushes = async {
            tokio::time::sleep(delay).await;
            shared_then.awake().await;
        };
        if shared_then
            .stopped
            .run_until_cancelled(flushes)
            .await
            .is_none()
        {
            return;
        }
        let mut state = shared_then.lock();
        if state
            .sessions
            .get(&id)
            .is_some_and(|session| session.epoch == epoch)
        {
            flush(&shared_then, &mut state, &id);
        }
    });
}

/// A connection has ended: whatever only it held is closed, without grace.
pub(super) fn leave(shared: &Arc<Shared>, connection: u64) {
    let mut state = shared.lock();
    // Dropping what the peer was asked wakes the turns that wait for its hooks.
    if state.peers.remove(&connection).is_none() {
        return;
    }
    let ids: Vec<_> = state.sessions.keys().cloned().collect();
    for id in ids {
        let Some(session) = state.sessions.get_mut(&id) else {
            continue;
        };
        session
            .waiters
            .retain(|waiter| waiter.call.connection != connection);
        if session.detach(connection) && session.attached.is_empty() {
            close(shared, &mut state, &id, Closing::Silent);
        }
    }
}

/// SIGTERM: the logs are completed, connections end.
pub(super) fn terminate(shared: &Arc<Shared>) {
    let mut state = shared.lock();
    if shared.stopped.is_cancelled() {
        return;
    }
    let ids: Vec<_> = state.sessions.keys().cloned().collect();
    for peer in state.peers.values() {
        peer.outbox.finish();
    }
    for id in ids {
        close(shared, &mut state, &id, Closing::Silent);
    }
    shared.options.home.release_all(shared.process);
    shared.stopped.cancel();
}

/// SIGKILL: connections are reset; open sessions keep only what is on disk.
pub(super) fn kill(shared: &Arc<Shared>) {
    let mut state = shared.lock();
    if shared.stopped.is_cancelled() {
        return;
    }
    for peer in state.peers.values() {
        peer.outbox.abandon();
    }
    for session in state.sessions.values_mut() {
        if let Some(busy) = &mut session.busy {
            busy.state = TurnState::Aborted;
            busy.cancel.cancel();
        }
    }
    state.sessions.clear();
    state.tool_calls.clear();
    shared.options.home.release_all(shared.process);
    shared.stopped.cancel();
}
