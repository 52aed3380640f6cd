//! Causal attention with rotary positions and grouped heads, over sequences laid end to end.
//!
//! `softmax(cap(scale·q·kᵀ))·v`, each query over the keys of its own sequence up to itself (and within the sliding window,
//! if there is one). The score matrix of a sequence is never held: a few rows of it at a time.

mod cache;
#[cfg(feature = "cpu")]
mod cpu;
mod geometry;
pub mod reference;
pub mod rope;

use burn::tensor::Tensor;

pub use cache::{Cache, CacheFormat};
#[cfg(feature = "cpu")]
pub use cache::{PAGE_POSITIONS, Page, PagedCache, PagedPiece, paged_attention};
pub use geometry::{Geometry, QkvLayout};
pub use rope::Rope;

/// Attends within each of the sequences that lie end to end in `qkv`.
///
/// # Shapes
/// - `qkv`: `[tokens, geometry.qkv_width()]` before rotation, columns as `geometry.layout` says
/// - `lengths`: the tokens of each sequence; they sum to `tokens`
/// - output: `[tokens, heads · head_dim]` in the number format of `qkv`
pub fn attention(qkv: Tensor<2>, lengths: &[usize], geometry: &Geometry) -> Tensor<2> {
    geometry.check(qkv.dims()[1]);
    #[cfg(feature = "cpu")]
    if super::on_processor(&qkv) {
        return cpu::attention(qkv, lengths, geometry);
    }
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if super::on_gpu(&qkv) {
        return super::cube::attention::attention(qkv, lengths, geometry);
    }
    reference::attention(qkv, lengths, geometry)
}

/// Attends from new tokens to everything that their sequences hold, and adds the new keys and values to the caches. No
/// gradient.
///
/// Where a sequence grows past the context that its [`Rope`] was trained on, the keys in the cache are rotated anew with
/// the frequencies of long sequences (see [`Rope::with_long_context`]).
///
/// # Shapes
/// - `qkv`: `[tokens, geometry.qkv_width()]` before rotation, columns as `geometry.layout` says
/// - `lengths`: the new tokens of each sequence; they sum to `tokens`
/// - `caches`: one for each sequence
/// - output: `[tokens, heads · head_dim]` in the number format of `qkv`
pub fn cached_attention(
    qkv: Tensor<2>,
    lengths: &[usize],
    caches: &mut [&mut Cache],
    geometry: &Geometry,
) -> Tensor<2> {
    geometry.check(qkv.dims()[1]);
    #[cfg(feature = "cpu")]
    if super::on_processor(&qkv) {
        return cpu::cached_attention(qkv, lengths, caches, geometry);
    }
    reference::cached_attention(qkv, lengths, caches, geometry)
}
