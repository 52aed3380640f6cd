//! The memory that a run will take, known before anything is loaded.
//!
//! The sums follow the code: what `model/load.rs` makes of each weight (`weights.rs`), and what the ops keep and hold (`layers.rs`).
//! `tests/qlora.rs` holds them against measured peaks, and so does `benches/planned_memory.py`.

use std::fmt;

use serde::Serialize;

use super::layers::Layers;
use super::weights::WeightBytes;
use crate::adapter::host::HostAdapter;
use crate::bytes::Size;
use crate::model::BaseFiles;
use crate::model::load::LoadOptions;
use crate::train::optimiser::OptimiserKind;

/// Memory of the program itself, mostly its code. Measured (docs/performance.md).
const PROGRAM: u64 = 30 << 20;
/// Memory of each thread: packed panels and decoded rows.
const PER_THREAD: u64 = 2 << 20;
/// Memory of the tokenizer for each token of its vocabulary. Measured.
const PER_TOKEN: u64 = 1 << 10;
/// Fragmentation: the tape takes one part in this many more than its values. Measured from 1k to 8k tokens
/// (docs/performance.md), a little on the safe side for short sequences.
const FRAGMENTATION_DIVISOR: u64 = 8;

/// The sizes that decide how much memory a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of the largest micro-batch.
    pub tokens: usize,
    /// Trained tokens in it, at most.
    pub trained_tokens: usize,
    /// Tokens that go through the model at once in an evaluation or for a prompt; 0 without either.
    pub evaluated_tokens: usize,
    /// Tokens whose keys and values are cached at once, for sample prompts and evaluations of long sequences.
    pub cached_tokens: usize,
    /// The number of layers, from the first on, whose activations are computed again in the backward pass.
    pub recomputed_layers: usize,
    /// Parts of a step.
    pub parts: usize,
    /// The parts that go through a layer while it is in memory; `None` where the weights stay there.
    pub shared_pass: Option<usize>,
    /// The rule of the updates, which decides what is kept of each parameter.
    pub optimiser: OptimiserKind,
    /// Whether a step has several parts, whose gradients are added up (`train/parallel/fixed.rs`).
    pub has_sum: bool,
    /// Bytes of the encoded examples.
    pub data_bytes: u64,
}

impl Workload {
    /// Parts of a step that are under way at once.
    pub(super) fn parts_a_pass(&self) -> usize {
        self.shared_pass.map_or(1, |together| together.clamp(1, self.parts.max(1)))
    }

    /// How often a step goes through the layers, forward and backward.
    fn passes(&self) -> usize {
        self.parts.div_ceil(self.parts_a_pass())
    }
}

/// Bytes that a run takes at its peak, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// The part of the base that is in memory at once.
    pub weights: u64,
    /// Taken beside them while loading: the largest tensor in its file.
    pub loading: u64,
    /// The adapter's factors, their gradients and the moments of the optimiser.
    pub adapter: u64,
    /// Values that the forward pass keeps for the backward pass.
    pub activations: u64,
    /// The most that one op holds for a moment, gradients and logits included.
    pub working: u64,
    /// The encoded examples of both splits.
    pub data: u64,
    /// Code, tokenizer, threads.
    pub program: u64,
    /// Weights that a step reads from the disk; 0 where they stay in memory.
    pub read_a_step: u64,
}

/// The planner of the layouts of one run.
pub struct Planner<'a> {
    of_base: WeightBytes,
    layers: Layers<'a>,
}

impl<'a> Planner<'a> {
    /// The planner of a run of `base` with `adapter` under `options`.
    pub fn new(base: &'a BaseFiles, options: &LoadOptions, adapter: &'a HostAdapter) -> Self {
        let layers = Layers::of(base.config(), adapter, options.compute);
        Self { of_base: WeightBytes::of(base, options), layers }
    }

    /// The layers of the model.
    pub fn layers(&self) -> usize {
        self.layers.config.layers
    }

    /// Whether there are layers that can be read from the disk as they are needed.
    pub fn can_stream(&self) -> bool {
        self.of_base.can_stream()
    }

    /// The plan of a run whose steps are like this.
    pub fn plan(&self, work: &Workload) -> MemoryPlan {
        let Self { of_base, layers } = self;
        let (weights, loading, read_a_step) = match work.shared_pass {
            None => (of_base.resident(), of_base.loading, 0),
            Some(_) => {
                let streamed = of_base.streamed();
                // While loading, no layer is held.
                let loading = of_base.largest.saturating_sub(streamed - of_base.owned);
                (streamed, loading, of_base.read_a_step(layers.lowest, work.passes() as u64))
            }
        };
        let (activations, working) = layers.step(work, of_base.embedded(work.tokens as u64));
        let threads = rayon::current_num_threads() as u64;
        MemoryPlan {
            weights,
            loading,
            adapter: adapter_bytes(layers.adapter, work),
            activations,
            working,
            data: work.data_bytes,
            program: PROGRAM + PER_THREAD * threads + PER_TOKEN * layers.config.vocab_size as u64,
            read_a_step,
        }
    }
}

/// The bytes of an adapter, its gradients and its optimiser.
fn adapter_bytes(adapter: &HostAdapter, work: &Workload) -> u64 {
    let subtracted = adapter.pairs.values().filter_map(|pair| pair.subtracted.as_deref()).flatten();
    let subtracted: u64 = subtracted.map(|factor| factor.len() as u64).sum();
    // Factors on the host (as they started, and the best so far) and on the device, gradient, moments. Those that are
    // subtracted once on the host, and on the device by themselves, beside the others, and with a gradient.
    let parameters = adapter.parameters() as u64;
    let sum = if work.has_sum { 8 * parameters } else { 0 };
    4 * (parameters * 4 + moments(adapter, work.optimiser) + subtracted * 4) + sum
}

impl MemoryPlan {
    /// The peak.
    pub fn total(&self) -> u64 {
        let used =
            self.program + self.data + self.weights + self.loading.max(self.adapter + self.activations + self.working);
        used + self.activations / FRAGMENTATION_DIVISOR
    }
}

/// The values that an optimiser keeps of the parameters of an adapter.
pub fn moments(adapter: &HostAdapter, optimiser: OptimiserKind) -> u64 {
    let pairs = adapter.pairs.values();
    let shapes = pairs.flat_map(|pair| {
        let magnitude = pair.magnitude.as_ref().map(|magnitude| vec![magnitude.len()]);
        [vec![pair.rank, pair.input], vec![pair.output, pair.rank]].into_iter().chain(magnitude)
    });
    let rows = adapter.rows.iter().flat_map(|rows| {
        let count = rows.ids.len().max(1);
        rows.values.values().map(move |values| vec![count, values.len() / count])
    });
    let shapes = shapes.chain(adapter.whole.values().map(|tensor| tensor.shape.clone())).chain(rows);
    shapes.map(|shape| optimiser.kept_values(&shape) as u64).sum()
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, adapter, activations, working, data, program, .. } = *self;
        let [weights, adapter, activations, working, data, program] =
            [weights, adapter, activations, working, data, program].map(Size);
        write!(
            f,
            "weights {weights}, adapter and optimiser {adapter}, activations {activations}, working {working}, data {data}, \
             program {program}"
        )?;
        match self.read_a_step {
            0 => Ok(()),
            bytes => write!(f, "; {} of weights read from the disk in a step", Size(bytes)),
        }
    }
}
