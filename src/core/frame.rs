//! Content-Length header ⇄ byte ranges, with limits; the header rules are those of the CLI.
//!
//! Blind to bodies: it neither reads nor copies them, and it owns no buffer. What it cuts is
//! always a prefix of what it was shown; the caller keeps the bytes and moves on.
//!
//! Rules seen on CLI 1.0.102: a header block ends at the first CR LF CR LF; its lines are split at
//! CR LF and each needs a `:`; the name is compared without regard to ASCII case and is not
//! trimmed; of several `Content-Length` the last counts; its value is trimmed (Unicode white
//! space), may begin with one `+`, and is the leading run of digits (`66, 66` and `66.0` are 66,
//! `0x42` is 0). The same rule on both sides means that Taxiway and a backend cut alike.

use std::ops::Range;

use memchr::memmem;

#[cfg(test)]
mod tests;

/// The header block every reader accepts: exactly this spelling, then digits, then a blank line.
const PLAIN: &[u8; 16] = b"Content-Length: ";
/// What ends a header block.
const BLANK: &[u8; 4] = b"\r\n\r\n";
/// A header block of that spelling whose length has four digits.
const LONGEST_PLAIN: usize = PLAIN.len() + 4 + BLANK.len();
/// Name of the only header that matters; compared without ASCII case.
const NAME: &[u8] = b"content-length";
/// Longest excerpt of a bad value that an error repeats, in characters.
const EXCERPT: usize = 64;

/// How large the parts of one frame may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLimits {
    /// Bytes of a header block, its blank line included.
    pub header: usize,
    /// Bytes of a body, as declared.
    pub frame: usize,
}

/// What stands at the start of a buffer. Ranges count from the buffer's first byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cut {
    /// A whole frame.
    Frame {
        /// The header block with its blank line, as it was received.
        header: Range<usize>,
        /// The body; the next frame begins at its end.
        body: Range<usize>,
    },
    /// Not yet a whole frame.
    Incomplete {
        /// Header and body together, in bytes, once the header has been read.
        total: Option<usize>,
    },
}

/// Why a stream cannot be cut any further. The connection has lost its framing and must close.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// No blank line within the limit.
    #[error("Message header exceeds maximum length {limit}")]
    HeaderTooLong {
        /// [`FrameLimits::header`] as it stood.
        limit: usize,
    },
    /// No `Content-Length`, or the last one is empty.
    #[error("Header must provide a Content-Length property.")]
    MissingContentLength,
    /// The last `Content-Length` does not begin with digits, or they exceed 64 bits.
    #[error("Content-Length value must be a number. Got {got}")]
    BadContentLength {
        /// The trimmed value, cut to a bounded excerpt.
        got: Box<str>,
    },
    /// A header line without a colon, for example the first line of an HTTP request.
    #[error("Message header must separate key and value using ':'")]
    MalformedHeader,
    /// The declared body is larger than allowed.
    #[error("Message of {declared} bytes exceeds maximum length {limit}")]
    FrameTooLong {
        /// The length that the peer announced.
        declared: u64,
        /// [`FrameLimits::frame`] as it stood.
        limit: usize,
    },
}

impl FrameError {
    /// The JSON-RPC code to answer with (id null) before the connection closes: that of the CLI,
    /// or LIMIT_EXCEEDED where a limit of Taxiway's own was hit.
    pub fn code(&self) -> i32 {
        match self {
            Self::HeaderTooLong { .. } | Self::FrameTooLong { .. } => -32013,
            Self::MissingContentLength | Self::BadContentLength { .. } | Self::MalformedHeader => {
                -32700
            }
        }
    }
}

/// Cuts one stream into frames, in order.
///
/// Remembers how far it has searched an incomplete header and what a complete one said, so that
/// bytes that come one at a time cost no more than bytes that come at once.
#[derive(Clone, Debug)]
pub struct Cutter {
    limits: FrameLimits,
    state: State,
}

/// Frames as nearly all are: the header is spelled as [`write_header`] spells it, and the length has
/// two to four digits.
#[derive(Clone, Copy, Debug)]
pub struct PlainFrames {
    /// Longest body that is taken.
    longest: usize,
}

impl PlainFrames {
    /// The frame at the start of `buf`, if it is there as a whole: where its body begins and ends.
    /// None says nothing, [`Cutter::cut`] it.
    #[inline(always)]
    pub fn cut(self, buf: &[u8]) -> Option<(usize, usize)> {
        // Two numbers: the comparison is a few instructions, and no call.
        let start: &[u8; LONGEST_PLAIN] = buf.first_chunk()?;
        let (name, next) = start.split_first_chunk()?;
        if u128::from_le_bytes(*name) != u128::from_le_bytes(*PLAIN) || next[0] == b'0' {
            return None;
        }
        let (digits, length) = short_length(*next.first_chunk()?)?;
        let (header, body) = (PLAIN.len() + digits + BLANK.len(), usize::from(length));
        let end = header + body;
        (body <= self.longest && end <= buf.len()).then_some((header, end))
    }
}

