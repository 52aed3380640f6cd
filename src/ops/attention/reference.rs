//! The definition of correct for attention: plain tensor code, scores and all.

use burn::tensor::{Bool, DType, Device, Int, Tensor, activation};

use super::cache::{Cache, Store, Tensors};
use super::rope::DeviceTable;
use super::{Geometry, QkvLayout};

/// See [`attention`](super::attention).
pub fn attention(qkv: Tensor<2>, lengths: &[usize], geometry: &Geometry) -> Tensor<2> {
    let mut start = 0;
    let outputs = lengths.iter().map(|&length| {
        let sequence = qkv.clone().narrow(0, start, length);
        start += length;
        let (q, k, v) = split(sequence, geometry);
        let (q, k) = (rotate(q, geometry, 0, length), rotate(k, geometry, 0, length));
        attend(q, k, v, 0, geometry)
    });
    Tensor::cat(outputs.collect(), 0)
}

/// The maps of one sequence: of each head, the weight with which a query mixes the value of each key.
///
/// # Shapes
/// - `qkv`: `[tokens, geometry.qkv_width()]` before rotation, as in [`attention`](super::attention)
/// - output: `[heads, tokens, tokens]` in f32; rows sum to 1
pub fn maps(qkv: Tensor<2>, geometry: &Geometry) -> Tensor<3> {
    let length = qkv.dims()[0];
    let (q, k, _) = split(qkv, geometry);
    weights(rotate(q, geometry, 0, length), rotate(k, geometry, 0, length), 0, geometry)
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
        let (past, after) = (cache.length, cache.length + length);
        let (q, k, v) = split(sequence, geometry);
        let (q, k) = (rotate(q, geometry, past, after), rotate(k, geometry, past, after));
        let (keys, values) = match std::mem::take(&mut cache.store) {
            Store::Tensors(store) => {
                let keys = rotated_anew(store.keys, geometry, past, after);
                (Tensor::cat(vec![keys, k], 0), Tensor::cat(vec![store.values, v], 0))
            }
            _ => (k, v),
        };
        cache.length = after;
        cache.store = Store::Tensors(Box::new(Tensors { keys: keys.clone(), values: values.clone() }));
        attend(q, keys, values, past, geometry)
    });
    Tensor::cat(outputs.collect(), 0)
}

/// Queries, keys and values, `[tokens, heads · head_dim]` each.
pub(in crate::ops) fn split(qkv: Tensor<2>, geometry: &Geometry) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let (q, kv) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
    match geometry.layout {
        QkvLayout::SideBySide => (qkv.clone().narrow(1, 0, q), qkv.clone().narrow(1, q, kv), qkv.narrow(1, q + kv, kv)),
        QkvLayout::ByHead => {
            let tokens = qkv.dims()[0];
            let by_head = qkv.reshape([tokens, geometry.heads, 3, geometry.head_dim]);
            let part = |index: usize| by_head.clone().narrow(2, index, 1).reshape([tokens, q]);
            (part(0), part(1), part(2))
        }
    }
}

/// Puts the parts that [`split`] gave together again.
pub(in crate::ops) fn join(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, geometry: &Geometry) -> Tensor<2> {
    match geometry.layout {
        QkvLayout::SideBySide => Tensor::cat(vec![q, k, v], 1),
        QkvLayout::ByHead => {
            let tokens = q.dims()[0];
            let parts = [q, k, v].map(|part| part.reshape([tokens, geometry.heads, 1, geometry.head_dim]));
            Tensor::cat(parts.to_vec(), 2).reshape([tokens, geometry.qkv_width()])
        }
    }
}

/// `[tokens, heads · head_dim]` at positions `first..`, of a sequence of `length` tokens.
fn rotate(x: Tensor<2>, geometry: &Geometry, first: usize, length: usize) -> Tensor<2> {
    match &geometry.rope {
        Some(rope) => {
            let table = rope.device_table(length, &x.device());
            turn(x, geometry, &table, first, 1.0)
        }
        None => x,
    }
}

/// Keys of positions `0..past`, which were rotated as for a sequence of that length, as for one of `after` tokens.
fn rotated_anew(keys: Tensor<2>, geometry: &Geometry, past: usize, after: usize) -> Tensor<2> {
    match &geometry.rope {
        Some(rope) if rope.switches(past, after) => {
            // Turned back, values are multiplied by the factor on cosines and sines once more; turned on, again.
            let device = keys.device();
            let plain = turn(keys, geometry, &rope.device_table(past, &device), 0, -1.0);
            let again = turn(plain, geometry, &rope.device_table(after, &device), 0, 1.0);
            scale_rotated(again, geometry, rope.half(), rope.attention_factor().powi(-2))
        }
        _ => keys,
    }
}

