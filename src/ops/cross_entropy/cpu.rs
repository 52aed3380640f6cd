//! [`cross_entropy`](super::cross_entropy()) on the processor.
//!
//! The gradient is made together with the loss, while a chunk's logits are at hand: `d logits = softmax − onehot`,
//! written over them. The backward pass only scales it.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use half::bf16;

use super::{LOGITS_BYTES, Targets};
use crate::ops::cpu::autograd::{Kernel, apply, dims, f32s, from_f32, plain, rows};
use crate::ops::cpu::isa::{Isa, vectorised};
use crate::ops::cpu::kernel::Element;
use crate::ops::cpu::math::exp;
use crate::ops::cpu::matrix::{Matrix, Views};
use crate::ops::cpu::pack::{Columns, PlainColumns, RowsAsColumns};
use crate::ops::cpu::product::{Epilogue, Rows, Target, Term, product};
use crate::ops::cpu::reduce::{sum_outer, transpose};
use crate::ops::cpu::rowwise::for_each_row;
use crate::ops::linear::Projected;

/// Vocabulary entries summed over in one product of the backward pass.
const VOCABULARY_BLOCK: usize = 4096;

#[derive(Debug, Clone)]
struct CrossEntropy {
    weight: Arc<Matrix>,
    bias: Option<Arc<[f32]>>,
    targets: Arc<Targets>,
    /// Scale of the head's low-rank pair, whose factors are then inputs 1 and 2.
    pair: Option<f32>,
}

/// Gradients for an upstream gradient of 1.
#[derive(Debug, Clone)]
struct Saved {
    hidden: FlexTensor,
    factors: Option<(FlexTensor, FlexTensor)>,
}

/// See [`cross_entropy`](super::cross_entropy()).
pub fn cross_entropy(hidden: Tensor<2>, head: &Projected<'_>, targets: &Targets) -> Tensor<2> {
    let kernel = CrossEntropy::new(head, targets);
    match &head.low_rank {
        Some(pair) => apply::<3, _>(kernel, [hidden, pair.a.clone(), pair.b.clone()]),
        None => apply::<1, _>(kernel, [hidden]),
    }
}

/// See [`losses`](super::losses).
pub fn losses(hidden: Tensor<2>, head: &Projected<'_>, targets: &Targets) -> Vec<f32> {
    let kernel = CrossEntropy::new(head, targets);
    let hidden = plain(hidden);
    let factors = head.low_rank.as_ref().map(|pair| (plain(pair.a.clone()), plain(pair.b.clone())));
    kernel.run_any(&hidden, factors.as_ref(), false).0
}

impl CrossEntropy {
    fn new(head: &Projected<'_>, targets: &Targets) -> Self {
        Self {
            weight: head.weight.matrix().expect("the caller checked").clone(),
            bias: head.bias.map(Arc::from),
            targets: targets.into(),
            pair: head.low_rank.as_ref().map(|pair| pair.scale),
        }
    }

    fn run_any(
        &self,
        hidden: &FlexTensor,
        factors: Option<&(FlexTensor, FlexTensor)>,
        gradient: bool,
    ) -> (Vec<f32>, Option<Saved>) {
        if hidden.dtype() == DType::BF16 && Isa::current().multiplies_bf16() {
            self.run::<bf16>(hidden, factors, gradient)
        } else {
            self.run::<f32>(hidden, factors, gradient)
        }
    }

