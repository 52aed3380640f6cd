//! Every kernel against its reference: values and gradients, odd sizes, every instruction set of the machine.

use burn::tensor::{DType, Device, Tensor, TensorData};
use burnish::files::Bytes;
use burnish::ops::activation::{self, Activation};
use burnish::ops::attention::{self, Cache, Geometry, QkvLayout, Rope};
use burnish::ops::backward_from::backward_from;
use burnish::ops::cpu::isa::Isa;
use burnish::ops::cpu::matrix::{Matrix, Storage};
use burnish::ops::cpu::pool;
use burnish::ops::cross_entropy;
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{self, Dropout, LowRankPair, Projected};
use burnish::ops::norm::{self, QkNorm, Span};
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
fn norms_of_odd_widths() {
    let _turn = turn();
    for (tokens, width) in [(1, 3), (3, 5), (70, 66), (33, 256)] {
        let (weights, biases) = (values(width, 4), values(width, 5));
        let inputs = [tensor(tokens, width, 2).mul_scalar(3.0).add_scalar(0.5)];
        compare(
            &format!("rms_norm {tokens}x{width}"),
            &inputs,
            &|leaves, _| norm::rms_norm(leaves[0].clone(), &weights, 1e-5),
            &|leaves, _| norm::reference::rms_norm(leaves[0].clone(), &weights, 1e-5),
        );
        for bias in [None, Some(biases.as_slice())] {
            compare(
                &format!("layer_norm {tokens}x{width} bias {}", bias.is_some()),
                &inputs,
                &|leaves, _| norm::layer_norm(leaves[0].clone(), &weights, bias, 1e-5),
                &|leaves, _| norm::reference::layer_norm(leaves[0].clone(), &weights, bias, 1e-5),
            );
        }
    }
}

#[test]
fn norms_of_queries_and_keys_by_head_and_over_all_heads() {
    let _turn = turn();
    for (tokens, heads, kv_heads, head_dim, layout) in [
        (5, 4, 2, 16, QkvLayout::SideBySide),
        (33, 3, 1, 40, QkvLayout::SideBySide),
        (2, 2, 2, 6, QkvLayout::ByHead),
        (40, 3, 3, 64, QkvLayout::ByHead),
    ] {
        let geometry = Geometry { layout, ..Geometry::new(heads, kv_heads, head_dim) };
        let inputs = [tensor(tokens, geometry.qkv_width(), 2).mul_scalar(3.0)];
        for (span, q, k) in [(Span::PerHead, 1, 1), (Span::AllHeads, heads, kv_heads)] {
            let norm = QkNorm { q: values(q * head_dim, 6), k: values(k * head_dim, 7), eps: 1e-5, span };
            compare(
                &format!("qk_norm {tokens} tokens, {heads}/{kv_heads}x{head_dim} {layout:?} {span:?}"),
                &inputs,
                &|leaves, _| norm::qk_norm(leaves[0].clone(), &norm, &geometry),
                &|leaves, _| norm::reference::qk_norm(leaves[0].clone(), &norm, &geometry),
            );
        }
    }
}

#[test]
fn every_activation_by_itself_and_as_a_gate() {
    let _turn = turn();
    for function in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        for (tokens, width) in [(1, 3), (3, 5), (70, 66), (33, 256)] {
            let inputs = [tensor(tokens, 2 * width, 3).mul_scalar(4.0)];
            compare(
                &format!("gated {function:?} {tokens}x{width}"),
                &inputs,
                &|leaves, _| activation::gated(leaves[0].clone(), function),
                &|leaves, _| activation::reference::gated(leaves[0].clone(), function),
            );
            compare(
                &format!("{function:?} {tokens}x{}", 2 * width),
                &inputs,
                &|leaves, _| activation::activate(leaves[0].clone(), function),
                &|leaves, _| activation::reference::activate(leaves[0].clone(), function),
            );
        }
    }
}

/// Frequencies of a rotation of the first `2 · half` values of each head.
fn frequencies(half: usize, base: f32) -> Vec<f32> {
    (0..half).map(|i| 1.0 / base.powf(i as f32 / half as f32)).collect()
}

/// A rotation with a factor, and other frequencies for sequences longer than 90.
fn rope(half: usize) -> Rope {
    Rope::new(frequencies(half, 100.0)).with_attention_factor(1.25).with_long_context(90, frequencies(half, 700.0))
}

