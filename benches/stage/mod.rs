//! One connection with two open sessions on one backend, ready for traffic: for the benchmark of
//! the multiplexer and for the test that counts its allocations.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use taxiway::{
    core::{
        access::Relation,
        event::PlacementReason,
        frame::{FrameLimits, write_header},
        id::{ConnectionId, SessionId},
        identity::{Person, Principal},
        mux::{
            Alone, Commons, Context, CreateExisting, Located, Mux, Outbox, Output, Over, Settings,
            SlotId, WallClock,
        },
        snapshot::{Mode, Snapshot},
        turnlock::{Ask, Terms, Verdict},
    },
    store::Turns,
};

pub(crate) mod pool;

/// The traffic's two ends and what is between.
pub(crate) struct Stage {
    pub(crate) mux: Mux,
    pub(crate) settings: Settings,
    snapshot: Snapshot,
    out: Outbox,
    now: Instant,
    slot: Option<SlotId>,
    commons: Box<dyn Commons>,
    turns: Turns,
    /// Bytes that were written.
    written: usize,
}

pub(crate) fn framed(body: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    write_header(body.len(), &mut frame);
    frame.extend_from_slice(body.as_bytes());
    frame
}

/// A streamed event of session `s0` or `s1`, as large as they mostly are.
pub(crate) fn event(session: u8, kind: &str) -> Vec<u8> {
    framed(&format!(
        concat!(
            r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"sessionId":"s{}","#,
            r#""event":{{"type":"{}","#,
            r#""data":{{"messageId":"872e421f-25dd-4618-b3d5-3cdd0246f60a","deltaContent":"w0 "}},"#,
            r#""ephemeral":true,"id":"b79c4e42-b41d-42f2-88a9-f77064e61e87","#,
            r#""timestamp":"2026-11-22T06:30:20.965Z","parentId":null}}}}}}"#
        ),
        session, kind
    ))
}

pub(crate) fn request(id: u32, session: u8) -> Vec<u8> {
    framed(&format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"session.getMessages","params":{{"sessionId":"s{session}"}}}}"#
    ))
}

pub(crate) fn response(id: u32) -> Vec<u8> {
    framed(&format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"events":[]}}}}"#
    ))
}

