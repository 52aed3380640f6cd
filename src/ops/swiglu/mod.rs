//! The gate of the feed-forward: `silu(gate) · up` (Shazeer 2020, "GLU Variants Improve Transformer").

#[cfg(feature = "cpu")]
mod cpu;
pub mod reference;

use burn::tensor::Tensor;

/// `gate_up` is `[tokens, 2·width]`, gate first: `[tokens, width]`.
pub fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if super::on_processor(&gate_up) {
        return cpu::swiglu(gate_up);
    }
    reference::swiglu(gate_up)
}
