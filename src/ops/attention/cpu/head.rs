//! One head of one sequence: strips of query rows against packed keys and values, forward and backward.

use std::ops::Range;

use super::super::Geometry;
use super::scores::{ScoreGradientTargets, Strip, probabilities, row_sums, score_gradients, softmax};
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::kernel::{Element, PANEL, Tile, with_tiles};
use crate::ops::cpu::matrix::interleave_rows;
use crate::ops::cpu::pack::{pack_rows, pack_rows_bf16, transpose_into, write_depth_row};
use crate::ops::cpu::product::{Rows, strip};

/// Query rows that the backward pass takes at once: as many as leave what it keeps of their scores against all keys about
/// in the second-level cache (a little more than fits one was the fastest). Multiples of the kernels' rows.
const QUERY_BLOCKS: [usize; 5] = [96, 48, 36, 24, 12];
const SCORE_BYTES: usize = 1400 << 10;
/// Keys that it takes at once: two panels, so that the gradient of the queries is loaded and stored half as often.
const KEY_PANELS: usize = 2;

/// An aligned buffer in the kernel's number format.
pub struct Aligned<E> {
    words: Vec<Tile>,
    count: usize,
    marker: std::marker::PhantomData<E>,
}

impl<E: Element> Aligned<E> {
    pub fn new(count: usize) -> Self {
        let tiles = (count * size_of::<E>()).div_ceil(size_of::<Tile>());
        Self { words: vec![Tile::ZERO; tiles], count, marker: std::marker::PhantomData }
    }

    pub fn as_slice(&self) -> &[E] {
        // SAFETY: the tiles hold at least `count` plain values.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.count) }
    }

    pub fn as_mut(&mut self) -> &mut [E] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.count) }
    }
}

/// The values of a key head, or its keys: `count` rows of `dim`, packed for products from the left.
pub struct Packed<E> {
    panels: Aligned<E>,
    /// Values of a panel.
    size: usize,
}

impl<E: Element> Packed<E> {
    /// As the columns of panels: `rowsᵀ` on the right.
    pub fn columns(source: Rows<'_>, count: usize, dim: usize) -> Self {
        let size = dim.next_multiple_of(E::depth_step(Isa::current())) * PANEL;
        let mut panels = Aligned::new(count.div_ceil(PANEL) * size);
        for (index, panel) in panels.as_mut().chunks_exact_mut(size).enumerate() {
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
        Self { panels, size }
    }

    /// As they are, panels of 32 dimensions: `rows` on the right. The depth is whole panels of keys, the rest zero.
    pub fn rows(source: Rows<'_>, count: usize, dim: usize) -> Self {
        let depth = count.next_multiple_of(PANEL);
        let mut panels = Aligned::new(dim.div_ceil(PANEL) * depth * PANEL);
        let packed = panels.as_mut();
        if let (Rows::Bf16 { data, stride }, Some(packed)) = (source, E::as_bf16(packed)) {
            interleave_rows(data, stride, dim, count, packed);
        } else {
            let mut row = vec![0f32; dim];
            for k in 0..count {
                source.read(k, 0, &mut row);
                for (panel, values) in packed.chunks_exact_mut(depth * PANEL).zip(row.chunks(PANEL)) {
                    write_depth_row(values, 1.0, k, panel);
                }
            }
        }
        Self { panels, size: depth * PANEL }
    }

    fn panel(&self, index: usize) -> &[E] {
        &self.panels.as_slice()[index * self.size..][..self.size]
    }
}

/// A gradient of keys or values, transposed: `[panels of 32 keys][dimensions][32]`.
pub struct Transposed {
    sums: Aligned<f32>,
    /// Values of a panel: the kernel may write more dimensions than there are.
    size: usize,
}

impl Transposed {
    fn new(panels: usize, dimensions: usize) -> Self {
        let size = dimensions * PANEL;
        Self { sums: Aligned::new(panels * size), size }
    }

    fn panel_mut(&mut self, panel: usize) -> &mut [f32] {
        &mut self.sums.as_mut()[panel * self.size..][..self.size]
    }

