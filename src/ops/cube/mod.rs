//! The kernels for GPUs, through CubeCL: the product by a weight that stays packed, and the steps that plain tensor code would
//! spread over many small kernels. The rest of a pass is Burn's products.

pub mod activation;
pub(crate) mod adamw;
pub mod attention;
pub mod autograd;
pub mod cross_entropy;
mod decode;
pub mod dropout;
pub mod nf4;
pub mod norm;
pub mod product;
mod reduce;
pub mod rows;
