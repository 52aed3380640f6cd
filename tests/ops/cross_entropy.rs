//! The head with its losses; and what every op makes of a low-rank pair.

use burn::tensor::{DType, Tensor};
use burnish::ops::cross_entropy;
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{self, Dropout, LowRankPair, Projected};

use super::{compare, floats, relative, tensor, values, weight};
use crate::model::turn;

#[test]
fn cross_entropy_of_every_kind_of_head() {
    let _turn = turn();
    for (tokens, width, vocabulary, rank) in [(9, 12, 17, 3), (40, 64, 331, 4)] {
        let targets: Vec<(u32, u32)> =
            (0..tokens as u32).filter(|row| row % 3 != 1).map(|row| (row, row * 7 % vocabulary as u32)).collect();
        let biases = values(vocabulary, 11);
        let inputs = [tensor(tokens, width, 6), tensor(rank, width, 7), tensor(vocabulary, rank, 8)];
        let dropout = || Some(Dropout { probability: 0.4, seed: 5, tokens: (0..tokens as u64).collect() });
        for (pair, softcap, bias, smoothing) in [
            (Some(None), None, None, 0.0),
            (None, None, Some(biases.as_slice()), 0.0),
            (Some(dropout()), None, None, 0.0),
            (None, Some(0.8), None, 0.0),
            (Some(dropout()), Some(1.5), Some(biases.as_slice()), 0.0),
            (None, None, None, 0.1),
            (Some(dropout()), None, Some(biases.as_slice()), 0.3),
            (Some(dropout()), Some(1.5), Some(biases.as_slice()), 0.2),
        ] {
            let op = |leaves: Vec<Tensor<2>>, dtype: DType, is_kernel: bool| {
                let weight = weight(vocabulary, width, dtype, 9);
                let low_rank = pair.clone().map(|dropout| {
                    let (a, b) = (leaves[1].clone(), leaves[2].clone());
                    LowRankPair { a, b, scale: 0.7, dropout }
                });
                let head = Projected { weight: &weight, bias, low_rank, column_scale: None };
                if is_kernel {
                    cross_entropy::cross_entropy(leaves[0].clone(), &head, &targets, softcap, smoothing)
                } else {
                    cross_entropy::reference::cross_entropy(leaves[0].clone(), &head, &targets, softcap, smoothing)
                }
            };
            let used = if pair.is_some() { &inputs[..] } else { &inputs[..1] };
            compare(
                &format!(
                    "cross-entropy {tokens}x{width}x{vocabulary} pair {pair:?} cap {softcap:?} smoothing {smoothing}"
                ),
                used,
                &|leaves, dtype| op(leaves, dtype, true),
                &|leaves, dtype| op(leaves, dtype, false),
            );
            let leaves: Vec<Tensor<2>> = used.iter().map(|input| input.clone().inner()).collect();
            let weight = weight(vocabulary, width, DType::F32, 9);
            let low_rank = pair.clone().map(|dropout| LowRankPair {
                a: leaves[1].clone(),
                b: leaves[2].clone(),
                scale: 0.7,
                dropout,
            });
            let head = Projected { weight: &weight, bias, low_rank, column_scale: None };
            let alone = cross_entropy::predictions(leaves[0].clone(), &head, &targets, softcap);
            let reference = cross_entropy::reference::predictions(leaves[0].clone(), &head, &targets, softcap);
            let losses: Vec<f32> = alone.iter().map(|prediction| prediction.loss).collect();
            let smoothed = floats(op(leaves, DType::F32, true));
            assert_eq!(losses == smoothed, smoothing == 0.0, "only training smooths");
            let likeliest =
                |all: &[cross_entropy::Prediction]| all.iter().map(|one| one.is_likeliest).collect::<Vec<_>>();
            assert_eq!(likeliest(&alone), likeliest(&reference));
        }
    }
}

