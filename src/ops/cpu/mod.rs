//! The processor's kernels: instruction sets, packed products, and the bridge to Burn's autodiff.
//!
//! From the bottom: `isa`, `shared`, `rows`, `math`; `kernel`, `transpose` and `pack`; `pool`; `store`, `product` (with `streamed`, its order for
//! AMX), `reduce` and `matrix`; `decode`; `autograd` and `rowwise`, which know Burn's tensors.

pub mod autograd;
pub mod decode;
pub mod isa;
pub mod kernel;
pub mod math;
pub mod matrix;
pub mod pack;
pub mod pool;
pub mod product;
pub mod reduce;
pub mod rows;
pub mod rowwise;
pub(crate) mod shared;
mod store;
#[cfg(target_arch = "x86_64")]
mod streamed;
#[cfg(target_arch = "x86_64")]
mod transpose;
