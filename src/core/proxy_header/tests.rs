//! Headers against tables from the specification, and properties over all of them.

use proptest::prelude::*;

use super::*;

fn client(from: &str, to: &str) -> Source {
    Source::Client {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
    }
}

fn v2(command: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([command, kind]);
    header.extend((body.len() as u16).to_be_bytes());
    header.extend(body);
    header
}

#[test]
fn lines_of_version_1() {
    let own = Source::Own;
    for (line, source) in [
        (
            "PROXY TCP4 192.0.2.1 198.51.100.9 56324 4321\r\n",
            client("192.0.2.1:56324", "198.51.100.9:4321"),
        ),
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            client("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        (
            "PROXY TCP6 2001:db8::1 ::1 0 1\r\n",
            client("[2001:db8::1]:0", "[::1]:1"),
        ),
        ("PROXY UNKNOWN\r\n", own),
        (
            "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
            own,
        ),
    ] {
        let expected = Parsed::Header {
            length: line.len(),
            source,
        };
        assert_eq!(parse(line.as_bytes()), Ok(expected), "{line:?}");
        let behind = format!("{line}Content-Length: 2\r\n\r\n{{}}");
        assert_eq!(parse(behind.as_bytes()), Ok(expected), "{line:?}");
    }
}

#[test]
fn binary_headers_of_version_2() {
    let v4 = [10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0x10, 0xe1];
    let mut with_tlv = v4.to_vec();
    with_tlv.extend([0x04, 0x00, 0x01, 0xff]);
    let mut v6 = [0; 36];
    v6[15] = 1;
    v6[31] = 2;
    v6[35] = 9;
    for (header, source) in [
        (
            v2(0x21, 0x11, &v4),
            client("10.0.0.1:12345", "10.0.0.2:4321"),
        ),
        (
            v2(0x21, 0x11, &with_tlv),
            client("10.0.0.1:12345", "10.0.0.2:4321"),
        ),
        (v2(0x21, 0x21, &v6), client("[::1]:0", "[::2]:9")),
        (v2(0x20, 0x00, &[]), Source::Own),
        // A health check may carry addresses; they do not count.
        (v2(0x20, 0x11, &v4), Source::Own),
        (v2(0x21, 0x00, &[]), Source::Own),
        (v2(0x21, 0x31, &[0; 216]), Source::Own),
    ] {
        let length = header.len();
        assert_eq!(
            parse(&header),
            Ok(Parsed::Header { length, source }),
            "{header:?}"
        );
    }
}

#[test]
fn what_is_no_header_is_told_at_once() {
    for bytes in [
        &b"Content-Length: 2"[..],
        b"\x16\x03\x01",
        b"PROXZ",
        b"proxy ",
        b"\r\n\r\n\x01",
        b"{",
    ] {
        assert_eq!(parse(bytes), Err(HeaderError::Missing), "{bytes:?}");
        assert!(!looks_like_header(bytes));
    }
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
        "PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP4 ::1 ::1 1 2\r\n",
        "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
        "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY UNKNOWNS\r\n",
    ] {
        let parsed = parse(line.as_bytes());
        assert!(
            matches!(parsed, Err(HeaderError::Malformed(_))),
            "{line:?}: {parsed:?}"
        );
    }
    for header in [
        v2(0x11, 0x11, &[0; 12]),
        v2(0x22, 0x11, &[0; 12]),
        v2(0x21, 0x12, &[0; 12]),
        v2(0x21, 0x11, &[0; 11]),
        v2(0x21, 0x21, &[0; 35]),
    ] {
        let parsed = parse(&header);
        assert!(
            matches!(parsed, Err(HeaderError::Malformed(_))),
            "{header:?}: {parsed:?}"
        );
    }
}

#[test]
fn a_header_ends_within_its_bound() {
    let endless = [&WORD[..], &[b'x'; LONGEST_V1]].concat();
    assert_eq!(parse(&endless[..LONGEST_V1 - 1]), Ok(Parsed::Incomplete));
    assert_eq!(parse(&endless[..LONGEST_V1]), Err(HeaderError::TooLong));
    assert!(matches!(
        parse(&v2(0x21, 0x00, &[0; LONGEST_V2 - FIXED])),
        Ok(Parsed::Header { .. })
    ));
    let over = v2(0x21, 0x00, &[0; LONGEST_V2 - FIXED + 1]);
    assert_eq!(parse(&over[..FIXED]), Err(HeaderError::TooLong));
}

#[test]
fn ends_of_two_families_are_written_as_one() {
    for version in [Version::V1, Version::V2] {
        for (from, to, read) in [
            (
                "1.2.3.4:5",
                "[::1]:6",
                client("[::ffff:1.2.3.4]:5", "[::1]:6"),
            ),
            (
                "[::ffff:1.2.3.4]:5",
                "[::ffff:5.6.7.8]:6",
                client("1.2.3.4:5", "5.6.7.8:6"),
            ),
        ] {
            let mut header = Vec::new();
            write(version, client(from, to), &mut header);
            let length = header.len();
            assert_eq!(
                parse(&header),
                Ok(Parsed::Header {
                    length,
                    source: read
                })
            );
        }
    }
}

fn address() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let v4 = any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    let v6 = any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    prop_oneof![
        v4,
        v6.prop_filter("mapped", |(a, b)| {
            a.to_canonical() == *a && b.to_canonical() == *b
        })
    ]
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V1), Just(Version::V2)]
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_no_part_of_it_is_enough(
        version in version(), (from, to) in address(), ports in any::<(u16, u16)>(),
        behind in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let source = Source::Client {
            from: SocketAddr::new(from, ports.0),
            to: SocketAddr::new(to, ports.1),
        };
        let mut bytes = Vec::new();
        write(version, source, &mut bytes);
        let length = bytes.len();
        for cut in 0..length {
            prop_assert_eq!(parse(&bytes[..cut]), Ok(Parsed::Incomplete));
        }
        bytes.extend(behind);
        prop_assert_eq!(parse(&bytes), Ok(Parsed::Header { length, source }));
    }

    #[test]
    fn any_bytes_are_judged_within_bounds(
        start in prop_oneof![Just(WORD.to_vec()), Just(SIGNATURE.to_vec()), Just(Vec::new())],
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, rest].concat();
        match parse(&bytes) {
            Ok(Parsed::Header { length, .. }) => {
                prop_assert!(length <= bytes.len() && length <= LONGEST_V2);
            }
            Ok(Parsed::Incomplete) => prop_assert!(bytes.len() < LONGEST_V2),
            Err(_) => {}
        }
    }
}
