//! The gradients that an adapted head's low-rank pair takes part in.

use burn_flex::FlexTensor;

use super::softmax::{SoftmaxRow, exponentials_of, softmax};
use super::spread::Spread;
use super::{Chunk, CrossEntropy, Pair, SavedPair, Targets, add_scaled, drop_by_target, multiply};
use crate::ops::cpu::autograd::{dims, f32s, from_f32};
use crate::ops::cpu::kernel::Element;
use crate::ops::cpu::matrix::{Matrix, Views};
use crate::ops::cpu::pack::PlainColumns;
use crate::ops::cpu::product::{Epilogue, Part, Term, product};
use crate::ops::cpu::reduce::{Outer, sum_outers, transpose};
use crate::ops::cpu::rows::{OutputBuffer, Rows};

impl CrossEntropy {
    /// The gradients of `A` and `B`, with a weight for each loss.
    pub(super) fn factor_gradients<E: Element>(&self, saved: &SavedPair, weights: &[f32]) -> [FlexTensor; 2]
    where
        Matrix: Views<E>,
    {
        let SavedPair { hidden, pair, d_low } = saved;
        let (width, vocabulary, rank, scale) = (dims(hidden)[1], self.weight.rows(), pair.rank, pair.scale);
        let (mut da, mut db) = (vec![0f32; rank * width], vec![0f32; rank * vocabulary]);
        let (chunks, mut logits) = self.chunks();
        for range in chunks {
            let chunk = self.chunk::<E>(hidden, Some(pair), range.clone());
            let logits = &mut logits[..range.len() * vocabulary];
            self.logits::<E>(&chunk, Some(pair), logits);
            let softmax_rows = softmax::<E>(logits, vocabulary, chunk.targets, self.softcap, self.smoothing);
            let exponentials = exponentials_of::<E>(logits, vocabulary);
            let weights = &weights[range.clone()];
            let weighted = |values: &[f32], weight: &dyn Fn(usize) -> f32| -> Vec<f32> {
                let rows = values.chunks_exact(rank).enumerate();
                rows.flat_map(|(row, values)| values.iter().map(move |value| value * weight(row))).collect()
            };
            let d_low = weighted(&d_low[range.start * rank..range.end * rank], &|row| weights[row]);
            // Against the exponentials; what the targets and label smoothing take away follows.
            let low = weighted(&chunk.low, &|row| softmax_rows[row].factor * weights[row]);
            let sums = sum_outers(&[
                Outer { left: (&d_low, rank), rank, right: chunk.pair_rows(), width, scale: 1.0 },
                Outer { left: (&low, rank), rank, right: exponentials, width: vocabulary, scale },
            ]);
            add_scaled(&mut da, 1.0, &sums[0]);
            add_scaled(&mut db, 1.0, &sums[1]);
            if self.spreads() {
                let mut sum = vec![0f32; rank];
                for (values, weight) in chunk.low.chunks_exact(rank).zip(weights) {
                    add_scaled(&mut sum, *weight, values);
                }
                let share = scale * self.smoothing / vocabulary as f32;
                for (sum, db) in sum.into_iter().zip(db.chunks_exact_mut(vocabulary)) {
                    db.iter_mut().for_each(|value| *value -= share * sum);
                }
            }
            for (row, values) in chunk.low.chunks_exact(rank).enumerate() {
                let factor = scale * softmax_rows[row].target_slope * weights[row];
                for (r, value) in values.iter().enumerate() {
                    db[r * vocabulary + chunk.targets[row].1 as usize] -= factor * value;
                }
            }
        }
        [from_f32(da, rank, width), from_f32(transpose(&db, rank, vocabulary), vocabulary, rank)]
    }
}

/// The gradient of each loss with respect to `drop(h)·Aᵀ`, `[targets, rank]`: `s·(d logits)·B`.
pub(super) fn low_gradient<E: Element>(
    pair: &Pair,
    chunk: &Chunk<'_>,
    exponentials: Rows<'_>,
    softmax_rows: &[SoftmaxRow],
    spread: Option<&Spread>,
) -> Vec<f32> {
    let Pair { rank, scale, .. } = *pair;
    let b = f32s(&pair.b);
    let columns = PlainColumns { data: b, stride: rank, depth: b.len() / rank, scale };
    let mut d_low = multiply::<E>(chunk.targets.len(), rank, exponentials, &columns);
    for ((values, &(_, target)), row) in d_low.chunks_exact_mut(rank).zip(chunk.targets).zip(softmax_rows) {
        let b = &b[target as usize * rank..][..rank];
        values.iter_mut().zip(b).for_each(|(value, b)| *value = *value * row.factor - row.target_slope * scale * b);
        if let Some(spread) = spread {
            add_scaled(values, -spread.share, &spread.d_low);
        }
    }
    d_low
}

/// Adds `drop'(d_low·A)` to the gradient of the hidden states of some targets.
pub(super) fn add_low_gradient<E: Element>(
    pair: &Pair,
    d_low: &[f32],
    targets: &Targets,
    d_picked: &mut [f32],
    width: usize,
) {
    let (rank, count) = (pair.rank, targets.len());
    let columns = PlainColumns { data: f32s(&pair.a), stride: width, depth: rank, scale: 1.0 };
    let rows = Rows::F32 { data: d_low, stride: rank };
    let Some(dropout) = &pair.dropout else {
        let part = Part::whole(width, Term::<E> { rows, columns: &columns });
        let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
        return product(count, &part, epilogue, OutputBuffer::f32(d_picked, width));
    };
    let mut share = multiply::<E>(count, width, rows, &columns);
    drop_by_target(&mut share, dropout, targets, width);
    add_scaled(d_picked, 1.0, &share);
}
