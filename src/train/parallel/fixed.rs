//! The sum of a step: gradients as integers, and the figures of its parts beside them, in one row of numbers that ranks add up.
//!
//! A gradient `g` of a part of the step becomes `⌊g·2^bits⌋` (towards zero) in 64 bits, so that sums are exact, and the same in
//! whatever order and by however many ranks. With 50 bits a value of 1.5e-8 or more is kept as exactly as f32 has it, and one
//! below it to 9e-16, where AdamW's ε is 1e-8. All values of a step together may then reach 2¹²; where they are greater, the
//! step is computed again with fewer bits, by all ranks alike. A step of a single part has the gradient of that part as it is.

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use super::Ranks;
use crate::nn::Adapter;
use crate::ops::host::on_host;
use crate::ops::vectorised;
use crate::train::clip::{norm_of, sum_of_squares};
use crate::train::objective::Rewards;

/// Binary digits behind the point by [`Scale`]: the first, and how many fewer each further one has.
const FIRST_BITS: i32 = 50;
const FEWER_BITS: i32 = 16;
/// The last scale holds sums of 2³² values of f32.
const SCALES: usize = 11;
/// The largest sum, as a power of two: what is left of 63 bits is for the rounding of the check.
const SUM_BITS: i32 = 62;
/// Numbers of a part: its value, and the six of its rewards.
const NUMBERS_OF_A_PART: usize = 7;
/// The sign bit of an f32 is no part of its size.
const SIZE_BITS: u32 = 0x7fff_ffff;

/// The number of binary digits behind the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Scale(usize);

impl Scale {
    fn bits(self) -> i32 {
        FIRST_BITS - FEWER_BITS * self.0 as i32
    }

    /// The scale with the most digits in which `parts` values of this size can be added up.
    fn for_values(largest: f32, parts: usize) -> Self {
        let fits = |scale: &usize| f64::from(largest) * (parts as f64) < 2f64.powi(SUM_BITS - Scale(*scale).bits());
        Self((0..SCALES).find(fits).unwrap_or(SCALES - 1))
    }
}

/// The figures of one part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PartFigures {
    /// Its part of the objective's value.
    pub value: f64,
    /// The rewards of its examples.
    pub rewards: Rewards,
}

/// The state of a step once the ranks have added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The sum holds.
    Good,
    /// A rank was asked to stop before it had computed its parts.
    Cancelled,
    /// A value is too large: the step is to be computed again with this scale.
    Again(Scale),
}

/// The sum of the parts of a step.
pub struct StepSum {
    scale: Scale,
    /// The parts of the step, those of other ranks included.
    parts: usize,
    /// Values of all matrices.
    values: usize,
    /// Matrices of the adapter.
    matrices: usize,
    /// Gradients matrix by matrix, parts with a gradient of each matrix, numbers of each part, sequences that are not finite, and
    /// [`Flag`]s.
    numbers: Vec<i64>,
    /// The gradient of a step that has one part and one rank.
    only: Option<GradientsParams>,
    keeps_only: bool,
}

/// The numbers at the end of a sum, before one for each [`Scale`]: counts of what happened on the ranks.
#[derive(Debug, Clone, Copy)]
enum Flag {
    Cancelled,
    NotANumber,
    Infinite,
}

const FLAGS: usize = 3;

impl StepSum {
    /// An empty sum for a step of so many parts and sequences.
    pub fn new(adapter: &Adapter, parts: usize, sequences: usize, scale: Scale, ranks: &dyn Ranks) -> Self {
        let matrices = adapter.matrices().count();
        let keeps_only = parts == 1 && ranks.count() == 1;
        let values = if keeps_only { 0 } else { adapter.parameters() };
        let numbers = vec![0; values + matrices + parts * NUMBERS_OF_A_PART + sequences + FLAGS + SCALES];
        Self { scale, parts, values, matrices, numbers, only: None, keeps_only }
    }

