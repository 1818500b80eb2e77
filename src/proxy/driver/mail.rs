//! News of the hub, put to the multiplexer.

use std::time::Instant;

use super::{Driver, Task};
use crate::proxy::hub::Message;

impl Driver {
    #[inline]
    pub(super) fn poll_mailbox(&mut self, now: Instant, task: &mut Task<'_>) -> bool {
        // Nearly always so: a check, and no more.
        if self.mailbox.is_quiet() {
            return false;
        }
        self.open_mail(now, task)
    }

    fn open_mail(&mut self, now: Instant, task: &mut Task<'_>) -> bool {
        let mut progress = false;
        // A client that does not read is not sent more news: its mailbox overflows instead.
        while !self.client_is_full()
            && let Some(message) = self.mailbox.take()
        {
            progress = true;
            match message {
                Message::News(news, skipped) => {
                    self.hear(now, task, &news[skipped..]);
                }
                Message::ProviderRequest { token, body } => {
                    let mut asked = self.may_be_asked(&body);
                    if asked {
                        self.step(now, task, &[], |mux, _, out| {
                            asked = mux.handle_provider_request(token, &body, out);
                            0
                        });
                    }
                    if !asked {
                        self.shared.providers.refused(token);
                    }
                }
                Message::BackendSilent(backend) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_backend_silent(cx, &backend, out);
                        0
                    });
                }
                Message::BackendBack(backend) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_backend_back(cx, &backend, out);
                        0
                    });
                }
                Message::BackendReleased(backend) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_backend_released(cx, &backend, out);
                        0
                    });
                }
                Message::Freeze(session, backend, freeze) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_freeze(cx, session.as_str(), &backend, freeze, out);
                        0
                    });
                }
                Message::Thaw(session) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_thaw(cx, session.as_str(), out);
                        0
                    });
                }
                Message::Moved(session) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_moved(cx, &session, out);
                        0
                    });
                }
                Message::SessionLost(session, backend) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_session_lost(cx, session.as_str(), &backend, out);
                        0
                    });
                }
                Message::TurnGranted(session) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_turn_granted(cx, &session, out);
                        0
                    });
                }
                Message::TurnInherited(session, asked) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_turn_inherited(cx, &session, &asked, out);
                        0
                    });
                }
                Message::Note(from, note) => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_note(cx, from, note, out);
                        0
                    });
                }
                // Mostly seen when the task was woken; but it may have come a moment ago.
                Message::Rules => self.follow_rules(),
                Message::Drain => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_drain(cx, out);
                        0
                    });
                }
                Message::Shutdown => {
                    self.step(now, task, &[], |mux, cx, out| {
                        mux.handle_shutdown(cx, out);
                        0
                    });
                }
            }
            if self.closing.is_some() {
                break;
            }
        }
        let lost = self.mailbox.poll_lost();
        for _ in 0..lost {
            self.shared.observer.metrics().limit_hit("mailbox");
        }
        progress
    }
}
