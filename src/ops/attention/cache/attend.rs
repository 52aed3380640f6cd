//! Attention over pages: new queries against everything that their sequence holds.
//!
//! The softmax runs along the pages of a segment from the first to the last (Milakov and Gimelshein 2018, "Online normalizer calculation
//! for softmax"), and the segments are joined in their order: several threads can work on one query. Each page is taken as a whole, positions
//! that a query does not see with the weight 0. So the result of a query depends on nothing but its own sequence, bit for bit,
//! however tokens are cut into pieces.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::super::rope::RopeTable;
use super::super::{Geometry, QkvLayout};
use super::CacheFormat;
use super::pages::{GROUP, PAGE_POSITIONS, PageElement, PagedCache, head_scales, head_size, padded};
use crate::ops::cpu::isa::{Isa, vectorised};
use crate::ops::cpu::math::{exp, tanh};
use crate::ops::cpu::pool;
use crate::ops::cpu::rows::Stored;
use crate::ops::cpu::shared::SharedMut;

/// Queries and heads that go through a page together.
pub(super) const ROWS: usize = 4;
/// Pages of a segment.
const SEGMENT_PAGES: usize = 4;

/// Scores or weights of the positions of a page.
pub(super) type PageRow = [f32; PAGE_POSITIONS];

/// New tokens of a sequence, in one layer.
pub struct PagedPiece<'a> {
    /// Their number.
    pub count: usize,
    /// The keys and values before them, which theirs are added to.
    pub cache: &'a mut PagedCache,
    /// Tokens of the whole sequence as far as it is known: they choose the frequencies of the rotation.
    pub total: usize,
}

/// Attends from new tokens to their sequences, and adds their keys and values to the caches.
///
/// # Shapes
/// - `qkv`: `[tokens, geometry.qkv_width()]`, columns as `geometry.layout` says; queries and keys are rotated in place
/// - `out`: `[tokens, heads · head_dim]`
pub fn paged_attention(
    qkv: &mut [f32],
    pieces: &mut [PagedPiece<'_>],
    geometry: &Geometry,
    format: CacheFormat,
    out: &mut [f32],
) {
    geometry.check(geometry.qkv_width());
    let (width, dim) = (geometry.qkv_width(), geometry.head_dim);
    let (q_width, kv_width) = (geometry.heads * dim, geometry.kv_heads * dim);
    rotate(qkv, pieces, geometry);
    let mut rows = qkv.chunks_exact(width);
    for piece in pieces.iter_mut() {
        for row in rows.by_ref().take(piece.count) {
            let (keys, values) = row[q_width..].split_at(kv_width);
            piece.cache.push(keys, values, geometry, format);
        }
    }
    let parts = parts(pieces, geometry);
    let (qkv, pieces) = (&*qkv, &*pieces);
    let target = SharedMut::new(out);
    let segment = |part: &Part, number: usize| {
        let piece = &pieces[part.piece];
        let past = piece.cache.length() - piece.count;
        let query = |&(query, head): &(usize, usize)| Query {
            values: &qkv[(part.start + query) * width + head * dim..][..dim],
            position: past + query,
        };
        let queries: Vec<Query<'_>> = part.rows.iter().map(query).collect();
        let pages = number * SEGMENT_PAGES..(number + 1) * SEGMENT_PAGES;
        match format {
            CacheFormat::F32 => attend::<f32>(&queries, piece.cache, part.kv_head, pages, geometry),
            CacheFormat::Bf16 => attend::<bf16>(&queries, piece.cache, part.kv_head, pages, geometry),
            CacheFormat::Int8 => attend::<i8>(&queries, piece.cache, part.kv_head, pages, geometry),
        }
    };
    let put = |part: &Part, mixed: &Mixed| {
        let rows = mixed.values.chunks_exact(padded(dim)).zip(&mixed.states);
        for (&(query, head), (values, state)) in part.rows.iter().zip(rows) {
            // SAFETY: this head of this token belongs to this part alone.
            let out = unsafe { target.slice((part.start + query) * q_width + head * dim, dim) };
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value / state.sum);
        }
    };
    if parts.len() >= 4 * pool::threads() {
        pool::for_each(parts.len(), |index| {
            let part = &parts[index];
            let mut mixed = segment(part, part.segments.start);
            for number in part.segments.clone().skip(1) {
                mixed.join(&segment(part, number), padded(dim));
            }
            put(part, &mixed);
        });
        return;
    }
    // Few queries: their segments are shared out.
    let tasks: Vec<(&Part, usize)> =
        parts.iter().flat_map(|part| part.segments.clone().map(move |number| (part, number))).collect();
    let mut mixed = pool::map(tasks.len(), |task| segment(tasks[task].0, tasks[task].1)).into_iter();
    for part in &parts {
        let Some(mut first) = mixed.next() else { return };
        mixed.by_ref().take(part.segments.len() - 1).for_each(|next| first.join(&next, padded(dim)));
        put(part, &first);
    }
}

