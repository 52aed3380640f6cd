//! The bridge between kernels on plain buffers and Burn's autodiff graph.

use burn::backend::Flex;
use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use half::bf16;

use super::product::{Rows, Target};

/// An op with a hand-written backward, on `N` float inputs of two dimensions.
pub trait Kernel<const N: usize>: Clone + Send + Sync + std::fmt::Debug + 'static {
    /// What the backward needs.
    type Saved: Clone + Send + std::fmt::Debug + 'static;

    /// The output, and what the backward needs if `save`.
    fn forward(&self, inputs: [&FlexTensor; N], save: bool) -> (FlexTensor, Option<Self::Saved>);

    /// The gradient of each input that is `wanted`, from the output's gradient.
    fn backward(&self, saved: Self::Saved, gradient: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N];
}

#[derive(Debug)]
struct Step<K>(K);

impl<const N: usize, K: Kernel<N>> Backward<Flex, N> for Step<K> {
    type State = K::Saved;

    fn backward(self, ops: Ops<K::Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = contiguous(grads.consume::<Flex>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = self.0.backward(ops.state, gradient, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// Runs `kernel`, recorded on the tape if any input is on an autodiff device.
pub fn apply<const N: usize, K: Kernel<N>>(kernel: K, inputs: [Tensor<2>; N]) -> Tensor<2> {
    if inputs.iter().all(|input| !input.is_autodiff()) {
        let inputs = inputs.map(plain);
        return Tensor::from_primitive::<Flex>(kernel.forward(inputs.each_ref(), false).0);
    }
    let tracked = inputs.map(|input| {
        let input = if input.is_autodiff() { input } else { input.autodiff() };
        input.try_into_primitive::<Autodiff<Flex>>().expect("kernels run on processor tensors")
    });
    let primitives = tracked.each_ref().map(|input| contiguous(input.primitive().clone()));
    let guards = tracked.map(|input| input.into_parts().1);
    match Step(kernel.clone()).prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let (output, saved) = kernel.forward(primitives.each_ref(), true);
            let saved = saved.expect("a kernel that was asked to save does");
            Tensor::from_primitive::<Autodiff<Flex>>(prepared.finish(saved, output))
        }
        OpsKind::UnTracked(prepared) => {
            let (output, _) = kernel.forward(primitives.each_ref(), false);
            Tensor::from_primitive::<Autodiff<Flex>>(prepared.finish(output))
        }
    }
}

/// The buffer behind a processor tensor that no tape follows.
pub fn plain(tensor: Tensor<2>) -> FlexTensor {
    contiguous(tensor.try_into_primitive::<Flex>().expect("kernels run on processor tensors"))
}

fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The two dimensions of a tensor.
pub fn dims(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// The values as a matrix for a product.
pub fn rows(tensor: &FlexTensor) -> Rows<'_> {
    let stride = dims(tensor)[1];
    match tensor.dtype() {
        DType::BF16 => Rows::Bf16 { data: tensor.as_slice::<bf16>().expect("contiguous"), stride },
        _ => Rows::F32 { data: f32s(tensor), stride },
    }
}

/// The values of an f32 tensor.
pub fn f32s(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous f32 tensor")
}

/// A tensor `[rows, columns]` that takes over the buffer.
pub fn from_f32(values: Vec<f32>, rows: usize, columns: usize) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from([rows, columns])))
}

/// A tensor `[rows, columns]` that takes over the buffer.
pub fn from_bf16(values: Vec<bf16>, rows: usize, columns: usize) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from([rows, columns])))
}

/// An output that is being computed, in the number format of the activations: its memory is not cleared first.
pub enum Output {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Output {
    /// Room for `count` values of `dtype` (bf16, or else f32).
    pub fn new(dtype: DType, count: usize) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16(Vec::with_capacity(count)),
            _ => Self::F32(Vec::with_capacity(count)),
        }
    }

    /// The memory as the target of a product.
    pub fn target(&mut self, stride: usize) -> Target<'_> {
        match self {
            Self::F32(data) => Target::F32 { data: data.spare_capacity_mut(), stride },
            Self::Bf16(data) => Target::Bf16 { data: data.spare_capacity_mut(), stride },
        }
    }

    /// The finished tensor.
    ///
    /// # Safety
    /// `rows * columns` values, as many as there was room asked for, have been written.
    pub unsafe fn into_tensor(self, rows: usize, columns: usize) -> FlexTensor {
        unsafe fn filled<T>(mut values: Vec<T>, count: usize) -> Vec<T> {
            assert!(values.capacity() >= count);
            // SAFETY: the caller vouches.
            unsafe { values.set_len(count) };
            values
        }
        // SAFETY: the caller vouches.
        unsafe {
            match self {
                Self::F32(values) => from_f32(filled(values, rows * columns), rows, columns),
                Self::Bf16(values) => from_bf16(filled(values, rows * columns), rows, columns),
            }
        }
    }
}
