//! The adapter folder of mlx-lm, read as if PEFT had written it: `adapters.safetensors` has each factor transposed, under paths
//! without a prefix, and `adapter_config.json` gives one rank and one scale.
//!
//! Facts from mlx-lm (`tuner/utils.py` `load_adapters` and `linear_to_lora_layers`, `tuner/lora.py`, `lora.py`). A module without
//! factors in the file is not changed there.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::config::PeftConfig;
use super::fields::Fields;
use super::header::{AdapterHeader, PairHeader, check_magnitude, float, matrix, read_weights};
use super::renaming::Renaming;
use super::{CONFIG_FILE, WEIGHTS_FILE};
use crate::error::{Error, Result};
use crate::files::RawTensor;
use crate::files::json::{self, shortened};
use crate::model::families;

/// The name of the weights file in an adapter folder of mlx-lm.
pub const MLX_WEIGHTS_FILE: &str = "adapters.safetensors";
/// The end of the name of a pair's first factor, `[in, rank]`.
pub const MLX_A_SUFFIX: &str = ".lora_a";
/// The end of the name of a pair's second factor, `[rank, out]`.
pub const MLX_B_SUFFIX: &str = ".lora_b";

/// The end of the name of the magnitudes of DoRA, `[out]`.
pub const MLX_MAGNITUDE_SUFFIX: &str = ".m";

/// Whether the folder holds an adapter of mlx-lm and none of PEFT.
pub(super) fn is_mlx(dir: &Path) -> bool {
    !dir.join(WEIGHTS_FILE).exists() && dir.join(MLX_WEIGHTS_FILE).exists()
}

/// The settings of an adapter of mlx-lm.
struct MlxConfig {
    rank: usize,
    scale: f64,
    dropout: f64,
    dora: bool,
    model: Option<String>,
}

impl MlxConfig {
    fn read(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let value = json::read(path)?;
        let object = value.as_object().ok_or_else(|| Error::input(&place, "expected a JSON object"))?;
        let mut fields = Fields { place: &place, object, errors: Vec::new() };
        let kind = fields.value("fine_tune_type");
        let dora = kind == Some(json!("dora"));
        match kind {
            None => {}
            Some(Value::String(kind)) if kind == "lora" || kind == "dora" => {}
            Some(Value::String(kind)) if kind == "full" => {
                fields
                    .problem("`fine_tune_type` is \"full\": whole layers of the model cannot be applied as an adapter");
            }
            Some(other) => {
                fields.problem(format!("`fine_tune_type` is {}; expected \"lora\" or \"dora\"", shortened(&other)))
            }
        }
        let model = fields.optional_text("model");
        let mut errors = fields.errors;
        let Some(lora) = object.get("lora_parameters").and_then(Value::as_object) else {
            errors.push(Error::input(&place, "`lora_parameters` is missing or no object; mlx-lm's settings have one"));
            return Err(Error::join(errors.clone()).unwrap_or_else(|| Error::input(&place, "has no `lora_parameters`")));
        };
        let inner = format!("{place}: lora_parameters");
        let mut fields = Fields { place: &inner, object: lora, errors };
        for key in ["rank", "scale"] {
            if fields.value(key).is_none() {
                fields.problem(format!("`{key}` is missing"));
            }
        }
        let config = Self {
            rank: fields.positive("rank", 8),
            scale: fields.number("scale", 1.0),
            dropout: fields.probability("dropout"),
            dora,
            model,
        };
        Error::none_of(fields.errors, config)
    }

    /// The same settings as PEFT's configuration has them, for these modules.
    fn into_peft<'a>(self, place: &str, modules: impl Iterator<Item = &'a str>) -> Result<PeftConfig> {
        let config = json!({
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.scale * self.rank as f64,
            "lora_dropout": self.dropout,
            "use_dora": self.dora,
            "base_model_name_or_path": self.model,
            "target_modules": modules.collect::<Vec<_>>(),
        });
        PeftConfig::from_json(place, &config)
    }
}

