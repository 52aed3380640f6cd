//! Dropout on the input of a low-rank pair, without a mask that is kept.

use std::sync::Arc;

/// Dropout on the input of a low-rank pair: the value at a column of a token is kept if a hash of (`seed`, the token's number,
/// column) says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropout {
    /// Probability of dropping a value, in `[0, 1)`.
    pub probability: f32,
    /// Differs for every projection and step.
    pub seed: u64,
    /// The number of the token of each row: a token of an example has the same wherever it lies.
    pub tokens: Arc<[u64]>,
}

/// The dropout of one row.
#[derive(Debug, Clone, Copy)]
pub struct RowDropout {
    probability: f32,
    /// The seed that the columns of the row are hashed with.
    pub(in crate::ops) seed: u64,
}

/// The odd constant of SplitMix64, by which elements are spread.
pub(in crate::ops) const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// The first factor of its finaliser.
pub(in crate::ops) const FIRST_FACTOR: u64 = 0xbf58_476d_1ce4_e5b9;
/// The second factor of its finaliser.
pub(in crate::ops) const SECOND_FACTOR: u64 = 0x94d0_49bb_1331_11eb;

impl Dropout {
    /// The dropout of row `row` of `width` values.
    pub fn of_row(&self, row: usize, width: usize) -> RowDropout {
        let first = self.tokens[row].wrapping_mul(width as u64);
        RowDropout { probability: self.probability, seed: self.seed.wrapping_add(first.wrapping_mul(GOLDEN_GAMMA)) }
    }
}

impl RowDropout {
    /// Factor for the value at `column`: 0, or `1 / (1 - probability)`.
    ///
    /// Counter-based, so that the backward pass makes the same mask again instead of keeping it.
    #[inline(always)]
    pub fn factor(self, column: u64) -> f32 {
        if uniform(self.seed, column) < self.probability { 0.0 } else { 1.0 / (1.0 - self.probability) }
    }
}

/// A number from `[0, 1)`: a hash of `seed` and `index` (the finaliser of SplitMix64, Steele et al. 2014).
#[inline(always)]
pub fn uniform(seed: u64, index: u64) -> f32 {
    let mut bits = seed.wrapping_add(index.wrapping_mul(GOLDEN_GAMMA));
    bits = (bits ^ (bits >> 30)).wrapping_mul(FIRST_FACTOR);
    bits = (bits ^ (bits >> 27)).wrapping_mul(SECOND_FACTOR);
    bits ^= bits >> 31;
    (bits >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(feature = "cpu")]
crate::ops::cpu::isa::vectorised! {
    /// Multiplies the values of a row by their factors.
    pub(in crate::ops) fn apply_dropout(values: &mut [f32], dropout: RowDropout) {
        for (column, value) in values.iter_mut().enumerate() {
            *value *= dropout.factor(column as u64);
        }
    }
}
