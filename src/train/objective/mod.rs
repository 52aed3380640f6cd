//! Objectives: the value that training minimises, as a function of the loss of each sequence.
//!
//! The model gives the loss of every trained token, `−ln p(token)`. An objective sees their sums by sequence and answers with
//! a value and with the derivative of that value by each sum. That derivative is the weight of the sequence's tokens in the
//! backward pass, so an objective is arithmetic on the host and needs neither tensors nor a tape. One file each.
//!
//! In a micro-batch of preferences, the sequences alternate: chosen, rejected, chosen, … A pair is never cut.

pub mod classify;
pub mod dpo;
pub mod kind;
pub mod kto;
pub mod orpo;
pub mod pairs;
pub mod sft;
pub mod simpo;

pub use kind::ObjectiveKind;
pub use sft::Sft;

use crate::model::Batch;

/// The loss of one sequence of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceLoss {
    /// `−Σ ln p` over its trained tokens, in nats.
    pub sum: f64,
    /// Its trained tokens.
    pub tokens: usize,
    /// The facts beside its loss.
    pub facts: Facts,
}

/// The facts about a sequence beside its loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// `−Σ ln p` over its trained tokens under the reference; 0 for an objective without one.
    pub reference: f64,
    /// The label of an answer that is judged alone: whether it is desirable.
    pub is_desirable: bool,
    /// The weight of its label, where it is a text with one; else 1.
    pub weight: f64,
}

impl Default for Facts {
    fn default() -> Self {
        Self { reference: 0.0, is_desirable: false, weight: 1.0 }
    }
}

impl SequenceLoss {
    /// The mean log-probability of a trained token.
    pub fn mean_log_probability(&self) -> f64 {
        -self.sum / self.tokens as f64
    }

    /// `ln π(y|x) − ln π_ref(y|x)`.
    pub fn log_ratio(&self) -> f64 {
        self.facts.reference - self.sum
    }
}

/// The size of a step, known before its first micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSize {
    /// Tokens that go through the model.
    pub tokens: usize,
    /// Tokens that loss is taken on.
    pub trained_tokens: usize,
    /// Those of every second sequence from the first on: of the chosen answers, where sequences come in pairs.
    pub chosen_tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// The estimate of the divergence of the model from its reference, in nats, for the objective that asks for it; else 0.
    pub divergence: f64,
}

impl StepSize {
    /// The size of a step of these micro-batches.
    pub fn of(micro_batches: &[Batch]) -> Self {
        let chosen = |batch: &Batch| trained_by_sequence(batch).iter().step_by(2).sum::<usize>();
        Self {
            tokens: micro_batches.iter().map(|batch| batch.ids.len()).sum(),
            trained_tokens: micro_batches.iter().map(Batch::trained_tokens).sum(),
            chosen_tokens: micro_batches.iter().map(chosen).sum(),
            sequences: micro_batches.iter().map(|batch| batch.lengths.len()).sum(),
            divergence: 0.0,
        }
    }

    /// The size of one example, which is measured alone.
    pub fn of_example(losses: &[SequenceLoss], divergence: f64) -> Self {
        let tokens = losses.iter().map(|loss| loss.tokens).sum();
        let chosen_tokens = losses.first().map_or(0, |loss| loss.tokens);
        Self { tokens, trained_tokens: tokens, chosen_tokens, sequences: losses.len(), divergence }
    }
}

/// The rewards of some examples: what an objective gives for the answers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rewards {
    /// The sum over the preferred answers.
    pub preferred_sum: f64,
    /// The number of these.
    pub preferred: usize,
    /// The sum over the other answers.
    pub other_sum: f64,
    /// The number of these.
    pub other: usize,
    /// The examples that the rewards judge as the data does: of pairs, those with the greater reward for the preferred answer; a
    /// draw counts one half.
    pub correct: f64,
    /// The examples.
    pub examples: usize,
}

impl Rewards {
    /// The mean reward of the preferred answers less that of the others; `None` without both.
    pub fn margin(&self) -> Option<f64> {
        let has_both = self.preferred > 0 && self.other > 0;
        has_both.then(|| self.preferred_sum / self.preferred as f64 - self.other_sum / self.other as f64)
    }