    /// The gradients of keys `32·panel..`, `[head_dim][32]` and perhaps more.
    pub fn panel(&self, panel: usize) -> &[f32] {
        &self.sums.as_slice()[panel * self.size..][..self.size]
    }
}

/// What one query head adds to the gradients of its key head.
pub struct Share {
    keys: Transposed,
    values: Transposed,
}

impl Share {
    pub fn keys(&self) -> &Transposed {
        &self.keys
    }

    pub fn values(&self) -> &Transposed {
        &self.values
    }
}

/// One query head of one sequence.
pub struct Head<'a> {
    pub isa: Isa,
    /// `[count, head_dim]` views into wider rows, rotated.
    pub queries: Rows<'a>,
    /// Queries.
    pub count: usize,
    /// Position of the first query; there are `past + count` keys.
    pub past: usize,
    pub geometry: &'a Geometry,
}

impl Head<'_> {
    /// `out = a · panel` for any number of rows: they are taken as many at a time as the kernel does.
    ///
    /// `a` is `rows` rows of `depth` values, `lda` apart; `out` has 32 columns. Both have the rows that the kernel rounds up
    /// to.
    fn multiply<E: Element>(
        &self,
        rows: usize,
        depth: usize,
        (a, lda): (&[E], usize),
        panel: &[E],
        out: &mut [f32],
        accumulate: bool,
    ) {
        let touched = rows.next_multiple_of(E::row_step(self.isa));
        assert!(a.len() >= (touched - 1) * lda + depth && panel.len() >= depth * PANEL && out.len() >= touched * PANEL);
        let step = E::rows_per_tile(self.isa);
        for row in (0..rows).step_by(step) {
            let count = (rows - row).min(step);
            // SAFETY: all three are large enough.
            unsafe {
                let (a, out) = (a.as_ptr().add(row * lda), out.as_mut_ptr().add(row * PANEL));
                E::tile(self.isa, count, depth, a, lda, panel.as_ptr(), out, accumulate);
            }
        }
    }

    /// Panels of keys that queries `first..first + rows` see.
    fn panel_range(&self, first: usize, rows: usize) -> Range<usize> {
        let last = self.past + first + rows - 1;
        self.geometry.first_key(self.past + first) / PANEL..last / PANEL + 1
    }

    /// First query and number of the blocks of queries that the backward pass takes, with `bytes` kept of each query and
    /// panel of keys.
    fn query_blocks(&self, depth_step: usize, bytes: usize) -> Vec<(usize, usize)> {
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < self.count {
            let rows = |block: usize| block.next_multiple_of(depth_step).min(self.count - first);
            let fits = |&block: &usize| self.panel_range(first, rows(block)).len() * rows(block) * bytes <= SCORE_BYTES;
            let block = QUERY_BLOCKS.into_iter().find(fits).unwrap_or(QUERY_BLOCKS[QUERY_BLOCKS.len() - 1]);
            blocks.push((first, rows(block)));
            first += rows(block);
        }
        blocks
    }

    fn strip(&self, first: usize, rows: usize, stride: usize, panels: Range<usize>) -> Strip {
        Strip {
            rows,
            stride,
            first_key: panels.start * PANEL,
            panels: panels.len(),
            position: self.past + first,
            window: self.geometry.window,
            scale: self.geometry.scale,
            softcap: self.geometry.softcap,
        }
    }

    /// Calls `emit(query, mixed values, log-sum)` for every one of `wanted`; `keys` are packed as columns, `values` as
    /// rows.
    pub fn forward<E: Element>(
        &self,
        wanted: Range<usize>,
        keys: &Packed<E>,
        values: &Packed<E>,
        mut emit: impl FnMut(usize, &[f32], f32),
    ) {
        let dim = self.geometry.head_dim;
        let padded = dim.next_multiple_of(E::depth_step(self.isa));
        let dim_panels = dim.div_ceil(PANEL);
        let step = E::rows_per_tile(self.isa);
        let most = self.panel_range(0, wanted.end).end;
        let mut queries = Aligned::<E>::new(step * padded);
        let mut scores = Aligned::<f32>::new(most * step * PANEL);
        let mut weights = Aligned::<E>::new(step * most * PANEL);
        let mut mixed = Aligned::<f32>::new(dim_panels * step * PANEL);
        let (mut log_sums, mut factors) = (vec![0f32; step], vec![0f32; step]);
        let mut row_values = vec![0f32; dim_panels * PANEL];
        with_tiles::<E, _>(self.isa, || {
            for first in wanted.clone().step_by(step) {
                let rows = (wanted.end - first).min(step);
                let left = strip(self.queries, first, rows, dim, padded, queries.as_mut());
                let range = self.panel_range(first, rows);
                for (panel, scores) in range.clone().zip(scores.as_mut().chunks_exact_mut(step * PANEL)) {
                    self.multiply(rows, padded, left, keys.panel(panel), scores, false);
                }
                let depth = range.len() * PANEL;
                let strip = self.strip(first, rows, step, range.clone());
                softmax(&strip, scores.as_mut(), weights.as_mut(), depth, &mut log_sums, &mut factors);
                let left = (weights.as_slice(), depth);
                for (index, mixed) in mixed.as_mut().chunks_exact_mut(step * PANEL).enumerate() {
                    let panel = &values.panel(index)[range.start * PANEL * PANEL..][..depth * PANEL];
                    self.multiply(rows, depth, left, panel, mixed, false);
                }
                for row in 0..rows {
                    for (index, values) in row_values.chunks_exact_mut(PANEL).enumerate() {
                        let sums = &mixed.as_slice()[(index * step + row) * PANEL..][..PANEL];
                        values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum * factors[row]);
                    }
                    emit(first + row, &row_values[..dim], log_sums[row]);
                }
            }
        });
    }

    /// Calls `emit(query, dq)` for every query; returns the share of the keys and values, which are packed as columns,
    /// the keys also as rows.
    ///
    /// With `P = exp(s·q·kᵀ − log_sum)`: `dV = Pᵀ·g`, `dP = g·Vᵀ`, `dS = s·P∘(dP − rowsum(P∘dP))`, `dq = dS·K`,
    /// `dK = dSᵀ·q` (Dao et al. 2022, "FlashAttention", appendix B). Scores exist for a block of queries at a time.
    pub fn backward<E: Element>(
        &self,
        (keys, values, key_rows): (&Packed<E>, &Packed<E>, &Packed<E>),
        gradient: Rows<'_>,
        log_sum: impl Fn(usize) -> f32,
        mut emit: impl FnMut(usize, &[f32]),
    ) -> Share {
        let dim = self.geometry.head_dim;
        let depth_step = E::depth_step(self.isa);
        let padded = dim.next_multiple_of(depth_step);
        let dim_panels = dim.div_ceil(PANEL);
        let panels = self.count.div_ceil(PANEL);
        let is_capped = self.geometry.softcap.is_some();
        let bytes = size_of::<E>() + size_of::<f32>() * if is_capped { 2 } else { 1 };
        let blocks = self.query_blocks(depth_step, PANEL * bytes);
        let widest = blocks.iter().map(|&(_, rows)| rows).max().unwrap_or(0).next_multiple_of(depth_step);
        let size = widest * PANEL;
        let most =
            |&(first, rows): &(usize, usize)| self.panel_range(first, rows).len() * rows.next_multiple_of(depth_step);
        let kept = blocks.iter().map(most).max().unwrap_or(0) * PANEL;
        let (mut queries, mut g) = (Aligned::<E>::new(widest * padded), Aligned::<E>::new(widest * padded));
        // [dim, widest]: the left side of `dKᵀ` and `dVᵀ`.
        let dim_rows = dim.next_multiple_of(E::row_step(self.isa));
        let across = || Aligned::<E>::new(dim_rows * widest);
        let (mut queries_across, mut g_across) = (across(), across());
        // Of every panel that a block sees, `P`, `dP` and the slopes of capped scores; of the panel at hand the rest.
        let (mut p, mut dp) = (Aligned::<E>::new(kept), Aligned::<f32>::new(kept));
        let mut slopes = Aligned::<f32>::new(if is_capped { kept } else { 0 });
        let (mut scores, mut right_ds) = (Aligned::<f32>::new(size), Aligned::<E>::new(size));
        let mut left_ds = Aligned::<E>::new(size * KEY_PANELS);
        let mut dq = Aligned::<f32>::new(dim_panels * size);
        let (mut log_sums, mut shared) = (vec![0f32; widest], vec![0f32; widest]);
        let mut sums = vec![[0f32; PANEL]; widest];
        let mut dq_row = vec![0f32; dim_panels * PANEL];
        let mut share = Share { keys: Transposed::new(panels, dim_rows), values: Transposed::new(panels, dim_rows) };
        with_tiles::<E, _>(self.isa, || {
            for &(first, rows) in &blocks {
                let depth = rows.next_multiple_of(depth_step);
                let size = depth * PANEL;
                for (row, value) in log_sums.iter_mut().enumerate().take(rows) {
                    *value = log_sum(first + row);
                }
                let q_left = strip(self.queries, first, rows, dim, padded, queries.as_mut());
                let g_left = strip(gradient, first, rows, dim, padded, g.as_mut());
                if depth > rows {
                    // What the block before left beyond these rows must add nothing.
                    queries_across.as_mut().fill(E::zeroed());
                    g_across.as_mut().fill(E::zeroed());
                }
                transpose_into(q_left, rows, dim, queries_across.as_mut(), widest);
                transpose_into(g_left, rows, dim, g_across.as_mut(), widest);
                let range = self.panel_range(first, rows);
                let seen = self.strip(first, rows, depth, range.clone());
                sums.fill([0.0; PANEL]);
                for (at, panel) in range.clone().enumerate() {
                    let (scores, dp) = (scores.as_mut(), &mut dp.as_mut()[at * size..][..size]);
                    self.multiply(rows, padded, q_left, keys.panel(panel), scores, false);
                    self.multiply(rows, padded, g_left, values.panel(panel), dp, false);
                    let p = &mut p.as_mut()[at * size..][..size];
                    let slopes = if is_capped { &mut slopes.as_mut()[at * size..][..size] } else { &mut [] };
                    probabilities(&seen, at, scores, dp, &log_sums, p, &mut sums, slopes);
                }
                row_sums(&sums, &mut shared);
                for from in range.clone().step_by(KEY_PANELS) {
                    let these = from..(from + KEY_PANELS).min(range.end);
                    let left_stride = these.len() * PANEL;
                    for panel in these.clone() {
                        let targets = ScoreGradientTargets {
                            right: right_ds.as_mut(),
                            left: &mut left_ds.as_mut()[(panel - from) * PANEL..],
                            left_stride,
                        };
                        let at = (panel - range.start) * size;
                        let (p, dp) = (&p.as_slice()[at..at + size], &dp.as_slice()[at..at + size]);
                        let slopes = is_capped.then(|| &slopes.as_slice()[at..at + size]);
                        score_gradients(rows, p, dp, &shared, self.geometry.scale, slopes, targets);
                        let (dv, dk) = (share.values.panel_mut(panel), share.keys.panel_mut(panel));
                        self.multiply(dim, depth, (g_across.as_slice(), widest), p, dv, true);
                        self.multiply(dim, depth, (queries_across.as_slice(), widest), right_ds.as_slice(), dk, true);
                    }
                    let left = (left_ds.as_slice(), left_stride);
                    for (index, dq) in dq.as_mut().chunks_exact_mut(widest * PANEL).enumerate() {
                        let panel = &key_rows.panel(index)[from * PANEL * PANEL..][..left_stride * PANEL];
                        self.multiply(rows, left_stride, left, panel, dq, from > range.start);
                    }
                }
                for row in 0..rows {
                    for (index, values) in dq_row.chunks_exact_mut(PANEL).enumerate() {
                        values.copy_from_slice(&dq.as_slice()[(index * widest + row) * PANEL..][..PANEL]);
                    }
                    emit(first + row, &dq_row[..dim]);
                }
            }
        });
        share
    }
}
