//! Streams: the cutter in any chunks against splitting strings.

use taxiway::core::frame::{Cut, Cutter, FrameError, FrameLimits, is_plain_header, write_header};

/// Header and body of each frame of a stream, and the error that ended it.
pub(crate) type Frames = (Vec<(Vec<u8>, Vec<u8>)>, Option<FrameError>);

/// Cuts `stream` as it would come off a socket in reads of the given sizes (repeated).
pub(crate) fn cut_in_chunks(stream: &[u8], limits: FrameLimits, sizes: &[usize]) -> Frames {
    let mut cutter = Cutter::new(limits);
    let mut frames = Vec::new();
    let (mut consumed, mut received) = (0, 0);
    let mut sizes = sizes.iter().copied().map(|size| size.max(1)).cycle();
    loop {
        let buf = &stream[consumed..received];
        let plain = cutter.is_between_frames().then(|| cutter.plain().cut(buf));
        let cut = cutter.cut(buf);
        if let Some(Some((start, end))) = plain {
            let (header, body) = (0..start, start..end);
            assert!(is_plain_header(&buf[header.clone()]));
            assert_eq!(cut, Ok(Cut::Frame { header, body }), "the short cut");
        }
        match cut {
            Ok(Cut::Frame { header, body }) => {
                assert_eq!(header.start, 0);
                assert_eq!(header.end, body.start);
                frames.push((buf[header].to_vec(), buf[body.clone()].to_vec()));
                consumed += body.end;
                continue;
            }
            Ok(Cut::Incomplete { total }) => {
                assert!(
                    total.is_none_or(|total| total > buf.len()),
                    "a whole frame kept back"
                );
            }
            Err(error) => {
                assert_eq!(cutter.cut(buf), Err(error.clone()), "an error is final");
                return (frames, Some(error));
            }
        }
        if received == stream.len() {
            return (frames, None);
        }
        received = stream
            .len()
            .min(received + sizes.next().unwrap_or(usize::MAX));
    }
}

/// The same by splitting strings.
fn cut_slowly(mut stream: &[u8], limits: FrameLimits) -> Frames {
    let mut frames = Vec::new();
    loop {
        let end = stream.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end.filter(|end| end + 4 <= limits.header) else {
            let error = FrameError::HeaderTooLong {
                limit: limits.header,
            };
            return (frames, (stream.len() >= limits.header).then_some(error));
        };
        let header = String::from_utf8_lossy(&stream[..end]);
        let mut length = None;
        for line in header.split("\r\n") {
            let Some((name, value)) = line.split_once(':') else {
                return (frames, Some(FrameError::MalformedHeader));
            };
            if name.eq_ignore_ascii_case("Content-Length") {
                length = Some(value.trim().to_owned());
            }
        }
        let Some(value) = length.filter(|value| !value.is_empty()) else {
            return (frames, Some(FrameError::MissingContentLength));
        };
        let digits: String = value
            .strip_prefix('+')
            .unwrap_or(&value)
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        let Ok(declared) = digits.parse::<u64>() else {
            let got = value.chars().take(64).collect::<String>().into();
            return (frames, Some(FrameError::BadContentLength { got }));
        };
        if declared > limits.frame as u64 {
            let error = FrameError::FrameTooLong {
                declared,
                limit: limits.frame,
            };
            return (frames, Some(error));
        }
        let start = end + 4;
        let Some(body) = stream.get(start..start + declared as usize) else {
            return (frames, None);
        };
        frames.push((stream[..start].to_vec(), body.to_vec()));
        stream = &stream[start + body.len()..];
    }
}

/// Any chunking of any bytes gives the frames and the error that the reference gives.
pub(crate) fn check_frames(stream: &[u8], limits: FrameLimits, sizes: &[usize]) {
    let expected = cut_slowly(stream, limits);
    for sizes in [&[usize::MAX][..], &[1], sizes] {
        if !sizes.is_empty() {
            assert_eq!(
                cut_in_chunks(stream, limits, sizes),
                expected,
                "in reads of {sizes:?}"
            );
        }
    }
    for (header, body) in &expected.0 {
        let mut plain = Vec::new();
        write_header(body.len(), &mut plain);
        assert_eq!(is_plain_header(header), *header == plain);
    }
}

/// The same for a fuzzer's input: the first bytes choose limits and read sizes.
pub(crate) fn fuzz_frames(input: &[u8]) {
    let Some(([header, frame, first, second], stream)) = input.split_first_chunk() else {
        return;
    };
    let limits = FrameLimits {
        header: usize::from(*header),
        frame: usize::from(*frame),
    };
    check_frames(stream, limits, &[usize::from(*first), usize::from(*second)]);
}
