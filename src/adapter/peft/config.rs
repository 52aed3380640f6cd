//! PEFT's `adapter_config.json`: which modules an adapter changes, with what rank and scale.
//!
//! Facts from PEFT 0.21 (`config.py`, `tuners/lora/config.py`, `tuners/tuners_utils.py`
//! `check_target_module_exists`, `utils/other.py` `get_pattern_key`). Whatever would change the arithmetic and
//! is not plain LoRA is refused by name; keys without effect on a finished adapter are passed over.

use std::path::Path;

use serde_json::Value;

use super::fields::Fields;
use super::patterns::{LayerChoice, Pattern, Selection, first_match};
use super::{CONFIG_FILE, SEQ_CLS};
use crate::adapter::init::Init;
use crate::error::{Error, Result};
use crate::files::json;

/// The modules that PEFT adapts where a configuration names no targets: the first two in families of LLaMA's kind, the
/// last one in GPT-NeoX (`utils/constants.py`). No family has both.
const DEFAULT_TARGETS: [&str; 3] = ["q_proj", "v_proj", "query_key_value"];

/// The settings of a LoRA adapter in `adapter_config.json`.
#[derive(Debug, Clone)]
pub struct PeftConfig {
    /// `r`: the rank where no pattern says otherwise.
    pub rank: usize,
    /// `lora_alpha`: the scale's numerator where no pattern says otherwise.
    pub alpha: f64,
    /// `lora_dropout`, a probability. Without effect outside training.
    pub dropout: f64,
    /// `use_rslora`: scale by `alpha / sqrt(rank)`.
    pub rslora: bool,
    /// `use_dora`: every pair has magnitudes.
    pub dora: bool,
    /// `init_lora_weights`, where it takes the product of the first factors from the base: PEFT does so again as it loads.
    pub subtracted: Option<Init>,
    /// `task_type` is `SEQ_CLS`: the adapter has a head of labels.
    pub is_classifier: bool,
    /// `base_model_name_or_path`. To be shown, never followed.
    pub base_name: Option<String>,
    place: String,
    pub(super) targets: Selection,
    /// Whether `target_modules` is missing, so that the targets are PEFT's defaults.
    pub(super) has_default_targets: bool,
    pub(super) excluded: Option<Selection>,
    pub(super) layers: Option<LayerChoice>,
    /// `modules_to_save`: ends of the paths of modules that are saved as wholes.
    pub(super) saved: Vec<String>,
    /// Whether `bias` says that biases are trained.
    pub(super) trains_biases: bool,
    /// `trainable_token_indices`: by the end of a module's path, the tokens whose rows are trained; the embedding has no path in a
    /// configuration that only lists tokens.
    pub(super) tokens: Vec<(Option<String>, Vec<u32>)>,
    pub(super) ranks: Vec<(Pattern, usize)>,
    pub(super) alphas: Vec<(Pattern, f64)>,
}

