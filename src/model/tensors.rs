//! The table of a model's tensors, made from its family's description.

use super::config::ModelConfig;
use super::spec::{BlockSpec, GgufRows, LinearSpec, NormSpec, TensorSpec};
use crate::nn::block::Part;

impl ModelConfig {
    /// The description of a layer.
    pub fn block(&self, layer: usize) -> BlockSpec {
        (self.family.block)(self, layer)
    }

    /// The norm before the head.
    pub fn final_norm(&self) -> NormSpec {
        NormSpec {
            module: self.names.final_norm.to_owned(),
            gguf: "output_norm".to_owned(),
            width: self.hidden_size,
            style: self.family.norm,
            eps: self.norm_eps,
        }
    }

    /// The output head, which has no weight of its own where it is tied.
    pub fn head(&self) -> LinearSpec {
        LinearSpec {
            module: self.names.head.to_owned(),
            gguf: "output".to_owned(),
            rows: self.vocab_size,
            columns: self.hidden_size,
            bias: false,
            gguf_rows: GgufRows::Same,
        }
    }

    /// Hugging Face's name of the embedding's weight.
    pub fn embedding_name(&self) -> String {
        format!("{}.weight", self.names.embedding)
    }

    /// Hugging Face's name of the head's weight; a tied model does not have it.
    pub fn head_name(&self) -> String {
        format!("{}.weight", self.names.head)
    }

    /// Whether the decoder is a part of a larger model.
    pub fn is_part(&self) -> bool {
        self.names != self.family.names
    }

    /// The name that a tensor has where the decoder is a model of its own.
    pub fn name_alone(&self, name: &str) -> String {
        self.names.translated(name, &self.family.names)
    }

    /// The source of [`Self::name_alone`].
    pub fn name_within(&self, name: &str) -> String {
        self.family.names.translated(name, &self.names)
    }

    /// Every tensor of the model, embedding first, then layer by layer, then norm and head (not where it is tied).
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = vec![TensorSpec {
            hf: self.embedding_name(),
            gguf: "token_embd.weight".to_owned(),
            shape: vec![self.vocab_size, self.hidden_size],
            is_projection: false,
            gguf_rows: GgufRows::Same,
            gguf_offset: 0.0,
        }];
        for layer in 0..self.layers {
            for part in self.block(layer).parts() {
                match part {
                    Part::Attention(linear) | Part::Mlp(linear) => tensors.extend(linear.tensors(true)),
                    Part::Norm(norm) => tensors.extend(norm.tensors()),
                }
            }
        }
        tensors.extend(self.final_norm().tensors());
        if !self.tied_head {
            tensors.extend(self.head().tensors(false));
        }
        tensors
    }

    /// Whether a file may hold this tensor without the decoder using it: tables and buffers that older programs saved,
    /// frequency factors (part of the configuration), other parts of a larger model, and the head of a tied model, which
    /// may be a copy of the embedding and is then ignored by transformers too.
    pub fn ignores(&self, name: &str) -> bool {
        let is_table = name.contains(".rotary_emb.")
            || matches!(name, "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight");
        is_table || (self.family.ignores)(name) || (self.tied_head && name == self.head_name())
    }

    /// Values of the model in all tensors; a tied head counts once.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }
}