/// Queries of one key head that go through the pages together.
struct Part {
    /// The index of their piece, and its first token.
    piece: usize,
    start: usize,
    kv_head: usize,
    /// Token of the piece and query head, at most [`ROWS`].
    rows: Vec<(usize, usize)>,
    /// The segments that one of them sees.
    segments: Range<usize>,
}

fn parts(pieces: &[PagedPiece<'_>], geometry: &Geometry) -> Vec<Part> {
    let group = geometry.heads / geometry.kv_heads;
    let (mut parts, mut start) = (Vec::new(), 0);
    for (index, piece) in pieces.iter().enumerate() {
        let past = piece.cache.length() - piece.count;
        for kv_head in 0..geometry.kv_heads {
            let heads = kv_head * group..(kv_head + 1) * group;
            let rows: Vec<(usize, usize)> =
                (0..piece.count).flat_map(|query| heads.clone().map(move |head| (query, head))).collect();
            parts.extend(rows.chunks(ROWS).map(|rows| {
                let (first, last) = (past + rows[0].0, past + rows[rows.len() - 1].0);
                let positions = SEGMENT_PAGES * PAGE_POSITIONS;
                let segments = geometry.first_key(first) / positions..last / positions + 1;
                Part { piece: index, start, kv_head, rows: rows.to_vec(), segments }
            }));
        }
        start += piece.count;
    }
    parts
}

/// Brings the columns into the order `[q | k | v]` and turns queries and keys to their positions.
fn rotate(qkv: &mut [f32], pieces: &[PagedPiece<'_>], geometry: &Geometry) {
    let (width, dim) = (geometry.qkv_width(), geometry.head_dim);
    let turned = (geometry.heads + geometry.kv_heads) * dim;
    let places: Vec<(usize, Option<Arc<RopeTable>>)> = pieces
        .iter()
        .flat_map(|piece| {
            let end = piece.cache.length() + piece.count;
            let table = geometry.rope.as_ref().map(|rope| rope.table(piece.total.max(end)));
            (piece.cache.length()..end).map(move |position| (position, table.clone()))
        })
        .collect();
    let turn = |index: usize, row: &mut [f32]| {
        if geometry.layout == QkvLayout::ByHead {
            let by_head = row.to_vec();
            let columns = (0..geometry.heads)
                .map(|head| geometry.query_column(head))
                .chain((0..geometry.kv_heads).map(|head| geometry.key_column(head)))
                .chain((0..geometry.kv_heads).map(|head| geometry.value_column(head)));
            for (target, column) in row.chunks_exact_mut(dim).zip(columns) {
                target.copy_from_slice(&by_head[column..column + dim]);
            }
        }
        if let (position, Some(table)) = &places[index] {
            let (cos, sin) = table.at(*position);
            turn_heads(&mut row[..turned], dim, cos, sin);
        }
    };
    const ROWS_PER_TASK: usize = 16;
    pool::for_each_chunk(qkv, ROWS_PER_TASK * width, |task, rows| {
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            turn(task * ROWS_PER_TASK + index, row);
        }
    });
}

vectorised! {
    fn turn_heads(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        for head in heads.chunks_exact_mut(head_dim) {
            let (left, right) = head[..2 * cos.len()].split_at_mut(cos.len());
            for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                let turned = *left * cos - *right * sin;
                *right = *right * cos + *left * sin;
                *left = turned;
            }
        }
    }
}

