//! The file as typed values with their places: everything that can be said of one key by itself.
//!
//! Walks the parsed document against the table in `reference`, because serde stops at the first
//! unknown key or wrong type and a user wants to hear of all. Knows no relation between keys;
//! that is `check`.

use std::{borrow::Cow, collections::BTreeMap, net::SocketAddr, ops::Range, time::Duration};

use regex::Regex;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    diagnostic::Report,
    reference::{self, Absent, Key, Kind, SECTIONS, Section, Shape, Short},
};
use crate::core::network::Networks;

mod read;

pub use read::dial_fault;
pub(super) use read::{is_principal, name_fault};
use read::{kind_of, read, read_default};

/// Most tables of one list; a file has to end somewhere.
const MAX_LIST: usize = 1000;

/// More syntax errors than this are not looked at: the file is something else.
const MAX_SYNTAX: usize = 100;

/// A value that fits its key.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Words(Vec<String>),
    Duration(Duration),
    Size(u64),
    Integer(u32),
    Number(f64),
    Flag(bool),
    Address(SocketAddr),
    Pattern(Regex),
    Networks(Networks),
    /// Written as a table, or short for one; it is among the nested ones.
    Nested,
}

/// One `key = value` of the file.
#[derive(Debug)]
pub(super) struct Entry {
    /// Place of the value.
    pub(super) span: Range<usize>,
    /// None if it was reported as wrong.
    value: Option<Value>,
}

/// One section of the file; without entries if it is not written.
#[derive(Debug)]
pub(super) struct Table {
    section: &'static Section,
    /// Place of its header or key; none if it is not written.
    pub(super) span: Option<Range<usize>>,
    entries: BTreeMap<&'static str, Entry>,
    /// By key.
    nested: BTreeMap<&'static str, Table>,
}

/// The file.
#[derive(Debug, Default)]
pub(super) struct Raw {
    tables: Vec<Table>,
    /// Sections of the wrong shape; reported.
    faulty: Vec<&'static str>,
    /// Parts of the file could not be read; reported.
    is_partial: bool,
}

impl Raw {
    /// Reads the document; what is wrong goes to `report`.
    pub(super) fn read(text: &str, report: &mut Report) -> Self {
        let (document, errors) = DeTable::parse_recoverable(text);
        let lines = Lines::of(text);
        let syntax_errors = tell_syntax(&lines, &errors, report);
        let mut walk = Walk {
            lines,
            report,
            syntax_errors,
        };
        let mut raw = Self {
            is_partial: !errors.is_empty(),
            ..Self::default()
        };
        for (name, value) in in_order(document.get_ref()) {
            walk.top_level(name, value, &mut raw);
        }
        for section in SECTIONS.iter().filter(|s| s.shape == Shape::Table) {
            if raw.list(section.name).next().is_none() {
                raw.tables.push(Table {
                    section,
                    span: None,
                    entries: BTreeMap::new(),
                    nested: BTreeMap::new(),
                });
            }
        }
        raw
    }

    /// The section written `[name]`; without entries if it is not written.
    pub(super) fn table(&self, name: &str) -> &Table {
        let mut tables = self.tables.iter();
        tables
            .find(|t| t.section.name == name)
            .expect("every section is put there by `read`")
    }

    /// Every `[[name]]`, in order.
    pub(super) fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Table> {
        self.tables.iter().filter(move |t| t.section.name == name)
    }

    /// Was the section reported as not being a section at all, or may it be unread?
    pub(super) fn is_faulty(&self, name: &str) -> bool {
        self.is_partial || self.faulty.contains(&name)
    }
}

impl Table {
    /// `section.key`, for messages.
    pub(super) fn full_name(&self, key: &str) -> String {
        format!("{}.{key}", self.section.name)
    }

    /// The key as written, right or wrong.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The table that is written as this key.
    pub(super) fn nested(&self, key: &str) -> Option<&Self> {
        self.nested.get(key)
    }

