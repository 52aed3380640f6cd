//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Reading takes a folder of LoRA or DoRA of any PEFT version, or of mlx-lm (`mlx`), and refuses by name what cannot be applied (every problem at
//! once). Writing keeps to the keys that every PEFT since 0.6 knows.

mod config;
mod embedding;
mod fields;
mod header;
mod missing;
mod mlx;
pub(super) mod patterns;
mod plain_lora;
mod read;
mod renaming;
mod roles;
mod tokens;
mod unused;
mod write;

pub use config::PeftConfig;
pub use header::{AdapterHeader, PairHeader};
pub use missing::no_adapter;
pub use mlx::{MLX_A_SUFFIX, MLX_B_SUFFIX, MLX_MAGNITUDE_SUFFIX, MLX_WEIGHTS_FILE, transposed};
pub use write::SaveOptions;

use crate::adapter::host::SCORE;

/// The name of the configuration file in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the weights file in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// `task_type` of an adapter that gives text.
const CAUSAL_LM: &str = "CAUSAL_LM";
/// `task_type` of a classifier.
const SEQ_CLS: &str = "SEQ_CLS";
/// The modules that PEFT adds to `modules_to_save` of every classifier; an architecture has one of them.
const CLASSIFIER_MODULES: [&str; 2] = ["classifier", SCORE];

/// The prefix of every module path in PEFT's files.
const PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";
/// The ends of the names of an embedding's pair, which is stored transposed: `[rank, tokens]` and `[width, rank]`.
const EMBEDDING_A_SUFFIX: &str = ".lora_embedding_A";
const EMBEDDING_B_SUFFIX: &str = ".lora_embedding_B";
/// The end of the name of the trained rows of some tokens.
const ROWS_SUFFIX: &str = ".token_adapter.trainable_tokens_delta";
const MAGNITUDE_SUFFIX: &str = ".lora_magnitude_vector";
