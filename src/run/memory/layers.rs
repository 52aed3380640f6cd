//! The memory of activations: what the ops of a layer keep for their backward pass (`ops/*/cpu.rs`, `Saved`), and the most that one of
//! them holds for a moment.

use super::plan::Workload;
use crate::adapter::host::HostAdapter;
use crate::model::ModelConfig;
use crate::model::load::float_type;
use crate::model::spec::{BlockSpec, LinearSpec, NormSpec};
use crate::nn::block::Residual;
use crate::ops::cross_entropy::targets_per_chunk;
use crate::quant::Compute;

/// The layers of a model, for counting.
pub(super) struct Layers<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Its adapter.
    pub adapter: &'a HostAdapter,
    /// The precision of the activations.
    compute: Compute,
    /// The first layer that gradients reach.
    pub lowest: usize,
    /// Bytes a token that the tape of each layer keeps.
    kept: Vec<u64>,
}

impl<'a> Layers<'a> {
    /// Those of a model with this adapter.
    pub fn of(config: &'a ModelConfig, adapter: &'a HostAdapter, compute: Compute) -> Self {
        let layers = Self { config, adapter, compute, lowest: 0, kept: Vec::new() };
        let kept = (0..config.layers).map(|layer| layers.kept(layer)).collect();
        Self { lowest: layers.lowest(), kept, ..layers }
    }

    /// Bytes of an activation.
    fn size(&self) -> u64 {
        float_type(self.compute).bytes() as u64
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

    /// Whether a tensor of this module is trained as a whole.
    fn is_whole(&self, module: &str) -> bool {
        let is_of = |name: &String| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        self.adapter.whole.keys().any(is_of)
    }

    fn is_adapted(&self, layer: usize) -> bool {
        self.is_whole(&format!("{}.{layer}", self.config.names.layers))
            || self.groups(&self.config.block(layer)).iter().any(|group| self.ranks(group) > 0)
    }

    fn lowest(&self) -> usize {
        let layers = self.config.layers;
        let changes_input = self.adapter.pairs.contains_key(self.config.names.embedding)
            || self.adapter.whole.contains_key(&self.config.embedding_name())
            || self.adapter.rows.is_some()
            || self.adapter.changes_vision(self.config);
        (0..layers).find(|&layer| changes_input || self.is_adapted(layer)).unwrap_or(layers)
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

    fn kept(&self, layer: usize) -> u64 {
        let config = self.config;
        let block = self.config.block(layer);
        let hidden = config.hidden_size as u64;
        let (q_width, kv_width) = (config.q_width() as u64, config.kv_width() as u64);
        let outer_norms = [&block.before_attention, &block.after_attention, &block.before_mlp, &block.after_mlp];
        let mut inputs = outer_norms.into_iter().flatten().count() as u64;
        if block.residual == Residual::Parallel && block.before_attention.is_some() && block.before_mlp.is_some() {
            // Both are norms of the layer's input.
            inputs -= 1;
        }
        let activated: u64 = block.mlp.input.projections().iter().map(|projection| projection.rows as u64).sum();
        // The inputs of the norms, rotated q, k and v, the values before the activation; a projection's input where it
        // has a pair, unless it is made again from one of these.
        let mut values = inputs * hidden + q_width + 2 * kv_width + activated;
        if block.attention.qk_norm.is_some() {
            values += q_width + 2 * kv_width;
        }
        let made_again = |norm: &Option<NormSpec>| norm.as_ref().is_some_and(|norm| !self.is_whole(&norm.module));
        let made_again = [made_again(&block.before_attention), false, made_again(&block.before_mlp), true];
        let mut ranks = 0;
        for (group, made_again) in self.groups(&block).into_iter().zip(made_again) {
            let group_ranks = self.ranks(group);
            if group_ranks > 0 && !made_again {
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

    /// Bytes that a step keeps, and bytes that it holds for a moment; `embedded` are those of the embedding's rows.
    pub fn step(&self, work: &Workload, embedded: u64) -> (u64, u64) {
        let (tokens, parts) = (work.tokens as u64, work.parts_a_pass() as u64);
        let (lowest, layers) = (self.lowest, self.config.layers);
        let hidden = self.config.hidden_size as u64;
        let first_kept = work.recomputed_layers.clamp(lowest, layers);
        let of_layers: u64 = self.kept[first_kept..].iter().sum();
        // The inputs of the layers that are computed again, that of the last norm, and of further parts the gradient of the layer at hand.
        let inputs = self.size() * hidden * (first_kept - lowest + 1) as u64;
        let kept = tokens * (of_layers + parts * inputs + (parts - 1) * 4 * hidden);
        let again = self.kept[lowest..first_kept].iter().copied().max().unwrap_or(0);
        // A layer is computed again when the tape of those above it is gone.
        let working = self.transient(work) + tokens * again.saturating_sub(of_layers);
        // Evaluations and samples come between steps, when the tape holds nothing; so does the embedding of a step.
        let between_steps = (self.evaluation(work) + self.cache(work)).max(embedded).saturating_sub(kept);
        (kept, working.max(self.head(work)).max(between_steps))
    }
}
