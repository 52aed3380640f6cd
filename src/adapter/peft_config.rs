//! PEFT's `adapter_config.json`: which modules an adapter changes, with what rank and scale.
//!
//! Facts from PEFT 0.21 (`config.py`, `tuners/lora/config.py`, `tuners/tuners_utils.py`
//! `check_target_module_exists`, `utils/other.py` `get_pattern_key`). Whatever would change the arithmetic and
//! is not plain LoRA is refused by name; keys without effect on a finished adapter are passed over.

use std::path::Path;

use fancy_regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::json;

/// The file's name in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Backtracking steps a pattern may take on one module path (about 60 characters long).
const BACKTRACK_LIMIT: usize = 20_000;
/// More patterns than the modules of any model that is adapted; compiling one takes a quarter of a millisecond.
const MAX_PATTERNS: usize = 2_000;
/// The longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 16 << 10;
/// The largest rank, as in a recipe.
const MAX_RANK: u64 = 65_536;
/// What PEFT adapts in a LLaMA, Mistral or Qwen2 that names no targets.
const DEFAULT_TARGETS: [&str; 2] = ["q_proj", "v_proj"];

/// What `adapter_config.json` says about a LoRA adapter.
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
    /// `base_model_name_or_path`. To be shown, never followed.
    pub base_name: Option<String>,
    place: String,
    targets: Selection,
    excluded: Option<Selection>,
    layers: Option<LayerChoice>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

/// A choice of modules by name or by pattern.
#[derive(Debug, Clone)]
enum Selection {
    /// A module path is one of these, or ends with `.` and one of these.
    Names(Vec<String>),
    /// The whole path matches.
    Pattern(Pattern),
    /// Every projection but the head.
    AllLinear,
}

/// `layers_to_transform`, and the name of the list of layers in a path (any, if there are none).
#[derive(Debug, Clone)]
struct LayerChoice {
    indices: Vec<u64>,
    lists: Vec<Pattern>,
}

/// A regular expression of Python's dialect, and how it stands in the file.
#[derive(Debug, Clone)]
struct Pattern {
    regex: Regex,
    shown: String,
}

impl PeftConfig {
    /// Reads `dir/adapter_config.json`. Every problem in it is in the error.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::from_json(&path.display().to_string(), &json::read(&path)?)
    }

    /// Takes a configuration from JSON; `place` is named in errors.
    fn from_json(place: &str, value: &Value) -> Result<Self> {
        let object = value.as_object().ok_or_else(|| Error::input(place, "expected a JSON object"))?;
        let mut reader = Reader { place, object, errors: Vec::new() };
        reader.refuse_what_is_not_plain_lora();
        let config = Self {
            rank: reader.positive("r", 8),
            alpha: reader.number("lora_alpha", 8.0),
            dropout: reader.probability("lora_dropout"),
            rslora: reader.boolean("use_rslora", false),
            base_name: reader.optional_text("base_model_name_or_path"),
            place: place.to_owned(),
            targets: reader.selection("target_modules").unwrap_or_else(default_targets),
            excluded: reader.selection("exclude_modules"),
            layers: reader.layer_choice(),
            ranks: reader.patterns("rank_pattern", |reader, key, value| reader.as_positive(key, value)),
            alphas: reader.patterns("alpha_pattern", |reader, key, value| reader.as_number(key, value)),
        };
        Error::none_of(reader.errors, config)
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

    /// The rank of `module`: the first pattern that matches, or `r`.
    pub fn rank_of(&self, module: &str) -> Result<usize> {
        self.named("rank_pattern", first_match(&self.ranks, module)).map(|found| found.unwrap_or(self.rank))
    }

    /// The scale of `module`: `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA, patterns resolved.
    pub fn scale_of(&self, module: &str) -> Result<f64> {
        let alpha = self.named("alpha_pattern", first_match(&self.alphas, module))?.unwrap_or(self.alpha);
        let rank = self.rank_of(module)? as f64;
        Ok(if self.rslora { alpha / rank.sqrt() } else { alpha / rank })
    }

    fn named<T>(&self, key: &str, result: Result<T, String>) -> Result<T> {
        result.map_err(|message| Error::input(&self.place, format!("`{key}`: {message}")))
    }
}