/// The rotated values of each head times `factor`.
fn scale_rotated(x: Tensor<2>, geometry: &Geometry, half: usize, factor: f32) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let dim = geometry.head_dim;
    let x = x.reshape([tokens, width / dim, dim]);
    let rotated = x.clone().narrow(2, 0, 2 * half).mul_scalar(factor);
    let parts = if 2 * half == dim { vec![rotated] } else { vec![rotated, x.narrow(2, 2 * half, dim - 2 * half)] };
    Tensor::cat(parts, 2).reshape([tokens, width])
}

/// Turns the first `2 · half` values of every head to positions `first..` (`direction` 1) or back (-1).
fn turn(x: Tensor<2>, geometry: &Geometry, table: &DeviceTable, first: usize, direction: f32) -> Tensor<2> {
    let ([tokens, width], dtype, is_autodiff) = (x.dims(), x.dtype(), x.is_autodiff());
    let (dim, half) = (geometry.head_dim, table.cos.dims()[1]);
    let rows = |values: &Tensor<2>| {
        let rows = values.clone().narrow(0, first, tokens).reshape([tokens, 1, half]);
        if is_autodiff { rows.autodiff() } else { rows }
    };
    let (cos, sin) = (rows(&table.cos), rows(&table.sin).mul_scalar(direction));
    let x = x.cast(DType::F32).reshape([tokens, width / dim, dim]);
    let (left, right) = (x.clone().narrow(2, 0, half), x.clone().narrow(2, half, half));
    let mut parts = vec![
        left.clone() * cos.clone() - right.clone() * sin.clone(), //
        right * cos + left * sin,
    ];
    if 2 * half < dim {
        parts.push(x.narrow(2, 2 * half, dim - 2 * half));
    }
    Tensor::cat(parts, 2).reshape([tokens, width]).cast(dtype)
}

/// Rotated `q` at positions `past..`, against keys and values from position 0.
fn attend(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, past: usize, geometry: &Geometry) -> Tensor<2> {
    let ([queries, width], dtype) = (q.dims(), q.dtype());
    let v = shared(v, geometry);
    let mixed = weights(q, k, past, geometry).matmul(v);
    mixed.swap_dims(0, 1).reshape([queries, width]).cast(dtype)
}

/// `[heads, tokens, head_dim]` in f32, of `heads` heads side by side.
fn by_head(x: Tensor<2>, heads: usize) -> Tensor<3> {
    let [tokens, width] = x.dims();
    x.cast(DType::F32).reshape([tokens, heads, width / heads]).swap_dims(0, 1)
}

/// The keys or values of every query head, each with a copy of its group's.
fn shared(x: Tensor<2>, geometry: &Geometry) -> Tensor<3> {
    let group = geometry.heads / geometry.kv_heads;
    let x = by_head(x, geometry.kv_heads);
    let [heads, tokens, dim] = x.dims();
    x.reshape([heads, 1, tokens, dim]).repeat_dim(1, group).reshape([heads * group, tokens, dim])
}

/// The softmax over the keys that each query sees, `[heads, queries, keys]`.
fn weights(q: Tensor<2>, k: Tensor<2>, past: usize, geometry: &Geometry) -> Tensor<3> {
    let (queries, keys) = (q.dims()[0], k.dims()[0]);
    let hidden = hidden(past, queries, keys, geometry, &q.device());
    let (q, k) = (by_head(q, geometry.heads), shared(k, geometry));
    let mut scores = q.matmul(k.swap_dims(1, 2)).mul_scalar(geometry.scale);
    if let Some(cap) = geometry.softcap {
        scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
    }
    let scores = scores.mask_fill(hidden.expand([geometry.heads, queries, keys]), f32::NEG_INFINITY);
    activation::softmax(scores, 2)
}

/// `[1, queries, keys]`: whether the query at `past + row` does not see the key; made on the device.
fn hidden(past: usize, queries: usize, keys: usize, geometry: &Geometry, device: &Device) -> Tensor<3, Bool> {
    let range = |from: usize, to: usize| Tensor::<1, Int>::arange(from as i64..to as i64, device);
    let positions = range(past, past + queries).reshape([1, queries, 1]).expand([1, queries, keys]);
    let keys = range(0, keys).reshape([1, 1, keys]).expand([1, queries, keys]);
    let later = keys.clone().greater(positions.clone());
    match geometry.window {
        Some(window) => later.bool_or((positions - keys).greater_equal_elem(window as i64)),
        None => later,
    }
}
