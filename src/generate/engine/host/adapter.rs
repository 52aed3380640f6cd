//! The low-rank factors of an adapter on the host, in the order in which products read them.

use crate::nn::{Adapter, Delta};

/// Outputs whose factors lie side by side: those of one call of a product's store.
const LANES: usize = 16;

/// The factors of an adapter.
pub(in crate::generate::engine) struct HostFactors {
    /// By site.
    sites: Vec<Option<Factors>>,
}

/// A low-rank pair.
pub(super) struct Factors {
    pub(super) rank: usize,
    /// `[rank, in]`.
    a: Vec<f32>,
    /// `scale · Bᵀ` in panels of 16 outputs, `[out / 16, rank, 16]`.
    b: Vec<f32>,
}

impl HostFactors {
    pub(in crate::generate::engine) fn new(adapter: &Adapter) -> Self {
        let factors = |index: usize| match &adapter.deltas[index] {
            Delta::LowRank(pair) => {
                let values =
                    |tensor: burn::tensor::Tensor<2>| -> Vec<f32> { tensor.into_data().iter::<f32>().collect() };
                let [rank, _] = pair.a.dims();
                Factors::new(rank, values(pair.a.val()), &values(pair.b.val()), pair.scale)
            }
        };
        Self { sites: adapter.by_site.iter().map(|index| index.map(factors)).collect() }
    }

    /// The factors at a site.
    pub(super) fn at(&self, site: usize) -> Option<&Factors> {
        self.sites.get(site)?.as_ref()
    }
}

impl Factors {
    /// `b`: `[out, rank]`.
    fn new(rank: usize, a: Vec<f32>, b: &[f32], scale: f32) -> Self {
        let outputs = b.len() / rank.max(1);
        let mut panels = vec![0f32; outputs.div_ceil(LANES) * rank * LANES];
        for (output, row) in b.chunks_exact(rank.max(1)).enumerate() {
            for (at, value) in row.iter().enumerate() {
                panels[(output / LANES * rank + at) * LANES + output % LANES] = scale * value;
            }
        }
        Self { rank, a, b: panels }
    }

    /// `A · x`.
    pub(super) fn lower(&self, x: &[f32], low: &mut [f32]) {
        for (low, a) in low.iter_mut().zip(self.a.chunks_exact(x.len())) {
            *low = crate::ops::cpu::math::dot(a, x);
        }
    }

    /// Adds `scale · B · low` of the outputs from `first` on, a multiple of 16.
    pub(super) fn add(&self, low: &[f32], first: usize, outputs: &mut [f32]) {
        let panel = &self.b[first / LANES * self.rank * LANES..][..self.rank * LANES];
        for (low, column) in low.iter().zip(panel.chunks_exact(LANES)) {
            for (output, b) in outputs.iter_mut().zip(column) {
                *output += low * b;
            }
        }
    }
}
