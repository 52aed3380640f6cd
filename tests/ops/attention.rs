//! Attention of every shape, over whole sequences and through caches.

use burn::tensor::{DType, Tensor};
use burnish::ops::attention::{self, Cache, Geometry, QkvLayout, Rope};
use burnish::ops::cpu::isa::Isa;

use super::{compare, floats, relative, tensor};
use crate::model::{instruction_sets, turn};

/// Frequencies of a rotation of the first `2 · half` values of each head.
fn frequencies(half: usize, base: f32) -> Vec<f32> {
    (0..half).map(|i| 1.0 / base.powf(i as f32 / half as f32)).collect()
}

/// A rotation with a factor, and other frequencies for sequences longer than 90.
fn rope(half: usize) -> Rope {
    Rope::new(frequencies(half, 100.0)).with_attention_factor(1.25).with_long_context(90, frequencies(half, 700.0))
}

/// Shapes of attention with everything that one may have: `(lengths, geometry)`.
pub(crate) fn attention_shapes() -> Vec<(Vec<usize>, Geometry)> {
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
        // The change of the rotation at its original context has a test of its own.
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
    Isa::preferred().choose();
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
