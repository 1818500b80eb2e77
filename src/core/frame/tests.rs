//! The cutter against what the CLI takes and refuses.

use super::*;

const LIMITS: FrameLimits = FrameLimits {
    header: 256,
    frame: 1000,
};

fn cut(stream: &[u8]) -> Result<Cut, FrameError> {
    Cutter::new(LIMITS).cut(stream)
}

fn bad(got: &str) -> FrameError {
    FrameError::BadContentLength { got: got.into() }
}

/// Each row was put to CLI 1.0.102, followed by a ping of 66 bytes.
#[test]
fn headers_are_read_as_the_cli_reads_them() {
    let missing = FrameError::MissingContentLength;
    let malformed = FrameError::MalformedHeader;
    let rows: &[(&str, Result<usize, FrameError>)] = &[
        ("Content-Length: 66\r\n\r\n", Ok(66)),
        ("content-length:66\r\n\r\n", Ok(66)),
        ("CONTENT-LENGTH:\t66 \r\n\r\n", Ok(66)),
        ("Content-Length: \u{2005}66\r\n\r\n", Ok(66)),
        ("Content-Length: \u{85}66\r\n\r\n", Ok(66)),
        ("Content-Length: +66\r\n\r\n", Ok(66)),
        ("Content-Length: 066\r\n\r\n", Ok(66)),
        (
            "Content-Length: 000000000000000000000000000000000066\r\n\r\n",
            Ok(66),
        ),
        ("Content-Length: 66, 66\r\n\r\n", Ok(66)),
        ("Content-Length: 66.0\r\n\r\n", Ok(66)),
        ("Content-Length: 66abc\r\n\r\n", Ok(66)),
        ("Content-Length: 66:5\r\n\r\n", Ok(66)),
        ("Content-Length: 66\n\r\n\r\n", Ok(66)),
        ("Content-Length: 66\r\r\n\r\n", Ok(66)),
        ("Content-Length: 0x42\r\n\r\n", Ok(0)),
        ("Content-Length: 1e3\r\n\r\n", Ok(1)),
        ("Content-Length: 6 6\r\n\r\n", Ok(6)),
        ("Content-Length: 3\r\nContent-Length: 66\r\n\r\n", Ok(66)),
        ("Content-Length: 66\r\nContent-Length: 3\r\n\r\n", Ok(3)),
        ("Content-Length: abc\r\nContent-Length: 66\r\n\r\n", Ok(66)),
        ("Content-Length:\r\nContent-Length: 66\r\n\r\n", Ok(66)),
        (
            "Content-Type: a\r\nContent-Length: 66\r\nx:y\r\n\r\n",
            Ok(66),
        ),
        (":\r\nContent-Length: 66\r\n\r\n", Ok(66)),
        ("Content-Length: 66\r\n : folded\r\n\r\n", Ok(66)),
        ("Content-Length: 66\r\nX-é\r: 1\r\n\r\n", Ok(66)),
        ("X: 1\r\n\r\n", Err(missing.clone())),
        ("Content-Length: \r\n\r\n", Err(missing.clone())),
        (
            "Content-Length: 66\r\nContent-Length:  \r\n\r\n",
            Err(missing.clone()),
        ),
        ("Content-Length : 66\r\n\r\n", Err(missing.clone())),
        (" Content-Length: 66\r\n\r\n", Err(missing.clone())),
        ("A: b\nContent-Length: 66\r\n\r\n", Err(missing)),
        (
            "Content-Length: 66\r\nContent-Length: abc\r\n\r\n",
            Err(bad("abc")),
        ),
        ("Content-Length: -1\r\n\r\n", Err(bad("-1"))),
        ("Content-Length: -0\r\n\r\n", Err(bad("-0"))),
        ("Content-Length: +\r\n\r\n", Err(bad("+"))),
        ("Content-Length: ++66\r\n\r\n", Err(bad("++66"))),
        ("Content-Length: + 66\r\n\r\n", Err(bad("+ 66"))),
        ("Content-Length: :66\r\n\r\n", Err(bad(":66"))),
        ("Content-Length: ²66\r\n\r\n", Err(bad("²66"))),
        ("Content-Length: \u{feff}66\r\n\r\n", Err(bad("\u{feff}66"))),
        ("Content-Length: \u{1f}66\r\n\r\n", Err(bad("\u{1f}66"))),
        (
            "Content-Length: 18446744073709551616\r\n\r\n",
            Err(bad("18446744073709551616")),
        ),
        ("\r\n\r\n", Err(malformed.clone())),
        ("\r\nContent-Length: 66\r\n\r\n", Err(malformed.clone())),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Err(malformed.clone())),
        (
            "Content-Length: 66\r\nno colon\r\n\r\n",
            Err(malformed.clone()),
        ),
        ("Content-Length: 66\r\nX\r\n: 1\r\n\r\n", Err(malformed)),
    ];
    for (header, expected) in rows {
        let stream = [header.as_bytes(), &[b' '; 66]].concat();
        let start = header.len();
        let expected = expected.clone().map(|length| Cut::Frame {
            header: 0..start,
            body: start..start + length,
        });
        assert_eq!(cut(&stream), expected, "{header:?}");
    }
}

