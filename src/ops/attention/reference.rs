//! The definition of correct for attention: plain tensor code, scores and all.

use burn::tensor::{Bool, DType, Tensor, TensorData, activation};

use super::cache::{Cache, Store, Tensors};
use super::{Geometry, Rope};

/// See [`attention`](super::attention).
pub fn attention(qkv: Tensor<2>, lengths: &[usize], geometry: &Geometry) -> Tensor<2> {
    let mut start = 0;
    let outputs = lengths.iter().map(|&length| {
        let sequence = qkv.clone().narrow(0, start, length);
        start += length;
        let (q, k, v) = split(sequence, geometry);
        let q = rotate(q, geometry.heads, &geometry.rope, 0);
        let k = rotate(k, geometry.kv_heads, &geometry.rope, 0);
        attend(q, k, v, 0, geometry)
    });
    Tensor::cat(outputs.collect(), 0)
}

/// See [`cached_attention`](super::cached_attention).
pub fn cached_attention(
    qkv: Tensor<2>,
    lengths: &[usize],
    caches: &mut [&mut Cache],
    geometry: &Geometry,
) -> Tensor<2> {
    let mut start = 0;
    let outputs = lengths.iter().zip(caches).map(|(&length, cache)| {
        let sequence = qkv.clone().narrow(0, start, length);
        start += length;
        let past = cache.length;
        let (q, k, v) = split(sequence, geometry);
        let q = rotate(q, geometry.heads, &geometry.rope, past);
        let k = rotate(k, geometry.kv_heads, &geometry.rope, past);
        let (keys, values) = match std::mem::take(&mut cache.store) {
            Store::Tensors(past) => (Tensor::cat(vec![past.keys, k], 0), Tensor::cat(vec![past.values, v], 0)),
            _ => (k, v),
        };
        cache.length += length;
        cache.store = Store::Tensors(Box::new(Tensors { keys: keys.clone(), values: values.clone() }));
        attend(q, keys, values, past, geometry)
    });
    Tensor::cat(outputs.collect(), 0)
}

fn split(qkv: Tensor<2>, geometry: &Geometry) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let (q, kv) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
    (qkv.clone().narrow(1, 0, q), qkv.clone().narrow(1, q, kv), qkv.narrow(1, q + kv, kv))
}

/// `[tokens, heads · head_dim]`, positions from `first` on.
fn rotate(x: Tensor<2>, heads: usize, rope: &Rope, first: usize) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let (half, device, dtype) = (rope.half(), x.device(), x.dtype());
    let known = rope.table(first + tokens);
    let table = |values: &[f32]| {
        let values = values[first * half..(first + tokens) * half].to_vec();
        Tensor::<3>::from_data(TensorData::new(values, [tokens, 1, half]), &device)
    };
    let (cos, sin) = (table(&known.cos), table(&known.sin));
    let x = x.cast(DType::F32).reshape([tokens, heads, 2 * half]);
    let (left, right) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let rotated_left = left.clone() * cos.clone() - right.clone() * sin.clone();
    let rotated_right = right * cos + left * sin;
    Tensor::cat(vec![rotated_left, rotated_right], 2).reshape([tokens, width]).cast(dtype)
}

/// Rotated `q` at positions `past..`, against keys and values from position 0.
fn attend(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, past: usize, geometry: &Geometry) -> Tensor<2> {
    let ([queries, width], [keys, _]) = (q.dims(), k.dims());
    let (device, dtype, group) = (q.device(), q.dtype(), geometry.heads / geometry.kv_heads);
    let by_head = |x: Tensor<2>, tokens: usize, heads: usize| {
        x.cast(DType::F32).reshape([tokens, heads, geometry.head_dim]).swap_dims(0, 1)
    };
    // Every query head gets a copy of its group's keys and values.
    let shared = |x: Tensor<3>| {
        let [heads, tokens, dim] = x.dims();
        x.reshape([heads, 1, tokens, dim]).repeat_dim(1, group).reshape([heads * group, tokens, dim])
    };
    let q = by_head(q, queries, geometry.heads);
    let k = shared(by_head(k, keys, geometry.kv_heads));
    let v = shared(by_head(v, keys, geometry.kv_heads));
    let hidden: Vec<bool> = (past..past + queries)
        .flat_map(|position| (0..keys).map(move |key| key > position || key < geometry.first_key(position)))
        .collect();
    let hidden = Tensor::<3, Bool>::from_data(TensorData::new(hidden, [1, queries, keys]), &device);
    let scores = q.matmul(k.swap_dims(1, 2)).mul_scalar(geometry.scale());
    let scores = scores.mask_fill(hidden.expand([geometry.heads, queries, keys]), f32::NEG_INFINITY);
    let mixed = activation::softmax(scores, 2).matmul(v);
    mixed.swap_dims(0, 1).reshape([queries, width]).cast(dtype)
}
