//! Numbers, told apart and range-checked as serde_json does; no float is built.

use super::json::{Cursor, Fault, Syntax};

/// A number, as far as JSON-RPC asks about numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Number {
    /// A whole number from 0 up to 64 bits.
    Unsigned(u64),
    /// A whole number below 0.
    Signed(i64),
    /// All others, `-0` and whole numbers of more than 64 bits included.
    Float,
}

impl Cursor<'_> {
    /// Reads the number that comes next.
    pub(super) fn number(&mut self) -> Result<Number, Fault> {
        let negative = self.body[self.at] == b'-';
        if negative {
            self.at += 1;
        }
        let mut whole = match self.next() {
            Some(b'0') => {
                return match self.body.get(self.at) {
                    Some(b'0'..=b'9') => Err(self.unexpected(Syntax::InvalidNumber)),
                    Some(_) | None => self.tail(negative, 0),
                };
            }
            Some(digit @ b'1'..=b'9') => u64::from(digit - b'0'),
            Some(_) => return Err(self.fault(Syntax::InvalidNumber)),
            None => return Err(self.fault(Syntax::EofValue)),
        };
        while let Some(digit) = self.digit() {
            match append(whole, digit) {
                Some(longer) => whole = longer,
                None => return self.long(whole),
            }
            self.at += 1;
        }
        self.tail(negative, whole)
    }

    /// Behind the whole part of a number, which fits into 64 bits.
    fn tail(&mut self, negative: bool, whole: u64) -> Result<Number, Fault> {
        match self.body.get(self.at) {
            Some(b'.') => self.fraction(whole, 0),
            Some(b'e' | b'E') => self.exponent(whole, 0),
            Some(_) | None if !negative => Ok(Number::Unsigned(whole)),
            Some(_) | None => Ok(match 0i64.checked_sub_unsigned(whole) {
                Some(value @ ..0) => Number::Signed(value),
                // A float, says serde_json, if it is -0 or does not fit.
                Some(_) | None => Number::Float,
            }),
        }
    }

    /// The rest of a whole part that does not fit into 64 bits: further digits only count.
    fn long(&mut self, significand: u64) -> Result<Number, Fault> {
        let mut exponent = 0i32;
        while self.digit().is_some() {
            self.at += 1;
            exponent = exponent.saturating_add(1);
        }
        match self.body.get(self.at) {
            Some(b'.') => self.fraction(significand, exponent),
            Some(b'e' | b'E') => self.exponent(significand, exponent),
            Some(_) | None => self.float(significand, exponent),
        }
    }

    /// From the decimal point on.
    fn fraction(&mut self, mut significand: u64, mut exponent: i32) -> Result<Number, Fault> {
        self.at += 1;
        let start = self.at;
        while let Some(digit) = self.digit() {
            let Some(longer) = append(significand, digit) else {
                // Beyond the precision of any float: passed over.
                while self.digit().is_some() {
                    self.at += 1;
                }
                break;
            };
            significand = longer;
            exponent = exponent.saturating_sub(1);
            self.at += 1;
        }
        match self.body.get(self.at) {
            Some(_) if self.at == start => Err(self.unexpected(Syntax::InvalidNumber)),
            None if self.at == start => Err(self.unexpected(Syntax::EofValue)),
            Some(b'e' | b'E') => self.exponent(significand, exponent),
            Some(_) | None => self.float(significand, exponent),
        }
    }

    /// From the `e` on.
    fn exponent(&mut self, significand: u64, start: i32) -> Result<Number, Fault> {
        self.at += 1;
        let negative = self.body.get(self.at) == Some(&b'-');
        if matches!(self.body.get(self.at), Some(b'+' | b'-')) {
            self.at += 1;
        }
        let mut exponent = match self.next() {
            Some(digit @ b'0'..=b'9') => i32::from(digit - b'0'),
            Some(_) => return Err(self.fault(Syntax::InvalidNumber)),
            None => return Err(self.fault(Syntax::EofValue)),
        };
        while let Some(digit) = self.digit() {
            self.at += 1;
            let longer = exponent
                .checked_mul(10)
                .and_then(|ten| ten.checked_add(digit.into()));
            let Some(longer) = longer else {
                if significand != 0 && !negative {
                    return Err(self.fault(Syntax::NumberOutOfRange));
                }
                while self.digit().is_some() {
                    self.at += 1;
                }
                return Ok(Number::Float);
            };
            exponent = longer;
        }
        let exponent = if negative {
            start.saturating_sub(exponent)
        } else {
            start.saturating_add(exponent)
        };
        self.float(significand, exponent)
    }

    /// Whether `significand` × 10^`exponent` is finite, computed as serde_json computes it.
    fn float(&self, significand: u64, exponent: i32) -> Result<Number, Fault> {
        /// 10^289 to 10^308: below the first no 64-bit significand overflows a float.
        const POWERS: [f64; 20] = [
            1e289, 1e290, 1e291, 1e292, 1e293, 1e294, 1e295, 1e296, 1e297, 1e298, 1e299, 1e300,
            1e301, 1e302, 1e303, 1e304, 1e305, 1e306, 1e307, 1e308,
        ];
        if significand == 0 || exponent < 289 {
            return Ok(Number::Float);
        }
        let power = usize::try_from(exponent - 289)
            .ok()
            .and_then(|index| POWERS.get(index));
        // The cast rounds, as serde_json's does.
        match power {
            Some(power) if (significand as f64 * power).is_finite() => Ok(Number::Float),
            Some(_) | None => Err(self.fault(Syntax::NumberOutOfRange)),
        }
    }

    /// The next byte if it is a digit, as a number, not consumed.
    fn digit(&self) -> Option<u8> {
        self.body
            .get(self.at)
            .filter(|byte| byte.is_ascii_digit())
            .map(|byte| byte - b'0')
    }
}

fn append(significand: u64, digit: u8) -> Option<u64> {
    significand.checked_mul(10)?.checked_add(digit.into())
}
