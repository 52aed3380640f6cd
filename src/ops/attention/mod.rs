//! Causal attention with rotary positions and grouped heads, over sequences laid end to end.
//!
//! `softmax(q·kᵀ / sqrt(head_dim))·v`, each query over the keys of its own sequence up to itself (and within the
//! sliding window, if there is one). The score matrix of a sequence is never held: a few rows of it at a time.

mod cache;
#[cfg(feature = "cpu")]
mod cpu;
pub mod reference;
pub mod rope;

use std::sync::Arc;

use burn::tensor::Tensor;

pub use cache::Cache;
pub use rope::Rope;

/// The shape of an attention layer.
#[derive(Debug, Clone)]
pub struct Geometry {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// A query sees at most this many positions, itself included.
    pub window: Option<usize>,
    pub rope: Arc<Rope>,
}

impl Geometry {
    /// Columns of `q | k | v` side by side.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The factor on the scores.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// First key that the query at `position` sees.
    pub fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Attends within each of the sequences whose `lengths` sum to the tokens of `qkv` `[tokens, q | k | v]`, before
/// rotation: `[tokens, heads · head_dim]`.
pub fn attention(qkv: Tensor<2>, lengths: &[usize], geometry: &Geometry) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if super::on_processor(&qkv) {
        return cpu::attention(qkv, lengths, geometry);
    }
    reference::attention(qkv, lengths, geometry)
}

/// Attends from new tokens to everything their sequences hold, and remembers them. Sequence `i` has the next
/// `lengths[i]` rows of `qkv`; no gradient.
pub fn cached_attention(
    qkv: Tensor<2>,
    lengths: &[usize],
    caches: &mut [&mut Cache],
    geometry: &Geometry,
) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if super::on_processor(&qkv) {
        return cpu::cached_attention(qkv, lengths, caches, geometry);
    }
    reference::cached_attention(qkv, lengths, caches, geometry)
}