    /// The loss of each target, and the gradients if wanted.
    fn run<E: Element>(
        &self,
        hidden: &FlexTensor,
        factors: Option<&(FlexTensor, FlexTensor)>,
        gradient: bool,
    ) -> (Vec<f32>, Option<Saved>)
    where
        Matrix: Views<E>,
    {
        let [tokens, width] = dims(hidden);
        let vocabulary = self.weight.rows();
        let rank = factors.map_or(0, |(a, _)| dims(a)[0]);
        let chunk = (LOGITS_BYTES / (vocabulary * 4).max(1)).clamp(16, 1024);
        let source = rows(hidden);
        let mut losses = Vec::with_capacity(self.targets.len());
        let mut d_hidden = if gradient { vec![0f32; tokens * width] } else { Vec::new() };
        let (mut da, mut db) = (vec![0f32; rank * width], vec![0f32; rank * vocabulary]);
        let mut logits = vec![0f32; chunk.min(self.targets.len()) * vocabulary];
        for targets in self.targets.chunks(chunk) {
            let count = targets.len();
            let mut picked = vec![0f32; count * width];
            for (&(row, _), values) in targets.iter().zip(picked.chunks_exact_mut(width)) {
                source.read(row as usize, 0, values);
            }
            let picked_rows = Rows::F32 { data: &picked, stride: width };
            let logits = &mut logits[..count * vocabulary];
            let low = factors.map(|(a, _)| {
                let columns = RowsAsColumns { data: f32s(a), stride: width, depth: width, scale: 1.0 };
                multiply::<E>(count, rank, picked_rows, &columns)
            });
            self.logits::<E>(picked_rows, low.as_deref().zip(factors), logits);
            losses.extend(softmax_gradient(logits, vocabulary, targets));
            if !gradient {
                continue;
            }
            let d_logits = in_format_of::<E>(logits, vocabulary);
            let mut d_picked = vec![0f32; count * width];
            self.sum_over_vocabulary::<E>(d_logits, count, &mut d_picked);
            if let (Some((a, b)), Some(low), Some(scale)) = (factors, &low, self.pair) {
                let columns = PlainColumns { data: f32s(b), stride: rank, depth: vocabulary, scale };
                let d_low = multiply::<E>(count, rank, d_logits, &columns);
                let d_low_rows = Rows::F32 { data: &d_low, stride: rank };
                let columns = PlainColumns { data: f32s(a), stride: width, depth: rank, scale: 1.0 };
                let target = Target::f32(&mut d_picked, width);
                let term = Term::<E> { rows: d_low_rows, columns: &columns };
                product(count, width, &[term], Epilogue { accumulate: true, ..Epilogue::default() }, target);
                add(&mut da, &sum_outer(&d_low, rank, picked_rows, width, 1.0));
                add(&mut db, &sum_outer(low, rank, d_logits, vocabulary, scale));
            }
            for (&(row, _), values) in targets.iter().zip(d_picked.chunks_exact(width)) {
                add(&mut d_hidden[row as usize * width..][..width], values);
            }
        }
        let saved = gradient.then(|| Saved {
            hidden: from_f32(d_hidden, tokens, width),
            factors: factors
                .map(|_| (from_f32(da, rank, width), from_f32(transpose(&db, rank, vocabulary), vocabulary, rank))),
        });
        (losses, saved)
    }

