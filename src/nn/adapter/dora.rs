//! DoRA: the direction of each row comes from a frozen weight and a low-rank pair, its length is trained by itself.

use std::sync::{Arc, OnceLock};

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::low_rank::LowRank;
use crate::ops::frozen::FrozenWeight;
use crate::ops::linear::row_norms;

/// A low-rank pair with a magnitude for each row: the adapted weight is `m ⊙ (W + scale · B · A) / ‖W + scale · B · A‖`, with
/// the norm by row.
///
/// The norm counts as a constant in the backward pass (Liu et al. 2024, "DoRA", section 4.3), as in PEFT.
#[derive(Module, Debug)]
pub struct Dora {
    /// The change of direction.
    pub pair: LowRank,
    /// `m`, `[1, out]`, f32.
    pub magnitude: Param<Tensor<2>>,
    #[module(skip)]
    kept: Arc<Kept>,
}

/// Values of the parameters as they are, each once it has been asked for; all `[1, out]` and without autodiff.
#[derive(Debug, Default)]
struct Kept {
    /// `‖W + scale · B · A‖`, infinite where it is zero.
    norms: OnceLock<Tensor<2>>,
    /// `m / ‖W + scale · B · A‖`.
    column_scale: OnceLock<Tensor<2>>,
}

impl Dora {
    /// The adapter of one projection.
    pub fn new(pair: LowRank, magnitude: Param<Tensor<2>>) -> Self {
        Self { pair, magnitude, kept: Arc::default() }
    }

    /// The factor on each output of the projection, `m / ‖W + scale · B · A‖`; zero where the norm is. Norms are kept until the
    /// parameters change, so that an adapter serves one `weight`.
    ///
    /// # Shapes
    /// - `weight`: `[out, in]`
    /// - output: `[1, out]`
    pub fn column_scale(&self, weight: &FrozenWeight) -> Tensor<2> {
        let norms = self.kept.norms.get_or_init(|| {
            let [a, b] = self.pair.factors().map(|factor| if factor.is_autodiff() { factor.inner() } else { factor });
            let norms = row_norms(weight, a, b, self.pair.scale);
            let is_zero = norms.clone().equal_elem(0.0);
            norms.mask_fill(is_zero, f32::INFINITY)
        });
        let magnitude = self.magnitude.val();
        match magnitude.is_autodiff() {
            true => magnitude / norms.clone().autodiff(),
            false => self.kept.column_scale.get_or_init(|| magnitude / norms.clone()).clone(),
        }
    }

    /// Makes the next pass compute the norms again.
    pub(super) fn parameters_changed(&mut self) {
        self.kept = Arc::default();
    }
}
