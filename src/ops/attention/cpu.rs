//! Attention on the processor: a few query rows at a time against packed keys and values.
//!
//! A task is one head of one sequence. Scores of a strip of query rows are computed panel by panel (32 keys), turned
//! into probabilities in place, and multiplied by the packed values; the backward pass computes them again from the
//! saved log-sum and accumulates `dKᵀ` and `dVᵀ` in tiles. Query heads that share a key head are summed in order, so
//! the result does not depend on the number of threads.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use half::bf16;

use super::Geometry;
use super::cache::{Cache, Store};
use crate::ops::cpu::autograd::{Kernel, Output, apply, dims, f32s, from_f32, plain, rows};
use crate::ops::cpu::isa::{Isa, vectorised};
use crate::ops::cpu::kernel::{Element, PANEL, Tile};
use crate::ops::cpu::math::exp;
use crate::ops::cpu::matrix::interleave_rows;
use crate::ops::cpu::pack::{pack_rows, pack_rows_bf16, write_depth_row};
use crate::ops::cpu::pool;
use crate::ops::cpu::product::{Rows, SharedMut, Target, narrow};
use crate::ops::cpu::rowwise::{for_each_row, map_rows, narrowed};

/// Query rows whose probabilities are held at once in the backward pass; a multiple of every kernel's rows.
const QUERY_BLOCK: usize = 96;

#[derive(Debug, Clone)]
struct Attention {
    lengths: Arc<[usize]>,
    geometry: Geometry,
}

#[derive(Debug, Clone)]
struct Saved {
    /// `q | k | v`, rotated.
    rotated: FlexTensor,
    /// `ln Σ exp(scores)` by query and head, `[tokens, heads]`.
    log_sums: Arc<Vec<f32>>,
}

/// See [`attention`](super::attention).
pub fn attention(qkv: Tensor<2>, lengths: &[usize], geometry: &Geometry) -> Tensor<2> {
    apply::<1, _>(Attention { lengths: lengths.into(), geometry: geometry.clone() }, [qkv])
}

/// See [`cached_attention`](super::cached_attention).
pub fn cached_attention(
    qkv: Tensor<2>,
    lengths: &[usize],
    caches: &mut [&mut Cache],
    geometry: &Geometry,
) -> Tensor<2> {
    let qkv = plain(qkv);
    let [tokens, _] = dims(&qkv);
    let (q_width, kv_width) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
    let positions: Vec<usize> =
        lengths.iter().zip(caches.iter()).flat_map(|(&length, cache)| cache.length..cache.length + length).collect();
    let rotated = rotate(&qkv, &positions, geometry, DType::F32, 1.0);
    let values = f32s(&rotated);
    let mut start = 0;
    for (&length, cache) in lengths.iter().zip(caches.iter_mut()) {
        if matches!(cache.store, Store::Empty) {
            cache.store = Store::Host { keys: Vec::new(), values: Vec::new() };
        }
        if let Store::Host { keys, values: remembered } = &mut cache.store {
            for row in values.chunks_exact(q_width + 2 * kv_width).skip(start).take(length) {
                keys.extend_from_slice(&row[q_width..q_width + kv_width]);
                remembered.extend_from_slice(&row[q_width + kv_width..]);
            }
        }
        cache.length += length;
        start += length;
    }
    let mut out = vec![0f32; tokens * q_width];
    let target = SharedMut(out.as_mut_ptr());
    let mut tasks = Vec::new();
    let mut start = 0;
    for (&length, cache) in lengths.iter().zip(caches.iter()) {
        for head in 0..geometry.heads {
            tasks.push((start, length, &**cache, head));
        }
        start += length;
    }
    pool::for_each(tasks.len(), |task| {
        let (start, length, cache, head) = tasks[task];
        let Store::Host { keys, values: remembered } = &cache.store else { return };
        let kv_head = head / (geometry.heads / geometry.kv_heads);
        let column = kv_head * geometry.head_dim;
        let view = |data| Rows::F32 { data, stride: kv_width }.from_column(column);
        let queries = Rows::F32 { data: values, stride: q_width + 2 * kv_width }
            .from_row(start)
            .from_column(head * geometry.head_dim);
        let job = Head {
            isa: Isa::current(),
            queries,
            keys: view(keys),
            values: view(remembered),
            count: length,
            past: cache.length - length,
            geometry,
        };
        let target = &target;
        job.forward::<f32>(|query, mixed, _| {
            // SAFETY: this head of this row belongs to this task alone.
            unsafe {
                let out = target.0.add((start + query) * q_width + head * geometry.head_dim);
                std::slice::from_raw_parts_mut(out, mixed.len()).copy_from_slice(mixed);
            }
        });
    });
    let out = from_f32(out, tokens, q_width);
    let out = if qkv.dtype() == DType::BF16 { narrowed(&out) } else { out };
    Tensor::from_primitive::<burn::backend::Flex>(out)
}

