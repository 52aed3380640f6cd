//! The low-rank factors of an adapter on the host, in the order in which products read them.

use burn::tensor::Tensor;

use crate::model::Decoder;
use crate::nn::block::Part;
use crate::nn::{Adapter, Pass, Projection};

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
    /// The factor on each output before the bias; `None` for 1.
    column_scale: Option<Vec<f32>>,
}

impl HostFactors {
    /// The factors of an adapter of `decoder`.
    pub(in crate::generate::engine) fn new(adapter: &Adapter, decoder: &Decoder) -> Self {
        let mut sites: Vec<Option<Factors>> = std::iter::repeat_with(|| None).take(decoder.sites()).collect();
        let parts = decoder.layers.iter().flat_map(|layer| layer.block.parts());
        let projections = parts.filter_map(|part| match part {
            Part::Attention(projection) | Part::Mlp(projection) => Some(projection),
            _ => None,
        });
        for projection in projections.chain([&decoder.head]) {
            sites[projection.site] = Factors::of(projection, adapter);
        }
        Self { sites }
    }

    /// The factors at a site.
    pub(super) fn at(&self, site: usize) -> Option<&Factors> {
        self.sites.get(site)?.as_ref()
    }
}

impl Factors {
    /// The factors at a projection, if it is adapted.
    fn of(projection: &Projection, adapter: &Adapter) -> Option<Self> {
        let values = |tensor: Tensor<2>| -> Vec<f32> { tensor.into_data().iter::<f32>().collect() };
        let adapted = projection.in_pass(&Pass { adapter: Some(adapter), ..Pass::default() });
        let pair = adapted.low_rank?;
        let [rank, _] = pair.a.dims();
        let factors = Self::new(rank, values(pair.a), &values(pair.b), pair.scale);
        Some(Self { column_scale: adapted.column_scale.map(values), ..factors })
    }

    /// `b`: `[out, rank]`.
    fn new(rank: usize, a: Vec<f32>, b: &[f32], scale: f32) -> Self {
        let outputs = b.len() / rank.max(1);
        let mut panels = vec![0f32; outputs.div_ceil(LANES) * rank * LANES];
        for (output, row) in b.chunks_exact(rank.max(1)).enumerate() {
            for (at, value) in row.iter().enumerate() {
                panels[(output / LANES * rank + at) * LANES + output % LANES] = scale * value;
            }
        }
        Self { rank, a, b: panels, column_scale: None }
    }

    /// `A · x`.
    pub(super) fn lower(&self, x: &[f32], low: &mut [f32]) {
        for (low, a) in low.iter_mut().zip(self.a.chunks_exact(x.len())) {
            *low = crate::ops::cpu::math::dot(a, x);
        }
    }

    /// Adds `scale · B · low` to the outputs from `first` on, a multiple of 16, and multiplies them by their factors.
    pub(super) fn adapt(&self, low: &[f32], first: usize, outputs: &mut [f32]) {
        let panel = &self.b[first / LANES * self.rank * LANES..][..self.rank * LANES];
        for (low, column) in low.iter().zip(panel.chunks_exact(LANES)) {
            for (output, b) in outputs.iter_mut().zip(column) {
                *output += low * b;
            }
        }
        if let Some(scale) = &self.column_scale {
            outputs.iter_mut().zip(&scale[first..]).for_each(|(output, scale)| *output *= scale);
        }
    }
}
