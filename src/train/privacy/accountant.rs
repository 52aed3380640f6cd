//! The accountant: the ε of a run of DP-SGD, from the Rényi divergence of the Gaussian mechanism on a Poisson sample.
//!
//! A step adds noise of `noise_multiplier · clip_norm` to the sum over a sample that has each example with probability `q`. Its
//! Rényi divergence of order `α` is `ln A(α) / (α − 1)` with the `A` of Mironov, Talwar and Zhang 2019 (arXiv 1908.10530): a finite sum for
//! whole orders (equation 3.3), an infinite one for the others (section 3.3). Divergences add up over the steps, and each order
//! gives an `ε` for a `δ` by theorem 21 of Balle et al. 2020 (arXiv 1905.09982). The smallest counts. Orders and formulas are those of Opacus.

/// The decimals of the least order: 1.1, 1.2, … up to 10.9.
const TENTHS: std::ops::RangeInclusive<u32> = 11..=109;
/// The whole orders above.
const WHOLE: std::ops::RangeInclusive<u32> = 12..=63;
/// Terms of the infinite sum below `e` to this power end it.
const NEGLIGIBLE: f64 = -30.0;
/// [`noise_multiplier_for`] ends once `ε` is so near below its target.
const TOLERANCE: f64 = 0.01;
/// The most noise that is tried for a target.
const MOST_NOISE: f64 = 1e6;

/// A number of steps of one kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// The probability with which a step has an example.
    pub sample_rate: f64,
    /// The standard deviation of the noise over the clipping norm.
    pub noise_multiplier: f64,
    /// The number of steps.
    pub count: u64,
}

impl Steps {
    /// The smallest `ε` for `delta`, and the order that gives it. Without noise `ε` is infinite.
    pub fn epsilon(&self, delta: f64) -> (f64, f64) {
        let orders = TENTHS.map(|tenths| f64::from(tenths) / 10.0).chain(WHOLE.map(f64::from));
        let of_order = |order: f64| {
            let divergence = self.count as f64 * self.divergence(order);
            let epsilon = divergence - (delta.ln() + order.ln()) / (order - 1.0) + ((order - 1.0) / order).ln();
            (if epsilon.is_nan() { f64::INFINITY } else { epsilon.max(0.0) }, order)
        };
        orders.map(of_order).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0.0))
    }

    /// The Rényi divergence of one step, of an order above 1.
    fn divergence(&self, order: f64) -> f64 {
        let Self { sample_rate: q, noise_multiplier: sigma, .. } = *self;
        if q == 0.0 {
            0.0
        } else if sigma == 0.0 {
            f64::INFINITY
        } else if q >= 1.0 {
            order / (2.0 * sigma * sigma)
        } else if order.fract() == 0.0 {
            log_a_of_whole(q, sigma, order as u32) / (order - 1.0)
        } else {
            log_a_of_fraction(q, sigma, order) / (order - 1.0)
        }
    }
}

/// The least noise that keeps `ε` at or below `target`, within 0.01; `None` where no noise does. The same halving as in Opacus, and
/// so the same value.
pub fn noise_multiplier_for(target: f64, delta: f64, sample_rate: f64, count: u64) -> Option<f64> {
    let epsilon = |noise_multiplier| Steps { sample_rate, noise_multiplier, count }.epsilon(delta).0;
    let (mut low, mut high) = (0.0, 10.0);
    let mut of_high = epsilon(high);
    while of_high > target {
        high *= 2.0;
        if high > MOST_NOISE {
            return None;
        }
        of_high = epsilon(high);
    }
    while target - of_high > TOLERANCE && high - low > 1e-9 * high {
        let middle = (low + high) / 2.0;
        let of_middle = epsilon(middle);
        if of_middle < target {
            (high, of_high) = (middle, of_middle);
        } else {
            low = middle;
        }
    }
    Some(high)
}

/// `ln Σ C(α, i) · q^i · (1 − q)^(α − i) · exp((i² − i) / 2σ²)`.
fn log_a_of_whole(q: f64, sigma: f64, order: u32) -> f64 {
    let mut log_a = f64::NEG_INFINITY;
    let mut log_binomial = 0.0;
    for i in 0..=order {
        let (chosen, rest) = (f64::from(i), f64::from(order - i));
        let log_term = log_binomial + chosen * q.ln() + rest * (-q).ln_1p();
        log_a = log_add(log_a, log_term + (chosen * chosen - chosen) / (2.0 * sigma * sigma));
        log_binomial += (rest / (chosen + 1.0)).ln();
    }
    log_a
}

