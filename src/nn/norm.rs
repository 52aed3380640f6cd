//! A frozen norm.

use burn::tensor::Tensor;

use crate::ops::norm::rms_norm;

/// The formula of a norm (`ops/norm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root-mean-square norm, without a bias.
    Rms,
}

/// A norm with its frozen values.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// The formula.
    pub kind: NormKind,
    /// `width` factors.
    pub weight: Vec<f32>,
    /// Added to the variance or the mean square.
    pub eps: f64,
}

impl Norm {
    /// Normalises each row.
    ///
    /// # Shapes
    /// `x`: `[tokens, width]`; the result as `x`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self.kind {
            NormKind::Rms => rms_norm(x, &self.weight, self.eps),
        }
    }
}
