//! The activations on the processor, a row at a time.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::Activation;
use crate::ops::cpu::autograd::{Kernel, apply, dims, rows};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::math::{normal_density, normal_share, sigmoid};
use crate::ops::cpu::rowwise::map_rows;

/// An activation `x · c(x)`, for loops that vectorise.
trait Curve {
    /// `c(x)`.
    fn share(x: f32) -> f32;
    /// `x · c'(x)`, given `share = c(x)` and `value = x · c(x)`.
    fn slope(x: f32, share: f32, value: f32) -> f32;
}

struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn share(x: f32) -> f32 {
        sigmoid(x)
    }

    #[inline(always)]
    fn slope(_: f32, share: f32, value: f32) -> f32 {
        value * (1.0 - share)
    }
}

struct Gelu;

impl Curve for Gelu {
    #[inline(always)]
    fn share(x: f32) -> f32 {
        normal_share(x)
    }

    #[inline(always)]
    fn slope(x: f32, _: f32, _: f32) -> f32 {
        x * normal_density(x)
    }
}

/// `(1 + tanh(u)) / 2 = σ(2u)`.
struct GeluTanh;

/// `2·√(2/π)`.
const TWICE_ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
const CUBIC: f32 = 0.044_715;

impl Curve for GeluTanh {
    #[inline(always)]
    fn share(x: f32) -> f32 {
        sigmoid(TWICE_ROOT * (x + CUBIC * x * x * x))
    }

    #[inline(always)]
    fn slope(x: f32, share: f32, value: f32) -> f32 {
        value * (1.0 - share) * TWICE_ROOT * (1.0 + 3.0 * CUBIC * x * x)
    }
}

/// [`gated`](super::gated) of one row, in the place of the gate.
pub fn gate_row(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => gated_row::<Silu>(gate, up),
        Activation::Gelu => gated_row::<Gelu>(gate, up),
        Activation::GeluTanh => gated_row::<GeluTanh>(gate, up),
    }
}

/// [`activate`](super::activate) of one row, in place.
pub fn activate_row(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Silu => activated_row::<Silu>(x),
        Activation::Gelu => activated_row::<Gelu>(x),
        Activation::GeluTanh => activated_row::<GeluTanh>(x),
    }
}

struct Gated(Activation);

/// See [`gated`](super::gated).
pub fn gated(gate_up: Tensor<2>, activation: Activation) -> Tensor<2> {
    apply(Gated(activation), vec![gate_up])
}

impl Kernel for Gated {
    type Saved = FlexTensor;

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<FlexTensor>) {
        let gate_up = &inputs[0];
        let [tokens, double] = dims(gate_up);
        let width = double / 2;
        let source = rows(gate_up);
        let y = map_rows(gate_up.dtype(), tokens, width, |row, y, up| {
            source.read(row, 0, y);
            source.read(row, width, up);
            gate_row(self.0, y, up);
        });
        (y, save.then(|| gate_up.clone()))
    }

    fn backward(&self, gate_up: FlexTensor, gradient: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        let [tokens, double] = dims(&gate_up);
        let width = double / 2;
        let (source, g_rows) = (rows(&gate_up), rows(&gradient));
        let backward = match self.0 {
            Activation::Silu => gated_row_gradient::<Silu>,
            Activation::Gelu => gated_row_gradient::<Gelu>,
            Activation::GeluTanh => gated_row_gradient::<GeluTanh>,
        };
        let d = map_rows(gate_up.dtype(), tokens, double, |row, d, scratch| {
            source.read(row, 0, d);
            let g = &mut scratch[..width];
            g_rows.read(row, 0, g);
            let (gate, up) = d.split_at_mut(width);
            backward(gate, up, g);
        });
        vec![Some(d)]
    }
}

struct Activated(Activation);

/// See [`activate`](super::activate).
pub fn activate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    apply(Activated(activation), vec![x])
}

impl Kernel for Activated {
    type Saved = FlexTensor;

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<FlexTensor>) {
        let x = &inputs[0];
        let [tokens, width] = dims(x);
        let source = rows(x);
        let y = map_rows(x.dtype(), tokens, width, |row, y, _| {
            source.read(row, 0, y);
            activate_row(self.0, y);
        });
        (y, save.then(|| x.clone()))
    }

    fn backward(&self, x: FlexTensor, gradient: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        let [tokens, width] = dims(&x);
        let (source, g_rows) = (rows(&x), rows(&gradient));
        let backward = match self.0 {
            Activation::Silu => activated_row_gradient::<Silu>,
            Activation::Gelu => activated_row_gradient::<Gelu>,
            Activation::GeluTanh => activated_row_gradient::<GeluTanh>,
        };
        let d = map_rows(x.dtype(), tokens, width, |row, d, g| {
            source.read(row, 0, d);
            g_rows.read(row, 0, g);
            backward(d, g);
        });
        vec![Some(d)]
    }
}

vectorised! {
    /// `gate` becomes `gate·c·up`.
    fn gated_row<C: Curve>(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate * C::share(*gate) * up;
        }
    }
}

vectorised! {
    /// `gate` and `up` become their gradients: `g·up·(c + gate·c')` and `g·gate·c`.
    fn gated_row_gradient<C: Curve>(gate: &mut [f32], up: &mut [f32], g: &[f32]) {
        for ((gate, up), g) in gate.iter_mut().zip(up).zip(g) {
            let share = C::share(*gate);
            let value = *gate * share;
            let d_gate = g * *up * (share + C::slope(*gate, share, value));
            *up = g * value;
            *gate = d_gate;
        }
    }
}

vectorised! {
    fn activated_row<C: Curve>(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x *= C::share(*x);
        }
    }
}

vectorised! {
    /// `x` becomes its gradient: `g·(c + x·c')`.
    fn activated_row_gradient<C: Curve>(x: &mut [f32], g: &[f32]) {
        for (x, g) in x.iter_mut().zip(g) {
            let share = C::share(*x);
            *x = g * (share + C::slope(*x, share, *x * share));
        }
    }
}
