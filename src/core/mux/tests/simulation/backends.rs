//! The shell and the backends of the simulation: late, out of order, mad, or gone.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::{Act, Conn, NAMES, World, token};
use crate::core::mux::{
    Locate, Output, SlotId,
    tests::rig::{event, failure, framed, not_found, result},
};

impl World {
    // The shell.

    pub(super) fn locate(&mut self, question: &Locate) {
        if self.chance.percent(4) {
            self.rig.refuse_locate(question);
            return;
        }
        let session = question.session.as_ref().map(ToString::to_string);
        // An owner keeps its session; otherwise anywhere, but not where nobody answers.
        let owner = session
            .as_ref()
            .and_then(|s| self.rig.claims.get(s))
            .cloned();
        let at = usize::try_from(self.chance.below(3)).unwrap();
        let choice = owner
            .into_iter()
            .chain((0..3).map(|n| NAMES[(at + n) % 3].to_owned()));
        let avoided = |name: &String| question.avoid.iter().all(|avoid| avoid.as_str() != name);
        match choice.into_iter().find(avoided) {
            Some(backend) => {
                self.note(|| format!("located {question:?} at {backend}"));
                self.rig.locate(question, &backend);
            }
            None => self.rig.refuse_locate(question),
        }
    }

    pub(super) fn connect(&mut self, slot: SlotId, name: &str) {
        if self.rig.mux.backend_of(slot).is_none() {
            return;
        }
        match self.chance.below(20) {
            0 | 1 => {
                self.note(|| format!("{name} refuses"));
                self.rig.step(&[], |mux, cx, out| {
                    mux.handle_upstream_closed(cx, slot, "refused", out);
                    0
                });
            }
            kind => {
                self.rig.accept(slot, name);
                self.next_conn += 1;
                let conn = self.next_conn;
                self.note(|| format!("{name} accepts as {conn}"));
                let state = Conn {
                    name: name.to_owned(),
                    ..Conn::default()
                };
                self.conns.insert(conn, (slot, state));
                // Or it stays mute, until the deadline.
                if kind > 2 {
                    self.write(conn, &result(0, json!({"ok": true})));
                }
                if self.chance.percent(25) {
                    let delay = self.delay();
                    self.plan(delay, Act::Crash(conn));
                }
            }
        }
    }

    // Backends.

    /// Takes note of everything that came out of the machine.
    pub(super) fn collect(&mut self) {
        let live: Vec<SlotId> = self.rig.sockets.values().map(|(slot, _)| *slot).collect();
        self.conns.retain(|_, (slot, _)| live.contains(slot));
        for question in std::mem::take(&mut self.rig.locates) {
            let delay = self.delay();
            self.plan(delay, Act::Locate(question));
        }
        for call in std::mem::take(&mut self.rig.serves) {
            let delay = self.delay();
            self.plan(delay, Act::Serve(call.ticket));
        }
        for (slot, name) in std::mem::take(&mut self.rig.connects) {
            let delay = self.delay();
            self.plan(delay, Act::Connect(slot, name));
        }
        let inboxes: Vec<(u64, Vec<String>)> = self
            .conns
            .iter()
            .map(|(conn, (slot, _))| {
                let (_, socket) = self.rig.sockets.get_mut(&slot.index()).unwrap();
                (*conn, std::mem::take(&mut socket.inbox))
            })
            .collect();
        for (conn, frames) in inboxes {
            for body in frames {
                self.arrives(conn, &body);
            }
        }
        for body in self.rig.said_raw() {
            self.client_reads(&body);
        }
        for output in std::mem::take(&mut self.rig.log) {
            match output {
                Output::TurnBegan(session) => {
                    let open = self.turns.entry(session.to_string()).or_default();
                    *open += 1;
                    assert_eq!(*open, 1, "{}: a turn in a turn", self.seed);
                }
                Output::TurnEnded(record, _) => {
                    let open = self.turns.entry(record.session.to_string()).or_default();
                    *open -= 1;
                    assert_eq!(*open, 0, "{}: an end without a beginning", self.seed);
                }
                _ => {}
            }
        }
    }

    pub(super) fn arrives(&mut self, conn: u64, body: &str) {
        self.note(|| format!("  {conn} gets {body}"));
        let frame: Value = serde_json::from_str(body).unwrap();
        let id = frame["id"].clone();
        if frame.get("method").is_none() {
            // The client's answer, under the id of this backend's own request, once.
            let (_, state) = self.conns.get_mut(&conn).unwrap();
            assert!(
                state.asked.remove(&id.as_i64().unwrap()),
                "an answer to nobody: {body}"
            );
            return;
        }
        if id.is_null() {
            return;
        }
        let id = token(&id);
        if self.taken.get(&id).is_some_and(|at| *at != conn)
            && frame["method"] != json!("session.create")
        {
            // The id may be free again; but an unanswered call is never repeated.
            assert!(self.due.get(&id).is_some_and(|n| *n > 0), "{body}");
        }
        self.taken.insert(id.clone(), conn);
        let send = frame["method"] == json!("session.send");
        if let Some(written) = self.written.get(&id).filter(|_| send) {
            let session = frame["params"]["sessionId"].as_str().unwrap().to_owned();
            let last = self.last_send.insert(session, *written);
            assert!(
                last.is_none_or(|last| last < *written),
                "sends out of order: {body}"
            );
        }
        let delay = self.delay();
        self.plan(delay, Act::Finish(conn, frame));
    }