/// The output of a projection and of a head with this pair, by kernel and by reference.
fn outputs_with(pair: &LowRankPair, x: &Tensor<2>, weight: &FrozenWeight) -> [Vec<f32>; 4] {
    let projected = || Projected { weight, bias: None, low_rank: Some(pair.clone()), column_scale: None };
    let targets: Vec<(u32, u32)> = (0..x.dims()[0] as u32).map(|row| (row, row * 5 % 13)).collect();
    [
        floats(linear::linear(x.clone(), &[projected()], None)),
        floats(linear::reference::linear(x.clone(), &[projected()], None)),
        floats(cross_entropy::cross_entropy(x.clone(), &projected(), &targets, None, 0.0)),
        floats(cross_entropy::reference::cross_entropy(x.clone(), &projected(), &targets, None, 0.0)),
    ]
}

#[test]
fn every_field_of_a_low_rank_pair_changes_the_result_of_every_op() {
    let _turn = turn();
    let (x, weight) = (tensor(6, 24, 1).inner(), weight(13, 24, DType::F32, 2));
    let (a, b) = (tensor(4, 24, 3).inner(), tensor(13, 4, 4).inner());
    let numbered = |probability, seed, first| Some(Dropout { probability, seed, tokens: (first..first + 6).collect() });
    let dropout = |probability, seed| numbered(probability, seed, 0);
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
        ("dropout's tokens", LowRankPair { dropout: numbered(0.5, 1, 40), ..pair.clone() }),
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
fn the_noise_of_a_token_does_not_depend_on_the_other_targets() {
    let _turn = turn();
    let (x, weight) = (tensor(9, 24, 1).inner(), weight(13, 24, DType::F32, 2));
    let (a, b) = (tensor(4, 24, 3).inner(), tensor(13, 4, 4).inner());
    let dropout = |first: u64| Dropout { probability: 0.5, seed: 1, tokens: (first..9).collect() };
    let losses = |x: &Tensor<2>, targets: &[(u32, u32)], dropout| {
        let low_rank = Some(LowRankPair { a: a.clone(), b: b.clone(), scale: 0.5, dropout: Some(dropout) });
        let head = Projected { weight: &weight, bias: None, low_rank, column_scale: None };
        let ours = cross_entropy::predictions(x.clone(), &head, targets, None);
        let ours: Vec<f32> = ours.iter().map(|prediction| prediction.loss).collect();
        let reference = floats(cross_entropy::reference::cross_entropy(x.clone(), &head, targets, None, 0.0));
        assert!(relative(&ours, &reference) <= 1e-5);
        ours
    };
    let all = losses(&x, &(0..9).map(|row| (row, row)).collect::<Vec<_>>(), dropout(0));
    let some = losses(&x, &[(2, 2), (7, 7)], dropout(0));
    assert!(relative(&some, &[all[2], all[7]]) <= 1e-6);
    // The last rows alone, as a batch of their own.
    let rest = losses(&x.clone().narrow(0, 5, 4), &[(2, 7)], dropout(5));
    assert!(relative(&rest, &[all[7]]) <= 1e-6);
}

#[test]
fn a_smoothed_loss_is_the_mean_over_smoothed_targets() {
    let _turn = turn();
    // By the definition: (1 − ε) of the target's loss and ε of the mean loss of all tokens.
    let (x, weight) = (tensor(3, 12, 1).inner(), weight(17, 12, DType::F32, 2));
    let head = || Projected { weight: &weight, bias: None, low_rank: None, column_scale: None };
    let loss = |target: u32| floats(cross_entropy::cross_entropy(x.clone(), &head(), &[(1, target)], None, 0.0))[0];
    let mean = (0..17).map(loss).sum::<f32>() / 17.0;
    let smoothed = floats(cross_entropy::cross_entropy(x.clone(), &head(), &[(1, 5)], None, 0.25))[0];
    assert!((smoothed - (0.75 * loss(5) + 0.25 * mean)).abs() < 1e-5, "{smoothed}");
}
