//! [`linear`](super::linear()) on the processor for projections with a factor on each output: the products without bias, and
//! a pass over their rows that scales them and adds bias and residual.

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;

use super::{Again, Projected, cpu};
use crate::ops::cpu::autograd::{Kernel, apply, dims, f32s, from_f32, rows};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::pool;
use crate::ops::cpu::rowwise::map_rows;
use crate::ops::cpu::shared::SharedMut;

/// Columns whose sums over the tokens one task takes.
const COLUMNS: usize = 64;

/// See [`linear`](super::linear()).
pub fn linear(x: Tensor<2>, again: Option<Again>, group: &[Projected<'_>], residual: Option<Tensor<2>>) -> Tensor<2> {
    let products: Vec<_> =
        group.iter().map(|projected| Projected { bias: None, column_scale: None, ..projected.clone() }).collect();
    // The tape begins at the scales where it has not begun at `x`.
    let device =
        group.iter().find_map(|projected| projected.column_scale.as_ref()).map_or_else(|| x.device(), Tensor::device);
    let sums = cpu::linear(x, again, &products, None);
    let scales = group.iter().map(|Projected { weight, column_scale, .. }| {
        column_scale.clone().unwrap_or_else(|| Tensor::ones([1, weight.dims()[0]], (&device, DType::F32)))
    });
    let scales = Tensor::cat(scales.collect(), 1);
    let bias = group.iter().any(|projected| projected.bias.is_some()).then(|| {
        let zeros = |projected: &Projected<'_>| vec![0f32; projected.weight.dims()[0]];
        group.iter().flat_map(|projected| projected.bias.map_or_else(|| zeros(projected), <[f32]>::to_vec)).collect()
    });
    let kernel = ColumnScale { bias, has_residual: residual.is_some() };
    apply(kernel, [sums, scales].into_iter().chain(residual).collect())
}

/// `sums ⊙ scales + bias + residual`.
struct ColumnScale {
    bias: Option<Vec<f32>>,
    has_residual: bool,
}

/// Inputs: the sums `[tokens, width]`, the scales `[1, width]`, the residual if there is one.
impl Kernel for ColumnScale {
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<Self::Saved>) {
        let (sums, scales, residual) = (&inputs[0], &inputs[1], inputs.get(2));
        let [tokens, width] = dims(sums);
        let y = map_rows(sums.dtype(), tokens, width, |row, y, scratch| {
            rows(sums).read(row, 0, y);
            multiply(y, f32s(scales));
            if let Some(bias) = &self.bias {
                add(y, bias);
            }
            if let Some(residual) = residual {
                rows(residual).read(row, 0, scratch);
                add(y, scratch);
            }
        });
        (y, save.then(|| (sums.clone(), scales.clone())))
    }

    fn backward(&self, saved: Self::Saved, gradient: FlexTensor, wanted: &[bool]) -> Vec<Option<FlexTensor>> {
        let (sums, scales) = saved;
        let [tokens, width] = dims(&sums);
        let d_sums = map_rows(sums.dtype(), tokens, width, |row, out, _| {
            rows(&gradient).read(row, 0, out);
            multiply(out, f32s(&scales));
        });
        let d_scales = wanted[1].then(|| from_f32(sums_over_tokens(&gradient, &sums), 1, width));
        let residual = self.has_residual.then(|| wanted[2].then_some(gradient));
        [Some(d_sums), d_scales].into_iter().chain(residual).collect()
    }
}

/// `Σ_t left[t] ⊙ right[t]`, of each column in the order of the tokens.
fn sums_over_tokens(left: &FlexTensor, right: &FlexTensor) -> Vec<f32> {
    let [tokens, width] = dims(left);
    let mut sums = vec![0f32; width];
    let shared = SharedMut::new(&mut sums);
    pool::for_each(width.div_ceil(COLUMNS), |task| {
        let first = task * COLUMNS;
        let columns = COLUMNS.min(width - first);
        let (mut one, mut other) = ([0f32; COLUMNS], [0f32; COLUMNS]);
        // SAFETY: these columns belong to this task alone.
        let sums = unsafe { shared.slice(first, columns) };
        for token in 0..tokens {
            rows(left).read(token, first, &mut one[..columns]);
            rows(right).read(token, first, &mut other[..columns]);
            add_products(sums, &one[..columns], &other[..columns]);
        }
    });
    sums
}

vectorised! {
    fn multiply(values: &mut [f32], factors: &[f32]) {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
    }
}

vectorised! {
    fn add(sums: &mut [f32], values: &[f32]) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
}

vectorised! {
    fn add_products(sums: &mut [f32], left: &[f32], right: &[f32]) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
}
