//! The measures of preferences: what a model makes of pairs, or of answers with labels, that it was not trained on.

use std::borrow::Cow;

use serde::Serialize;

use super::objective::{Facts, Objective, Rewards, SequenceLoss, StepSize};
use crate::data::{Encoded, Judged};
use crate::error::{Error, Place, Result};
use crate::eval::loss::ExampleLoss;

/// The measures of one example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Its loss by the objective.
    pub loss: f64,
    /// Its rewards.
    pub rewards: Rewards,
    /// `ln p` of the preferred or desirable answer and its tokens; `None` without one.
    pub preferred: Option<(f64, usize)>,
    /// The same of the other answer.
    pub other: Option<(f64, usize)>,
}

/// The measures of a set of preferences. The preferred answers are the chosen ones of pairs, or the desirable ones; the others are
/// the rejected or undesirable ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Preferences {
    /// The mean loss of an example by the objective.
    pub loss: f64,
    /// The mean reward of the preferred answers less that of the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_margin: Option<f64>,
    /// The share of the examples that the rewards judge as the data does; a draw counts one half.
    pub reward_accuracy: f64,
    /// The mean log-probability of a preferred answer, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_log_probability: Option<f64>,
    /// The same of the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_log_probability: Option<f64>,
    /// The mean number of tokens of a preferred answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_tokens: Option<f64>,
    /// The same of the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_tokens: Option<f64>,
}

impl Preferences {
    /// The measures of a set by those of its examples, of which there is one at least.
    pub fn of(measured: &[Measured]) -> Self {
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
            (count > 0).then(|| sum / count as f64)
        };
        let mut rewards = Rewards::default();
        measured.iter().for_each(|one| rewards.add(&one.rewards));
        let preferred = || measured.iter().filter_map(|one| one.preferred);
        let other = || measured.iter().filter_map(|one| one.other);
        Self {
            loss: mean(&mut measured.iter().map(|one| one.loss)).unwrap_or_default(),
            reward_margin: rewards.margin(),
            reward_accuracy: rewards.accuracy().unwrap_or_default(),
            preferred_log_probability: mean(&mut preferred().map(|(log_probability, _)| log_probability)),
            other_log_probability: mean(&mut other().map(|(log_probability, _)| log_probability)),
            preferred_tokens: mean(&mut preferred().map(|(_, tokens)| tokens as f64)),
            other_tokens: mean(&mut other().map(|(_, tokens)| tokens as f64)),
        }
    }
}

/// The sequences that have to be evaluated to measure these examples: they themselves, and where the objective needs the
/// divergence from its reference, the prompts with answers to other prompts.
///
/// # Errors
/// Those of [`mismatched`].
pub fn evaluated<'a>(objective: &dyn Objective, examples: &'a [Encoded]) -> Result<Cow<'a, [Encoded]>> {
    match objective.needs_divergence() && !examples.is_empty() {
        true => Ok(Cow::Owned([examples, &mismatched(examples)?].concat())),
        false => Ok(Cow::Borrowed(examples)),
    }
}

/// The prompt of each example with the answer to another prompt, that of the nearest example before it (before the first comes
/// the last). It is no longer than the longer of the two.
///
/// # Errors
/// Input: all examples have the same prompt.
pub fn mismatched(examples: &[Encoded]) -> Result<Vec<Encoded>> {
    let answer_of =
        |example: &Encoded| example.trained.iter().position(|trained| *trained).unwrap_or(example.ids.len());
    let of = |index: usize| {
        let example = &examples[index];
        let prompt = &example.ids[..answer_of(example)];
        let before = (1..examples.len()).map(|back| &examples[(index + examples.len() - back) % examples.len()]);
        let other = before.into_iter().find(|other| other.ids[..answer_of(other)] != *prompt)?;
        let answer = answer_of(other);
        let mut ids = [prompt, &other.ids[answer..]].concat();
        let mut trained = [&example.trained[..prompt.len()], &other.trained[answer..]].concat();
        let longest = example.ids.len().max(other.ids.len());
        ids.truncate(longest);
        trained.truncate(longest);
        Some(Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged: Judged::Not })
    };
    let all: Option<Vec<Encoded>> = (0..examples.len()).map(of).collect();
    all.ok_or_else(|| {
        let message = "is \"kto\", which estimates a divergence with answers to other prompts, and all examples have the same prompt";
        Error::input(Place::setting("train.objective"), message)
    })
}

/// The estimate of the divergence of a model from its reference by their losses on mismatched answers: the mean of
/// `ln π(y'|x)/π_ref(y'|x)`, at least 0.
pub fn divergence(losses: &[ExampleLoss], reference: &[ExampleLoss]) -> f64 {
    let sum: f64 = losses.iter().zip(reference).map(|(loss, reference)| reference.loss_sum - loss.loss_sum).sum();
    (sum / losses.len().max(1) as f64).max(0.0)
}

