//! One value against the kind of its key.
//!
//! Pure: a TOML value in, a typed value or what is wrong with it out.

use std::{net::SocketAddr, time::Duration};

use regex::Regex;
use toml::de::DeValue;

use super::{Value, shown};
use crate::{
    config::{
        diagnostic::Finding,
        quantity::{self, Malformed},
        reference::{self, Kind},
    },
    core::credential::Fingerprint,
};
use crate::{core::network::Networks, transport};

/// What is wrong with a value.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) message: String,
    label: String,
    help: Option<String>,
    /// What was written is likely a secret: not to be shown.
    pub(super) is_secret: bool,
}

impl Fault {
    fn new(message: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            label: label.into(),
            help: None,
            is_secret: false,
        }
    }

    fn help(self, text: impl Into<String>) -> Self {
        Self {
            help: Some(text.into()),
            ..self
        }
    }

    /// Adds label and help.
    pub(super) fn decorate(self, finding: &mut Finding) {
        finding.label(self.label);
        if let Some(help) = self.help {
            finding.help(help);
        }
    }
}

fn out_of_range(range: String) -> Fault {
    Fault::new(format!("must be {range}"), "out of range")
}

/// Reads what the file has.
pub(super) fn read(kind: &Kind, value: &DeValue<'_>) -> Result<Value, Fault> {
    let expected = |what: &str| {
        let found = kind_of(value);
        Fault::new(
            format!("expected {what}, found {found}"),
            format!("this is {found}"),
        )
    };
    match (kind, value) {
        (Kind::Integer { min, max }, DeValue::Integer(number)) => {
            let number = i128::from_str_radix(number.as_str(), number.radix());
            let fit = number.ok().and_then(|n| u32::try_from(n).ok());
            match fit {
                Some(n) if (*min..=*max).contains(&n) => Ok(Value::Integer(n)),
                _ => Err(out_of_range(format!("{min} to {max}"))),
            }
        }
        (Kind::Number { min, max, zero }, DeValue::Integer(_) | DeValue::Float(_)) => {
            read_number(value, *min, *max, *zero)
        }
        (Kind::Flag, DeValue::Boolean(flag)) => Ok(Value::Flag(*flag)),
        (Kind::Words, DeValue::Array(items)) => {
            let words = items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned));
            match words.collect::<Option<Vec<_>>>() {
                None => Err(Fault::new(
                    "expected a list of strings",
                    "not only strings in here",
                )),
                Some(words) if words.first().is_none_or(String::is_empty) => {
                    Err(Fault::new("is empty", "nothing in here"))
                }
                Some(words) => Ok(Value::Words(words)),
            }
        }
        (Kind::Names, DeValue::Array(items)) => {
            let words = items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned));
            let words = words.collect::<Option<Vec<_>>>().ok_or_else(|| {
                Fault::new("expected a list of names", "not only strings in here")
            })?;
            match words.iter().find(|word| !is_name(word)) {
                None => Ok(Value::Words(words)),
                Some(word) => Err(Fault::new(
                    format!("{word:?} is no name"),
                    "letters, digits, `.` `_` `$` `/` `-` and `*`",
                )),
            }
        }
        (Kind::Several(inner), DeValue::Array(items)) => {
            let words = items.iter().map(|item| {
                let read = item.get_ref().as_str().and_then(|text| {
                    let read = read_text(inner, text)?;
                    Some(read.map(|_| text.to_owned()))
                });
                read.unwrap_or_else(|| {
                    let (wanted, found) = (plain_name(inner), kind_of(item.get_ref()));
                    let message = format!("expected {wanted}, found {found}");
                    Err(Fault::new(message, "in here"))
                })
            });
            let words: Vec<String> = words.collect::<Result<_, _>>()?;
            if words.is_empty() {
                return Err(Fault::new("is empty", "nothing in here"));
            }
            Ok(Value::Words(words))
        }
        (Kind::Networks, DeValue::Array(items)) => {
            let texts = items.iter().map(|item| item.get_ref().as_str());
            match texts.collect::<Option<Vec<_>>>() {
                None => Err(Fault::new(
                    "expected a list of networks in quotes",
                    "not only strings in here",
                )),
                Some(texts) if texts.is_empty() => {
                    Err(Fault::new("is empty", "nobody").help("take it out, or name a network"))
                }
                Some(texts) => Networks::parse(texts)
                    .map(Value::Networks)
                    .map_err(|bad| Fault::new(bad.to_string(), "")),
            }
        }
        (Kind::Duration { .. }, DeValue::Integer(n)) => {
            Err(Fault::new("a duration needs its unit", "of what?")
                .help(format!("write \"{n}s\", \"{n}ms\", \"{n}m\" or \"{n}h\"")))
        }
        (Kind::Size { .. }, DeValue::Integer(n)) => {
            Err(Fault::new("a size needs its unit", "of what?")
                .help(format!("write \"{n}MiB\", \"{n}KiB\" or \"{n}B\"")))
        }
        (_, DeValue::String(text)) => read_text(kind, text).unwrap_or_else(|| {
            let fault = expected(&plain_name(kind));
            Err(if text.len() <= 20 && text.parse::<f64>().is_ok() {
                fault.help(format!("write it without quotes: {text}"))
            } else {
                fault
            })
        }),
        _ => Err(expected(&plain_name(kind))),
    }
}

