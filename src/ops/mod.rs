//! The numerics that Burn lacks, one folder an op: `reference.rs` is the definition of correct in plain tensor code
//! on any backend, `cpu.rs` the processor's kernel with a hand-written backward. The kernels for GPUs stand in `cube`.
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
pub mod host;
pub mod linear;
pub mod norm;
pub mod wide_gradient;

#[cfg(feature = "cpu")]
pub(crate) use cpu::isa::vectorised;

/// Without the processor's kernels a loop is compiled once, for the baseline.
#[cfg(not(feature = "cpu"))]
macro_rules! vectorised {
    ($($item:tt)*) => { $($item)* };
}
#[cfg(not(feature = "cpu"))]
pub(crate) use vectorised;

/// Whether the processor's kernels run on this device.
pub fn is_processor(device: &burn::tensor::Device) -> bool {
    #[cfg(feature = "cpu")]
    return *device == burn::tensor::Device::flex();
    #[cfg(not(feature = "cpu"))]
    {
        let _ = device;
        false
    }
}

/// Whether the tensor lives where the processor's kernels run.
#[cfg(feature = "cpu")]
fn on_processor(tensor: &burn::tensor::Tensor<2>) -> bool {
    is_processor(&tensor.device().inner())
}

/// Whether the tensor lives where the kernels for GPUs run.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn on_gpu(tensor: &burn::tensor::Tensor<2>) -> bool {
    !is_processor(&tensor.device().inner())
}