    /// Adds the gradients of a part that this rank has computed.
    pub fn add(&mut self, adapter: &Adapter, mut gradients: GradientsParams) {
        if self.keeps_only {
            self.only = Some(gradients);
            return;
        }
        let factor = 2f64.powi(self.scale.bits());
        let (mut first, mut largest) = (0, 0);
        let (mut places, mut found) = (Vec::new(), Vec::new());
        for (index, matrix) in adapter.matrices().enumerate() {
            let length = matrix.dims().iter().product::<usize>();
            if let Some(gradient) = gradients.remove::<2>(matrix.id) {
                places.push((index, first..first + length));
                found.push(gradient);
            }
            first += length;
        }
        for ((index, range), data) in places.into_iter().zip(on_host(found)) {
            self.numbers[self.values + index] += 1;
            let values: &[f32] = data.as_slice().expect("the gradients of an adapter are f32");
            if self.parts == 1 {
                // The bits themselves: every other rank adds 0.
                let sums = self.numbers[range].iter_mut().zip(values);
                sums.for_each(|(sum, value)| *sum += i64::from(value.to_bits()));
                continue;
            }
            largest = largest.max(add_scaled(values, factor, &mut self.numbers[range]));
        }
        let largest = f32::from_bits(largest);
        if largest.is_nan() {
            self.flag(Flag::NotANumber);
        } else if largest.is_infinite() {
            self.flag(Flag::Infinite);
        } else {
            let needed = Scale::for_values(largest, self.parts).0;
            let place = self.numbers.len() - SCALES + needed;
            self.numbers[place] += 1;
        }
    }

    /// Keeps the figures of a part that this rank has computed.
    pub fn set_figures(&mut self, part: usize, figures: &PartFigures) {
        let PartFigures { value, rewards } = figures;
        let Rewards { preferred_sum, preferred, other_sum, other, correct, examples } = *rewards;
        let bits = |value: f64| value.to_bits() as i64;
        let numbers = [
            bits(*value),
            bits(preferred_sum),
            preferred as i64,
            bits(other_sum),
            other as i64,
            bits(correct),
            examples as i64,
        ];
        let first = self.values + self.matrices + part * NUMBERS_OF_A_PART;
        self.numbers[first..first + NUMBERS_OF_A_PART].copy_from_slice(&numbers);
    }

    /// Notes that the loss of a sequence of this rank, counted over the step, is not finite.
    pub fn set_not_finite(&mut self, sequence: usize) {
        let place = self.sequences_begin() + sequence;
        self.numbers[place] = 1;
    }

    /// Notes that this rank has not computed its parts.
    pub fn cancel(&mut self) {
        self.flag(Flag::Cancelled);
    }

    /// Adds up the sums of all ranks.
    pub fn over(&mut self, ranks: &dyn Ranks) -> Verdict {
        ranks.sum(&mut self.numbers);
        let needed = self.numbers.len() - SCALES;
        let scale = (0..SCALES).rev().find(|scale| self.numbers[needed + scale] > 0).map_or(Scale(0), Scale);
        if self.flagged(Flag::Cancelled) {
            Verdict::Cancelled
        } else if scale > self.scale && !self.flagged(Flag::NotANumber) && !self.flagged(Flag::Infinite) {
            Verdict::Again(scale)
        } else {
            Verdict::Good
        }
    }

    /// The figures of every part, in order.
    pub fn figures(&self) -> impl Iterator<Item = PartFigures> {
        let first = self.values + self.matrices;
        let numbers = self.numbers[first..first + self.parts * NUMBERS_OF_A_PART].chunks_exact(NUMBERS_OF_A_PART);
        let value = |number: i64| f64::from_bits(number as u64);
        numbers.map(move |numbers| PartFigures {
            value: value(numbers[0]),
            rewards: Rewards {
                preferred_sum: value(numbers[1]),
                preferred: numbers[2] as usize,
                other_sum: value(numbers[3]),
                other: numbers[4] as usize,
                correct: value(numbers[5]),
                examples: numbers[6] as usize,
            },
        })
    }

    /// The sequences whose loss is not finite, counted over the step.
    pub fn not_finite(&self) -> Vec<usize> {
        let numbers = &self.numbers[self.sequences_begin()..self.flags_begin()];
        (0..numbers.len()).filter(|&index| numbers[index] > 0).collect()
    }

