//! What a regular expression of the configuration fits, beyond the texts at hand.
//!
//! Looks at its syntax only; what follows from it is said in `weak`.

use regex::Regex;
use regex_syntax::hir::{Class, Hir, HirKind, Look};

use crate::core::mux::is_session_id;

/// Ids that have nothing in common.
const UNLIKE: [&str; 4] = [
    "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "zz_-9",
    "QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ",
    "-_-_",
];

/// `identity.session_id_user`, taken apart.
#[derive(Debug)]
pub(super) struct Shape {
    /// It fits at the start of an id or nowhere.
    pub(super) is_anchored: bool,
    /// The group `user` by itself, for a whole text.
    user: Regex,
    /// Texts that fit what is before and behind the group; none if the group is not between them.
    around: Option<(String, String)>,
}

/// None of one that this module cannot take apart.
pub(super) fn shape_of(pattern: &Regex) -> Option<Shape> {
    let hir = regex_syntax::parse(pattern.as_str()).ok()?;
    let user = Regex::new(&format!(r"\A(?:{})\z", group(&hir)?)).ok()?;
    let around = match hir.kind() {
        HirKind::Capture(_) => Some((String::new(), String::new())),
        HirKind::Concat(parts) => parts
            .iter()
            .position(is_user)
            .and_then(|at| Some((example(&parts[..at])?, example(&parts[at + 1..])?))),
        HirKind::Empty
        | HirKind::Literal(_)
        | HirKind::Class(_)
        | HirKind::Look(_)
        | HirKind::Repetition(_)
        | HirKind::Alternation(_) => None,
    };
    Some(Shape {
        is_anchored: hir.properties().look_set_prefix().contains(Look::Start),
        user,
        around,
    })
}

impl Shape {
    /// Whether the group can be this user, in an id that the CLI accepts.
    pub(super) fn fits(&self, user: &str) -> bool {
        is_session_id(user) && self.user.is_match(user)
    }

    /// An id that somebody would choose for this user.
    pub(super) fn example(&self, user: &str) -> Option<String> {
        let (before, behind) = self.around.as_ref()?;
        Some(format!("{before}{user}{behind}"))
    }
}

/// Whether a whole id fits, whatever it is.
pub(super) fn fits_everything(pattern: &Regex) -> bool {
    UNLIKE.iter().all(|id| {
        let found = pattern.find(id);
        found.is_some_and(|found| found.range() == (0..id.len()))
    })
}

fn is_user(hir: &Hir) -> bool {
    matches!(hir.kind(), HirKind::Capture(group) if group.name.as_deref() == Some("user"))
}

/// What is in the group `user`, wherever that is.
fn group(hir: &Hir) -> Option<&Hir> {
    match hir.kind() {
        HirKind::Capture(inner) if is_user(hir) => Some(&inner.sub),
        HirKind::Capture(inner) => group(&inner.sub),
        HirKind::Repetition(inner) => group(&inner.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().find_map(group),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => None,
    }
}

/// A short text that fits these in turn.
fn example(parts: &[Hir]) -> Option<String> {
    parts.iter().map(example_of).collect()
}

fn example_of(hir: &Hir) -> Option<String> {
    /// Of a class, the first of these that is in it.
    const LIKELY: &str = "a1A-_";
    /// No id is longer.
    const LONGEST: usize = 254;
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Some(String::new()),
        HirKind::Literal(literal) => String::from_utf8(literal.0.to_vec()).ok(),
        HirKind::Class(Class::Unicode(class)) => {
            let has = |c: &char| {
                class
                    .ranges()
                    .iter()
                    .any(|r| (r.start()..=r.end()).contains(c))
            };
            let first = class.ranges().first().map(|r| r.start());
            LIKELY.chars().find(has).or(first).map(String::from)
        }
        HirKind::Class(Class::Bytes(_)) => None,
        HirKind::Repetition(inner) => {
            let times = usize::try_from(inner.min).ok().filter(|n| *n <= LONGEST)?;
            let one = example_of(&inner.sub)?;
            (one.len() * times <= LONGEST).then(|| one.repeat(times))
        }
        HirKind::Capture(inner) => example_of(&inner.sub),
        HirKind::Concat(parts) => example(parts),
        HirKind::Alternation(parts) => parts.first().and_then(example_of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_taken_apart() {
        for (pattern, anchored, fits, fits_not, example) in [
            (
                "^user-(?<user>.+?)--",
                true,
                "a-b",
                "a@b",
                Some("user-ann--"),
            ),
            ("(?<user>[a-z]+)-", false, "ann", "Ann", Some("ann-")),
            ("(?i)^(?P<user>[a-z]+)-", true, "Ann", "9", Some("ann-")),
            ("^(?:u|v)(?<user>\\d+)$", true, "12", "ann", Some("uann")),
            (
                "^(?<user>[^-]+)(-\\d{2}|$)",
                true,
                "ann",
                "a-b",
                Some("ann-11"),
            ),
            ("^(?:x-(?<user>a+)|y)", true, "aa", "b", None),
            ("(?<user>.+)", false, "x", "", Some("ann")),
            ("^a|(?<user>b)", false, "b", "a", None),
        ] {
            let shape = shape_of(&Regex::new(pattern).unwrap()).unwrap();
            assert_eq!(shape.is_anchored, anchored, "{pattern}");
            assert!(shape.fits(fits), "{pattern}");
            assert!(!shape.fits(fits_not), "{pattern}");
            assert_eq!(shape.example("ann").as_deref(), example, "{pattern}");
        }
    }

    #[test]
    fn what_fits_everything_is_known() {
        for (pattern, expected) in [
            (".*", true),
            ("^.+$", true),
            ("[A-Za-z0-9_-]{1,200}", true),
            ("(?:a|.)*", true),
            ("team-.*", false),
            ("[a-z0-9-]+", false),
            (".", false),
        ] {
            let pattern = Regex::new(pattern).unwrap();
            assert_eq!(fits_everything(&pattern), expected, "{pattern}");
        }
    }
}
