//! Rows of logits turned into exponentials in place, with the loss of each.

use half::bf16;

use super::{Prediction, Targets};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::kernel::Element;
use crate::ops::cpu::math::{exp, tanh};
use crate::ops::cpu::rows::Rows;
use crate::ops::cpu::rowwise::for_each_row;
use crate::ops::cpu::shared::SharedMut;

/// A row of logits in whose place `exp(z − largest)` stands, times the slope of the cap where there is one.
#[derive(Clone, Copy, Default)]
pub struct SoftmaxRow {
    /// `ln Σ_v exp(z_v) − z_target` (with a cap, the smoothed loss), and whether `z_target` is the greatest.
    pub prediction: Prediction,
    /// `z_target`.
    pub target: f32,
    /// The factor that makes the exponentials sum to one.
    pub factor: f32,
    /// `dz/d logit` at the target, times the share `1 − ε` that label smoothing leaves it: 1 without either.
    pub target_slope: f32,
}

/// Turns each row of logits into its exponentials, in the kernel's format (see [`exponentials_of`]).
///
/// They are neither divided by their sum nor is one subtracted at the target before the products that read them: both
/// happen afterwards, in f32, which saves two passes over the logits and a rounding. So does the evenly spread share of label
/// smoothing, `smoothing / vocabulary` of every logit; only under a cap, whose slope differs from logit to logit, it is
/// subtracted here, after a pass that finds the sum.
pub fn softmax<E: Element>(
    logits: &mut [f32],
    vocabulary: usize,
    targets: &Targets,
    softcap: Option<f32>,
    smoothing: f32,
) -> Vec<SoftmaxRow> {
    let mut results = vec![SoftmaxRow::default(); targets.len()];
    let slots = SharedMut::new(&mut results);
    for_each_row(logits, vocabulary, 0, |row, logits, _| {
        let target = targets[row].1 as usize;
        let largest = match softcap {
            Some(cap) => largest_of_capped(logits, cap),
            None => largest(logits),
        };
        let picked = logits[target];
        let capped = softcap.map(|cap| Capped { inverse: 1.0 / cap });
        let mut spread_loss = 0.0;
        let sum = match capped {
            Some(cap) if smoothing > 0.0 => {
                let (sum, sum_of_logits) = sums(logits, largest);
                let share = smoothing / vocabulary as f32;
                spread_loss = smoothing * picked - share * sum_of_logits;
                exponentials_in_place::<E, _>(logits, largest, Smoothed { cap, subtracted: share * sum })
            }
            Some(cap) => exponentials_in_place::<E, _>(logits, largest, cap),
            None => exponentials_in_place::<E, _>(logits, largest, Uncapped),
        };
        let target_slope = (1.0 - smoothing) * capped.map_or(1.0, |cap| cap.slope(picked));
        let loss = largest + sum.ln() - picked + spread_loss;
        let prediction = Prediction { loss, is_likeliest: picked >= largest };
        let result = SoftmaxRow { prediction, target: picked, factor: 1.0 / sum, target_slope };
        // SAFETY: every row has its own slot.
        unsafe { slots.set(row, result) };
    });
    results
}

/// Fills a row with ones, in the kernel's format.
pub fn fill_with_ones<E: Element>(row: &mut [f32]) {
    let width = row.len();
    match E::DEPTH_UNIT {
        1 => row.fill(1.0),
        _ => bytemuck::cast_slice_mut::<f32, bf16>(row)[..width].fill(bf16::ONE),
    }
}

/// The exponentials that [`softmax`] left: bf16 stands in the first half of each row.
pub fn exponentials_of<E: Element>(values: &[f32], width: usize) -> Rows<'_> {
    match E::DEPTH_UNIT {
        1 => Rows::F32 { data: values, stride: width },
        _ => Rows::Bf16 { data: bytemuck::cast_slice(values), stride: 2 * width },
    }
}

/// The prediction of each row; the logits are overwritten.
pub fn predictions_of(
    logits: &mut [f32],
    vocabulary: usize,
    targets: &Targets,
    softcap: Option<f32>,
) -> Vec<Prediction> {
    softmax::<f32>(logits, vocabulary, targets, softcap, 0.0).iter().map(|row| row.prediction).collect()
}

/// The derivative of the cap on logits, for loops that vectorise.
trait Cap: Copy {
    /// `exponential · dz/d logit` at a capped logit `z`.
    fn scaled(self, exponential: f32, z: f32) -> f32;
}

#[derive(Clone, Copy)]
struct Uncapped;

