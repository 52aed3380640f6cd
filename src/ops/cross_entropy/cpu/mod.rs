//! [`cross_entropy`](super::cross_entropy()) on the processor.
//!
//! The gradient of the hidden states is made together with the losses, while a chunk's logits are at hand: `d logits =
//! softmax − onehot`. The backward pass weighs its rows by the gradient of each loss. The factors of an adapted head get
//! sums over all targets, which wait for those weights: the backward pass makes the logits again.
//!
//! Label smoothing ε makes that `softmax − (1 − ε)·onehot − ε/V`. The last term is the same for every target, so it needs no
//! pass over the logits: what it gives to a gradient is `ε/V` times a sum over the vocabulary ([`Spread`]).

mod factors;
mod softmax;
mod spread;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use half::bf16;

use self::factors::{add_low_gradient, low_gradient};
use self::softmax::{SoftmaxRow, exponentials_of, fill_with_ones, predictions_of, softmax};
use self::spread::Spread;
use super::{Prediction, Targets, targets_per_chunk};
use crate::ops::cpu::autograd::{Kernel, apply, dims, f32s, from_f32, plain, rows};
use crate::ops::cpu::isa::{Isa, vectorised};
use crate::ops::cpu::kernel::Element;
use crate::ops::cpu::matrix::{Matrix, Views};
use crate::ops::cpu::pack::{Columns, RowsAsColumns};
use crate::ops::cpu::product::{Epilogue, Part, Term, product};
use crate::ops::cpu::rows::{OutputBuffer, Rows};
use crate::ops::cpu::rowwise::for_each_row;
use crate::ops::linear::dropout::apply_dropout;
use crate::ops::linear::{Dropout, Projected};

/// Vocabulary entries summed over in one product of the backward pass.
const VOCABULARY_BLOCK: usize = 4096;

/// The head without its trainable factors, which are inputs 1 and 2 of the op.
struct CrossEntropy {
    weight: Arc<Matrix>,
    bias: Option<Arc<[f32]>>,
    targets: Arc<Targets>,
    softcap: Option<f32>,
    /// The share ε of label smoothing.
    smoothing: f32,
    /// Scale and dropout of the head's low-rank pair.
    pair: Option<(f32, Option<Dropout>)>,
}

/// The low-rank pair of the head.
#[derive(Clone)]
struct Pair {
    /// `[rank, width]`.
    a: FlexTensor,
    /// `[vocabulary, rank]`.
    b: FlexTensor,
    rank: usize,
    scale: f32,
    dropout: Option<Dropout>,
}

struct Saved {
    tokens: usize,
    width: usize,
    /// The gradient of each loss with respect to the hidden state that it is of, `[targets, width]`.
    d_hidden: Vec<f32>,
    /// For the gradients of the factors.
    adapted: Option<SavedPair>,
}

struct SavedPair {
    hidden: FlexTensor,
    pair: Pair,
    /// The gradient of each loss with respect to `drop(h)·Aᵀ`, `[targets, rank]`.
    d_low: Vec<f32>,
}

/// See [`cross_entropy`](super::cross_entropy()).
pub fn cross_entropy(
    hidden: Tensor<2>,
    head: &Projected<'_>,
    targets: &Targets,
    softcap: Option<f32>,
    smoothing: f32,
) -> Tensor<2> {
    let factors = head.low_rank.iter().flat_map(|pair| [pair.a.clone(), pair.b.clone()]);
    apply(CrossEntropy::new(head, targets, softcap, smoothing), std::iter::once(hidden).chain(factors).collect())
}

/// See [`predictions`](super::predictions).
pub fn predictions(
    hidden: Tensor<2>,
    head: &Projected<'_>,
    targets: &Targets,
    softcap: Option<f32>,
) -> Vec<Prediction> {
    let kernel = CrossEntropy::new(head, targets, softcap, 0.0);
    let factors = head.low_rank.iter().flat_map(|pair| [pair.a.clone(), pair.b.clone()]);
    let inputs: Vec<FlexTensor> = std::iter::once(hidden).chain(factors).map(plain).collect();
    kernel.predictions_and_gradient(&inputs, false).0
}

