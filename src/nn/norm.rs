//! A frozen norm.

use burn::tensor::Tensor;

use crate::ops::norm::{layer_norm, rms_norm};

/// The formula of a norm (`ops/norm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root-mean-square norm, without a bias.
    Rms,
    /// Layer norm.
    Layer,
}

/// A norm with its frozen values.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// The formula.
    pub kind: NormKind,
    /// `width` factors.
    pub weight: Vec<f32>,
    /// `width` summands of a layer norm.
    pub bias: Option<Vec<f32>>,
    /// Added to the mean square or the variance.
    pub eps: f64,
}

impl Norm {
    /// Normalises each row.
    ///
    /// # Shapes
    /// - `x`: `[tokens, width]`
    /// - output: `[tokens, width]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self.kind {
            NormKind::Rms => rms_norm(x, &self.weight, self.eps),
            NormKind::Layer => layer_norm(x, &self.weight, self.bias.as_deref(), self.eps),
        }
    }
}
