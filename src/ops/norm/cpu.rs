//! The norms on the processor, a row at a time.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{QkNorm, Span};
use crate::ops::attention::Geometry;
use crate::ops::cpu::autograd::{Kernel, apply, dims, from_f32, rows};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::math::dot;
use crate::ops::cpu::rowwise::{for_each_row, map_rows};

struct RmsNorm {
    weight: Arc<[f32]>,
    eps: f32,
}

/// See [`rms_norm`](super::rms_norm).
pub fn rms_norm(x: Tensor<2>, weight: &[f32], eps: f64) -> Tensor<2> {
    apply(RmsNorm { weight: weight.into(), eps: eps as f32 }, vec![x])
}

impl Kernel for RmsNorm {
    type Saved = FlexTensor;

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<FlexTensor>) {
        let x = &inputs[0];
        let [tokens, width] = dims(x);
        let source = rows(x);
        let y = map_rows(x.dtype(), tokens, width, |row, y, scratch| {
            source.read(row, 0, scratch);
            rms_row(scratch, &self.weight, self.eps, y);
        });
        (y, save.then(|| x.clone()))
    }

    fn backward(&self, x: FlexTensor, gradient: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        vec![Some(row_gradients(&x, &gradient, |x, g, dx| rms_row_gradient(x, g, &self.weight, self.eps, dx)))]
    }
}

/// The gradient of a norm's input, row by row: `work(x, g, dx)`.
///
/// It is f32 for every format of the activations: it is the gradient of the residual stream, to which every layer below
/// adds.
fn row_gradients(
    x: &FlexTensor,
    gradient: &FlexTensor,
    work: impl Fn(&[f32], &mut [f32], &mut [f32]) + Sync,
) -> FlexTensor {
    let [tokens, width] = dims(x);
    let (x_rows, g_rows) = (rows(x), rows(gradient));
    let mut dx = vec![0f32; tokens * width];
    for_each_row(&mut dx, width, 2 * width, |row, dx, scratch| {
        let (x, g) = scratch.split_at_mut(width);
        x_rows.read(row, 0, x);
        g_rows.read(row, 0, g);
        work(x, g, dx);
    });
    from_f32(dx, tokens, width)
}

vectorised! {
    /// [`rms_norm`](super::rms_norm) of one row.
    pub fn rms_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

vectorised! {
    /// `dx = r·(g·w − x·r²·mean(g·w·x))` with `r = 1/sqrt(mean(x²) + eps)`.
    fn rms_row_gradient(x: &[f32], g: &mut [f32], weight: &[f32], eps: f32, dx: &mut [f32]) {
        let width = x.len() as f32;
        let scale = 1.0 / (dot(x, x) / width + eps).sqrt();
        for (g, weight) in g.iter_mut().zip(weight) {
            *g *= weight;
        }
        let shared = scale * scale * dot(g, x) / width;
        for ((dx, x), g) in dx.iter_mut().zip(x).zip(&*g) {
            *dx = scale * (g - x * shared);
        }
    }
}

struct LayerNorm {
    weight: Arc<[f32]>,
    bias: Option<Arc<[f32]>>,
    eps: f32,
}

/// See [`layer_norm`](super::layer_norm).
pub fn layer_norm(x: Tensor<2>, weight: &[f32], bias: Option<&[f32]>, eps: f64) -> Tensor<2> {
    apply(LayerNorm { weight: weight.into(), bias: bias.map(Arc::from), eps: eps as f32 }, vec![x])
}

impl Kernel for LayerNorm {
    type Saved = FlexTensor;

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<FlexTensor>) {
        let x = &inputs[0];
        let [tokens, width] = dims(x);
        let source = rows(x);
        let y = map_rows(x.dtype(), tokens, width, |row, y, scratch| {
            source.read(row, 0, scratch);
            layer_row(scratch, &self.weight, self.bias.as_deref(), self.eps, y);
        });
        (y, save.then(|| x.clone()))
    }

    fn backward(&self, x: FlexTensor, gradient: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        vec![Some(row_gradients(&x, &gradient, |x, g, dx| layer_row_gradient(x, g, &self.weight, self.eps, dx)))]
    }
}

/// [`layer_norm`](super::layer_norm) of one row; `x` becomes the row without its mean.
pub fn layer_row(x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32]) {
    let scale = centre(x, eps);
    scale_row(x, scale, weight, bias, y);
}

vectorised! {
    /// Takes the mean from a row; the factor that makes its variance one.
    fn centre(x: &mut [f32], eps: f32) -> f32 {
        let width = x.len() as f32;
        let mean = sum(x) / width;
        for x in x.iter_mut() {
            *x -= mean;
        }
        1.0 / (dot(x, x) / width + eps).sqrt()
    }
}

vectorised! {
    fn scale_row(centred: &[f32], scale: f32, weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        for ((y, x), weight) in y.iter_mut().zip(centred).zip(weight) {
            *y = x * scale * weight;
        }
        if let Some(bias) = bias {
            for (y, bias) in y.iter_mut().zip(bias) {
                *y += bias;
            }
        }
    }
}

