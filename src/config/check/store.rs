//! `[store]`: what is kept, and where.

use std::path::PathBuf;

use super::{Check, Env};
use crate::config::Store;

/// Beside the configuration file, or in the service's own directory.
const FILE: &str = "taxiway.db";

impl Check<'_> {
    pub(super) fn store(&mut self) -> Store {
        let table = self.raw.table("store");
        let is_kept = table.word("kind", |word| match word {
            "embedded" => Some(true),
            "memory" => Some(false),
            _ => None,
        });
        if !is_kept && !table.is_faulty("kind") {
            for key in ["path", "expire"] {
                if let Some(span) = table.sound(key) {
                    let message = format!("store.{key}: has no effect with kind = \"memory\"");
                    self.report
                        .warning(span, message)
                        .help("take it out, or use kind = \"embedded\"");
                }
            }
        }
        let path = match table.text("path") {
            Some(path) => self.path(&path),
            None => state_directory(self.environment)
                .unwrap_or_else(|| self.directory.to_owned())
                .join(FILE),
        };
        Store {
            path: is_kept.then_some(path),
            expire: table.duration_or_off("expire"),
        }
    }
}

/// The directory that systemd has made for the service (`StateDirectory=`), whose configuration it
/// may not write beside. The first, if there are several (systemd.exec(5)).
fn state_directory(environment: Env<'_>) -> Option<PathBuf> {
    let all = environment("STATE_DIRECTORY")?;
    let first = PathBuf::from(all.split(':').next()?);
    first.is_absolute().then_some(first)
}
