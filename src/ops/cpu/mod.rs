//! The processor's kernels: instruction sets, packed products, and the bridge to Burn's autodiff.

#[cfg(target_arch = "x86_64")]
pub mod amx;
pub mod autograd;
pub mod isa;
pub mod kernel;
pub mod math;
pub mod matrix;
pub mod pack;
pub mod pool;
pub mod product;
pub mod reduce;
pub mod rowwise;
