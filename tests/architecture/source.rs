//! Rust source as the architecture test reads it: without comments and literals, tests told apart.
//! Knows no rule of the house; it is no parser either, only exact about what could mislead one.

use std::{collections::BTreeSet, ops::Range};

/// One file under `src/`.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// From `src/` on, as in `core/mux/mod.rs`.
    pub(crate) path: String,
    /// As it is.
    pub(crate) text: String,
    /// The same length and lines, with comments and literals blanked.
    pub(crate) code: String,
    /// `code` with everything blanked that is compiled into tests only.
    pub(crate) production: String,
}

impl Source {
    /// Reads one file; whether its whole module is a test, only its declaration tells.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank_literals(text);
        let production = blank_tests(&code);
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            production,
        }
    }

    /// The path of its module: `core/mux/mod.rs` is `[core, mux]`; of `lib.rs`, nothing.
    pub(crate) fn module(&self) -> Vec<String> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let mut module: Vec<String> = stem.split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
            module.pop();
        }
        module
    }

    /// Its first folder, or the file's own name at the top.
    pub(crate) fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The line of a byte of it, from 1.
    pub(crate) fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
    }

    /// Modules with a file of their own that it declares for tests only.
    fn test_modules(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for range in test_items(&self.code) {
            let item = self.code[range].trim_end();
            let words: Vec<&str> = item
                .split(|c: char| !is_word(c))
                .filter(|w| !w.is_empty())
                .collect();
            if let [.., "mod", name] = words[..]
                && item.ends_with(';')
            {
                found.push([self.module(), vec![name.to_owned()]].concat());
            }
        }
        found
    }
}

/// Blanks files that are only declared for tests, and what lies below them.
pub(crate) fn set_tests_apart(sources: &mut [Source]) {
    let tests: BTreeSet<Vec<String>> = sources.iter().flat_map(Source::test_modules).collect();
    for source in sources {
        let module = source.module();
        if (1..=module.len()).any(|depth| tests.contains(&module[..depth])) {
            source.production = blank(&source.code, 0..source.code.len());
        }
    }
}

/// Every path that starts at `crate`, `super` or `taxiway`: where it stands, and where it leads
/// from the crate's root. Braces are spelled out; a path to the root itself is empty.
pub(crate) fn crate_paths(source: &Source) -> Vec<(usize, Vec<String>)> {
    let code = &source.code;
    let inline = inline_modules(code);
    let mut found = Vec::new();
    for (offset, word) in words(code) {
        let before = code[..offset].trim_end();
        if before.ends_with("::") {
            continue;
        }
        let mut module = source.module();
        let enclosing = inline.iter().filter(|(range, _)| range.contains(&offset));
        module.extend(enclosing.map(|(_, name)| name.clone()));
        let base = match word {
            "crate" | "taxiway" => Vec::new(),
            "super" => {
                module.pop();
                module
            }
            _ => continue,
        };
        let after = offset + word.len();
        if code[after..].trim_start().starts_with("::") {
            walk(code, after, &base, &mut found);
        }
    }
    found
}

/// Follows `::name::{a, b}` from `at` on; gives the place behind it.
fn walk(code: &str, at: usize, base: &[String], found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let mut path = base.to_vec();
    let mut at = at;
    loop {
        let next = skip_space(code, at);
        if !code[next..].starts_with("::") {
            found.push((at.saturating_sub(1), path));
            return at;
        }
        let next = skip_space(code, next + 2);
        if code[next..].starts_with('{') {
            return branches(code, next + 1, &path, found);
        }
        let name = word_at(code, next);
        match name {
            "" => {
                found.push((next, path));
                return next + usize::from(code[next..].starts_with('*'));
            }
            "self" => {}
            "super" => {
                path.pop();
            }
            name => path.push(name.to_owned()),
        }
        at = next + name.len();
    }
}

