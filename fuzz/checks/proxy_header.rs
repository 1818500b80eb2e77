//! PROXY headers: an answer that more bytes cannot change, and what is read is what is written.

use taxiway::core::proxy_header::{
    LONGEST_V2, Parsed, Source, Version, looks_like_header, parse, write,
};

/// Whatever the bytes, and however few of them have come.
pub(crate) fn check_header(bytes: &[u8]) {
    let mut answer = None;
    // Long input changes nothing beyond the bound.
    for end in 0..=bytes.len().min(LONGEST_V2 + 8) {
        let now = parse(&bytes[..end]);
        match (&answer, &now) {
            (None, Ok(Parsed::Incomplete)) => assert!(end < LONGEST_V2, "kept waiting"),
            (None, _) => answer = Some(now),
            (Some(first), now) => assert_eq!(first, now, "an answer is final"),
        }
    }
    let Some(Ok(Parsed::Header { length, source })) = answer else {
        return;
    };
    assert!(length <= bytes.len() && looks_like_header(bytes));
    if bytes[0] == b'P' {
        assert!(bytes[..length].ends_with(b"\r\n"));
    }
    for version in [Version::V1, Version::V2] {
        let mut written = Vec::new();
        write(version, source, &mut written);
        let Ok(Parsed::Header {
            length,
            source: again,
        }) = parse(&written)
        else {
            panic!("what is written is not read: {written:?}")
        };
        assert_eq!(length, written.len());
        match (source, again) {
            (Source::Own, Source::Own) => {}
            (Source::Client { from, to }, Source::Client { from: f, to: t }) => {
                let same = |a: std::net::SocketAddr, b: std::net::SocketAddr| {
                    a.ip().to_canonical() == b.ip().to_canonical() && a.port() == b.port()
                };
                assert!(same(from, f) && same(to, t), "{source:?} {again:?}");
            }
            _ => panic!("{source:?} became {again:?}"),
        }
    }
}