/// Shapes of attention with everything that one may have: `(lengths, geometry)`.
fn attention_shapes() -> Vec<(Vec<usize>, Geometry)> {
    let geometry = |heads, kv_heads, head_dim, half| Geometry {
        rope: (half > 0).then(|| std::sync::Arc::new(rope(half))),
        ..Geometry::new(heads, kv_heads, head_dim)
    };
    vec![
        (vec![1], geometry(1, 1, 2, 1)),
        (vec![5, 1, 33], geometry(4, 2, 16, 8)),
        // Of the two sequences one is longer than the context that the rotation was made for.
        (vec![100, 31], geometry(3, 1, 64, 32)),
        (vec![70, 20], Geometry { window: Some(7), ..geometry(2, 2, 10, 5) }),
        (vec![200], Geometry { window: Some(64), ..geometry(2, 1, 40, 20) }),
        // Without rotation; with a rotation of a quarter of each head.
        (vec![40, 7], geometry(2, 1, 24, 0)),
        (vec![40, 95], geometry(2, 2, 32, 4)),
        (vec![77, 3], Geometry { layout: QkvLayout::ByHead, ..geometry(3, 3, 20, 3) }),
        (vec![35], Geometry { layout: QkvLayout::ByHead, ..geometry(2, 2, 16, 0) }),
        (vec![110, 2], Geometry { softcap: Some(1.5), scale: 0.4, ..geometry(4, 2, 16, 8) }),
        (vec![60], Geometry { softcap: Some(3.0), window: Some(40), scale: 0.7, ..geometry(2, 1, 34, 17) }),
    ]
}

#[test]
fn attention_over_ragged_sequences_of_every_shape() {
    let _turn = turn();
    for (lengths, geometry) in attention_shapes() {
        let inputs = [tensor(lengths.iter().sum(), geometry.qkv_width(), 8).mul_scalar(2.0)];
        compare(
            &format!("attention {lengths:?} {geometry:?}"),
            &inputs,
            &|leaves, _| attention::attention(leaves[0].clone(), &lengths, &geometry),
            &|leaves, _| attention::reference::attention(leaves[0].clone(), &lengths, &geometry),
        );
    }
}

#[test]
fn attention_with_a_cache_is_attention_over_the_whole_sequence() {
    let _turn = turn();
    for (lengths, mut geometry) in attention_shapes() {
        // What the rotation changes to at its original context is another test.
        geometry.rope = geometry.rope.map(|rope| Rope::new(frequencies(rope.half(), 100.0)).into());
        let total: usize = lengths.iter().sum();
        let qkv = tensor(total, geometry.qkv_width(), 8).mul_scalar(2.0).inner();
        let expected = floats(attention::reference::attention(qkv.clone(), &lengths, &geometry));
        for isa in instruction_sets() {
            isa.choose();
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
                for is_kernel in [true, false] {
                    let ours = in_steps(qkv.clone().cast(dtype), &lengths, &geometry, is_kernel);
                    let error = relative(&ours, &expected);
                    let what = format!("{lengths:?} {geometry:?} kernel {is_kernel} on {} in {dtype:?}", isa.name());
                    assert!(error <= tolerance, "{what}: {error}");
                }
            }
        }
    }
    Isa::best().choose();
}

