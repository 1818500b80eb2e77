//! Series of one metric by one label whose values are few and become known as the program runs.
//!
//! Looking a series up takes no lock and no hash. Must not grow without bound: past
//! [`MOST`] values everything is counted under `other`.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;

/// Most values of one label, `other` not counted.
pub(super) const MOST: usize = 64;

/// The value that stands for all values past the bound.
pub(super) const OTHER: &str = "other";

/// `K` is the label as the callers have it, `T` a handle of the `prometheus` crate (an `Arc`).
pub(super) struct Series<K, T> {
    known: ArcSwap<Vec<(K, T)>>,
    make: Box<dyn Fn(&str) -> T + Send + Sync>,
    /// Where everything past the bound goes; made when first needed.
    other: std::sync::OnceLock<T>,
}

impl<K: Copy + Eq + ToString, T: Clone> Series<K, T> {
    /// `make` makes, or finds, the series of a label value.
    pub(super) fn new(make: impl Fn(&str) -> T + Send + Sync + 'static) -> Self {
        Self {
            known: ArcSwap::from_pointee(Vec::new()),
            make: Box::new(make),
            other: std::sync::OnceLock::new(),
        }
    }

    /// Does something with the series of a label value.
    pub(super) fn with(&self, label: K, act: impl FnOnce(&T)) {
        let known = self.known.load();
        if let Some((_, series)) = known.iter().find(|(k, _)| *k == label) {
            act(series);
        } else if known.len() >= MOST {
            act(self.other.get_or_init(|| (self.make)(OTHER)));
        } else {
            // Two threads may come here with one label: `make` gives both the same series.
            let series = (self.make)(&label.to_string());
            act(&series);
            self.known.rcu(|known| {
                let mut longer = Vec::clone(known);
                if longer.len() < MOST && !longer.iter().any(|(k, _)| *k == label) {
                    longer.push((label, series.clone()));
                }
                Arc::new(longer)
            });
        }
    }
}

impl<K, T> fmt::Debug for Series<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Series")
            .field("known", &self.known.load().len())
            .finish_non_exhaustive()
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
