//! Resizing, bit for bit as transformers' image processors do on the processor (torchvision's antialiased `resize` of `uint8`).
//!
//! Each axis is a sum over pixels with weights in 16 bits, rounded to 8 bits in between, first along the rows, then along the
//! columns (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`). Libraries for resizing go the other way first, or keep more bits.

use std::f64::consts::PI;

use rayon::prelude::*;

use super::decode::Rgb;

/// A filter of resizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Linear between neighbours.
    Bilinear,
    /// Cubic with `a = −0.5` (Keys 1981).
    Bicubic,
    /// A sinc in a sinc of three lobes.
    Lanczos,
}

impl Filter {
    /// The filter of a number in `preprocessor_config.json`, which is Pillow's.
    pub fn of_number(number: usize) -> Option<Self> {
        match number {
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            _ => None,
        }
    }

    /// The distance from which on the weights are zero.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight at a distance.
    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        let x = distance.abs();
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Lanczos if x < 3.0 => sinc(distance) * sinc(distance / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

/// The weights of the pixels that make each pixel of a resized axis.
struct Weights {
    /// Of each pixel the first one that it is made of, and the weights from there on, times `2^precision`.
    pixels: Vec<(usize, Vec<i32>)>,
    precision: u32,
}

impl Weights {
    fn new(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let spread = scale.max(1.0);
        let support = filter.support() * spread;
        let of_pixel = |pixel: usize| {
            let center = (pixel as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weight = |at: usize| filter.weight((at as f64 - center + 0.5) / spread);
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            (first, weights.into_iter().map(|weight| weight / sum).collect::<Vec<f64>>())
        };
        let pixels: Vec<(usize, Vec<f64>)> = (0..to).map(of_pixel).collect();
        let largest = pixels.iter().flat_map(|(_, weights)| weights).copied().fold(0.0, f64::max);
        // The most bits with which the largest weight stays below 2^15.
        let fits = |precision: &u32| ((0.5 + largest * f64::from(1u32 << precision)) as i64) < 1 << 15;
        let precision = (1..=22).take_while(fits).last().unwrap_or(0);
        let rounded = |weight: f64| (weight * f64::from(1u32 << precision) + 0.5_f64.copysign(weight)) as i32;
        let pixels = pixels.into_iter().map(|(first, weights)| (first, weights.into_iter().map(rounded).collect()));
        Self { pixels: pixels.collect(), precision }
    }

    /// A sum of weighed values as a value.
    fn value(&self, sum: i32) -> u8 {
        ((sum + (1 << self.precision >> 1)) >> self.precision).clamp(0, 255) as u8
    }
}

/// The picture in another size.
pub fn resized(picture: &Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    let mut picture = if picture.width == width { picture.clone() } else { in_width(picture, width, filter) };
    if picture.height != height {
        picture = in_height(&picture, height, filter);
    }
    picture
}

fn in_width(picture: &Rgb, width: usize, filter: Filter) -> Rgb {
    let weights = Weights::new(picture.width, width, filter);
    let mut values = vec![0; picture.height * width * 3];
    let rows = values.par_chunks_exact_mut(3 * width).zip(picture.values.par_chunks_exact(3 * picture.width));
    rows.for_each(|(row, source)| {
        for (pixel, (first, factors)) in row.chunks_exact_mut(3).zip(&weights.pixels) {
            let mut sums = [0i32; 3];
            for (factor, source) in factors.iter().zip(source[3 * first..].chunks_exact(3)) {
                sums.iter_mut().zip(source).for_each(|(sum, value)| *sum += factor * i32::from(*value));
            }
            pixel.iter_mut().zip(sums).for_each(|(value, sum)| *value = weights.value(sum));
        }
    });
    Rgb { width, height: picture.height, values }
}

fn in_height(picture: &Rgb, height: usize, filter: Filter) -> Rgb {
    let weights = Weights::new(picture.height, height, filter);
    let stride = 3 * picture.width;
    let mut values = vec![0; height * stride];
    let rows = values.par_chunks_exact_mut(stride).zip(&weights.pixels);
    rows.for_each_init(
        || vec![0i32; stride],
        |sums, (row, (first, factors))| {
            sums.fill(0);
            for (factor, source) in factors.iter().zip(picture.values[first * stride..].chunks_exact(stride)) {
                sums.iter_mut().zip(source).for_each(|(sum, value)| *sum += factor * i32::from(*value));
            }
            row.iter_mut().zip(sums.iter()).for_each(|(value, sum)| *value = weights.value(*sum));
        },
    );
    Rgb { width: picture.width, height, values }
}