    /// The gradients, and their norm `√Σ g²` in f64; of a step that is not finite no gradients.
    pub fn gradients(self, adapter: &Adapter, device: &Device) -> (GradientsParams, f64) {
        if self.flagged(Flag::NotANumber) || self.flagged(Flag::Infinite) {
            let norm = if self.flagged(Flag::NotANumber) { f64::NAN } else { f64::INFINITY };
            return (GradientsParams::new(), norm);
        }
        if self.keeps_only {
            let gradients = self.only.unwrap_or_default();
            let norm = norm_of(adapter, &gradients);
            return (gradients, norm);
        }
        let step = 2f64.powi(-self.scale.bits());
        let (mut gradients, mut first, mut squares) = (GradientsParams::new(), 0, 0.0);
        for (index, matrix) in adapter.matrices().enumerate() {
            let dims = matrix.dims();
            let numbers = &self.numbers[first..first + dims.iter().product::<usize>()];
            first += numbers.len();
            if self.numbers[self.values + index] == 0 {
                continue;
            }
            let values = match self.parts {
                1 => numbers.iter().map(|number| f32::from_bits(*number as u32)).collect(),
                _ => scaled(numbers, step),
            };
            squares += sum_of_squares(&values);
            let gradient = Tensor::<2>::from_data(TensorData::new(values, dims), device);
            gradients.register(matrix.id, gradient);
        }
        (gradients, squares.sqrt())
    }

    fn sequences_begin(&self) -> usize {
        self.values + self.matrices + self.parts * NUMBERS_OF_A_PART
    }

    fn flags_begin(&self) -> usize {
        self.numbers.len() - SCALES - FLAGS
    }

    fn flag(&mut self, flag: Flag) {
        let place = self.flags_begin() + flag as usize;
        self.numbers[place] += 1;
    }

    fn flagged(&self, flag: Flag) -> bool {
        self.numbers[self.flags_begin() + flag as usize] > 0
    }
}

vectorised! {
    /// Adds each value times `factor`, without the digits behind the point, to its sum; the bits of the largest size of a value.
    fn add_scaled(values: &[f32], factor: f64, sums: &mut [i64]) -> u32 {
        const LIMIT: f64 = (1u64 << SUM_BITS) as f64;
        let mut largest = 0;
        for (sum, value) in sums.iter_mut().zip(values) {
            largest = largest.max(value.to_bits() & SIZE_BITS);
            // A value that is too large, or no number, is seen by its size, and the sum is thrown away. (NaN is not above anything.)
            let scaled = f64::from(*value) * factor;
            let scaled = if scaled > -LIMIT { scaled } else { -LIMIT };
            let scaled = if scaled < LIMIT { scaled } else { LIMIT };
            // SAFETY: a number within ±2⁶².
            *sum = sum.wrapping_add(unsafe { scaled.to_int_unchecked::<i64>() });
        }
        largest
    }
}

vectorised! {
    /// Each number times `step`, rounded to f32 once.
    fn scaled(numbers: &[i64], step: f64) -> Vec<f32> {
        let mut values = vec![0.0; numbers.len()];
        for (value, number) in values.iter_mut().zip(numbers) {
            *value = (*number as f64 * step) as f32;
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_added_without_the_digits_behind_the_point() {
        let values = [1.5, -1.5, 2.0, 0.0, -0.0, 3e9, -3e9, 1e-9, 0.75, -0.75, 100.25];
        let mut sums = [7; 11];
        assert_eq!(add_scaled(&values, 4.0, &mut sums), 3e9f32.to_bits());
        let expected = values.map(|value| 7 + (f64::from(value) * 4.0) as i64);
        assert_eq!(sums, expected);
        assert_eq!(scaled(&[6, -6, 1 << 40], 0.25), [1.5, -1.5, 2f32.powi(38)]);
    }

    #[test]
    fn a_value_that_is_not_finite_is_the_largest() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let largest = f32::from_bits(add_scaled(&[1.0, wrong, 2.0], 1024.0, &mut [0; 3]));
            assert!(!largest.is_finite(), "{wrong}: {largest}");
        }
    }

    #[test]
    fn a_scale_holds_the_sum_of_its_values() {
        for (largest, parts) in [(1.0, 4), (1023.9, 4), (1024.1, 4), (3e38, 1), (f32::MAX, 1 << 20), (0.0, 7)] {
            let scale = Scale::for_values(largest, parts);
            let sum = f64::from(largest) * 2f64.powi(scale.bits()) * parts as f64;
            assert!(sum < 2f64.powi(62), "{largest} × {parts}: {sum}");
        }
        assert_eq!(Scale::for_values(1023.0, 4), Scale(0));
        assert_eq!(Scale::for_values(1025.0, 4), Scale(1));
    }
}
