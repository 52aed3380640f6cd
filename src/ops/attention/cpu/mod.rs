//! Attention on the processor: a few query rows at a time against packed keys and values.
//!
//! Keys and values are packed once for all query heads that share them. A task is one query head of one sequence (in the
//! forward pass some of its queries): scores of a strip of query rows are computed panel by panel (32 keys), turned into
//! probabilities, and multiplied by the packed values; the backward pass computes them again from the saved log-sum and
//! accumulates `dKᵀ` and `dVᵀ` in tiles. Query heads that share a key head are summed in order, so the result does not
//! depend on the number of threads.

mod backward;
mod cached;
mod head;
mod packed;
mod rotate;
mod scores;

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use half::bf16;

pub use self::cached::cached_attention;
use self::head::Head;
use self::packed::{Packed, Share, Transposed};
use self::rotate::{Places, rotate, rotate_back};
use super::Geometry;
use crate::ops::cpu::autograd::{Kernel, Output, apply, dims, rows};
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::kernel::{Element, PANEL};
use crate::ops::cpu::pool;
use crate::ops::cpu::rows::Rows;
use crate::ops::cpu::shared::SharedMut;

/// Queries of a task of the forward pass: few enough that one long sequence keeps every thread busy.
const QUERIES_PER_TASK: usize = 384;

struct Attention {
    lengths: Arc<[usize]>,
    geometry: Geometry,
}

struct Saved {
    /// `q | k | v`, rotated.
    rotated: FlexTensor,
    /// `ln Σ exp(scores)` by query and head, `[tokens, heads]`.
    log_sums: Vec<f32>,
}

/// See [`attention`](super::attention).
pub fn attention(qkv: Tensor<2>, lengths: &[usize], geometry: &Geometry) -> Tensor<2> {
    apply(Attention { lengths: lengths.into(), geometry: geometry.clone() }, vec![qkv])
}

impl Attention {
    fn places(&self) -> Places {
        Places::of(self.lengths.iter().map(|&length| (0, length)), &self.geometry)
    }

    /// First row and length of every sequence.
    fn sequences(&self) -> impl Iterator<Item = (usize, usize)> {
        self.lengths.iter().scan(0, |end, &length| {
            *end += length;
            Some((*end - length, length))
        })
    }

    /// `pack(keys, values, length)` of every key head of every sequence, in order.
    fn pack<P: Send>(&self, rotated: Rows<'_>, pack: impl Fn(Rows<'_>, Rows<'_>, usize) -> P + Sync) -> Vec<P> {
        let Geometry { heads, kv_heads, head_dim, .. } = self.geometry;
        let sequences: Vec<_> = self.sequences().collect();
        pool::map(sequences.len() * kv_heads, |task| {
            let (start, length) = sequences[task / kv_heads];
            let from = |head: usize| rotated.from_row(start).from_column(head * head_dim);
            let head = heads + task % kv_heads;
            pack(from(head), from(head + kv_heads), length)
        })
    }

    /// The query head at `start`, and which of the packed heads it shares.
    fn head<'a>(&'a self, rotated: Rows<'a>, (start, length): (usize, usize), head: usize) -> Head<'a> {
        let queries = rotated.from_row(start).from_column(head * self.geometry.head_dim);
        Head { isa: Isa::current(), queries, count: length, past: 0, geometry: &self.geometry }
    }