/// The sum of the two series that meet at `z0`, where both parts of the mixture are equally likely.
fn log_a_of_fraction(q: f64, sigma: f64, order: f64) -> f64 {
    let (mut below, mut above) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    let z0 = sigma * sigma * (1.0 / q - 1.0).ln() + 0.5;
    let width = std::f64::consts::SQRT_2 * sigma;
    let mut binomial = 1.0f64;
    let mut i = 0.0;
    loop {
        let j = order - i;
        let log_binomial = binomial.abs().ln();
        let term = |power: f64, log_t: f64, distance: f64| {
            log_t + (power * power - power) / (2.0 * sigma * sigma) + 0.5f64.ln() + log_erfc(distance / width)
        };
        let of_below = term(i, log_binomial + i * q.ln() + j * (-q).ln_1p(), i - z0);
        let of_above = term(j, log_binomial + j * q.ln() + i * (-q).ln_1p(), z0 - j);
        let add = if binomial > 0.0 { log_add } else { log_subtract };
        (below, above) = (add(below, of_below), add(above, of_above));
        if of_below.max(of_above) < NEGLIGIBLE {
            return log_add(below, above);
        }
        binomial *= j / (i + 1.0);
        i += 1.0;
    }
}

/// `ln(e^a + e^b)`.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = (a.min(b), a.max(b));
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// `ln(e^a − e^b)`, of which the second is the smaller.
fn log_subtract(a: f64, b: f64) -> f64 {
    if b == f64::NEG_INFINITY {
        a
    } else if b >= a {
        f64::NEG_INFINITY
    } else {
        a + (-(b - a).exp()).ln_1p()
    }
}

/// `ln erfc(x)`.
fn log_erfc(x: f64) -> f64 {
    /// From here on the asymptotic series is exact to the last digits, and `erfc` itself would come near to underflow.
    const FAR: f64 = 20.0;
    if x < FAR {
        return libm::erfc(x).ln();
    }
    // Abramowitz and Stegun 7.1.23.
    let square = 1.0 / (2.0 * x * x);
    let series = 1.0 - square * (1.0 - 3.0 * square * (1.0 - 5.0 * square * (1.0 - 7.0 * square)));
    -x * x - (x * std::f64::consts::PI.sqrt()).ln() + series.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By Opacus 1.6.0: `RDPAccountant.get_privacy_spent` with its own orders.
    const OPACUS: [(f64, f64, u64, f64, f64, f64); 4] = [
        (1.0, 0.01, 1000, 1e-5, 2.1013652716, 7.8),
        (0.8, 0.02, 500, 1e-5, 5.3701378665, 3.8),
        (1.5, 0.064, 300, 1e-4, 3.6280844180, 5.0),
        (0.6, 0.008, 2000, 1e-6, 10.6155303578, 2.8),
    ];

    #[test]
    fn epsilons_are_those_of_opacus() {
        for (noise_multiplier, sample_rate, count, delta, expected, expected_order) in OPACUS {
            let (epsilon, order) = Steps { sample_rate, noise_multiplier, count }.epsilon(delta);
            assert!((epsilon - expected).abs() < 1e-6 && (order - expected_order).abs() < 1e-9, "{epsilon} at {order}");
        }
    }

    #[test]
    fn the_noise_for_a_target_is_that_of_opacus() {
        // `get_noise_multiplier(target_epsilon=8, target_delta=1e-5, sample_rate=0.016, steps=600, accountant="rdp")`.
        let noise = noise_multiplier_for(8.0, 1e-5, 0.016, 600).expect("a value");
        assert!((noise - 0.659_484_863_281_25).abs() < 1e-6, "{noise}");
        let epsilon = Steps { sample_rate: 0.016, noise_multiplier: noise, count: 600 }.epsilon(1e-5).0;
        assert!(epsilon <= 8.0 && epsilon > 7.99, "{epsilon}");
        assert_eq!(noise_multiplier_for(1e-12, 1e-5, 1.0, 1_000_000), None);
    }

    #[test]
    fn the_ends_of_the_scale_are_what_they_must_be() {
        let epsilon =
            |sample_rate, noise_multiplier| Steps { sample_rate, noise_multiplier, count: 10 }.epsilon(1e-5).0;
        // Where nothing is told, the term of δ is left.
        assert!(epsilon(0.0, 1.0) <= epsilon(0.01, 100.0));
        assert_eq!(epsilon(0.1, 0.0), f64::INFINITY);
        // All examples at every step: the Gaussian mechanism without a sample.
        assert!(epsilon(1.0, 1.0) > epsilon(0.999, 1.0) && epsilon(0.999, 1.0) > 0.9 * epsilon(1.0, 1.0));
        assert!(epsilon(0.01, 100.0) < 0.2 && epsilon(0.01, 100.0) > 0.0);
    }

    #[test]
    fn the_logarithm_of_erfc_is_one_curve() {
        // By scipy: `log(2) + log_ndtr(-x·√2)`.
        for (x, expected) in [(-1.0, 0.611_232_317_678_070_5), (0.0, 0.0), (5.0, -27.200_889_545_537_446)] {
            assert!((log_erfc(x) - expected).abs() < 1e-9, "{x}: {}", log_erfc(x));
        }
        let (before, after) = (log_erfc(20.0 - 1e-9), log_erfc(20.0));
        assert!((before - after).abs() < 1e-7, "{before} and {after}");
    }
}
