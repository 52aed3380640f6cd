//! The trainable factors: the only parameters there are.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// One low-rank pair: the update is `scale · B · A`.
#[derive(Module, Debug)]
pub struct LowRank {
    /// `[rank, in]`, f32.
    pub a: Param<Tensor<2>>,
    /// `[out, rank]`, f32.
    pub b: Param<Tensor<2>>,
    /// `alpha / rank`, or what the adapter's file says.
    pub scale: f32,
    /// Probability of dropping an input value while training.
    pub dropout: f32,
}

/// The pairs of a model, by site: a site is a projection's number, counted through the layers.
#[derive(Module, Debug)]
pub struct LowRanks {
    /// In the order of their sites.
    pub pairs: Vec<LowRank>,
    /// For each site, the index of its pair.
    #[module(skip)]
    pub by_site: Vec<Option<usize>>,
}

impl LowRanks {
    /// The pair at a site.
    pub fn at(&self, site: usize) -> Option<&LowRank> {
        self.by_site.get(site).copied().flatten().map(|index| &self.pairs[index])
    }

    /// Trainable values.
    pub fn parameters(&self) -> usize {
        let values = |tensor: &Param<Tensor<2>>| tensor.dims().iter().product::<usize>();
        self.pairs.iter().map(|pair| values(&pair.a) + values(&pair.b)).sum()
    }
}
