//! What a model is: its shape, taken from `config.json` or from GGUF metadata, and checked before any use.

/// A LLaMA-family architecture this decoder runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Qwen2,
}

/// RoPE frequency scaling.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3.1's wavelength-dependent scaling (transformers `_compute_llama3_parameters`).
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_positions: usize },
    /// Per-frequency divisors, `head_dim / 2` of them (GGUF `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// The shape of a decoder. Every value has been checked: no zero, heads divide, `head_dim` is even.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// The head shares the embedding's matrix.
    pub tied_head: bool,
    /// Biases on `q_proj`, `k_proj`, `v_proj`.
    pub qkv_bias: bool,
    /// Bias on `o_proj`.
    pub o_bias: bool,
    /// Biases on `gate_proj`, `up_proj`, `down_proj`.
    pub mlp_bias: bool,
    /// A query sees at most this many positions, itself included.
    pub sliding_window: Option<usize>,
    pub max_positions: usize,
    pub bos_token: Option<u32>,
    /// Any of these ends a generation.
    pub eos_tokens: Vec<u32>,
}
