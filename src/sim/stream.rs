//! The streamed reply of a turn: the part that is fast, because benches use it as a source of load.
//!
//! Frames are built outside the lock, many at a time, and only copied under it.

use std::time::Duration;

use super::{
    event::{self, Deltas, Life, now, quoted},
    script::{self, Reply, Script},
    turn::{Cut, Turn},
};

/// Delta pairs sent between two looks at the world.
const BATCH: usize = 64;

impl Turn {
    /// Streams the reply as one assistant message; returns its text.
    pub(super) async fn stream(&self, message: &str, script: &Script) -> Result<String, Cut> {
        let parent = self.session(|session| session.last_event.clone().unwrap_or_default())?;
        let deltas = Deltas::new(&self.id, message, &parent);
        let numbers = &self.shared.numbers;
        let words: &[String] = match &script.reply {
            Reply::Echo(words) => words,
            Reply::Words { .. } | Reply::Failure => &[],
        };
        let escaped: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let (count, pad) = match &script.reply {
            Reply::Words { count, pad } => (*count, *pad),
            Reply::Echo(words) => (words.len(), 0),
            Reply::Failure => (0, 0),
        };
        let per_step = if script.slow_ms > 0 { 1 } else { BATCH };
        let mut content = Vec::new();
        let mut out = Vec::new();
        for start in (0..count).step_by(per_step) {
            let time = now();
            out.clear();
            for number in start..count.min(start + per_step) {
                let from = content.len();
                match words.get(number) {
                    Some(word) => content.extend_from_slice(word.as_bytes()),
                    None => script::word_into(&mut content, number, pad),
                }
                deltas.streaming_into(&mut out, numbers, &time, content.len());
                if number == 0 {
                    let data = format!(r#"{{"messageId":"{message}"}}"#);
                    let (kind, id) = ("assistant.message_start", numbers.uuid());
                    let text =
                        event::event(kind, &data, Life::Ephemeral, &id, &time, Some(&parent));
                    let body = event::session_event(&self.id, &text);
                    event::frame_into(&mut out, body.as_bytes());
                }
                let piece = match escaped.get(number) {
                    Some(quoted) => &quoted.as_bytes()[1..quoted.len() - 1],
                    None => &content[from..],
                };
                deltas.message_into(&mut out, numbers, &time, piece);
            }
            self.send(&out)?;
            if script.slow_ms > 0 {
                self.until(tokio::time::sleep(Duration::from_millis(script.slow_ms)))
                    .await?;
            } else {
                self.until(tokio::task::yield_now()).await?;
            }
        }
        Ok(String::from_utf8(content).expect("words and echoes are text"))
    }

    /// Sends frames to everyone attached, unless the turn has ended.
    fn send(&self, frames: &[u8]) -> Result<(), Cut> {
        self.with(|state, id| {
            if self.cancel.is_cancelled() {
                return Err(Cut);
            }
            let Some(session) = state.sessions.get(id) else {
                return Err(Cut);
            };
            for attachment in &session.attached {
                if let Some(peer) = state.peers.get(&attachment.connection) {
                    peer.outbox.push_raw(frames);
                }
            }
            Ok(())
        })?
    }
}
