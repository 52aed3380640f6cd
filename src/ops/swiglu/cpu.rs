//! [`swiglu`](super::swiglu()) on the processor.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::ops::cpu::autograd::{Kernel, apply, dims, rows};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::math::sigmoid;
use crate::ops::cpu::rowwise::map_rows;

#[derive(Debug, Clone)]
struct SwiGlu;

/// See [`swiglu`](super::swiglu()).
pub fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    apply::<1, _>(SwiGlu, [gate_up])
}

impl Kernel<1> for SwiGlu {
    type Saved = FlexTensor;

    fn forward(&self, [gate_up]: [&FlexTensor; 1], save: bool) -> (FlexTensor, Option<FlexTensor>) {
        let [tokens, double] = dims(gate_up);
        let width = double / 2;
        let source = rows(gate_up);
        let y = map_rows(gate_up.dtype(), tokens, width, |row, y, up| {
            source.read(row, 0, y);
            source.read(row, width, up);
            forward_row(y, up);
        });
        (y, save.then(|| gate_up.clone()))
    }

    fn backward(&self, gate_up: FlexTensor, gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let [tokens, double] = dims(&gate_up);
        let width = double / 2;
        let (source, g_rows) = (rows(&gate_up), rows(&gradient));
        let d = map_rows(gate_up.dtype(), tokens, double, |row, d, scratch| {
            source.read(row, 0, d);
            let g = &mut scratch[..width];
            g_rows.read(row, 0, g);
            let (gate, up) = d.split_at_mut(width);
            backward_row(gate, up, g);
        });
        [Some(d)]
    }
}

vectorised! {
    /// `gate` becomes `silu(gate)·up`.
    fn forward_row(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate * sigmoid(*gate) * up;
        }
    }
}

vectorised! {
    /// `gate` and `up` become their gradients: `g·up·σ·(1 + gate·(1 − σ))` and `g·gate·σ`.
    fn backward_row(gate: &mut [f32], up: &mut [f32], g: &[f32]) {
        for ((gate, up), g) in gate.iter_mut().zip(up).zip(g) {
            let sigma = sigmoid(*gate);
            let silu = *gate * sigma;
            let d_gate = g * *up * (sigma + silu * (1.0 - sigma));
            *up = g * silu;
            *gate = d_gate;
        }
    }
}
