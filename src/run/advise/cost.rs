//! The cost of training and of answering, by the shape of a model: operations, seconds, bytes.

use super::machine::Machine;
use crate::adapter::host::{HostAdapter, HostPair};
use crate::adapter::spec::AdapterSpec;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::decoder::Recompute;
use crate::quant::Quant;

/// Bytes of a weight where a model answers on the processor, in bf16.
const ANSWER_BYTES: f64 = 2.0;

/// Operations of a layer in a training step over sequences of these lengths: each product of a frozen weight forward and for the gradient
/// of its input (2 and 2 a weight and token), the low-rank pairs with their own gradients (6), and attention, causal, forward and backward.
pub(super) fn layer_operations(config: &ModelConfig, lengths: &[(usize, usize)]) -> f64 {
    let block = config.block(0);
    let projections = block.attention.qkv.projections().iter().chain([&block.attention.output, &block.mlp.down]);
    let projections = projections.chain(block.mlp.input.projections());
    let rank = AdapterSpec::default().rank;
    let a_token: f64 =
        projections.map(|one| (4 * one.rows * one.columns + 6 * rank * (one.rows + one.columns)) as f64).sum();
    let tokens: f64 = lengths.iter().map(|(tokens, _)| *tokens as f64).sum();
    let squares: f64 = lengths.iter().map(|(tokens, _)| (*tokens as f64).powi(2)).sum();
    // Two products forward and five backward, half of each because nothing looks ahead.
    a_token * tokens + 7.0 * squares * config.q_width() as f64
}

/// Operations of the head in a training step: logits, and the gradient of the hidden states, of trained tokens.
pub(super) fn head_operations(config: &ModelConfig, lengths: &[(usize, usize)]) -> f64 {
    let trained: f64 = lengths.iter().map(|(_, trained)| *trained as f64).sum();
    4.0 * (config.vocab_size * config.hidden_size) as f64 * trained
}

/// The time of a pass of training over sequences of these lengths, in seconds.
pub(super) fn training_seconds(
    machine: &Machine,
    config: &ModelConfig,
    (quant, recompute): (Quant, Recompute),
    lengths: &[(usize, usize)],
) -> f64 {
    let layers = config.layers as f64 * layer_operations(config, lengths);
    let again = if recompute == Recompute::Block { machine.recompute } else { 1.0 };
    again * layers / machine.layer_speed(config.hidden_size, quant) + head_operations(config, lengths) / machine.head
}

/// Tokens a second of an answer, whose every token reads all weights once.
pub(super) fn answer_tokens_per_second(machine: &Machine, config: &ModelConfig) -> f64 {
    // The embedding is looked up; tied, it is the head, and read as such.
    let embedding = if config.tied_head { 0 } else { config.vocab_size * config.hidden_size };
    machine.bandwidth / (ANSWER_BYTES * (config.parameters() - embedding) as f64)
}

/// An adapter of zeros for a model, for its sizes.
///
/// # Errors
/// Those of [`AdapterSpec::adapted`].
pub(super) fn planned_adapter(spec: &AdapterSpec, config: &ModelConfig) -> Result<HostAdapter> {
    let mut adapter = HostAdapter { rank: spec.rank, alpha: spec.alpha, ..HostAdapter::default() };
    for site in spec.adapted(config)? {
        let (rank, scale) = (site.rank, site.scale as f32);
        let (output, input) = (site.site.rows, site.site.columns);
        let (a, b) = (vec![0.0; rank * input], vec![0.0; output * rank]);
        let pair = HostPair { a, b, rank, input, output, scale, magnitude: None, subtracted: None };
        adapter.pairs.insert(site.site.module, pair);
    }
    Ok(adapter)
}
