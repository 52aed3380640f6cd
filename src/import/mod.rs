//! Recipes from the configurations of other programs: every key becomes a setting, or is named in a comment with the reason why
//! it has no equal.
//!
//! ```text
//! yaml, python      the keys of a file, with their lines
//! rules             the treatment of a key, and the rules that programs share
//! axolotl, …        the keys of one program
//! draft             the recipe that is written, held against the reader of recipes
//! ```

mod axolotl;
mod draft;
mod llama_factory;
mod mlx_lm;
mod python;
mod rules;
mod transformers;
mod trl;
mod unsloth;
mod value;
mod yaml;

use std::path::Path;

use serde::Serialize;

pub use draft::LeftOut;

use crate::error::{Error, Result};
use crate::files::open;
use crate::recipe::Recipe;
use crate::settings::choice;
use draft::Draft;
use rules::Table;
use value::Entry;

/// The largest configuration that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

choice! {
    /// A program whose configurations are read.
    Tool {
        /// axolotl (YAML).
        Axolotl = "axolotl",
        /// LLaMA-Factory (YAML or JSON).
        LlamaFactory = "llama-factory",
        /// Unsloth (a script in Python, or YAML).
        Unsloth = "unsloth",
        /// mlx-lm (YAML).
        MlxLm = "mlx-lm",
        /// PEFT (adapter_config.json).
        Peft = "peft",
        /// TRL (YAML, or a script in Python that uses it with PEFT).
        Trl = "trl",
    }
}

/// A recipe made of another program's configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Imported {
    /// The program.
    pub tool: String,
    /// Keys that became settings.
    pub carried_over: usize,
    /// Keys without an equal.
    pub left_out: Vec<LeftOut>,
    /// The recipe.
    pub recipe: String,
}

/// The recipe of the configuration at `path`, of `tool` or else of the program that its keys tell.
///
/// # Errors
/// Input: the file cannot be read as what it is; its keys are those of none of the programs, or of several alike; it describes
/// an adapter of another kind than LoRA.
pub fn import(path: &Path, tool: Option<Tool>) -> Result<Imported> {
    let bytes = open::read(path, MAX_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::input(path, format!("is not UTF-8 text: the byte at offset {at} is wrong"))
    })?;
    let is_script = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("py"));
    let entries = if is_script { python::read(&text) } else { yaml::read(&text, path)? };
    let tool = match tool {
        Some(tool) => tool,
        None if is_script => of_script(&text, &entries, path)?,
        None => of_keys(&entries, path)?,
    };
    refuse_other_adapters(&entries, tool, path)?;
    let mut draft = Draft::new(&entries);
    let tables: &[&Table] = match tool {
        Tool::Axolotl => &[axolotl::KEYS, transformers::TRAINING, transformers::LORA, transformers::BASE],
        Tool::LlamaFactory => &[llama_factory::KEYS, transformers::TRAINING, transformers::LORA, transformers::BASE],
        Tool::Unsloth => &[unsloth::KEYS, trl::KEYS, transformers::TRAINING, transformers::LORA, transformers::BASE],
        Tool::MlxLm => &[mlx_lm::KEYS],
        Tool::Peft => &[transformers::LORA, transformers::BASE],
        Tool::Trl => &[trl::KEYS, transformers::TRAINING, transformers::LORA, transformers::BASE],
    };
    rules::apply(&entries, tables, is_script || tool == Tool::Unsloth, &mut draft);
    if let Some(objective) = trl::objective_of(&entries) {
        draft.default("train.objective", objective, "the trainer of the script");
    }
    // Elsewhere a number of steps ends the run, however often it goes over the data.
    if draft.has("train.max_steps") || tool == Tool::MlxLm {
        draft.default("train.epochs", 1_000_000, "the steps end the run");
    }
    match tool {
        Tool::Axolotl => axolotl::defaults(&mut draft),
        Tool::LlamaFactory => llama_factory::defaults(&mut draft),
        Tool::Unsloth => unsloth::defaults(&mut draft),
        Tool::MlxLm => mlx_lm::defaults(&mut draft),
        Tool::Trl => trl::defaults(&mut draft, is_script),
        Tool::Peft => {
            draft.default("adapter.rank", 8, "PEFT's default");
            draft.default("adapter.alpha", 8, "PEFT's default");
        }
    }
    let name = path.file_name().map(|name| value::one_line(&name.to_string_lossy(), 200)).unwrap_or_default();
    let head = format!(
        "# From {name}, a configuration of {tool}, by `burnish import`. The comment behind a setting is the key that it comes from.\n\
         # `burnish check` with the name of this file says what is still missing."
    );
    let written = draft.finish(&head);
    // What was written is read again, so that no recipe leaves here that `burnish check` could not read.
    Recipe::parse(&written.text, "recipe", &[]).and_then(|recipe| recipe.settings()).map_err(Error::into_failure)?;
    let (carried_over, left_out) = (written.carried_over, written.left_out);
    Ok(Imported { tool: tool.to_string(), carried_over, left_out, recipe: written.text })
}

