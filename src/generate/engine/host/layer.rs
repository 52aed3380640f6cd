//! One layer on rows of f32.

use super::adapter::HostFactors;
use super::{HostProjection, Precision};
use crate::nn::block::{MlpInput, Residual};
use crate::nn::{Block, Layer, Norm, NormKind, Projection};
use crate::ops::activation::{Activation, activate_row, gate_row};
use crate::ops::attention::{CacheFormat, Geometry, PagedPiece, paged_attention};
use crate::ops::cpu::decode::{Input, Member, products};
use crate::ops::cpu::pool;
use crate::ops::cpu::shared::SharedMut;
use crate::ops::norm::{QkNormRows, layer_row, rms_row};

/// Rows that one task takes where work goes row by row.
const ROWS_PER_TASK: usize = 8;

/// A layer with its weights in the form of inference.
pub(super) struct HostLayer {
    qkv: Vec<HostProjection>,
    qk_norm: Option<QkNormRows>,
    output: HostProjection,
    mlp_input: Vec<HostProjection>,
    is_gated: bool,
    activation: Activation,
    down: HostProjection,
    before_attention: Option<Norm>,
    after_attention: Option<Norm>,
    before_mlp: Option<Norm>,
    after_mlp: Option<Norm>,
    residual: Residual,
    residual_multiplier: Option<f32>,
    pub(super) geometry: Geometry,
}

impl HostLayer {
    /// A layer of the decoder; `None` where its weights do not lie on the processor.
    pub(super) fn new(layer: &Layer, precision: Precision) -> Option<Self> {
        let block: &Block<Projection, Norm> = &layer.block;
        let prepared = |projections: &[Projection]| -> Option<Vec<HostProjection>> {
            projections.iter().map(|projection| HostProjection::new(projection, precision)).collect()
        };
        Some(Self {
            qkv: prepared(block.attention.qkv.projections())?,
            qk_norm: layer.qk_norm.as_ref().map(|norm| QkNormRows::new(norm, &layer.geometry)),
            output: HostProjection::new(&block.attention.output, precision)?,
            mlp_input: prepared(block.mlp.input.projections())?,
            is_gated: matches!(block.mlp.input, MlpInput::Gated(_) | MlpInput::FusedGated(_)),
            activation: block.mlp.activation,
            down: HostProjection::new(&block.mlp.down, precision)?,
            before_attention: block.before_attention.clone(),
            after_attention: block.after_attention.clone(),
            before_mlp: block.before_mlp.clone(),
            after_mlp: block.after_mlp.clone(),
            residual: block.residual,
            residual_multiplier: block.residual_multiplier,
            geometry: layer.geometry.clone(),
        })
    }

    /// Runs new tokens, `x` `[tokens, hidden]`, in place; `adapters` has one for each.
    pub(super) fn forward(
        &self,
        x: &mut [f32],
        adapters: &[Option<&HostFactors>],
        pieces: &mut [PagedPiece<'_>],
        format: CacheFormat,
    ) {
        let width = x.len() / adapters.len();
        let rows = Rows { adapters, width };
        let h = norm_rows(self.before_attention.as_ref(), x.to_vec(), width);
        let mut qkv = rows.project(&h, &self.qkv);
        if let Some(norm) = &self.qk_norm {
            each_row(&mut qkv, self.geometry.qkv_width(), |row| norm.apply(row));
        }
        let mixed_width = self.geometry.heads * self.geometry.head_dim;
        let mut mixed = vec![0f32; adapters.len() * mixed_width];
        paged_attention(&mut qkv, pieces, &self.geometry, format, &mut mixed);
        let normed = |x: &[f32]| norm_rows(self.before_mlp.as_ref(), x.to_vec(), width);
        let parallel = (self.residual == Residual::Parallel).then(|| normed(x));
        self.add(x, &mixed, mixed_width, &self.output, self.after_attention.as_ref(), adapters);
        let h = parallel.unwrap_or_else(|| normed(x));
        let mut inner = rows.project(&h, &self.mlp_input);
        let mut inner_width = inner.len() / adapters.len();
        if self.is_gated {
            inner_width /= 2;
            inner = gated(&inner, inner_width, self.activation);
        } else {
            each_row(&mut inner, inner_width, |row| activate_row(self.activation, row));
        }
        self.add(x, &inner, inner_width, &self.down, self.after_mlp.as_ref(), adapters);
    }

    /// `x += multiplier · norm(projection(from))`.
    fn add(
        &self,
        x: &mut [f32],
        from: &[f32],
        width: usize,
        projection: &HostProjection,
        norm: Option<&Norm>,
        adapters: &[Option<&HostFactors>],
    ) {
        let rows = Rows { adapters, width };
        let members = std::slice::from_ref(projection);
        if norm.is_none() && self.residual_multiplier.is_none() {
            return rows.project_into(from, members, x, |sum, output| *sum += output);
        }
        let outputs = x.len() / adapters.len();
        let y = norm_rows(norm, rows.project(from, members), outputs);
        let multiplier = self.residual_multiplier.unwrap_or(1.0);
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y * multiplier);
    }
}