/// The queries and keys of `qkv` rotated to their positions (`direction` 1) or back (-1).
fn rotate(qkv: &FlexTensor, positions: &[usize], geometry: &Geometry, dtype: DType, direction: f32) -> FlexTensor {
    let [tokens, width] = dims(qkv);
    let half = geometry.head_dim / 2;
    let last = positions.iter().copied().max().unwrap_or(0);
    let first = positions.iter().copied().min().unwrap_or(0);
    let (cos, sin) = geometry.rope.table(first, last + 1 - first);
    let source = rows(qkv);
    map_rows(dtype, tokens, width, |row, out, _| {
        source.read(row, 0, out);
        let at = (positions[row] - first) * half;
        let heads = out.chunks_exact_mut(2 * half).take(geometry.heads + geometry.kv_heads);
        for head in heads {
            let (left, right) = head.split_at_mut(half);
            rotate_head(left, right, &cos[at..at + half], &sin[at..at + half], direction);
        }
    })
}

vectorised! {
    fn rotate_head(left: &mut [f32], right: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
            let sin = sin * direction;
            let turned = *left * cos - *right * sin;
            *right = *right * cos + *left * sin;
            *left = turned;
        }
    }
}

/// Positions of sequences laid end to end.
fn positions(lengths: &[usize]) -> Vec<usize> {
    lengths.iter().flat_map(|&length| 0..length).collect()
}

impl Attention {
    /// `(first row, length, head)` of every task.
    fn tasks(&self) -> Vec<(usize, usize, usize)> {
        let mut tasks = Vec::new();
        let mut start = 0;
        for &length in self.lengths.iter() {
            tasks.extend((0..self.geometry.heads).map(|head| (start, length, head)));
            start += length;
        }
        tasks
    }

    fn head<'a>(&'a self, rotated: Rows<'a>, start: usize, length: usize, head: usize) -> Head<'a> {
        let Geometry { heads, kv_heads, head_dim, .. } = self.geometry;
        let kv_head = head / (heads / kv_heads);
        let from = |column: usize| rotated.from_row(start).from_column(column * head_dim);
        Head {
            isa: Isa::current(),
            queries: from(head),
            keys: from(heads + kv_head),
            values: from(heads + kv_heads + kv_head),
            count: length,
            past: 0,
            geometry: &self.geometry,
        }
    }

    fn run<E: Element>(&self, rotated: &FlexTensor) -> (FlexTensor, Vec<f32>) {
        let [tokens, _] = dims(rotated);
        let Geometry { heads, head_dim, .. } = self.geometry;
        let width = heads * head_dim;
        let mut log_sums = vec![0f32; tokens * heads];
        let mut out = Output::new(rotated.dtype(), tokens * width);
        let sums = SharedMut(log_sums.as_mut_ptr());
        let target = SharedOutput::new(&mut out);
        let source = rows(rotated);
        let tasks = self.tasks();
        pool::for_each(tasks.len(), |task| {
            let ((start, length, head), sums, target) = (tasks[task], &sums, &target);
            self.head(source, start, length, head).forward::<E>(|query, mixed, log_sum| {
                // SAFETY: this head of this row belongs to this task alone.
                unsafe {
                    target.write((start + query) * width + head * head_dim, mixed);
                    *sums.0.add((start + query) * heads + head) = log_sum;
                }
            });
        });
        // SAFETY: every head of every query wrote its values.
        (unsafe { out.into_tensor(tokens, width) }, log_sums)
    }

