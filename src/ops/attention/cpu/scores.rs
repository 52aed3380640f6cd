//! The steps between the products of attention: scores to probabilities and to gradients, a strip of rows at a time.
//!
//! Scores come from the kernels in panels of 32 keys, `[panels][rows][32]`.

use std::ops::Range;

use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::kernel::{Element, PANEL};
use crate::ops::cpu::math::{exp, tanh};

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
    /// See [`Geometry::scale`](super::super::Geometry::scale).
    pub scale: f32,
    /// See [`Geometry::softcap`](super::super::Geometry::softcap).
    pub softcap: Option<f32>,
}

impl Strip {
    /// Keys that the query of `row` sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        let position = self.position + row;
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
    }

    /// The factor on scores that [`cap`] has been at: it takes the scale in.
    #[inline(always)]
    fn scale_after_cap(&self) -> f32 {
        if self.softcap.is_some() { 1.0 } else { self.scale }
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

/// `cap·tanh(scale·score / cap)`.
#[inline(always)]
fn cap(scores: &mut [f32; PANEL], scale: f32, softcap: f32) {
    for score in scores {
        *score = softcap * tanh(*score * scale / softcap);
    }
}

vectorised! {
    /// `exp(scale·score − largest)` (of capped scores, where there is a cap), rounded into `probabilities` (rows of `depth`); of each row the log-sum and the
    /// factor that makes its probabilities sum to one. Scores are overwritten.
    pub fn softmax<E: Element>(
        strip: &Strip, scores: &mut [f32], probabilities: &mut [E], depth: usize, log_sums: &mut [f32],
        factors: &mut [f32],
    ) {
        let scale = strip.scale_after_cap();
        for row in 0..strip.rows {
            let seen = strip.seen(row);
            let mut largest = [f32::NEG_INFINITY; PANEL];
            for panel in 0..strip.panels {
                let scores = strip.part(scores, panel, row);
                if let Some(softcap) = strip.softcap {
                    cap(scores, strip.scale, softcap);
                }
                hide(scores, strip.first_key + panel * PANEL, &seen);
                for lane in 0..PANEL {
                    largest[lane] = if scores[lane] > largest[lane] { scores[lane] } else { largest[lane] };
                }
            }
            let mut shift = f32::NEG_INFINITY;
            for value in largest {
                shift = if value > shift { value } else { shift };
            }
            let shift = shift * scale;
            let mut sums = [0f32; PANEL];
            for panel in 0..strip.panels {
                let scores = strip.part(scores, panel, row);
                let (out, _) = probabilities[row * depth + panel * PANEL..]
                    .split_first_chunk_mut::<PANEL>()
                    .expect("room for every probability");
                for lane in 0..PANEL {
                    let value = exp(scores[lane] * scale - shift);
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
    /// as depth; `P∘dP` is added to `sums`, by row and lane. Where there is a cap, the slope of each capped score,
    /// `1 − tanh²`, goes to `slopes`.
    pub fn probabilities<E: Element>(
        strip: &Strip, panel: usize, scores: &mut [f32], dp: &[f32], log_sums: &[f32], p: &mut [E],
        sums: &mut [[f32; PANEL]], slopes: &mut [f32],
    ) {
        let (unit, scale) = (E::DEPTH_UNIT, strip.scale_after_cap());
        for first in (0..strip.rows).step_by(unit) {
            let mut rows = [[0f32; PANEL]; 2];
            for (row, values) in (first..strip.rows).zip(&mut rows[..unit]) {
                let (scores, _) = scores[row * PANEL..].split_first_chunk_mut().expect("a whole panel");
                let (dp, _) = dp[row * PANEL..].split_first_chunk::<PANEL>().expect("a whole panel");
                if let Some(softcap) = strip.softcap {
                    cap(scores, strip.scale, softcap);
                    for (slope, score) in slopes[row * PANEL..][..PANEL].iter_mut().zip(&*scores) {
                        let share = *score / softcap;
                        *slope = 1.0 - share * share;
                    }
                }
                hide(scores, strip.first_key + panel * PANEL, &strip.seen(row));
                for lane in 0..PANEL {
                    values[lane] = E::rounded(exp(scores[lane] * scale - log_sums[row]));
                    sums[row][lane] += values[lane] * dp[lane];
                }
            }
            E::write_depth(&rows, &mut p[first * PANEL..]);
        }
    }
}

/// `rowsum(P∘dP)` from what [`probabilities`] summed by lane.
///
/// It is taken over the very products that it is subtracted from: that of `g∘o` (equal in exact arithmetic) would carry
/// the rounding of `o` into every score's gradient.
pub fn row_sums(sums: &[[f32; PANEL]], shared: &mut [f32]) {
    for (sums, shared) in sums.iter().zip(shared) {
        *shared = sums.iter().sum();
    }
}

/// Where the gradients of the scores of one panel go, as the products that follow want them.
pub struct ScoreGradientTargets<'a, E> {
    /// On the right: the panel with the query rows as depth.
    pub right: &'a mut [E],
    /// On the left: rows of `left_stride`.
    pub left: &'a mut [E],
    /// Distance between the rows on the left.
    pub left_stride: usize,
}

vectorised! {
    /// Of one panel: `dS = scale·P∘(dP − shared)`, with `P` as [`probabilities`] left it; times the slopes of the
    /// scores where they are capped.
    pub fn score_gradients<E: Element>(
        rows: usize, p: &[E], dp: &[f32], shared: &[f32], scale: f32, slopes: Option<&[f32]>,
        targets: ScoreGradientTargets<'_, E>,
    ) {
        let unit = E::DEPTH_UNIT;
        for first in (0..rows).step_by(unit) {
            let p = E::read_depth(&p[first * PANEL..]);
            let mut ds = [[0f32; PANEL]; 2];
            for ((row, p), ds) in (first..rows).zip(&p[..unit]).zip(&mut ds) {
                let (dp, _) = dp[row * PANEL..].split_first_chunk::<PANEL>().expect("a whole panel");
                let (left, _) =
                    targets.left[row * targets.left_stride..].split_first_chunk_mut::<PANEL>().expect("a whole panel");
                if let Some(slopes) = slopes {
                    let (slopes, _) = slopes[row * PANEL..].split_first_chunk::<PANEL>().expect("a whole panel");
                    for lane in 0..PANEL {
                        ds[lane] = E::rounded(scale * slopes[lane] * p[lane] * (dp[lane] - shared[row]));
                        left[lane] = E::exact(ds[lane]);
                    }
                } else {
                    for lane in 0..PANEL {
                        ds[lane] = E::rounded(scale * p[lane] * (dp[lane] - shared[row]));
                        left[lane] = E::exact(ds[lane]);
                    }
                }
            }
            E::write_depth(&ds, &mut targets.right[first * PANEL..]);
        }
    }
}
