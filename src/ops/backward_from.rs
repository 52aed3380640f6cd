//! A backward pass that starts at a tensor whose gradient is already known.

use burn::tensor::{Gradients, Tensor};

/// Runs the backward pass from `y` with `gradient` as its gradient: what `y.backward()` would do if `y` were a scalar and
/// `gradient` one. It continues a pass from a gradient that was computed elsewhere, and it weighs losses one by one.
///
/// # Shapes
/// - `y`: `[rows, columns]`, on an autodiff device
/// - `gradient`: `[rows, columns]`, off the tape
pub fn backward_from(y: Tensor<2>, gradient: Tensor<2>) -> Gradients {
    #[cfg(feature = "cpu")]
    if super::on_processor(&y) {
        return cpu::scalar_with_gradient(y, gradient).backward();
    }
    (y * gradient).sum().backward()
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::tensor::Tensor;
    use burn_flex::FlexTensor;

    use crate::ops::cpu::autograd::{Kernel, apply, from_f32, plain};

    /// A scalar whose backward pass hands the known gradient on, in its own number format and without a pass over it.
    struct KnownGradient(FlexTensor);

    /// `[1, 1]`; its value means nothing.
    pub fn scalar_with_gradient(y: Tensor<2>, gradient: Tensor<2>) -> Tensor<2> {
        apply(KnownGradient(plain(gradient)), vec![y])
    }

    impl Kernel for KnownGradient {
        type Saved = ();

        fn forward(&self, _: &[FlexTensor], save: bool) -> (FlexTensor, Option<()>) {
            (from_f32(vec![0.0], 1, 1), save.then_some(()))
        }

        fn backward(&self, (): (), _: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
            vec![Some(self.0.clone())]
        }
    }
}