    fn gradients<E: Element>(&self, saved: &Saved, gradient: &FlexTensor) -> FlexTensor {
        let [tokens, width] = dims(&saved.rotated);
        let Geometry { heads, kv_heads, head_dim, .. } = self.geometry;
        let group = heads / kv_heads;
        let (source, g_rows) = (rows(&saved.rotated), rows(gradient));
        let mut dqkv = vec![0f32; tokens * width];
        let target = SharedMut(dqkv.as_mut_ptr());
        // A key head's share from each of its query heads, summed below in order.
        let tasks = self.tasks();
        let shares = pool::map(tasks.len(), |task| {
            let ((start, length, head), target) = (tasks[task], &target);
            let job = self.head(source, start, length, head);
            let log_sum = |query: usize| saved.log_sums[(start + query) * heads + head];
            let g = g_rows.from_row(start).from_column(head * head_dim);
            job.backward::<E>(g, log_sum, |query, dq| {
                // SAFETY: the query columns of this head of this row belong to this task alone.
                unsafe {
                    let out = target.0.add((start + query) * width + head * head_dim);
                    std::slice::from_raw_parts_mut(out, head_dim).copy_from_slice(dq);
                }
            })
        });
        let mut start = 0;
        for (sequence, &length) in self.lengths.iter().enumerate() {
            let of_sequence = &shares[sequence * heads..(sequence + 1) * heads];
            let part = &mut dqkv[start * width..(start + length) * width];
            for_each_row(part, width, 0, |row, out, _| {
                for kv_head in 0..kv_heads {
                    let (dk, dv) = ((heads + kv_head) * head_dim, (heads + kv_heads + kv_head) * head_dim);
                    for share in &of_sequence[kv_head * group..(kv_head + 1) * group] {
                        share.keys.add_row(row, &mut out[dk..dk + head_dim]);
                        share.values.add_row(row, &mut out[dv..dv + head_dim]);
                    }
                }
            });
            start += length;
        }
        let dqkv = from_f32(dqkv, tokens, width);
        rotate(&dqkv, &positions(&self.lengths), &self.geometry, saved.rotated.dtype(), -1.0)
    }
}

impl Kernel<1> for Attention {
    type Saved = Saved;

    fn forward(&self, [qkv]: [&FlexTensor; 1], save: bool) -> (FlexTensor, Option<Saved>) {
        let rotated = rotate(qkv, &positions(&self.lengths), &self.geometry, qkv.dtype(), 1.0);
        let (y, log_sums) = if qkv.dtype() == DType::BF16 && Isa::current().multiplies_bf16() {
            self.run::<bf16>(&rotated)
        } else {
            self.run::<f32>(&rotated)
        };
        (y, save.then(|| Saved { rotated, log_sums: Arc::new(log_sums) }))
    }

    fn backward(&self, saved: Saved, gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let bf16_kernel = saved.rotated.dtype() == DType::BF16 && Isa::current().multiplies_bf16();
        let dqkv = if bf16_kernel {
            self.gradients::<bf16>(&saved, &gradient)
        } else {
            self.gradients::<f32>(&saved, &gradient)
        };
        [Some(dqkv)]
    }
}

/// An output that tasks share.
enum SharedOutput {
    F32(SharedMut<f32>),
    Bf16(SharedMut<bf16>),
}

impl SharedOutput {
    fn new(output: &mut Output) -> Self {
        match output.target(0, 0) {
            Target::F32 { data, .. } => Self::F32(SharedMut(data.as_mut_ptr().cast())),
            Target::Bf16 { data, .. } => Self::Bf16(SharedMut(data.as_mut_ptr().cast())),
        }
    }

    /// # Safety
    /// `at..at + values.len()` lies inside and belongs to the caller alone.
    unsafe fn write(&self, at: usize, values: &[f32]) {
        // SAFETY: as the caller vouches.
        unsafe {
            match self {
                Self::F32(out) => {
                    std::slice::from_raw_parts_mut(out.0.add(at), values.len()).copy_from_slice(values);
                }
                Self::Bf16(out) => narrow(values, std::slice::from_raw_parts_mut(out.0.add(at), values.len())),
            }
        }
    }
}

