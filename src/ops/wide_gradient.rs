//! The gradient of the residual stream: f32 for every number format of the activations.
//!
//! The norms' kernels give it so, because every layer below adds to it (`ops/norm`). Burn adds the gradients of a tensor as they
//! come, and two of different formats end the process. So all other readers of the residual stream take it through
//! [`with_wide_gradient`].

use burn::tensor::{DType, Tensor};

/// The values of `x` in the number format `format`; the gradient that they hand on to `x` is f32, whatever the format of `x`.
///
/// # Shapes
/// - `x`, output: `[tokens, width]`
pub fn with_wide_gradient(x: Tensor<2>, format: DType) -> Tensor<2> {
    if x.dtype() == DType::F32 && format == DType::F32 {
        return x;
    }
    #[cfg(feature = "cpu")]
    if super::on_processor(&x) {
        return cpu::with_wide_gradient(x, format);
    }
    x.cast(format)
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::tensor::{DType, Tensor};
    use burn_flex::FlexTensor;

    use crate::ops::cpu::autograd::{Kernel, apply, dims, rows};
    use crate::ops::cpu::rowwise::map_rows;

    /// Values in this number format, with a gradient in f32.
    struct WideGradient(DType);

    pub fn with_wide_gradient(x: Tensor<2>, format: DType) -> Tensor<2> {
        apply(WideGradient(format), vec![x])
    }

    impl Kernel for WideGradient {
        type Saved = ();

        fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<()>) {
            (in_format(&inputs[0], self.0), save.then_some(()))
        }

        fn backward(&self, (): (), gradient: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
            vec![Some(in_format(&gradient, DType::F32))]
        }
    }

    fn in_format(x: &FlexTensor, format: DType) -> FlexTensor {
        if x.dtype() == format {
            return x.clone();
        }
        let ([tokens, width], source) = (dims(x), rows(x));
        map_rows(format, tokens, width, |row, out, _| source.read(row, 0, out))
    }
}