/// Of a method or parameter; `*` may stand for something in it.
fn is_name(word: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._$/-*".contains(&byte);
    !word.is_empty() && word.bytes().all(allowed)
}

fn plain_name(kind: &Kind) -> String {
    let name = match kind {
        Kind::Choice { words, .. } => return format!("one of {}", quoted(words)),
        Kind::Listen => "\"IP:PORT\"",
        Kind::Dial => "\"HOST:PORT\"",
        Kind::Name => "a name in quotes",
        Kind::Duration { .. } => "a duration like \"30s\"",
        Kind::Size { .. } => "a size like \"64MiB\"",
        Kind::Integer { .. } => "a whole number",
        Kind::Number { .. } => "a number",
        Kind::Flag => "true or false",
        Kind::Pattern => "a regular expression in quotes",
        Kind::Path | Kind::SecretFile => "a path in quotes",
        Kind::Variable => "the name of an environment variable in quotes",
        Kind::Principal => "a name in quotes",
        Kind::Text => "a text in quotes",
        Kind::Match => "a regular expression in quotes",
        Kind::Hash => "64 hexadecimal digits in quotes",
        Kind::Several(inner) => return format!("{}, or a list of such", plain_name(inner)),
        Kind::Words => "a list of strings",
        Kind::Names => "a list of names",
        Kind::Tables => "tables",
        Kind::Networks => "a list like [\"10.0.0.0/8\"]",
        Kind::ServerName => "a name in quotes",
        Kind::Nested(_) => "a table",
        Kind::NotBuilt => "nothing",
    };
    name.to_owned()
}