/// The measures of each example, by the losses of the sequences that [`evaluated`] gives and those of the reference.
pub fn measure(
    objective: &dyn Objective,
    examples: &[Encoded],
    losses: &[ExampleLoss],
    reference: &[ExampleLoss],
) -> Vec<Measured> {
    let own: usize = examples.iter().map(|example| example.sequences().count()).sum();
    let (mut losses, other) = losses.split_at(own);
    let (mut reference, reference_of_other) = reference.split_at(own);
    let divergence = divergence(other, reference_of_other);
    let measured = examples.iter().map(|example| {
        let count = example.sequences().count();
        let (of_example, rest) = losses.split_at(count);
        let (reference_of_example, rest_of_reference) = reference.split_at(count);
        (losses, reference) = (rest, rest_of_reference);
        let pairs = of_example.iter().zip(reference_of_example);
        let is_desirable = example.judged == Judged::Labelled(true);
        let sums = pairs.map(|(loss, reference)| SequenceLoss {
            sum: loss.loss_sum,
            tokens: loss.tokens,
            facts: Facts { reference: reference.loss_sum, is_desirable, ..Facts::default() },
        });
        let sums: Vec<SequenceLoss> = sums.collect();
        let share = objective.share(&sums, &StepSize::of_example(&sums, divergence));
        let answer = |index: usize| sums.get(index).map(|loss| (-loss.sum, loss.tokens));
        let (preferred, other) = match example.judged {
            Judged::Labelled(false) => (None, answer(0)),
            Judged::Labelled(true) | Judged::Not | Judged::Above(_) => (answer(0), answer(1)),
        };
        Measured { loss: share.value, rewards: share.rewards, preferred, other }
    });
    measured.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::objective::kto::Kto;

    fn answer(prompt: &[u32], answer: &[u32], is_desirable: bool) -> Encoded {
        Encoded {
            ids: [prompt, answer].concat(),
            trained: [vec![false; prompt.len()], vec![true; answer.len()]].concat(),
            untrained_turns: 0,
            weight: 1.0,
            judged: Judged::Labelled(is_desirable),
        }
    }

    #[test]
    fn a_mismatched_answer_is_one_to_another_prompt() {
        let examples =
            [answer(&[1], &[7, 8, 9], true), answer(&[1], &[6], false), answer(&[2, 3, 4], &[5, 6, 7, 8], true)];
        let found = mismatched(&examples).expect("two prompts");
        let ids: Vec<&[u32]> = found.iter().map(|one| &one.ids[..]).collect();
        assert_eq!(ids, [&[1, 5, 6, 7, 8][..], &[1, 5, 6, 7, 8], &[2, 3, 4, 6]]);
        assert_eq!(found[2].trained, [false, false, false, true]);
        assert!(mismatched(&examples[..2]).expect_err("one prompt").to_string().contains("the same prompt"));
    }

    #[test]
    fn measures_are_means_over_the_answers_of_a_kind() {
        let examples = [answer(&[1], &[7, 8], true), answer(&[2], &[6], false), answer(&[3], &[6, 5], true)];
        let loss = |loss_sum: f64, tokens: usize| ExampleLoss { loss_sum, tokens, correct_tokens: 0 };
        let losses = [loss(2.0, 2), loss(3.0, 1), loss(4.0, 2), loss(1.0, 1), loss(1.0, 1), loss(1.0, 2)];
        let reference = [loss(3.0, 2), loss(2.0, 1), loss(4.5, 2), loss(1.5, 1), loss(1.0, 1), loss(1.4, 2)];
        let objective = Kto { beta: 1.0, desirable_weight: 1.0, undesirable_weight: 1.0 };
        let measured = measure(&objective, &examples, &losses, &reference);
        // The reference point is 0.3; the log-ratios are 1, −1 and 0.5.
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (one, above) in measured.iter().zip([0.7, 1.3, 0.2]) {
            assert!((one.loss - (1.0 - sigmoid(above))).abs() < 1e-12);
        }
        let all = Preferences::of(&measured);
        assert_eq!((all.reward_margin, all.reward_accuracy), (Some(1.75), 1.0));
        assert_eq!((all.preferred_log_probability, all.other_log_probability), (Some(-3.0), Some(-3.0)));
        assert_eq!((all.preferred_tokens, all.other_tokens), (Some(2.0), Some(1.0)));
        assert_eq!(divergence(&losses[3..], &losses[3..]), 0.0);
    }
}