/// A query head of a token.
struct Query<'a> {
    /// Rotated, `[head_dim]`.
    values: &'a [f32],
    position: usize,
}

/// The softmax of a query so far.
#[derive(Clone, Copy)]
struct Softmax {
    greatest: f32,
    sum: f32,
}

/// Values of a segment, weighed and summed.
struct Mixed {
    /// `[queries, padded head_dim]`, not yet divided by the sum of the weights.
    values: Vec<f32>,
    states: [Softmax; ROWS],
}

impl Mixed {
    /// Joins the next segment, rows of `width` values, to those before.
    fn join(&mut self, next: &Self, width: usize) {
        let rows = self.values.chunks_exact_mut(width).zip(next.values.chunks_exact(width));
        for ((values, more), (state, further)) in rows.zip(self.states.iter_mut().zip(&next.states)) {
            // A segment without any position that the query sees.
            if further.greatest == f32::NEG_INFINITY {
                continue;
            }
            let greatest = if further.greatest > state.greatest { further.greatest } else { state.greatest };
            let (factor, other) = (exp(state.greatest - greatest), exp(further.greatest - greatest));
            values.iter_mut().zip(more).for_each(|(value, more)| *value = *value * factor + more * other);
            *state = Softmax { greatest, sum: state.sum * factor + further.sum * other };
        }
    }
}