/// One head of one sequence.
struct Head<'a> {
    isa: Isa,
    /// `[count, head_dim]` views into wider rows, rotated.
    queries: Rows<'a>,
    keys: Rows<'a>,
    values: Rows<'a>,
    /// Queries.
    count: usize,
    /// Position of the first query; there are `past + count` keys.
    past: usize,
    geometry: &'a Geometry,
}

/// A gradient of keys or values, transposed: `[panels of 32 keys][head_dim][32]`.
struct Transposed {
    tiles: Vec<Tile>,
    head_dim: usize,
}

impl Transposed {
    fn new(panels: usize, head_dim: usize) -> Self {
        let floats = panels * head_dim * PANEL;
        Self { tiles: vec![Tile::ZERO; floats.div_ceil(Tile::ZERO.0.len())], head_dim }
    }

    fn panel(&mut self, panel: usize) -> *mut f32 {
        // SAFETY: `new` made room for every panel.
        unsafe { self.tiles.as_mut_ptr().cast::<f32>().add(panel * self.head_dim * PANEL) }
    }

    /// Adds the gradient of key `row`.
    fn add_row(&self, row: usize, out: &mut [f32]) {
        let base = row / PANEL * self.head_dim * PANEL + row % PANEL;
        let size = Tile::ZERO.0.len();
        for (d, out) in out.iter_mut().enumerate() {
            let at = base + d * PANEL;
            *out += self.tiles[at / size].0[at % size];
        }
    }
}

/// What one query head adds to the gradients of its key head.
struct Share {
    keys: Transposed,
    values: Transposed,
}

/// An aligned buffer in the kernel's number format.
struct Aligned<E> {
    words: Vec<Tile>,
    count: usize,
    marker: std::marker::PhantomData<E>,
}

impl<E: Element> Aligned<E> {
    fn new(count: usize) -> Self {
        let tiles = (count * size_of::<E>()).div_ceil(size_of::<Tile>());
        Self { words: vec![Tile::ZERO; tiles], count, marker: std::marker::PhantomData }
    }

    fn as_mut(&mut self) -> &mut [E] {
        // SAFETY: the tiles hold at least `count` plain values.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.count) }
    }
}

