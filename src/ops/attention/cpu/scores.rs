//! What happens to scores between the products of attention, a strip of rows at a time.
//!
//! Scores come from the kernels in panels of 32 keys, `[panels][rows][32]`.

use std::ops::Range;

use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::kernel::{Element, PANEL};
use crate::ops::cpu::math::exp;

/// Some query rows against some panels of keys.
#[derive(Clone, Copy)]
pub struct Strip {
    pub rows: usize,
    /// Rows that a panel has room for.
    pub stride: usize,
    /// The first key of the first panel.
    pub first_key: usize,
    pub panels: usize,
    /// Position of the first query.
    pub position: usize,
    /// See [`Geometry::window`](super::super::Geometry::window).
    pub window: Option<usize>,
    /// The factor on the scores.
    pub scale: f32,
}

impl Strip {
    /// Keys that the query of `row` sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        let position = self.position + row;
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
    }

    /// The scores of a row and a panel.
    #[inline(always)]
    fn part<'a>(&self, scores: &'a mut [f32], panel: usize, row: usize) -> &'a mut [f32; PANEL] {
        let (part, _) = scores[(panel * self.stride + row) * PANEL..].split_first_chunk_mut().expect("a whole panel");
        part
    }
}

/// Scores of keys outside `seen` become −∞; `first` is the key of the first score.
#[inline(always)]
fn hide(scores: &mut [f32; PANEL], first: usize, seen: &Range<usize>) {
    if first < seen.start || first + PANEL > seen.end {
        let (from, to) = (seen.start.saturating_sub(first) as u32, seen.end.saturating_sub(first).min(PANEL) as u32);
        for (lane, score) in scores.iter_mut().enumerate() {
            let hidden = (lane as u32) < from || lane as u32 >= to;
            *score = if hidden { f32::NEG_INFINITY } else { *score };
        }
    }
}

vectorised! {
    /// `exp(scale·score − largest)`, rounded into `probabilities` (rows of `depth`); of each row the log-sum and the
    /// factor that makes its probabilities sum to one. Scores are overwritten.
    pub fn soften<E: Element>(
        strip: &Strip, scores: &mut [f32], probabilities: &mut [E], depth: usize, log_sums: &mut [f32],
        factors: &mut [f32],
    ) {
        for row in 0..strip.rows {
            let seen = strip.seen(row);
            let mut largest = [f32::NEG_INFINITY; PANEL];
            for panel in 0..strip.panels {
                let scores = strip.part(scores, panel, row);
                hide(scores, strip.first_key + panel * PANEL, &seen);
                for lane in 0..PANEL {
                    largest[lane] = if scores[lane] > largest[lane] { scores[lane] } else { largest[lane] };
                }
            }
            let mut shift = f32::NEG_INFINITY;
            for value in largest {
                shift = if value > shift { value } else { shift };
            }
            let shift = shift * strip.scale;
            let mut sums = [0f32; PANEL];
            for panel in 0..strip.panels {
                let scores = strip.part(scores, panel, row);
                let (out, _) = probabilities[row * depth + panel * PANEL..]
                    .split_first_chunk_mut::<PANEL>()
                    .expect("room for every probability");
                for lane in 0..PANEL {
                    let value = exp(scores[lane] * strip.scale - shift);
                    sums[lane] += value;
                    out[lane] = E::exact(E::rounded(value));
                }
            }
            let mut sum = 0.0;
            for value in sums {
                sum += value;
            }
            log_sums[row] = shift + sum.ln();
            factors[row] = 1.0 / sum;
        }
    }
}

vectorised! {
    /// Of one panel: the scores (rows of 32) become `P = exp(scale·score − log_sum)` in `p`, the panel with the query rows
    /// as depth; `P∘dP` is added to `sums`, by row and lane.
    pub fn restore<E: Element>(
        strip: &Strip, panel: usize, scores: &mut [f32], dp: &[f32], log_sums: &[f32], p: &mut [E], sums: &mut [[f32; PANEL]],
    ) {
        let unit = E::DEPTH_UNIT;
        for first in (0..strip.rows).step_by(unit) {
            let mut rows = [[0f32; PANEL]; 2];
            for (row, values) in (first..strip.rows).zip(&mut rows[..unit]) {
                let (scores, _) = scores[row * PANEL..].split_first_chunk_mut().expect("a whole panel");
                let (dp, _) = dp[row * PANEL..].split_first_chunk::<PANEL>().expect("a whole panel");
                hide(scores, strip.first_key + panel * PANEL, &strip.seen(row));
                for lane in 0..PANEL {
                    values[lane] = E::rounded(exp(scores[lane] * strip.scale - log_sums[row]));
                    sums[row][lane] += values[lane] * dp[lane];
                }
            }
            E::write_depth(&rows, &mut p[first * PANEL..]);
        }
    }
}

/// `rowsum(P∘dP)` from what [`restore`] summed by lane.
///
/// It is taken over the very products that it is subtracted from: that of `g∘o` (equal in exact arithmetic) would carry
/// the rounding of `o` into every score's gradient.
pub fn row_sums(sums: &[[f32; PANEL]], shared: &mut [f32]) {
    for (sums, shared) in sums.iter().zip(shared) {
        *shared = sums.iter().sum();
    }
}

/// Where the gradients of the scores of one panel go, as the products that follow want them.
pub struct Laid<'a, E> {
    /// On the right: the panel with the query rows as depth.
    pub right: &'a mut [E],
    /// On the left: rows of `left_stride`.
    pub left: &'a mut [E],
    pub left_stride: usize,
}

vectorised! {
    /// Of one panel: `dS = scale·P∘(dP − shared)`, with `P` as [`restore`] left it.
    pub fn differentiate<E: Element>(
        rows: usize, p: &[E], dp: &[f32], shared: &[f32], scale: f32, laid: Laid<'_, E>,
    ) {
        let unit = E::DEPTH_UNIT;
        for first in (0..rows).step_by(unit) {
            let p = E::read_depth(&p[first * PANEL..]);
            let mut ds = [[0f32; PANEL]; 2];
            for ((row, p), ds) in (first..rows).zip(&p[..unit]).zip(&mut ds) {
                let (dp, _) = dp[row * PANEL..].split_first_chunk::<PANEL>().expect("a whole panel");
                let (left, _) =
                    laid.left[row * laid.left_stride..].split_first_chunk_mut::<PANEL>().expect("a whole panel");
                for lane in 0..PANEL {
                    ds[lane] = E::rounded(scale * p[lane] * (dp[lane] - shared[row]));
                    left[lane] = E::exact(ds[lane]);
                }
            }
            E::write_depth(&ds, &mut laid.right[first * PANEL..]);
        }
    }
}
