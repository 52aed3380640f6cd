//! One head of one sequence, backward: blocks of query rows against packed keys and values.

use std::ops::Range;

use super::head::Head;
use super::packed::{Aligned, Packed, Share, Transposed};
use super::scores::{ScoreGradientTargets, Strip, probabilities, row_sums, score_gradients};
use crate::ops::cpu::kernel::{Element, PANEL, with_tiles};
use crate::ops::cpu::pack::transpose_into;
use crate::ops::cpu::product::strip;
use crate::ops::cpu::rows::Rows;

/// Query rows that the backward pass takes at once: as many as leave what it keeps of their scores against all keys about
/// in the second-level cache (a little more than fits one was the fastest). Multiples of the kernels' rows.
const QUERY_BLOCKS: [usize; 5] = [96, 48, 36, 24, 12];
const SCORE_BYTES: usize = 1400 << 10;
/// Keys that it takes at once: two panels, so that the gradient of the queries is loaded and stored half as often.
const KEY_PANELS: usize = 2;

/// The keys of a head as columns, its values as columns, and its keys as rows.
pub type PackedKeysAndValues<'a, E> = (&'a Packed<E>, &'a Packed<E>, &'a Packed<E>);

/// Some query rows, and the panels of keys that they see.
#[derive(Clone)]
struct Block {
    first: usize,
    rows: usize,
    /// Rows, rounded up to the depth of the kernel.
    depth: usize,
    panels: Range<usize>,
}

impl Block {
    /// Values of a panel of scores.
    fn panel_size(&self) -> usize {
        self.depth * PANEL
    }
}

/// Room for the widest block.
struct Buffers<E> {
    /// Rows of the widest block.
    widest: usize,
    /// Values of a head, rounded up to the depth of the kernel.
    padded: usize,
    /// Copies of the queries and of the output's gradient, `[widest, padded]`, where they cannot be read in place.
    queries: Aligned<E>,
    g: Aligned<E>,
    /// `[dimensions, widest]`: the left side of `dKᵀ` and `dVᵀ`.
    queries_across: Aligned<E>,
    g_across: Aligned<E>,
    /// Of every panel that a block sees, `P`, `dP` and the slopes of capped scores.
    p: Aligned<E>,
    dp: Aligned<f32>,
    slopes: Aligned<f32>,
    /// Of the panel at hand, the scores; of the panels at hand, their gradients.
    scores: Aligned<f32>,
    right_ds: Aligned<E>,
    left_ds: Aligned<E>,
    dq: Aligned<f32>,
    log_sums: Vec<f32>,
    /// `rowsum(P∘dP)`, and what it is the sum of by lane.
    shared: Vec<f32>,
    sums: Vec<[f32; PANEL]>,
}

impl<E: Element> Buffers<E> {
    fn new(head: &Head<'_>, blocks: &[Block]) -> Self {
        let dim = head.geometry.head_dim;
        let depth_step = E::depth_step(head.isa);
        let padded = dim.next_multiple_of(depth_step);
        let widest = blocks.iter().map(|block| block.rows).max().unwrap_or(0).next_multiple_of(depth_step);
        let kept = blocks.iter().map(|block| block.panels.len() * block.panel_size()).max().unwrap_or(0);
        let across = || Aligned::new(dim.next_multiple_of(E::row_step(head.isa)) * widest);
        let size = widest * PANEL;
        Self {
            widest,
            padded,
            queries: Aligned::new(widest * padded),
            g: Aligned::new(widest * padded),
            queries_across: across(),
            g_across: across(),
            p: Aligned::new(kept),
            dp: Aligned::new(kept),
            slopes: Aligned::new(if head.geometry.softcap.is_some() { kept } else { 0 }),
            scores: Aligned::new(size),
            right_ds: Aligned::new(size),
            left_ds: Aligned::new(size * KEY_PANELS),
            dq: Aligned::new(dim.div_ceil(PANEL) * size),
            log_sums: vec![0f32; widest],
            shared: vec![0f32; widest],
            sums: vec![[0f32; PANEL]; widest],
        }
    }
}