impl Head<'_> {
    /// Packs `count` rows `[count, head_dim]` as the columns of panels (`rowsᵀ` on the right).
    fn pack_as_columns<E: Element>(&self, source: Rows<'_>, count: usize) -> Aligned<E> {
        let dim = self.geometry.head_dim;
        let padded = dim.next_multiple_of(E::DEPTH_UNIT);
        let mut packed = Aligned::new(count.div_ceil(PANEL) * padded * PANEL);
        for (index, panel) in packed.as_mut().chunks_exact_mut(padded * PANEL).enumerate() {
            let first = index * PANEL;
            let columns = (count - first).min(PANEL);
            match source {
                Rows::F32 { data, stride } => pack_rows(&data[first * stride..], stride, columns, dim, 1.0, panel),
                Rows::Bf16 { data, stride } => match E::as_bf16(panel) {
                    Some(panel) => pack_rows_bf16(&data[first * stride..], stride, columns, dim, panel),
                    None => pack_rows(&data[first * stride..], stride, columns, dim, 1.0, panel),
                },
            }
        }
        packed
    }

    /// Packs `count` rows `[count, head_dim]` as they are (`rows` on the right): panels of 32 dimensions, depth
    /// `depth >= count`, the rest zero.
    fn pack_as_rows<E: Element>(&self, source: Rows<'_>, count: usize, depth: usize, packed: &mut [E]) {
        let dim = self.geometry.head_dim;
        if let (Rows::Bf16 { data, stride }, Some(packed)) = (source, E::as_bf16(packed)) {
            for (index, panel) in packed.chunks_exact_mut(depth * PANEL).enumerate() {
                let columns = (dim - index * PANEL).min(PANEL);
                interleave_rows(&data[index * PANEL..], stride, columns, count, panel);
                panel[count.next_multiple_of(2) * PANEL..].fill(bf16::ZERO);
            }
            return;
        }
        let mut row = vec![0f32; dim];
        for k in 0..depth {
            let values: &[f32] = if k < count {
                source.read(k, 0, &mut row);
                &row
            } else {
                &[]
            };
            for (index, panel) in packed.chunks_exact_mut(depth * PANEL).enumerate() {
                let first = (index * PANEL).min(values.len());
                let last = (first + PANEL).min(values.len());
                write_depth_row(&values[first..last], 1.0, k, panel);
            }
        }
    }

    /// Copies `rows` query-side rows from `first` on into `[rows, padded head_dim]`.
    fn copy_rows<E: Element>(&self, source: Rows<'_>, first: usize, rows: usize, out: &mut [E]) {
        let dim = self.geometry.head_dim;
        let padded = dim.next_multiple_of(E::DEPTH_UNIT);
        let mut values = vec![0f32; dim];
        for (row, out) in out.chunks_exact_mut(padded).take(rows).enumerate() {
            source.read(first + row, 0, &mut values);
            E::narrow_from(&values, &mut out[..dim]);
            out[dim..].fill(E::zeroed());
        }
    }

    /// One kernel call, inside tile configuration where the instruction set needs it.
    ///
    /// # Safety
    /// As [`Element::tile`], for any number of rows: they are taken as many at a time as the kernel does.
    unsafe fn multiply<E: Element>(
        &self,
        rows: usize,
        depth: usize,
        a: *const E,
        lda: usize,
        panel: *const E,
        out: *mut f32,
        accumulate: bool,
    ) {
        let step = E::rows_per_tile(self.isa);
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(step);
            // SAFETY: as the caller vouches.
            unsafe {
                let (a, out) = (a.add(row * lda), out.add(row * PANEL));
                E::tile(self.isa, count, depth, a, lda, panel, out, accumulate);
            }
            row += count;
        }
    }

    fn with_tiles<E: Element, R>(&self, work: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Amx && E::DEPTH_UNIT == 2 {
            // SAFETY: AMX is available.
            return unsafe { crate::ops::cpu::amx::with_tiles(work) };
        }
        work()
    }

    /// Calls `emit(query, mixed values, log-sum)` for every query.
    fn forward<E: Element>(&self, mut emit: impl FnMut(usize, &[f32], f32)) {
        let dim = self.geometry.head_dim;
        let padded = dim.next_multiple_of(E::DEPTH_UNIT);
        let keys = self.past + self.count;
        let panels = keys.div_ceil(PANEL);
        let packed_keys = self.pack_as_columns::<E>(self.keys, keys);
        let value_panels = dim.div_ceil(PANEL);
        let value_depth = panels * PANEL;
        let mut packed_values = Aligned::<E>::new(value_panels * value_depth * PANEL);
        self.pack_as_rows(self.values, keys, value_depth, packed_values.as_mut());
        let strip = E::rows_per_tile(self.isa);
        let mut queries = Aligned::<E>::new(strip * padded);
        let mut scores = vec![Tile::ZERO; (panels * strip * PANEL).div_ceil(Tile::ZERO.0.len())];
        let mut probabilities = Aligned::<E>::new(strip * value_depth);
        let mut mixed = vec![Tile::ZERO; value_panels];
        let mut log_sums = vec![0f32; strip];
        let mut scales = vec![0f32; strip];
        let mut row_values = vec![0f32; value_panels * PANEL];
        self.with_tiles::<E, _>(|| {
            for first in (0..self.count).step_by(strip) {
                let rows = (self.count - first).min(strip);
                self.copy_rows(self.queries, first, rows, queries.as_mut());
                let (from, to) = self.panel_range(first, rows);
                let scores = scores.as_mut_ptr().cast::<f32>();
                for panel in from..to {
                    // SAFETY: `rows` copied query rows, a whole panel of keys, room for the panel's scores.
                    unsafe {
                        let panel_keys = packed_keys.words.as_ptr().cast::<E>().add(panel * padded * PANEL);
                        let out = scores.add(panel * strip * PANEL);
                        self.multiply(rows, padded, queries.as_mut().as_ptr(), padded, panel_keys, out, false);
                    }
                }
                let depth = (to - from) * PANEL;
                for row in 0..rows {
                    let position = self.past + first + row;
                    let seen = self.geometry.first_key(position)..position + 1;
                    // SAFETY: the strip's scores were just written.
                    let score = |panel: usize| unsafe {
                        std::slice::from_raw_parts_mut(scores.add((panel * strip + row) * PANEL), PANEL)
                    };
                    let mut largest = [f32::NEG_INFINITY; PANEL];
                    for panel in from..to {
                        let values = score(panel);
                        hide(values, panel * PANEL, &seen);
                        raise(&mut largest, values);
                    }
                    let largest = largest.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
                    let largest = largest * self.geometry.scale();
                    let mut sums = [0f32; PANEL];
                    for panel in from..to {
                        let values = score(panel);
                        exponentiate(values, self.geometry.scale(), largest, &mut sums);
                        let at = row * value_depth + (panel - from) * PANEL;
                        E::narrow_from(values, &mut probabilities.as_mut()[at..at + PANEL]);
                    }
                    let sum: f32 = sums.iter().sum();
                    log_sums[row] = largest + sum.ln();
                    scales[row] = 1.0 / sum;
                }
                for (index, mixed) in mixed.iter_mut().enumerate() {
                    // SAFETY: `rows` rows of `depth` probabilities; the values' panel from key `from * 32` on.
                    unsafe {
                        let at = (index * value_depth + from * PANEL) * PANEL;
                        let panel = packed_values.words.as_ptr().cast::<E>().add(at);
                        let out = mixed.0.as_mut_ptr();
                        self.multiply(rows, depth, probabilities.as_mut().as_ptr(), value_depth, panel, out, false);
                    }
                }
                for row in 0..rows {
                    for (values, mixed) in row_values.chunks_exact_mut(PANEL).zip(&mixed) {
                        let sums = &mixed.0[row * PANEL..(row + 1) * PANEL];
                        values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum * scales[row]);
                    }
                    emit(first + row, &row_values[..dim], log_sums[row]);
                }
            }
        });
    }

    /// Panels of keys that queries `first..first + rows` see.
    fn panel_range(&self, first: usize, rows: usize) -> (usize, usize) {
        let last = self.past + first + rows - 1;
        (self.geometry.first_key(self.past + first) / PANEL, last / PANEL + 1)
    }

    /// Calls `emit(query, dq)` for every query; returns the share of the keys and values.
    ///
    /// With `P = exp(s·q·kᵀ − log_sum)`: `dV = Pᵀ·g`, `dP = g·Vᵀ`, `dS = s·P∘(dP − rowsum(P∘dP))`, `dq = dS·K`,
    /// `dK = dSᵀ·q` (Dao et al. 2022, "FlashAttention", appendix B).
    fn backward<E: Element>(
        &self,
        gradient: Rows<'_>,
        log_sum: impl Fn(usize) -> f32,
        mut emit: impl FnMut(usize, &[f32]),
    ) -> Share {
        let dim = self.geometry.head_dim;
        let padded = dim.next_multiple_of(E::DEPTH_UNIT);
        let (keys, scale) = (self.count, self.geometry.scale());
        let panels = keys.div_ceil(PANEL);
        let dim_panels = dim.div_ceil(PANEL);
        let key_depth = panels * PANEL;
        let packed_keys = self.pack_as_columns::<E>(self.keys, keys);
        let packed_values = self.pack_as_columns::<E>(self.values, keys);
        let mut key_rows = Aligned::<E>::new(dim_panels * key_depth * PANEL);
        self.pack_as_rows(self.keys, keys, key_depth, key_rows.as_mut());
        let block = QUERY_BLOCK.min(self.count.next_multiple_of(E::DEPTH_UNIT));
        let mut queries = Aligned::<E>::new(block * padded);
        let mut g = Aligned::<E>::new(block * padded);
        // [dim, block]: the left side of `dKᵀ` and `dVᵀ`.
        let mut queries_across = Aligned::<E>::new(dim * block);
        let mut g_across = Aligned::<E>::new(dim * block);
        let size = Tile::ZERO.0.len();
        let mut probabilities = vec![Tile::ZERO; (panels * block * PANEL).div_ceil(size)];
        let mut d_scores = vec![Tile::ZERO; (panels * block * PANEL).div_ceil(size)];
        // `P` and `dS` as the right side of the transposed products, `dS` also as the left side of `dq`.
        let mut right_p = Aligned::<E>::new(panels * block * PANEL);
        let mut right_ds = Aligned::<E>::new(panels * block * PANEL);
        let mut left_ds = Aligned::<E>::new(block * key_depth);
        let mut dq = vec![Tile::ZERO; (dim_panels * block * PANEL).div_ceil(size)];
        let mut share = Share { keys: Transposed::new(panels, dim), values: Transposed::new(panels, dim) };
        let mut dq_row = vec![0f32; dim_panels * PANEL];
        self.with_tiles::<E, _>(|| {
            for first in (0..self.count).step_by(block) {
                let rows = (self.count - first).min(block);
                let depth = rows.next_multiple_of(E::DEPTH_UNIT);
                let (from, to) = self.panel_range(first, rows);
                self.copy_rows(self.queries, first, rows, queries.as_mut());
                self.copy_rows(gradient, first, rows, g.as_mut());
                across(queries.as_mut(), padded, rows, dim, block, queries_across.as_mut());
                across(g.as_mut(), padded, rows, dim, block, g_across.as_mut());
                let (p, ds) = (probabilities.as_mut_ptr().cast::<f32>(), d_scores.as_mut_ptr().cast::<f32>());
                for panel in from..to {
                    // SAFETY: `rows` copied rows on the left, whole panels on the right, room for their product.
                    unsafe {
                        let at = panel * padded * PANEL;
                        let out = panel * block * PANEL;
                        let (k, v) = (packed_keys.words.as_ptr().cast::<E>(), packed_values.words.as_ptr().cast::<E>());
                        self.multiply(rows, padded, queries.as_mut().as_ptr(), padded, k.add(at), p.add(out), false);
                        self.multiply(rows, padded, g.as_mut().as_ptr(), padded, v.add(at), ds.add(out), false);
                    }
                }
                for row in 0..rows {
                    let position = self.past + first + row;
                    let seen = self.geometry.first_key(position)..position + 1;
                    // SAFETY: the block's products were just written; the two buffers are distinct.
                    let part = |buffer: *mut f32, panel: usize| unsafe {
                        std::slice::from_raw_parts_mut(buffer.add((panel * block + row) * PANEL), PANEL)
                    };
                    let (mut sums, mut shared) = ([0f32; PANEL], [0f32; PANEL]);
                    for panel in from..to {
                        let p = part(p, panel);
                        hide(p, panel * PANEL, &seen);
                        exponentiate(p, scale, log_sum(first + row), &mut sums);
                        add_products(&mut shared, p, part(ds, panel));
                    }
                    let shared: f32 = shared.iter().sum();
                    for panel in from..to {
                        let (p, ds) = (part(p, panel), part(ds, panel));
                        score_gradient(p, ds, shared, scale);
                        let at = panel * block * PANEL;
                        write_right(p, row, &mut right_p.as_mut()[at..at + block * PANEL]);
                        write_right(ds, row, &mut right_ds.as_mut()[at..at + block * PANEL]);
                        let at = row * key_depth + (panel - from) * PANEL;
                        E::narrow_from(ds, &mut left_ds.as_mut()[at..at + PANEL]);
                    }
                }
                for panel in from..to {
                    for row in rows..depth {
                        let at = panel * block * PANEL;
                        write_depth_row::<f32, E>(&[], 1.0, row, &mut right_p.as_mut()[at..at + block * PANEL]);
                        write_depth_row::<f32, E>(&[], 1.0, row, &mut right_ds.as_mut()[at..at + block * PANEL]);
                    }
                    // SAFETY: `dim` rows of `depth` values on the left, `depth` rows of the panel on the right; the
                    // share has `dim` rows for every panel.
                    unsafe {
                        let right = panel * block * PANEL;
                        let (p, ds) = (right_p.as_mut().as_ptr().add(right), right_ds.as_mut().as_ptr().add(right));
                        let (dv, dk) = (share.values.panel(panel), share.keys.panel(panel));
                        self.multiply(dim, depth, g_across.as_mut().as_ptr(), block, p, dv, true);
                        self.multiply(dim, depth, queries_across.as_mut().as_ptr(), block, ds, dk, true);
                    }
                }
                let dq = dq.as_mut_ptr().cast::<f32>();
                for index in 0..dim_panels {
                    // SAFETY: `rows` rows of score gradients; the keys' panel from key `from * 32` on.
                    unsafe {
                        let at = (index * key_depth + from * PANEL) * PANEL;
                        let (left, right) = (left_ds.as_mut().as_ptr(), key_rows.words.as_ptr().cast::<E>().add(at));
                        let out = dq.add(index * block * PANEL);
                        self.multiply(rows, (to - from) * PANEL, left, key_depth, right, out, false);
                    }
                }
                for row in 0..rows {
                    for (index, values) in dq_row.chunks_exact_mut(PANEL).enumerate() {
                        // SAFETY: this row was just written.
                        let sums = unsafe { std::slice::from_raw_parts(dq.add((index * block + row) * PANEL), PANEL) };
                        values.copy_from_slice(sums);
                    }
                    emit(first + row, &dq_row[..dim]);
                }
            }
        });
        share
    }
}

