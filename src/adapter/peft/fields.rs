//! Typed access to the keys of `adapter_config.json`; what is wrong with them is collected.

use serde_json::{Map, Value};

use super::patterns::{LayerChoice, Pattern, Selection};
use crate::error::Error;
use crate::files::json::shortened;

/// More patterns than the modules of any model that is adapted; compiling one takes a quarter of a millisecond.
const MAX_PATTERNS: usize = 2_000;
/// The largest id of a token, as in a tokenizer.
const MAX_TOKEN: u32 = 10_000_000;
/// The largest rank, as in a recipe.
const MAX_RANK: u64 = 65_536;

/// The keys of a configuration, and the problems found in them so far.
pub(super) struct Fields<'a> {
    pub place: &'a str,
    pub object: &'a Map<String, Value>,
    pub errors: Vec<Error>,
}

impl Fields<'_> {
    pub fn problem(&mut self, message: impl Into<String>) {
        self.errors.push(Error::input(self.place, message));
    }

    pub fn wrong_type(&mut self, key: &str, expected: &str, found: &Value) {
        self.problem(format!("`{key}`: expected {expected}, found {}", shortened(found)));
    }

    /// The value of `key`; `null` counts as absent.
    pub fn value(&self, key: &str) -> Option<Value> {
        self.object.get(key).filter(|value| !value.is_null()).cloned()
    }

    pub fn boolean(&mut self, key: &str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Bool(value)) => value,
            Some(other) => {
                self.wrong_type(key, "true or false", &other);
                default
            }
        }
    }

    pub fn optional_text(&mut self, key: &str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) => Some(text),
            other => {
                self.wrong_type(key, "a string", &other);
                None
            }
        }
    }

    pub fn positive(&mut self, key: &str, default: usize) -> usize {
        self.value(key).and_then(|value| self.as_positive(key, &value)).unwrap_or(default)
    }

    pub fn as_positive(&mut self, key: &str, value: &Value) -> Option<usize> {
        let number = value.as_u64().filter(|number| (1..=MAX_RANK).contains(number));
        if number.is_none() {
            self.wrong_type(key, &format!("a whole number from 1 to {MAX_RANK}"), value);
        }
        number.map(|number| number as usize)
    }

    pub fn number(&mut self, key: &str, default: f64) -> f64 {
        self.value(key).and_then(|value| self.as_number(key, &value)).unwrap_or(default)
    }

    pub fn as_number(&mut self, key: &str, value: &Value) -> Option<f64> {
        let number = value.as_f64().filter(|number| number.is_finite() && number.abs() <= f64::from(f32::MAX));
        if number.is_none() {
            self.wrong_type(key, "a finite number", value);
        }
        number
    }

    pub fn probability(&mut self, key: &str) -> f64 {
        let number = self.number(key, 0.0);
        if !(0.0..=1.0).contains(&number) {
            self.problem(format!("`{key}`: expected a probability from 0 to 1, found {number}"));
        }
        number
    }

    pub fn pattern(&mut self, key: &str, built: Result<Pattern, String>) -> Option<Pattern> {
        built.map_err(|message| self.problem(format!("`{key}`: {message}"))).ok()
    }

    /// A list of strings, or one string (given as a list of one).
    pub fn texts(&mut self, key: &str, value: &Value) -> Vec<String> {
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

    pub fn selection(&mut self, key: &str) -> Option<Selection> {
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

    pub fn layer_choice(&mut self) -> Option<LayerChoice> {
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

    /// `trainable_token_indices`: a list of tokens, or an object from modules to such lists.
    pub fn tokens(&mut self) -> Vec<(Option<String>, Vec<u32>)> {
        const KEY: &str = "trainable_token_indices";
        let lists: Vec<(Option<String>, Value)> = match self.value(KEY) {
            None => return Vec::new(),
            Some(Value::Object(entries)) => entries.into_iter().map(|(module, ids)| (Some(module), ids)).collect(),
            Some(list) => vec![(None, list)],
        };
        let mut tokens = Vec::with_capacity(lists.len());
        for (module, list) in lists {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id <= MAX_TOKEN);
            match list.as_array().and_then(|ids| ids.iter().map(id).collect::<Option<Vec<u32>>>()) {
                Some(ids) => tokens.push((module, ids)),
                None => self.wrong_type(KEY, "lists of token ids", &list),
            }
        }
        tokens.retain(|(_, ids)| !ids.is_empty());
        tokens
    }

    pub fn patterns<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&mut Self, &str, &Value) -> Option<T>,
    ) -> Vec<(Pattern, T)> {
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
}
