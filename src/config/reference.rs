//! Every key of the file: its type, limits, default, whether a reload applies it, what it does.
//!
//! The one table behind the checks of single keys, "did you mean", the defaults, what a reload
//! refuses, and `docs/configuration.md`. A key that is not here does not exist.

use std::{fmt::Write as _, time::Duration};

use super::quantity;

mod table;

pub(super) use table::SECTIONS;

/// One `[section]` or `[[section]]`.
#[derive(Debug)]
pub(super) struct Section {
    /// As written between the brackets.
    pub(super) name: &'static str,
    /// Table, or list of tables.
    pub(super) shape: Shape,
    /// What it is about; Markdown.
    pub(super) text: &'static str,
    /// In the order of the documentation.
    pub(super) keys: &'static [Key],
}

/// How a section is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `[name]`, at most once.
    Table,
    /// `[[name]]`, any number.
    List,
    /// `[[section.name]]`, any number: a key of that section.
    NestedList,
    /// `[section.name]`: a key of that section, written as a table.
    Nested,
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    /// As written left of the `=`.
    pub(super) name: &'static str,
    /// Type and limits.
    pub(super) kind: Kind,
    /// What holds without it.
    pub(super) absent: Absent,
    /// Whether a reload applies a change.
    pub(super) reload: Reload,
    /// What it does; Markdown.
    pub(super) text: &'static str,
}

/// Type and limits of a value.
#[derive(Debug)]
pub(super) enum Kind {
    /// `IP:PORT` to listen on.
    Listen,
    /// `HOST:PORT` to connect to.
    Dial,
    /// The name of a backend.
    Name,
    /// A duration with its unit.
    Duration {
        /// Shortest, zero aside.
        min: Duration,
        /// Longest.
        max: Duration,
        /// What `"0s"` means; none = `min` holds.
        zero: Option<&'static str>,
    },
    /// A number of bytes with its unit.
    Size {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A whole number.
    Integer {
        /// Least.
        min: u32,
        /// Most.
        max: u32,
    },
    /// A number.
    Number {
        /// Least, zero aside.
        min: f64,
        /// Most.
        max: f64,
        /// What `0` means; none = `min` holds.
        zero: Option<&'static str>,
    },
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Choice {
        /// Accepted.
        words: &'static [&'static str],
        /// Of a later release.
        planned: &'static [&'static str],
    },
    /// A regular expression.
    Pattern,
    /// A path, relative to the file.
    Path,
    /// The name of an environment variable that holds a secret.
    Variable,
    /// The path of a file that holds a secret.
    SecretFile,
    /// The name of a principal, or of a realm.
    Principal,
    /// Any text in one line.
    Text,
    /// A regular expression that a whole session id is held against.
    Match,
    /// SHA-256 of a token.
    Hash,
    /// One of that kind, or a list of them.
    Several(&'static Kind),
    /// A list of strings, not empty.
    Words,
    /// A list of names of the protocol, with `*` for parts of them; may be empty.
    Names,
    /// A list of tables, `[[section.name]]`; their keys stand in the section of that name.
    Tables,
    /// A list of IP addresses and networks.
    Networks,
    /// A name that a certificate can be for.
    ServerName,
    /// A table of its own, `[section.name]`; its keys stand in the section of that name.
    Nested(Short),
    /// A key of a later release.
    NotBuilt,
}

/// Whether a nested table may be written short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Short {
    /// As a table only.
    No,
    /// `true` is the table with every default, `false` is none.
    Flag,
}

/// What holds when a key is not written.
#[derive(Debug)]
pub(super) enum Absent {
    /// It must be written.
    Refused,
    /// This value, without quotes.
    Value(&'static str),
    /// This list.
    Words(&'static [&'static str]),
    /// No value, which means this.
    Means(&'static str),
}

/// Whether a reload applies a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reload {
    /// At once.
    Live,
    /// To connections made from then on.
    NewConnections,
    /// The reload is refused, for this reason.
    Restart(&'static str),
}

impl Section {
    /// The key of that name.
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

impl Key {
    /// Is it only known by name?
    pub(super) fn is_built(&self) -> bool {
        !matches!(self.kind, Kind::NotBuilt)
    }