impl Cap for Uncapped {
    #[inline(always)]
    fn scaled(self, exponential: f32, _: f32) -> f32 {
        exponential
    }
}

/// `z = cap·tanh(logit / cap)`, whose derivative is `1 − (z / cap)²`.
#[derive(Clone, Copy)]
struct Capped {
    inverse: f32,
}

impl Capped {
    #[inline(always)]
    fn slope(self, z: f32) -> f32 {
        let share = z * self.inverse;
        1.0 - share * share
    }
}

impl Cap for Capped {
    #[inline(always)]
    fn scaled(self, exponential: f32, z: f32) -> f32 {
        exponential * self.slope(z)
    }
}

/// A cap under label smoothing: every exponential is less by the share that is spread evenly.
#[derive(Clone, Copy)]
struct Smoothed {
    cap: Capped,
    subtracted: f32,
}

impl Cap for Smoothed {
    #[inline(always)]
    fn scaled(self, exponential: f32, z: f32) -> f32 {
        self.cap.scaled(exponential - self.subtracted, z)
    }
}

fn exponentials_in_place<E: Element, C: Cap>(row: &mut [f32], largest: f32, cap: C) -> f32 {
    if E::DEPTH_UNIT == 1 { exponentials(row, largest, cap) } else { narrow_exponentials(row, largest, cap) }
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
    /// Caps the logits in place; the largest of them.
    fn largest_of_capped(logits: &mut [f32], cap: f32) -> f32 {
        const LANES: usize = 32;
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = logits.as_chunks_mut::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                values[lane] = cap * tanh(values[lane] / cap);
                lanes[lane] = if values[lane] > lanes[lane] { values[lane] } else { lanes[lane] };
            }
        }
        let mut largest = f32::NEG_INFINITY;
        for value in lanes {
            largest = if value > largest { value } else { largest };
        }
        for value in rest {
            *value = cap * tanh(*value / cap);
            largest = if *value > largest { *value } else { largest };
        }
        largest
    }
}

vectorised! {
    /// `Σ exp(z − largest)` and `Σ z`.
    fn sums(logits: &[f32], largest: f32) -> (f32, f32) {
        const LANES: usize = 32;
        let (mut exponentials, mut sums) = ([0f32; LANES], [0f32; LANES]);
        let (whole, rest) = logits.as_chunks::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                exponentials[lane] += exp(values[lane] - largest);
                sums[lane] += values[lane];
            }
        }
        let (mut exponential, mut sum) = (0.0, 0.0);
        for lane in 0..LANES {
            exponential += exponentials[lane];
            sum += sums[lane];
        }
        for value in rest {
            exponential += exp(*value - largest);
            sum += *value;
        }
        (exponential, sum)
    }
}

vectorised! {
    /// `exp(z − largest)`, scaled by the cap, in place; the sum of the exponentials themselves.
    fn exponentials<C: Cap>(logits: &mut [f32], largest: f32, cap: C) -> f32 {
        const LANES: usize = 32;
        let mut sums = [0f32; LANES];
        let (whole, rest) = logits.as_chunks_mut::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                let exponential = exp(values[lane] - largest);
                sums[lane] += exponential;
                values[lane] = cap.scaled(exponential, values[lane]);
            }
        }
        let mut sum = 0.0;
        for value in sums {
            sum += value;
        }
        for value in rest {
            let exponential = exp(*value - largest);
            sum += exponential;
            *value = cap.scaled(exponential, *value);
        }
        sum
    }
}

vectorised! {
    /// [`exponentials`], rounded to bf16 into the first half of the row; the sum is that of the exact ones.
    fn narrow_exponentials<C: Cap>(row: &mut [f32], largest: f32, cap: C) -> f32 {
        const LANES: usize = 32;
        let width = row.len();
        let mut sums = [0f32; LANES];
        let mut first = 0;
        while first + LANES <= width {
            let mut narrowed = [bf16::ZERO; LANES];
            for (lane, value) in row[first..first + LANES].iter().enumerate() {
                let exponential = exp(*value - largest);
                sums[lane] += exponential;
                narrowed[lane] = bf16::exact(bf16::rounded(cap.scaled(exponential, *value)));
            }
            // Only values that have been read are overwritten: value `i` moves to half of its place.
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
            let value = row[index];
            let exponential = exp(value - largest);
            sum += exponential;
            let halves: &mut [bf16] = bytemuck::cast_slice_mut(row);
            halves[index] = bf16::exact(bf16::rounded(cap.scaled(exponential, value)));
        }
        sum
    }
}
