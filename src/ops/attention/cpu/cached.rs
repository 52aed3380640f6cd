//! [`cached_attention`](super::super::cached_attention) on the processor.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};

use super::super::Geometry;
use super::super::cache::{Cache, Store};
use super::head::Head;
use super::packed::Packed;
use super::rotate::{Places, rotate, rotate_anew};
use crate::ops::cpu::autograd::{dims, f32s, from_f32, plain};
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::pool;
use crate::ops::cpu::rows::Rows;
use crate::ops::cpu::rowwise::narrowed;
use crate::ops::cpu::shared::SharedMut;

/// See [`cached_attention`](super::super::cached_attention).
pub fn cached_attention(
    qkv: Tensor<2>,
    lengths: &[usize],
    caches: &mut [&mut Cache],
    geometry: &Geometry,
) -> Tensor<2> {
    let qkv = plain(qkv);
    let [tokens, width] = dims(&qkv);
    let q_width = geometry.heads * geometry.head_dim;
    let places = Places::of(caches.iter().map(|cache| cache.length).zip(lengths.iter().copied()), geometry);
    let rotated = rotate(&qkv, &places, geometry, DType::F32);
    remember(f32s(&rotated), lengths, caches, geometry);
    let mut tasks = Vec::new();
    let mut start = 0;
    for (&length, cache) in lengths.iter().zip(caches.iter()) {
        for head in 0..geometry.heads {
            tasks.push((start, length, &**cache, head));
        }
        start += length;
    }
    let mut out = vec![0f32; tokens * q_width];
    let target = SharedMut::new(&mut out);
    pool::for_each(tasks.len(), |task| {
        let (start, length, cache, head) = tasks[task];
        let Store::Host { keys, values } = &cache.store else { return };
        let (count, dim) = (cache.length, geometry.head_dim);
        let column = head / (geometry.heads / geometry.kv_heads) * dim;
        let of_head = |data| Rows::F32 { data, stride: geometry.kv_heads * dim }.from_column(column);
        let keys = Packed::<f32>::columns(of_head(keys), count, dim);
        let values = Packed::rows(of_head(values), count, dim);
        let queries =
            Rows::F32 { data: f32s(&rotated), stride: width }.from_row(start).from_column(head * geometry.head_dim);
        let job = Head { isa: Isa::current(), queries, count: length, past: count - length, geometry };
        job.forward(0..length, &keys, &values, |query, mixed, _| {
            // SAFETY: this head of this row belongs to this task alone.
            let out = unsafe { target.slice((start + query) * q_width + head * dim, dim) };
            out.copy_from_slice(mixed);
        });
    });
    let out = from_f32(out, tokens, q_width);
    let out = if qkv.dtype() == DType::BF16 { narrowed(&out) } else { out };
    Tensor::from_primitive::<Flex>(out)
}

/// Adds the keys and values of the new rows, `[q | k | v]`, to the caches.
fn remember(rows: &[f32], lengths: &[usize], caches: &mut [&mut Cache], geometry: &Geometry) {
    let (q_width, kv_width) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
    let mut start = 0;
    for (&length, cache) in lengths.iter().zip(caches.iter_mut()) {
        if matches!(cache.store, Store::Empty) {
            cache.store = Store::Host { keys: Vec::new(), values: Vec::new() };
        }
        if let Store::Host { keys, values } = &mut cache.store {
            rotate_anew(keys, cache.length, cache.length + length, geometry);
            for row in rows.chunks_exact(q_width + 2 * kv_width).skip(start).take(length) {
                keys.extend_from_slice(&row[q_width..q_width + kv_width]);
                values.extend_from_slice(&row[q_width + kv_width..]);
            }
        }
        cache.length += length;
        start += length;
    }
}
