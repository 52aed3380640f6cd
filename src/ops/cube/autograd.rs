//! Products by a packed weight as tensors, on Burn's tape with their hand-written backward.

use std::sync::Arc;

use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::tensor::{DType, Tensor, TensorData};
use burn_cubecl::CubeBackend;

use super::nf4::DeviceNf4;
use super::product::{Side, product};

/// `dx = g·W`. The tape keeps a handle of the packed weight, and nothing of `x`.
#[derive(Debug)]
struct InputGradient;

impl Backward<CubeBackend, 1> for InputGradient {
    type State = Arc<DeviceNf4>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<CubeBackend>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<CubeBackend>(parent.id, product(gradient, &ops.state, Side::Weight));
        }
    }
}

/// `x·Wᵀ` for `x` `[tokens, in]` on the weight's device: `[tokens, out]` in the number format of `x`. It is computed in
/// f32.
pub fn times_transposed(x: Tensor<2>, weight: &Arc<DeviceNf4>) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    if !x.is_autodiff() {
        return untracked(x, weight, Side::Transposed).cast(dtype);
    }
    let x = x.try_into_primitive::<Autodiff<CubeBackend>>().expect("the input is on the weight's device");
    let (x, guard) = x.into_parts();
    let y = match InputGradient.prepare::<NoCheckpointing>([guard]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(weight.clone(), product(x, weight, Side::Transposed)),
        OpsKind::UnTracked(prepared) => prepared.finish(product(x, weight, Side::Transposed)),
    };
    Tensor::<2>::from_primitive::<Autodiff<CubeBackend>>(y).cast(dtype)
}

/// Rows `ids` of the weight, decoded: `[ids, in]`. They are its product with ones and zeros, which is exact.
pub fn rows(weight: &DeviceNf4, ids: &[u32]) -> Tensor<2> {
    let [out, _] = weight.dims();
    let mut chosen = vec![0f32; ids.len() * out];
    for (&id, chosen) in ids.iter().zip(chosen.chunks_exact_mut(out)) {
        chosen[id as usize] = 1.0;
    }
    let chosen = Tensor::from_data(TensorData::new(chosen, [ids.len(), out]), (weight.device(), DType::F32));
    untracked(chosen, weight, Side::Weight)
}

fn untracked(x: Tensor<2>, weight: &DeviceNf4, side: Side) -> Tensor<2> {
    let x = x.try_into_primitive::<CubeBackend>().expect("the input is on the weight's device");
    Tensor::<2>::from_primitive::<CubeBackend>(product(x, weight, side))
}