    fn logits<E: Element>(&self, hidden: Rows<'_>, low: Option<(&[f32], &(FlexTensor, FlexTensor))>, logits: &mut [f32])
    where
        Matrix: Views<E>,
    {
        let vocabulary = self.weight.rows();
        let count = logits.len() / vocabulary;
        let weight = Views::<E>::forward_columns(&*self.weight);
        let mut terms = vec![Term { rows: hidden, columns: &*weight }];
        let update = low.map(|(low, (a, b))| {
            let rank = dims(a)[0];
            let scale = self.pair.unwrap_or(1.0);
            (Rows::F32 { data: low, stride: rank }, RowsAsColumns { data: f32s(b), stride: rank, depth: rank, scale })
        });
        if let Some((rows, columns)) = &update {
            terms.push(Term { rows: *rows, columns });
        }
        let target = Target::f32(logits, vocabulary);
        let epilogue = Epilogue { bias: self.bias.as_deref(), ..Epilogue::default() };
        product(count, vocabulary, &terms, epilogue, target);
    }

    /// `d hidden = d logits · W`, a block of the vocabulary at a time so that packed panels stay small.
    fn sum_over_vocabulary<E: Element>(&self, d_logits: Rows<'_>, count: usize, d_hidden: &mut [f32])
    where
        Matrix: Views<E>,
    {
        let width = self.weight.columns();
        for first in (0..self.weight.rows()).step_by(VOCABULARY_BLOCK) {
            let block = VOCABULARY_BLOCK.min(self.weight.rows() - first);
            let columns = Views::<E>::gradient_columns_of(&*self.weight, first, block);
            let term = Term { rows: d_logits.from_column(first), columns: &*columns };
            let target = Target::f32(d_hidden, width);
            let epilogue = Epilogue { accumulate: first > 0, ..Epilogue::default() };
            product(count, width, &[term], epilogue, target);
        }
    }
}

impl<const N: usize> Kernel<N> for CrossEntropy {
    type Saved = Saved;

    fn forward(&self, inputs: [&FlexTensor; N], save: bool) -> (FlexTensor, Option<Saved>) {
        let factors = self.pair.map(|_| (inputs[1].clone(), inputs[2].clone()));
        let (losses, saved) = self.run_any(inputs[0], factors.as_ref(), save);
        let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        (from_f32(vec![sum as f32], 1, 1), saved)
    }

    fn backward(&self, saved: Saved, gradient: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let upstream = f32s(&gradient)[0];
        let scaled = |tensor: FlexTensor| {
            let [rows, columns] = dims(&tensor);
            let mut values = f32s(&tensor).to_vec();
            drop(tensor);
            values.iter_mut().for_each(|value| *value *= upstream);
            from_f32(values, rows, columns)
        };
        let mut gradients = [const { None }; N];
        if wanted[0] {
            gradients[0] = Some(scaled(saved.hidden));
        }
        if let Some((a, b)) = saved.factors {
            gradients[1] = Some(scaled(a));
            gradients[2] = Some(scaled(b));
        }
        gradients
    }
}

/// A small product in f32.
fn multiply<E: Element>(count: usize, columns: usize, left: Rows<'_>, right: &dyn Columns<E>) -> Vec<f32> {
    let mut out = vec![0f32; count * columns];
    let target = Target::f32(&mut out, columns);
    product(count, columns, &[Term { rows: left, columns: right }], Epilogue::default(), target);
    out
}

/// The rows of `values` in the kernel's number format. bf16 is written over the first half of each row, once, rather
/// than converted again by every product that reads it.
fn in_format_of<E: Element>(values: &mut [f32], width: usize) -> Rows<'_> {
    if E::DEPTH_UNIT == 1 {
        return Rows::F32 { data: values, stride: width };
    }
    for_each_row(values, width, 0, |_, row, _| narrow_in_place(row));
    Rows::Bf16 { data: bytemuck::cast_slice(values), stride: 2 * width }
}

vectorised! {
    fn narrow_in_place(row: &mut [f32]) {
        const LANES: usize = 32;
        let width = row.len();
        for first in (0..width).step_by(LANES) {
            let count = LANES.min(width - first);
            let mut narrowed = [bf16::ZERO; LANES];
            for (narrowed, value) in narrowed.iter_mut().zip(&row[first..first + count]) {
                *narrowed = <bf16 as Element>::round(*value);
            }
            // What is overwritten has been read: value `i` moves to half of its place.
            let halves: &mut [bf16] = bytemuck::cast_slice_mut(row);
            for (half, narrowed) in halves[first..first + count].iter_mut().zip(narrowed) {
                *half = narrowed;
            }
        }
    }
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// Turns each row of logits into `softmax − onehot`; returns the losses.
fn softmax_gradient(logits: &mut [f32], vocabulary: usize, targets: &Targets) -> Vec<f32> {
    let losses = std::sync::Mutex::new(vec![0f32; targets.len()]);
    for_each_row(logits, vocabulary, 0, |row, logits, _| {
        let target = targets[row].1 as usize;
        let picked = logits[target];
        let (largest, sum) = softmax(logits);
        logits[target] -= 1.0;
        let loss = largest + sum.ln() - picked;
        if let Ok(mut losses) = losses.lock() {
            losses[row] = loss;
        }
    });
    losses.into_inner().unwrap_or_default()
}

vectorised! {
    /// Softmax in place; the largest logit and `Σ exp(logit − largest)`.
    fn softmax(logits: &mut [f32]) -> (f32, f32) {
        const LANES: usize = 32;
        let mut largest = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = logits.as_chunks::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                largest[lane] = if values[lane] > largest[lane] { values[lane] } else { largest[lane] };
            }
        }
        let largest = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut sums = [0f32; LANES];
        let (whole, rest) = logits.as_chunks_mut::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                values[lane] = exp(values[lane] - largest);
                sums[lane] += values[lane];
            }
        }
        let mut sum: f32 = sums.iter().sum();
        for value in rest {
            *value = exp(*value - largest);
            sum += *value;
        }
        let scale = 1.0 / sum;
        for value in logits.iter_mut() {
            *value *= scale;
        }
        (largest, sum)
    }
}