#[test]
fn what_may_still_become_a_header_is_awaited() {
    for start in [
        "",
        "\r\n",
        "Content-Length: 66\n\n",
        "GET / HTTP/1.1\r\n",
        "Content-Length: 6",
    ] {
        assert_eq!(
            cut(start.as_bytes()),
            Ok(Cut::Incomplete { total: None }),
            "{start:?}"
        );
    }
    let hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01];
    assert_eq!(cut(&hello), Ok(Cut::Incomplete { total: None }));
}

#[test]
fn a_body_is_awaited_and_then_the_next_frame_begins() {
    let mut cutter = Cutter::new(LIMITS);
    let stream = b"Content-Length: 2\r\n\r\n{}Content-Length: 0\r\n\r\n";
    assert_eq!(
        cutter.cut(&stream[..22]),
        Ok(Cut::Incomplete { total: Some(23) })
    );
    assert_eq!(
        cutter.cut(stream),
        Ok(Cut::Frame {
            header: 0..21,
            body: 21..23
        })
    );
    assert_eq!(
        cutter.cut(&stream[23..]),
        Ok(Cut::Frame {
            header: 0..21,
            body: 21..21
        })
    );
    assert_eq!(cutter.cut(b""), Ok(Cut::Incomplete { total: None }));
}