    /// Where the key's value stands, if it is written and right.
    pub(super) fn sound(&self, key: &str) -> Option<&Range<usize>> {
        self.entry(key)
            .filter(|e| e.value.is_some())
            .map(|e| &e.span)
    }

    /// Is the key written but wrong (and reported)? Then what follows from it is not worth saying.
    pub(super) fn is_faulty(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|e| e.value.is_none())
    }

    /// The value as written, else the default; none if there is neither.
    fn value(&self, key: &str) -> Option<Value> {
        if let Some(value) = self.entry(key).and_then(|e| e.value.clone()) {
            return Some(value);
        }
        let key = self
            .section
            .key(key)
            .expect("keys are constants of the table");
        match &key.absent {
            Absent::Refused | Absent::Means(_) => None,
            Absent::Words(words) => Some(Value::Words(
                words.iter().map(|w| (*w).to_owned()).collect(),
            )),
            Absent::Value(text) => Some(read_default(&key.kind, text)),
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        let Value::Text(text) = self.value(key)? else {
            unfit(key)
        };
        Some(text)
    }

    /// A key whose values are words: the word at hand turned by `convert`.
    pub(super) fn word<T>(&self, key: &str, convert: impl Fn(&str) -> Option<T>) -> T {
        let word = self.text(key).expect("choices have defaults");
        convert(&word).expect("every word of the table is converted")
    }

    pub(super) fn words(&self, key: &str) -> Vec<String> {
        self.words_or_none(key).unwrap_or_else(|| unfit(key))
    }

    pub(super) fn words_or_none(&self, key: &str) -> Option<Vec<String>> {
        let Value::Words(words) = self.value(key)? else {
            unfit(key)
        };
        Some(words)
    }

    pub(super) fn duration(&self, key: &str) -> Duration {
        let Some(Value::Duration(value)) = self.value(key) else {
            unfit(key)
        };
        value
    }

    /// Zero is none.
    pub(super) fn duration_or_off(&self, key: &str) -> Option<Duration> {
        Some(self.duration(key)).filter(|d| !d.is_zero())
    }

    pub(super) fn size(&self, key: &str) -> usize {
        let Some(Value::Size(value)) = self.value(key) else {
            unfit(key)
        };
        usize::try_from(value).unwrap_or(usize::MAX)
    }

    pub(super) fn integer(&self, key: &str) -> u32 {
        let Some(Value::Integer(value)) = self.value(key) else {
            unfit(key)
        };
        value
    }

    pub(super) fn integer_or_none(&self, key: &str) -> Option<u32> {
        let Value::Integer(value) = self.value(key)? else {
            unfit(key)
        };
        Some(value)
    }

    pub(super) fn size_or_none(&self, key: &str) -> Option<u64> {
        let Value::Size(value) = self.value(key)? else {
            unfit(key)
        };
        Some(value)
    }

    pub(super) fn count(&self, key: &str) -> usize {
        usize::try_from(self.integer(key)).unwrap_or(usize::MAX)
    }

    pub(super) fn number(&self, key: &str) -> f64 {
        let Some(Value::Number(value)) = self.value(key) else {
            unfit(key)
        };
        value
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        let Some(Value::Flag(value)) = self.value(key) else {
            unfit(key)
        };
        value
    }

    pub(super) fn address(&self, key: &str) -> SocketAddr {
        let Some(Value::Address(value)) = self.value(key) else {
            unfit(key)
        };
        value
    }

    pub(super) fn networks(&self, key: &str) -> Option<Networks> {
        let Value::Networks(value) = self.value(key)? else {
            unfit(key)
        };
        Some(value)
    }

    pub(super) fn pattern(&self, key: &str) -> Option<Regex> {
        let Value::Pattern(value) = self.value(key)? else {
            unfit(key)
        };
        Some(value)
    }
}

/// `check` asked for another type than the table gives the key: a mistake in this program that the
/// test over all defaults finds.
fn unfit(key: &str) -> ! {
    panic!("`{key}` is asked for as another type than the table gives it")
}