impl PeftConfig {
    /// Reads `dir/adapter_config.json`. Every problem in it is in the error.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::from_json(&path.display().to_string(), &json::read(&path)?)
    }

    /// The tokens that a base needs rows for where the adapter in the folder `dir` trains rows of them; `None` where it trains none or
    /// cannot be read.
    pub fn vocabulary_of(dir: &Path) -> Option<usize> {
        let tokens = Self::read(dir).ok()?.tokens;
        tokens.iter().flat_map(|(_, ids)| ids).max().map(|id| *id as usize + 1)
    }

    /// Takes a configuration from JSON; `place` is named in errors.
    ///
    /// # Errors
    /// Input: every problem in it.
    pub fn from_json(place: &str, value: &Value) -> Result<Self> {
        let object = value.as_object().ok_or_else(|| Error::input(place, "expected a JSON object"))?;
        let mut fields = Fields { place, object, errors: Vec::new() };
        fields.refuse_what_is_not_plain_lora();
        let config = Self {
            rank: fields.positive("r", 8),
            alpha: fields.number("lora_alpha", 8.0),
            dropout: fields.probability("lora_dropout"),
            rslora: fields.boolean("use_rslora", false),
            dora: fields.boolean("use_dora", false),
            subtracted: fields.subtracted(),
            is_classifier: object.get("task_type").and_then(Value::as_str) == Some(SEQ_CLS),
            base_name: fields.optional_text("base_model_name_or_path"),
            place: place.to_owned(),
            targets: fields.selection("target_modules").unwrap_or_else(default_targets),
            has_default_targets: object.get("target_modules").is_none_or(Value::is_null),
            excluded: fields.selection("exclude_modules"),
            layers: fields.layer_choice(),
            saved: fields
                .value("modules_to_save")
                .map(|value| fields.texts("modules_to_save", &value))
                .unwrap_or_default(),
            trains_biases: object.get("bias").and_then(Value::as_str).is_some_and(|which| which != "none"),
            tokens: fields.tokens(),
            ranks: fields.patterns("rank_pattern", |fields, key, value| fields.as_positive(key, value)),
            alphas: fields.patterns("alpha_pattern", |fields, key, value| fields.as_number(key, value)),
        };
        Error::none_of(fields.errors, config)
    }

    /// Whether PEFT would put an adapter on `module` (a path such as `model.layers.0.self_attn.q_proj`).
    ///
    /// # Errors
    /// A pattern in the file that takes too many steps.
    pub fn covers(&self, module: &str) -> Result<bool> {
        if let Some(excluded) = &self.excluded
            && self.named("exclude_modules", excluded.matches(module))?
        {
            return Ok(false);
        }
        // A module that is saved as a whole gets no pair, nor does anything inside it.
        let within = format!(".{module}.");
        if self.saved.iter().any(|saved| within.contains(&format!(".{saved}."))) {
            return Ok(false);
        }
        if !self.named("target_modules", self.targets.matches(module))? {
            return Ok(false);
        }
        match (&self.targets, &self.layers) {
            // A full path is taken as it is; only endings are narrowed to layers.
            (Selection::Names(names), Some(layers)) if !names.iter().any(|name| name == module) => {
                self.named("layers_pattern", layers.contains(module))
            }
            _ => Ok(true),
        }
    }

    /// Whether PEFT would train the tensor `name` as a whole: it is one of a saved module, or a bias where biases are trained.
    pub(super) fn trains_whole(&self, name: &str) -> bool {
        // The end of a path, dots or not (`_set_trainable`).
        let is_saved = |module: &str| self.saved.iter().any(|saved| module.ends_with(saved.as_str()));
        let Some((module, parameter)) = name.rsplit_once('.') else { return false };
        is_saved(module) || (parameter == "bias" && self.trains_biases)
    }

    /// The rank of `module`: the first pattern that matches, or `r`.
    pub fn rank_of(&self, module: &str) -> Result<usize> {
        Ok(self.named("rank_pattern", first_match(&self.ranks, module))?.map_or(self.rank, |index| self.ranks[index].1))
    }

    /// The scale of `module`: `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA, patterns resolved.
    pub fn scale_of(&self, module: &str) -> Result<f64> {
        let matched = self.named("alpha_pattern", first_match(&self.alphas, module))?;
        let alpha = matched.map_or(self.alpha, |index| self.alphas[index].1);
        let rank = self.rank_of(module)? as f64;
        Ok(if self.rslora { alpha / rank.sqrt() } else { alpha / rank })
    }

    /// The names in `target_modules`, where they alone decide which modules have an adapter.
    pub fn listed_targets(&self) -> Option<&[String]> {
        match &self.targets {
            Selection::Names(names)
                if !self.has_default_targets && self.excluded.is_none() && self.layers.is_none() =>
            {
                Some(names)
            }
            _ => None,
        }
    }

    pub(super) fn named<T>(&self, key: &str, result: Result<T, String>) -> Result<T> {
        result.map_err(|message| Error::input(&self.place, format!("`{key}`: {message}")))
    }
}