/// The mixed values of at most [`ROWS`] queries of one key head over some pages.
fn attend<E: PageElement>(
    queries: &[Query<'_>],
    cache: &PagedCache,
    kv_head: usize,
    pages: Range<usize>,
    geometry: &Geometry,
) -> Mixed {
    let (dim, row) = (geometry.head_dim, padded(geometry.head_dim));
    let mut mixed = vec![0f32; queries.len() * row];
    let mut states = [Softmax { greatest: f32::NEG_INFINITY, sum: 0.0 }; ROWS];
    let mut scores = [[0f32; PAGE_POSITIONS]; ROWS];
    let seen = |query: &Query<'_>| geometry.first_key(query.position)..query.position + 1;
    let first = queries.iter().map(|query| seen(query).start / PAGE_POSITIONS).min().unwrap_or(0);
    let last = queries.iter().map(|query| query.position / PAGE_POSITIONS).max().unwrap_or(0);
    for number in pages.start.max(first)..pages.end.min(last + 1) {
        let Some(page) = cache.page(number) else { continue };
        let (numbers, scales) = E::parts(page);
        let (keys, values) = numbers[kv_head * head_size(dim)..][..head_size(dim)].split_at(PAGE_POSITIONS * dim);
        let of_head = if E::HAS_SCALES { head_scales(dim) } else { 0 };
        let (key_scales, value_scales) = scales[kv_head * of_head..][..of_head].split_at(of_head / 2);
        let (keys, values) = ((keys, key_scales), (values, value_scales));
        let queried: [&[f32]; ROWS] = std::array::from_fn(|index| queries.get(index).map_or(&[][..], |q| q.values));
        score(keys, &queried[..queries.len()], &mut scores);
        let mut factors = [1f32; ROWS];
        for (index, query) in queries.iter().enumerate() {
            let seen = seen(query);
            let within = |position: usize| position.saturating_sub(number * PAGE_POSITIONS).min(PAGE_POSITIONS);
            let (from, to) = (within(seen.start), within(seen.end));
            if from < to {
                let cap = geometry.softcap.unwrap_or(0.0);
                factors[index] = soften(&mut scores[index], from, to, geometry.scale, cap, &mut states[index]);
            } else {
                scores[index] = [0.0; PAGE_POSITIONS];
            }
        }
        mix(values, row, &scores, &factors, &mut mixed);
    }
    Mixed { values: mixed, states }
}

vectorised! {
    /// Turns scores of the positions `from .. to` of a page into weights, and those of others into zeros; the factor that the sums
    /// so far are to be multiplied by. `cap` 0 is none.
    fn soften(scores: &mut PageRow, from: usize, to: usize, scale: f32, cap: f32, state: &mut Softmax) -> f32 {
        for score in scores.iter_mut() {
            *score *= scale;
        }
        if cap > 0.0 {
            for score in scores.iter_mut() {
                *score = cap * tanh(*score / cap);
            }
        }
        scores[..from].fill(f32::NEG_INFINITY);
        scores[to..].fill(f32::NEG_INFINITY);
        let mut greatest = state.greatest;
        for score in scores.iter() {
            greatest = if *score > greatest { *score } else { greatest };
        }
        let mut lanes = [0f32; 16];
        for scores in scores.as_chunks_mut::<16>().0 {
            for lane in 0..16 {
                scores[lane] = exp(scores[lane] - greatest);
                lanes[lane] += scores[lane];
            }
        }
        let factor = exp(state.greatest - greatest);
        *state = Softmax { greatest, sum: state.sum * factor + lanes.iter().sum::<f32>() };
        factor
    }
}

/// `keyᵀ · query` of every position of a page, for each query. Keys are numbers with their scales.
fn score<E: PageElement>(keys: (&[E], &[f16]), queries: &[&[f32]], scores: &mut [PageRow; ROWS]) {
    #[cfg(target_arch = "x86_64")]
    if Isa::current() >= Isa::Avx512 {
        // SAFETY: the processor has AVX-512; each query has a value for each 64 keys, which have their scales.
        return unsafe { super::avx512::score(keys, queries, scores) };
    }
    for (query, scores) in queries.iter().zip(scores) {
        score_row(keys, query, scores);
    }
}

vectorised! {
    fn score_row<E: PageElement>(keys: (&[E], &[f16]), query: &[f32], scores: &mut PageRow) {
        *scores = [0.0; PAGE_POSITIONS];
        let (keys, scales) = keys;
        let mut scale = [1f32; PAGE_POSITIONS];
        for (at, (keys, query)) in keys.as_chunks::<PAGE_POSITIONS>().0.iter().zip(query).enumerate() {
            if E::HAS_SCALES && at.is_multiple_of(GROUP) {
                let stored = &scales[at / GROUP * PAGE_POSITIONS..][..PAGE_POSITIONS];
                scale.iter_mut().zip(stored).for_each(|(scale, stored)| *scale = Stored::to_f32(*stored));
            }
            for position in 0..PAGE_POSITIONS {
                scores[position] += keys[position].value(scale[position]) * query;
            }
        }
    }
}

/// `mixed = factor · mixed + weightsᵀ · values` for each row of `mixed`; rows have `width` values. Values are numbers with their
/// scales.
fn mix<E: PageElement>(
    values: (&[E], &[f16]),
    width: usize,
    weights: &[PageRow; ROWS],
    factors: &[f32; ROWS],
    mixed: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if Isa::current() >= Isa::Avx512 {
        // SAFETY: the processor has AVX-512; there are 64 rows of values, whole vectors wide, with their scales.
        return unsafe { super::avx512::mix(values, width, weights, factors, mixed) };
    }
    for ((mixed, weights), factor) in mixed.chunks_exact_mut(width).zip(weights).zip(factors) {
        mix_row(values, weights, *factor, mixed);
    }
}

vectorised! {
    fn mix_row<E: PageElement>(values: (&[E], &[f16]), weights: &PageRow, factor: f32, mixed: &mut [f32]) {
        for value in mixed.iter_mut() {
            *value *= factor;
        }
        let (values, scales) = values;
        let groups = mixed.len().div_ceil(GROUP);
        for (position, (values, weight)) in values.chunks_exact(mixed.len()).zip(weights).enumerate() {
            for (group, (mixed, values)) in mixed.chunks_mut(GROUP).zip(values.chunks(GROUP)).enumerate() {
                let scale = if E::HAS_SCALES { Stored::to_f32(scales[position * groups + group]) } else { 1.0 };
                for (mixed, value) in mixed.iter_mut().zip(values) {
                    *mixed += value.value(scale) * weight;
                }
            }
        }
    }
}
