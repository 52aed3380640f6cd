//! The sequences of each step: their order, the micro-batches of the recipe, and the parts of these that go through the
//! model at once.

use serde::Serialize;

use super::settings::TrainSettings;
use crate::data::{DataSettings, Encoded, batch};
use crate::error::{Error, Place, Result};

/// How sequences become micro-batches and steps. It decides what is learned; [`Layout`] does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Sequences of a micro-batch, unless they are packed.
    pub micro_batch_seqs: usize,
    /// Tokens that a micro-batch is filled up to; `None` to count sequences.
    pub packed_tokens: Option<usize>,
    /// Micro-batches of a step.
    pub accumulate_steps: usize,
    /// Decides the order.
    pub seed: u64,
}

/// How a step goes through the model: in what parts, and what of them is computed again. It decides what memory a step takes
/// and nothing of what is learned, but for the order of floating-point sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// The most that goes through the model at once.
    pub part: Part,
    /// The number of layers, from the first on, whose activations are computed again.
    pub recomputed_layers: usize,
    /// The parts that go through a layer while it is in memory, where layers are read from the disk as they are needed (then all of them
    /// are computed again); `None` where the weights stay in memory.
    pub parts_a_pass: Option<usize>,
}

/// The most of a micro-batch that goes through the model at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All of it.
    MicroBatch,
    /// So many sequences.
    Sequences(usize),
    /// Sequences of so many tokens together, at least one.
    Tokens(usize),
}

impl Batching {
    /// The batching that a recipe asks for.
    pub fn of(train: &TrainSettings, data: &DataSettings) -> Self {
        Self {
            micro_batch_seqs: train.micro_batch_seqs,
            packed_tokens: data.packing.then(|| train.micro_batch_seqs.saturating_mul(data.max_seq_tokens)),
            accumulate_steps: train.accumulate_steps,
            seed: train.seed,
        }
    }

    /// Indices into `sequences` of an epoch (from 0): by step, by micro-batch.
    pub fn steps(&self, sequences: &[Encoded], epoch: u64) -> Vec<Vec<Vec<usize>>> {
        let weights: Vec<f64> = sequences.iter().map(|sequence| sequence.weight).collect();
        let order = batch::weighted_order(&weights, self.seed, epoch);
        let micro_batches = match self.packed_tokens {
            Some(tokens) => batch::packed(&order, &lengths(sequences), tokens),
            None => batch::batches(&order, self.micro_batch_seqs),
        };
        micro_batches.chunks(self.accumulate_steps).map(<[Vec<usize>]>::to_vec).collect()
    }

    /// The number of steps of a run over `train`, unless it stops early.
    ///
    /// # Errors
    /// Input: no sequence has a trained token.
    pub fn total_steps(&self, settings: &TrainSettings, train: &[Encoded]) -> Result<u64> {
        if train.iter().all(|sequence| sequence.trained_tokens() == 0) {
            return Err(Error::input(Place::setting("data.train"), "there is not one token to train on"));
        }
        let limit = settings.max_steps.unwrap_or(u64::MAX);
        let steps = |epoch: u64| self.steps(train, epoch).len() as u64;
        if steps(0) == 0 {
            let message = "the weights of the sources leave no example in an epoch";
            return Err(Error::input(Place::setting("data.sources"), message));
        }
        if self.packed_tokens.is_none() {
            return Ok(settings.epochs.saturating_mul(steps(0)).min(limit));
        }
        // Packed, epochs differ in their number of steps.
        let mut total = 0;
        for epoch in 0..settings.epochs {
            total += steps(epoch);
            if total >= limit {
                return Ok(limit);
            }
        }
        Ok(total)
    }
}

impl Part {
    /// Splits the micro-batches of a step, in their order.
    pub fn split(self, micro_batches: &[Vec<usize>], sequences: &[Encoded]) -> Vec<Vec<usize>> {
        let lengths = || lengths(sequences);
        match self {
            Self::MicroBatch => micro_batches.to_vec(),
            Self::Sequences(count) => micro_batches.iter().flat_map(|all| batch::batches(all, count)).collect(),
            Self::Tokens(tokens) => {
                let lengths = lengths();
                micro_batches.iter().flat_map(|all| batch::filled(all, &lengths, tokens)).collect()
            }
        }
    }
}

fn lengths(sequences: &[Encoded]) -> Vec<usize> {
    sequences.iter().map(|sequence| sequence.ids.len()).collect()
}