fn default_targets() -> Selection {
    Selection::Names(DEFAULT_TARGETS.map(str::to_owned).to_vec())
}

/// The value of the first pattern that matches `module`.
fn first_match<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

impl Selection {
    fn matches(&self, module: &str) -> Result<bool, String> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| module == name || ends_with_segments(module, name))),
            Self::Pattern(pattern) => pattern.matches(module),
            Self::AllLinear => Ok(module != "lm_head"),
        }
    }
}

/// Whether `module` ends with `.` and `name`.
fn ends_with_segments(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|front| front.ends_with('.'))
}

impl LayerChoice {
    fn contains(&self, module: &str) -> Result<bool, String> {
        let index = if self.lists.is_empty() { first_numbered_segment(module) } else { self.listed_index(module)? };
        Ok(index.is_some_and(|index| self.indices.contains(&index)))
    }

    fn listed_index(&self, module: &str) -> Result<Option<u64>, String> {
        for list in &self.lists {
            if let Some(index) = list.index(module)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

/// The first segment that is a number, has a segment after it and two before it (PEFT's rule where no
/// `layers_pattern` is given): 3 in `model.layers.3.mlp.up_proj`.
fn first_numbered_segment(module: &str) -> Option<u64> {
    let segments: Vec<&str> = module.split('.').collect();
    let inner = segments.get(2..segments.len().saturating_sub(1))?;
    inner.iter().find_map(|segment| segment.parse().ok())
}

impl Pattern {
    fn new(written: &str, wrapped: &str) -> Result<Self, String> {
        if written.len() > MAX_PATTERN_BYTES {
            return Err(format!("a pattern of {} bytes; at most {MAX_PATTERN_BYTES}", written.len()));
        }
        let regex = RegexBuilder::new(wrapped)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map_err(|error| format!("`{written}` is not a regular expression that can be used: {error}"))?;
        Ok(Self { regex, shown: written.to_owned() })
    }

    /// Matches a whole path (Python's `re.fullmatch`).
    fn whole(written: &str) -> Result<Self, String> {
        Self::new(written, &format!(r"\A(?:{written})\z"))
    }

    /// Matches a path or its end after a `.`, as the keys of `rank_pattern` do.
    fn ending(written: &str) -> Result<Self, String> {
        Self::new(written, &format!(r"\A(.*\.)?({written})\z"))
    }

    /// Finds the number after a segment, as `layers_pattern` does.
    fn numbered(written: &str) -> Result<Self, String> {
        Self::new(written, &format!(r"\A(?:|.*?\.){written}\.(?P<burnish_index>\d+)\."))
    }

    fn matches(&self, module: &str) -> Result<bool, String> {
        self.regex.is_match(module).map_err(|error| self.too_costly(&error))
    }

    fn index(&self, module: &str) -> Result<Option<u64>, String> {
        let captures = self.regex.captures(module).map_err(|error| self.too_costly(&error))?;
        Ok(captures.and_then(|found| found.name("burnish_index")?.as_str().parse().ok()))
    }

    fn too_costly(&self, error: &fancy_regex::Error) -> String {
        format!("the pattern `{}` cannot be matched: {error}", self.shown)
    }
}

/// Reads keys of the configuration, collecting what is wrong.
struct Reader<'a> {
    place: &'a str,
    object: &'a Map<String, Value>,
    errors: Vec<Error>,
}

impl Reader<'_> {
    fn problem(&mut self, message: impl Into<String>) {
        self.errors.push(Error::input(self.place, message));
    }

    fn wrong_type(&mut self, key: &str, expected: &str, found: &Value) {
        self.problem(format!("`{key}`: expected {expected}, found {}", json::shortened(found)));
    }

    /// The value of `key`; `null` counts as absent.
    fn value(&self, key: &str) -> Option<Value> {
        self.object.get(key).filter(|value| !value.is_null()).cloned()
    }

    fn boolean(&mut self, key: &str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Bool(value)) => value,
            Some(other) => {
                self.wrong_type(key, "true or false", &other);
                default
            }
        }
    }

    fn optional_text(&mut self, key: &str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) => Some(text),
            other => {
                self.wrong_type(key, "a string", &other);
                None
            }
        }
    }

    fn positive(&mut self, key: &str, default: usize) -> usize {
        self.value(key).and_then(|value| self.as_positive(key, &value)).unwrap_or(default)
    }

    fn as_positive(&mut self, key: &str, value: &Value) -> Option<usize> {
        let number = value.as_u64().filter(|number| (1..=MAX_RANK).contains(number));
        if number.is_none() {
            self.wrong_type(key, &format!("a whole number from 1 to {MAX_RANK}"), value);
        }
        number.map(|number| number as usize)
    }

    fn number(&mut self, key: &str, default: f64) -> f64 {
        self.value(key).and_then(|value| self.as_number(key, &value)).unwrap_or(default)
    }

    fn as_number(&mut self, key: &str, value: &Value) -> Option<f64> {
        let number = value.as_f64().filter(|number| number.is_finite() && number.abs() <= f64::from(f32::MAX));
        if number.is_none() {
            self.wrong_type(key, "a finite number", value);
        }
        number
    }

    fn probability(&mut self, key: &str) -> f64 {
        let number = self.number(key, 0.0);
        if !(0.0..=1.0).contains(&number) {
            self.problem(format!("`{key}`: expected a probability from 0 to 1, found {number}"));
        }
        number
    }

    fn pattern(&mut self, key: &str, built: Result<Pattern, String>) -> Option<Pattern> {
        built.map_err(|message| self.problem(format!("`{key}`: {message}"))).ok()
    }

    /// A list of strings, or one string (given as a list of one).
    fn texts(&mut self, key: &str, value: &Value) -> Vec<String> {
        let items = match value {
            Value::Array(items) => items.clone(),
            other => vec![other.clone()],
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Value::String(text) => texts.push(text),
                other => self.wrong_type(key, "strings", &other),
            }
        }
        texts
    }

    fn selection(&mut self, key: &str) -> Option<Selection> {
        match self.value(key)? {
            Value::String(text) if text.eq_ignore_ascii_case("all-linear") => Some(Selection::AllLinear),
            Value::String(text) => self.pattern(key, Pattern::whole(&text)).map(Selection::Pattern),
            list @ Value::Array(_) => {
                let names = self.texts(key, &list);
                // PEFT takes an empty `exclude_modules` for none.
                (key == "target_modules" || !names.is_empty()).then_some(Selection::Names(names))
            }
            other => {
                self.wrong_type(key, "a list of names or a pattern", &other);
                None
            }
        }
    }

    fn layer_choice(&mut self) -> Option<LayerChoice> {
        let lists = match self.value("layers_pattern") {
            None => Vec::new(),
            Some(value) => {
                let texts = self.texts("layers_pattern", &value);
                let patterns: Vec<_> =
                    texts.iter().filter(|text| !text.is_empty()).map(|text| Pattern::numbered(text)).collect();
                patterns.into_iter().filter_map(|built| self.pattern("layers_pattern", built)).collect()
            }
        };
        let value = self.value("layers_to_transform")?;
        let items = match &value {
            Value::Array(items) => items.clone(),
            one => vec![one.clone()],
        };
        let indices: Option<Vec<u64>> = items.iter().map(Value::as_u64).collect();
        let Some(indices) = indices else {
            self.wrong_type("layers_to_transform", "layer numbers", &value);
            return None;
        };
        (!indices.is_empty()).then_some(LayerChoice { indices, lists })
    }

    fn patterns<T>(&mut self, key: &str, parse: impl Fn(&mut Self, &str, &Value) -> Option<T>) -> Vec<(Pattern, T)> {
        let entries = match self.value(key) {
            None => return Vec::new(),
            Some(Value::Object(entries)) => entries,
            Some(other) => {
                self.wrong_type(key, "an object from patterns to numbers", &other);
                return Vec::new();
            }
        };
        if entries.len() > MAX_PATTERNS {
            self.problem(format!("`{key}` has {} entries; at most {MAX_PATTERNS}", entries.len()));
            return Vec::new();
        }
        let mut patterns = Vec::with_capacity(entries.len());
        for (written, value) in &entries {
            let pattern = self.pattern(key, Pattern::ending(written));
            let parsed = parse(self, &format!("{key}.{written}"), value);
            patterns.extend(pattern.zip(parsed));
        }
        patterns
    }

    fn refuse_what_is_not_plain_lora(&mut self) {
        match self.value("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(other) => self.wrong_type("peft_type", "\"LORA\", the only kind that can be applied", &other),
            None => self.problem("`peft_type` is missing; expected \"LORA\""),
        }
        match self.value("task_type") {
            None => {}
            Some(Value::String(task)) if task == "CAUSAL_LM" => {}
            Some(other) => self.wrong_type("task_type", "\"CAUSAL_LM\"", &other),
        }
        // A base without biases has none to train, whatever is said here; those of another stand in the file of weights,
        // where they are refused.
        match self.value("bias") {
            None => {}
            Some(Value::String(which)) if ["none", "all", "lora_only"].contains(&which.as_str()) => {}
            Some(other) => self.wrong_type("bias", "\"none\", \"all\" or \"lora_only\"", &other),
        }
        for (key, what) in NOT_APPLICABLE {
            if let Some(value) = self.value(key).filter(|value| !is_empty(value)) {
                self.problem(format!("`{key}` is {}: {what} cannot be applied", json::shortened(&value)));
            }
        }
        self.refuse_changed_bases();
    }

    /// Initialisations that subtract from the base's weights at the start: the adapter fits that other base only.
    fn refuse_changed_bases(&mut self) {
        match self.value("init_lora_weights") {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(name)) if HARMLESS_INITS.contains(&name.to_lowercase().as_str()) => {}
            Some(other) => {
                self.errors.push(
                    Error::input(
                        self.place,
                        format!(
                            "`init_lora_weights` is {}: it changes the base's own weights, so that the adapter does \
                             not fit the base as published",
                            json::shortened(&other)
                        ),
                    )
                    .hint("save it as a plain LoRA: PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`"),
                );
            }
        }
    }
}