/// Keys of each program that few others have.
const TELLING: &[(Tool, &[&str])] = &[
    (
        Tool::Axolotl,
        &[
            "base_model",
            "datasets",
            "test_datasets",
            "pretraining_dataset",
            "micro_batch_size",
            "num_epochs",
            "sequence_len",
            "sample_packing",
            "val_set_size",
            "adapter",
            "lora_target_linear",
            "dataset_prepared_path",
            "optimizer",
            "lr_scheduler",
            "rl",
        ],
    ),
    (
        Tool::LlamaFactory,
        &[
            "stage",
            "finetuning_type",
            "template",
            "cutoff_len",
            "lora_target",
            "lora_rank",
            "dataset",
            "dataset_dir",
            "preprocessing_num_workers",
            "overwrite_cache",
            "plot_loss",
            "quantization_bit",
            "val_size",
            "pref_loss",
        ],
    ),
    (Tool::Unsloth, &["training", "lora", "logging", "data"]),
    (
        Tool::MlxLm,
        &[
            "iters",
            "fine_tune_type",
            "num_layers",
            "lora_layers",
            "lora_parameters",
            "lr_schedule",
            "adapter_path",
            "steps_per_eval",
            "steps_per_report",
            "save_every",
            "val_batches",
            "mask_prompt",
            "grad_checkpoint",
            "hf_dataset",
            "optimizer_config",
        ],
    ),
    (
        Tool::Peft,
        &[
            "peft_type",
            "base_model_name_or_path",
            "init_lora_weights",
            "inference_mode",
            "auto_mapping",
            "rank_pattern",
            "r",
            "fan_in_fan_out",
            "layers_to_transform",
        ],
    ),
    (
        Tool::Trl,
        &[
            "dataset_name",
            "dataset_text_field",
            "use_peft",
            "lora_target_modules",
            "lora_r",
            "dataset_train_split",
            "dataset_test_split",
            "attn_implementation",
            "completion_only_loss",
            "assistant_only_loss",
            "max_length",
            "per_device_train_batch_size",
            "num_train_epochs",
            "lr_scheduler_type",
            "loss_type",
        ],
    ),
];

/// The program whose telling keys are the most: two at least, of which none other has as many.
fn of_keys(entries: &[Entry], path: &Path) -> Result<Tool> {
    let has = |key: &&&str| entries.iter().any(|entry| entry.key == ***key);
    let mut counts: Vec<(usize, Tool)> =
        TELLING.iter().map(|(tool, keys)| (keys.iter().filter(has).count(), *tool)).collect();
    counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    match counts[..] {
        [(first, tool), (second, _), ..] if first >= 2 && first > second => Ok(tool),
        _ => Err(unknown(path, "its keys are those of no program that is known, or of several alike")),
    }
}

/// The program of a script, by the name of the library that it uses.
fn of_script(text: &str, entries: &[Entry], path: &Path) -> Result<Tool> {
    if entries.is_empty() {
        return Err(unknown(path, "it calls nothing that sets up a training of Unsloth or TRL"));
    }
    match ["unsloth", "trl", "peft"].into_iter().find(|name| text.contains(name)) {
        Some("unsloth") => Ok(Tool::Unsloth),
        Some(_) => Ok(Tool::Trl),
        None => Err(unknown(path, "it names neither unsloth nor trl nor peft")),
    }
}

fn unknown(path: &Path, why: &str) -> Error {
    let names: Vec<&str> = TELLING.iter().map(|(tool, _)| tool.name()).collect();
    Error::input(path, format!("is no configuration that can be told: {why}"))
        .hint(format!("configurations of {} are read; --from names the program", names.join(", ")))
}

fn refuse_other_adapters(entries: &[Entry], tool: Tool, path: &Path) -> Result<()> {
    let kind = entries.iter().find(|entry| tool == Tool::Peft && entry.key == "peft_type");
    match kind.and_then(|entry| Some((entry.line, entry.value.text()?))) {
        Some((line, kind)) if !kind.eq_ignore_ascii_case("LORA") => {
            let place = crate::error::Place::file(path).line(line);
            Err(Error::input(place, format!("`peft_type` is {kind}; expected LORA")))
        }
        _ => Ok(()),
    }
}
