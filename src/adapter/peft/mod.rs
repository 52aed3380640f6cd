//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Reading takes a folder of LoRA or DoRA of any PEFT version and refuses by name what cannot be applied (every problem at
//! once). Writing keeps to the keys that every PEFT since 0.6 knows.

mod config;
mod fields;
mod header;
mod missing;
mod patterns;
mod plain_lora;
mod read;
mod renaming;
mod unused;
mod write;

pub use config::PeftConfig;
pub use header::{AdapterHeader, PairHeader};
pub use missing::no_adapter;
pub use write::SaveOptions;

/// The name of the configuration file in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the weights file in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The prefix of every module path in PEFT's files.
const PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";
const MAGNITUDE_SUFFIX: &str = ".lora_magnitude_vector";
