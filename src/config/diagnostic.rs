//! What a reader of the file is told: errors and warnings with their place, an excerpt and help.
//!
//! Judges nothing; `raw` and `check` do, and report here. Excerpts never show a secret.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use regex::Regex;
use serde_json::json;

/// More than this many are counted, not shown.
const MAX_SHOWN: usize = 100;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// Accepted, but worth a look.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing said about a configuration.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file as the user named it; empty where no file is concerned.
    pub file: PathBuf,
    /// Line and column, both from 1, the column in characters; none = the file as a whole.
    pub position: Option<(usize, usize)>,
    /// What is wrong, in one line, without values that could be secret.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The whole message with its excerpt, several lines.
    rendered: String,
}

impl Diagnostic {
    /// `FILE:LINE:COLUMN: error: MESSAGE; HELP`, for logs.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        if !self.file.as_os_str().is_empty() {
            text.push_str(&format!("{}:", self.file.display()));
            if let Some((line, column)) = self.position {
                text.push_str(&format!("{line}:{column}:"));
            }
            text.push(' ');
        }
        text.push_str(&format!("{}: {}", self.severity.as_str(), self.message));
        if let Some(help) = &self.help {
            text.push_str(&format!("; {help}"));
        }
        text
    }

    /// For the admin API and `-o json`.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "severity": self.severity.as_str(),
            "file": self.file.display().to_string(),
            "line": self.position.map(|p| p.0),
            "column": self.position.map(|p| p.1),
            "message": self.message,
            "help": self.help,
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rendered)
    }
}

/// A configuration that was refused: everything that is wrong with it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// In the order of the file: errors, and the warnings found beside them.
    pub diagnostics: Vec<Diagnostic>,
    /// Every file that was named, as absolute paths, to watch: the cure may come in any of them.
    pub files: Vec<PathBuf>,
    /// Diagnostics beyond the bound on their number.
    pub left_out: usize,
    /// All errors, shown or not.
    pub error_count: usize,
}

impl Failure {
    /// A failure that concerns `path` as a whole.
    pub(super) fn of_file(path: &Path, message: String, help: Option<String>) -> Self {
        let finding = Finding::new(Severity::Error, None, message);
        let finding = Finding { help, ..finding };
        Self {
            diagnostics: vec![finding.render(path, "")],
            files: vec![super::load::absolute(path)],
            left_out: 0,
            error_count: 1,
        }
    }

    /// Only what makes it a failure.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics
            .iter()
            .filter(|d| d.severity == Severity::Error)
    }

    /// One line for each error, for logs.
    pub fn summaries(&self) -> Vec<String> {
        self.errors().map(Diagnostic::summary).collect()
    }

    /// All diagnostics, for the admin API.
    pub fn to_json(&self) -> serde_json::Value {
        self.diagnostics.iter().map(Diagnostic::to_json).collect()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{diagnostic}\n")?;
        }
        if self.left_out > 0 {
            writeln!(f, "and {} more\n", self.left_out)?;
        }
        match self.error_count {
            1 => f.write_str("1 error; nothing was applied"),
            n => write!(f, "{n} errors; nothing was applied"),
        }
    }
}

impl std::error::Error for Failure {}

/// A diagnostic in the making: its place is still a range of bytes.
#[derive(Debug)]
pub(super) struct Finding {
    severity: Severity,
    span: Option<Range<usize>>,
    message: String,
    label: String,
    help: Option<String>,
    also: Option<(Range<usize>, String)>,
}

impl Finding {
    fn new(severity: Severity, span: Option<Range<usize>>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            severity,
            span,
            message,
            label: String::new(),
            help: None,
            also: None,
        }
    }

    /// Written beside the marked text.
    pub(super) fn label(&mut self, text: impl Into<String>) -> &mut Self {
        self.label = text.into();
        self
    }

    /// What to do about it.
    pub(super) fn help(&mut self, text: impl Into<String>) -> &mut Self {
        self.help = Some(text.into());
        self
    }

    /// A second place that has to do with it.
    pub(super) fn also(&mut self, span: &Range<usize>, text: impl Into<String>) -> &mut Self {
        self.also = Some((span.clone(), text.into()));
        self
    }

    fn render(self, path: &Path, masked: &str) -> Diagnostic {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let name = path.display().to_string();
        let mut group = Group::with_title(level.primary_title(&self.message));
        if let Some(span) = &self.span {
            let mut snippet = Snippet::source(masked).path(&name).annotation(
                AnnotationKind::Primary
                    .span(span.clone())
                    .label(&self.label),
            );
            if let Some((span, label)) = &self.also {
                let context = AnnotationKind::Context.span(span.clone()).label(label);
                snippet = snippet.annotation(context);
            }
            group = group.element(snippet);
        } else if !name.is_empty() {
            group = group.element(Origin::path(&name));
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help));
        }
        let rendered = Renderer::plain().render(&[group]);
        Diagnostic {
            severity: self.severity,
            file: path.to_owned(),
            position: self.span.map(|span| position(masked, span.start)),
            message: self.message,
            help: self.help,
            rendered,
        }
    }
}

/// Collects what is found in one file.
#[derive(Debug, Default)]
pub(super) struct Report {
    findings: Vec<Finding>,
    masks: Vec<Range<usize>>,
    files: Vec<PathBuf>,
}

