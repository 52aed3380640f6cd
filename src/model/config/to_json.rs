//! A `config.json` that transformers loads, for a model whose base has none: one that came from GGUF.

use serde_json::{Value, json};

use super::{Architecture, ModelConfig, RopeScaling};
use crate::files::Dtype;

impl ModelConfig {
    /// `config.json` of this model with its weights stored as `dtype` (`F32`, `F16` or `BF16`).
    pub fn to_hf_json(&self, dtype: Dtype) -> Value {
        let mut config = json!({
            "architectures": [self.architecture.class_name()],
            "model_type": self.architecture.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling_json(),
            "tie_word_embeddings": self.tied_head,
            "max_position_embeddings": self.max_positions,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "bos_token_id": self.bos_token,
            "eos_token_id": match self.eos_tokens.as_slice() {
                [] => Value::Null,
                [one] => json!(one),
                several => json!(several),
            },
            "torch_dtype": dtype.torch_name(),
            "use_cache": true,
        });
        match self.architecture {
            Architecture::Llama => {
                config["attention_bias"] = json!(self.qkv_bias);
                config["mlp_bias"] = json!(self.mlp_bias);
                config["pretraining_tp"] = json!(1);
            }
            Architecture::Mistral => config["sliding_window"] = json!(self.sliding_window),
            Architecture::Qwen2 => {
                config["use_sliding_window"] = json!(self.sliding_window.is_some());
                config["sliding_window"] = json!(self.sliding_window);
                config["max_window_layers"] = json!(if self.sliding_window.is_some() { 0 } else { self.layers });
            }
        }
        if !self.full_layers.is_empty() {
            let kind = |layer| if self.full_layers.contains(&layer) { "full_attention" } else { "sliding_attention" };
            config["layer_types"] = (0..self.layers).map(kind).collect();
        }
        config
    }

    fn rope_scaling_json(&self) -> Value {
        match &self.rope_scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            }),
            RopeScaling::Factors(factors) => self.factors_json(factors),
        }
    }

    /// Llama 3.1's scaling where the factors are those that llama.cpp's converter writes for it, otherwise
    /// transformers' `longrope` with the same divisors at every length and no attention factor.
    fn factors_json(&self, factors: &[f32]) -> Value {
        const LOW: f64 = 1.0;
        const HIGH: f64 = 4.0;
        let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
        let same = |original: usize| {
            factors.iter().enumerate().all(|(index, found)| {
                let expected = self.llama3_factor(index, factor, LOW, HIGH, original);
                (f64::from(*found) - expected).abs() <= 1e-4 * expected
            })
        };
        // GGUF does not say the original length: 8192 in every published model, else another power of two.
        let lengths = std::iter::once(8192).chain((5..=20).map(|power| 1 << power));
        if let Some(original) = lengths.into_iter().find(|original| same(*original)) {
            return json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": original,
            });
        }
        json!({
            "rope_type": "longrope",
            "factor": 1.0,
            "attention_factor": 1.0,
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": self.max_positions,
        })
    }

    /// The divisor of frequency `index` under Llama 3.1's scaling: 1 for short wavelengths, `factor` for long
    /// ones, `1 / ((1 - s) / factor + s)` between (llama.cpp `conversion/llama.py`).
    fn llama3_factor(&self, index: usize, factor: f64, low: f64, high: f64, original: usize) -> f64 {
        let frequency = self.rope_theta.powf(-2.0 * index as f64 / self.head_dim as f64);
        let wavelength = std::f64::consts::TAU / frequency;
        let original = original as f64;
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    }
}