/// Attention through caches: a first piece of every sequence together, then pieces of other sizes, in the rows' order.
fn in_steps(qkv: Tensor<2>, lengths: &[usize], geometry: &Geometry, is_kernel: bool) -> Vec<f32> {
    let width = geometry.heads * geometry.head_dim;
    let mut caches = vec![Cache::default(); lengths.len()];
    let mut done = vec![0; lengths.len()];
    let mut out = vec![Vec::new(); lengths.len()];
    let starts: Vec<usize> = (0..lengths.len()).map(|index| lengths[..index].iter().sum()).collect();
    for step in 0.. {
        let wanted = |index: usize| if step == 0 { lengths[index] * 2 / 3 } else { 1 + 6 * (step % 2) };
        let pieces: Vec<(usize, usize)> = (0..lengths.len())
            .map(|index| (index, wanted(index).max(1).min(lengths[index] - done[index])))
            .filter(|&(_, count)| count > 0)
            .collect();
        if pieces.is_empty() {
            break;
        }
        let rows = pieces.iter().map(|&(index, count)| qkv.clone().narrow(0, starts[index] + done[index], count));
        let rows = Tensor::cat(rows.collect(), 0);
        let counts: Vec<usize> = pieces.iter().map(|&(_, count)| count).collect();
        let mut taking: Vec<&mut Cache> = caches
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| pieces.iter().any(|(other, _)| other == index))
            .map(|(_, cache)| cache)
            .collect();
        let y = if is_kernel {
            attention::cached_attention(rows, &counts, &mut taking, geometry)
        } else {
            attention::reference::cached_attention(rows, &counts, &mut taking, geometry)
        };
        let y = floats(y);
        let mut row = 0;
        for &(index, count) in &pieces {
            out[index].extend_from_slice(&y[row * width..(row + count) * width]);
            row += count;
            done[index] += count;
            assert_eq!(caches[index].length(), done[index]);
        }
    }
    out.concat()
}

#[test]
fn a_cached_sequence_that_outgrows_its_context_has_the_keys_of_a_long_one() {
    let _turn = turn();
    let geometry = Geometry { rope: Some(std::sync::Arc::new(rope(6))), ..Geometry::new(2, 1, 16) };
    let (short, long) = (88, 93);
    let qkv = tensor(long, geometry.qkv_width(), 8).inner();
    let width = geometry.heads * geometry.head_dim;
    let expected = floats(attention::reference::attention(qkv.clone(), &[long], &geometry));
    for cached_attention in [attention::cached_attention, attention::reference::cached_attention] {
        let mut cache = Cache::default();
        cached_attention(qkv.clone().narrow(0, 0, short), &[short], &mut [&mut cache], &geometry);
        let y =
            cached_attention(qkv.clone().narrow(0, short, long - short), &[long - short], &mut [&mut cache], &geometry);
        let error = relative(&floats(y), &expected[short * width..]);
        assert!(error <= 1e-5, "{error}");
    }
    let rope = geometry.rope.as_ref().expect("a rotation");
    assert!(rope.switches(short, long) && !rope.switches(0, long) && !rope.switches(91, long));
}

#[test]
fn cross_entropy_of_every_kind_of_head() {
    let _turn = turn();
    for (tokens, width, vocabulary, rank) in [(9, 12, 17, 3), (40, 64, 331, 4)] {
        let targets: Vec<(u32, u32)> =
            (0..tokens as u32).filter(|row| row % 3 != 1).map(|row| (row, row * 7 % vocabulary as u32)).collect();
        let biases = values(vocabulary, 11);
        let inputs = [tensor(tokens, width, 6), tensor(rank, width, 7), tensor(vocabulary, rank, 8)];
        let dropout = Some(Dropout { probability: 0.4, seed: 5 });
        for (pair, softcap, bias) in [
            (Some(None), None, None),
            (None, None, Some(biases.as_slice())),
            (Some(dropout), None, None),
            (None, Some(0.8), None),
            (Some(dropout), Some(1.5), Some(biases.as_slice())),
        ] {
            let op = |leaves: Vec<Tensor<2>>, dtype: DType, is_kernel: bool| {
                let weight = weight(vocabulary, width, dtype, 9);
                let low_rank = pair.map(|dropout| {
                    let (a, b) = (leaves[1].clone(), leaves[2].clone());
                    LowRankPair { a, b, scale: 0.7, dropout }
                });
                let head = Projected { weight: &weight, bias, low_rank };
                if is_kernel {
                    cross_entropy::cross_entropy(leaves[0].clone(), &head, &targets, softcap)
                } else {
                    cross_entropy::reference::cross_entropy(leaves[0].clone(), &head, &targets, softcap)
                }
            };
            let used = if pair.is_some() { &inputs[..] } else { &inputs[..1] };
            compare(
                &format!("cross-entropy {tokens}x{width}x{vocabulary} pair {pair:?} cap {softcap:?}"),
                used,
                &|leaves, dtype| op(leaves, dtype, true),
                &|leaves, dtype| op(leaves, dtype, false),
            );
            let leaves: Vec<Tensor<2>> = used.iter().map(|input| input.clone().inner()).collect();
            let weight = weight(vocabulary, width, DType::F32, 9);
            let low_rank =
                pair.map(|dropout| LowRankPair { a: leaves[1].clone(), b: leaves[2].clone(), scale: 0.7, dropout });
            let head = Projected { weight: &weight, bias, low_rank };
            let alone = cross_entropy::losses(leaves[0].clone(), &head, &targets, softcap);
            assert_eq!(alone, floats(op(leaves, DType::F32, true)));
        }
    }
}