impl Kernel for CrossEntropy {
    type Saved = Saved;

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<Saved>) {
        let (predictions, saved) = self.predictions_and_gradient(inputs, save);
        let losses: Vec<f32> = predictions.iter().map(|prediction| prediction.loss).collect();
        (from_f32(losses, predictions.len(), 1), saved)
    }

    fn backward(&self, saved: Saved, gradient: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        let Saved { tokens, width, d_hidden, adapted } = saved;
        let weights = f32s(&gradient);
        let mut d_all = vec![0f32; tokens * width];
        for ((&(row, _), values), weight) in self.targets.iter().zip(d_hidden.chunks_exact(width)).zip(weights) {
            add_scaled(&mut d_all[row as usize * width..][..width], *weight, values);
        }
        drop(d_hidden);
        let mut gradients = vec![Some(from_f32(d_all, tokens, width))];
        if let Some(adapted) = adapted {
            let [da, db] = if uses_bf16(&adapted.hidden) {
                self.factor_gradients::<bf16>(&adapted, weights)
            } else {
                self.factor_gradients::<f32>(&adapted, weights)
            };
            gradients.extend([Some(da), Some(db)]);
        }
        gradients
    }
}

/// Activations in bf16 on a processor whose kernels read bf16.
fn uses_bf16(hidden: &FlexTensor) -> bool {
    hidden.dtype() == DType::BF16 && Isa::current().packs_bf16()
}

/// The hidden states of some targets, one after another.
struct Chunk<'a> {
    targets: &'a Targets,
    /// `[targets, width]`.
    picked: Vec<f32>,
    /// `drop(picked)`, where that is not `picked` itself.
    dropped: Option<Vec<f32>>,
    /// `drop(picked)·Aᵀ`, `[targets, rank]`; empty without a pair.
    low: Vec<f32>,
    width: usize,
}

impl Chunk<'_> {
    fn rows(&self) -> Rows<'_> {
        Rows::F32 { data: &self.picked, stride: self.width }
    }

    /// The input of the low-rank pair.
    fn pair_rows(&self) -> Rows<'_> {
        Rows::F32 { data: self.dropped.as_ref().unwrap_or(&self.picked), stride: self.width }
    }
}

impl CrossEntropy {
    fn new(head: &Projected<'_>, targets: &Targets, softcap: Option<f32>, smoothing: f32) -> Self {
        Self {
            weight: head.weight.matrix().expect("the caller checked").clone(),
            bias: head.bias.map(Arc::from),
            targets: targets.into(),
            softcap,
            smoothing,
            pair: head.low_rank.as_ref().map(|pair| (pair.scale, pair.dropout.clone())),
        }
    }

    fn predictions_and_gradient(&self, inputs: &[FlexTensor], gradient: bool) -> (Vec<Prediction>, Option<Saved>) {
        let pair = self.pair.clone().map(|(scale, dropout)| {
            let (a, b) = (inputs[1].clone(), inputs[2].clone());
            let rank = dims(&a)[0];
            Pair { a, b, rank, scale, dropout }
        });
        if uses_bf16(&inputs[0]) {
            self.run::<bf16>(&inputs[0], pair, gradient)
        } else {
            self.run::<f32>(&inputs[0], pair, gradient)
        }
    }

    /// Ranges of targets whose logits are held at once, and room for these.
    fn chunks(&self) -> (impl Iterator<Item = Range<usize>>, Vec<f32>) {
        let (count, chunk) = (self.targets.len(), targets_per_chunk(self.weight.rows()));
        // A row more for `Spread`.
        let rows = chunk.min(count) + usize::from(self.spreads());
        let logits = vec![0f32; rows * self.weight.rows()];
        ((0..count).step_by(chunk).map(move |first| first..(first + chunk).min(count)), logits)
    }

