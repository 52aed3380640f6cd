//! The bridge between kernels on plain buffers and Burn's autodiff graph.

use std::mem::MaybeUninit;

use burn::backend::Flex;
use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
    grads::Gradients,
    ops::{Backward, NodeGuard, Ops},
};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use half::bf16;

use super::rows::{OutputBuffer, Rows, narrow_fresh};
use super::shared::SharedMut;
use crate::interrupt;

/// An op with a hand-written backward, on float inputs of two dimensions.
pub trait Kernel: Send + 'static {
    /// The values that the backward pass needs.
    type Saved: Send + 'static;

    /// The output, and the values that the backward pass needs if `save`.
    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<Self::Saved>);

    /// The gradient of each input, in order, from the gradient of the output. An input that is not `wanted` may get
    /// `None`.
    fn backward(&self, saved: Self::Saved, gradient: FlexTensor, wanted: &[bool]) -> Vec<Option<FlexTensor>>;
}

/// The backward pass of one call of a kernel.
type BackwardPass = Box<dyn FnOnce(FlexTensor, &[bool]) -> Vec<Option<FlexTensor>> + Send>;

/// A call of a kernel on the tape; it holds a backward pass if any input is tracked.
struct Step(Option<BackwardPass>);

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Step(tracked)" } else { "Step(untracked)" })
    }
}

impl<const N: usize> Backward<Flex, N> for Step {
    type State = ();

    fn backward(self, ops: Ops<(), N>, grads: &mut Gradients, _: &mut Checkpointer) {
        interrupt::check();
        let gradient = contiguous(grads.consume::<Flex>(&ops.node));
        let Some(backward) = self.0 else { return };
        let wanted = ops.parents.each_ref().map(Option::is_some);
        for (parent, gradient) in ops.parents.into_iter().zip(backward(gradient, &wanted)) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// Calls `record::<N>` for the number of inputs at hand: Burn fixes the number of an operation's parents at compile time.
macro_rules! record_counted {
    ($step:expr, $guards:expr, $output:expr, [$($count:literal)*]) => {
        match $guards.len() {
            $($count => record::<$count>($step, $guards, $output),)*
            count => panic!("a kernel on {count} inputs: autograd.rs lists the numbers that can be recorded"),
        }
    };
}

/// Runs `kernel`, recorded on the tape if any input is on an autodiff device.
///
/// # Panics
/// If there are more than 34 inputs and one of them is on an autodiff device.
pub fn apply<K: Kernel>(kernel: K, inputs: Vec<Tensor<2>>) -> Tensor<2> {
    interrupt::check();
    if inputs.iter().all(|input| !input.is_autodiff()) {
        let inputs: Vec<FlexTensor> = inputs.into_iter().map(plain).collect();
        return Tensor::from_primitive::<Flex>(kernel.forward(&inputs, false).0);
    }
    let (mut primitives, mut guards, mut is_tracked) = (Vec::new(), Vec::new(), false);
    for input in inputs {
        let input = if input.is_autodiff() { input } else { input.autodiff() };
        let input = input.try_into_primitive::<Autodiff<Flex>>().expect("kernels run on processor tensors");
        is_tracked |= input.is_tracked();
        let (primitive, guard) = input.into_parts();
        primitives.push(contiguous(primitive));
        guards.push(guard);
    }
    let (output, saved) = kernel.forward(&primitives, is_tracked);
    drop(primitives);
    let backward = saved
        .filter(|_| is_tracked)
        .map(|saved| -> BackwardPass { Box::new(move |gradient, wanted| kernel.backward(saved, gradient, wanted)) });
    assert_eq!(backward.is_some(), is_tracked, "a kernel that was asked to save does");
    record_counted!(Step(backward), guards, output, [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34
    ])
}

/// Puts a finished output on the tape, with the step that leads back from it to its `N` inputs.
fn record<const N: usize>(step: Step, guards: Vec<NodeGuard>, output: FlexTensor) -> Tensor<2> {
    let guards = <[NodeGuard; N]>::try_from(guards).expect("the caller counted the inputs");
    let output = step.prepare::<NoCheckpointing>(guards).compute_bound().stateless(output);
    Tensor::from_primitive::<Autodiff<Flex>>(output)
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
    /// Values in f32.
    F32(Vec<f32>),
    /// Values in bf16.
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
    pub fn target(&mut self, stride: usize) -> OutputBuffer<'_> {
        match self {
            Self::F32(data) => OutputBuffer::fresh_f32(data.spare_capacity_mut(), stride),
            Self::Bf16(data) => OutputBuffer::fresh_bf16(data.spare_capacity_mut(), stride),
        }
    }

    /// The memory, for tasks that each write a part of it.
    pub(crate) fn shared(&mut self) -> SharedOutput<'_> {
        match self {
            Self::F32(data) => SharedOutput::F32(SharedMut::new(data.spare_capacity_mut())),
            Self::Bf16(data) => SharedOutput::Bf16(SharedMut::new(data.spare_capacity_mut())),
        }
    }

    /// The finished tensor.
    ///
    /// # Safety
    /// `rows * columns` values, as many as there was room asked for, have been written.
    pub unsafe fn into_tensor(self, rows: usize, columns: usize) -> FlexTensor {
        /// # Safety
        /// The first `count` values have been written.
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

/// An [`Output`] that tasks share.
pub(crate) enum SharedOutput<'a> {
    F32(SharedMut<'a, MaybeUninit<f32>>),
    Bf16(SharedMut<'a, MaybeUninit<bf16>>),
}

impl SharedOutput<'_> {
    /// Writes the values from `at` on.
    ///
    /// # Panics
    /// If they do not lie inside.
    ///
    /// # Safety
    /// No other task writes there.
    pub unsafe fn write(&self, at: usize, values: &[f32]) {
        // SAFETY: as the caller vouches.
        unsafe {
            match self {
                Self::F32(out) => {
                    out.slice(at, values.len()).write_copy_of_slice(values);
                }
                Self::Bf16(out) => narrow_fresh(values, out.slice(at, values.len())),
            }
        }
    }
}
