//! The parts of a decoder layer: projections with low-rank pairs, attention, feed-forward.

pub mod layer;
pub mod low_rank;
pub mod projection;

pub use layer::Layer;
pub use low_rank::{LowRank, LowRanks};
pub use projection::{Noise, Pass, Projection};