    /// The prediction of each target, and the gradient of its loss if wanted.
    fn run<E: Element>(
        &self,
        hidden: &FlexTensor,
        pair: Option<Pair>,
        gradient: bool,
    ) -> (Vec<Prediction>, Option<Saved>)
    where
        Matrix: Views<E>,
    {
        let [tokens, width] = dims(hidden);
        let vocabulary = self.weight.rows();
        // The smoothed loss comes out of the same sums as its gradient.
        let needs_gradient = gradient || self.smoothing > 0.0;
        let mut predictions = Vec::with_capacity(self.targets.len());
        // A row more for `Spread`, which the next chunk writes over.
        let rows = self.targets.len() + usize::from(self.spreads());
        let mut d_hidden = vec![0f32; if needs_gradient { rows * width } else { 0 }];
        let mut d_low = Vec::new();
        let mut spread: Option<Spread> = None;
        let (chunks, mut logits) = self.chunks();
        for range in chunks {
            let chunk = self.chunk::<E>(hidden, pair.as_ref(), range.clone());
            let finds_spread = self.spreads() && spread.is_none();
            let rows = range.len() + usize::from(finds_spread);
            let (of_targets, of_rows) = (range.len() * vocabulary, rows * vocabulary);
            self.logits::<E>(&chunk, pair.as_ref(), &mut logits[..of_targets]);
            if !needs_gradient {
                let logits = &mut logits[..of_targets];
                predictions.extend(predictions_of(logits, vocabulary, chunk.targets, self.softcap));
                continue;
            }
            let targets = &mut logits[..of_targets];
            let softmax_rows = softmax::<E>(targets, vocabulary, chunk.targets, self.softcap, self.smoothing);
            if finds_spread {
                fill_with_ones::<E>(&mut logits[of_targets..of_rows]);
            }
            let exponentials = exponentials_of::<E>(&logits[..of_rows], vocabulary);
            let d_rows = &mut d_hidden[range.start * width..][..rows * width];
            self.sum_over_vocabulary::<E>(exponentials, rows, d_rows);
            let (d_picked, sum_of_weight) = d_rows.split_at_mut(range.len() * width);
            if finds_spread {
                spread = Some(self.spread(sum_of_weight, pair.as_ref()));
            }
            predictions.extend(softmax_rows.iter().enumerate().map(|(index, row)| {
                let smoothed = |spread: &Spread| self.smoothing * row.target - spread.share_of_logits(&chunk, index);
                let loss = row.prediction.loss + spread.as_ref().map_or(0.0, smoothed);
                Prediction { loss, ..row.prediction }
            }));
            for_each_row(d_picked, width, width, |row, values, scratch| {
                self.weight.decode(chunk.targets[row].1 as usize, 0, scratch);
                let SoftmaxRow { factor, target_slope, .. } = softmax_rows[row];
                scale_and_subtract(values, factor, scratch, target_slope);
                if let Some(spread) = &spread {
                    add_scaled(values, -spread.share, &spread.d_hidden);
                }
            });
            if let Some(pair) = &pair {
                let of_chunk = low_gradient::<E>(pair, &chunk, exponentials, &softmax_rows, spread.as_ref());
                add_low_gradient::<E>(pair, &of_chunk, chunk.targets, d_picked, width);
                d_low.extend(of_chunk);
            }
        }
        d_hidden.truncate(self.targets.len() * width);
        let adapted = pair.map(|pair| SavedPair { hidden: hidden.clone(), pair, d_low });
        (predictions, gradient.then_some(Saved { tokens, width, d_hidden, adapted }))
    }

