//! [`rms_norm`](super::rms_norm) on the processor, a row at a time.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::ops::cpu::autograd::{Kernel, apply, dims, from_f32, rows};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::math::dot;
use crate::ops::cpu::rowwise::{for_each_row, map_rows};

#[derive(Debug, Clone)]
struct RmsNorm {
    weight: Arc<[f32]>,
    eps: f32,
}

/// See [`rms_norm`](super::rms_norm).
pub fn rms_norm(x: Tensor<2>, weight: &[f32], eps: f64) -> Tensor<2> {
    apply::<1, _>(RmsNorm { weight: weight.into(), eps: eps as f32 }, [x])
}

impl Kernel<1> for RmsNorm {
    type Saved = FlexTensor;

    fn forward(&self, [x]: [&FlexTensor; 1], save: bool) -> (FlexTensor, Option<FlexTensor>) {
        let [tokens, width] = dims(x);
        let source = rows(x);
        let y = map_rows(x.dtype(), tokens, width, |row, y, scratch| {
            source.read(row, 0, scratch);
            forward_row(scratch, &self.weight, self.eps, y);
        });
        (y, save.then(|| x.clone()))
    }

    fn backward(&self, x: FlexTensor, gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let [tokens, width] = dims(&x);
        let (x_rows, g_rows) = (rows(&x), rows(&gradient));
        // The residual stream's gradient stays in f32: it is what every layer below adds to.
        let mut dx = vec![0f32; tokens * width];
        for_each_row(&mut dx, width, 2 * width, |row, dx, scratch| {
            let (x, g) = scratch.split_at_mut(width);
            x_rows.read(row, 0, x);
            g_rows.read(row, 0, g);
            backward_row(x, g, &self.weight, self.eps, dx);
        });
        [Some(from_f32(dx, tokens, width))]
    }
}

vectorised! {
    fn forward_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

vectorised! {
    /// `dx = r·(g·w − x·r²·mean(g·w·x))` with `r = 1/sqrt(mean(x²) + eps)`.
    fn backward_row(x: &[f32], g: &mut [f32], weight: &[f32], eps: f32, dx: &mut [f32]) {
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
