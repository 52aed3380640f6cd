//! [`linear`](super::linear()) on the processor: the low-rank pairs are extra terms of the packed products.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use half::bf16;

use super::dropout::apply_dropout;
use super::{Again, Dropout, LowRankPair, Projected};
use crate::ops::cpu::autograd::{Kernel, Output, apply, dims, f32s, from_f32, plain, rows};
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::kernel::Element;
use crate::ops::cpu::matrix::{Matrix, Views};
use crate::ops::cpu::pack::{PlainColumns, RowsAsColumns};
use crate::ops::cpu::product::{Epilogue, Part, Term, product};
use crate::ops::cpu::reduce::{Outer, sum_outers, transpose};
use crate::ops::cpu::rows::{OutputBuffer, Rows};
use crate::ops::cpu::rowwise::{for_each_row, map_rows, narrowed};

/// A group of projections without its trainable factors, which are inputs of the op.
struct Group {
    members: Vec<Member>,
    has_residual: bool,
    /// Makes the input for the backward pass, where it is not kept.
    again: Option<Again>,
}

struct Member {
    weight: Arc<Matrix>,
    bias: Option<Vec<f32>>,
    /// Scale and dropout of the low-rank pair; its factors are the next two inputs of the op.
    pair: Option<(f32, Option<Dropout>)>,
}

struct Saved {
    /// The input, where a low-rank pair needs it and it cannot be made again; frozen weights do not need it.
    x: Option<FlexTensor>,
    dims: [usize; 2],
    dtype: DType,
    /// `drop(x)·Aᵀ` of the pairs side by side, `[tokens, Σ rank]`.
    low: Vec<f32>,
    /// `(A, B)` of each pair.
    factors: Vec<(FlexTensor, FlexTensor)>,
}