impl Head<'_> {
    /// Calls `emit(query, dq)` for every query; returns the share of the keys and values.
    ///
    /// With `P = exp(s·q·kᵀ − log_sum)`: `dV = Pᵀ·g`, `dP = g·Vᵀ`, `dS = s·P∘(dP − rowsum(P∘dP))`, `dq = dS·K`,
    /// `dK = dSᵀ·q` (Dao et al. 2022, "FlashAttention", appendix B). Scores exist for a block of queries at a time.
    pub fn backward<E: Element>(
        &self,
        packed: PackedKeysAndValues<'_, E>,
        gradient: Rows<'_>,
        log_sum: impl Fn(usize) -> f32,
        mut emit: impl FnMut(usize, &[f32]),
    ) -> Share {
        let dim = self.geometry.head_dim;
        let blocks = self.query_blocks::<E>();
        let mut buffers = Buffers::<E>::new(self, &blocks);
        let dim_rows = dim.next_multiple_of(E::row_step(self.isa));
        let panels = self.count.div_ceil(PANEL);
        let mut share = Share { keys: Transposed::new(panels, dim_rows), values: Transposed::new(panels, dim_rows) };
        let mut dq_row = vec![0f32; dim.next_multiple_of(PANEL)];
        with_tiles::<E, _>(self.isa, || {
            for block in &blocks {
                for (row, value) in buffers.log_sums.iter_mut().enumerate().take(block.rows) {
                    *value = log_sum(block.first + row);
                }
                self.block_probabilities(block, packed, gradient, &mut buffers);
                self.block_gradients(block, packed, &mut buffers, &mut share);
                for row in 0..block.rows {
                    for (index, values) in dq_row.chunks_exact_mut(PANEL).enumerate() {
                        let at = (index * buffers.widest + row) * PANEL;
                        values.copy_from_slice(&buffers.dq.as_slice()[at..at + PANEL]);
                    }
                    emit(block.first + row, &dq_row[..dim]);
                }
            }
        });
        share
    }

    /// The blocks of queries, each as large as its scores allow.
    fn query_blocks<E: Element>(&self) -> Vec<Block> {
        let depth_step = E::depth_step(self.isa);
        // Of each query and panel of keys are kept: `P`, `dP`, and the slopes of capped scores.
        let floats = if self.geometry.softcap.is_some() { 2 } else { 1 };
        let bytes = PANEL * (size_of::<E>() + size_of::<f32>() * floats);
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < self.count {
            let rows = |block: usize| block.next_multiple_of(depth_step).min(self.count - first);
            let fits = |&block: &usize| self.panel_range(first, rows(block)).len() * rows(block) * bytes <= SCORE_BYTES;
            let block = QUERY_BLOCKS.into_iter().find(fits).unwrap_or(QUERY_BLOCKS[QUERY_BLOCKS.len() - 1]);
            let (rows, panels) = (rows(block), self.panel_range(first, rows(block)));
            blocks.push(Block { first, rows, depth: rows.next_multiple_of(depth_step), panels });
            first += rows;
        }
        blocks
    }

    /// `P` and `dP` of every panel that the block sees, `rowsum(P∘dP)`, and queries and gradient transposed.
    fn block_probabilities<E: Element>(
        &self,
        block: &Block,
        (keys, values, _): PackedKeysAndValues<'_, E>,
        gradient: Rows<'_>,
        buffers: &mut Buffers<E>,
    ) {
        let (dim, rows, size) = (self.geometry.head_dim, block.rows, block.panel_size());
        let Buffers { widest, padded, queries, g, queries_across, g_across, p, dp, slopes, .. } = buffers;
        let q_left = strip(self.queries, block.first, rows, dim, *padded, queries.as_mut());
        let g_left = strip(gradient, block.first, rows, dim, *padded, g.as_mut());
        if block.depth > rows {
            // Values of the block before, beyond these rows, must add nothing.
            queries_across.as_mut().fill(E::zeroed());
            g_across.as_mut().fill(E::zeroed());
        }
        transpose_into(q_left, rows, dim, queries_across.as_mut(), *widest);
        transpose_into(g_left, rows, dim, g_across.as_mut(), *widest);
        let seen: Strip = self.strip(block.first, rows, block.depth, block.panels.clone());
        buffers.sums.fill([0.0; PANEL]);
        for (at, panel) in block.panels.clone().enumerate() {
            let here = at * size..(at + 1) * size;
            let (scores, dp) = (buffers.scores.as_mut(), &mut dp.as_mut()[here.clone()]);
            self.multiply(rows, *padded, q_left, keys.panel(panel), scores, false);
            self.multiply(rows, *padded, g_left, values.panel(panel), dp, false);
            let slopes = if seen.softcap.is_some() { &mut slopes.as_mut()[here.clone()] } else { &mut [] };
            let p = &mut p.as_mut()[here];
            probabilities(&seen, at, scores, dp, &buffers.log_sums, p, &mut buffers.sums, slopes);
        }
        row_sums(&buffers.sums, &mut buffers.shared);
    }

    /// The gradient of the block's queries in `dq`, and what it adds to those of the keys and values.
    fn block_gradients<E: Element>(
        &self,
        block: &Block,
        (_, _, key_rows): PackedKeysAndValues<'_, E>,
        buffers: &mut Buffers<E>,
        share: &mut Share,
    ) {
        let (dim, rows, depth, size) = (self.geometry.head_dim, block.rows, block.depth, block.panel_size());
        let Buffers { widest, queries_across, g_across, right_ds, left_ds, dq, shared, .. } = buffers;
        let widest = *widest;
        for from in block.panels.clone().step_by(KEY_PANELS) {
            let these = from..(from + KEY_PANELS).min(block.panels.end);
            let left_stride = these.len() * PANEL;
            for panel in these {
                let targets = ScoreGradientTargets {
                    right: right_ds.as_mut(),
                    left: &mut left_ds.as_mut()[(panel - from) * PANEL..],
                    left_stride,
                };
                let at = (panel - block.panels.start) * size;
                let (p, dp) = (&buffers.p.as_slice()[at..at + size], &buffers.dp.as_slice()[at..at + size]);
                let slopes = self.geometry.softcap.map(|_| &buffers.slopes.as_slice()[at..at + size]);
                score_gradients(rows, p, dp, shared, self.geometry.scale, slopes, targets);
                let (dv, dk) = (share.values.panel_mut(panel), share.keys.panel_mut(panel));
                self.multiply(dim, depth, (g_across.as_slice(), widest), p, dv, true);
                self.multiply(dim, depth, (queries_across.as_slice(), widest), right_ds.as_slice(), dk, true);
            }
            let left = (left_ds.as_slice(), left_stride);
            for (index, dq) in dq.as_mut().chunks_exact_mut(widest * PANEL).enumerate() {
                let panel = &key_rows.panel(index)[from * PANEL * PANEL..][..left_stride * PANEL];
                self.multiply(rows, left_stride, left, panel, dq, from > block.panels.start);
            }
        }
    }
}
