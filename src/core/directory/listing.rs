//! The table in pages, for operators.

use std::time::Instant;

use super::{Directory, Known, Standing};
use crate::core::{
    id::{ConnectionId, SessionId},
    peer,
};

impl Directory {
    /// The connections that hear `session`, in the order in which they came; those whose client has
    /// left come last.
    pub fn hearers(&self, session: &str) -> Vec<ConnectionId> {
        let holders = self.sessions.get(session).map(|r| &r.now.holders);
        let hears = |parked: bool| {
            holders
                .into_iter()
                .flatten()
                .filter(move |h| h.standing == Standing::Attached && h.parked == parked)
                .map(|h| h.connection)
        };
        hears(false).chain(hears(true)).collect()
    }

    /// The connections of this process that have lost `session` and will open it again, in the order
    /// in which they came.
    pub fn losers(&self, session: &str) -> Vec<ConnectionId> {
        let holders = self.sessions.get(session).map(|r| &r.now.holders);
        let holders = holders.into_iter().flatten();
        let lost = holders.filter(|h| h.standing == Standing::Lost && !h.parked);
        let lost = lost.map(|h| h.connection);
        lost.filter(|id| !peer::is_peer(*id)).collect()
    }

    /// Whether `session` has holders that hear it by way of another process, or are about to hear it:
    /// nobody knows here what they were asked.
    pub fn is_heard_elsewhere(&self, session: &str) -> bool {
        let holders = self.sessions.get(session).map(|r| &r.now.holders);
        let mut holders = holders.into_iter().flatten();
        holders.any(|h| peer::is_peer(h.connection) || h.standing != Standing::Attached)
    }

    /// Sessions after `after` in id order, at most `limit`, for the admin API.
    pub fn page(
        &self,
        now: Instant,
        after: Option<&str>,
        limit: usize,
        keep: &dyn Fn(&SessionId, &Known) -> bool,
    ) -> Vec<(SessionId, Known)> {
        let mut rows: Vec<_> = self
            .sessions
            .keys()
            .filter(|id| after.is_none_or(|a| id.as_str() > a))
            .map(|id| (id.clone(), self.known(now, id.as_str())))
            .filter(|(id, known)| keep(id, known))
            .collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows.truncate(limit);
        rows
    }
}
