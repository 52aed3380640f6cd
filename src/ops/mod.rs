//! The numerics that Burn lacks, one folder an op: `reference.rs` is the definition of correct in plain tensor code
//! on any backend, `cpu.rs` the processor's kernel with a hand-written backward. GPUs have one kernel, the product by a
//! packed weight (`cube`).
//!
//! Activations are `[tokens, features]`: the sequences of a micro-batch lie end to end, so nothing is ever padded.

pub mod activation;
pub mod attention;
pub mod backward_from;
#[cfg(feature = "cpu")]
pub mod cpu;
pub mod cross_entropy;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod cube;
pub mod frozen;
pub mod linear;
pub mod norm;

/// Whether the tensor lives where the processor's kernels run.
#[cfg(feature = "cpu")]
fn on_processor(tensor: &burn::tensor::Tensor<2>) -> bool {
    tensor.device().inner() == burn::tensor::Device::flex()
}
