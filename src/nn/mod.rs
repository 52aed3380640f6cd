//! The parts of a decoder: projections, norms, a layer as data and its forward pass, the adapter.

pub mod adapter;
pub mod block;
pub mod layer;
pub mod norm;
pub mod projection;

pub use adapter::{Adapter, Delta, Dora, LowRank, Rows};
pub use block::Block;
pub use layer::Layer;
pub use norm::{Norm, NormKind};
pub use projection::{Noise, Observer, Pass, Projection, token_numbers};