#[test]
fn a_header_at_the_limit_passes_and_one_byte_more_does_not() {
    let limits = FrameLimits {
        header: 40,
        frame: 10,
    };
    let header = |length: usize| {
        let name = "x".repeat(length - "Content-Length: 0\r\n: \r\n\r\n".len());
        format!("Content-Length: 0\r\n{name}: \r\n\r\n").into_bytes()
    };
    let fits = header(40);
    assert_eq!(fits.len(), 40);
    let mut cutter = Cutter::new(limits);
    assert_eq!(
        cutter.cut(&fits),
        Ok(Cut::Frame {
            header: 0..40,
            body: 40..40
        })
    );
    let error = Err(FrameError::HeaderTooLong { limit: 40 });
    assert_eq!(cutter.cut(&header(41)), error);
    // Not before the limit is reached, and then without waiting for more.
    let mut cutter = Cutter::new(limits);
    assert_eq!(cutter.cut(&[b'a'; 39]), Ok(Cut::Incomplete { total: None }));
    assert_eq!(cutter.cut(&[b'a'; 40]), error);
    assert_eq!(
        cutter.cut(&[b'a'; 40]).map_err(|error| error.code()),
        Err(-32013)
    );
    // The spelling of the fast path is measured too.
    let mut cutter = Cutter::new(FrameLimits {
        header: 20,
        frame: 10,
    });
    let error = Err(FrameError::HeaderTooLong { limit: 20 });
    assert_eq!(cutter.cut(b"Content-Length: 2\r\n\r\n{}"), error);
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_comes() {
    for (length, declared) in [("1001", 1001), ("18446744073709551615", u64::MAX)] {
        let stream = format!("Content-Length: {length}\r\n\r\n");
        let error = cut(stream.as_bytes()).expect_err("too long");
        assert_eq!(
            error,
            FrameError::FrameTooLong {
                declared,
                limit: 1000
            }
        );
        assert_eq!(error.code(), -32013);
    }
    let stream = b"Content-Length: 1000\r\n\r\n";
    assert_eq!(cut(stream), Ok(Cut::Incomplete { total: Some(1024) }));
}

#[test]
fn no_declared_length_overflows_whatever_the_limit() {
    let limits = FrameLimits {
        header: 256,
        frame: usize::MAX,
    };
    let mut cutter = Cutter::new(limits);
    let stream = b"Content-Length: 18446744073709551615\r\n\r\n";
    assert!(matches!(
        cutter.cut(stream),
        Err(FrameError::FrameTooLong { .. })
    ));
}

#[test]
fn new_limits_apply_to_the_frame_that_is_being_received() {
    let mut cutter = Cutter::new(FrameLimits {
        header: 256,
        frame: 10,
    });
    assert_eq!(cutter.limits().frame, 10);
    cutter.set_limits(LIMITS);
    let stream = b"Content-Length: 500\r\n\r\n";
    assert_eq!(cutter.cut(stream), Ok(Cut::Incomplete { total: Some(523) }));
    cutter.set_limits(FrameLimits {
        header: 256,
        frame: 499,
    });
    assert_eq!(
        cutter.cut(stream),
        Err(FrameError::FrameTooLong {
            declared: 500,
            limit: 499
        })
    );
}

#[test]
fn an_error_repeats_no_more_than_an_excerpt() {
    let limits = FrameLimits {
        header: 1000,
        frame: 1000,
    };
    let stream = format!("Content-Length: {}\r\n\r\n", "é".repeat(300));
    let error = Cutter::new(limits)
        .cut(stream.as_bytes())
        .expect_err("no number");
    assert_eq!(error, bad(&"é".repeat(64)));
    assert_eq!(error.code(), -32700);
    assert_eq!(
        bad("-1").to_string(),
        "Content-Length value must be a number. Got -1"
    );
}

#[test]
fn written_headers_are_plain_and_read_back() {
    for length in [0, 7, 9, 10, 66, 99, 100, 12_345, usize::MAX] {
        let mut header = b"before".to_vec();
        write_header(length, &mut header);
        let header = &header[6..];
        assert_eq!(
            header,
            format!("Content-Length: {length}\r\n\r\n").as_bytes()
        );
        // 20 digits are beyond the fast path, and beyond any frame.
        assert_eq!(is_plain_header(header), length != usize::MAX);
    }
    for header in [
        "Content-Length: 066\r\n\r\n",
        "Content-Length:66\r\n\r\n",
        "content-length: 66\r\n\r\n",
        "Content-Length: 66 \r\n\r\n",
        "Content-Length: 66\r\nX: 1\r\n\r\n",
        "Content-Length: \r\n\r\n",
        "Content-Length: 66\r\n\r\n{",
    ] {
        assert!(!is_plain_header(header.as_bytes()), "{header:?}");
    }
}

/// Lengths are read several digits at a time: all of them, and whatever may stand in their place.
#[test]
fn lengths_are_read_digit_by_digit() {
    let limits = FrameLimits {
        frame: usize::MAX,
        ..LIMITS
    };
    let read = |header: &[u8]| {
        let cut = Cutter::new(limits).cut(header);
        let Ok(Cut::Incomplete { total: Some(total) }) = cut else {
            return None;
        };
        Some(total - header.len())
    };
    for length in (1..20_000).chain([99_999, 100_000, 9_999_999, 12_345_678]) {
        let header = format!("Content-Length: {length}\r\n\r\n");
        assert_eq!(read(header.as_bytes()), Some(length));
    }
    for digits in 1..7 {
        for at in 0..digits {
            for byte in (0..=255).filter(|byte: &u8| !byte.is_ascii_digit()) {
                let digits = "1".repeat(digits);
                let mut header = format!("Content-Length: {digits}\r\n\r\n").into_bytes();
                header[16 + at] = byte;
                assert!(plain_header(&header).is_none(), "{header:?}");
            }
        }
    }
}

/// Time that grows with the square of the header would show as millions of steps; what is
/// asserted is the promise behind it: no byte before `searched` is looked at again.
#[test]
fn a_slow_header_is_searched_once() {
    let limits = FrameLimits {
        header: 1 << 20,
        frame: 10,
    };
    let stream = [
        &b"X: "[..],
        &vec![b'a'; 5000],
        b"\r\nContent-Length: 1\r\n\r\n!",
    ]
    .concat();
    let mut cutter = Cutter::new(limits);
    for end in 1..stream.len() {
        assert!(matches!(
            cutter.cut(&stream[..end]),
            Ok(Cut::Incomplete { .. })
        ));
        if let State::Header { searched } = cutter.state {
            assert!(searched + 3 >= end, "{searched} of {end} searched");
        }
    }
    assert!(matches!(cutter.cut(&stream), Ok(Cut::Frame { .. })));
}
