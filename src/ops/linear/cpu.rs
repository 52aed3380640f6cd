//! [`linear`](super::linear()) on the processor: the low-rank pairs are extra terms of the packed products.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use half::bf16;

use super::{Dropout, LowRankPair, Projected};
use crate::ops::cpu::autograd::{Kernel, Output, apply, dims, f32s, from_f32, rows};
use crate::ops::cpu::isa::{Isa, vectorised};
use crate::ops::cpu::kernel::Element;
use crate::ops::cpu::matrix::{Matrix, Views};
use crate::ops::cpu::pack::{PlainColumns, RowsAsColumns};
use crate::ops::cpu::product::{Epilogue, Rows, Target, Term, product};
use crate::ops::cpu::reduce::{sum_outer, transpose};
use crate::ops::cpu::rowwise::narrowed;

/// A group of projections without its trainable factors, which are inputs of the op.
#[derive(Debug, Clone)]
struct Group {
    members: Vec<Member>,
    has_residual: bool,
}

#[derive(Debug, Clone)]
struct Member {
    weight: Arc<Matrix>,
    bias: Option<Vec<f32>>,
    /// Scale and dropout of the low-rank pair; its factors are the next two inputs of the op.
    pair: Option<(f32, Option<Dropout>)>,
}

#[derive(Debug, Clone)]
struct Saved {
    /// The input, where a low-rank pair needs it; frozen weights do not.
    x: Option<FlexTensor>,
    dims: [usize; 2],
    dtype: DType,
    /// `drop(x)·Aᵀ` of each pair, `[tokens, rank]`.
    low: Vec<Vec<f32>>,
    /// `(A, B)` of each pair.
    factors: Vec<(FlexTensor, FlexTensor)>,
}