/// Reads the settings of the adapter folder `dir` of mlx-lm, and the header of its weights.
///
/// # Errors
/// Input: another kind than LoRA, tensors that are no factor, factors whose shapes disagree with each other or with the settings.
pub(super) fn read(dir: &Path) -> Result<AdapterHeader> {
    let config_path = dir.join(CONFIG_FILE);
    let (config, (tensors, metadata)) =
        Error::both(MlxConfig::read(&config_path), read_weights(&dir.join(MLX_WEIGHTS_FILE)))?;
    let place = dir.join(MLX_WEIGHTS_FILE).display().to_string();
    let mut errors = Vec::new();
    let mut parts: BTreeMap<String, [Option<RawTensor>; 3]> = BTreeMap::new();
    for (name, tensor) in tensors {
        let suffixes = [MLX_A_SUFFIX, MLX_B_SUFFIX, MLX_MAGNITUDE_SUFFIX].into_iter().enumerate();
        let mut found = suffixes.filter_map(|(part, suffix)| Some((part, name.strip_suffix(suffix)?)));
        match found.next() {
            Some((part, module)) => parts.entry(module.to_owned()).or_default()[part] = Some(tensor),
            None => {
                let message = "is neither `lora_a`, `lora_b` nor `m` of a module";
                errors.push(Error::input(format_args!("{place}: tensor {name}"), message));
            }
        }
    }
    let mut pairs = BTreeMap::new();
    for (module, parts) in parts {
        match pair_of(&place, &config, &module, parts) {
            Ok(pair) => drop(pairs.insert(module, pair)),
            Err(error) => errors.push(error),
        }
    }
    if pairs.is_empty() && errors.is_empty() {
        errors.push(Error::input(&place, "holds no low-rank pair"));
    }
    let config = config.into_peft(&config_path.display().to_string(), pairs.keys().map(String::as_str));
    let metadata = metadata.into_iter().filter(|(key, _)| key.starts_with("burnish.")).collect();
    let (config, ()) = Error::both(config, Error::none_of(errors, ()))?;
    Ok(AdapterHeader {
        config,
        place,
        pairs,
        whole: BTreeMap::new(),
        rows: BTreeMap::new(),
        score: None,
        renaming: Renaming::default(),
        metadata,
    })
}

/// One pair, or everything that is wrong with it.
fn pair_of(place: &str, config: &MlxConfig, module: &str, parts: [Option<RawTensor>; 3]) -> Result<PairHeader> {
    let place = format!("{place}: module {module}");
    let [Some(a), Some(b), magnitude] = parts else {
        return Err(Error::input(place, "has one of `lora_a` and `lora_b` and not the other"));
    };
    let ([a_rows, a_rank], [b_rank, b_columns]) =
        Error::both(matrix(&place, "lora_a", &a), matrix(&place, "lora_b", &b))?;
    let mut errors: Vec<Error> = [("lora_a", &a), ("lora_b", &b)]
        .into_iter()
        .filter_map(|(half, tensor)| float(&place, half, tensor).err())
        .collect();
    if (a_rank, b_rank) != (config.rank, config.rank) {
        let message = format!(
            "has `lora_a` of shape {:?} and `lora_b` of shape {:?}; expected [.., {rank}] and [{rank}, ..] for the rank in \
             {CONFIG_FILE}",
            a.shape,
            b.shape,
            rank = config.rank
        );
        errors.push(Error::input(&place, message));
    }
    let (rank, scale, is_embedding) = (config.rank, config.scale as f32, families::is_embedding(module));
    errors.extend(check_magnitude(&place, config.dora, magnitude.as_ref(), b_columns));
    if is_embedding && magnitude.is_some() {
        errors.push(Error::input(&place, "is an embedding with DoRA's magnitudes, which cannot be applied"));
    }
    // The factors of an embedding are applied to rows rather than to columns: `lora_a · lora_b` is the change itself.
    let pair = match is_embedding {
        true => {
            PairHeader { a: b, b: a, rank, input: b_columns, output: a_rows, scale, magnitude, is_transposed: false }
        }
        false => PairHeader { a, b, rank, input: a_rows, output: b_columns, scale, magnitude, is_transposed: true },
    };
    Error::none_of(errors, pair)
}

/// A matrix of `rows` rows with rows and columns exchanged.
pub fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows.max(1);
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns.max(1)).copied()).collect()
}
