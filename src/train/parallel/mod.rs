//! Data-parallel training: the parts of a step are dealt to several processes, the ranks, and the result is that of one process
//! to the bit.
//!
//! Three facts make it so. The gradient of a part of a step is computed by one rank, and the noise in it is that of its
//! examples. The sum of the gradients is one of integers ([`fixed`]), so neither the order nor the number of ranks matters.
//! Everything else, adapter, optimiser and decisions, is computed on every rank from the same values.

pub mod alone;
#[cfg(feature = "mpi")]
mod deadline;
pub mod fixed;
pub mod launch;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(any(feature = "mpi", test))]
mod packed;
#[cfg(feature = "mpi")]
mod pulse;

use std::fmt::Debug;

pub use alone::Alone;

use crate::settings::{between, section};

section! {
    /// Training on several processes or machines ([distributed.md](distributed.md)).
    ParallelSettings {
        /// Seconds without a sign of life from a process, after which it counts as dead, stopped or unreachable, and the run ends on
        /// every machine.
        timeout_seconds: f64 = Take(600.0), between(1.0..=86_400.0);
    }
}

/// The processes that train one adapter together. Every method that exchanges something is called by all of them, in the same
/// order; where one of them fails, all end.
pub trait Ranks: Debug {
    /// The number of this process, from 0. Rank 0 is the one that writes.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn count(&self) -> usize;

    /// The name of a rank for messages, with its machine.
    fn name(&self, rank: usize) -> String;

    /// Adds up `values` over all ranks, each with its place.
    fn sum(&self, values: &mut [i64]);

    /// The bytes that this rank has sent to others for its sums so far.
    fn sent_bytes(&self) -> u64 {
        0
    }

    /// The bytes of every rank, in order.
    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// The bytes of rank 0.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// This rank begins a step, counted from 1; for messages.
    fn begin_step(&self, _step: u64) {}

    /// Leaves the others, once all have come to the end.
    fn leave(self: Box<Self>) {}

    /// Whether the work with this number is that of this rank.
    fn is_mine(&self, index: usize) -> bool {
        index % self.count() == self.rank()
    }

    /// Whether this is the rank that writes.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }
}