/// The output of a projection and of a head with this pair, by kernel and by reference.
fn outputs_with(pair: &LowRankPair, x: &Tensor<2>, weight: &FrozenWeight) -> [Vec<f32>; 4] {
    let projected = || Projected { weight, bias: None, low_rank: Some(pair.clone()) };
    let targets: Vec<(u32, u32)> = (0..x.dims()[0] as u32).map(|row| (row, row * 5 % 13)).collect();
    [
        floats(linear::linear(x.clone(), &[projected()], None)),
        floats(linear::reference::linear(x.clone(), &[projected()], None)),
        floats(cross_entropy::cross_entropy(x.clone(), &projected(), &targets, None)),
        floats(cross_entropy::reference::cross_entropy(x.clone(), &projected(), &targets, None)),
    ]
}

#[test]
fn every_field_of_a_low_rank_pair_changes_the_result_of_every_op() {
    let _turn = turn();
    let (x, weight) = (tensor(6, 24, 1).inner(), weight(13, 24, DType::F32, 2));
    let (a, b) = (tensor(4, 24, 3).inner(), tensor(13, 4, 4).inner());
    let dropout = |probability, seed| Some(Dropout { probability, seed });
    let pair = LowRankPair { a: a.clone(), b: b.clone(), scale: 0.5, dropout: dropout(0.5, 1) };
    // Every field by name: a new one does not compile until it stands here.
    let LowRankPair { a: _, b: _, scale: _, dropout: _ } = &pair;
    let changed = [
        ("a", LowRankPair { a: a.mul_scalar(2.0), ..pair.clone() }),
        ("b", LowRankPair { b: b.mul_scalar(2.0), ..pair.clone() }),
        ("scale", LowRankPair { scale: 0.75, ..pair.clone() }),
        ("dropout", LowRankPair { dropout: None, ..pair.clone() }),
        ("dropout's probability", LowRankPair { dropout: dropout(0.25, 1), ..pair.clone() }),
        ("dropout's seed", LowRankPair { dropout: dropout(0.5, 2), ..pair.clone() }),
    ];
    let before = outputs_with(&pair, &x, &weight);
    let ops = ["linear", "linear's reference", "cross-entropy", "cross-entropy's reference"];
    for (field, pair) in changed {
        for ((op, before), after) in ops.iter().zip(&before).zip(&outputs_with(&pair, &x, &weight)) {
            assert!(relative(after, before) > 1e-3, "{field} changes nothing in {op}");
        }
    }
}

#[test]
fn a_group_of_many_adapted_projections_has_all_of_its_pairs() {
    let _turn = turn();
    let (tokens, input, rank, members) = (20, 40, 3, 12);
    let inputs: Vec<Tensor<2>> = std::iter::once(tensor(tokens, input, 1))
        .chain((0..members).flat_map(|index| [tensor(rank, input, 10 + index), tensor(5, rank, 40 + index)]))
        .collect();
    let op = |leaves: Vec<Tensor<2>>, dtype: DType, is_kernel: bool| {
        let weights: Vec<FrozenWeight> = (0..members).map(|index| weight(5, input, dtype, 70 + index)).collect();
        let pairs = leaves[1..].chunks(2).map(|pair| LowRankPair {
            a: pair[0].clone(),
            b: pair[1].clone(),
            scale: 1.5,
            dropout: None,
        });
        let group: Vec<Projected<'_>> = (weights.iter().zip(pairs))
            .map(|(weight, pair)| Projected { weight, bias: None, low_rank: Some(pair) })
            .collect();
        if is_kernel {
            linear::linear(leaves[0].clone(), &group, None)
        } else {
            linear::reference::linear(leaves[0].clone(), &group, None)
        }
    };
    compare("twelve pairs", &inputs, &|leaves, dtype| op(leaves, dtype, true), &|leaves, dtype| {
        op(leaves, dtype, false)
    });
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
