//! The definition of correct for the activations, in plain tensor code that Burn differentiates.

use burn::tensor::{DType, Tensor, activation};

use super::Activation;

/// See [`gated`](super::gated).
pub fn gated(gate_up: Tensor<2>, activation: Activation) -> Tensor<2> {
    let width = gate_up.dims()[1] / 2;
    let gate = gate_up.clone().narrow(1, 0, width);
    activate(gate, activation) * gate_up.narrow(1, width, width)
}

/// See [`activate`](super::activate).
pub fn activate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    if activation == Activation::Silu {
        return activation::silu(x);
    }
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let shared = match activation {
        Activation::Silu => activation::sigmoid(x.clone()),
        Activation::Gelu => x.clone().div_scalar(std::f64::consts::SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5),
        Activation::GeluTanh => {
            let cubed = x.clone() * x.clone() * x.clone();
            let inner = (x.clone() + cubed.mul_scalar(0.044_715)).mul_scalar((2.0 / std::f64::consts::PI).sqrt());
            inner.tanh().add_scalar(1.0).mul_scalar(0.5)
        }
    };
    (x * shared).cast(dtype)
}