/// Reports the parser's errors; returns the first and last line of each.
fn tell_syntax(
    lines: &Lines,
    errors: &[toml::de::Error],
    report: &mut Report,
) -> Vec<(usize, usize)> {
    let starts = |message: &str, list: &[&str]| list.iter().any(|s| message.starts_with(s));
    let mut told = Vec::new();
    let mut is_inside = false;
    for error in errors.iter().take(MAX_SYNTAX) {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().lines().next().unwrap_or("not understood");
        let line = lines.spanned(&span);
        // What comes after the first error of a line follows from it, and what comes after a
        // bracket that is never closed follows from that.
        let inside = starts(
            message,
            &["missing comma", "missing key for inline", "unclosed"],
        );
        let follows = told.contains(&line) || (inside && is_inside);
        is_inside |= inside;
        told.push(line);
        if follows {
            continue;
        }
        if starts(
            message,
            &["invalid float", "invalid integer", "string values"],
        ) {
            // What the parser makes of a word without quotes, and a wild guess at what it was.
            let what = message.split(", expected").next().unwrap_or(message);
            report
                .error(&span, format!("not TOML: {what}"))
                .help("words, addresses, durations and sizes are written in quotes");
        } else {
            let finding = report.error(&span, format!("not TOML: {message}"));
            if inside {
                finding.help("is a closing bracket missing, here or above?");
            }
        }
    }
    told
}

/// The walk over the document.
struct Walk<'a> {
    lines: Lines,
    report: &'a mut Report,
    /// First and last line of each.
    syntax_errors: Vec<(usize, usize)>,
}

type Name<'d, 'i> = &'d Spanned<Cow<'i, str>>;