/// Initialisations that leave the base as it is.
const HARMLESS_INITS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Keys that, unless null, false, empty or `"none"`, ask for arithmetic beyond `W + scale * B * A`.
const NOT_APPLICABLE: [(&str, &str); 13] = [
    ("use_dora", "DoRA's magnitudes"),
    ("lora_bias", "biases of the low-rank pair"),
    ("modules_to_save", "wholly trained modules"),
    ("trainable_token_indices", "trained tokens"),
    ("layer_replication", "repeated layers"),
    ("target_parameters", "adapters on bare parameters"),
    ("use_qalora", "QALoRA's pooling"),
    ("use_bdlora", "block-diagonal pairs"),
    ("alora_invocation_tokens", "activation by tokens (aLoRA)"),
    ("arrow_config", "routing between adapters (Arrow)"),
    ("kasa_config", "KaSA's singular values"),
    ("monteclora_config", "MonteCLoRA's sampling"),
    ("megatron_config", "Megatron's parallel layers"),
];

/// Whether a value asks for nothing: `false`, `"none"`, `""`, `[]`, `{}`.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
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
            r#"{"peft_type":"LOHA","r":0,"lora_alpha":"x","use_dora":true,"bias":"some","lora_dropout":2,
                "modules_to_save":["lm_head"],"target_modules":"(","init_lora_weights":"pissa_niter_4"}"#,
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
