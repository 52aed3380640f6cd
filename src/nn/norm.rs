//! A norm: frozen, unless the adapter of a pass has values for it.

use burn::tensor::{Tensor, TensorData};

use super::projection::Pass;
use crate::ops::norm::{layer_norm, rms_norm, trained_layer_norm, trained_rms_norm};

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
    /// The part of each factor that the file of the base does not have.
    pub offset: f32,
    /// `width` summands of a layer norm.
    pub bias: Option<Vec<f32>>,
    /// Added to the mean square or the variance.
    pub eps: f64,
    /// Its number among the modules of the model.
    pub number: usize,
}

impl Norm {
    /// Whether the adapter of the pass has values for it.
    pub fn is_trained(&self, pass: &Pass<'_>) -> bool {
        let (weight, bias) = self.trained(pass);
        weight.is_some() || bias.is_some()
    }

    fn trained(&self, pass: &Pass<'_>) -> (Option<Tensor<2>>, Option<Tensor<2>>) {
        let adapter = pass.adapter;
        (adapter.and_then(|adapter| adapter.weight(self.number)), adapter.and_then(|adapter| adapter.bias(self.number)))
    }

    /// Normalises each row.
    ///
    /// # Shapes
    /// - `x`: `[tokens, width]`
    /// - output: `[tokens, width]`
    pub fn forward(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let (weight, bias) = self.trained(pass);
        if weight.is_none() && bias.is_none() {
            return match self.kind {
                NormKind::Rms => rms_norm(x, &self.weight, self.eps),
                NormKind::Layer => layer_norm(x, &self.weight, self.bias.as_deref(), self.eps),
            };
        }
        let device = x.device();
        let row = |values: &[f32]| Tensor::<1>::from_data(TensorData::from(values), &device).unsqueeze::<2>();
        let weight = weight.map_or_else(|| row(&self.weight), |weight| weight.add_scalar(self.offset));
        let bias = bias.or_else(|| self.bias.as_deref().map(row));
        match self.kind {
            NormKind::Rms => trained_rms_norm(x, weight, self.eps),
            NormKind::Layer => trained_layer_norm(x, weight, bias, self.eps),
        }
    }
}