    fn run<E: Element>(&self, rotated: &FlexTensor) -> (FlexTensor, Vec<f32>) {
        let [tokens, _] = dims(rotated);
        let Geometry { heads, kv_heads, head_dim, .. } = self.geometry;
        let width = heads * head_dim;
        let source = rows(rotated);
        let packed = self.pack(source, |keys, values, length| {
            (Packed::<E>::columns(keys, length, head_dim), Packed::<E>::rows(values, length, head_dim))
        });
        let mut log_sums = vec![0f32; tokens * heads];
        let mut out = Output::new(rotated.dtype(), tokens * width);
        let sums = SharedMut::new(&mut log_sums);
        let target = out.shared();
        let mut tasks = Vec::new();
        for (index, sequence) in self.sequences().enumerate() {
            for first in (0..sequence.1).step_by(QUERIES_PER_TASK) {
                let wanted = first..(first + QUERIES_PER_TASK).min(sequence.1);
                tasks.extend((0..heads).map(|head| (index, sequence, wanted.clone(), head)));
            }
        }
        pool::for_each(tasks.len(), |task| {
            let (index, sequence, wanted, head) = &tasks[task];
            let (start, head) = (sequence.0, *head);
            let (keys, values) = &packed[index * kv_heads + head / (heads / kv_heads)];
            self.head(source, *sequence, head).forward(wanted.clone(), keys, values, |query, mixed, log_sum| {
                // SAFETY: this head of this row belongs to this task alone.
                unsafe {
                    target.write((start + query) * width + head * head_dim, mixed);
                    sums.set((start + query) * heads + head, log_sum);
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
        let packed = self.pack(source, |keys, values, length| {
            (
                Packed::<E>::columns(keys, length, head_dim),
                Packed::<E>::columns(values, length, head_dim),
                Packed::<E>::rows(keys, length, head_dim),
            )
        });
        let mut dqkv = Output::new(DType::F32, tokens * width);
        let target = dqkv.shared();
        let sequences: Vec<_> = self.sequences().collect();
        // A key head's share from each of its query heads, summed below in order.
        let shares = pool::map(sequences.len() * heads, |task| {
            let (index, head) = (task / heads, task % heads);
            let start = sequences[index].0;
            let (keys, values, key_rows) = &packed[index * kv_heads + head / group];
            let log_sum = |query: usize| saved.log_sums[(start + query) * heads + head];
            let g = g_rows.from_row(start).from_column(head * head_dim);
            let job = self.head(source, sequences[index], head);
            job.backward((keys, values, key_rows), g, log_sum, |query, dq| {
                // SAFETY: the query columns of this head of this row belong to this task alone.
                unsafe { target.write((start + query) * width + head * head_dim, dq) };
            })
        });
        pool::for_each(packed.len(), |task| {
            let (index, kv_head) = (task / kv_heads, task % kv_heads);
            let (start, length) = sequences[index];
            let shares = &shares[index * heads + kv_head * group..][..group];
            let mut sums = vec![0f32; head_dim * PANEL];
            let mut row = vec![0f32; head_dim];
            for (of, column) in
                [((|share| &share.keys) as fn(&Share) -> &Transposed, heads), (|share| &share.values, heads + kv_heads)]
            {
                for first in (0..length).step_by(PANEL) {
                    sums.fill(0.0);
                    for share in shares {
                        let panel = of(share).panel(first / PANEL);
                        sums.iter_mut().zip(panel).for_each(|(sum, value)| *sum += value);
                    }
                    for key in first..length.min(first + PANEL) {
                        for (value, sums) in row.iter_mut().zip(sums.chunks_exact(PANEL)) {
                            *value = sums[key - first];
                        }
                        // SAFETY: the columns of this key head of this row belong to this task alone.
                        unsafe { target.write((start + key) * width + (column + kv_head) * head_dim, &row) };
                    }
                }
            }
        });
        // SAFETY: the columns of every query, key and value head were written for every token.
        let dqkv = unsafe { dqkv.into_tensor(tokens, width) };
        rotate_back(&dqkv, &self.places(), &self.geometry, saved.rotated.dtype())
    }
}

impl Kernel for Attention {
    type Saved = Saved;

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<Saved>) {
        let qkv = &inputs[0];
        let rotated = rotate(qkv, &self.places(), &self.geometry, qkv.dtype());
        let (y, log_sums) = if qkv.dtype() == DType::BF16 && Isa::current().multiplies_bf16() {
            self.run::<bf16>(&rotated)
        } else {
            self.run::<f32>(&rotated)
        };
        (y, save.then_some(Saved { rotated, log_sums }))
    }

    fn backward(&self, saved: Saved, gradient: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        let bf16_kernel = saved.rotated.dtype() == DType::BF16 && Isa::current().multiplies_bf16();
        let dqkv = if bf16_kernel {
            self.gradients::<bf16>(&saved, &gradient)
        } else {
            self.gradients::<f32>(&saved, &gradient)
        };
        vec![Some(dqkv)]
    }
}
