//! [`cross_entropy`](super::cross_entropy()) on the processor.
//!
//! The gradient is made together with the loss, while a chunk's logits are at hand: `d logits = softmax − onehot`. The
//! backward pass only scales it.

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
use crate::ops::cpu::product::{Epilogue, Part, Rows, SharedMut, Target, Term, product};
use crate::ops::cpu::reduce::{Outer, sum_outers, transpose};
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
            if !gradient {
                losses.extend(losses_of(logits, vocabulary, targets));
                continue;
            }
            let softened = soften::<E>(logits, vocabulary, targets);
            losses.extend(softened.iter().map(|row| row.loss));
            let powers = powers_of::<E>(logits, vocabulary);
            let mut d_picked = vec![0f32; count * width];
            self.sum_over_vocabulary::<E>(powers, count, &mut d_picked);
            for_each_row(&mut d_picked, width, width, |row, values, scratch| {
                self.weight.decode(targets[row].1 as usize, 0, scratch);
                scale_and_subtract(values, softened[row].factor, scratch);
            });
            if let (Some((a, b)), Some(low), Some(scale)) = (factors, low, self.pair) {
                let columns = PlainColumns { data: f32s(b), stride: rank, depth: vocabulary, scale };
                let mut d_low = multiply::<E>(count, rank, powers, &columns);
                for ((values, &(_, target)), row) in d_low.chunks_exact_mut(rank).zip(targets).zip(&softened) {
                    let b = &f32s(b)[target as usize * rank..][..rank];
                    values.iter_mut().zip(b).for_each(|(value, b)| *value = *value * row.factor - scale * b);
                }
                let d_low_rows = Rows::F32 { data: &d_low, stride: rank };
                let columns = PlainColumns { data: f32s(a), stride: width, depth: rank, scale: 1.0 };
                let part = Part::whole(width, Term::<E> { rows: d_low_rows, columns: &columns });
                let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
                product(count, &part, epilogue, Target::f32(&mut d_picked, width));
                // `low · factor` against the powers, and what the targets take away.
                let mut scaled = low.clone();
                for (values, row) in scaled.chunks_exact_mut(rank).zip(&softened) {
                    values.iter_mut().for_each(|value| *value *= row.factor);
                }
                let sums = sum_outers(&[
                    Outer { left: (&d_low, rank), rank, right: picked_rows, width, scale: 1.0 },
                    Outer { left: (&scaled, rank), rank, right: powers, width: vocabulary, scale },
                ]);
                add(&mut da, &sums[0]);
                add(&mut db, &sums[1]);
                for (values, &(_, target)) in low.chunks_exact(rank).zip(targets) {
                    for (r, value) in values.iter().enumerate() {
                        db[r * vocabulary + target as usize] -= scale * value;
                    }
                }
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
        let parts = [Part { column: 0, columns: vocabulary, terms, bias: self.bias.as_deref() }];
        product(count, &parts, Epilogue::default(), Target::f32(logits, vocabulary));
    }

    /// `powers · W`, a block of the vocabulary at a time so that packed panels stay small.
    fn sum_over_vocabulary<E: Element>(&self, powers: Rows<'_>, count: usize, sums: &mut [f32])
    where
        Matrix: Views<E>,
    {
        let width = self.weight.columns();
        for first in (0..self.weight.rows()).step_by(VOCABULARY_BLOCK) {
            let block = VOCABULARY_BLOCK.min(self.weight.rows() - first);
            let columns = Views::<E>::gradient_columns_of(&*self.weight, first, block);
            let part = Part::whole(width, Term { rows: powers.from_column(first), columns: &*columns });
            let epilogue = Epilogue { accumulate: first > 0, ..Epilogue::default() };
            product(count, &part, epilogue, Target::f32(sums, width));
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
    let part = Part::whole(columns, Term { rows: left, columns: right });
    product(count, &part, Epilogue::default(), Target::f32(&mut out, columns));
    out
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// A row of logits whose powers `exp(logit − largest)` stand in its place.
#[derive(Clone, Copy, Default)]
struct Softened {
    loss: f32,
    /// Makes the powers sum to one.
    factor: f32,
}

/// Turns each row of logits into its powers, in the kernel's format (see [`powers_of`]).
///
/// They are neither divided by their sum nor is one subtracted at the target before the products that read them: both
/// happen afterwards, in f32, which saves two passes over the logits and a rounding.
fn soften<E: Element>(logits: &mut [f32], vocabulary: usize, targets: &Targets) -> Vec<Softened> {
    let mut results = vec![Softened::default(); targets.len()];
    let slots = SharedMut(results.as_mut_ptr());
    for_each_row(logits, vocabulary, 0, |row, logits, _| {
        let slots = &slots;
        let picked = logits[targets[row].1 as usize];
        let largest = largest(logits);
        let sum = if E::DEPTH_UNIT == 1 { powers(logits, largest) } else { narrow_powers(logits, largest) };
        // SAFETY: every row has its own slot.
        unsafe { *slots.0.add(row) = Softened { loss: largest + sum.ln() - picked, factor: 1.0 / sum } };
    });
    results
}

/// What [`soften`] left: bf16 stands in the first half of each row.
fn powers_of<E: Element>(values: &[f32], width: usize) -> Rows<'_> {
    match E::DEPTH_UNIT {
        1 => Rows::F32 { data: values, stride: width },
        _ => Rows::Bf16 { data: bytemuck::cast_slice(values), stride: 2 * width },
    }
}

/// The loss of each row; the logits are overwritten.
fn losses_of(logits: &mut [f32], vocabulary: usize, targets: &Targets) -> Vec<f32> {
    soften::<f32>(logits, vocabulary, targets).iter().map(|row| row.loss).collect()
}

vectorised! {
    fn largest(logits: &[f32]) -> f32 {
        const LANES: usize = 64;
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = logits.as_chunks::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                lanes[lane] = if values[lane] > lanes[lane] { values[lane] } else { lanes[lane] };
            }
        }
        let mut largest = f32::NEG_INFINITY;
        for &value in lanes.iter().chain(rest) {
            largest = if value > largest { value } else { largest };
        }
        largest
    }
}

