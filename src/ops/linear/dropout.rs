//! Dropout on the input of a low-rank pair, without a mask that is kept.

/// Dropout on the input of a low-rank pair: element `i` is kept if a hash of (`seed`, `i`) says so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of dropping a value, in `[0, 1)`.
    pub probability: f32,
    /// Differs for every projection and step.
    pub seed: u64,
}

/// The odd constant of SplitMix64, by which elements are spread.
pub(in crate::ops) const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// The first factor of its finaliser.
pub(in crate::ops) const FIRST_FACTOR: u64 = 0xbf58_476d_1ce4_e5b9;
/// The second factor of its finaliser.
pub(in crate::ops) const SECOND_FACTOR: u64 = 0x94d0_49bb_1331_11eb;

impl Dropout {
    /// The dropout of what begins at element `first`: its element `i` is element `first + i` of this one.
    pub fn from_element(self, first: u64) -> Self {
        Self { seed: self.seed.wrapping_add(first.wrapping_mul(GOLDEN_GAMMA)), ..self }
    }

    /// Factor for element `index`: 0, or `1 / (1 - probability)`.
    ///
    /// Counter-based, so that the backward pass makes the same mask again instead of keeping it.
    #[inline(always)]
    pub fn factor(self, index: u64) -> f32 {
        if uniform(self.seed, index) < self.probability { 0.0 } else { 1.0 / (1.0 - self.probability) }
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
    /// Multiplies `values`, the elements from `first` on, by their factors.
    pub(in crate::ops) fn apply_dropout(values: &mut [f32], dropout: Dropout, first: u64) {
        for (index, value) in values.iter_mut().enumerate() {
            *value *= dropout.factor(first + index as u64);
        }
    }
}