vectorised! {
    /// `dx = r·(g·w − mean(g·w) − n·mean(g·w·n))` with `n = (x − mean(x))·r` and `r = 1/sqrt(variance(x) + eps)`.
    fn layer_row_gradient(x: &[f32], g: &mut [f32], weight: &[f32], eps: f32, dx: &mut [f32]) {
        let width = x.len() as f32;
        dx.copy_from_slice(x);
        let scale = centre(dx, eps);
        for (g, weight) in g.iter_mut().zip(weight) {
            *g *= weight;
        }
        let mean = sum(g) / width;
        let shared = scale * scale * dot(g, dx) / width;
        for (dx, g) in dx.iter_mut().zip(&*g) {
            *dx = scale * (g - mean - *dx * shared);
        }
    }
}

vectorised! {
    /// The sum of a row, in lanes that are added in a fixed order.
    fn sum(values: &[f32]) -> f32 {
        const LANES: usize = 32;
        let mut lanes = [0f32; LANES];
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                lanes[lane] += values[lane];
            }
        }
        lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
    }
}

/// Columns of a row that share one root mean square: segments of `head_dim` values.
#[derive(Debug, Clone)]
struct Group {
    first_columns: Vec<usize>,
    /// One value for each column of a segment, or for each column of all segments.
    weight: Arc<[f32]>,
}

/// [`qk_norm`](super::qk_norm) for rows of queries, keys and values.
#[derive(Debug, Clone)]
pub struct QkNormRows {
    groups: Vec<Group>,
    head_dim: usize,
    eps: f32,
}

impl QkNormRows {
    /// The norms of queries and keys that stand in the columns of this geometry.
    pub fn new(norm: &QkNorm, geometry: &Geometry) -> Self {
        let queries = (0..geometry.heads).map(|head| geometry.query_column(head)).collect::<Vec<_>>();
        let keys = (0..geometry.kv_heads).map(|head| geometry.key_column(head)).collect::<Vec<_>>();
        let mut groups = Vec::new();
        for (columns, weight) in [(queries, &norm.q), (keys, &norm.k)] {
            let weight: Arc<[f32]> = weight.as_slice().into();
            let size = if norm.span == Span::PerHead { 1 } else { columns.len() };
            groups.extend(
                columns.chunks(size).map(|columns| Group { first_columns: columns.to_vec(), weight: weight.clone() }),
            );
        }
        Self { groups, head_dim: geometry.head_dim, eps: norm.eps as f32 }
    }

    /// Normalises a row in place.
    pub fn apply(&self, row: &mut [f32]) {
        for group in &self.groups {
            rms_segments(row, &group.first_columns, self.head_dim, &group.weight, self.eps);
        }
    }
}

/// See [`qk_norm`](super::qk_norm).
pub fn qk_norm(qkv: Tensor<2>, norm: &QkNorm, geometry: &Geometry) -> Tensor<2> {
    apply(QkNormRows::new(norm, geometry), vec![qkv])
}

impl Kernel for QkNormRows {
    type Saved = FlexTensor;

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<FlexTensor>) {
        let qkv = &inputs[0];
        let [tokens, width] = dims(qkv);
        let source = rows(qkv);
        let y = map_rows(qkv.dtype(), tokens, width, |row, y, _| {
            source.read(row, 0, y);
            QkNormRows::apply(self, y);
        });
        (y, save.then(|| qkv.clone()))
    }

    fn backward(&self, qkv: FlexTensor, gradient: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        let [tokens, width] = dims(&qkv);
        let (x_rows, g_rows) = (rows(&qkv), rows(&gradient));
        let d = map_rows(qkv.dtype(), tokens, width, |row, d, x| {
            x_rows.read(row, 0, x);
            g_rows.read(row, 0, d);
            for group in &self.groups {
                rms_segments_gradient(x, d, &group.first_columns, self.head_dim, &group.weight, self.eps);
            }
        });
        vec![Some(d)]
    }
}

/// The weight of a segment: all of a shared one, or the segment's part.
#[inline(always)]
fn weight_of(weight: &[f32], segment: usize, size: usize) -> &[f32] {
    &weight[segment * size % weight.len()..][..size]
}

vectorised! {
    /// [`rms_row`] over segments of a row together, in place.
    fn rms_segments(row: &mut [f32], first_columns: &[usize], size: usize, weight: &[f32], eps: f32) {
        let mut squares = 0.0;
        for &first in first_columns {
            squares += dot(&row[first..first + size], &row[first..first + size]);
        }
        let scale = 1.0 / (squares / (first_columns.len() * size) as f32 + eps).sqrt();
        for (segment, &first) in first_columns.iter().enumerate() {
            for (x, weight) in row[first..first + size].iter_mut().zip(weight_of(weight, segment, size)) {
                *x = *x * scale * weight;
            }
        }
    }
}

vectorised! {
    /// [`rms_row_gradient`] over segments of a row together; the gradient in `d` is replaced.
    fn rms_segments_gradient(
        x: &[f32], d: &mut [f32], first_columns: &[usize], size: usize, weight: &[f32], eps: f32,
    ) {
        let (mut squares, mut products) = (0.0, 0.0);
        for (segment, &first) in first_columns.iter().enumerate() {
            let (x, d) = (&x[first..first + size], &mut d[first..first + size]);
            for (d, weight) in d.iter_mut().zip(weight_of(weight, segment, size)) {
                *d *= weight;
            }
            squares += dot(x, x);
            products += dot(d, x);
        }
        let count = (first_columns.len() * size) as f32;
        let scale = 1.0 / (squares / count + eps).sqrt();
        let shared = scale * scale * products / count;
        for &first in first_columns {
            for (d, x) in d[first..first + size].iter_mut().zip(&x[first..first + size]) {
                *d = scale * (*d - x * shared);
            }
        }
    }
}
