//! Finding, reading and parsing the file: the way in.
//!
//! Watches nothing and applies nothing; that is the control plane's.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    Config,
    check::check,
    diagnostic::{Diagnostic, Failure, Report},
    raw::Raw,
};

/// Names the file when `-c` does not.
pub const VARIABLE: &str = "TAXIWAY_CONFIG";

/// Looked for when nothing names a file, in this order.
pub const PLACES: [&str; 2] = ["./taxiway.toml", "/etc/taxiway/taxiway.toml"];

/// A larger file is not read.
const MAX_FILE: u64 = 1 << 20;

/// A configuration that holds, and what was noticed on the way.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Risky or idle settings.
    pub warnings: Vec<Diagnostic>,
    /// The file itself, then every file that it names, as absolute paths: to watch.
    pub files: Vec<PathBuf>,
}

/// Reads and checks the file at `path` with the environment of this process.
pub fn load(path: &Path) -> Result<Loaded, Failure> {
    let bytes = read(path).map_err(|error| {
        Failure::of_file(
            path,
            format!("{} cannot be read: {error}", path.display()),
            None,
        )
    })?;
    match String::from_utf8(bytes) {
        Ok(text) => parse(&text, path, &environment),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
            let mut report = Report::default();
            report.depends_on(absolute(path));
            report
                .error(
                    &(text.len()..text.len()),
                    "the file is not UTF-8 from here on",
                )
                .help("save it as UTF-8");
            report
                .finish(path, &text)
                .map(|_| unreachable!("an error was reported"))
        }
    }
}

/// Checks `text` as the content of the file `path`, which need not exist.
///
/// Relative paths in it start at the directory of `path`; `environment` is asked for variables.
pub fn parse(
    text: &str,
    path: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Failure> {
    let absolute = absolute(path);
    let mut report = Report::default();
    report.depends_on(absolute.clone());
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    let raw = Raw::read(text, &mut report);
    let config = check(&raw, directory, environment, &mut report);
    let (warnings, files) = report.finish(path, text)?;
    Ok(Loaded {
        config: Config {
            source: Some(absolute),
            ..config
        },
        warnings,
        files,
    })
}

/// The file to read: `explicit`, else `$TAXIWAY_CONFIG`, else the first of [`PLACES`] that exists.
///
/// None means the start without configuration. A file that was named but does not exist is an
/// error.
pub fn find(explicit: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let places: Vec<_> = PLACES.iter().map(PathBuf::from).collect();
    find_among(explicit, &environment, &places)
}

fn find_among(
    explicit: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<String>,
    places: &[PathBuf],
) -> Result<Option<PathBuf>, Failure> {
    let variable = environment(VARIABLE)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let (path, by) = match (explicit, variable) {
        (Some(path), _) => (path.to_owned(), "-c".to_owned()),
        (None, Some(path)) => (path, format!("${VARIABLE}")),
        (None, None) => return Ok(places.iter().find(|p| p.exists()).cloned()),
    };
    if path.exists() {
        return Ok(Some(path));
    }
    let message = format!("the configuration file {} does not exist", path.display());
    Err(Failure::of_file(
        &path,
        message,
        Some(format!("it was named by {by}")),
    ))
}

/// The working directory may change before a path is used; without one, it stays relative.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_file_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.toml"), dir.path().join("b.toml"));
        std::fs::write(&b, "").unwrap();
        let places = [a.clone(), b.clone()];
        let none = |_: &str| None;
        let named = |name: &str| (name == VARIABLE).then(|| a.display().to_string());
        let empty = |_: &str| Some(String::new());

        assert_eq!(find_among(None, &none, &places).unwrap(), Some(b.clone()));
        assert_eq!(find_among(None, &empty, &places).unwrap(), Some(b.clone()));
        assert_eq!(find_among(None, &none, &places[..1]).unwrap(), None);
        assert_eq!(
            find_among(Some(&b), &named, &places).unwrap(),
            Some(b.clone())
        );

        let failure = find_among(None, &named, &places).unwrap_err();
        assert!(failure.to_string().contains("does not exist"), "{failure}");
        assert!(
            failure.to_string().contains("named by $TAXIWAY_CONFIG"),
            "{failure}"
        );
        let failure = find_among(Some(&a), &none, &places).unwrap_err();
        assert!(failure.to_string().contains("named by -c"), "{failure}");
    }

    #[test]
    fn says_where_utf8_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        std::fs::write(&path, b"[log]\nlevel = \"\xff\"\n").unwrap();
        let failure = load(&path).unwrap_err();
        assert_eq!(failure.diagnostics[0].position, Some((2, 10)));
        assert!(failure.to_string().contains("not UTF-8"), "{failure}");
    }

    #[test]
    fn a_directory_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let failure = load(dir.path()).unwrap_err();
        assert!(
            failure.to_string().contains("not a regular file"),
            "{failure}"
        );
    }
}
