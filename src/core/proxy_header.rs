//! The PROXY protocol, versions 1 and 2: what a balancer writes in front of a connection to tell
//! whose it is. Reads and writes headers after HAProxy's `proxy-protocol.txt`.
//!
//! Blind to what comes behind the header, and decides nothing about whose word counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header of version 1, its line end included.
pub const LONGEST_V1: usize = 107;

/// Longest header of version 2 that is taken: the largest addresses are 216 bytes, the rest is
/// what balancers add of their own (TLVs).
pub const LONGEST_V2: usize = 4096;

/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The first bytes of version 1.
const WORD: &[u8; 6] = b"PROXY ";

/// Signature, version and command, family and protocol, length.
const FIXED: usize = 16;

/// Which of the two forms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The balancer's own (a health check), or it does not say: the connection's own addresses
    /// count.
    Own,
    /// A client's.
    Client {
        /// Where the client is.
        from: SocketAddr,
        /// Where it had connected to.
        to: SocketAddr,
    },
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// A whole header.
    Header {
        /// Its size in bytes.
        length: usize,
        /// What it says.
        source: Source,
    },
    /// The start of one, as far as can be seen.
    Incomplete,
}

/// Why it is no header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// It starts with something else.
    #[error("no PROXY header")]
    Missing,
    /// It does not end where it has to.
    #[error("a PROXY header without an end")]
    TooLong,
    /// A part of it is not as specified.
    #[error("a malformed PROXY header: {0}")]
    Malformed(&'static str),
}

/// Whether bytes look like the start of a header, of either version.
pub fn looks_like_header(bytes: &[u8]) -> bool {
    let starts = |pattern: &[u8]| bytes.len() >= pattern.len() && bytes.starts_with(pattern);
    starts(WORD) || starts(SIGNATURE)
}

/// Reads the header at the start of `bytes`.
///
/// # Errors
/// There is none, or it is malformed; final, whatever comes behind.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let may_become = |pattern: &[u8]| {
        let n = bytes.len().min(pattern.len());
        bytes[..n] == pattern[..n]
    };
    if may_become(WORD) {
        parse_v1(bytes)
    } else if may_become(SIGNATURE) {
        parse_v2(bytes)
    } else {
        Err(HeaderError::Missing)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let line = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= LONGEST_V1 {
            Err(HeaderError::TooLong)
        } else {
            Ok(Parsed::Incomplete)
        };
    };
    let text = std::str::from_utf8(&line[WORD.len().min(end)..end])
        .map_err(|_| HeaderError::Malformed("not text"))?;
    let header = |source| Parsed::Header {
        length: end + 2,
        source,
    };
    let mut words = text.split(' ');
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // Whatever follows is to be ignored.
        return Ok(header(Source::Own));
    }
    let fields: Vec<&str> = words.collect();
    let [from, to, from_port, to_port] = fields[..] else {
        return Err(HeaderError::Malformed("not four fields"));
    };
    let address = |text: &str| -> Result<IpAddr, HeaderError> {
        let parsed = match family {
            "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6),
            _ => return Err(HeaderError::Malformed("an unknown family")),
        };
        parsed.map_err(|_| HeaderError::Malformed("not an address of its family"))
    };
    let source = Source::Client {
        from: SocketAddr::new(address(from)?, port(from_port)?),
        to: SocketAddr::new(address(to)?, port(to_port)?),
    };
    Ok(header(source))
}

/// Digits only, without needless zeros.
fn port(text: &str) -> Result<u16, HeaderError> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse()
        .ok()
        .filter(|_| plain)
        .ok_or(HeaderError::Malformed("not a port"))
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let Some((head, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Parsed::Incomplete);
    };
    let (command, kind) = (head[12], head[13]);
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if command >> 4 != 2 {
        return Err(HeaderError::Malformed("an unknown version"));
    }
    if FIXED + length > LONGEST_V2 {
        return Err(HeaderError::TooLong);
    }
    let Some(body) = rest.get(..length) else {
        return Ok(Parsed::Incomplete);
    };
    let source = match command & 0xf {
        0 => Source::Own,
        1 => source_v2(kind, body)?,
        _ => return Err(HeaderError::Malformed("an unknown command")),
    };
    Ok(Parsed::Header {
        length: FIXED + length,
        source,
    })
}

fn source_v2(kind: u8, body: &[u8]) -> Result<Source, HeaderError> {
    let short = HeaderError::Malformed("addresses cut short");
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let (from, to, ports) = match kind {
        // TCP over IPv4, over IPv6.
        0x11 => {
            let ip = |at: usize| {
                body.get(at..)?
                    .first_chunk::<4>()
                    .copied()
                    .map(IpAddr::from)
            };
            (ip(0).ok_or(short)?, ip(4).ok_or(short)?, 8)
        }
        0x21 => {
            let ip = |at: usize| {
                body.get(at..)?
                    .first_chunk::<16>()
                    .copied()
                    .map(IpAddr::from)
            };
            (ip(0).ok_or(short)?, ip(16).ok_or(short)?, 32)
        }
        // Unspecified, and Unix sockets: nothing that is an address here.
        0x00 | 0x31 => return Ok(Source::Own),
        _ => return Err(HeaderError::Malformed("not a TCP connection")),
    };
    if body.len() < ports + 4 {
        return Err(short);
    }
    Ok(Source::Client {
        from: SocketAddr::new(from, port(ports)),
        to: SocketAddr::new(to, port(ports + 2)),
    })
}

/// Appends a header.
pub fn write(version: Version, source: Source, out: &mut Vec<u8>) {
    match version {
        Version::V1 => write_v1(source, out),
        Version::V2 => write_v2(source, out),
    }
}

fn write_v1(source: Source, out: &mut Vec<u8>) {
    let line = match source {
        Source::Own => "PROXY UNKNOWN\r\n".to_owned(),
        Source::Client { from, to } => {
            let (family, from_ip, to_ip) = match of_one_family(from.ip(), to.ip()) {
                Pair::V4(from, to) => ("TCP4", from.to_string(), to.to_string()),
                // Not in the mixed notation, which not every reader knows.
                Pair::V6(from, to) => ("TCP6", plain_v6(from), plain_v6(to)),
            };
            let (from_port, to_port) = (from.port(), to.port());
            format!("PROXY {family} {from_ip} {to_ip} {from_port} {to_port}\r\n")
        }
    };
    out.extend_from_slice(line.as_bytes());
}

fn write_v2(source: Source, out: &mut Vec<u8>) {
    out.extend_from_slice(SIGNATURE);
    let Source::Client { from, to } = source else {
        out.extend_from_slice(&[0x20, 0x00, 0, 0]);
        return;
    };
    match of_one_family(from.ip(), to.ip()) {
        Pair::V4(from, to) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        Pair::V6(from, to) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
    }
    out.extend_from_slice(&from.port().to_be_bytes());
    out.extend_from_slice(&to.port().to_be_bytes());
}

enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// A header has one family for both ends.
fn of_one_family(from: IpAddr, to: IpAddr) -> Pair {
    let wide = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    match (from.to_canonical(), to.to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Pair::V4(from, to),
        (from, to) => Pair::V6(wide(from), wide(to)),
    }
}

fn plain_v6(ip: Ipv6Addr) -> String {
    if ip.to_ipv4_mapped().is_none() {
        return ip.to_string();
    }
    let groups: Vec<String> = ip.segments().iter().map(|s| format!("{s:x}")).collect();
    groups.join(":")
}

#[cfg(test)]
mod tests;
