//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;

/// A low-rank pair on the host, in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct HostPair {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    pub rank: usize,
    pub input: usize,
    pub output: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA; patterns already resolved.
    pub scale: f32,
}

/// An adapter on the host: what a folder holds.
#[derive(Debug, Clone, PartialEq)]
pub struct HostAdapter {
    /// By module path (`model.layers.0.self_attn.q_proj`, `lm_head`).
    pub pairs: BTreeMap<String, HostPair>,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// Provenance from the safetensors metadata (`burnish.base_sha256`, …); empty for a foreign adapter.
    pub metadata: BTreeMap<String, String>,
}
