//! Which projections an adapter touches, and with what rank and scale.

use std::fmt;
use std::str::FromStr;

use crate::model::ModelConfig;

/// A projection that can carry a low-rank pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    LmHead,
}

impl Target {
    /// Every target, in the order a layer uses them.
    pub const ALL: [Target; 8] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down, Self::LmHead];

    /// The Hugging Face module name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::LmHead => "lm_head",
        }
    }

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

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|target| target.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|target| target.name()).collect();
            format!("unknown projection `{name}`; there are {}", names.join(", "))
        })
    }
}
