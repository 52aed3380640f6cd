//! Every kernel against its reference: values and gradients, odd sizes, every instruction set of the machine.

use burn::tensor::{DType, Device, Tensor, TensorData};
use burnish::files::Bytes;
use burnish::ops::attention::{self, Geometry, Rope};
use burnish::ops::cpu::isa::Isa;
use burnish::ops::cpu::matrix::{Matrix, Storage};
use burnish::ops::cpu::pool;
use burnish::ops::cross_entropy;
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{self, Dropout, LowRankPair, Projected};
use burnish::ops::norm;
use burnish::ops::swiglu;
use burnish::quant::float;

use crate::model::{instruction_sets, turn};

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
fn relative(a: &[f32], b: &[f32]) -> f32 {
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
    let gradients = burnish::ops::inject::inject(y, upstream).backward();
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
    Isa::best().choose();
}

#[test]
fn linear_with_and_without_low_rank_pairs_bias_residual_and_dropout() {
    let _turn = turn();
    // (tokens, in, outs, rank)
    for (tokens, input, outputs, rank) in
        [(5, 7, vec![3], 1), (37, 64, vec![96, 33], 8), (130, 65, vec![40, 40, 31], 5), (3, 50, vec![70], 4)]
    {
        let inputs: Vec<Tensor<2>> = std::iter::once(tensor(tokens, input, 1))
            .chain(outputs.iter().enumerate().flat_map(|(index, &output)| {
                [tensor(rank, input, 10 + index as u64), tensor(output, rank, 20 + index as u64)]
            }))
            .collect();
        for probability in [None, Some(0.4)] {
            let op = |leaves: Vec<Tensor<2>>, dtype: DType, is_kernel: bool| {
                let weights: Vec<FrozenWeight> =
                    outputs.iter().map(|&out| weight(out, input, dtype, out as u64)).collect();
                let biases: Vec<Vec<f32>> = outputs.iter().map(|&out| values(out, 5)).collect();
                let group: Vec<Projected<'_>> = (0..outputs.len())
                    .map(|index| Projected {
                        weight: &weights[index],
                        bias: (index != 1).then_some(biases[index].as_slice()),
                        low_rank: Some(LowRankPair {
                            a: leaves[1 + 2 * index].clone(),
                            b: leaves[2 + 2 * index].clone(),
                            scale: 1.5,
                            dropout: probability.map(|probability| Dropout { probability, seed: 3 + index as u64 }),
                        }),
                    })
                    .collect();
                let width: usize = outputs.iter().sum();
                let residual = tensor(tokens, width, 77).inner().cast(leaves[0].dtype());
                let x = leaves[0].clone();
                if is_kernel {
                    linear::linear(x, &group, Some(residual))
                } else {
                    linear::reference::linear(x, &group, Some(residual))
                }
            };
            let what = format!("linear {tokens}x{input}x{outputs:?} dropout {probability:?}");
            compare(&what, &inputs, &|leaves, dtype| op(leaves, dtype, true), &|leaves, dtype| {
                op(leaves, dtype, false)
            });
        }
    }
}

#[test]
fn rms_norm_and_swiglu() {
    let _turn = turn();
    for (tokens, width) in [(1, 3), (3, 5), (70, 66), (33, 256)] {
        let weights = values(width, 4);
        let inputs = [tensor(tokens, width, 2).mul_scalar(3.0)];
        compare(
            &format!("rms_norm {tokens}x{width}"),
            &inputs,
            &|leaves, _| norm::rms_norm(leaves[0].clone(), &weights, 1e-5),
            &|leaves, _| norm::reference::rms_norm(leaves[0].clone(), &weights, 1e-5),
        );
        let inputs = [tensor(tokens, 2 * width, 3).mul_scalar(4.0)];
        compare(
            &format!("swiglu {tokens}x{width}"),
            &inputs,
            &|leaves, _| swiglu::swiglu(leaves[0].clone()),
            &|leaves, _| swiglu::reference::swiglu(leaves[0].clone()),
        );
    }
}

