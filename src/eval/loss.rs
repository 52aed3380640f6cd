//! Losses over a set of examples: their mean by token, perplexity, and whether one model beats another.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, counted};
use crate::files::json::exact;

/// Resamples of the bootstrap: the interval's ends then wobble by about 1% of its width.
pub const RESAMPLES: usize = 10_000;
/// With fewer examples the bootstrap's interval is far too narrow to found a verdict on.
pub const LEAST_EXAMPLES: usize = 10;

/// The share of one example in a loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExampleLoss {
    /// Sum of the cross entropy over the trained tokens, in nats.
    #[serde(with = "exact")]
    pub loss_sum: f64,
    /// Trained tokens.
    pub tokens: usize,
}

/// The conclusion of a comparison, at 95% confidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval lies below 0.
    Improved,
    /// The interval holds 0, or there are fewer than [`LEAST_EXAMPLES`].
    NoEvidence,
    /// The whole interval lies above 0.
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

/// Two models on the same examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossComparison {
    /// Mean loss by token of the first model.
    pub before: f64,
    /// Mean loss by token of the second model.
    pub after: f64,
    /// `after - before`: negative is better.
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

impl LossComparison {
    /// Why there is no verdict whatever the interval says; `None` where the interval decides.
    pub fn reason(&self) -> Option<String> {
        (self.examples < LEAST_EXAMPLES)
            .then(|| format!("{}, at least {LEAST_EXAMPLES} are needed", counted(self.examples, "example")))
    }
}

/// The name of an example without a place in a file, by its index.
pub fn example_number(index: usize) -> String {
    format!("example {}", index + 1)
}

/// Mean loss by token: every token weighs the same, whatever example it stands in. `place` names the example of an index,
/// for messages.
///
/// # Errors
/// A loss that is not finite; not one trained token.
pub fn mean_loss(losses: &[ExampleLoss], place: impl Fn(usize) -> String) -> Result<f64> {
    let broken = losses.iter().position(|example| !example.loss_sum.is_finite());
    if let Some(index) = broken {
        return Err(Error::failed(place(index), "its loss is not a finite number")
            .hint("base or adapter may be damaged, or trained to divergence"));
    }
    let tokens: usize = losses.iter().map(|example| example.tokens).sum();
    if tokens == 0 {
        return Err(Error::input("evaluation", "there is no trained token to measure the loss on"));
    }
    Ok(losses.iter().map(|example| example.loss_sum).sum::<f64>() / tokens as f64)
}

/// `exp(mean loss)`; infinite above a loss of about 709.
pub fn perplexity(mean_loss: f64) -> f64 {
    mean_loss.exp()
}

/// Whether `after` is better than `before`, example by example the same ones.
///
/// The interval is the percentile bootstrap of the paired difference (Efron and Tibshirani 1993, chapter 13):
/// examples are drawn with replacement, [`RESAMPLES`] times, and each draw gives
/// `sum(after - before) / sum(tokens)`; 2.5% of the results lie below the interval and 2.5% above.
/// The same `seed` gives the same interval on every machine. `place` names the example of an index, for messages.
///
/// # Errors
/// Lists of different lengths, and the inputs that [`mean_loss`] refuses.
pub fn compare(
    before: &[ExampleLoss],
    after: &[ExampleLoss],
    seed: u64,
    place: impl Fn(usize) -> String,
) -> Result<LossComparison> {
    let same_tokens = before.iter().map(|example| example.tokens).eq(after.iter().map(|example| example.tokens));
    if !same_tokens {
        return Err(Error::failed("evaluation", "the two models were not measured on the same examples"));
    }
    let (mean_before, mean_after) = (mean_loss(before, &place)?, mean_loss(after, &place)?);
    let pairs = before.iter().zip(after);
    let differences: Vec<ExampleLoss> = pairs
        .map(|(before, after)| ExampleLoss { loss_sum: after.loss_sum - before.loss_sum, tokens: before.tokens })
        .collect();
    let mut resampled: Vec<f64> =
        (0..RESAMPLES as u64).into_par_iter().map(|resample| resampled_mean(&differences, seed, resample)).collect();
    resampled.sort_by(f64::total_cmp);
    let (low, high) = (quantile(&resampled, 0.025), quantile(&resampled, 0.975));
    let verdict = match before.len() {
        examples if examples < LEAST_EXAMPLES => Verdict::NoEvidence,
        _ if high < 0.0 => Verdict::Improved,
        _ if low > 0.0 => Verdict::Worse,
        _ => Verdict::NoEvidence,
    };
    Ok(LossComparison {
        before: mean_before,
        after: mean_after,
        difference: mean_after - mean_before,
        low,
        high,
        examples: before.len(),
        verdict,
    })
}

