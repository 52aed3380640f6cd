//! Normalisation of rows: root-mean-square norm, layer norm, and the norm of queries and keys. Statistics are in f32.

#[cfg(feature = "cpu")]
mod cpu;
pub mod reference;

use burn::tensor::{DType, Tensor};

use super::attention::Geometry;
use super::wide_gradient::with_wide_gradient;
#[cfg(feature = "cpu")]
pub use cpu::{QkNormRows, layer_row, rms_row};

/// Root-mean-square norm of each row: `y = x / sqrt(mean(x²) + eps) · w` (Zhang and Sennrich 2019, "Root Mean Square Layer
/// Normalization", eq. 4).
///
/// # Shapes
/// - `x`: `[tokens, width]`
/// - `weight`: `width` frozen values
/// - output: `[tokens, width]` in the number format of `x`
pub fn rms_norm(x: Tensor<2>, weight: &[f32], eps: f64) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if super::on_processor(&x) {
        return cpu::rms_norm(x, weight, eps);
    }
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if super::on_gpu(&x) {
        return super::cube::norm::rms_norm(x, weight, eps);
    }
    reference::rms_norm(x, weight, eps)
}

/// Layer norm of each row: `y = (x − mean(x)) / sqrt(variance(x) + eps) · w + b`, with the biased variance (Ba et al. 2016,
/// "Layer Normalization", eq. 4).
///
/// # Shapes
/// - `x`: `[tokens, width]`
/// - `weight`, `bias`: `width` frozen values each
/// - output: `[tokens, width]` in the number format of `x`
pub fn layer_norm(x: Tensor<2>, weight: &[f32], bias: Option<&[f32]>, eps: f64) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if super::on_processor(&x) {
        return cpu::layer_norm(x, weight, bias, eps);
    }
    reference::layer_norm(x, weight, bias, eps)
}

/// [`rms_norm`] with a trained weight, in plain tensor code on every device.
///
/// # Shapes
/// - `x`, output: `[tokens, width]`
/// - `weight`: `[1, width]` in f32
pub fn trained_rms_norm(x: Tensor<2>, weight: Tensor<2>, eps: f64) -> Tensor<2> {
    let format = x.dtype();
    reference::trained_rms_norm(with_wide_gradient(x, DType::F32), weight, eps).cast(format)
}

/// [`layer_norm`] with trained values, in plain tensor code on every device.
///
/// # Shapes
/// - `x`, output: `[tokens, width]`
/// - `weight`, `bias`: `[1, width]` in f32
pub fn trained_layer_norm(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<2>>, eps: f64) -> Tensor<2> {
    let format = x.dtype();
    reference::trained_layer_norm(with_wide_gradient(x, DType::F32), weight, bias, eps).cast(format)
}

/// The values that share one root mean square in a [`QkNorm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Each head by itself; the heads share a weight of `head_dim` values (Qwen3, Gemma 3).
    PerHead,
    /// All heads of a token together; the weight has a value for each of their columns (OLMo 2).
    AllHeads,
}

/// Root-mean-square norms of the queries and of the keys, before rotation.
#[derive(Debug, Clone, PartialEq)]
pub struct QkNorm {
    /// Weight of the queries: `head_dim` values per head, or `heads · head_dim` over all heads.
    pub q: Vec<f32>,
    /// Weight of the keys: `head_dim` values per head, or `kv_heads · head_dim` over all heads.
    pub k: Vec<f32>,
    /// Added to the mean square.
    pub eps: f64,
    /// The values that share one root mean square.
    pub span: Span,
}

/// Normalises the queries and the keys inside `qkv` as [`rms_norm`] does; the values stay as they are (Henry et al. 2020,
/// "Query-Key Normalization for Transformers", with the root mean square in place of the length).
///
/// # Shapes
/// - `qkv`: `[tokens, geometry.qkv_width()]`, columns as `geometry.layout` says
/// - output: the same, in the number format of `qkv`
pub fn qk_norm(qkv: Tensor<2>, norm: &QkNorm, geometry: &Geometry) -> Tensor<2> {
    let heads = |count: usize| if norm.span == Span::PerHead { 1 } else { count };
    assert_eq!(norm.q.len(), heads(geometry.heads) * geometry.head_dim, "a weight for each column of the queries");
    assert_eq!(norm.k.len(), heads(geometry.kv_heads) * geometry.head_dim, "a weight for each column of the keys");
    #[cfg(feature = "cpu")]
    if super::on_processor(&qkv) {
        return cpu::qk_norm(qkv, norm, geometry);
    }
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if super::on_gpu(&qkv) {
        return reference::qk_norm_by(super::cube::norm::rms_norm, qkv, norm, geometry);
    }
    reference::qk_norm(qkv, norm, geometry)
}