impl Walk<'_> {
    fn top_level(&mut self, name: Name<'_, '_>, value: &Spanned<DeValue<'_>>, raw: &mut Raw) {
        let word = name.get_ref().as_ref();
        // A quoted name with a dot is not a nested one.
        let known =
            |s: &&Section| s.name == word && !matches!(s.shape, Shape::Nested | Shape::NestedList);
        let Some(section) = SECTIONS.iter().find(known) else {
            self.unknown_section(name, value);
            return;
        };
        match (section.shape, value.get_ref()) {
            (Shape::Table, DeValue::Table(table)) => {
                let table = self.table(section, name.span(), table, raw);
                raw.tables.push(table);
            }
            (Shape::List | Shape::NestedList, DeValue::Array(items)) => {
                self.list(section, &name.span(), items, raw);
            }
            (Shape::Table | Shape::List | Shape::Nested | Shape::NestedList, other) => {
                raw.faulty.push(section.name);
                self.wrong_shape(section, &name.span(), other);
            }
        }
    }

    fn list(
        &mut self,
        section: &'static Section,
        span: &Range<usize>,
        items: &[Spanned<DeValue<'_>>],
        raw: &mut Raw,
    ) {
        if items.len() > MAX_LIST {
            let message = format!("{}: {} are too many", section.name, items.len());
            self.report
                .error(span, message)
                .help(format!("at most {MAX_LIST}"));
        }
        for item in items.iter().take(MAX_LIST) {
            if let DeValue::Table(table) = item.get_ref() {
                let table = self.table(section, item.span(), table, raw);
                raw.tables.push(table);
            } else {
                raw.faulty.push(section.name);
                self.wrong_shape(section, &item.span(), item.get_ref());
            }
        }
    }

    /// A key that is a list of tables.
    fn nested_list(
        &mut self,
        name: &str,
        span: &Range<usize>,
        value: &Spanned<DeValue<'_>>,
        raw: &mut Raw,
    ) {
        let section = SECTIONS
            .iter()
            .find(|s| s.name == name)
            .expect("every key of this kind has its section; a test looks for them");
        if let DeValue::Array(items) = value.get_ref() {
            self.list(section, span, items, raw);
        } else {
            raw.faulty.push(section.name);
            self.wrong_shape(section, span, value.get_ref());
        }
    }

    fn wrong_shape(&mut self, section: &Section, span: &Range<usize>, found: &DeValue<'_>) {
        // A broken header may have made one section of two.
        if !self.syntax_errors.is_empty() {
            return;
        }
        let name = section.name;
        let (expected, help) = match section.shape {
            Shape::List | Shape::NestedList => (
                "a list of tables",
                format!("write `[[{name}]]`, a block for each of them"),
            ),
            Shape::Table | Shape::Nested => ("a table", format!("write `[{name}]`, once")),
        };
        let message = format!("{name}: expected {expected}, found {}", kind_of(found));
        self.report.error(span, message).help(help);
    }

    fn table(
        &mut self,
        section: &'static Section,
        span: Range<usize>,
        document: &DeTable<'_>,
        raw: &mut Raw,
    ) -> Table {
        let mut entries = BTreeMap::new();
        let mut nested = BTreeMap::new();
        for (name, value) in in_order(document) {
            let word = name.get_ref().as_ref();
            let Some(key) = section.key(word) else {
                self.unknown_key(section, name);
                continue;
            };
            if !key.is_built() {
                let written = format!("{}.{word}", section.name);
                self.not_built(&name.span(), &written, key.text);
                continue;
            }
            if let Kind::Tables = key.kind {
                let name = format!("{}.{word}", section.name);
                self.nested_list(&name, &value.span(), value, raw);
                continue;
            }
            let entry = if let Kind::Nested(short) = key.kind {
                self.nested(section, key, short, value, &mut nested, raw)
            } else {
                self.value(section, key, value)
            };
            entries.insert(key.name, entry);
        }
        for key in section
            .keys
            .iter()
            .filter(|k| matches!(k.absent, Absent::Refused))
        {
            // It may be what the parser could not read.
            if !entries.contains_key(key.name) && self.syntax_errors.is_empty() {
                let (section, key) = (section.name, key.name);
                let message = format!("{section}: `{key}` is missing");
                self.report
                    .error(&span, message)
                    .help(format!("add `{key} = …`"));
            }
        }
        Table {
            section,
            span: Some(span),
            entries,
            nested,
        }
    }

    fn nested(
        &mut self,
        section: &Section,
        key: &'static Key,
        short: Short,
        value: &Spanned<DeValue<'_>>,
        nested: &mut BTreeMap<&'static str, Table>,
        raw: &mut Raw,
    ) -> Entry {
        let span = value.span();
        let name = format!("{}.{}", section.name, key.name);
        let inner = SECTIONS.iter().find(|s| s.name == name);
        let inner = inner.expect("each nested key has its section (tested)");
        let table = match (value.get_ref(), short) {
            (DeValue::Table(table), _) => Some(self.table(inner, span.clone(), table, raw)),
            (DeValue::Boolean(true), Short::Flag) => {
                Some(self.table(inner, span.clone(), &DeTable::new(), raw))
            }
            (DeValue::Boolean(false), Short::Flag) => None,
            (other, _) => {
                let found = kind_of(other);
                let expected = match short {
                    Short::No => "a table",
                    Short::Flag => "true, false or a table",
                };
                self.report
                    .error(&span, format!("{name}: expected {expected}, found {found}"))
                    .help(format!("write `[{name}]`"));
                return Entry { span, value: None };
            }
        };
        nested.extend(table.map(|table| (key.name, table)));
        Entry {
            span,
            value: Some(Value::Nested),
        }
    }

    fn value(
        &mut self,
        section: &Section,
        key: &'static Key,
        value: &Spanned<DeValue<'_>>,
    ) -> Entry {
        let span = value.span();
        match read(&key.kind, value.get_ref()) {
            Ok(value) => Entry {
                span,
                value: Some(value),
            },
            Err(fault) => {
                if !self.follows_from_syntax(&span) {
                    if fault.is_secret {
                        self.report.mask(&span);
                    }
                    let message = format!("{}.{}: {}", section.name, key.name, fault.message);
                    let finding = self.report.error(&span, message);
                    fault.decorate(finding);
                }
                Entry { span, value: None }
            }
        }
    }

    fn not_built(&mut self, span: &Range<usize>, written: &str, feature: &str) {
        self.report
            .error(span, format!("not built yet: {written} ({feature})"))
            .help("take it out: it would have no effect, and Taxiway ignores nothing silently");
    }

    fn unknown_section(&mut self, name: Name<'_, '_>, value: &Spanned<DeValue<'_>>) {
        let (span, word) = (name.span(), shown(name.get_ref()));
        if self.follows_from_syntax(&span) {
            return;
        }
        let is_section = matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
        let what = if is_section { "section" } else { "key" };
        let top = || {
            SECTIONS
                .iter()
                .filter(|s| !matches!(s.shape, Shape::Nested | Shape::NestedList))
        };
        let help = reference::nearest(&word, top().map(|s| s.name))
            .map(|near| format!("did you mean `{near}`?"))
            .or_else(|| belongs_to(&word))
            .unwrap_or_else(|| {
                let names: Vec<_> = top().map(|s| s.name).collect();
                format!("sections are: {}", names.join(", "))
            });
        self.report
            .error(&span, format!("unknown {what} `{word}`"))
            .help(help);
    }

    fn unknown_key(&mut self, section: &Section, name: Name<'_, '_>) {
        let (span, word) = (name.span(), shown(name.get_ref()));
        if self.follows_from_syntax(&span) {
            return;
        }
        let is_secret = section.key(&format!("{word}_env")).is_some();
        let help = if is_secret {
            format!(
                "secrets are not written in the file: `{word}_env` names an environment variable, \
                 `{word}_file` a file"
            )
        } else {
            reference::nearest(&word, section.keys.iter().map(|k| k.name))
                .map(|near| format!("did you mean `{near}`?"))
                .or_else(|| belongs_to(&word))
                .unwrap_or_else(|| {
                    let built = section.keys.iter().filter(|k| k.is_built());
                    let names: Vec<_> = built.map(|k| k.name).collect();
                    format!("keys of this section are: {}", names.join(", "))
                })
        };
        self.report
            .error(&span, format!("unknown key `{}.{word}`", section.name))
            .help(help);
    }

    /// Is the line of `span` one with a syntax error? Then the parser's guess at the rest of it is
    /// not worth a second message.
    fn follows_from_syntax(&self, span: &Range<usize>) -> bool {
        let (first, last) = self.lines.spanned(span);
        self.syntax_errors
            .iter()
            .any(|(from, to)| *from <= last && first <= *to)
    }
}

/// Where lines end.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// First and last line of a place, from 0.
    fn spanned(&self, span: &Range<usize>) -> (usize, usize) {
        let line = |offset| self.0.partition_point(|end| *end < offset);
        (line(span.start), line(span.end))
    }
}

/// In the order of the file; the document's map is sorted by name.
fn in_order<'d, 'i>(table: &'d DeTable<'i>) -> Vec<(Name<'d, 'i>, &'d Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

/// The section of a key that stands in the wrong one.
fn belongs_to(word: &str) -> Option<String> {
    let mut homes = SECTIONS
        .iter()
        .filter(|s| s.key(word).is_some())
        .map(|s| match s.shape {
            Shape::List | Shape::NestedList => format!("`[[{}]]`", s.name),
            Shape::Table | Shape::Nested => format!("`[{}]`", s.name),
        });
    let (first, second) = (homes.next()?, homes.next());
    let more = second.map_or(String::new(), |s| format!(" or {s}"));
    Some(format!("`{word}` belongs to {first}{more}"))
}

/// A name out of the file, short enough for a message.
fn shown(name: &str) -> String {
    let mut text: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    if text.len() < name.len() {
        text.push('…');
    }
    text
}
