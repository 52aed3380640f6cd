//! A process that trains alone.

use super::Ranks;

/// The one process of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn name(&self, _rank: usize) -> String {
        "this process".to_owned()
    }

    fn sum(&self, _values: &mut [i64]) {}

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }
}