/// What is known about the frame at the start of the buffer.
#[derive(Clone, Copy, Debug)]
enum State {
    /// No blank line begins before this offset.
    Header { searched: usize },
    /// The header ends at `header`; the body was declared with `length` bytes.
    Body { header: usize, length: u64 },
}

impl Cutter {
    /// A cutter for a stream of which nothing has been seen.
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            state: State::Header { searched: 0 },
        }
    }

    /// The limits that apply to the next [`cut`](Self::cut).
    pub fn limits(&self) -> FrameLimits {
        self.limits
    }

    /// Changes the limits, also for the frame that is being received.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Whether nothing is known yet of what comes next.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header { searched: 0 })
    }

    /// Of the frame whose header has been read: where its body begins, and how long it is. None
    /// [between frames](Self::is_between_frames), and while the header is incomplete.
    pub fn begun(&self) -> Option<(usize, usize)> {
        match self.state {
            State::Body { header, length } => Some((header, usize::try_from(length).ok()?)),
            State::Header { .. } => None,
        }
    }

    /// The caller takes the frame that has [begun](Self::begun) by itself, whole: the next
    /// [`cut`](Self::cut) is at the first byte behind it.
    pub fn give_over(&mut self) {
        self.state = State::Header { searched: 0 };
    }

    /// For runs of frames [between frames](Self::is_between_frames), what holds for all of them.
    #[inline]
    pub fn plain(&self) -> PlainFrames {
        let fits = self.limits.header >= LONGEST_PLAIN;
        PlainFrames {
            longest: if fits { self.limits.frame } else { 0 },
        }
    }

    /// Looks for one frame at the start of `buf`, the first byte not yet consumed.
    ///
    /// After [`Cut::Frame`] the caller drops `body.end` bytes and calls again; after
    /// [`Cut::Incomplete`] it calls again with the same bytes and more behind them.
    ///
    /// # Errors
    ///
    /// See [`FrameError`]. Whether and which error comes depends on the bytes alone, not on how
    /// they were split between calls. After an error the stream has no further frames.
    pub fn cut(&mut self, buf: &[u8]) -> Result<Cut, FrameError> {
        let (header, length) = match self.state {
            State::Body { header, length } => (header, length),
            State::Header { searched } => {
                let Some((header, length)) = self.header(buf, searched)? else {
                    return Ok(Cut::Incomplete { total: None });
                };
                self.state = State::Body { header, length };
                (header, length)
            }
        };
        if header > self.limits.header {
            return Err(FrameError::HeaderTooLong {
                limit: self.limits.header,
            });
        }
        let too_long = FrameError::FrameTooLong {
            declared: length,
            limit: self.limits.frame,
        };
        let body = match usize::try_from(length) {
            Ok(body) if body <= self.limits.frame => body,
            Ok(_) | Err(_) => return Err(too_long),
        };
        let total = header.checked_add(body).ok_or(too_long)?;
        if buf.len() < total {
            return Ok(Cut::Incomplete { total: Some(total) });
        }
        self.state = State::Header { searched: 0 };
        Ok(Cut::Frame {
            header: 0..header,
            body: header..total,
        })
    }

    /// The end of the header block and the declared length, once the blank line is there.
    fn header(&mut self, buf: &[u8], searched: usize) -> Result<Option<(usize, u64)>, FrameError> {
        if searched == 0
            && let Some(plain) = plain_header(buf)
        {
            return Ok(Some(plain));
        }
        let window = &buf[..buf.len().min(self.limits.header)];
        // A caller that shows fewer bytes than before only costs a new search.
        let from = searched.min(window.len());
        let Some(found) = memmem::find(&window[from..], BLANK) else {
            if buf.len() >= self.limits.header {
                return Err(FrameError::HeaderTooLong {
                    limit: self.limits.header,
                });
            }
            // The blank line may have begun in the last three bytes.
            let searched = window.len().saturating_sub(BLANK.len() - 1);
            self.state = State::Header { searched };
            return Ok(None);
        };
        let block = from + found;
        let length = content_length(&window[..block])?;
        Ok(Some((block + BLANK.len(), length)))
    }
}

