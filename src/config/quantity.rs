//! Quantities as people write them, unit included: `"30s"`, `"1h30m"`, `"64MiB"`.
//!
//! Knows no key and no limit of a key; those are in `reference`.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const SIZE_UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Why a text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// Only digits.
    #[error("the unit is missing")]
    NoUnit,
    /// Starts with something else than a digit.
    #[error("a number is expected here")]
    NoNumber,
    /// Digits, then a unit that is not one of ours.
    #[error("this unit is not known")]
    UnknownUnit,
    /// `1.5h`.
    #[error("whole numbers only")]
    Fraction,
    /// `30m1h`, `1s1s`.
    #[error("larger units come first, each once")]
    Order,
    /// Beyond what is representable.
    #[error("this is too large")]
    TooLarge,
}

/// Reads a duration: one or more of `d h m s ms`, from large to small.
pub(super) fn duration(text: &str) -> Result<Duration, Malformed> {
    parse(text, &DURATION_UNITS).map(Duration::from_millis)
}

/// Reads a number of bytes: one or more of `GiB MiB KiB B`, from large to small.
pub(super) fn size(text: &str) -> Result<u64, Malformed> {
    parse(text, &SIZE_UNITS)
}

/// Writes a duration as [`duration`] reads it; below a millisecond is cut off.
pub(super) fn show_duration(value: Duration) -> String {
    show(
        u64::try_from(value.as_millis()).unwrap_or(u64::MAX),
        &DURATION_UNITS,
        "0s",
    )
}

/// Writes a number of bytes as [`size`] reads it.
pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, &SIZE_UNITS, "0B")
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, Malformed> {
    let mut rest = text;
    let mut total = 0u64;
    let mut units_left = units;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return Err(Malformed::NoNumber);
        }
        let (number, tail) = rest.split_at(digits);
        if tail.starts_with(['.', ',']) {
            return Err(Malformed::Fraction);
        }
        let letters = tail.bytes().take_while(|b| !b.is_ascii_digit()).count();
        let (unit, tail) = tail.split_at(letters);
        if unit.is_empty() {
            return Err(Malformed::NoUnit);
        }
        let Some(&(_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
            return Err(Malformed::UnknownUnit);
        };
        let Some(at) = units_left.iter().position(|(name, _)| *name == unit) else {
            return Err(Malformed::Order);
        };
        units_left = &units_left[at + 1..];
        let number: u64 = number.parse().map_err(|_| Malformed::TooLarge)?;
        total = number
            .checked_mul(factor)
            .and_then(|part| total.checked_add(part))
            .ok_or(Malformed::TooLarge)?;
        if tail.is_empty() {
            return Ok(total);
        }
        rest = tail;
    }
}

fn show(mut value: u64, units: &[(&str, u64)], zero: &str) -> String {
    if value == 0 {
        return zero.to_owned();
    }
    let mut text = String::new();
    for (name, factor) in units {
        let count = value / factor;
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            value %= factor;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, expected) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("0s", 0),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("2d1ms", 172_800_001),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(expected)),
                "{text}"
            );
        }
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1KiB512B"), Ok(1536));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, expected) in [
            ("", Malformed::NoNumber),
            ("s", Malformed::NoNumber),
            ("-1s", Malformed::NoNumber),
            (" 1s", Malformed::NoNumber),
            ("30", Malformed::NoUnit),
            ("1h30", Malformed::NoUnit),
            ("1.5h", Malformed::Fraction),
            ("30 s", Malformed::UnknownUnit),
            ("30sec", Malformed::UnknownUnit),
            ("30S", Malformed::UnknownUnit),
            ("30m1h", Malformed::Order),
            ("1s1s", Malformed::Order),
            ("99999999999999999999s", Malformed::TooLarge),
            ("18446744073709551615d", Malformed::TooLarge),
        ] {
            assert_eq!(duration(text), Err(expected), "{text:?}");
        }
        assert_eq!(size("64MB"), Err(Malformed::UnknownUnit));
        assert_eq!(size("64"), Err(Malformed::NoUnit));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(value: u64) {
            prop_assert_eq!(size(&show_size(value)), Ok(value));
            let span = Duration::from_millis(value);
            prop_assert_eq!(duration(&show_duration(span)), Ok(span));
        }

        #[test]
        fn any_text_gets_an_answer(text in "\\PC{0,24}") {
            if let Ok(span) = duration(&text) {
                prop_assert_eq!(duration(&show_duration(span)), Ok(span));
            }
            if let Ok(bytes) = size(&text) {
                prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
            }
        }

        #[test]
        fn a_number_without_unit_is_never_a_quantity(value: u64) {
            prop_assert_eq!(duration(&value.to_string()), Err(Malformed::NoUnit));
            prop_assert_eq!(size(&value.to_string()), Err(Malformed::NoUnit));
        }
    }
}