#[test]
fn attention_over_ragged_sequences_grouped_heads_and_windows() {
    let _turn = turn();
    for (lengths, heads, kv_heads, head_dim, window) in [
        (vec![1usize], 1, 1, 2, None),
        (vec![5, 1, 33], 4, 2, 16, None),
        (vec![100, 131], 3, 1, 64, None),
        (vec![70, 20], 2, 2, 10, Some(7)),
        (vec![200], 2, 1, 40, Some(64)),
    ] {
        let frequencies = (0..head_dim / 2).map(|i| 1.0 / 100f32.powf(2.0 * i as f32 / head_dim as f32)).collect();
        let geometry =
            Geometry { heads, kv_heads, head_dim, window, rope: std::sync::Arc::new(Rope::new(frequencies)) };
        let inputs = [tensor(lengths.iter().sum(), geometry.qkv_width(), 8).mul_scalar(2.0)];
        compare(
            &format!("attention {lengths:?} {heads}/{kv_heads}x{head_dim} window {window:?}"),
            &inputs,
            &|leaves, _| attention::attention(leaves[0].clone(), &lengths, &geometry),
            &|leaves, _| attention::reference::attention(leaves[0].clone(), &lengths, &geometry),
        );
    }
}

#[test]
fn cross_entropy_with_and_without_a_pair_on_the_head() {
    let _turn = turn();
    for (tokens, width, vocabulary, rank) in [(9, 12, 17, 3), (40, 64, 331, 4)] {
        let targets: Vec<(u32, u32)> =
            (0..tokens as u32).filter(|row| row % 3 != 1).map(|row| (row, row * 7 % vocabulary as u32)).collect();
        let inputs = [tensor(tokens, width, 6), tensor(rank, width, 7), tensor(vocabulary, rank, 8)];
        for with_pair in [true, false] {
            let op = |leaves: Vec<Tensor<2>>, dtype: DType, is_kernel: bool| {
                let weight = weight(vocabulary, width, dtype, 9);
                let pair = LowRankPair { a: leaves[1].clone(), b: leaves[2].clone(), scale: 0.7, dropout: None };
                let head = Projected { weight: &weight, bias: None, low_rank: with_pair.then_some(pair) };
                if is_kernel {
                    cross_entropy::cross_entropy(leaves[0].clone(), &head, &targets)
                } else {
                    cross_entropy::reference::cross_entropy(leaves[0].clone(), &head, &targets)
                }
            };
            let used = if with_pair { &inputs[..] } else { &inputs[..1] };
            let pad = |mut leaves: Vec<Tensor<2>>| {
                leaves.extend(inputs[leaves.len()..].iter().cloned());
                leaves
            };
            compare(
                &format!("cross-entropy {tokens}x{width}x{vocabulary} pair {with_pair}"),
                used,
                &|leaves, dtype| op(pad(leaves), dtype, true),
                &|leaves, dtype| op(pad(leaves), dtype, false),
            );
        }
    }
}

#[test]
fn a_long_backward_product_is_the_same_with_any_number_of_threads() {
    let _turn = turn();
    let inputs = [tensor(700, 96, 1), tensor(8, 96, 2), tensor(200, 8, 3)];
    let in_threads = |threads: usize| {
        pool::with_threads(threads, || {
            run(&inputs, DType::BF16, &|leaves| {
                let weight = weight(200, 96, DType::BF16, 4);
                let (a, b) = (leaves[1].clone(), leaves[2].clone());
                let pair = LowRankPair { a, b, scale: 1.0, dropout: None };
                let group = [Projected { weight: &weight, bias: None, low_rank: Some(pair) }];
                linear::linear(leaves[0].clone(), &group, None)
            })
        })
    };
    let one = in_threads(1);
    for threads in [2, 3, 7] {
        assert_eq!(in_threads(threads), one, "{threads} threads");
    }
}
