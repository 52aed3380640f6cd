//! The settings of training. Units are in the names (`warmup_steps`).
//!
//! A step is one update of the adapter: `accumulate_steps` micro-batches of `micro_batch_seqs` sequences.

use super::schedule::ScheduleKind;
use crate::model::decoder::Recompute;
use crate::settings::{above, any, below, between, defaults, optional, section};

/// The largest seed: every whole number up to here survives a trip through JSON.
const MAX_SEED: u64 = 1 << 53;
/// More steps or epochs than anyone waits for, and still far from any overflow.
const MAX_STEPS: u64 = 1_000_000_000;

section! {
    /// How the adapter is trained: AdamW with decoupled weight decay (Loshchilov and Hutter 2019).
    TrainSettings {
        /// Passes over the training examples.
        epochs: u64 = Take(1), between(1..=MAX_STEPS);
        /// Stop after this many steps, even within an epoch.
        max_steps: Option<u64> = Take(None), optional(between(1..=MAX_STEPS));
        /// Sequences in one forward and backward pass.
        micro_batch_seqs: usize = Take(4), between(1..=65_536);
        /// Micro-batches whose gradients make one step; their sum is divided once, by the trained tokens.
        accumulate_steps: usize = Take(1), between(1..=65_536);
        /// The peak learning rate.
        learning_rate: f64 = Take(2e-4), above(0.0, 10.0);
        /// The learning rate after the warm-up: falling to 0 at the last step, or constant.
        schedule: ScheduleKind = Take(ScheduleKind::Linear), any();
        /// Steps over which the learning rate rises from 0 to its peak.
        warmup_steps: u64 = Take(0), between(0..=MAX_STEPS);
        /// AdamW's decoupled weight decay: `p ← p·(1 − rate·weight_decay)` before the update.
        weight_decay: f64 = Take(0.0), between(0.0..=1.0);
        /// The gradient is scaled down to this global norm; 0 turns clipping off.
        max_grad_norm: f64 = Take(1.0), between(0.0..=1e6);
        /// AdamW's decay of the mean of gradients.
        beta1: f64 = Take(0.9), below(0.0, 1.0);
        /// AdamW's decay of the mean of squared gradients.
        beta2: f64 = Take(0.999), below(0.0, 1.0);
        /// Steps between two evaluations of the validation examples, or without any between two saves of the adapter; there is
        /// always one at the end.
        eval_steps: u64 = Take(50), between(1..=MAX_STEPS);
        /// Steps between two checkpoints, from which `--resume` goes on; none by default. `checkpoint_minutes` counts beside it.
        checkpoint_steps: Option<u64> = Take(None), optional(between(1..=MAX_STEPS));
        /// Minutes after which there is a checkpoint, at the end of the step: the most work that a crash can cost. 0 for none.
        checkpoint_minutes: f64 = Take(2.0), between(0.0..=10_080.0);
        /// The checkpoints that are kept; an older one serves where the newest is damaged.
        keep_checkpoints: usize = Take(2), between(1..=1_000_000);
        /// Steps in a row whose loss or gradient is not finite, after which the run ends. Such a step changes nothing.
        max_bad_steps: u64 = Take(3), between(1..=MAX_STEPS);
        /// The activations that are computed again in the backward pass to save memory.
        recompute: Recompute = Take(Recompute::None), any();
        /// Decides the adapter's first values, the order of examples, dropout and the held-out share.
        seed: u64 = Take(0), between(0..=MAX_SEED);
        /// Stop when the validation loss no longer falls.
        early_stopping: Option<EarlyStopping> = Take(None), any();
    }
}

section! {
    /// When to stop because the validation loss no longer falls.
    EarlyStopping {
        /// Stop after this many evaluations without improvement.
        patience_evals: u64 = Take(3), between(1..=MAX_STEPS);
        /// The validation loss must fall by more than this to count as an improvement.
        min_delta: f64 = Take(0.0), between(0.0..=1e6);
    }
}

impl Default for TrainSettings {
    fn default() -> Self {
        defaults()
    }
}