/// Rows of activations on their way into projections.
pub(super) struct Rows<'a> {
    /// The adapter of each row.
    pub(super) adapters: &'a [Option<&'a HostFactors>],
    /// Values of a row.
    pub(super) width: usize,
}

impl Rows<'_> {
    /// The outputs of projections that share their input, side by side.
    pub(super) fn project(&self, x: &[f32], members: &[HostProjection]) -> Vec<f32> {
        let outputs: usize = members.iter().map(|member| member.weight.rows()).sum();
        let mut out = vec![0f32; self.adapters.len() * outputs];
        self.project_into(x, members, &mut out, |out, output| *out = output);
        out
    }

    /// [`project`](Self::project), each output given to `put` with its place in `out`.
    fn project_into(&self, x: &[f32], members: &[HostProjection], out: &mut [f32], put: impl Fn(&mut f32, f32) + Sync) {
        let input = Input::new(x, self.width, members.iter().any(|member| member.weight.needs_codes()));
        let stride = out.len() / self.adapters.len();
        let starts = members.iter().scan(0, |next, member| {
            let column = *next;
            *next += member.weight.rows();
            Some(column)
        });
        let columns: Vec<usize> = starts.collect();
        let lows: Vec<Low> = members.iter().map(|member| self.lower(x, member.site)).collect();
        let target = SharedMut::new(out);
        let weights = members.iter().zip(&columns);
        let weights: Vec<_> = weights.map(|(member, &column)| Member { weight: &member.weight, column }).collect();
        products(&input, &weights, |row, column, outputs| {
            let index = columns.partition_point(|first| *first <= column) - 1;
            let (member, first) = (&members[index], column - columns[index]);
            if lows[index].stride > 0
                && let Some(factors) = self.adapters[row].and_then(|adapter| adapter.at(member.site))
            {
                factors.adapt(&lows[index].values[row * lows[index].stride..][..factors.rank], first, outputs);
            }
            if let Some(bias) = &member.bias {
                outputs.iter_mut().zip(&bias[first..]).for_each(|(output, bias)| *output += bias);
            }
            // SAFETY: each output of each row is given once.
            let places = unsafe { target.slice(row * stride + column, outputs.len()) };
            places.iter_mut().zip(outputs).for_each(|(place, output)| put(place, *output));
        });
    }

    /// `A · x` of each row whose adapter has factors at a site.
    fn lower(&self, x: &[f32], site: usize) -> Low {
        let rank = |adapter: &Option<&HostFactors>| adapter.and_then(|one| one.at(site)).map_or(0, |one| one.rank);
        let stride = self.adapters.iter().map(rank).max().unwrap_or(0);
        let mut values = vec![0f32; stride * self.adapters.len()];
        if stride > 0 {
            pool::for_each_chunk(&mut values, stride * ROWS_PER_TASK, |task, low| {
                for (index, low) in low.chunks_exact_mut(stride).enumerate() {
                    let row = task * ROWS_PER_TASK + index;
                    if let Some(factors) = self.adapters[row].and_then(|adapter| adapter.at(site)) {
                        factors.lower(&x[row * self.width..][..self.width], &mut low[..factors.rank]);
                    }
                }
            });
        }
        Low { stride, values }
    }
}

/// The inner values of low-rank pairs, `[rows, stride]`.
struct Low {
    stride: usize,
    values: Vec<f32>,
}

/// Normalises each row.
pub(super) fn norm_rows(norm: Option<&Norm>, mut x: Vec<f32>, width: usize) -> Vec<f32> {
    let Some(norm) = norm else { return x };
    pool::for_each_chunk(&mut x, width * ROWS_PER_TASK, |_, rows| {
        let mut scratch = vec![0f32; width];
        for row in rows.chunks_exact_mut(width) {
            scratch.copy_from_slice(row);
            match norm.kind {
                NormKind::Rms => rms_row(&scratch, &norm.weight, norm.eps as f32, row),
                NormKind::Layer => {
                    layer_row(&mut scratch, &norm.weight, norm.bias.as_deref(), norm.eps as f32, row);
                }
            }
        }
    });
    x
}

/// Calls `work` for every row.
fn each_row(x: &mut [f32], width: usize, work: impl Fn(&mut [f32]) + Sync) {
    pool::for_each_chunk(x, width * ROWS_PER_TASK, |_, rows| rows.chunks_exact_mut(width).for_each(&work));
}

/// `activation(gate) · up` of rows `[gate | up]`.
fn gated(x: &[f32], width: usize, activation: Activation) -> Vec<f32> {
    let mut inner = vec![0f32; x.len() / 2];
    pool::for_each_chunk(&mut inner, width * ROWS_PER_TASK, |task, rows| {
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            let (gate, up) = x[2 * width * (task * ROWS_PER_TASK + index)..][..2 * width].split_at(width);
            row.copy_from_slice(gate);
            gate_row(activation, row, up);
        }
    });
    inner
}