vectorised! {
    /// `exp(logit − largest)` in place; their sum.
    fn powers(logits: &mut [f32], largest: f32) -> f32 {
        const LANES: usize = 32;
        let mut sums = [0f32; LANES];
        let (whole, rest) = logits.as_chunks_mut::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                values[lane] = exp(values[lane] - largest);
                sums[lane] += values[lane];
            }
        }
        let mut sum = 0.0;
        for value in sums {
            sum += value;
        }
        for value in rest {
            *value = exp(*value - largest);
            sum += *value;
        }
        sum
    }
}

vectorised! {
    /// [`powers`], rounded to bf16 into the first half of the row; the sum is that of the exact ones.
    fn narrow_powers(row: &mut [f32], largest: f32) -> f32 {
        const LANES: usize = 32;
        let width = row.len();
        let mut sums = [0f32; LANES];
        let mut first = 0;
        while first + LANES <= width {
            let mut narrowed = [bf16::ZERO; LANES];
            for (lane, value) in row[first..first + LANES].iter().enumerate() {
                let power = exp(*value - largest);
                sums[lane] += power;
                narrowed[lane] = bf16::exact(bf16::rounded(power));
            }
            // What is overwritten has been read: value `i` moves to half of its place.
            let halves: &mut [bf16] = bytemuck::cast_slice_mut(row);
            for (half, narrowed) in halves[first..first + LANES].iter_mut().zip(narrowed) {
                *half = narrowed;
            }
            first += LANES;
        }
        let mut sum = 0.0;
        for value in sums {
            sum += value;
        }
        for index in first..width {
            let power = exp(row[index] - largest);
            sum += power;
            let halves: &mut [bf16] = bytemuck::cast_slice_mut(row);
            halves[index] = bf16::exact(bf16::rounded(power));
        }
        sum
    }
}

vectorised! {
    fn scale_and_subtract(values: &mut [f32], factor: f32, subtracted: &[f32]) {
        for (value, subtracted) in values.iter_mut().zip(subtracted) {
            *value = *value * factor - subtracted;
        }
    }
}