impl Report {
    /// Notes an error at `span`.
    pub(super) fn error(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
    ) -> &mut Finding {
        self.push(Finding::new(Severity::Error, Some(span.clone()), message))
    }

    /// Notes an error of the file as a whole.
    pub(super) fn error_at_large(&mut self, message: impl Into<String>) -> &mut Finding {
        self.push(Finding::new(Severity::Error, None, message))
    }

    /// Notes a warning at `span`.
    pub(super) fn warning(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
    ) -> &mut Finding {
        self.push(Finding::new(Severity::Warning, Some(span.clone()), message))
    }

    /// Whether the configuration is refused.
    pub(super) fn has_errors(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|finding| finding.severity == Severity::Error)
    }

    /// Hides `span` in every excerpt.
    pub(super) fn mask(&mut self, span: &Range<usize>) {
        self.masks.push(span.clone());
    }

    /// Notes a file that the configuration depends on.
    pub(super) fn depends_on(&mut self, file: PathBuf) {
        if !self.files.contains(&file) {
            self.files.push(file);
        }
    }

    /// `Ok` with warnings and files if there is no error.
    pub(super) fn finish(
        mut self,
        path: &Path,
        text: &str,
    ) -> Result<(Vec<Diagnostic>, Vec<PathBuf>), Failure> {
        // Findings of the file as a whole come last: they often follow from the others.
        self.findings
            .sort_by_key(|f| f.span.as_ref().map_or(usize::MAX, |s| s.start));
        let error_count = self
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .count();
        if error_count > 0 {
            // Errors are what the bound must keep.
            self.findings
                .sort_by_key(|f| f.severity == Severity::Warning);
        }
        let left_out = self.findings.len().saturating_sub(MAX_SHOWN);
        self.findings.truncate(MAX_SHOWN);
        let masked = masked(text, &self.masks);
        let diagnostics = self
            .findings
            .into_iter()
            .map(|finding| finding.render(path, &masked))
            .collect();
        if error_count > 0 {
            Err(Failure {
                diagnostics,
                files: self.files,
                left_out,
                error_count,
            })
        } else {
            Ok((diagnostics, self.files))
        }
    }

    fn push(&mut self, finding: Finding) -> &mut Finding {
        self.findings.push(finding);
        self.findings.last_mut().expect("pushed just now")
    }
}

/// Line and column of the byte at `offset`, both from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

/// The text with secrets starred out, each byte by one star so that offsets stay right.
///
/// Beside the given ranges, the rest of a line after `…token =`, `…secret =`, `…password =` is
/// hidden: such keys do not exist, and what people put there by mistake is the clear text. So it is
/// after `token_sha256 =`, where they may have put the token and not its hash.
fn masked(text: &str, ranges: &[Range<usize>]) -> String {
    let keys = r#"(?i)(?:token|secret|password)(?:_sha256)?["']?[ \t]*=[ \t]*([^\r\n]+)"#;
    let inline = Regex::new(keys).expect("a constant pattern");
    let mut bytes = text.as_bytes().to_vec();
    let found = inline
        .captures_iter(text)
        .filter_map(|c| c.get(1))
        .map(|m| m.range());
    for range in found.chain(ranges.iter().cloned()) {
        if let Some(part) = bytes.get_mut(range) {
            for byte in part.iter_mut().filter(|b| !matches!(**b, b'\r' | b'\n')) {
                *byte = b'*';
            }
        }
    }
    // Ranges are whole tokens, so the text is still UTF-8; if not, showing less is right.
    String::from_utf8(bytes).unwrap_or_else(|_| "*".repeat(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let text = "a = 1\nü = 2\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 4), (1, 5));
        assert_eq!(position(text, 6), (2, 1));
        assert_eq!(position(text, 11), (2, 5));
        assert_eq!(position(text, 7), (2, 1), "inside a character: its start");
        assert_eq!(position(text, 999), (3, 1));
    }

    #[test]
    fn clear_text_secrets_are_starred_out() {
        let text = "token = \"hunter2\"\n[[b]]\nx = { connection_token='p\u{fc}', a = 1 }\ntoken_env = \"NAME\"\n[[p]]\ntoken_sha256 = swordfish";
        let shown = masked(text, &[]);
        assert_eq!(shown.len(), text.len());
        assert!(
            !shown.contains("hunter2") && !shown.contains('\u{fc}'),
            "{shown}"
        );
        assert!(!shown.contains("swordfish"), "{shown}");
        assert!(shown.contains("token_env = \"NAME\""), "{shown}");
        let name = text.find("NAME").unwrap();
        let ranges = std::iter::once(name..name + 4).collect::<Vec<_>>();
        assert!(masked(text, &ranges).contains("\"****\""));
    }

    #[test]
    fn the_number_of_diagnostics_is_bounded() {
        let mut report = Report::default();
        for _ in 0..MAX_SHOWN + 5 {
            report.warning(&(0..1), "w");
        }
        report.error(&(0..1), "e");
        let failure = report.finish(Path::new("x"), "text").unwrap_err();
        assert_eq!(failure.diagnostics.len(), MAX_SHOWN);
        assert_eq!(failure.left_out, 6);
        assert_eq!(failure.errors().count(), 1, "the error is kept");
    }
}
