//! Which projections an adapter touches, and with what rank and scale.

use crate::model::ModelConfig;
use crate::settings::{above, any, below, between, choice, not_empty, section};

choice! {
    /// A projection that can carry a low-rank pair, in the order in which a layer uses them.
    Target {
        /// Queries.
        Q = "q_proj",
        /// Keys.
        K = "k_proj",
        /// Values.
        V = "v_proj",
        /// The output of attention.
        O = "o_proj",
        /// The gate of the feed-forward part.
        Gate = "gate_proj",
        /// The other input of the feed-forward part.
        Up = "up_proj",
        /// The output of the feed-forward part.
        Down = "down_proj",
        /// The language-model head.
        LmHead = "lm_head",
    }
}

section! {
    /// The low-rank adapter.
    AdapterSpec {
        /// Rank of the two factors.
        rank: usize = Take(8), between(1..=65_536);
        /// The update is scaled by alpha / rank.
        alpha: f64 = Take(16.0), above(0.0, 1e6);
        /// Share of the adapter's inputs dropped while training.
        dropout: f64 = Take(0.0), below(0.0, 1.0);
        /// The projections that get a low-rank pair.
        targets: Vec<Target> = Take(vec![Target::Q, Target::V]), not_empty();
        /// Scale by alpha / √rank instead (rank-stabilised LoRA, Kalajdzievski 2023).
        rslora: bool = Take(false), any();
    }
}

impl AdapterSpec {
    /// The factor on `B · A`.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        if self.rslora { self.alpha / rank.sqrt() } else { self.alpha / rank }
    }
}

impl Target {
    /// `[out, in]` of the projection in a model of this shape.
    pub fn dims(self, config: &ModelConfig) -> [usize; 2] {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        match self {
            Self::Q => [config.heads * config.head_dim, hidden],
            Self::K | Self::V => [config.kv_heads * config.head_dim, hidden],
            Self::O => [hidden, config.heads * config.head_dim],
            Self::Gate | Self::Up => [intermediate, hidden],
            Self::Down => [hidden, intermediate],
            Self::LmHead => [config.vocab_size, hidden],
        }
    }

    /// The module's path in a Hugging Face LLaMA: `model.layers.3.self_attn.q_proj`, `lm_head`.
    /// `layer` is ignored for the head.
    pub fn path(self, layer: usize) -> String {
        match self {
            Self::LmHead => "lm_head".to_owned(),
            Self::Gate | Self::Up | Self::Down => format!("model.layers.{layer}.mlp.{}", self.name()),
            Self::Q | Self::K | Self::V | Self::O => format!("model.layers.{layer}.self_attn.{}", self.name()),
        }
    }
}