/// The fast path: exactly `Content-Length: N` and a blank line, as all SDKs and the CLI send it.
#[inline]
fn plain_header(buf: &[u8]) -> Option<(usize, u64)> {
    // Arrays of known length: the comparison is a few instructions, and no call.
    let (start, rest) = buf.split_first_chunk()?;
    if start != PLAIN {
        return None;
    }
    match rest.first_chunk().and_then(|next| short_length(*next)) {
        Some((digits, length)) => Some((PLAIN.len() + digits + BLANK.len(), u64::from(length))),
        None => any_length(rest).map(|(end, length)| (PLAIN.len() + end, length)),
    }
}

/// The length, and how many digits it has, if they are two to four and the blank line follows: all
/// eight bytes at a time, since nearly every frame is of such a length.
#[inline(always)]
fn short_length(next: [u8; 8]) -> Option<(usize, u16)> {
    const ONES: u64 = u64::MAX / 255;
    const END: u64 = u32::from_le_bytes(*BLANK) as u64;
    const LOW: u64 = u32::MAX as u64;
    let next = u64::from_le_bytes(next);
    let digits = if next >> 24 & LOW == END {
        3
    } else if next >> 32 == END {
        4
    } else if next >> 16 & LOW == END {
        2
    } else {
        return None;
    };
    // The digits move up to the end, zeros in front of them.
    let number = next << (64 - 8 * digits) | (ONES * u64::from(b'0')) >> (8 * digits);
    let values = number ^ (ONES * u64::from(b'0'));
    // A digit is less than ten: adding 0x76 leaves its high bit alone.
    if (values | values.wrapping_add(ONES * 0x76)) & (ONES << 7) != 0 {
        return None;
    }
    // Neighbours together: two digits, then four, which are all that there are.
    let pairs = values * 10 + (values >> 8);
    let value = (pairs >> 32 & 0xff) * 100 + (pairs >> 48 & 0xff);
    // Four digits fit.
    Some((digits, value as u16))
}

/// The length behind the header's name, and where the blank line behind it ends.
#[cold]
fn any_length(rest: &[u8]) -> Option<(usize, u64)> {
    let mut length = 0u64;
    let mut digits = 0;
    // 19 digits cannot overflow 64 bits.
    while let Some(digit @ b'0'..=b'9') = rest.get(digits).filter(|_| digits < 19) {
        length = length * 10 + u64::from(digit - b'0');
        digits += 1;
    }
    (digits > 0 && rest[digits..].first_chunk() == Some(BLANK))
        .then(|| (digits + BLANK.len(), length))
}

/// Whether `header` is spelled as [`write_header`] would spell it, so that it may be sent on to
/// the strictest of readers as it stands.
pub fn is_plain_header(header: &[u8]) -> bool {
    let Some((name, rest)) = header.split_first_chunk() else {
        return false;
    };
    let Some((digits, end)) = rest.split_last_chunk() else {
        return false;
    };
    u128::from_le_bytes(*name) == u128::from_le_bytes(*PLAIN)
        && end == BLANK
        // 19 digits cannot overflow 64 bits.
        && matches!(digits.len(), 1..=19)
        && (digits.len() == 1 || digits[0] != b'0')
        && digits.iter().all(u8::is_ascii_digit)
}

/// The declared length of a header block (without its blank line) of any shape.
fn content_length(block: &[u8]) -> Result<u64, FrameError> {
    let mut value = None;
    let mut rest = block;
    loop {
        let end = memmem::find(rest, b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        let colon = memchr::memchr(b':', line).ok_or(FrameError::MalformedHeader)?;
        if line[..colon].eq_ignore_ascii_case(NAME) {
            value = Some(&line[colon + 1..]);
        }
        match end {
            Some(end) => rest = &rest[end + 2..],
            None => break,
        }
    }
    let value = String::from_utf8_lossy(value.ok_or(FrameError::MissingContentLength)?);
    let value = value.trim();
    if value.is_empty() {
        return Err(FrameError::MissingContentLength);
    }
    let digits = value.strip_prefix('+').unwrap_or(value);
    let end = digits
        .bytes()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end]
        .parse()
        .map_err(|_| FrameError::BadContentLength {
            got: value.chars().take(EXCERPT).collect::<String>().into(),
        })
}

/// Appends the header of a body of `len` bytes: exactly `Content-Length: N` and a blank line.
pub fn write_header(len: usize, out: &mut Vec<u8>) {
    // 20 digits hold any 64-bit number.
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    let mut rest = len;
    loop {
        start -= 1;
        // A remainder of ten always fits.
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.reserve(PLAIN.len() + digits.len() - start + BLANK.len());
    out.extend_from_slice(PLAIN);
    out.extend_from_slice(&digits[start..]);
    out.extend_from_slice(BLANK);
}
