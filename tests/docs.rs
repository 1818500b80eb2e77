//! What the documents say exists: files, configuration, commands, metrics.
//!
//! It runs no example against a server; `tests/run` has the real parts for that.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use regex::Regex;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Documents written by hand, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = fs::read_dir(root().join("docs"))
        .expect("docs/ can be listed")
        .map(|entry| entry.expect("docs/ can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    paths.push(root().join("README.md"));
    paths.push(root().join("CHANGELOG.md"));
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("documents are UTF-8");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).expect("the document exists")
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is one")
}

/// The fenced blocks of one language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.match_indices(&fence)
        .map(|(at, _)| {
            let body = &text[at + fence.len()..];
            &body[..body.find("\n```").expect("the fence is closed")]
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let link = pattern(r"\]\(([^)\s]+)\)");
    let mut checked = 0;
    for (path, text) in documents() {
        for target in link.captures_iter(&text).map(|found| found[1].to_owned()) {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap_or_default();
            let folder = path.parent().expect("a document lies in a folder");
            assert!(
                folder.join(file).exists(),
                "{} links to {target}, which does not exist",
                path.display()
            );
            checked += 1;
        }
    }
    assert!(checked > 20, "the pattern of links has stopped matching");
}

#[test]
fn configuration_examples_are_accepted() {
    let mut checked = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "toml") {
            taxiway::config::parse(block, &path, &|_| None)
                .unwrap_or_else(|failure| panic!("{}:\n{failure}", path.display()));
            checked += 1;
        }
    }
    assert!(checked > 0, "the README has lost its example");
}

/// `section.key` of every key, from the generated reference.
fn keys() -> BTreeSet<String> {
    let reference = document("docs/configuration.md");
    let known = reference
        .split("## Not built yet")
        .next()
        .unwrap_or_default();
    let heading = pattern(r"^## `\[+([\w.]+)\]+`");
    let row = pattern(r"^\| `(\w+)` \|");
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in known.lines() {
        if let Some(found) = heading.captures(line) {
            section = found[1].to_owned();
        } else if let Some(found) = row.captures(line) {
            keys.insert(format!("{section}.{}", &found[1]));
        }
    }
    keys
}

#[test]
fn configuration_keys_exist() {
    let keys = keys();
    assert!(
        keys.len() > 30,
        "docs/configuration.md has another form: {keys:?}"
    );
    let sections: BTreeSet<&str> = keys
        .iter()
        .filter_map(|key| key.split('.').next())
        .collect();
    let mention = pattern(r"`([a-z]+)\.([a-z_0-9]+)(?: = [^`]*)?`");
    let mut checked = 0;
    // What is not built yet is the roadmap's subject; the protocol has names of the same form.
    for name in [
        "README.md",
        "docs/operations.md",
        "docs/architecture.md",
        "CHANGELOG.md",
    ] {
        for found in mention.captures_iter(&document(name)) {
            let key = format!("{}.{}", &found[1], &found[2]);
            // `reply.rs` and `routing.mode` have one form.
            if sections.contains(&found[1]) && &found[2] != "rs" {
                assert!(keys.contains(&key), "{name}: there is no key {key}");
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "the pattern of keys has stopped matching");
}

#[test]
fn metrics_exist() {
    let reference = document("docs/metrics.md");
    let mention = pattern(r"`(taxiway_[a-z_]+)`");
    let known: BTreeSet<&str> = mention
        .captures_iter(&reference)
        .filter_map(|found| found.get(1))
        .map(|name| name.as_str())
        .collect();
    for name in ["README.md", "docs/operations.md", "docs/architecture.md"] {
        for found in mention.captures_iter(&document(name)) {
            assert!(
                known.contains(&found[1]),
                "{name}: there is no metric {}",
                &found[1]
            );
        }
    }
}

/// What `taxiway ARGUMENTS --help` prints; panics if there is no such command.
fn help(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_taxiway"))
        .args(command)
        .arg("--help")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "taxiway {command:?} is no command");
    String::from_utf8(output.stdout).expect("help is UTF-8")
}

#[test]
fn commands_exist() {
    // A command at the start of a line of a block, or of inline code.
    let mention = pattern(r"(?m)(?:^|`)taxiway((?: [^`\n|]+)?)(?:`|$)");
    let mut commands = BTreeSet::new();
    for (_, text) in documents() {
        for found in mention.captures_iter(&text) {
            commands.insert(found[1].trim().to_owned());
        }
    }
    assert!(
        commands.len() > 15,
        "the pattern of commands has stopped matching: {commands:?}"
    );
    let later = ["top", "tap"];
    for line in commands {
        let mut words = line.split_whitespace().peekable();
        let command: Vec<&str> = words
            .next_if(|word| !word.starts_with(['-', '[']))
            .into_iter()
            .collect();
        if command.first().is_some_and(|name| later.contains(name)) {
            continue;
        }
        let help = help(&command);
        for word in words {
            let flag = word.trim_matches(['[', ']', '…']);
            if flag.starts_with('-') {
                assert!(
                    help.contains(flag),
                    "`taxiway {line}`: no {flag} in\n{help}"
                );
            }
        }
    }
}

/// Commands that come later are told of in the roadmap only.
#[test]
fn what_is_not_built_is_in_the_roadmap() {
    for (path, text) in documents() {
        if path.ends_with("roadmap.md") {
            continue;
        }
        for later in ["taxiway top", "taxiway tap"] {
            assert!(!text.contains(later), "{} tells of {later}", path.display());
        }
    }
}

#[test]
fn every_error_code_is_explained() {
    let table = document("docs/operations.md");
    let source = document("src/core/reply.rs");
    let code = pattern(r"-32_?(0\d\d|[678]\d\d)");
    let codes: BTreeSet<String> = code
        .captures_iter(&source)
        .map(|found| format!("-32{}", &found[1]))
        .collect();
    assert!(
        codes.len() >= 8,
        "core/reply.rs writes its codes in another way: {codes:?}"
    );
    // The CLI's own, which Taxiway only repeats.
    let of_the_cli = ["-32001", "-32002", "-32003", "-32601", "-32602", "-32603"];
    for code in codes
        .iter()
        .filter(|code| !of_the_cli.contains(&code.as_str()))
    {
        assert!(
            table.contains(&format!("| {code} |")),
            "docs/operations.md misses {code}"
        );
    }
}

#[test]
fn compose_uses_files_that_exist() {
    let compose = document("docker-compose.yml");
    let file = pattern(r#"(?:dockerfile: |\./)([\w./-]+)"#);
    let mut checked = 0;
    for found in file.captures_iter(&compose) {
        let name = &found[1];
        let exists = ["", "conf/docker"]
            .iter()
            .any(|folder| root().join(folder).join(name).exists());
        assert!(
            exists,
            "docker-compose.yml names {name}, which does not exist"
        );
        checked += 1;
    }
    assert!(checked >= 4, "the pattern of files has stopped matching");
    let toml = document("conf/docker/taxiway.toml");
    let server = pattern(r"(?m)^  (cli-\d):");
    for found in server.captures_iter(&compose) {
        assert!(
            toml.contains(&format!("\"{}:4321\"", &found[1])),
            "{} is not in the pool",
            &found[1]
        );
    }
}
