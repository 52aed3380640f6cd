//! From a configuration's rotary embedding to its frequencies.

use super::config::{RopeConfig, RopeScaling};
use crate::ops::attention::Rope;

/// Frequencies of the rotary embedding, as transformers computes them (f32, `modeling_rope_utils.py`).
pub(super) fn rope(config: &RopeConfig) -> Rope {
    let half = config.rotary_dims / 2;
    let plain = (0..half).map(|i| {
        let exponent = (2 * i) as f32 / config.rotary_dims as f32;
        1.0 / (config.theta as f32).powf(exponent)
    });
    let frequencies: Vec<f32> = match &config.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| frequency / *factor as f32).collect(),
        RopeScaling::Factors(factors) => plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let context = *original_max_positions as f32;
            let (factor, low, high) = (*factor as f32, *low_freq_factor as f32, *high_freq_factor as f32);
            let scale = |frequency: f32| {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < context / high {
                    frequency
                } else if wavelength > context / low {
                    frequency / factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            };
            plain.map(scale).collect()
        }
    };
    Rope::new(frequencies)
}
