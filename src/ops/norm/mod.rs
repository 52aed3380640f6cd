//! Root-mean-square norm: `y = x / sqrt(mean(x²) + eps) · w` (Zhang and Sennrich 2019), statistics in f32.

#[cfg(feature = "cpu")]
mod cpu;
pub mod reference;

use burn::tensor::Tensor;

/// Normalises each row of `x` `[tokens, width]`; `weight` has `width` frozen values.
pub fn rms_norm(x: Tensor<2>, weight: &[f32], eps: f64) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if super::on_processor(&x) {
        return cpu::rms_norm(x, weight, eps);
    }
    reference::rms_norm(x, weight, eps)
}