impl Stage {
    pub(crate) fn new() -> Self {
        let settings = Settings {
            frame: FrameLimits {
                header: 8 * 1024,
                frame: 1024 * 1024,
            },
            cut_through_min: 1 << 20,
            frame_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            calls: 1024,
            sessions: 1024,
            create_existing: CreateExisting::Resume,
            session_params: 1 << 20,
            home_wait: Duration::from_secs(30),
            detach_grace: Some(Duration::from_secs(30)),
            turn_stall: None,
            ends_stalled: false,
            turns: Terms::default(),
            revoke_grace: Duration::from_secs(60),
            last_turns: Duration::from_secs(600),
            caps: taxiway::core::identity::Caps::default(),
            access: Arc::default(),
        };
        let now = Instant::now();
        let peer = "127.0.0.1:50000".parse().expect("an address");
        let mut stage = Self {
            mux: Mux::new(ConnectionId(1), peer, now, &settings),
            settings,
            snapshot: pool::snapshot(Mode::SharedStorage, vec![pool::backend("cli-1", 1)]),
            out: Outbox::new(),
            now,
            slot: None,
            commons: Box::new(Alone),
            turns: Turns::default(),
            written: 0,
        };
        for session in 0..2 {
            stage.client(&framed(&format!(
                r#"{{"jsonrpc":"2.0","id":{session},"method":"session.create","params":{{"sessionId":"s{session}"}}}}"#
            )));
        }
        stage.backend(&framed(r#"{"jsonrpc":"2.0","id":0,"result":{"ok":true}}"#));
        stage.backend(&[response(0), response(1)].concat());
        assert_eq!(stage.mux.open_calls(), 0, "both sessions are open");
        stage
    }

    /// The client writes.
    pub(crate) fn client(&mut self, input: &[u8]) {
        let used = self.step(input, |mux, cx, out| mux.handle_client(cx, input, out));
        assert_eq!(used, input.len());
    }

    /// The backend writes.
    pub(crate) fn backend(&mut self, input: &[u8]) {
        assert_eq!(self.backend_in_part(input), input.len());
    }

    /// The same, in the middle of a frame perhaps. Returns what was used up.
    pub(crate) fn backend_in_part(&mut self, input: &[u8]) -> usize {
        let slot = self.slot.expect("connected");
        self.step(input, |mux, cx, out| {
            mux.handle_upstream(cx, slot, input, out)
        })
    }

    /// Turns are asked for from now on, as connections do that share a store.
    #[allow(dead_code, reason = "not every user of the stage compares")]
    pub(crate) fn lock_turns(&mut self) {
        self.commons = Box::new(Locked(self.turns.clone()));
    }

    /// Bytes that were written since the beginning.
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    fn step(
        &mut self,
        input: &[u8],
        handle: impl FnOnce(&mut Mux, &Context<'_>, &mut Outbox) -> usize,
    ) -> usize {
        let cx = Context {
            now: self.now,
            clock: WallClock {
                read: self.now,
                said: SystemTime::UNIX_EPOCH,
            },
            pool: &self.snapshot,
            settings: &self.settings,
            commons: self.commons.as_ref(),
        };
        let used = handle(&mut self.mux, &cx, &mut self.out);
        for (dest, bytes) in self.out.iter(input) {
            black_box(dest);
            self.written += black_box(bytes).len();
        }
        self.out.clear();
        while let Some(output) = self.mux.poll_output() {
            if let Output::Locate(question) = output {
                let located = Located {
                    parked: None,
                    backend: "cli-1".into(),
                    reason: PlacementReason::LeastLoaded,
                    has_history: false,
                    relation: Relation::Anybody,
                };
                self.mux
                    .handle_located(&cx, question.ticket, Ok(located), &mut self.out);
            } else if let Output::TurnOver { session, .. } = output {
                let next = self
                    .turns
                    .release(self.now, session.as_str(), self.mux.id());
                black_box(next);
            } else if let Output::Connect { slot, .. } = output {
                self.slot = Some(slot);
                self.mux.handle_upstream_connected(&cx, slot, &mut self.out);
            }
        }
        for (_, bytes) in self.out.iter(&[]) {
            self.written += bytes.len();
        }
        self.out.clear();
        black_box(self.mux.poll_timeout(&self.settings));
        used
    }
}

/// The locks of a store.
#[derive(Debug)]
struct Locked(Turns);

impl Commons for Locked {
    fn enter(&self, _: &Settings, _: Option<&Arc<Principal>>) -> Result<(), Over> {
        Ok(())
    }

    fn spend(&self, _: &Settings, _: usize) -> Result<(), Over> {
        Ok(())
    }

    fn seat_session(&self, _: &Settings, _: &SessionId) -> Result<(), Over> {
        Ok(())
    }

    fn may_open(&self, _: &Settings) -> Result<(), Over> {
        Ok(())
    }

    fn seat_turn(&self, _: &Settings, _: &SessionId) -> Result<(), Over> {
        Ok(())
    }

    fn ask_turn(&self, now: Instant, session: &SessionId, ask: &Ask) -> Verdict {
        self.0.ask(now, session, ask)
    }

    fn may_end_turn(&self, session: &str, by: ConnectionId, user: Option<&Person>) -> bool {
        self.0.may_end(session, by, user)
    }

    fn has_others(&self, _: &str, _: ConnectionId) -> bool {
        false
    }

    fn is_in_turn(&self, _: Instant, session: &str) -> bool {
        self.0.get(session).is_some()
    }

    fn may_be_new(&self, _: &Settings, _: &str) -> bool {
        true
    }
}
