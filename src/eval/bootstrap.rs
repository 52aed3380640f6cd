//! Means over examples, and whether one model beats another: a paired bootstrap.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::counted;

/// Resamples of the bootstrap: the interval's ends then wobble by about 1% of its width.
pub const RESAMPLES: usize = 10_000;
/// With fewer examples the bootstrap's interval is far too narrow to found a verdict on.
pub const LEAST_EXAMPLES: usize = 10;
/// Beyond this, the number of examples that a verdict would need is no advice.
const MOST_ADVISED_EXAMPLES: f64 = 1e6;

/// The share of one example in a mean, `Σ sum / Σ weight`: a loss by token has the tokens as weight, a score has 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// The sum that the example adds.
    pub sum: f64,
    /// Its weight.
    pub weight: f64,
}

impl Share {
    /// The share of an example that counts once.
    pub fn of_score(score: f64) -> Self {
        Self { sum: score, weight: 1.0 }
    }
}

/// `Σ sum / Σ weight`; 0 where nothing has a weight.
pub fn mean<'a>(shares: impl IntoIterator<Item = &'a Share>) -> f64 {
    let (sum, weight) =
        shares.into_iter().fold((0.0, 0.0), |(sum, weight), share| (sum + share.sum, weight + share.weight));
    if weight == 0.0 { 0.0 } else { sum / weight }
}

/// A figure with its 95% interval, by the percentile bootstrap over examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// The conclusion of a comparison, at 95% confidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// The whole interval lies on the better side of 0.
    #[serde(rename = "improved")]
    Improved,
    /// The interval holds 0, or there are fewer than [`LEAST_EXAMPLES`].
    #[serde(rename = "no evidence")]
    NoEvidence,
    /// The whole interval lies on the worse side of 0.
    #[serde(rename = "worse")]
    Worse,
}

impl Verdict {
    /// The verdict in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Improved => "improved",
            Self::NoEvidence => "no evidence",
            Self::Worse => "worse",
        }
    }
}

/// The side of 0 on which a difference is an improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Less is better: losses.
    Lower,
    /// More is better: scores.
    Higher,
}

/// Two models on the same examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// The mean of the first model.
    pub before: f64,
    /// The mean of the second model.
    pub after: f64,
    /// `after - before`.
    pub difference: f64,
    /// Lower end of the 95% interval of the difference.
    pub low: f64,
    /// Upper end of the 95% interval of the difference.
    pub high: f64,
    /// Number of examples.
    pub examples: usize,
    /// The conclusion from the interval.
    pub verdict: Verdict,
}

impl Comparison {
    /// The reason why there is no evidence; `None` where there is, and where nothing can be said.
    pub fn reason(&self) -> Option<String> {
        if self.examples < LEAST_EXAMPLES {
            return Some(format!("{}, at least {LEAST_EXAMPLES} are needed", counted(self.examples, "example")));
        }
        let needed = self.examples_needed().filter(|_| self.verdict == Verdict::NoEvidence)?;
        Some(format!("a difference of this size would need about {needed} examples"))
    }

    /// The number of examples of which the interval would be as narrow as the difference is great, to two digits: an interval
    /// narrows with the square root of their number.
    fn examples_needed(&self) -> Option<u64> {
        let half = (self.high - self.low) / 2.0;
        let needed = self.examples as f64 * (half / self.difference).powi(2);
        if !needed.is_finite() || needed > MOST_ADVISED_EXAMPLES {
            return None;
        }
        let unit = 10f64.powf((needed.log10().floor() - 1.0).max(0.0));
        Some(((needed / unit).ceil() * unit) as u64)
    }
}