fn default_targets() -> Selection {
    Selection::Names(DEFAULT_TARGETS.map(str::to_owned).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PeftConfig> {
        PeftConfig::from_json("adapter_config.json", &json::parse("adapter_config.json", text.as_bytes())?)
    }

    fn config(rest: &str) -> PeftConfig {
        parse(&format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":16{rest}}}"#)).expect("a configuration")
    }

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q11: &str = "model.layers.11.self_attn.q_proj";

    #[test]
    fn a_target_is_a_whole_path_or_its_end() {
        let named = config(r#","target_modules":["q_proj","lm_head"]"#);
        assert!(named.covers(Q0).unwrap() && named.covers("lm_head").unwrap());
        assert!(!named.covers("model.layers.0.self_attn.k_proj").unwrap());
        assert!(!config(r#","target_modules":["proj"]"#).covers(Q0).unwrap());
    }

    #[test]
    fn a_pattern_must_match_the_whole_path() {
        let pattern = config(r#","target_modules":"model\\.layers\\.[0-3]\\.self_attn\\.(q|v)_proj""#);
        assert!(pattern.covers(Q0).unwrap());
        assert!(!pattern.covers(Q11).unwrap());
        let ahead = config(r#","target_modules":"^(?!.*lm_head).*_proj""#);
        assert!(ahead.covers(Q0).unwrap() && !ahead.covers("lm_head").unwrap());
    }

    #[test]
    fn layers_narrow_endings_but_not_full_paths() {
        let layers = config(r#","target_modules":["q_proj","model.layers.5.mlp.up_proj"],"layers_to_transform":[0,2]"#);
        assert!(layers.covers(Q0).unwrap() && !layers.covers(Q11).unwrap());
        assert!(layers.covers("model.layers.5.mlp.up_proj").unwrap());
        let listed = config(r#","target_modules":["q_proj"],"layers_to_transform":11,"layers_pattern":"layers""#);
        assert!(listed.covers(Q11).unwrap() && !listed.covers(Q0).unwrap());
        let other = config(r#","target_modules":["q_proj"],"layers_to_transform":[0],"layers_pattern":["blocks"]"#);
        assert!(!other.covers(Q0).unwrap());
    }

    #[test]
    fn excluded_modules_win() {
        let names = config(r#","target_modules":["q_proj"],"exclude_modules":["model.layers.0.self_attn.q_proj"]"#);
        assert!(!names.covers(Q0).unwrap() && names.covers(Q11).unwrap());
        assert!(config(r#","target_modules":"All-Linear","exclude_modules":[]"#).covers(Q0).unwrap());
    }

    #[test]
    fn the_first_pattern_that_matches_gives_rank_and_alpha() {
        let patterns =
            config(r#","rank_pattern":{"layers.0.self_attn.q_proj":4,"q_proj":2},"alpha_pattern":{"q_proj":32}"#);
        assert_eq!((patterns.rank_of(Q0).unwrap(), patterns.rank_of(Q11).unwrap()), (4, 2));
        assert_eq!(patterns.rank_of("model.layers.0.self_attn.v_proj").unwrap(), 8);
        assert_eq!(patterns.scale_of(Q0).unwrap(), 8.0);
        assert_eq!(patterns.scale_of("model.layers.0.self_attn.v_proj").unwrap(), 2.0);
        let rslora = config(r#","use_rslora":true,"rank_pattern":{"q_proj":4}"#);
        assert_eq!(rslora.scale_of(Q0).unwrap(), 8.0);
    }

    #[test]
    fn every_problem_is_reported() {
        let error = parse(
            r#"{"peft_type":"LOHA","r":0,"lora_alpha":"x","use_dora":1,"bias":"some","lora_dropout":2,
                "modules_to_save":[1],"target_modules":"(","init_lora_weights":"pissa_niter_4"}"#,
        )
        .unwrap_err();
        let text = error.to_string();
        let keys = [
            "peft_type",
            "`r`",
            "lora_alpha",
            "use_dora",
            "`bias`",
            "lora_dropout",
            "modules_to_save",
            "target_modules",
            "init_lora_weights",
        ];
        for key in keys {
            assert!(text.contains(key), "{key} in {text}");
        }
        assert_eq!((error.exit_code(), error.problems().len()), (2, keys.len()));
    }

    #[test]
    fn a_costly_pattern_is_an_error_and_not_a_hang() {
        let costly = config(r#","target_modules":"(?:(?=.)(\\w|\\.)+)+!(?<!x)""#);
        let error = costly.covers(&"model.layers.0.self_attn.".repeat(8)).unwrap_err();
        assert!(error.to_string().contains("target_modules"), "{error}");
    }
}
