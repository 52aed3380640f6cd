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
        assert!((sigmoid(-100.0)).abs() < 1e-30 && sigmoid(100.0) == 1.0);
    }
}