/// Whether `after` is better than `before`, example by example the same ones.
///
/// The interval is the percentile bootstrap of the paired difference (Efron and Tibshirani 1993, chapter 13):
/// examples are drawn with replacement, [`RESAMPLES`] times, and each draw gives
/// `Σ (after - before) / Σ weight`; 2.5% of the results lie below the interval and 2.5% above.
/// The same `seed` gives the same interval on every machine. Weights are those of `before`.
pub fn compare(before: &[Share], after: &[Share], better: Better, seed: u64) -> Comparison {
    let pairs = before.iter().zip(after);
    let differences: Vec<Share> =
        pairs.map(|(before, after)| Share { sum: after.sum - before.sum, ..*before }).collect();
    let resampled =
        (0..RESAMPLES as u64).into_par_iter().map(|resample| resampled_mean(&differences, seed, resample)).collect();
    let (low, high) = interval(resampled);
    let (is_below, is_above) = (high < 0.0, low > 0.0);
    let verdict = match (better, differences.len()) {
        (_, examples) if examples < LEAST_EXAMPLES => Verdict::NoEvidence,
        (Better::Lower, _) if is_below => Verdict::Improved,
        (Better::Higher, _) if is_above => Verdict::Improved,
        _ if is_below || is_above => Verdict::Worse,
        _ => Verdict::NoEvidence,
    };
    let (before, after) = (mean(before), mean(after));
    Comparison { before, after, difference: after - before, low, high, examples: differences.len(), verdict }
}

/// The mean of as many examples as there are, drawn with replacement.
fn resampled_mean(differences: &[Share], seed: u64, resample: u64) -> f64 {
    mean(draws(seed, resample, differences.len()).map(|index| &differences[index]))
}

/// The indices of a resample of `count` examples: as many, drawn with replacement.
pub(super) fn draws(seed: u64, resample: u64, count: usize) -> impl Iterator<Item = usize> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(resample);
    // 64 random bits over the number of examples: the bias is below 2^-32 for any set that fits in memory.
    (0..count).map(move |_| ((u128::from(rng.next_u64()) * count as u128) >> 64) as usize)
}

/// The 95% interval of a figure by its values in all resamples.
pub(super) fn interval(mut resampled: Vec<f64>) -> (f64, f64) {
    resampled.sort_unstable_by(f64::total_cmp);
    (quantile(&resampled, 0.025), quantile(&resampled, 0.975))
}

/// The value below which `share` of `sorted` lies, interpolated linearly (numpy's default).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * sorted.len().saturating_sub(1) as f64;
    let below = sorted.get(position.floor() as usize).copied().unwrap_or_default();
    let above = sorted.get(position.ceil() as usize).copied().unwrap_or_default();
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(scores: impl IntoIterator<Item = f64>) -> Vec<Share> {
        scores.into_iter().map(Share::of_score).collect()
    }

    #[test]
    fn the_better_side_depends_on_the_measure() {
        let (low, high) = (scores((0..40).map(|index| f64::from(index % 2) * 0.1)), scores(vec![1.0; 40]));
        assert_eq!(compare(&low, &high, Better::Higher, 0).verdict, Verdict::Improved);
        assert_eq!(compare(&low, &high, Better::Lower, 0).verdict, Verdict::Worse);
        assert_eq!(compare(&high, &low, Better::Higher, 0).verdict, Verdict::Worse);
        assert_eq!(compare(&low, &low, Better::Higher, 0).verdict, Verdict::NoEvidence);
        assert_eq!(compare(&low, &low, Better::Higher, 0).reason(), None, "no number of examples would help");
        assert_eq!(compare(&low[..9], &high[..9], Better::Higher, 0).verdict, Verdict::NoEvidence);
    }

    #[test]
    fn no_evidence_says_how_many_examples_would_be_needed() {
        // Of 40 examples one is gained: the interval of its share, 1/40 ± 2·sqrt(p(1-p)/40), holds 0.
        let before = scores(vec![0.0; 40]);
        let after =
            scores((0..40).map(|index| f64::from(u8::from(index == 0)) - 0.3 * f64::from(u8::from(index == 1))));
        let comparison = compare(&before, &after, Better::Higher, 0);
        assert_eq!(comparison.verdict, Verdict::NoEvidence);
        let reason = comparison.reason().expect("a reason");
        let half = (comparison.high - comparison.low) / 2.0;
        let needed = 40.0 * (half / comparison.difference).powi(2);
        let said: f64 = reason.split("about ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("n");
        assert!(said >= needed && said <= 1.1 * needed + 1.0, "{reason}, {needed}");
    }
}
