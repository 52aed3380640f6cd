//! The memory that a run will take, known before anything is loaded.
//!
//! The sums follow the code: what `model/load.rs` makes of each weight, what the ops keep for their backward pass
//! (`ops/*/cpu.rs`, `Saved`), and the largest of what they hold for a moment. `tests/qlora.rs` holds them against
//! measured peaks.

use std::fmt;

use serde::Serialize;

use crate::adapter::host::HostAdapter;
use crate::bytes::Size;
use crate::model::decoder::Recompute;
use crate::model::load::LoadOptions;
use crate::model::spec::{BlockSpec, LinearSpec};
use crate::model::{BaseFiles, ModelConfig};
use crate::ops::cross_entropy::targets_per_chunk;
use crate::quant::Compute;
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
    /// The activations that are computed again in the backward pass.
    pub recompute: Recompute,
    /// The rule of the updates, which decides what is kept of each parameter.
    pub optimiser: OptimiserKind,
    /// Whether a step has several parts, whose gradients are added up (`train/parallel/fixed.rs`).
    pub has_sum: bool,
    /// Bytes of the encoded examples.
    pub data_bytes: u64,
}

/// Bytes that a run takes at its peak, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// The base, as it stays in memory.
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
}

impl MemoryPlan {
    /// Plans a run of `base` with `adapter` under `options`.
    pub fn of(base: &BaseFiles, options: &LoadOptions, adapter: &HostAdapter, work: &Workload) -> Self {
        let config = base.config();
        let weights = base.tensor_names().map(|name| options.bytes_of(base, name) as u64).sum();
        let loading = base.tensor_names().map(|name| base.stored_bytes(name) as u64).max().unwrap_or(0);
        let subtracted = adapter.pairs.values().filter_map(|pair| pair.subtracted.as_deref()).flatten();
        let subtracted: u64 = subtracted.map(|factor| factor.len() as u64).sum();
        // Factors on the host (as they started, and the best so far) and on the device, gradient, moments. Those that are
        // subtracted once on the host, and on the device by themselves, beside the others, and with a gradient.
        let parameters = adapter.parameters() as u64;
        let sum = if work.has_sum { 8 * parameters } else { 0 };
        let adapter_bytes = 4 * (parameters * 4 + moments(adapter, work.optimiser) + subtracted * 4) + sum;
        let layers = Layers { config, adapter, compute: options.compute };
        let (activations, working) = layers.step(work);
        let threads = rayon::current_num_threads() as u64;
        let program = PROGRAM + PER_THREAD * threads + PER_TOKEN * config.vocab_size as u64;
        Self { weights, loading, adapter: adapter_bytes, activations, working, data: work.data_bytes, program }
    }

    /// The peak.
    pub fn total(&self) -> u64 {
        let used =
            self.program + self.data + self.weights + self.loading.max(self.adapter + self.activations + self.working);
        used + self.activations / FRAGMENTATION_DIVISOR
    }
}

/// The values that an optimiser keeps of the parameters of an adapter.
pub(super) fn moments(adapter: &HostAdapter, optimiser: OptimiserKind) -> u64 {
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

/// The layers of a model, for counting.
struct Layers<'a> {
    config: &'a ModelConfig,
    adapter: &'a HostAdapter,
    compute: Compute,
}

