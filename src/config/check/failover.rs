//! `[failover]`: when a silent backend is given up, and what that risks.

use super::Check;
use crate::{
    config::{Config, Failover, quantity::show_duration},
    core::snapshot::Mode,
};

impl Check<'_> {
    pub(super) fn failover(&mut self) -> Failover {
        let table = self.raw.table("failover");
        let mut fence_command = table.words_or_none("fence_command");
        if let Some(program) = fence_command.as_mut().and_then(|words| words.first_mut())
            && program.contains('/')
        {
            *program = self.path(program).to_string_lossy().into_owned();
        }
        Failover {
            hang_timeout: table.duration_or_off("hang_timeout"),
            fence_command,
            fence_timeout: table.duration("fence_timeout"),
        }
    }

    /// What the keys mean beside those of other sections.
    pub(super) fn giving_up(&mut self, config: &Config) {
        let (failover, health) = (&config.failover, &config.health);
        let table = self.raw.table("failover");
        if config.routing.mode == Mode::Sticky {
            if self.raw.table("routing").is_faulty("mode") {
                return;
            }
            for key in ["hang_timeout", "fence_command", "fence_timeout"] {
                if let Some(span) = table.sound(key) {
                    let message = format!("failover.{key}: has no effect with mode = \"sticky\"");
                    self.report
                        .warning(span, message)
                        .label("nothing moves between separate disks")
                        .help("take it out, or use mode = \"shared-storage\"");
                }
            }
            return;
        }
        if table.is_faulty("hang_timeout") || table.is_faulty("fence_command") {
            return;
        }
        let idle = match (failover.hang_timeout, &failover.fence_command) {
            (None, _) => Some((
                ["fence_command", "fence_timeout"],
                "with hang_timeout = \"0s\"",
            )),
            (Some(_), None) => Some((["fence_timeout", ""], "without fence_command")),
            (Some(_), Some(_)) => None,
        };
        if let Some((keys, why)) = idle {
            for key in keys {
                if let Some(span) = table.sound(key) {
                    let message = format!("failover.{key}: has no effect {why}");
                    self.report.warning(span, message).help("take it out");
                }
            }
        }
        let (Some(hang), Some(span)) = (failover.hang_timeout, table.sound("hang_timeout")) else {
            return;
        };
        if failover.fence_command.is_none() {
            let message = "failover.hang_timeout: sessions move from a backend that may only sleep";
            self.report
                .warning(span, message)
                .label("no fence_command makes sure that it cannot write any more")
                .help(
                    "when it wakes in a turn, it writes to the session's log beside the new owner \
                     until its sessions are closed: set `fence_command`, or hang_timeout = \"0s\"",
                );
        }
        let faulty = |key| self.raw.table("health").is_faulty(key);
        if ["interval", "timeout", "unhealthy_after"]
            .iter()
            .any(|key| faulty(key))
        {
            return;
        }
        let ejection = health.interval + health.timeout * health.unhealthy_after;
        if hang < ejection {
            let ejection = show_duration(ejection);
            let message =
                format!("failover.hang_timeout: shorter than the {ejection} until ejection");
            self.report
                .warning(span, message)
                .label("a backend that is not ejected yet is not given up")
                .help(
                    "ejection takes up to health.interval + health.timeout × \
                     health.unhealthy_after: shorten these, or make hang_timeout longer",
                );
        }
    }
}
