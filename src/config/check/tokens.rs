//! `identity.tokens_file`: principals by the thousand, one a line. Text in, lines out; reads no
//! file.

use std::collections::BTreeMap;

use crate::{
    config::raw::is_principal,
    core::{credential::Fingerprint, identity::Role},
};

/// Most lines of the file.
const MAX_LINES: usize = 200_000;

/// One principal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) realm: String,
    pub(super) role: Role,
    pub(super) groups: Vec<String>,
    /// Line of each, from 1.
    pub(super) tokens: Vec<(usize, Fingerprint)>,
}

/// What is wrong with a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BadLine {
    /// From 1.
    pub(super) line: usize,
    /// Without what stands there: it may be a token.
    pub(super) reason: String,
}

/// Every principal of the file, in its order, and every line that is none.
pub(super) fn parse(text: &str) -> (Vec<Listed>, Vec<BadLine>) {
    let mut listed: Vec<Listed> = Vec::new();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    let mut bad = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        if line > MAX_LINES {
            let reason = format!("more than {MAX_LINES} lines");
            bad.push(BadLine { line, reason });
            break;
        }
        let entry = match parse_line(line, text) {
            Ok(None) => continue,
            Ok(Some(entry)) => entry,
            Err(reason) => {
                bad.push(BadLine { line, reason });
                continue;
            }
        };
        let Some(first) = at.get(&entry.name) else {
            at.insert(entry.name.clone(), listed.len());
            listed.push(entry);
            continue;
        };
        let first = &mut listed[*first];
        let same =
            (&first.realm, first.role, &first.groups) == (&entry.realm, entry.role, &entry.groups);
        if same {
            first.tokens.extend(entry.tokens);
        } else {
            let before = first.tokens.first().map_or(0, |(line, _)| *line);
            let reason = format!(
                "{} has another realm, role or groups than on line {before}",
                entry.name
            );
            bad.push(BadLine { line, reason });
        }
    }
    (listed, bad)
}

fn parse_line(line: usize, text: &str) -> Result<Option<Listed>, String> {
    let text = text.split('#').next().unwrap_or_default();
    let mut fields = text.split_whitespace();
    let Some(name) = fields.next() else {
        return Ok(None);
    };
    // It may be a token, by mistake.
    let name = Some(name)
        .filter(|name| is_principal(name))
        .ok_or("the first word is no name: letters, digits, `.` `_` `-` `:` `@` `+`")?;
    let token = fields
        .next()
        .ok_or("the hash of a token is missing behind the name")?;
    let token = Fingerprint::parse(token)
        .ok_or("the second word is no SHA-256 hash: 64 hexadecimal digits")?;
    if token.is_of_nothing() {
        return Err("the hash is that of an empty token".to_owned());
    }
    let mut optional = || fields.next().filter(|word| *word != "-");
    let realm = optional().unwrap_or(name);
    if !is_principal(realm) {
        return Err("the third word is no realm".to_owned());
    }
    let role = match optional() {
        None | Some("user") => Role::User,
        Some("service") => Role::Service,
        Some(_) => return Err("the fourth word is no role: `user` or `service`".to_owned()),
    };
    let groups: Vec<String> = optional()
        .into_iter()
        .flat_map(|groups| groups.split(','))
        .map(str::to_owned)
        .collect();
    if !groups.iter().all(|group| is_principal(group)) {
        return Err("the fifth word is no list of groups: `a,b`".to_owned());
    }
    if fields.next().is_some() {
        return Err("more than five words".to_owned());
    }
    Ok(Some(Listed {
        name: name.to_owned(),
        realm: realm.to_owned(),
        role,
        groups,
        tokens: vec![(line, token)],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str) -> String {
        Fingerprint::of(text).to_string()
    }

    #[test]
    fn reads_principals_with_and_without_their_defaults() {
        let text = format!(
            "# who\n\nann {a}\nbob {b} team service x,y # last\r\ncid {c} - - z\nann {d}\n",
            a = hash("a"),
            b = hash("b"),
            c = hash("c").to_uppercase(),
            d = hash("d"),
        );
        let (listed, bad) = parse(&text);
        assert_eq!(bad, []);
        let of = |name: &str| listed.iter().find(|l| l.name == name).unwrap();
        assert_eq!(listed.len(), 3);
        let tokens = vec![(3, Fingerprint::of("a")), (6, Fingerprint::of("d"))];
        assert_eq!(of("ann").tokens, tokens);
        assert_eq!((&*of("ann").realm, of("ann").role), ("ann", Role::User));
        assert_eq!((&*of("bob").realm, of("bob").role), ("team", Role::Service));
        assert_eq!(of("bob").groups, ["x", "y"]);
        assert_eq!((&*of("cid").realm, of("cid").role), ("cid", Role::User));
        assert_eq!(of("cid").groups, ["z"]);
        assert_eq!(of("cid").tokens, [(5, Fingerprint::of("c"))]);
    }

    #[test]
    fn says_which_lines_are_wrong_and_shows_none() {
        let good = hash("a");
        for (line, expected) in [
            ("ann".to_owned(), "hash of a token is missing"),
            ("ann s3cret-in-clear".to_owned(), "no SHA-256 hash"),
            (format!("s3cret/in clear {good}"), "no name"),
            (format!("ann {}", hash("")), "of an empty token"),
            (format!("ann {}", hash("\n")), "of an empty token"),
            (format!("ann {good} /x"), "no realm"),
            (format!("ann {good} x root"), "no role"),
            (format!("ann {good} x user a,,b"), "no list of groups"),
            (format!("ann {good} x user a b"), "more than five"),
            (format!("zed {good} elsewhere"), "than on line 1"),
        ] {
            let (_, bad) = parse(&format!("zed {good}\n{line}\n"));
            assert_eq!(bad.len(), 1, "{line}");
            assert_eq!(bad[0].line, 2);
            assert!(bad[0].reason.contains(expected), "{line}: {bad:?}");
            assert!(!bad[0].reason.contains("s3cret"), "{bad:?}");
        }
    }

    #[test]
    fn thousands_are_read_and_the_number_is_bounded() {
        let lines = |n: usize| -> String {
            (0..n)
                .map(|i| format!("u{i} {}\n", hash(&i.to_string())))
                .collect()
        };
        let (listed, bad) = parse(&lines(10_000));
        assert_eq!((listed.len(), bad.len()), (10_000, 0));
        let (_, bad) = parse(&"\n".repeat(MAX_LINES + 5));
        assert_eq!(bad.len(), 1);
    }
}