    /// The hidden states of the targets in `range`.
    fn chunk<E: Element>(&self, hidden: &FlexTensor, pair: Option<&Pair>, range: Range<usize>) -> Chunk<'_> {
        let width = dims(hidden)[1];
        let source = rows(hidden);
        let targets = &self.targets[range];
        let mut picked = vec![0f32; targets.len() * width];
        for (&(row, _), values) in targets.iter().zip(picked.chunks_exact_mut(width)) {
            source.read(row as usize, 0, values);
        }
        let mut chunk = Chunk { targets, picked, dropped: None, low: Vec::new(), width };
        if let Some(pair) = pair {
            chunk.dropped = pair.dropout.as_ref().map(|dropout| {
                let mut dropped = chunk.picked.clone();
                drop_by_target(&mut dropped, dropout, targets, width);
                dropped
            });
            let columns = RowsAsColumns { data: f32s(&pair.a), stride: width, depth: width, scale: 1.0 };
            chunk.low = multiply::<E>(targets.len(), pair.rank, chunk.pair_rows(), &columns);
        }
        chunk
    }

    /// The logits of a chunk, before the cap.
    fn logits<E: Element>(&self, chunk: &Chunk<'_>, pair: Option<&Pair>, logits: &mut [f32])
    where
        Matrix: Views<E>,
    {
        let vocabulary = self.weight.rows();
        let weight = Views::<E>::forward_columns(&*self.weight);
        let mut terms = vec![Term { rows: chunk.rows(), columns: &*weight }];
        let update = pair.map(|pair| {
            let (data, stride) = (f32s(&pair.b), pair.rank);
            (
                Rows::F32 { data: &chunk.low, stride },
                RowsAsColumns { data, stride, depth: pair.rank, scale: pair.scale },
            )
        });
        if let Some((rows, columns)) = &update {
            terms.push(Term { rows: *rows, columns });
        }
        let parts = [Part { column: 0, columns: vocabulary, terms, bias: self.bias.as_deref() }];
        product(chunk.targets.len(), &parts, Epilogue::default(), OutputBuffer::f32(logits, vocabulary));
    }

    /// `exponentials · W`, a block of the vocabulary at a time so that packed panels stay small.
    fn sum_over_vocabulary<E: Element>(&self, exponentials: Rows<'_>, count: usize, sums: &mut [f32])
    where
        Matrix: Views<E>,
    {
        let width = self.weight.columns();
        for first in (0..self.weight.rows()).step_by(VOCABULARY_BLOCK) {
            let block = VOCABULARY_BLOCK.min(self.weight.rows() - first);
            let columns = Views::<E>::gradient_columns_of(&*self.weight, first, block);
            let part = Part::whole(width, Term { rows: exponentials.from_column(first), columns: &*columns });
            let epilogue = Epilogue { accumulate: first > 0, ..Epilogue::default() };
            product(count, &part, epilogue, OutputBuffer::f32(sums, width));
        }
    }
}

/// The dropout of the hidden states of some targets, whose rows are those of all hidden states: the noise of a token does not
/// depend on which others are trained.
fn drop_by_target(picked: &mut [f32], dropout: &Dropout, targets: &Targets, width: usize) {
    for (values, &(row, _)) in picked.chunks_exact_mut(width).zip(targets) {
        apply_dropout(values, dropout.of_row(row as usize, width));
    }
}

/// A small product in f32.
fn multiply<E: Element>(count: usize, columns: usize, left: Rows<'_>, right: &dyn Columns<E>) -> Vec<f32> {
    let mut out = vec![0f32; count * columns];
    let part = Part::whole(columns, Term { rows: left, columns: right });
    product(count, &part, Epilogue::default(), OutputBuffer::f32(&mut out, columns));
    out
}

vectorised! {
    fn add_scaled(sums: &mut [f32], factor: f32, values: &[f32]) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += factor * value;
        }
    }
}

vectorised! {
    /// `values · factor − subtracted · share`.
    fn scale_and_subtract(values: &mut [f32], factor: f32, subtracted: &[f32], share: f32) {
        for (value, subtracted) in values.iter_mut().zip(subtracted) {
            *value = *value * factor - share * subtracted;
        }
    }
}
