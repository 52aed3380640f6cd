//! The forward pass of one decoder layer, for every form of [`Block`].

use burn::tensor::Tensor;

use super::block::{Block, MlpInput, Part, Residual};
use super::norm::Norm;
use super::projection::{Pass, Projection, project_again};
use crate::interrupt;
use crate::ops::activation::{activate, gated};
use crate::ops::attention::{Cache, Geometry, attention, cached_attention, reference};
use crate::ops::frozen::FrozenWeight;
use crate::ops::linear::Again;
use crate::ops::norm::{QkNorm, qk_norm};

/// A decoder layer with its weights.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its parts.
    pub block: Block<Projection, Norm>,
    /// The norms of queries and keys, as their op takes them.
    pub(crate) qk_norm: Option<QkNorm>,
    /// The shape of its attention.
    pub geometry: Geometry,
}

impl Layer {
    /// A layer of these parts.
    pub fn new(block: Block<Projection, Norm>, geometry: Geometry) -> Self {
        let qk_norm = block.attention.qk_norm.as_ref().map(|norms| QkNorm {
            q: norms.q.weight.clone(),
            k: norms.k.weight.clone(),
            eps: norms.q.eps,
            span: norms.span,
        });
        Self { block, qk_norm, geometry }
    }

    /// The numbers of its modules.
    pub fn modules(&self) -> impl Iterator<Item = usize> {
        self.block.parts().into_iter().map(|part| match part {
            Part::Attention(projection) | Part::Mlp(projection) => projection.site,
            Part::Norm(norm) => norm.number,
        })
    }

    /// The frozen weights of its projections.
    pub fn weights(&self) -> impl Iterator<Item = &FrozenWeight> {
        self.block.parts().into_iter().filter_map(|part| match part {
            Part::Attention(projection) | Part::Mlp(projection) => Some(&projection.weight),
            Part::Norm(_) => None,
        })
    }

    /// Runs whole sequences of these `lengths`, laid end to end.
    ///
    /// # Shapes
    /// - `x`: `[tokens, hidden]`
    /// - output: `[tokens, hidden]`
    pub fn forward(&self, x: Tensor<2>, lengths: &[usize], pass: &Pass<'_>) -> Tensor<2> {
        let mixed = attention(self.qkv(x.clone(), pass), lengths, &self.geometry);
        self.after_mixing(x, mixed, pass)
    }

    /// The attention maps of one sequence, which the fused kernels do not hold.
    ///
    /// # Shapes
    /// - `x`: `[tokens, hidden]`
    /// - output: `[heads, tokens, tokens]` in f32; rows sum to 1
    pub fn attention_maps(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<3> {
        reference::maps(self.qkv(x, pass), &self.geometry)
    }

    /// Runs new tokens of sequences whose past is in `caches`, and adds them to it.
    ///
    /// # Shapes
    /// - `x`: `[tokens, hidden]`, the `lengths[i]` new tokens of sequence `i` end to end
    /// - output: `[tokens, hidden]`
    pub fn forward_cached(
        &self,
        x: Tensor<2>,
        lengths: &[usize],
        caches: &mut [&mut Cache],
        pass: &Pass<'_>,
    ) -> Tensor<2> {
        let mixed = cached_attention(self.qkv(x.clone(), pass), lengths, caches, &self.geometry);
        self.after_mixing(x, mixed, pass)
    }

    /// Queries, keys and values before rotation, `[tokens, geometry.qkv_width()]`.
    fn qkv(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        interrupt::check();
        let (h, again) = normed(self.block.before_attention.as_ref(), x, pass);
        let group: Vec<&Projection> = self.block.attention.qkv.projections().iter().collect();
        let qkv = project_again(h, again, &group, None, pass);
        match &self.qk_norm {
            Some(norm) => qk_norm(qkv, norm, &self.geometry),
            None => qkv,
        }
    }

    fn after_mixing(&self, x: Tensor<2>, mixed: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let block = &self.block;
        let after_attention = block.after_attention.as_ref();
        match block.residual {
            Residual::Sequential => {
                let x = self.add(x, (mixed, None), &block.attention.output, after_attention, pass);
                self.feed_forward(x.clone(), x, pass)
            }
            Residual::Parallel => {
                let sum = self.add(x.clone(), (mixed, None), &block.attention.output, after_attention, pass);
                self.feed_forward(x, sum, pass)
            }
        }
    }

    /// `residual + mlp(norm(x))`.
    fn feed_forward(&self, x: Tensor<2>, residual: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let mlp = &self.block.mlp;
        let (h, again) = normed(self.block.before_mlp.as_ref(), x, pass);
        let group: Vec<&Projection> = mlp.input.projections().iter().collect();
        let projected = project_again(h, again, &group, None, pass);
        let (is_gated, activation) = (!matches!(mlp.input, MlpInput::Plain(_)), mlp.activation);
        let activated = move |x: Tensor<2>| if is_gated { gated(x, activation) } else { activate(x, activation) };
        let kept = off_the_tape(&projected);
        let inner = (activated(projected), Some(Box::new(move || activated(kept.clone())) as Again));
        self.add(residual, inner, &mlp.down, self.block.after_mlp.as_ref(), pass)
    }

    /// `residual + multiplier · norm(projection(x))`; without norm and multiplier the sum is taken as the product is stored.
    fn add(
        &self,
        residual: Tensor<2>,
        (x, again): (Tensor<2>, Option<Again>),
        projection: &Projection,
        norm: Option<&Norm>,
        pass: &Pass<'_>,
    ) -> Tensor<2> {
        if norm.is_none() && self.block.residual_multiplier.is_none() {
            return project_again(x, again, &[projection], Some(residual), pass);
        }
        let (y, _) = normed(norm, project_again(x, again, &[projection], None, pass), pass);
        match self.block.residual_multiplier {
            Some(multiplier) => residual + y.mul_scalar(multiplier),
            None => residual + y,
        }
    }
}

/// The normalised rows, and the way to make them again from `x`, which the norm keeps for its own backward pass.
fn normed(norm: Option<&Norm>, x: Tensor<2>, pass: &Pass<'_>) -> (Tensor<2>, Option<Again>) {
    let Some(norm) = norm else { return (x, None) };
    let again = (!norm.is_trained(pass)).then(|| -> Again {
        let (norm, x) = (norm.clone(), off_the_tape(&x));
        Box::new(move || norm.forward(x.clone(), &Pass::default()))
    });
    (norm.forward(x, pass), again)
}

/// The same values without a tape.
fn off_the_tape(x: &Tensor<2>) -> Tensor<2> {
    if x.is_autodiff() { x.clone().inner() } else { x.clone() }
}