impl Layers<'_> {
    /// Bytes of an activation.
    fn size(&self) -> u64 {
        match self.compute {
            Compute::F32 => 4,
            Compute::Bf16 => 2,
        }
    }

    /// The ranks of these projections' pairs together.
    fn ranks(&self, projections: &[LinearSpec]) -> u64 {
        let pairs = projections.iter().filter_map(|projection| self.adapter.pairs.get(&projection.module));
        pairs.map(|pair| (pair.rank * if pair.subtracted.is_some() { 2 } else { 1 }) as u64).sum()
    }

    /// Whether any of these projections has magnitudes: then the outputs of all are kept before they are scaled.
    fn have_magnitudes(&self, projections: &[LinearSpec]) -> bool {
        let mut pairs = projections.iter().filter_map(|projection| self.adapter.pairs.get(&projection.module));
        pairs.any(|pair| pair.magnitude.is_some())
    }

    fn is_adapted(&self, layer: usize) -> bool {
        let within = format!("{}.{layer}.", self.config.names.layers);
        self.adapter.whole.keys().any(|name| name.starts_with(&within))
            || self.groups(&self.config.block(layer)).iter().any(|group| self.ranks(group) > 0)
    }

    /// The projections of a layer, those that share their input together.
    fn groups<'b>(&self, block: &'b BlockSpec) -> [&'b [LinearSpec]; 4] {
        let (attention, mlp) = (&block.attention, &block.mlp);
        [
            attention.qkv.projections(),
            std::slice::from_ref(&attention.output),
            mlp.input.projections(),
            std::slice::from_ref(&mlp.down),
        ]
    }

    /// Bytes a token that the tape of one layer keeps.
    fn kept(&self, layer: usize) -> u64 {
        let config = self.config;
        let block = self.config.block(layer);
        let hidden = config.hidden_size as u64;
        let (q_width, kv_width) = (config.q_width() as u64, config.kv_width() as u64);
        let outer_norms = [&block.before_attention, &block.after_attention, &block.before_mlp, &block.after_mlp];
        let outer_norms = outer_norms.into_iter().flatten().count() as u64;
        let activated: u64 = block.mlp.input.projections().iter().map(|projection| projection.rows as u64).sum();
        // The inputs of the norms, rotated q, k and v, the values before the activation; a projection's input where it
        // has a pair.
        let mut values = outer_norms * hidden + q_width + 2 * kv_width + activated;
        if block.attention.qk_norm.is_some() {
            values += q_width + kv_width;
        }
        let mut ranks = 0;
        for group in self.groups(&block) {
            let group_ranks = self.ranks(group);
            if group_ranks > 0 {
                values += group[0].columns as u64;
            }
            if self.have_magnitudes(group) {
                values += group.iter().map(|projection| projection.rows as u64).sum::<u64>();
            }
            ranks += group_ranks;
        }
        // In f32: log-sums of attention, inputs between the factors of each pair.
        self.size() * values + 4 * (config.heads as u64 + ranks)
    }

    /// Bytes that the backward pass of one layer holds at its worst, beside the tape.
    fn transient(&self, work: &Workload) -> u64 {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
        let qkv = ((config.heads + 2 * config.kv_heads) * config.head_dim) as u64;
        let tokens = work.tokens as u64;
        // Feed-forward: the gradient of the gated product, of gate and up, and the residual stream's in f32.
        let feed_forward = tokens * (self.size() * 3 * inner + 4 * 2 * hidden);
        // Attention: the gradient of q, k and v in f32 and again in the activations' format; each query head's share of
        // its keys' and values' gradient; keys and values packed, keys twice; the incoming gradient rounded.
        let heads = (config.heads * config.head_dim.next_multiple_of(32)) as u64;
        let packed = 3 * (config.kv_heads * config.head_dim.next_multiple_of(32)) as u64;
        let attention = tokens * (4 * qkv + self.size() * (qkv + packed + hidden) + 4 * 2 * heads + 4 * 2 * hidden);
        feed_forward.max(attention)
    }

    /// Logits of a chunk and the gradient of the last hidden states.
    fn head(&self, work: &Workload) -> u64 {
        let (hidden, vocabulary) = (self.config.hidden_size as u64, self.config.vocab_size as u64);
        let is_whole = self.adapter.whole.contains_key(&self.config.head_name());
        let chunk = match is_whole || self.have_magnitudes(&[self.config.head()]) {
            // Scores before and after the scaling, their logarithms, and the gradients of these, of all targets at once.
            true => 5 * work.trained_tokens,
            false => targets_per_chunk(self.config.vocab_size).min(work.trained_tokens),
        } as u64;
        chunk * (4 * vocabulary + 2 * 4 * hidden) + 2 * 4 * work.tokens as u64 * hidden
    }

    /// Bytes that an evaluation holds.
    fn evaluation(&self, work: &Workload) -> u64 {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
        let tokens = work.evaluated_tokens as u64;
        let chunk = (targets_per_chunk(config.vocab_size) as u64).min(tokens);
        tokens * self.size() * (3 * hidden + 3 * inner) + chunk * 4 * (config.vocab_size as u64 + hidden)
    }

    /// Keys and values of the cached tokens, f32 in every layer; half as much again for buffers that grow.
    fn cache(&self, work: &Workload) -> u64 {
        let a_token = 4 * 2 * (self.config.layers * self.config.kv_heads * self.config.head_dim) as u64;
        work.cached_tokens as u64 * a_token * 3 / 2
    }

    /// Bytes that a step keeps, and bytes that it holds for a moment.
    fn step(&self, work: &Workload) -> (u64, u64) {
        let tokens = work.tokens as u64;
        let layers = self.config.layers;
        let adapts_embedding = self.adapter.pairs.contains_key(self.config.names.embedding)
            || self.adapter.whole.contains_key(&self.config.embedding_name())
            || self.adapter.rows.is_some();
        let lowest = (0..layers).find(|&layer| adapts_embedding || self.is_adapted(layer)).unwrap_or(layers);
        let (kept, working) = match work.recompute {
            Recompute::None => {
                let kept: u64 = (lowest..layers).map(|layer| self.kept(layer)).sum();
                (tokens * kept, self.transient(work))
            }
            Recompute::Block => {
                let inputs = self.size() * (self.config.hidden_size * (layers - lowest)) as u64;
                let largest = (lowest..layers).map(|layer| self.kept(layer)).max().unwrap_or(0);
                (tokens * inputs, self.transient(work) + tokens * largest)
            }
        };
        // Evaluations and samples come between steps, when the tape holds nothing.
        let between_steps = (self.evaluation(work) + self.cache(work)).saturating_sub(kept);
        (kept, working.max(self.head(work)).max(between_steps))
    }
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
        )
    }
}
