//! The adapter: what is added to the frozen projections. Its parameters are the only ones that are trained.

mod dora;
mod low_rank;
mod rows;

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};

pub use dora::Dora;
pub use low_rank::LowRank;
pub use rows::Rows;

use crate::ops::frozen::FrozenWeight;

/// The change of one projection. A new kind of adapter is a new variant: every `match` over it then names the places
/// that have to know.
#[derive(Module, Debug)]
pub enum Delta {
    /// A low-rank pair.
    LowRank(LowRank),
    /// A low-rank pair with trained magnitudes.
    Dora(Dora),
    /// Rows of some tokens.
    Rows(Rows),
}

impl Delta {
    /// The trainable matrices, in a fixed order.
    pub fn parameters(&self) -> impl Iterator<Item = &Param<Tensor<2>>> {
        let (first, second, third) = match self {
            Self::LowRank(pair) => (&pair.a, Some(&pair.b), None),
            Self::Dora(dora) => (&dora.pair.a, Some(&dora.pair.b), Some(&dora.magnitude)),
            Self::Rows(rows) => (&rows.values, None, None),
        };
        std::iter::once(first).chain(second).chain(third)
    }

    /// The embeddings `rows` of the tokens `ids`, which come from `weight`, with this change.
    ///
    /// # Shapes
    /// - `rows`, output: `[ids, width]` in f32
    fn embed(&self, rows: Tensor<2>, ids: &[u32], weight: &FrozenWeight) -> Tensor<2> {
        match self {
            Self::LowRank(pair) => pair.embed(rows, ids),
            // No embedding has magnitudes (`adapter/init`, `adapter/peft`).
            Self::Dora(dora) => dora.pair.embed(rows, ids),
            Self::Rows(own) => own.embed(rows, ids, weight),
        }
    }
}

/// The changes of a model, by the numbers of its modules (`model::sites`).
#[derive(Module, Debug, Default)]
pub struct Adapter {
    /// In the order of their sites.
    pub deltas: Vec<Delta>,
    /// By the number of a module (`model::sites`), the index of its delta.
    #[module(skip)]
    pub by_site: Vec<Option<usize>>,
    /// Tensors of the base that are trained as wholes, `[rows, columns]`; a vector is one row.
    pub whole: Vec<Param<Tensor<2>>>,
    /// By the number of a module (`model::sites`), the index of its weight among them.
    #[module(skip)]
    pub weights: BTreeMap<usize, usize>,
    /// The same of its bias.
    #[module(skip)]
    pub biases: BTreeMap<usize, usize>,
    /// The head of a classifier, `[labels, width]`, in the place of the model's own head.
    pub score: Option<Param<Tensor<2>>>,
}

impl Adapter {
    /// The delta at a site.
    pub fn at(&self, site: usize) -> Option<&Delta> {
        self.by_site.get(site).copied().flatten().map(|index| &self.deltas[index])
    }

    /// The trained weight of a module.
    pub fn weight(&self, module: usize) -> Option<Tensor<2>> {
        self.weights.get(&module).map(|index| self.whole[*index].val())
    }

    /// The trained bias of a module, `[1, out]`.
    pub fn bias(&self, module: usize) -> Option<Tensor<2>> {
        self.biases.get(&module).map(|index| self.whole[*index].val())
    }

    /// The embeddings `rows` of the tokens `ids`, which come from `weight`, as the adapter changes the embedding; that has the number
    /// `module`.
    ///
    /// # Shapes
    /// - `rows`, output: `[ids, width]` in f32
    pub fn embed(&self, module: usize, rows: Tensor<2>, ids: &[u32], weight: &FrozenWeight) -> Tensor<2> {
        match (self.weight(module), self.at(module)) {
            (Some(whole), _) => select_rows(whole, ids),
            (None, Some(delta)) => delta.embed(rows, ids, weight),
            (None, None) => rows,
        }
    }

    /// Whether anything of a module is trained.
    pub fn changes(&self, module: usize) -> bool {
        self.at(module).is_some() || self.weights.contains_key(&module) || self.biases.contains_key(&module)
    }

    /// Whether anything of a module with this number or a greater one is trained.
    pub fn changes_from(&self, module: usize) -> bool {
        let is_among = |numbers: &BTreeMap<usize, usize>| numbers.range(module..).next().is_some();
        self.by_site.iter().skip(module).any(Option::is_some) || is_among(&self.weights) || is_among(&self.biases)
    }

    /// Every trainable matrix, in a fixed order.
    pub fn matrices(&self) -> impl Iterator<Item = &Param<Tensor<2>>> {
        self.deltas.iter().flat_map(Delta::parameters).chain(&self.whole).chain(&self.score)
    }

    /// Number of trainable values.
    pub fn parameters(&self) -> usize {
        self.matrices().map(|matrix| matrix.dims().iter().product::<usize>()).sum()
    }

    /// Forgets what was computed from the parameters: they have changed.
    pub fn parameters_changed(&mut self) {
        for delta in &mut self.deltas {
            match delta {
                Delta::LowRank(_) | Delta::Rows(_) => {}
                Delta::Dora(dora) => dora.parameters_changed(),
            }
        }
    }
}

/// Rows `ids` of a matrix, differentiable.
pub(crate) fn select_rows(matrix: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let count = ids.len();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &matrix.device());
    matrix.select(0, ids)
}