    /// The share of the examples that the rewards judge as the data does; `None` without any.
    pub fn accuracy(&self) -> Option<f64> {
        (self.examples > 0).then(|| self.correct / self.examples as f64)
    }

    /// Adds the rewards of further examples.
    pub fn add(&mut self, other: &Self) {
        self.preferred_sum += other.preferred_sum;
        self.preferred += other.preferred;
        self.other_sum += other.other_sum;
        self.other += other.other;
        self.correct += other.correct;
        self.examples += other.examples;
    }
}

/// The share of a micro-batch in the objective of its step.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Its part of the value; the parts of all micro-batches sum to the step's.
    pub value: f64,
    /// `∂ value / ∂ sum` of each sequence.
    pub weights: Vec<f64>,
    /// The rewards of its examples; none under supervised fine-tuning.
    pub rewards: Rewards,
}

/// A value to minimise.
pub trait Objective {
    /// The share of a micro-batch with the sequences `losses`, in the order of the batch, in a step of size `step`.
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share;

    /// Whether it reads [`Facts::reference`].
    fn has_reference(&self) -> bool {
        false
    }

    /// Whether it reads [`StepSize::divergence`].
    fn needs_divergence(&self) -> bool {
        false
    }
}

/// The loss of each sequence of `batch`, whose trained tokens have the losses `by_token`. `facts` are those of the sequences;
/// empty where the objective needs none.
pub(super) fn by_sequence(batch: &Batch, by_token: &[f32], facts: &[Facts]) -> Vec<SequenceLoss> {
    let mut rest = by_token;
    let losses = trained_by_sequence(batch).into_iter().enumerate().map(|(index, tokens)| {
        let (these, after) = rest.split_at(tokens);
        rest = after;
        let facts = facts.get(index).copied().unwrap_or_default();
        SequenceLoss { sum: these.iter().copied().map(f64::from).sum(), tokens, facts }
    });
    losses.collect()
}

/// The share of a micro-batch with the sequences `losses`, and the weight of each trained token.
pub(super) fn weigh(objective: &dyn Objective, losses: &[SequenceLoss], step: &StepSize) -> (Share, Vec<f32>) {
    let share = objective.share(losses, step);
    let weights = losses.iter().zip(&share.weights);
    let weights = weights.flat_map(|(loss, weight)| std::iter::repeat_n(*weight as f32, loss.tokens)).collect();
    (share, weights)
}

/// The trained tokens of each sequence. The first token of a sequence is never one.
fn trained_by_sequence(batch: &Batch) -> Vec<usize> {
    let mut start = 0;
    let by_sequence = batch.lengths.iter().map(|length| {
        let trained = &batch.trained[start..start + length];
        start += length;
        trained.iter().skip(1).filter(|trained| **trained).count()
    });
    by_sequence.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weighs the n-th sequence by n, and notes what it saw.
    struct Counting;

    impl Objective for Counting {
        fn share(&self, losses: &[SequenceLoss], _: &StepSize) -> Share {
            let weights: Vec<f64> = (1..=losses.len()).map(|number| number as f64).collect();
            let value = losses.iter().zip(&weights).map(|(loss, weight)| loss.sum * weight).sum();
            Share { value, weights, rewards: Rewards::default() }
        }
    }

    #[test]
    fn every_token_has_the_weight_of_its_sequence() {
        let batch = Batch {
            ids: vec![0; 9],
            lengths: vec![4, 2, 3],
            // Of the second, only the first token is marked, which has nothing before it.
            trained: [1, 1, 0, 1, 1, 0, 0, 1, 1].map(|mark| mark == 1).into(),
        };
        let losses = by_sequence(&batch, &[0.5, 1.0, 2.0, 4.0], &[]);
        let (Share { value, .. }, weights) = weigh(&Counting, &losses, &StepSize::of(std::slice::from_ref(&batch)));
        assert_eq!(weights, [1.0, 1.0, 3.0, 3.0]);
        assert_eq!(value, 1.5 + 3.0 * 6.0);
        let size = StepSize::of(&[batch.clone(), batch]);
        let expected = StepSize { tokens: 18, trained_tokens: 8, chosen_tokens: 8, sequences: 6, divergence: 0.0 };
        assert_eq!(size, expected);
    }
}
