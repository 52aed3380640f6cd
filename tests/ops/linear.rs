//! Projections with everything that they can have.

use burn::tensor::{DType, Tensor};
use burnish::ops::cpu::pool;
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{self, Dropout, LowRankPair, Projected};

use super::{compare, relative, run, tensor, values, weight};
use crate::model::turn;

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
                            dropout: probability.map(|probability| Dropout {
                                probability,
                                seed: 3 + index as u64,
                                tokens: (0..tokens as u64).collect(),
                            }),
                        }),
                        column_scale: None,
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
fn outputs_are_scaled_before_bias_and_residual() {
    let _turn = turn();
    // (tokens, in, outs): a projection with pair, factors and bias, one with pair and bias, one with factors alone.
    for (tokens, input, outputs) in [(5, 7, [3, 4, 5]), (70, 64, [96, 33, 100])] {
        let [first, second, third] = outputs;
        let inputs = [
            tensor(tokens, input, 1),
            tensor(4, input, 2),
            tensor(first, 4, 3),
            tensor(2, input, 4),
            tensor(second, 2, 5),
            tensor(1, first, 6),
            tensor(1, third, 7),
            tensor(tokens, first + second + third, 8),
        ];
        let op = |leaves: Vec<Tensor<2>>, dtype: DType, is_kernel: bool| {
            let weights = outputs.map(|output| weight(output, input, dtype, output as u64));
            let biases = outputs.map(|output| values(output, 9));
            let pair = |first: usize| {
                Some(LowRankPair { a: leaves[first].clone(), b: leaves[first + 1].clone(), scale: 1.5, dropout: None })
            };
            let group = [(0, pair(1), Some(leaves[5].clone())), (1, pair(3), None), (2, None, Some(leaves[6].clone()))];
            let group = group.map(|(index, low_rank, column_scale)| Projected {
                weight: &weights[index],
                bias: (index < 2).then_some(biases[index].as_slice()),
                low_rank,
                column_scale,
            });
            let (x, residual) = (leaves[0].clone(), Some(leaves[7].clone()));
            if is_kernel { linear::linear(x, &group, residual) } else { linear::reference::linear(x, &group, residual) }
        };
        let what = format!("scaled {tokens}x{input}x{outputs:?}");
        compare(&what, &inputs, &|leaves, dtype| op(leaves, dtype, true), &|leaves, dtype| op(leaves, dtype, false));
    }
}

#[test]
fn norms_of_adapted_rows_are_those_of_the_formed_weight() {
    let _turn = turn();
    let (output, input, rank, scale) = (50, 70, 6, 1.7);
    let (a, b) = (tensor(rank, input, 1).inner(), tensor(output, rank, 2).inner());
    for dtype in [DType::F32, DType::BF16] {
        let weight = weight(output, input, dtype, 3);
        let formed = weight.tensor(&a.device()) + b.clone().matmul(a.clone()).mul_scalar(scale);
        let expected: Vec<f32> = formed.powi_scalar(2).sum_dim(1).sqrt().into_data().iter::<f32>().collect();
        let found = linear::row_norms(&weight, a.clone(), b.clone(), scale);
        assert_eq!(found.dims(), [1, output]);
        let found: Vec<f32> = found.into_data().iter::<f32>().collect();
        assert!(relative(&found, &expected) < 1e-5, "{dtype:?}: {found:?}, not {expected:?}");
    }
    // A row that the pair takes away altogether has the norm zero, not the root of a negative rounding.
    let weight = weight(output, input, DType::F32, 3);
    let identity = Tensor::<2>::eye(input, &a.device());
    let norms = linear::row_norms(&weight, identity, weight.tensor(&a.device()), -1.0);
    let norms: Vec<f32> = norms.into_data().iter::<f32>().collect();
    assert!(norms.iter().all(|norm| *norm < 2e-3), "{norms:?}");
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
            .map(|(weight, pair)| Projected { weight, bias: None, low_rank: Some(pair), column_scale: None })
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
                let group = [Projected { weight: &weight, bias: None, low_rank: Some(pair), column_scale: None }];
                linear::linear(leaves[0].clone(), &group, None)
            })
        })
    };
    let one = in_threads(1);
    for threads in [2, 3, 7] {
        assert_eq!(in_threads(threads), one, "{threads} threads");
    }
}