/// See [`linear`](super::linear()).
pub fn linear(x: Tensor<2>, group: &[Projected<'_>], residual: Option<Tensor<2>>) -> Tensor<2> {
    let members = group.iter().map(|projected| Member {
        weight: projected.weight.matrix().expect("the caller checked").clone(),
        bias: projected.bias.map(<[f32]>::to_vec),
        pair: projected.low_rank.as_ref().map(|pair| (pair.scale, pair.dropout)),
    });
    let kernel = Group { members: members.collect(), has_residual: residual.is_some() };
    let pairs: Vec<&LowRankPair> = group.iter().filter_map(|projected| projected.low_rank.as_ref()).collect();
    let factors = |index: usize| (pairs[index].a.clone(), pairs[index].b.clone());
    // Without a residual the input stands in its place; `has_residual` tells the kernel not to look.
    let residual = residual.unwrap_or_else(|| x.clone().detach());
    match pairs.len() {
        0 => apply::<2, _>(kernel, [x, residual]),
        1 => {
            let (a, b) = factors(0);
            apply::<4, _>(kernel, [x, residual, a, b])
        }
        2 => {
            let ((a0, b0), (a1, b1)) = (factors(0), factors(1));
            apply::<6, _>(kernel, [x, residual, a0, b0, a1, b1])
        }
        _ => {
            let ((a0, b0), (a1, b1), (a2, b2)) = (factors(0), factors(1), factors(2));
            apply::<8, _>(kernel, [x, residual, a0, b0, a1, b1, a2, b2])
        }
    }
}

impl<const N: usize> Kernel<N> for Group {
    type Saved = Saved;

    fn forward(&self, inputs: [&FlexTensor; N], save: bool) -> (FlexTensor, Option<Saved>) {
        let factors: Vec<_> = inputs[2..].chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let residual = self.has_residual.then_some(inputs[1]);
        let (y, low) = if uses_bf16(inputs[0].dtype()) {
            self.run::<bf16>(inputs[0], residual, &factors)
        } else {
            self.run::<f32>(inputs[0], residual, &factors)
        };
        let x = inputs[0];
        let kept = (!factors.is_empty()).then(|| x.clone());
        (y, save.then(|| Saved { x: kept, dims: dims(x), dtype: x.dtype(), low, factors }))
    }

    fn backward(&self, saved: Saved, gradient: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let mut gradients = [const { None }; N];
        let (dx, pairs) = if uses_bf16(saved.dtype) {
            // Rounded once, rather than by every task of every product that reads it.
            let rounded = (gradient.dtype() == DType::F32).then(|| narrowed(&gradient));
            self.gradients::<bf16>(&saved, rounded.as_ref().unwrap_or(&gradient), wanted[0])
        } else {
            self.gradients::<f32>(&saved, &gradient, wanted[0])
        };
        gradients[0] = dx;
        for (slot, factor) in gradients[2..].iter_mut().zip(pairs.into_iter().flat_map(|(da, db)| [da, db])) {
            *slot = Some(factor);
        }
        gradients[1] = (self.has_residual && wanted[1]).then_some(gradient);
        gradients
    }
}

/// Activations in bf16 on a processor that multiplies bf16.
fn uses_bf16(dtype: DType) -> bool {
    dtype == DType::BF16 && Isa::current().multiplies_bf16()
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
            let here = (member, column, member.pair.map(|_| pairs));
            column += member.weight.rows();
            pairs += usize::from(member.pair.is_some());
            here
        })
    }

    /// The output and `drop(x)·Aᵀ` of each pair.
    fn run<E: Element>(
        &self,
        x: &FlexTensor,
        residual: Option<&FlexTensor>,
        factors: &[(FlexTensor, FlexTensor)],
    ) -> (FlexTensor, Vec<Vec<f32>>)
    where
        Matrix: Views<E>,
    {
        let [tokens, input] = dims(x);
        let width = self.width();
        let low = self.low_projections::<E>(x, factors);
        let mut y = Output::new(x.dtype(), tokens * width);
        for (member, column, pair) in self.laid_out() {
            let out = member.weight.rows();
            let residual = residual.map(|residual| rows(residual).from_column(column));
            let epilogue = Epilogue { bias: member.bias.as_deref(), residual, accumulate: false };
            let update = pair.map(|pair| {
                let scale = member.pair.map_or(1.0, |(scale, _)| scale);
                let (rank, b) = (dims(&factors[pair].0)[0], f32s(&factors[pair].1));
                (&low[pair], rank, RowsAsColumns { data: b, stride: rank, depth: rank, scale })
            });
            let weight;
            let mut terms: Vec<Term<'_, E>> = Vec::with_capacity(2);
            let few;
            let epilogue = if tokens <= FEW_ROWS {
                let mut sums = vec![0f32; tokens * out];
                member.weight.multiply_few(rows(x), tokens, None, &mut sums);
                few = add(sums, tokens, out, epilogue);
                Epilogue { residual: Some(Rows::F32 { data: &few, stride: out }), ..Epilogue::default() }
            } else {
                weight = Views::<E>::forward_columns(&*member.weight);
                terms.push(Term { rows: rows(x), columns: &*weight });
                epilogue
            };
            if let Some((low, rank, columns)) = &update {
                terms.push(Term { rows: Rows::F32 { data: low, stride: *rank }, columns });
            }
            debug_assert_eq!(member.weight.columns(), input);
            product(tokens, out, &terms, epilogue, y.target(width, column));
        }
        // SAFETY: the members' products wrote every column.
        (unsafe { y.into_tensor(tokens, width) }, low)
    }

    /// `drop(x)·Aᵀ` of each pair.
    fn low_projections<E: Element>(&self, x: &FlexTensor, factors: &[(FlexTensor, FlexTensor)]) -> Vec<Vec<f32>> {
        let [tokens, input] = dims(x);
        self.members
            .iter()
            .filter_map(|member| member.pair)
            .zip(factors)
            .map(|((_, dropout), (a, _))| {
                let rank = dims(a)[0];
                let mut low = vec![0f32; tokens * rank];
                let dropped = dropout.map(|dropout| drop_values(rows(x), tokens, input, dropout));
                let source = match &dropped {
                    Some(values) => Rows::F32 { data: values, stride: input },
                    None => rows(x),
                };
                let columns = RowsAsColumns { data: f32s(a), stride: input, depth: input, scale: 1.0 };
                let term = Term::<E> { rows: source, columns: &columns };
                product(tokens, rank, &[term], Epilogue::default(), Target::f32(&mut low, rank));
                low
            })
            .collect()
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
        let mut pair_gradients = Vec::new();
        // s·g·B of each pair, [tokens, rank].
        let mut low_gradients = Vec::new();
        for (member, column, pair) in self.laid_out() {
            let (Some(pair), Some((scale, dropout)), Some(x)) = (pair, member.pair, &saved.x) else { continue };
            let (a, b) = &saved.factors[pair];
            let (rank, out) = (dims(a)[0], member.weight.rows());
            let g = rows(gradient).from_column(column);
            let mut low_gradient = vec![0f32; tokens * rank];
            let columns = PlainColumns { data: f32s(b), stride: rank, depth: out, scale };
            let term = Term::<E> { rows: g, columns: &columns };
            let target = Target::f32(&mut low_gradient, rank);
            product(tokens, rank, &[term], Epilogue::default(), target);

            let dropped = dropout.map(|dropout| drop_values(rows(x), tokens, input, dropout));
            let x = match &dropped {
                Some(values) => Rows::F32 { data: values, stride: input },
                None => rows(x),
            };
            let da = sum_outer(&low_gradient, rank, x, input, 1.0);
            let db = transpose(&sum_outer(&saved.low[pair], rank, g, out, scale), rank, out);
            pair_gradients.push((from_f32(da, rank, input), from_f32(db, out, rank)));
            low_gradients.push(low_gradient);
        }
        let dx = wants_input.then(|| self.input_gradient::<E>(saved, gradient, &low_gradients));
        (dx, pair_gradients)
    }

    /// `dx = Σ g·W + drop'(s·g·B·A)`.
    fn input_gradient<E: Element>(&self, saved: &Saved, gradient: &FlexTensor, low_gradients: &[Vec<f32>]) -> FlexTensor
    where
        Matrix: Views<E>,
    {
        let [tokens, input] = saved.dims;
        let weights: Vec<_> = self
            .members
            .iter()
            .map(|member| Views::<E>::gradient_columns_of(&*member.weight, 0, member.weight.rows()))
            .collect();
        let factor = |pair: usize| {
            let a = &saved.factors[pair].0;
            let rank = dims(a)[0];
            let columns = PlainColumns { data: f32s(a), stride: input, depth: rank, scale: 1.0 };
            (Rows::F32 { data: &low_gradients[pair], stride: rank }, columns)
        };
        let mut dropped: Option<Vec<f32>> = None;
        let mut updates = Vec::new();
        for (member, _, pair) in self.laid_out() {
            let (Some(pair), Some((_, dropout))) = (pair, member.pair) else { continue };
            let (low, columns) = factor(pair);
            let Some(dropout) = dropout else {
                updates.push((low, columns));
                continue;
            };
            // A dropped pair's share is masked before it is added.
            let mut share = vec![0f32; tokens * input];
            let target = Target::f32(&mut share, input);
            product(tokens, input, &[Term::<E> { rows: low, columns: &columns }], Epilogue::default(), target);
            apply_dropout(&mut share, dropout, 0);
            match &mut dropped {
                Some(sum) => sum.iter_mut().zip(share).for_each(|(sum, share)| *sum += share),
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
        let mut dx = Output::new(saved.dtype, tokens * input);
        product(tokens, input, &terms, Epilogue { residual, ..Epilogue::default() }, dx.target(input, 0));
        // SAFETY: the product wrote every column.
        unsafe { dx.into_tensor(tokens, input) }
    }
}

/// Adds an epilogue to finished sums.
fn add(mut sums: Vec<f32>, tokens: usize, width: usize, epilogue: Epilogue<'_>) -> Vec<f32> {
    let mut added = vec![0f32; width];
    for (token, sums) in sums.chunks_exact_mut(width).enumerate().take(tokens) {
        if let Some(bias) = epilogue.bias {
            sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
        if let Some(residual) = epilogue.residual {
            residual.read(token, 0, &mut added);
            sums.iter_mut().zip(&added).for_each(|(sum, value)| *sum += value);
        }
    }
    sums
}

/// `drop(x)` in f32.
fn drop_values(x: Rows<'_>, tokens: usize, width: usize, dropout: Dropout) -> Vec<f32> {
    let mut values = vec![0f32; tokens * width];
    for (token, values) in values.chunks_exact_mut(width).enumerate() {
        x.read(token, 0, values);
    }
    apply_dropout(&mut values, dropout, 0);
    values
}

vectorised! {
    fn apply_dropout(values: &mut [f32], dropout: Dropout, first: u64) {
        for (index, value) in values.iter_mut().enumerate() {
            *value *= dropout.factor(first + index as u64);
        }
    }
}
