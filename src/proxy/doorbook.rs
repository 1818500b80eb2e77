//! Tells of connections that came to nothing: all are counted, and of a flood some are logged one by
//! one and the others together. How many is decided in `core::flood`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::front::Closed;
use crate::{
    core::{
        event::{Event, NotAdmitted},
        flood::{Flood, SPAN, Telling},
    },
    observe::Observer,
    transport::files::OPEN_FILES,
};

/// One for all connections of the process; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Doorbook(Arc<Mutex<Flood>>);

impl Doorbook {
    /// A connection was not admitted.
    pub(super) fn note(&self, observer: &Observer, client: SocketAddr, closed: Closed) {
        let (reason, detail) = closed;
        // Who comes and goes without a word (a balancer that looks whether somebody listens) is for
        // those who look closely, and takes no line away from others.
        if reason == NotAdmitted::Left || self.admits(observer) {
            observer.record(&Event::NotAdmitted {
                client,
                reason,
                detail: detail.into(),
            });
        } else {
            observer.metrics().not_admitted(reason);
        }
    }

    /// A connection was closed at once, because there are as many as may be.
    pub(super) fn surplus(&self, observer: &Observer) {
        self.hit(observer, "limits.connections");
    }

    /// A connection was closed at once, or could not even be accepted: there are no files left.
    pub(super) fn no_file(&self, observer: &Observer) {
        self.hit(observer, OPEN_FILES);
    }

    fn hit(&self, observer: &Observer, limit: &'static str) {
        if self.admits(observer) {
            observer.record(&Event::LimitHit {
                connection: None,
                limit,
            });
        } else {
            observer.metrics().limit_hit(limit);
        }
    }

    /// Tells of those that were not told one by one.
    pub(super) fn tell_rest(&self, observer: &Observer) {
        let rest = self.flood().rest();
        if let Some(count) = rest {
            observer.record(&Event::NotAdmittedMore { count, over: SPAN });
        }
    }

    /// Whether one more has a line of its own. Sees to it that the others are told.
    fn admits(&self, observer: &Observer) -> bool {
        let telling = self.flood().note(Instant::now());
        if let Telling::Due(at) = telling {
            let (book, observer) = (self.clone(), observer.clone());
            tokio::spawn(async move {
                tokio::time::sleep_until(at.into()).await;
                book.tell_rest(&observer);
            });
        }
        telling == Telling::Now
    }

    fn flood(&self) -> MutexGuard<'_, Flood> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
