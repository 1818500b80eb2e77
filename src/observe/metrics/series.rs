//! Series of one metric by one label whose values are few and become known as the program runs.
//!
//! Looking a series up takes no lock and no hash. Must not grow without bound: past
//! [`MOST`] values everything is counted under `other`.

use std::{fmt, sync::OnceLock};

/// Most values of one label, `other` not counted.
pub(super) const MOST: usize = 64;

/// The value that stands for all values past the bound.
pub(super) const OTHER: &str = "other";

/// `K` is the label as the callers have it, `T` a handle of the `prometheus` crate (an `Arc`).
pub(super) struct Series<K, T> {
    /// In the order in which they became known; behind the first that is free all are.
    known: Box<[OnceLock<(K, T)>; MOST]>,
    make: Box<dyn Fn(&str) -> T + Send + Sync>,
    /// Where everything past the bound goes; made when first needed.
    other: OnceLock<T>,
}

impl<K: Copy + Eq + ToString, T: Clone> Series<K, T> {
    /// `make` makes, or finds, the series of a label value.
    pub(super) fn new(make: impl Fn(&str) -> T + Send + Sync + 'static) -> Self {
        Self {
            known: Box::new([const { OnceLock::new() }; MOST]),
            make: Box::new(make),
            other: OnceLock::new(),
        }
    }

    /// Does something with the series of a label value.
    pub(super) fn with(&self, label: K, act: impl FnOnce(&T)) {
        for place in &*self.known {
            // Two threads may come here with one label, or with two: the second goes on from what the
            // first has put there.
            let (known, series) = place.get_or_init(|| (label, (self.make)(&label.to_string())));
            if *known == label {
                return act(series);
            }
        }
        act(self.other.get_or_init(|| (self.make)(OTHER)));
    }
}

impl<K, T> fmt::Debug for Series<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Series").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, Opts, core::Collector};

    use super::*;

    #[test]
    fn one_series_a_label_and_never_more_than_the_bound() {
        let vec = IntCounterVec::new(Opts::new("t_total", "t"), &["code"]).unwrap();
        let made = vec.clone();
        let series = Series::<i32, _>::new(move |label| made.with_label_values(&[label]));
        for round in 1..=2 {
            for code in 0..200 {
                series.with(code, |c| c.inc());
            }
            assert_eq!(vec.with_label_values(&["63"]).get(), round);
            assert_eq!(
                vec.with_label_values(&[OTHER]).get(),
                round * (200 - MOST as u64)
            );
        }
        assert_eq!(vec.collect()[0].get_metric().len(), MOST + 1);
    }
}
