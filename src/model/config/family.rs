//! An architecture as data. The architectures themselves stand in `model/families/`.

use std::fmt;

use serde_json::{Map, Value};

use super::{Fields, Keys, ModelConfig};
use crate::model::spec::{BlockSpec, NormStyle, OuterNames};
use crate::model::vision::VisionKind;

/// An architecture.
pub struct Family {
    /// The class in `architectures` of `config.json`.
    pub class_name: &'static str,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// `general.architecture` of a GGUF file. Of several families under one name, the first in the list reads the file.
    pub gguf: &'static str,
    /// The place of the head in a GGUF file, as llama.cpp expects it.
    pub gguf_head: GgufHead,
    /// The field of `config.json` with the number that norms add.
    pub norm_eps: &'static str,
    /// The form of its norms.
    pub norm: NormStyle,
    /// Names of the modules outside the layers.
    pub names: OuterNames,
    /// Beginnings of names in checkpoints, and what transformers puts in their place.
    pub stored_prefixes: &'static [(&'static str, &'static str)],
    /// Beginnings of module paths in mlx-lm, and those of the base's own checkpoints in their place.
    pub mlx_prefixes: &'static [(&'static str, &'static str)],
    /// Whether a tensor of this Hugging Face name has no use in the decoder.
    pub ignores: fn(&str) -> bool,
    /// Reads `config.json`.
    pub from_json: fn(&mut Fields<'_>) -> ModelConfig,
    /// The keys of a GGUF file's metadata, read into a configuration that is empty before, or written from one.
    pub gguf_keys: fn(&mut Keys<'_>, &mut ModelConfig),
    /// Adds the fields of `config.json` that this family has beyond the common ones.
    pub to_json: fn(&ModelConfig, &mut Map<String, Value>),
    /// Describes a layer. Called for a checked configuration only.
    pub block: fn(&ModelConfig, usize) -> BlockSpec,
}

/// The place of the output head in a GGUF file (llama.cpp `src/models/*.cpp`, `load_arch_tensors`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufHead {
    /// A tied head has no tensor.
    WhereUntied,
    /// Every file has the tensor; that of a tied head is a copy of the embedding.
    Always,
    /// No file has it: the head is the embedding.
    Never,
}

/// A model with a decoder inside, whose `text_config` is the decoder's configuration.
#[derive(Debug)]
pub struct LargerModel {
    /// The class in `architectures` of `config.json`.
    pub class_name: &'static str,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// `model_type` of its decoder; `None` for any of the supported ones.
    pub decoder: Option<&'static str>,
    /// Names of the decoder's modules within it.
    pub names: OuterNames,
    /// Beginnings of names in checkpoints and in older adapters, and what transformers puts in their place.
    pub stored_prefixes: &'static [(&'static str, &'static str)],
    /// The way in which it sees pictures; `None` where only its decoder is supported.
    pub vision: Option<VisionKind>,
}

impl PartialEq for LargerModel {
    fn eq(&self, other: &Self) -> bool {
        self.class_name == other.class_name
    }
}

/// The name stands for the family: the addresses of its functions differ from process to process.
impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class_name)
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.class_name == other.class_name
    }
}
