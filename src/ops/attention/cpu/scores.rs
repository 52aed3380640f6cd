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
                    out[lane] = E::round(value);
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
    /// Scores become `P = exp(scale·score − log_sum)`; of each row `shared = Σ P∘dP`.
    ///
    /// The sum is taken over the very products that it is subtracted from: that of `g∘o` (equal in exact arithmetic)
    /// would carry the rounding of `o` into every score's gradient.
    pub fn restore(strip: &Strip, scores: &mut [f32], dp: &mut [f32], log_sums: &[f32], shared: &mut [f32]) {
        for row in 0..strip.rows {
            let seen = strip.seen(row);
            let mut sums = [0f32; PANEL];
            for panel in 0..strip.panels {
                let scores = strip.part(scores, panel, row);
                hide(scores, strip.first_key + panel * PANEL, &seen);
                let dp = strip.part(dp, panel, row);
                for lane in 0..PANEL {
                    scores[lane] = exp(scores[lane] * strip.scale - log_sums[row]);
                    sums[lane] += scores[lane] * dp[lane];
                }
            }
            let mut sum = 0.0;
            for value in sums {
                sum += value;
            }
            shared[row] = sum;
        }
    }
}

/// Where the probabilities and the gradients of the scores of one panel go, as the products that follow want them.
pub struct Laid<'a, E> {
    /// `P` and `dS` on the right: the panel with the query rows as depth.
    pub right_p: &'a mut [E],
    pub right_ds: &'a mut [E],
    /// `dS` on the left: rows of `left_stride`.
    pub left_ds: &'a mut [E],
    pub left_stride: usize,
}

vectorised! {
    /// Of one panel: `dS = scale·P∘(dP − shared)`, laid out with `P`.
    pub fn differentiate<E: Element>(
        rows: usize, p: &[f32], dp: &[f32], shared: &[f32], scale: f32, laid: Laid<'_, E>,
    ) {
        let unit = E::DEPTH_UNIT;
        for first in (0..rows).step_by(unit) {
            let (mut p_rows, mut ds_rows) = ([[0f32; PANEL]; 2], [[0f32; PANEL]; 2]);
            for half in 0..unit {
                let row = first + half;
                if row == rows {
                    break;
                }
                let (p, _) = p[row * PANEL..].split_first_chunk::<PANEL>().expect("a whole panel");
                let (dp, _) = dp[row * PANEL..].split_first_chunk::<PANEL>().expect("a whole panel");
                let (left, _) =
                    laid.left_ds[row * laid.left_stride..].split_first_chunk_mut::<PANEL>().expect("a whole panel");
                for lane in 0..PANEL {
                    let ds = scale * p[lane] * (dp[lane] - shared[row]);
                    p_rows[half][lane] = p[lane];
                    ds_rows[half][lane] = ds;
                    left[lane] = E::round(ds);
                }
            }
            E::write_depth(&p_rows, &mut laid.right_p[first * PANEL..]);
            E::write_depth(&ds_rows, &mut laid.right_ds[first * PANEL..]);
        }
    }
}
