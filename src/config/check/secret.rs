//! Secrets: read from where the file says, never from the file itself.

use std::{fs::File, io::Read, ops::Range, path::Path};

use zeroize::Zeroizing;

use super::Check;
use crate::{config::raw::Table, core::id::Secret};

/// Far beyond any token, far below what would hurt.
pub(super) const MAX_SECRET: u64 = 64 << 10;

impl Check<'_> {
    /// The secret that `{stem}_env` or `{stem}_file` of the table names.
    pub(super) fn secret(&mut self, table: &Table, stem: &str) -> Option<Secret> {
        let (env_key, file_key) = (format!("{stem}_env"), format!("{stem}_file"));
        if let (Some(env), Some(file)) = (table.entry(&env_key), table.entry(&file_key)) {
            self.report
                .error(
                    &file.span,
                    format!(
                        "{}: `{env_key}` names the same secret",
                        table.full_name(&file_key)
                    ),
                )
                .label("second")
                .also(&env.span, "first")
                .help("keep one of them");
            return None;
        }
        if let (Some(name), Some(span)) = (table.text(&env_key), table.sound(&env_key)) {
            return self.read_variable(&table.full_name(&env_key), &name, span);
        }
        let (path, span) = (table.text(&file_key)?, table.sound(&file_key)?);
        let path = self.path(&path);
        self.read_file(&table.full_name(&file_key), &path, span)
    }

    pub(super) fn read_variable(
        &mut self,
        key: &str,
        name: &str,
        span: &Range<usize>,
    ) -> Option<Secret> {
        let (wrong, help) = match (self.environment)(name) {
            None => ("is not set", "set it where Taxiway is started"),
            Some(text) if text.trim().is_empty() => ("is empty", "it must hold the secret"),
            Some(text) => {
                self.secret_variables.push(name.to_owned());
                return Some(Secret::new(text.trim()));
            }
        };
        // Names are written in capitals; anything else may be the secret itself, by mistake.
        let is_name = !name.bytes().any(|b| b.is_ascii_lowercase());
        let shown = if is_name { name } else { "that is named here" };
        if !is_name {
            self.report.mask(span);
        }
        self.report
            .error(
                span,
                format!("{key}: the environment variable {shown} {wrong}"),
            )
            .help(help);
        None
    }

    pub(super) fn read_file(
        &mut self,
        key: &str,
        path: &Path,
        span: &Range<usize>,
    ) -> Option<Secret> {
        self.report.depends_on(path.to_owned());
        let name = path.display();
        match read(path, MAX_SECRET).map(Zeroizing::new) {
            Ok(text) if text.trim().is_empty() => {
                self.report
                    .error(span, format!("{key}: {name} is empty"))
                    .help("it must hold the secret on one line");
                None
            }
            Ok(text) => {
                if is_readable_by_others(path) {
                    self.report
                        .warning(
                            span,
                            format!("{key}: {name} can be read by every user of this machine"),
                        )
                        .help(format!("chmod 600 {name}"));
                }
                Some(Secret::new(text.trim()))
            }
            Err(error) => {
                self.report
                    .error(span, format!("{key}: {name} cannot be read: {error}"))
                    .help("relative paths start at the directory of the configuration file");
                None
            }
        }
    }
}

/// The text of a regular file of at most so many bytes.
pub(super) fn read(path: &Path, limit: u64) -> std::io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    // A FIFO or device could keep a reload waiting for ever.
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let length = file.take(limit + 1).read_to_string(&mut text)?;
    if length as u64 > limit {
        let complaint = if limit == MAX_SECRET {
            "it is too large for a secret"
        } else {
            "it is too large"
        };
        return Err(std::io::Error::other(complaint));
    }
    Ok(text)
}

pub(super) fn is_readable_by_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|m| m.permissions().mode() & 0o004 != 0)
}
