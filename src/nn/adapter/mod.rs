//! The adapter: what is added to the frozen projections. Its parameters are the only ones that are trained.

mod dora;
mod low_rank;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

pub use dora::Dora;
pub use low_rank::LowRank;

/// The change of one projection. A new kind of adapter is a new variant: every `match` over it then names the places
/// that have to know.
#[derive(Module, Debug)]
pub enum Delta {
    /// A low-rank pair.
    LowRank(LowRank),
    /// A low-rank pair with trained magnitudes.
    Dora(Dora),
}

impl Delta {
    /// The trainable matrices, in a fixed order.
    pub fn parameters(&self) -> impl Iterator<Item = &Param<Tensor<2>>> {
        let (pair, magnitude) = match self {
            Self::LowRank(pair) => (pair, None),
            Self::Dora(dora) => (&dora.pair, Some(&dora.magnitude)),
        };
        [&pair.a, &pair.b].into_iter().chain(magnitude)
    }
}

/// The changes of a model's projections, by site (`model::sites`).
#[derive(Module, Debug)]
pub struct Adapter {
    /// In the order of their sites.
    pub deltas: Vec<Delta>,
    /// For each site, the index of its delta.
    #[module(skip)]
    pub by_site: Vec<Option<usize>>,
}

impl Adapter {
    /// The delta at a site.
    pub fn at(&self, site: usize) -> Option<&Delta> {
        self.by_site.get(site).copied().flatten().map(|index| &self.deltas[index])
    }

    /// Number of trainable values.
    pub fn parameters(&self) -> usize {
        let matrices = self.deltas.iter().flat_map(Delta::parameters);
        matrices.map(|matrix| matrix.dims().iter().product::<usize>()).sum()
    }

    /// Forgets what was computed from the parameters: they have changed.
    pub fn parameters_changed(&mut self) {
        for delta in &mut self.deltas {
            match delta {
                Delta::LowRank(_) => {}
                Delta::Dora(dora) => dora.parameters_changed(),
            }
        }
    }
}
