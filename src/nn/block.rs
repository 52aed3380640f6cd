//! A decoder layer as data: which norms, projections and residual sums it has.
//!
//! One type serves twice. A family fills it with descriptions of tensors (`model::spec`); loading fills it with
//! weights. So tensor names, sites, the memory plan and the forward pass follow from one statement of the layer.

use crate::ops::activation::Activation;
use crate::ops::norm::Span;

/// One decoder layer. `P` is a projection, `N` a norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Block<P, N> {
    /// Norm of attention's input.
    pub before_attention: Option<N>,
    /// Attention with its projections.
    pub attention: Attention<P, N>,
    /// Norm of attention's output, before the residual sum.
    pub after_attention: Option<N>,
    /// Norm of the feed-forward's input.
    pub before_mlp: Option<N>,
    /// The feed-forward network.
    pub mlp: Mlp<P>,
    /// Norm of the feed-forward's output, before the residual sum.
    pub after_mlp: Option<N>,
    /// The way that the two outputs join the residual stream.
    pub residual: Residual,
    /// Factor on each output before it is added; `None` is 1.
    pub residual_multiplier: Option<f32>,
}

/// The form of the residual sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// `x₁ = x + attention(x)`, then `x₁ + mlp(x₁)`.
    Sequential,
    /// `x + attention(x) + mlp(x)`.
    Parallel,
}

/// Attention's projections.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention<P, N> {
    /// The projections to queries, keys and values.
    pub qkv: Qkv<P>,
    /// Norms of queries and keys before rotation.
    pub qk_norm: Option<QkNorm<N>>,
    /// The projection of what attention mixed.
    pub output: P,
}

/// The projections to queries, keys and values.
#[derive(Debug, Clone, PartialEq)]
pub enum Qkv<P> {
    /// One projection for each of q, k and v.
    Separate([P; 3]),
    /// One projection with the rows of q, then k, then v.
    Fused(P),
    /// One projection with the rows of q, k and v of the first head, then of the second, and so on.
    FusedByHead(P),
}

/// Root-mean-square norms of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct QkNorm<N> {
    /// Norm of the queries.
    pub q: N,
    /// Norm of the keys.
    pub k: N,
    /// The values that share one root mean square.
    pub span: Span,
}

/// The feed-forward network.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp<P> {
    /// The projections to the inner width.
    pub input: MlpInput<P>,
    /// The function between.
    pub activation: Activation,
    /// The projection back.
    pub down: P,
}

/// The projections of a feed-forward network to its inner width.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpInput<P> {
    /// `activation(gate(x)) · up(x)`, a projection each.
    Gated([P; 2]),
    /// The same with one projection: the rows of the gate, then those of `up`.
    FusedGated(P),
    /// `activation(up(x))`.
    Plain(P),
}

/// A tensor-bearing part of a layer.
#[derive(Debug)]
pub enum Part<'a, P, N> {
    /// A projection of attention.
    Attention(&'a P),
    /// A projection of the feed-forward network.
    Mlp(&'a P),
    /// A norm.
    Norm(&'a N),
}

/// Turns the parts of one layer into those of another.
pub trait Build<P, N> {
    /// The projection that is made.
    type Projection;
    /// The norm that is made.
    type Norm;
    /// The reason why a part cannot be made.
    type Error;

    /// Makes a projection. Called in the order of [`Block::parts`] among projections.
    fn projection(&mut self, projection: P) -> Result<Self::Projection, Self::Error>;

    /// Makes a norm.
    fn norm(&mut self, norm: N) -> Result<Self::Norm, Self::Error>;
}

impl<P> Qkv<P> {
    /// The projections, q first.
    pub fn projections(&self) -> &[P] {
        match self {
            Self::Separate(projections) => projections,
            Self::Fused(projection) | Self::FusedByHead(projection) => std::slice::from_ref(projection),
        }
    }

    fn try_map<Q, E>(self, mut map: impl FnMut(P) -> Result<Q, E>) -> Result<Qkv<Q>, E> {
        Ok(match self {
            Self::Separate([q, k, v]) => Qkv::Separate([map(q)?, map(k)?, map(v)?]),
            Self::Fused(projection) => Qkv::Fused(map(projection)?),
            Self::FusedByHead(projection) => Qkv::FusedByHead(map(projection)?),
        })
    }
}

impl<P> MlpInput<P> {
    /// The projections, gate first.
    pub fn projections(&self) -> &[P] {
        match self {
            Self::Gated(projections) => projections,
            Self::FusedGated(projection) | Self::Plain(projection) => std::slice::from_ref(projection),
        }
    }

    fn try_map<Q, E>(self, mut map: impl FnMut(P) -> Result<Q, E>) -> Result<MlpInput<Q>, E> {
        Ok(match self {
            Self::Gated([gate, up]) => MlpInput::Gated([map(gate)?, map(up)?]),
            Self::FusedGated(projection) => MlpInput::FusedGated(map(projection)?),
            Self::Plain(projection) => MlpInput::Plain(map(projection)?),
        })
    }
}

impl<P, N> Block<P, N> {
    /// Every part that has tensors, in the order in which a layer uses them. Sites are numbered in this order.
    pub fn parts(&self) -> Vec<Part<'_, P, N>> {
        let mut parts = Vec::with_capacity(16);
        parts.extend(self.before_attention.as_ref().map(Part::Norm));
        parts.extend(self.attention.qkv.projections().iter().map(Part::Attention));
        if let Some(norms) = &self.attention.qk_norm {
            parts.extend([Part::Norm(&norms.q), Part::Norm(&norms.k)]);
        }
        parts.push(Part::Attention(&self.attention.output));
        parts.extend(self.after_attention.as_ref().map(Part::Norm));
        parts.extend(self.before_mlp.as_ref().map(Part::Norm));
        parts.extend(self.mlp.input.projections().iter().map(Part::Mlp));
        parts.push(Part::Mlp(&self.mlp.down));
        parts.extend(self.after_mlp.as_ref().map(Part::Norm));
        parts
    }

    /// The same layer with every part replaced by what `builder` makes of it.
    ///
    /// # Errors
    /// The first error of `builder`.
    pub fn build<B: Build<P, N>>(self, builder: &mut B) -> Result<Block<B::Projection, B::Norm>, B::Error> {
        let optional = |norm: Option<N>, builder: &mut B| norm.map(|norm| builder.norm(norm)).transpose();
        let before_attention = optional(self.before_attention, builder)?;
        let qkv = self.attention.qkv.try_map(|projection| builder.projection(projection))?;
        let qk_norm = match self.attention.qk_norm {
            None => None,
            Some(QkNorm { q, k, span }) => Some(QkNorm { q: builder.norm(q)?, k: builder.norm(k)?, span }),
        };
        let output = builder.projection(self.attention.output)?;
        let after_attention = optional(self.after_attention, builder)?;
        let before_mlp = optional(self.before_mlp, builder)?;
        let input = self.mlp.input.try_map(|projection| builder.projection(projection))?;
        let down = builder.projection(self.mlp.down)?;
        Ok(Block {
            before_attention,
            attention: Attention { qkv, qk_norm, output },
            after_attention,
            before_mlp,
            mlp: Mlp { input, activation: self.mlp.activation, down },
            after_mlp: optional(self.after_mlp, builder)?,
            residual: self.residual,
            residual_multiplier: self.residual_multiplier,
        })
    }
}