/// Depth row `row` of a right-hand panel, from all of its 32 values.
fn write_right<E: Element>(values: &[f32], row: usize, panel: &mut [E]) {
    match E::as_bf16(panel) {
        Some(panel) => write_half_pair(values, row % 2 == 1, &mut panel[row / 2 * 2 * PANEL..][..2 * PANEL]),
        None => write_depth_row(values, 1.0, row, panel),
    }
}

vectorised! {
    /// The lower or the upper halves of a row of pairs, rounded to bf16.
    fn write_half_pair(values: &[f32], upper: bool, pairs: &mut [bf16]) {
        let words: &mut [u32] = bytemuck::cast_slice_mut(pairs);
        let (keep, shift) = if upper { (0x0000_ffff, 16) } else { (0xffff_0000, 0) };
        for (word, value) in words.iter_mut().zip(values) {
            let bits = u32::from(crate::quant::float::f32_to_bf16_bits(*value));
            *word = *word & keep | bits << shift;
        }
    }
}

/// `[rows, dim]` (stride `padded`) to `[dim, block]`; columns beyond `rows` are zero.
fn across<E: Element>(values: &[E], padded: usize, rows: usize, dim: usize, block: usize, out: &mut [E]) {
    for (d, out) in out.chunks_exact_mut(block).take(dim).enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            *out = if row < rows { values[row * padded + d] } else { E::zeroed() };
        }
    }
}

