//! The kernel for GPUs, through CubeCL: products by a weight that stays packed. All else there is plain tensor code.

pub mod autograd;
pub mod nf4;
pub mod product;