/// Follows each branch of `{a::b, c}`; `at` is behind the brace.
fn branches(
    code: &str,
    mut at: usize,
    base: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    loop {
        at = skip_space(code, at);
        let Some(first) = code[at..].chars().next() else {
            return at;
        };
        match first {
            '}' => return at + 1,
            ',' => at += 1,
            '{' => at = branches(code, at + 1, base, found),
            c if is_word(c) => {
                let name = word_at(code, at);
                let mut path = base.to_vec();
                if name != "self" {
                    path.push(name.to_owned());
                }
                at = walk(code, at + name.len(), &path, found);
                // The other name of `a as b` is not a path.
                let rest = skip_space(code, at);
                if word_at(code, rest) == "as" {
                    let other = skip_space(code, rest + 2);
                    at = other + word_at(code, other).len();
                }
            }
            '*' => {
                found.push((at, base.to_vec()));
                at += 1;
            }
            c => at += c.len_utf8(),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_at(code: &str, at: usize) -> &str {
    let rest = &code[at..];
    &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())]
}

fn skip_space(code: &str, at: usize) -> usize {
    at + code[at..].len() - code[at..].trim_start().len()
}

/// Every word of the code and where it starts.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_word)?;
        let word = word_at(code, start);
        at = start + word.len();
        Some((start, word))
    })
}

/// `mod name { … }`: what each holds, from its opening brace, and its name; outer ones first.
fn inline_modules(code: &str) -> Vec<(Range<usize>, String)> {
    let mut found = Vec::new();
    for (at, word) in words(code) {
        if word != "mod" {
            continue;
        }
        let name_at = skip_space(code, at + word.len());
        let name = word_at(code, name_at);
        let open = skip_space(code, name_at + name.len());
        if !name.is_empty() && code[open..].starts_with('{') {
            found.push((open..closing(code, open), name.to_owned()));
        }
    }
    found
}

/// Behind the bracket that closes the one at `open`; the end, if none does.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (offset, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return open + offset + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Items behind `#[cfg(test)]`, with the attribute.
fn test_items(code: &str) -> Vec<Range<usize>> {
    const MARK: &str = "#[cfg(test)]";
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find(MARK) {
        let start = from + at;
        let mut end = skip_space(code, start + MARK.len());
        while code[end..].starts_with('#') {
            let bracket = end + code[end..].find('[').unwrap_or(0);
            end = skip_space(code, closing(code, bracket));
        }
        let import = word_at(code, end) == "use";
        while let Some(byte) = code.as_bytes().get(end) {
            match byte {
                b';' | b',' => {
                    end += 1;
                    break;
                }
                b'{' if !import => {
                    end = closing(code, end);
                    break;
                }
                b'(' | b'[' | b'{' => end = closing(code, end),
                b'}' | b')' | b']' => break,
                _ => end += 1,
            }
        }
        found.push(start..end);
        from = end;
    }
    found
}

fn blank_tests(code: &str) -> String {
    test_items(code)
        .into_iter()
        .fold(code.to_owned(), |code, range| blank(&code, range))
}

/// The same text with spaces for every byte of `range` but line ends.
fn blank(text: &str, range: Range<usize>) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for byte in &mut bytes[range] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
    String::from_utf8(bytes).expect("whole literals and items were blanked")
}

/// Blanks comments, and strings and characters between their quotes.
fn blank_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if rest.starts_with('"') {
            quoted(rest)
        } else if rest.starts_with('\'') {
            character(rest)
        } else if rest.starts_with(is_word) {
            // A word, and the raw string that it may be the prefix of.
            let word = word_at(text, at);
            let hashes = rest[word.len()..]
                .bytes()
                .take_while(|b| *b == b'#')
                .count();
            let opens = rest[word.len() + hashes..].starts_with('"');
            if matches!(word, "r" | "br" | "cr") && opens {
                let end = format!("\"{}", "#".repeat(hashes));
                let body = word.len() + hashes + 1;
                rest[body..]
                    .find(&end)
                    .map_or(rest.len(), |n| body + n + end.len())
            } else {
                at += word.len();
                continue;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        for byte in &mut out[at..at + length] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += length;
    }
    String::from_utf8(out).expect("only whole literals were blanked")
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; of a lifetime, only its quote.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        // The character behind the backslash may itself be a quote.
        Some((_, '\\')) => rest[3..].find('\'').map_or(1, |n| n + 4),
        Some((_, _)) => match chars.next() {
            Some((at, '\'')) => at + 1,
            Some(_) | None => 1,
        },
        None => 1,
    }
}
