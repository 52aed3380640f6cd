//! Objectives: the value that training minimises, as a function of the loss of each sequence.
//!
//! The model gives the loss of every trained token, `−ln p(token)`. An objective sees their sums by sequence and answers with
//! a value and with the derivative of that value by each sum. That derivative is the weight of the sequence's tokens in the
//! backward pass, so an objective is arithmetic on the host and needs neither tensors nor a tape. One file each.

pub mod sft;

pub use sft::Sft;

use crate::model::Batch;

/// The loss of one sequence of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceLoss {
    /// `−Σ ln p` over its trained tokens, in nats.
    pub sum: f64,
    /// Its trained tokens.
    pub tokens: usize,
}

/// The size of a step, known before its first micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSize {
    /// Tokens that go through the model.
    pub tokens: usize,
    /// Tokens that loss is taken on.
    pub trained_tokens: usize,
    /// Sequences.
    pub sequences: usize,
}

impl StepSize {
    /// The size of a step of these micro-batches.
    pub fn of(micro_batches: &[Batch]) -> Self {
        Self {
            tokens: micro_batches.iter().map(|batch| batch.ids.len()).sum(),
            trained_tokens: micro_batches.iter().map(Batch::trained_tokens).sum(),
            sequences: micro_batches.iter().map(|batch| batch.lengths.len()).sum(),
        }
    }
}

/// The share of a micro-batch in the objective of its step.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Its part of the value; the parts of all micro-batches sum to the step's.
    pub value: f64,
    /// `∂ value / ∂ sum` of each sequence.
    pub weights: Vec<f64>,
}

/// A value to minimise.
pub trait Objective {
    /// The share of a micro-batch with the sequences `losses`, in the order of the batch, in a step of size `step`.
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share;
}

/// The loss of each sequence of `batch`, whose trained tokens have the losses `by_token`.
pub(super) fn by_sequence(batch: &Batch, by_token: &[f32]) -> Vec<SequenceLoss> {
    let mut rest = by_token;
    let losses = trained_by_sequence(batch).into_iter().map(|tokens| {
        let (these, after) = rest.split_at(tokens);
        rest = after;
        SequenceLoss { sum: these.iter().copied().map(f64::from).sum(), tokens }
    });
    losses.collect()
}

/// The share of a micro-batch with the sequences `losses`: its value, and the weight of each trained token.
pub(super) fn weigh(objective: &dyn Objective, losses: &[SequenceLoss], step: &StepSize) -> (f64, Vec<f32>) {
    let share = objective.share(losses, step);
    let weights = losses.iter().zip(share.weights);
    let weights = weights.flat_map(|(loss, weight)| std::iter::repeat_n(weight as f32, loss.tokens));
    (share.value, weights.collect())
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
            Share { value: losses.iter().zip(&weights).map(|(loss, weight)| loss.sum * weight).sum(), weights }
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
        let losses = by_sequence(&batch, &[0.5, 1.0, 2.0, 4.0]);
        let (value, weights) = weigh(&Counting, &losses, &StepSize::of(std::slice::from_ref(&batch)));
        assert_eq!(weights, [1.0, 1.0, 3.0, 3.0]);
        assert_eq!(value, 1.5 + 3.0 * 6.0);
        let size = StepSize::of(&[batch.clone(), batch]);
        assert_eq!(size, StepSize { tokens: 18, trained_tokens: 8, sequences: 6 });
    }
}