    /// Under which name the effective configuration shows it: both ways to name a secret are one.
    pub(super) fn field(&self) -> &'static str {
        let kind = if let Kind::Several(inner) = self.kind {
            inner
        } else {
            &self.kind
        };
        match kind {
            Kind::Variable => self.name.strip_suffix("_env").unwrap_or(self.name),
            Kind::SecretFile => self.name.strip_suffix("_file").unwrap_or(self.name),
            Kind::Hash => self.name.strip_suffix("_sha256").unwrap_or(self.name),
            Kind::Listen
            | Kind::Dial
            | Kind::Name
            | Kind::Duration { .. }
            | Kind::Size { .. }
            | Kind::Integer { .. }
            | Kind::Number { .. }
            | Kind::Flag
            | Kind::Choice { .. }
            | Kind::Pattern
            | Kind::Path
            | Kind::Principal
            | Kind::Text
            | Kind::Match
            | Kind::Several(_)
            | Kind::Words
            | Kind::Names
            | Kind::Tables
            | Kind::Networks
            | Kind::ServerName
            | Kind::Nested(_)
            | Kind::NotBuilt => self.name,
        }
    }
}

impl Kind {
    /// The type for readers, limits included; Markdown.
    fn describe(&self) -> String {
        match self {
            Self::Listen => "`\"IP:PORT\"`".to_owned(),
            Self::Dial => "`\"HOST:PORT\"`".to_owned(),
            Self::Name => "name: letters, digits, `.` `_` `-` `:`".to_owned(),
            Self::Duration { min, max, zero } => {
                let (min, max) = (quantity::show_duration(*min), quantity::show_duration(*max));
                let zero = zero.map_or(String::new(), |z| format!("; `\"0s\"` = {z}"));
                format!("duration, `\"{min}\"` to `\"{max}\"`{zero}")
            }
            Self::Size { min, max } => {
                let (min, max) = (quantity::show_size(*min), quantity::show_size(*max));
                format!("size, `\"{min}\"` to `\"{max}\"`")
            }
            Self::Integer { min, max } => format!("whole number, {min} to {max}"),
            Self::Number { min, max, zero } => {
                let zero = zero.map_or(String::new(), |z| format!("; `0` = {z}"));
                format!("number, {min:?} to {max:?}{zero}")
            }
            Self::Flag => "`true`, `false`".to_owned(),
            Self::Choice { words, .. } => words
                .iter()
                .map(|w| format!("`\"{w}\"`"))
                .collect::<Vec<_>>()
                .join(", "),
            Self::Pattern => "regular expression".to_owned(),
            Self::Path => "path".to_owned(),
            Self::Variable => "name of an environment variable".to_owned(),
            Self::SecretFile => "path of a file".to_owned(),
            Self::Principal => "letters, digits, `.` `_` `-` `:` `@` `+`".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Match => "regular expression".to_owned(),
            Self::Hash => "64 hexadecimal digits".to_owned(),
            Self::Several(inner) => format!("{}, or a list of such", inner.describe()),
            Self::Words => "list of strings".to_owned(),
            Self::Names => "list of names".to_owned(),
            Self::Tables => "tables, see below".to_owned(),
            Self::Networks => "list of IP addresses and networks".to_owned(),
            Self::ServerName => "DNS name or IP address".to_owned(),
            Self::Nested(Short::No) => "table, see below".to_owned(),
            Self::Nested(Short::Flag) => "`true`, or a table, see below".to_owned(),
            Self::NotBuilt => "not built yet".to_owned(),
        }
    }

