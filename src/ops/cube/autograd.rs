//! The bridge between kernels for GPUs and Burn's autodiff graph.

use std::sync::Arc;

use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
    grads::Gradients,
    ops::{Backward, Ops},
};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::decode::decoded;
use super::nf4::DeviceNf4;
use super::product::{Side, product};
use crate::interrupt;

/// The backward pass of one call: from the gradient of the output to that of the input.
type BackwardPass = Box<dyn FnOnce(CubeTensor) -> CubeTensor + Send>;

/// A call on the tape; it holds a backward pass if the input is tracked.
struct Step(Option<BackwardPass>);

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Step(tracked)" } else { "Step(untracked)" })
    }
}

impl Backward<CubeBackend, 1> for Step {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        interrupt::check();
        let gradient = into_contiguous(grads.consume::<CubeBackend>(&ops.node));
        let [parent] = ops.parents;
        if let (Some(parent), Some(backward)) = (parent, self.0) {
            grads.register::<CubeBackend>(parent.id, backward(gradient));
        }
    }
}

/// Runs an op of one input with a hand-written backward pass, and records it on the tape if the input is on an autodiff
/// device. `forward` gets the input in row-major order, and gives the output with the backward pass.
pub fn apply<G>(x: Tensor<2>, forward: impl FnOnce(CubeTensor) -> (CubeTensor, G)) -> Tensor<2>
where
    G: FnOnce(CubeTensor) -> CubeTensor + Send + 'static,
{
    interrupt::check();
    if !x.is_autodiff() {
        return from_primitive(forward(primitive(x)).0);
    }
    let x = x.try_into_primitive::<Autodiff<CubeBackend>>().expect("these kernels run on CubeCL devices");
    let is_tracked = x.is_tracked();
    let (x, guard) = x.into_parts();
    let (y, backward) = forward(into_contiguous(x));
    let step = Step(is_tracked.then(|| -> BackwardPass { Box::new(backward) }));
    let y = step.prepare::<NoCheckpointing>([guard]).compute_bound().stateless(y);
    Tensor::from_primitive::<Autodiff<CubeBackend>>(y)
}

/// The buffer behind a tensor that no tape follows, in row-major order.
pub fn primitive<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    into_contiguous(tensor.try_into_primitive::<CubeBackend>().expect("these kernels run on CubeCL devices"))
}

/// A buffer as a tensor without autodiff.
pub fn from_primitive<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<CubeBackend>(tensor)
}

/// Room for an output on the device of `like`, in row-major order.
pub(super) fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::from(shape), dtype)
}

/// The two dimensions of a matrix.
pub(super) fn dims(tensor: &CubeTensor) -> [usize; 2] {
    let shape = tensor.meta.shape();
    [shape[0], shape[1]]
}

/// `x·Wᵀ` for `x` `[tokens, in]` on the weight's device: `[tokens, out]` in the number format of `x`. The tape keeps a handle of
/// the packed weight, and nothing of `x`.
///
/// In f32 a kernel decodes the weight tile by tile. In another format the device has matrix units, and Burn's products use
/// them; the weight is decoded before each.
pub fn times_transposed(x: Tensor<2>, weight: &Arc<DeviceNf4>) -> Tensor<2> {
    apply(x, |x| {
        let (weight, dtype) = (weight.clone(), x.dtype);
        let y = match dtype {
            DType::F32 => product(x, &weight, Side::Transposed),
            _ => primitive(from_primitive::<2>(x.clone()).matmul(decoded(&weight, &x, dtype).transpose())),
        };
        let backward = move |gradient: CubeTensor| match dtype {
            DType::F32 => product(gradient, &weight, Side::Weight),
            _ => primitive(from_primitive::<2>(gradient.clone()).matmul(decoded(&weight, &gradient, dtype))),
        };
        (y, backward)
    })
}

/// Rows `ids` of the weight, decoded: `[ids, in]`. They are its product with ones and zeros, which is exact.
pub fn rows(weight: &DeviceNf4, ids: &[u32]) -> Tensor<2> {
    let [out, _] = weight.dims();
    let mut chosen = vec![0f32; ids.len() * out];
    for (&id, chosen) in ids.iter().zip(chosen.chunks_exact_mut(out)) {
        chosen[id as usize] = 1.0;
    }
    let chosen = Tensor::<2>::from_data(TensorData::new(chosen, [ids.len(), out]), (weight.device(), DType::F32));
    from_primitive(product(primitive(chosen), weight, Side::Weight))
}
