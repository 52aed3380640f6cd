//! One decoder layer: `x + o(attention(qkv(norm(x))))`, then `x + down(gated(gate_up(norm(x))))`.

use burn::tensor::Tensor;

use super::projection::{Pass, Projection, project};
use crate::ops::activation::{Activation, gated};
use crate::ops::attention::{Cache, Geometry, attention, cached_attention};
use crate::ops::norm::rms_norm;

/// A LLaMA decoder layer.
#[derive(Debug, Clone)]
pub struct Layer {
    pub attention_norm: Vec<f32>,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub o: Projection,
    pub mlp_norm: Vec<f32>,
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
    pub norm_eps: f64,
    pub geometry: Geometry,
}

impl Layer {
    /// `x` is `[tokens, hidden]`, sequences of these `lengths` end to end.
    pub fn forward(&self, x: Tensor<2>, lengths: &[usize], pass: &Pass<'_>) -> Tensor<2> {
        let mixed = attention(self.qkv(x.clone(), pass), lengths, &self.geometry);
        self.after_attention(x, mixed, pass)
    }

    /// New tokens of sequences whose past is in `caches`.
    pub fn forward_cached(
        &self,
        x: Tensor<2>,
        lengths: &[usize],
        caches: &mut [&mut Cache],
        pass: &Pass<'_>,
    ) -> Tensor<2> {
        let mixed = cached_attention(self.qkv(x.clone(), pass), lengths, caches, &self.geometry);
        self.after_attention(x, mixed, pass)
    }

    fn qkv(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let h = rms_norm(x, &self.attention_norm, self.norm_eps);
        project(h, &[&self.q, &self.k, &self.v], None, pass)
    }

    fn after_attention(&self, x: Tensor<2>, mixed: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let x = project(mixed, &[&self.o], Some(x), pass);
        let h = rms_norm(x.clone(), &self.mlp_norm, self.norm_eps);
        let gated = gated(project(h, &[&self.gate, &self.up], None, pass), Activation::Silu);
        project(gated, &[&self.down], Some(x), pass)
    }
}
