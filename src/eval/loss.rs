//! Losses over a set of examples: their mean by token, perplexity, token accuracy, and whether one model beats another.

use serde::{Deserialize, Serialize};

use super::bootstrap::{self, Better, Comparison, Share};
use crate::error::{Error, Result};
use crate::files::json::exact;

/// The share of one example in a loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExampleLoss {
    /// Sum of the cross entropy over the trained tokens, in nats.
    #[serde(with = "exact")]
    pub loss_sum: f64,
    /// Trained tokens.
    pub tokens: usize,
    /// Of these, the ones than which the model found no other token likelier.
    pub correct_tokens: usize,
}

impl ExampleLoss {
    /// The share in the mean loss by token.
    pub fn share(&self) -> Share {
        Share { sum: self.loss_sum, weight: self.tokens as f64 }
    }

    /// The share in the token accuracy.
    pub fn share_of_correct(&self) -> Share {
        Share { sum: self.correct_tokens as f64, weight: self.tokens as f64 }
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

/// The share of the trained tokens than which the model found no other likelier.
pub fn token_accuracy(losses: &[ExampleLoss]) -> f64 {
    bootstrap::mean(&losses.iter().map(ExampleLoss::share_of_correct).collect::<Vec<_>>())
}

/// Whether `after` is better than `before`, by [`bootstrap::compare`]. `place` names the example of an index, for messages.
///
/// # Errors
/// Lists of different lengths, and the inputs that [`mean_loss`] refuses.
pub fn compare(
    before: &[ExampleLoss],
    after: &[ExampleLoss],
    seed: u64,
    place: impl Fn(usize) -> String,
) -> Result<Comparison> {
    let same_tokens = before.iter().map(|example| example.tokens).eq(after.iter().map(|example| example.tokens));
    if !same_tokens {
        return Err(Error::failed("evaluation", "the two models were not measured on the same examples"));
    }
    mean_loss(before, &place)?;
    mean_loss(after, &place)?;
    let shares = |losses: &[ExampleLoss]| losses.iter().map(ExampleLoss::share).collect::<Vec<_>>();
    Ok(bootstrap::compare(&shares(before), &shares(after), Better::Lower, seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::bootstrap::Verdict;

    fn losses(pairs: &[(f64, usize)]) -> Vec<ExampleLoss> {
        pairs.iter().map(|&(loss_sum, tokens)| ExampleLoss { loss_sum, tokens, correct_tokens: 0 }).collect()
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
        let after: Vec<_> = (0..12)
            .map(|index| ExampleLoss { loss_sum: f64::from(index).sqrt(), tokens: 1, correct_tokens: 0 })
            .collect();
        let interval =
            |seed| compare(&before, &after, seed, example_number).map(|found| (found.low, found.high)).unwrap();
        assert_eq!(interval(3), interval(3));
        assert_ne!(interval(3), interval(4));
    }
}
