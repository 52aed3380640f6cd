//! The activation of the feed-forward block, by itself or as the gate of another projection.
//!
//! Each activation is `x · c(x)` with a share `c(x)` between 0 and 1.

#[cfg(feature = "cpu")]
mod cpu;
pub mod reference;

use burn::tensor::Tensor;

#[cfg(feature = "cpu")]
pub use cpu::{activate_row, gate_row};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · σ(x)` (Elfwing et al. 2017; `silu` and `swish` in configurations).
    Silu,
    /// `x · Φ(x)` with the normal distribution's `Φ(x) = (1 + erf(x/√2)) / 2` (Hendrycks and Gimpel 2016; `gelu`).
    Gelu,
    /// `x · (1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2` (Hendrycks and Gimpel 2016; `gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
}

/// `activation(gate) · up` (Shazeer 2020, "GLU Variants Improve Transformer").
///
/// # Shapes
/// - `gate_up`: `[tokens, 2·width]`, the gate's columns first
/// - output: `[tokens, width]` in the number format of `gate_up`
pub fn gated(gate_up: Tensor<2>, activation: Activation) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if super::on_processor(&gate_up) {
        return cpu::gated(gate_up, activation);
    }
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if super::on_gpu(&gate_up) {
        return super::cube::activation::gated(gate_up, activation);
    }
    reference::gated(gate_up, activation)
}

/// `activation(x)`.
///
/// # Shapes
/// - `x`: `[tokens, width]`
/// - output: `[tokens, width]` in the number format of `x`
pub fn activate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if super::on_processor(&x) {
        return cpu::activate(x, activation);
    }
    reference::activate(x, activation)
}
