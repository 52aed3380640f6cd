//! The measures of an evaluation, and their values over a set of examples.

use std::collections::BTreeMap;

use serde::Serialize;

use super::bootstrap::{self, Better, Comparison, Share};
use crate::settings::choice;

choice! {
    /// A measure of a model.
    Measure {
        /// Mean loss by trained token.
        Loss = "loss",
        /// Share of the trained tokens than which the model finds no other likelier.
        TokenAccuracy = "token_accuracy",
        /// Share of greedy answers that are the expected text, or in which a pattern finds the same.
        ExactMatch = "exact_match",
        /// Mean ROUGE-L F1 of greedy answers.
        RougeL = "rouge_l",
        /// Share of greedy answers with the expected calls of tools.
        ToolCalls = "tool_calls",
        /// Share of questions whose right choice is the likeliest, of pairs whose chosen answer is the likelier one, and of texts whose right
        /// label is.
        Accuracy = "accuracy",
        /// The same by the likelihood for each character of a choice, and for each token of an answer.
        AccuracyNormalised = "accuracy_normalised",
        /// Share of pairs whose chosen answer has gained more likelihood over the base than the rejected one; a draw counts one half.
        RewardAccuracy = "reward_accuracy",
        /// Mean difference of the log-probabilities of chosen and rejected answers, in nats.
        Margin = "margin",
        /// Mean log-probability of chosen answers, in nats.
        ChosenLogProbability = "chosen_log_probability",
        /// Mean log-probability of rejected answers, in nats.
        RejectedLogProbability = "rejected_log_probability",
    }
}

impl Measure {
    /// Whether less or more is better.
    pub fn better(self) -> Better {
        if matches!(self, Self::Loss | Self::RejectedLogProbability) { Better::Lower } else { Better::Higher }
    }

    /// A value of this measure for people.
    pub fn shown(self, value: f64) -> String {
        match self {
            Self::Loss => format!("{value:.4}"),
            Self::RougeL => format!("{value:.3}"),
            Self::Margin | Self::ChosenLogProbability | Self::RejectedLogProbability => format!("{value:.2}"),
            _ => format!("{:.1}%", 100.0 * value),
        }
    }

    /// A difference of two values for people, with its sign.
    pub fn shown_difference(self, value: f64) -> String {
        match self {
            Self::Loss => format!("{value:+.4}"),
            Self::RougeL => format!("{value:+.3}"),
            Self::Margin | Self::ChosenLogProbability | Self::RejectedLogProbability => format!("{value:+.2}"),
            _ => format!("{:+.1}%", 100.0 * value),
        }
    }
}

/// The shares of every example, by measure; none where a measure does not concern an example.
pub type Shares = BTreeMap<Measure, Vec<Option<Share>>>;

/// A value of a measure, with the base's beside it.
#[derive(Debug, Clone, Serialize)]
pub struct Score {
    /// The value of the model, with the adapter if there is one.
    pub value: f64,
    /// The examples that it is taken over.
    pub examples: usize,
    /// The base against base and adapter; none without an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against_base: Option<Comparison>,
}

/// The values of all measures over the examples that `is_in` accepts, those of the base beside them if there are any. Measures
/// that concern none of these examples are left out.
pub fn scores(
    shares: &Shares,
    of_base: Option<&Shares>,
    seed: u64,
    is_in: &dyn Fn(usize) -> bool,
) -> BTreeMap<Measure, Score> {
    let among = |shares: &[Option<Share>]| -> Vec<Share> {
        shares.iter().enumerate().filter(|(index, _)| is_in(*index)).filter_map(|(_, share)| *share).collect()
    };
    let mut scores = BTreeMap::new();
    for (&measure, shares) in shares {
        let after = among(shares);
        if after.is_empty() {
            continue;
        }
        let before = of_base.and_then(|base| base.get(&measure)).map(|shares| among(shares));
        let against_base = before.map(|before| bootstrap::compare(&before, &after, measure.better(), seed));
        let score = Score { value: bootstrap::mean(&after), examples: after.len(), against_base };
        scores.insert(measure, score);
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_counts_only_the_examples_that_it_concerns() {
        let shares = |scores: &[Option<f64>]| -> Vec<Option<Share>> {
            scores.iter().map(|score| score.map(Share::of_score)).collect()
        };
        let mut of_model = Shares::new();
        of_model.insert(Measure::ExactMatch, shares(&[Some(1.0), None, Some(0.0), Some(1.0)]));
        of_model.insert(Measure::ToolCalls, shares(&[None, Some(1.0), None, None]));
        let mut of_base = Shares::new();
        of_base.insert(Measure::ExactMatch, shares(&[Some(0.0), None, Some(0.0), Some(0.0)]));
        let all = scores(&of_model, Some(&of_base), 0, &|_| true);
        let exact = &all[&Measure::ExactMatch];
        assert_eq!((exact.value, exact.examples), (2.0 / 3.0, 3));
        assert_eq!(exact.against_base.map(|against| (against.before, against.after)), Some((0.0, 2.0 / 3.0)));
        assert!(all[&Measure::ToolCalls].against_base.is_none());
        let last_two = scores(&of_model, None, 0, &|index| index >= 2);
        assert_eq!(last_two[&Measure::ExactMatch].value, 0.5);
        assert!(!last_two.contains_key(&Measure::ToolCalls));
    }
}