/// The mean by token of as many examples as there are, drawn with replacement.
fn resampled_mean(differences: &[ExampleLoss], seed: u64, resample: u64) -> f64 {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(resample);
    let (mut sum, mut tokens) = (0.0, 0usize);
    for _ in differences {
        // 64 random bits over the number of examples: the bias is below 2^-32 for any set that fits in memory.
        let index = (u128::from(rng.next_u64()) * differences.len() as u128) >> 64;
        if let Some(example) = differences.get(index as usize) {
            sum += example.loss_sum;
            tokens += example.tokens;
        }
    }
    // A draw of nothing but examples without tokens has no difference to show.
    if tokens == 0 { 0.0 } else { sum / tokens as f64 }
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

    fn losses(pairs: &[(f64, usize)]) -> Vec<ExampleLoss> {
        pairs.iter().map(|&(loss_sum, tokens)| ExampleLoss { loss_sum, tokens }).collect()
    }

    #[test]
    fn tokens_weigh_the_same_and_examples_without_any_count_for_nothing() {
        assert_eq!(mean_loss(&losses(&[(3.0, 1), (1.0, 3), (0.0, 0)]), example_number).unwrap(), 1.0);
        assert_eq!(mean_loss(&losses(&[(0.0, 0)]), example_number).unwrap_err().exit_code(), 2);
        assert!(mean_loss(&[], example_number).is_err());
        let error =
            mean_loss(&losses(&[(1.0, 1), (f64::NAN, 1)]), |index| format!("d.jsonl:{}", 10 + index)).unwrap_err();
        assert!(error.to_string().starts_with("d.jsonl:11: its loss"), "{error}");
        assert_eq!(perplexity(0.0), 1.0);
    }

    #[test]
    fn the_verdict_follows_the_interval() {
        let before: Vec<_> = (0..40).map(|index| (2.0 + 0.01 * f64::from(index % 7), 10)).collect();
        let shifted = |by: f64| losses(&before.iter().map(|&(sum, tokens)| (sum + by, tokens)).collect::<Vec<_>>());
        let verdict = |by| compare(&losses(&before), &shifted(by), 0, example_number).unwrap().verdict;
        assert_eq!(verdict(-0.1), Verdict::Improved);
        assert_eq!(verdict(0.1), Verdict::Worse);
        assert_eq!(verdict(0.0), Verdict::NoEvidence);
        assert_eq!(compare(&losses(&before), &shifted(0.0), 0, example_number).unwrap().reason(), None);
        let few = compare(&losses(&before[..9]), &shifted(-0.1)[..9], 0, example_number).unwrap();
        assert_eq!(few.verdict, Verdict::NoEvidence);
        assert!(few.high < 0.0);
        assert_eq!(few.reason().as_deref(), Some("9 examples, at least 10 are needed"));
        let one = compare(&losses(&before[..1]), &shifted(-0.1)[..1], 0, example_number).unwrap();
        assert_eq!(one.reason().as_deref(), Some("1 example, at least 10 are needed"));
    }

    #[test]
    fn lists_that_do_not_belong_together_are_refused() {
        let (one, other) = (losses(&[(1.0, 2), (1.0, 3)]), losses(&[(1.0, 2), (1.0, 4)]));
        assert_eq!(compare(&one, &other, 0, example_number).unwrap_err().exit_code(), 1);
        assert!(compare(&one, &one[..1], 0, example_number).is_err());
    }

    #[test]
    fn the_seed_decides_the_interval() {
        let before = losses(&[(1.0, 1); 12]);
        let after: Vec<_> = (0..12).map(|index| ExampleLoss { loss_sum: f64::from(index).sqrt(), tokens: 1 }).collect();
        let interval =
            |seed| compare(&before, &after, seed, example_number).map(|found| (found.low, found.high)).unwrap();
        assert_eq!(interval(3), interval(3));
        assert_ne!(interval(3), interval(4));
    }
}