fn quoted(words: &[&str]) -> String {
    words
        .iter()
        .map(|w| format!("\"{w}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

fn read_number(
    value: &DeValue<'_>,
    min: f64,
    max: f64,
    zero: Option<&str>,
) -> Result<Value, Fault> {
    let number = match value {
        DeValue::Integer(n) => {
            // Beyond any range as `None`, so nothing is lost by the conversion.
            let whole = i128::from_str_radix(n.as_str(), n.radix()).ok();
            whole.and_then(|n| i32::try_from(n).ok()).map(f64::from)
        }
        DeValue::Float(n) => n.as_str().parse::<f64>().ok(),
        DeValue::String(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    };
    match number {
        Some(n) if (min..=max).contains(&n) || (n == 0.0 && zero.is_some()) => Ok(Value::Number(n)),
        _ => {
            let or = zero.map_or(String::new(), |z| format!(", or 0 for {z}"));
            Err(out_of_range(format!("{min:?} to {max:?}{or}")))
        }
    }
}

/// Reads a default of the table.
pub(super) fn read_default(kind: &Kind, text: &str) -> Value {
    if let Some(read) = read_text(kind, text) {
        return read.unwrap_or_else(|fault| panic!("the default {text} is wrong: {fault:?}"));
    }
    let value = DeValue::parse(text).expect("defaults are TOML; a test reads them all");
    read(kind, value.get_ref())
        .unwrap_or_else(|fault| panic!("the default {text} is wrong: {fault:?}"))
}

/// Kinds that are written in quotes; none for the others.
fn read_text(kind: &Kind, text: &str) -> Option<Result<Value, Fault>> {
    Some(match kind {
        Kind::Listen => read_listen(text).map(Value::Address),
        Kind::Dial => read_dial(text).map(|()| Value::Text(text.to_owned())),
        Kind::Name => read_name(text).map(|()| Value::Text(text.to_owned())),
        Kind::Duration { min, max, zero } => read_duration(text, *min, *max, *zero),
        Kind::Size { min, max } => read_size(text, *min, *max),
        Kind::Choice { words, planned } => read_choice(text, words, planned),
        Kind::Pattern => read_pattern(text),
        Kind::Path | Kind::SecretFile => read_path(text),
        Kind::Variable => read_variable(text),
        Kind::Principal => read_principal(text).map(|()| Value::Text(text.to_owned())),
        Kind::Text => read_line(text).map(|()| Value::Text(text.to_owned())),
        Kind::Match => read_match(text).map(Value::Pattern),
        Kind::Hash => read_hash(text).map(|()| Value::Text(text.to_owned())),
        Kind::Several(inner) => {
            return read_text(inner, text)
                .map(|read| read.map(|_| Value::Words(vec![text.into()])));
        }
        Kind::ServerName if transport::is_server_name(text) => Ok(Value::Text(text.to_owned())),
        Kind::ServerName => Err(Fault::new(
            "not a name that a certificate can be for",
            "expected a DNS name or IP address",
        )),
        Kind::Integer { .. }
        | Kind::Number { .. }
        | Kind::Flag
        | Kind::Words
        | Kind::Names
        | Kind::Tables
        | Kind::Networks
        | Kind::Nested(_)
        | Kind::NotBuilt => return None,
    })
}

fn read_duration(
    text: &str,
    min: Duration,
    max: Duration,
    zero: Option<&str>,
) -> Result<Value, Fault> {
    let units = "units are d h m s ms, as in \"30s\", \"250ms\", \"1h30m\"";
    let value = quantity::duration(text).map_err(|e| malformed(e, "duration", text, "s", units))?;
    if (min..=max).contains(&value) || (value.is_zero() && zero.is_some()) {
        return Ok(Value::Duration(value));
    }
    let (min, max) = (quantity::show_duration(min), quantity::show_duration(max));
    let or = zero.map_or(String::new(), |z| format!(", or \"0s\" for {z}"));
    Err(out_of_range(format!("\"{min}\" to \"{max}\"{or}")))
}

fn read_size(text: &str, min: u64, max: u64) -> Result<Value, Fault> {
    let units = "units are GiB MiB KiB B, as in \"64MiB\"";
    let value = quantity::size(text).map_err(|e| malformed(e, "size", text, "MiB", units))?;
    if (min..=max).contains(&value) {
        return Ok(Value::Size(value));
    }
    let (min, max) = (quantity::show_size(min), quantity::show_size(max));
    Err(out_of_range(format!("\"{min}\" to \"{max}\"")))
}

fn malformed(error: Malformed, what: &str, text: &str, unit: &str, units: &str) -> Fault {
    let is_number = text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    let help = match error {
        Malformed::NoUnit if is_number => format!("write \"{text}{unit}\"; {units}"),
        Malformed::NoUnit
        | Malformed::NoNumber
        | Malformed::UnknownUnit
        | Malformed::Fraction
        | Malformed::Order
        | Malformed::TooLarge => units.to_owned(),
    };
    Fault::new(format!("not a {what}: {error}"), "not understood").help(help)
}

fn read_choice(text: &str, words: &[&str], planned: &[&str]) -> Result<Value, Fault> {
    if words.contains(&text) {
        return Ok(Value::Text(text.to_owned()));
    }
    let list = quoted(words);
    if planned.contains(&text) {
        let message = format!("not built yet: \"{text}\"");
        return Err(Fault::new(message, "of a later release").help(format!("one of {list}")));
    }
    let fault = Fault::new(format!("must be one of {list}"), "none of them");
    Err(match reference::nearest(text, words.iter().copied()) {
        Some(near) => fault.help(format!("did you mean \"{near}\"?")),
        None => fault,
    })
}

fn read_match(text: &str) -> Result<Regex, Fault> {
    Regex::new(text).map_err(|error| {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim();
        let reason = last.strip_prefix("error: ").unwrap_or(last).to_owned();
        Fault::new(format!("not a regular expression: {reason}"), "")
            .help("syntax: https://docs.rs/regex/latest/regex/#syntax; no look-around")
    })
}

fn read_pattern(text: &str) -> Result<Value, Fault> {
    let pattern = read_match(text)?;
    if !pattern.capture_names().flatten().any(|name| name == "user") {
        return Err(
            Fault::new("no group is named `user`", "which part is the user?")
                .help("name it: '^user-(?<user>.+?)--'"),
        );
    }
    Ok(Value::Pattern(pattern))
}

fn read_path(text: &str) -> Result<Value, Fault> {
    if text.is_empty() || text.contains('\0') {
        return Err(Fault::new("not a path", "empty or with a NUL character"));
    }
    if text.starts_with('~') || text.contains('$') {
        return Err(Fault::new(
            "`~` and `$` are not expanded",
            "this would be taken literally",
        )
        .help("write the whole path, or one relative to this file"));
    }
    Ok(Value::Text(text.to_owned()))
}

fn read_variable(text: &str) -> Result<Value, Fault> {
    let mut bytes = text.bytes();
    let starts = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if starts && text.len() <= 128 && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Ok(Value::Text(text.to_owned()));
    }
    let fault = Fault::new(
        "not the name of an environment variable",
        "a name, not the secret",
    );
    Err(Fault {
        is_secret: true,
        ..fault.help("letters, digits and `_`, as in \"CLI_TOKEN\"")
    })
}

/// Is `text` a name that a principal or realm can have?
pub(in crate::config) fn is_principal(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-:@+".contains(&b);
    let starts = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    starts && text.len() <= 128 && text.bytes().all(good)
}

fn read_principal(text: &str) -> Result<(), Fault> {
    if is_principal(text) {
        return Ok(());
    }
    let help = "1 to 128 letters, digits, `.` `_` `-` `:` `@` `+`, as in \"chat-app\"";
    Err(Fault::new("not a name", "").help(help))
}

fn read_line(text: &str) -> Result<(), Fault> {
    if !text.is_empty() && text.len() <= 1024 && !text.chars().any(char::is_control) {
        return Ok(());
    }
    let message = "must be 1 to 1024 characters without control characters";
    Err(Fault::new(message, ""))
}

fn read_hash(text: &str) -> Result<(), Fault> {
    if Fingerprint::parse(text).is_some() {
        return Ok(());
    }
    let fault = Fault::new("not a SHA-256 hash", "the hash, not the token");
    Err(Fault {
        is_secret: true,
        ..fault.help("64 hexadecimal digits, as printed by `taxiway token NAME`")
    })
}

/// Is `text` a name that a backend can have? It stands in paths, URLs and metrics.
fn read_name(text: &str) -> Result<(), Fault> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-:[]".contains(&b);
    let starts = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'[');
    if starts && text.len() <= 128 && text.bytes().all(good) {
        return Ok(());
    }
    let help = "1 to 128 letters, digits, `.` `_` `-` `:`, as in \"cli-1\"";
    Err(Fault::new("not a name", "").help(help))
}

/// Reads the address of a listener.
fn read_listen(text: &str) -> Result<SocketAddr, Fault> {
    let text = strip_scheme(text)?;
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let fault = Fault::new("not an address to listen on", "expected \"IP:PORT\"");
    Err(match text.rsplit_once(':') {
        Some(("localhost", port)) => fault.help(format!("write \"127.0.0.1:{port}\"")),
        Some(("" | "*", port)) => fault.help(format!(
            "write \"127.0.0.1:{port}\" for this machine only, \"0.0.0.0:{port}\" for all interfaces"
        )),
        Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            fault.help(format!("write \"[{host}]:{port}\""))
        }
        _ => fault.help("as in \"127.0.0.1:4321\""),
    })
}