    pub(super) fn finish(&mut self, conn: u64, frame: &Value) {
        let Some((_, state)) = self.conns.get_mut(&conn) else {
            return;
        };
        let id = frame["id"].clone();
        let method = frame["method"].as_str().unwrap();
        let session = frame["params"]["sessionId"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let roll = self.chance.below(100);
        let by = json!({"by": conn, "sessionId": session, "success": true});
        let body = match method {
            _ if roll < 3 => failure(id, "no"),
            "session.create" | "session.resume" => {
                let chosen = if session.is_empty() {
                    format!("made-{conn}-{id}")
                } else {
                    session
                };
                let chosen = chosen.replace('"', "");
                if method == "session.resume" && roll < 20 {
                    not_found(id, method, &chosen)
                } else {
                    state.attached.insert(chosen.clone());
                    if self.chance.percent(30) {
                        let delay = self.delay();
                        self.plan(delay, Act::Ask(conn, chosen.clone()));
                    }
                    if self.chance.percent(20) {
                        self.rig.history.insert(chosen.clone());
                    }
                    result(id, json!({"by": conn, "sessionId": chosen}))
                }
            }
            "session.send" if !state.attached.contains(&session) => not_found(id, method, &session),
            "session.send" => {
                let message = format!("m{}", token(&id).replace('"', ""));
                let steps = [
                    "user.message",
                    "assistant.turn_start",
                    "assistant.message_delta",
                    "assistant.message_delta",
                    "session.idle",
                ];
                let answer = result(id, json!({"by": conn, "messageId": message}));
                let wait = frame["params"]["wait"] == json!(true);
                let later = wait.then(|| serde_json::from_str(&answer).unwrap());
                let delay = self.delay();
                self.plan(
                    delay,
                    Act::Turn(conn, session, steps.into(), message, later),
                );
                if wait {
                    return;
                }
                answer
            }
            "session.detach" | "sessions.close" | "session.delete" => {
                state.attached.remove(&session);
                result(id, by)
            }
            "session.getMessages" if !state.attached.contains(&session) => {
                not_found(id, method, &session)
            }
            _ => result(id, by),
        };
        if roll == 99 && self.chance.percent(20) {
            self.note(|| format!("  {conn} goes mad"));
            let garbage: &[&[u8]] = &[
                b"Content-Length: 3\r\n\r\n{x}",
                b"\r\n\r\n",
                b"Content-Length: 2\r\n\r\n{}",
            ];
            let at = usize::try_from(self.chance.below(3)).unwrap();
            let (_, state) = self.conns.get_mut(&conn).unwrap();
            state.wire.extend_from_slice(garbage[at]);
            self.flush(conn, 100);
            return;
        }
        self.write(conn, &body);
    }

    pub(super) fn turn(
        &mut self,
        conn: u64,
        session: String,
        mut steps: VecDeque<&'static str>,
        message: String,
        answer: Option<Value>,
    ) {
        let Some((_, state)) = self.conns.get_mut(&conn) else {
            return;
        };
        let Some(kind) = steps.pop_front() else {
            if let Some(answer) = answer {
                let body = answer.to_string();
                self.write(conn, &body);
            }
            return;
        };
        if state.attached.contains(&session) {
            let n = self.told.entry((conn, session.clone())).or_default();
            *n += 1;
            let tell = json!({"conn": conn, "n": *n, "messageId": message});
            let body = event(&session, kind, tell);
            self.write(conn, &body);
        }
        let delay = self.delay();
        self.plan(delay, Act::Turn(conn, session, steps, message, answer));
    }

    pub(super) fn write(&mut self, conn: u64, body: &str) {
        self.note(|| format!("  {conn} says {body}"));
        let Some((_, state)) = self.conns.get_mut(&conn) else {
            return;
        };
        state.wire.extend(framed(body));
        let share = if self.chance.percent(70) {
            100
        } else {
            self.chance.below(100)
        };
        self.flush(conn, share);
    }

    pub(super) fn flush(&mut self, conn: u64, share: u64) {
        let Some((slot, state)) = self.conns.get_mut(&conn) else {
            return;
        };
        let all = state.wire.len();
        let part = usize::try_from(all as u64 * share / 100).unwrap();
        let rest = state.wire.split_off(part);
        let bytes = std::mem::replace(&mut state.wire, rest);
        let name = state.name.clone();
        assert_eq!(
            self.rig.slot(&name),
            *slot,
            "one upstream connection per backend"
        );
        self.rig.backend_bytes(&name, &bytes);
        if part < all {
            self.plan(700, Act::Flush(conn));
        }
    }

    pub(super) fn crash(&mut self, conn: u64) {
        let Some((_, state)) = self.conns.remove(&conn) else {
            return;
        };
        self.note(|| format!("  {conn} crashes"));
        let owed: Vec<String> = self
            .taken
            .iter()
            .filter(|(id, at)| **at == conn && self.due.get(*id).is_some_and(|n| *n > 0))
            .map(|(id, _)| id.clone())
            .collect();
        self.rig.lose(&state.name);
        self.collect();
        if !self.rig.mux.is_heard() || self.rig.mux.passing().is_some() {
            // The client was left in the middle of a frame, or hears of it behind one.
            return;
        }
        for id in owed {
            assert_eq!(
                self.due[&id], 0,
                "{id} is answered at once when its backend is lost"
            );
        }
    }
}
