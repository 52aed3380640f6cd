//! Elementary functions that vectorise.

use super::isa::vectorised;

/// Lanes of a dot product; summed in a fixed order at the end.
pub const LANES: usize = 32;

/// `eˣ` for `x <= 88`; 0 far below. Relative error under 2e-7.
///
/// `x = n·ln 2 + r`, a polynomial for `eʳ` on `|r| <= ln 2 / 2` (Cephes `expf` splits `ln 2` the same way), and `2ⁿ`
/// through the exponent bits. No branch, and no call where the processor multiplies and adds at once, so loops over it
/// vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let rounded = clamped.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, clamped));
    let mut series = 1.0f32 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series.mul_add(r, coefficient);
    }
    // The integer stands in the low bits of `rounded`: it becomes the exponent.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { series * power }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x`. Relative error under 5e-7.
///
/// Near zero a polynomial (Cephes, `tanhf`), elsewhere `1 − 2 / (e²ˣ + 1)`; no branch.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut series = -5.704_988_7e-3f32;
    for coefficient in [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        series = series.mul_add(square, coefficient);
    }
    let near = (series * square).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.625 { near } else { far }
}

/// The normal distribution's `Φ(x) = (1 + erf(x/√2)) / 2`. Absolute error under 3e-7.
///
/// Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26.
#[inline(always)]
pub fn normal_share(x: f32) -> f32 {
    let t = 1.0 / (0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2).mul_add(x.abs(), 1.0);
    let mut series = 1.061_405_4f32;
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        series = series.mul_add(t, coefficient);
    }
    let tail = 0.5 * series * t * exp(-0.5 * x * x);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// The normal distribution's density `Φ'(x)`.
#[inline(always)]
pub fn normal_density(x: f32) -> f32 {
    const INVERSE_ROOT_OF_TWO_PI: f32 = 0.398_942_3;
    INVERSE_ROOT_OF_TWO_PI * exp(-0.5 * x * x)
}

vectorised! {
    /// Sum of `a·b`, in lanes that are added in a fixed order.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0f32; LANES];
        let (whole, rest) = a.as_chunks::<LANES>();
        for (a, b) in whole.iter().zip(b.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                lanes[lane] += a[lane] * b[lane];
            }
        }
        let tail: f32 = rest.iter().zip(&b[whole.len() * LANES..]).map(|(a, b)| a * b).sum();
        lanes.iter().sum::<f32>() + tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_in_ten_million_of_the_standard_library() {
        for step in -8700..8800 {
            let x = step as f32 * 0.01;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(((ours - exact) / exact).abs() < 2e-7, "exp({x}) = {ours}, not {exact}");
        }
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(sigmoid(-100.0).abs() < 1e-30 && sigmoid(100.0) == 1.0);
    }

    #[test]
    fn tanh_is_within_five_in_ten_million_of_the_standard_library() {
        for step in (-3000..=3000).filter(|&step| step != 0) {
            let x = step as f32 * 0.004;
            let (ours, exact) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!(((ours - exact) / exact).abs() < 5e-7, "tanh({x}) = {ours}, not {exact}");
        }
        assert_eq!((tanh(0.0), tanh(1e30), tanh(-1e30)), (0.0, 1.0, -1.0));
    }

    #[test]
    fn the_normal_share_is_that_of_its_integral() {
        // Simpson's rule in f64 from the middle, where the share is one half.
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let mut exact = 0.5;
        for step in 0..600 {
            let (from, to) = (f64::from(step) * 0.01, f64::from(step + 1) * 0.01);
            exact += (to - from) / 6.0 * (density(from) + 4.0 * density((from + to) / 2.0) + density(to));
            let ours = f64::from(normal_share(to as f32));
            assert!((ours - exact).abs() < 3e-7, "Φ({to}) = {ours}, not {exact}");
            assert!((f64::from(normal_share(-to as f32)) - (1.0 - exact)).abs() < 3e-7);
            assert!((f64::from(normal_density(to as f32)) - density(to)).abs() < 3e-7);
        }
    }
}
