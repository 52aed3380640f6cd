//! The definition of correct for [`swiglu`](super::swiglu()).

use burn::tensor::{Tensor, activation};

/// See [`swiglu`](super::swiglu()).
pub fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    let width = gate_up.dims()[1] / 2;
    let gate = gate_up.clone().narrow(1, 0, width);
    activation::silu(gate) * gate_up.narrow(1, width, width)
}
