//! Attention over pages against its reference: pieces of any size, windows, caps, long pasts, tokens that are forgotten again.

use burn::tensor::{Device, Tensor, TensorData};
use burnish::ops::attention::{CacheFormat, Geometry, PagedCache, PagedPiece, paged_attention, reference};
use burnish::ops::cpu::isa::Isa;
use burnish::ops::cpu::pool;

use super::{relative, values};
use crate::model::{instruction_sets, turn};

/// The outputs of a sequence that is read in pieces of these sizes, over and over.
fn in_pieces(qkv: &[f32], geometry: &Geometry, format: CacheFormat, pieces: &[usize]) -> Vec<f32> {
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
            for (format, most) in [(CacheFormat::F32, 1e-5), (CacheFormat::Bf16, 1e-2), (CacheFormat::Int8, 2e-2)] {
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

#[test]
fn pages_in_int8_hold_what_their_codes_can_say_and_attend_as_pages_in_f32() {
    let _turn = turn();
    let tokens = 150;
    for (heads, kv_heads, dim) in [(4, 2, 80), (3, 1, 64), (2, 2, 20)] {
        let geometry = Geometry::new(heads, kv_heads, dim);
        let width = geometry.qkv_width();
        // In each group of 32 values of a head one has the code 127 or -127, and scales are powers of two.
        let mut qkv = values(tokens * width, 7);
        for (row, row_values) in qkv.chunks_exact_mut(width).enumerate() {
            for (head, head_values) in row_values.chunks_exact_mut(dim).enumerate().skip(heads) {
                for (group, group_values) in head_values.chunks_mut(32).enumerate() {
                    let scale = 0.5f32.powi((5 + (row + 3 * head + group) % 4) as i32);
                    group_values
                        .iter_mut()
                        .for_each(|value| *value = (100.0 * *value).round().clamp(-126.0, 126.0) * scale);
                    group_values[row % group_values.len()] = if row % 2 == 0 { 127.0 } else { -127.0 } * scale;
                }
            }
        }
        for isa in instruction_sets() {
            isa.choose();
            let [exact, coded] =
                [CacheFormat::F32, CacheFormat::Int8].map(|format| in_pieces(&qkv, &geometry, format, &[61, 1]));
            assert!(exact == coded, "{heads}/{kv_heads} heads of {dim} on {}", isa.name());
        }
        let [bf16, int8] =
            [CacheFormat::Bf16, CacheFormat::Int8].map(|format| PagedCache::page_bytes(&geometry, format));
        assert!(int8 * 100 <= bf16 * 54, "{int8} bytes for {bf16}");
    }
    Isa::best().choose();
}