/// Why `text` is no address to connect to (`HOST:PORT`); none if it is one.
pub fn dial_fault(text: &str) -> Option<String> {
    read_dial(text).err().map(|fault| match fault.help {
        Some(help) => format!("{}; {help}", fault.message),
        None => fault.message,
    })
}

/// Is `text` a name that a backend can have?
pub(in crate::config) fn name_fault(text: &str) -> Option<String> {
    read_name(text).err().and_then(|fault| fault.help)
}

fn read_dial(text: &str) -> Result<(), Fault> {
    let text = strip_scheme(text)?;
    let fault = |reason: &str| {
        Fault::new(
            format!("not an address to connect to: {reason}"),
            "expected \"HOST:PORT\"",
        )
    };
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(fault("the port is missing"));
    };
    let is_port = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if !is_port || port.parse::<u16>().is_ok_and(|p| p == 0) || port.parse::<u16>().is_err() {
        return Err(fault("the port must be 1 to 65535"));
    }
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner
            .strip_suffix(']')
            .and_then(|i| i.parse::<std::net::Ipv6Addr>().ok());
        return inner
            .map(|_| ())
            .ok_or_else(|| fault("not an IPv6 address in the brackets"));
    }
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(
            fault("an IPv6 address needs brackets").help(format!("write \"[{host}]:{port}\""))
        );
    }
    // Four numbers that are no IPv4 address would be looked up as a host name, in vain.
    let looks_numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if looks_numeric && host.parse::<std::net::Ipv4Addr>().is_err() {
        return Err(fault("not an IPv4 address"));
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if host.len() <= 253 && name.split('.').all(label) {
        return Ok(());
    }
    Err(fault("not a host name or IP address"))
}

fn strip_scheme(text: &str) -> Result<&str, Fault> {
    match text.split_once("://") {
        Some((_, rest)) => Err(Fault::new("not an address", "an address, not a URL")
            .help(format!("write \"{}\"", shown(rest.trim_end_matches('/'))))),
        None => Ok(text),
    }
}

/// What a value is, in words.
pub(super) fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