/// See [`linear`](super::linear()).
pub fn linear(x: Tensor<2>, again: Option<Again>, group: &[Projected<'_>], residual: Option<Tensor<2>>) -> Tensor<2> {
    let members = group.iter().map(|projected| Member {
        weight: projected.weight.matrix().expect("the caller checked").clone(),
        bias: projected.bias.map(<[f32]>::to_vec),
        pair: projected.low_rank.as_ref().map(|pair| (pair.scale, pair.dropout.clone())),
    });
    let kernel = Group { members: members.collect(), has_residual: residual.is_some(), again };
    let pairs = group.iter().filter_map(|projected| projected.low_rank.as_ref());
    let factors = pairs.flat_map(|LowRankPair { a, b, .. }| [a.clone(), b.clone()]);
    apply(kernel, std::iter::once(x).chain(residual).chain(factors).collect())
}

/// Inputs: `x`, the residual if there is one, then `A` and `B` of each pair.
impl Kernel for Group {
    type Saved = Saved;

    fn forward(&self, inputs: &[FlexTensor], save: bool) -> (FlexTensor, Option<Saved>) {
        let (x, rest) = inputs.split_first().expect("the input");
        let (residual, factors) = rest.split_at(usize::from(self.has_residual));
        let (factors, _) = factors.as_chunks::<2>();
        let factors: Vec<_> = factors.iter().map(|[a, b]| (a.clone(), b.clone())).collect();
        let (y, low) = if uses_bf16(x.dtype()) {
            self.run::<bf16>(x, residual.first(), &factors)
        } else {
            self.run::<f32>(x, residual.first(), &factors)
        };
        let kept = (!factors.is_empty() && self.again.is_none()).then(|| x.clone());
        (y, save.then(|| Saved { x: kept, dims: dims(x), dtype: x.dtype(), low, factors }))
    }

    fn backward(&self, saved: Saved, gradient: FlexTensor, wanted: &[bool]) -> Vec<Option<FlexTensor>> {
        let (dx, pairs) = if uses_bf16(saved.dtype) {
            // Rounded once, rather than by every task of every product that reads it; not where products take f32.
            let is_rounded = gradient.dtype() == DType::F32 && !bf16::lays_out(Isa::current());
            let rounded = is_rounded.then(|| narrowed(&gradient));
            self.gradients::<bf16>(&saved, rounded.as_ref().unwrap_or(&gradient), wanted[0])
        } else {
            self.gradients::<f32>(&saved, &gradient, wanted[0])
        };
        let residual = self.has_residual.then(|| wanted[1].then_some(gradient));
        let factors = pairs.into_iter().flat_map(|(da, db)| [Some(da), Some(db)]);
        std::iter::once(dx).chain(residual).chain(factors).collect()
    }
}

/// Activations in bf16 on a processor whose kernels read bf16.
fn uses_bf16(dtype: DType) -> bool {
    dtype == DType::BF16 && Isa::current().packs_bf16()
}

/// Fewer rows than this go through dot products: packing the weight would cost more.
const FEW_ROWS: usize = 4;

impl Group {
    /// Output columns of all members.
    fn width(&self) -> usize {
        self.members.iter().map(|member| member.weight.rows()).sum()
    }

    /// The members with their first output column and the index of their pair.
    fn laid_out(&self) -> impl Iterator<Item = (&Member, usize, Option<usize>)> {
        let (mut column, mut pairs) = (0, 0);
        self.members.iter().map(move |member| {
            let here = (member, column, member.pair.as_ref().map(|_| pairs));
            column += member.weight.rows();
            pairs += usize::from(member.pair.is_some());
            here
        })
    }

    /// The output, and `drop(x)·Aᵀ` of the pairs side by side.
    fn run<E: Element>(
        &self,
        x: &FlexTensor,
        residual: Option<&FlexTensor>,
        factors: &[(FlexTensor, FlexTensor)],
    ) -> (FlexTensor, Vec<f32>)
    where
        Matrix: Views<E>,
    {
        let [tokens, _] = dims(x);
        let width = self.width();
        let ranks = Ranks::of(factors);
        let low = self.low_projections::<E>(x, factors, &ranks);
        let updates: Vec<_> = self
            .laid_out()
            .map(|(member, _, pair)| {
                let ((scale, _), pair) = (member.pair.as_ref()?, pair?);
                let columns = RowsAsColumns {
                    data: f32s(&factors[pair].1),
                    stride: ranks.of_pair(pair),
                    depth: ranks.of_pair(pair),
                    scale: *scale,
                };
                Some((ranks.rows(&low, pair), columns))
            })
            .collect();
        let few = tokens <= FEW_ROWS;
        let mut sums = vec![0f32; if few { tokens * width } else { 0 }];
        if few {
            for (member, column, _) in self.laid_out() {
                member.weight.multiply_few(rows(x), tokens, &mut sums[column..], width);
            }
            if let Some(residual) = residual {
                add_rows(&mut sums, width, rows(residual));
            }
        }
        let weights: Vec<_> = self.members.iter().map(|member| Views::<E>::forward_columns(&*member.weight)).collect();
        let parts: Vec<Part<'_, E>> = self
            .laid_out()
            .zip(&weights)
            .zip(&updates)
            .map(|(((member, column, _), weight), update)| {
                let weight = (!few).then(|| Term { rows: rows(x), columns: &**weight });
                let update = update.as_ref().map(|(rows, columns)| Term::<E> { rows: *rows, columns });
                let terms = weight.into_iter().chain(update).collect();
                Part { column, columns: member.weight.rows(), terms, bias: member.bias.as_deref() }
            })
            .collect();
        let residual = if few { Some(Rows::F32 { data: &sums, stride: width }) } else { residual.map(rows) };
        let mut y = Output::new(x.dtype(), tokens * width);
        product(tokens, &parts, Epilogue { residual, ..Epilogue::default() }, y.target(width));
        // SAFETY: the parts cover every column.
        (unsafe { y.into_tensor(tokens, width) }, low)
    }

    /// `drop(x)·Aᵀ` of the pairs side by side.
    fn low_projections<E: Element>(
        &self,
        x: &FlexTensor,
        factors: &[(FlexTensor, FlexTensor)],
        ranks: &Ranks,
    ) -> Vec<f32> {
        let [tokens, input] = dims(x);
        let mut low = vec![0f32; tokens * ranks.total()];
        let sources = self.low_sources(x);
        // Pairs with the same input are one matrix: their few columns share panels.
        let is_dropped = self.members.iter().any(|member| matches!(member.pair, Some((_, Some(_)))));
        let factors: Vec<Vec<f32>> = if is_dropped {
            factors.iter().map(|(a, _)| f32s(a).to_vec()).collect()
        } else {
            vec![factors.iter().flat_map(|(a, _)| f32s(a)).copied().collect()]
        };
        let columns: Vec<_> =
            factors.iter().map(|data| RowsAsColumns { data, stride: input, depth: input, scale: 1.0 }).collect();
        let mut column = 0;
        let parts: Vec<Part<'_, E>> = sources
            .iter()
            .zip(&columns)
            .map(|(source, factor)| {
                let (first, count) = (column, factor.data.len() / input);
                column += count;
                Part {
                    column: first,
                    columns: count,
                    terms: vec![Term { rows: rows(source), columns: factor }],
                    bias: None,
                }
            })
            .collect();
        product(tokens, &parts, Epilogue::default(), OutputBuffer::f32(&mut low, ranks.total()));
        low
    }

    /// The input of the low-rank pair of each adapted member: `drop(x)`.
    fn low_sources(&self, x: &FlexTensor) -> Vec<FlexTensor> {
        let pairs = self.members.iter().filter_map(|member| member.pair.as_ref());
        pairs.map(|(_, dropout)| dropout.as_ref().map_or_else(|| x.clone(), |dropout| dropped(x, dropout))).collect()
    }

    /// The input's gradient if wanted, and `(dA, dB)` of each pair.
    fn gradients<E: Element>(
        &self,
        saved: &Saved,
        gradient: &FlexTensor,
        wants_input: bool,
    ) -> (Option<FlexTensor>, Vec<(FlexTensor, FlexTensor)>)
    where
        Matrix: Views<E>,
    {
        let [tokens, input] = saved.dims;
        let ranks = Ranks::of(&saved.factors);
        let (mut low_gradient, mut pair_gradients) = (Vec::new(), Vec::new());
        if !saved.factors.is_empty() {
            low_gradient = self.low_gradients::<E>(saved, gradient, &ranks);
            let made_again = || plain(self.again.as_ref().expect("what is not kept can be made")());
            let sources = self.low_sources(&saved.x.clone().unwrap_or_else(made_again));
            let mut outers = Vec::new();
            for (member, column, pair) in self.laid_out() {
                let (Some(pair), Some((scale, _))) = (pair, &member.pair) else { continue };
                let (first, rank) = (ranks.first[pair], ranks.of_pair(pair));
                let left = |low| (&Vec::as_slice(low)[first..], ranks.total());
                let (x, g) = (rows(&sources[pair]), rows(gradient).from_column(column));
                outers.push(Outer { left: left(&low_gradient), rank, right: x, width: input, scale: 1.0 });
                outers.push(Outer {
                    left: left(&saved.low),
                    rank,
                    right: g,
                    width: member.weight.rows(),
                    scale: *scale,
                });
            }
            let mut sums = sum_outers(&outers).into_iter();
            for (pair, (_, b)) in saved.factors.iter().enumerate() {
                let ([out, rank], Some(da), Some(db)) = (dims(b), sums.next(), sums.next()) else { break };
                debug_assert_eq!(rank, ranks.of_pair(pair));
                pair_gradients.push((from_f32(da, rank, input), from_f32(transpose(&db, rank, out), out, rank)));
            }
        }
        debug_assert_eq!(low_gradient.len(), tokens * ranks.total());
        let dx = wants_input.then(|| self.input_gradient::<E>(saved, gradient, &low_gradient, &ranks));
        (dx, pair_gradients)
    }

    /// `s·g·B` of the pairs side by side, `[tokens, Σ rank]`.
    fn low_gradients<E: Element>(&self, saved: &Saved, gradient: &FlexTensor, ranks: &Ranks) -> Vec<f32> {
        let tokens = saved.dims[0];
        let mut low_gradient = vec![0f32; tokens * ranks.total()];
        let adapted: Vec<_> = self
            .laid_out()
            .filter_map(|(member, column, pair)| {
                let ((scale, _), pair) = (member.pair.as_ref()?, pair?);
                let (data, stride) = (f32s(&saved.factors[pair].1), ranks.of_pair(pair));
                Some((pair, column, PlainColumns { data, stride, depth: member.weight.rows(), scale: *scale }))
            })
            .collect();
        let parts: Vec<Part<'_, E>> = adapted
            .iter()
            .map(|(pair, column, columns)| Part {
                column: ranks.first[*pair],
                columns: ranks.of_pair(*pair),
                terms: vec![Term { rows: rows(gradient).from_column(*column), columns }],
                bias: None,
            })
            .collect();
        product(tokens, &parts, Epilogue::default(), OutputBuffer::f32(&mut low_gradient, ranks.total()));
        low_gradient
    }

    /// `dx = Σ g·W + drop'(s·g·B·A)`.
    fn input_gradient<E: Element>(
        &self,
        saved: &Saved,
        gradient: &FlexTensor,
        low_gradient: &[f32],
        ranks: &Ranks,
    ) -> FlexTensor
    where
        Matrix: Views<E>,
    {
        let [tokens, input] = saved.dims;
        let weights: Vec<_> = self
            .members
            .iter()
            .map(|member| Views::<E>::gradient_columns_of(&*member.weight, 0, member.weight.rows()))
            .collect();
        let mut dropped: Option<Vec<f32>> = None;
        let mut updates = Vec::new();
        for (member, _, pair) in self.laid_out() {
            let (Some(pair), Some((_, dropout))) = (pair, &member.pair) else { continue };
            let data = f32s(&saved.factors[pair].0);
            let columns = PlainColumns { data, stride: input, depth: ranks.of_pair(pair), scale: 1.0 };
            let low = ranks.rows(low_gradient, pair);
            let Some(dropout) = dropout else {
                updates.push((low, columns));
                continue;
            };
            // A dropped pair's share is masked before it is added.
            let mut share = vec![0f32; tokens * input];
            let part = Part::whole(input, Term::<E> { rows: low, columns: &columns });
            product(tokens, &part, Epilogue::default(), OutputBuffer::f32(&mut share, input));
            for_each_row(&mut share, input, 0, |row, share, _| apply_dropout(share, dropout.of_row(row, input)));
            match &mut dropped {
                Some(sum) => add_rows(sum, input, Rows::F32 { data: &share, stride: input }),
                None => dropped = Some(share),
            }
        }
        let mut terms: Vec<Term<'_, E>> = self
            .laid_out()
            .zip(&weights)
            .map(|((_, column, _), weight)| Term { rows: rows(gradient).from_column(column), columns: &**weight })
            .collect();
        terms.extend(updates.iter().map(|(low, columns)| Term::<E> { rows: *low, columns }));
        let residual = dropped.as_ref().map(|data| Rows::F32 { data, stride: input });
        let parts = [Part { column: 0, columns: input, terms, bias: None }];
        let mut dx = Output::new(saved.dtype, tokens * input);
        product(tokens, &parts, Epilogue { residual, ..Epilogue::default() }, dx.target(input));
        // SAFETY: the part covers every column.
        unsafe { dx.into_tensor(tokens, input) }
    }
}

/// Where the values of each pair stand among those of all.
struct Ranks {
    /// The first column of each pair, and the end of the last.
    first: Vec<usize>,
}

impl Ranks {
    fn of(factors: &[(FlexTensor, FlexTensor)]) -> Self {
        let ends = factors.iter().scan(0, |end, (a, _)| {
            *end += dims(a)[0];
            Some(*end)
        });
        Self { first: std::iter::once(0).chain(ends).collect() }
    }

    fn total(&self) -> usize {
        self.first[self.first.len() - 1]
    }

    fn of_pair(&self, pair: usize) -> usize {
        self.first[pair + 1] - self.first[pair]
    }

    /// A pair's columns of values that lie side by side.
    fn rows<'a>(&self, values: &'a [f32], pair: usize) -> Rows<'a> {
        Rows::F32 { data: values, stride: self.total() }.from_column(self.first[pair])
    }
}

/// Adds the rows of a matrix to `sums`.
fn add_rows(sums: &mut [f32], width: usize, values: Rows<'_>) {
    for_each_row(sums, width, width, |row, sums, scratch| {
        values.read(row, 0, scratch);
        sums.iter_mut().zip(scratch).for_each(|(sum, value)| *sum += *value);
    });
}

/// `drop(x)` in f32.
fn dropped(x: &FlexTensor, dropout: &Dropout) -> FlexTensor {
    let [tokens, width] = dims(x);
    map_rows(DType::F32, tokens, width, |row, out, _| {
        rows(x).read(row, 0, out);
        apply_dropout(out, dropout.of_row(row, width));
    })
}