    /// Is a value of this kind written in quotes?
    fn is_quoted(&self) -> bool {
        !matches!(
            self,
            Self::Integer { .. } | Self::Number { .. } | Self::Flag | Self::Nested(_)
        )
    }
}

/// All keys as a page of Markdown: `docs/configuration.md`.
pub fn markdown() -> String {
    let mut page = String::from(INTRODUCTION);
    for section in SECTIONS {
        let brackets = match section.shape {
            Shape::List | Shape::NestedList => format!("[[{}]]", section.name),
            Shape::Table | Shape::Nested => format!("[{}]", section.name),
        };
        page.push_str(&format!("\n## `{brackets}`\n\n{}\n\n", section.text));
        page.push_str("| Key | Type | Default | Reload | |\n|---|---|---|---|---|\n");
        for key in section.keys.iter().filter(|k| k.is_built()) {
            row(&mut page, key);
        }
    }
    page.push_str(NOT_BUILT);
    for section in SECTIONS {
        for key in section.keys {
            if !key.is_built() {
                page.push_str(&format!(
                    "- `{}.{}`: {}\n",
                    section.name, key.name, key.text
                ));
            }
            if let Kind::Choice { planned, .. } = key.kind {
                for word in planned {
                    page.push_str(&format!("- `{}.{} = \"{word}\"`\n", section.name, key.name));
                }
            }
        }
    }
    page
}

fn row(page: &mut String, key: &Key) {
    let default = match &key.absent {
        Absent::Refused => "required".to_owned(),
        Absent::Value(value) if key.kind.is_quoted() => format!("`\"{value}\"`"),
        Absent::Value(value) => format!("`{value}`"),
        Absent::Words(words) => format!("`{words:?}`"),
        Absent::Means(text) => (*text).to_owned(),
    };
    let reload = match key.reload {
        Reload::Live => "yes".to_owned(),
        Reload::NewConnections => "new connections".to_owned(),
        Reload::Restart(reason) => format!("no: {reason}"),
    };
    let (name, kind) = (key.name, key.kind.describe());
    writeln!(
        page,
        "| `{name}` | {kind} | {default} | {reload} | {} |",
        key.text
    )
    .expect("writing to a string");
}

const INTRODUCTION: &str = "\
# Configuration

Generated by `taxiway check --reference`; edit `src/config/reference/table.rs`, not this page.

One TOML file, the first that exists of: `-c FILE`, `$TAXIWAY_CONFIG`, `./taxiway.toml`,
`/etc/taxiway/taxiway.toml`. A file named by `-c` or `$TAXIWAY_CONFIG` that does not exist is an
error. Without any file Taxiway starts its own servers. `taxiway check` reads a file as Taxiway
would and explains every error.

- Durations and sizes carry their unit: `\"250ms\"`, `\"30s\"`, `\"1h30m\"`, `\"64MiB\"`. Units are
  `d h m s ms` and `GiB MiB KiB B`.
- Paths are relative to the file that names them.
- Secrets are never written in the file: `*_env` names an environment variable, `*_file` a file.
- A key that Taxiway does not know is an error, and so is one whose feature is not built yet.
- The column *Reload* says whether a change is applied to a running Taxiway: `yes` = at once,
  `new connections` = to connections made from then on, `no` = the whole reload is refused, says
  why, and everything stays as it was.
";

const NOT_BUILT: &str = "
## Not built yet

These belong to features of later releases. Writing one is an error.

";

/// What someone who wrote `word` probably meant, among `candidates`.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // Longer than any key by far; also bounds the work below.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('-', "_");
    candidates
        .filter_map(|candidate| {
            let distance = match candidate.replace('-', "_") {
                // A unit in the key: `timeout_ms`, `interval_seconds`.
                c if word
                    .strip_prefix(&c)
                    .is_some_and(|rest| rest.starts_with('_')) =>
                {
                    1
                }
                c => edits(&word, &c),
            };
            let allowed = 1.max(candidate.len().min(word.len()) / 3);
            (distance <= allowed).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours from `a` to `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let keys = [
            "interval",
            "timeout",
            "unhealthy_after",
            "healthy_after",
            "max_ejected",
        ];
        for (word, expected) in [
            ("intervall", Some("interval")),
            ("intervla", Some("interval")),
            ("timeout_ms", Some("timeout")),
            ("unhealthy-after", Some("unhealthy_after")),
            ("Timeout", Some("timeout")),
            ("colour", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, keys.into_iter()), expected, "{word}");
        }
        assert_eq!(nearest(&"t".repeat(100_000), keys.into_iter()), None);
    }

    #[test]
    fn edits_count_a_swap_once() {
        for (a, b, n) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "ba", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut sections = Vec::new();
        for section in SECTIONS {
            assert!(!sections.contains(&section.name), "{}", section.name);
            sections.push(section.name);
            for (at, key) in section.keys.iter().enumerate() {
                assert!(
                    !section.keys[..at].iter().any(|k| k.name == key.name),
                    "{}",
                    key.name
                );
            }
        }
    }
}
