//! Descriptions of one layer's modules, as the families make them.

use crate::model::config::ModelConfig;
use crate::model::spec::{GgufRows, LinearSpec, NormSpec};

/// Makes the descriptions of one layer's modules.
#[derive(Debug, Clone, Copy)]
pub struct LayerSpec<'a> {
    config: &'a ModelConfig,
    layer: usize,
}

impl<'a> LayerSpec<'a> {
    /// For layer number `layer`.
    pub fn new(config: &'a ModelConfig, layer: usize) -> Self {
        Self { config, layer }
    }

    fn names(&self, module: &str, gguf: &str) -> (String, String) {
        let layer = self.layer;
        (format!("{}.{layer}.{module}", self.config.names.layers), format!("blk.{layer}.{gguf}"))
    }

    /// A linear layer: its names within the layer, `[out, in]`, whether it has a bias.
    pub fn linear(&self, module: &str, gguf: &str, [rows, columns]: [usize; 2], bias: bool) -> LinearSpec {
        let (module, gguf) = self.names(module, gguf);
        LinearSpec { module, gguf, rows, columns, bias, gguf_rows: GgufRows::Same }
    }

    /// A norm of the family's style over `width` values: its names within the layer.
    pub fn norm(&self, module: &str, gguf: &str, width: usize) -> NormSpec {
        let (module, gguf) = self.names(module, gguf);
        NormSpec { module, gguf, width, style: self.config.family.norm, eps: self.config.norm_eps }
    }
}
