//! Attention over pages against its reference: pieces of any size, windows, caps, long pasts, tokens that are forgotten again.

use burn::tensor::{Device, Tensor, TensorData};
use burnish::ops::attention::{Geometry, PagedCache, PagedPiece, paged_attention, reference};
use burnish::ops::cpu::isa::Isa;
use burnish::ops::cpu::pool;
use burnish::quant::Compute;

use super::{relative, values};
use crate::model::{instruction_sets, turn};

/// The outputs of a sequence that is read in pieces of these sizes, over and over.
fn in_pieces(qkv: &[f32], geometry: &Geometry, format: Compute, pieces: &[usize]) -> Vec<f32> {
    let (width, out_width) = (geometry.qkv_width(), geometry.heads * geometry.head_dim);
    let tokens = qkv.len() / width;
    let (mut cache, mut out, mut sizes) = (PagedCache::default(), Vec::new(), pieces.iter().cycle());
    while cache.length() < tokens {
        let past = cache.length();
        let count = sizes.next().copied().unwrap_or(1).min(tokens - past);
        let mut rows = qkv[past * width..(past + count) * width].to_vec();
        let mut mixed = vec![0f32; count * out_width];
        let piece = PagedPiece { count, cache: &mut cache, total: past + count };
        paged_attention(&mut rows, &mut [piece], geometry, format, &mut mixed);
        // One token more than wanted is read and forgotten.
        if count > 2 && past % 3 == 0 {
            cache.truncate(past + count - 1);
            mixed.truncate((count - 1) * out_width);
        }
        cache.forget_before(cache.length(), geometry);
        out.extend(mixed);
    }
    out
}

#[test]
fn attention_over_pages_is_that_of_the_whole_sequence_however_it_is_cut() {
    let _turn = turn();
    // Two segments of four pages, and a part of a third.
    let tokens = 600;
    for (heads, kv_heads, dim, window, softcap) in
        [(4, 2, 20, None, None), (3, 1, 64, Some(100), None), (2, 2, 16, None, Some(4.0)), (6, 1, 36, Some(300), None)]
    {
        let geometry = Geometry { window, softcap, ..Geometry::new(heads, kv_heads, dim) };
        let qkv: Vec<f32> = values(tokens * geometry.qkv_width(), 5).iter().map(|value| 2.0 * value).collect();
        let data = TensorData::new(qkv.clone(), [tokens, geometry.qkv_width()]);
        let expected = reference::attention(Tensor::<2>::from_data(data, &Device::flex()), &[tokens], &geometry);
        let expected: Vec<f32> = expected.into_data().iter::<f32>().collect();
        for isa in instruction_sets() {
            isa.choose();
            let place = format!("{heads}/{kv_heads} heads of {dim}, window {window:?} on {}", isa.name());
            for (format, most) in [(Compute::F32, 1e-5), (Compute::Bf16, 1e-2)] {
                let whole = in_pieces(&qkv, &geometry, format, &[tokens]);
                let found = relative(&whole, &expected[..whole.len()]);
                assert!(found < most, "{place}, {format}: {found}");
                let cut = in_pieces(&qkv, &geometry, format, &[61, 1, 200, 3]);
                let single = pool::with_threads(1, || in_pieces(&qkv, &geometry, format, &[1]));
                for (cut, whole) in [(&cut, &whole), (&single, &cut)] {
                    let both = cut.len().min(whole.len());
                    assert!(cut[..both] == whole[..both], "{place}, {format}");
                }
                assert_eq!(single.len(), expected.len());
            }
        }
    }
    Isa::best().choose();
}
