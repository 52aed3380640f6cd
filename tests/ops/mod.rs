//! Every kernel against its reference: values and gradients, odd sizes, every instruction set of the machine.

pub mod attention;
mod cross_entropy;
mod decode;
mod linear;
mod pages;
mod row_by_row;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burnish::files::Bytes;
use burnish::ops::backward_from::backward_from;
use burnish::ops::cpu::isa::Isa;
use burnish::ops::cpu::matrix::{Matrix, Storage};
use burnish::ops::frozen::FrozenWeight;
use burnish::quant::float;

use crate::model::instruction_sets;

/// Reproducible values around zero.
pub fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn tensor(rows: usize, columns: usize, seed: u64) -> Tensor<2> {
    let data = TensorData::new(values(rows * columns, seed), [rows, columns]);
    Tensor::<2>::from_data(data, &Device::flex().autodiff())
}

fn weight(rows: usize, columns: usize, dtype: DType, seed: u64) -> FrozenWeight {
    let scale = 1.0 / (columns as f32).sqrt();
    let values: Vec<f32> = values(rows * columns, seed).iter().map(|value| value * scale).collect();
    let storage = match dtype {
        DType::BF16 => Storage::Bf16(Bytes::from(float::encode_bf16(&values))),
        _ => Storage::F32(Bytes::from(float::encode_f32(&values))),
    };
    FrozenWeight::from_matrix(Matrix::new(rows, columns, storage))
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().iter::<f32>().collect()
}

/// `‖a − b‖ / ‖b‖`.
pub fn relative(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (difference / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-30)) as f32
}

/// Runs `op` on leaves made of `inputs`, weighs its output, and returns the output and every leaf's gradient.
fn run(inputs: &[Tensor<2>], dtype: DType, op: &dyn Fn(Vec<Tensor<2>>) -> Tensor<2>) -> (Vec<f32>, Vec<Vec<f32>>) {
    // The first input is an activation, the others are adapter factors, which stay f32.
    let leaves: Vec<Tensor<2>> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let input = input.clone().inner();
            let input = if index == 0 { input.cast(dtype) } else { input };
            input.autodiff().require_grad()
        })
        .collect();
    let y = op(leaves.clone());
    let [rows, columns] = y.dims();
    let upstream = TensorData::new(values(rows * columns, 99), [rows, columns]);
    let upstream = Tensor::<2>::from_data(upstream, &Device::flex()).cast(y.dtype());
    let out = floats(y.clone().inner());
    let gradients = backward_from(y, upstream);
    (out, leaves.iter().map(|leaf| floats(leaf.grad(&gradients).expect("a gradient"))).collect())
}

/// Compares a kernel with its reference in f32 (1e-5) and in bf16 (2e-2, against the reference in f32).
fn compare(
    what: &str,
    inputs: &[Tensor<2>],
    kernel: &dyn Fn(Vec<Tensor<2>>, DType) -> Tensor<2>,
    reference: &dyn Fn(Vec<Tensor<2>>, DType) -> Tensor<2>,
) {
    for isa in instruction_sets() {
        isa.choose();
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
            let (y, gradients) = run(inputs, dtype, &|leaves| kernel(leaves, dtype));
            let (wanted, wanted_gradients) = run(inputs, DType::F32, &|leaves| reference(leaves, dtype));
            let error = relative(&y, &wanted);
            assert!(error <= tolerance, "{what} on {} in {dtype:?}: {error}", isa.name());
            for (index, (ours, theirs)) in gradients.iter().zip(&wanted_gradients).enumerate() {
                let error = relative(ours, theirs);
                assert!(error <= tolerance, "{what} on {} in {dtype:?}: gradient {index}: {error}", isa.name());
            }
        }
    }
    Isa::preferred().choose();
}