/// Scores of keys outside `seen` become −∞; `first` is the key of the first score.
fn hide(scores: &mut [f32], first: usize, seen: &std::ops::Range<usize>) {
    if first < seen.start || first + scores.len() > seen.end {
        for (index, score) in scores.iter_mut().enumerate() {
            if !seen.contains(&(first + index)) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

vectorised! {
    /// The larger of each lane.
    fn raise(largest: &mut [f32; PANEL], values: &[f32]) {
        for (largest, value) in largest.iter_mut().zip(values) {
            *largest = if *value > *largest { *value } else { *largest };
        }
    }
}

vectorised! {
    /// `exp(scale·score − shift)` in place, added to `sums` lane by lane.
    fn exponentiate(scores: &mut [f32], scale: f32, shift: f32, sums: &mut [f32; PANEL]) {
        for (score, sum) in scores.iter_mut().zip(sums) {
            *score = exp(*score * scale - shift);
            *sum += *score;
        }
    }
}

vectorised! {
    fn add_products(sums: &mut [f32; PANEL], a: &[f32], b: &[f32]) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
}

vectorised! {
    /// `ds` becomes `scale·p·(ds − shared)`.
    fn score_gradient(p: &[f32], ds: &mut [f32], shared: f32, scale: f32) {
        for (p, ds) in p.iter().zip(ds) {
            *ds = scale * p * (*ds - shared);
        }
    }
}
