//! The chat templates that a tokenizer brings.

use std::path::Path;

use serde_json::{Value, json};

use super::folder::MAX_CONFIG_BYTES;
use crate::error::{Error, Result};
use crate::files::{json::kind as json_kind, open};

/// The name under which transformers looks for the template of conversations with tools.
const TOOL_USE: &str = "tool_use";
/// The folder of templates with a name of their own, beside `chat_template.jinja`.
const NAMED_FOLDER: &str = "additional_chat_templates";

/// The template of a model, and another one for conversations with tools where there is one. Empty templates count as
/// none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Templates {
    pub(super) default: Option<String>,
    pub(super) tool_use: Option<String>,
}

impl Templates {
    /// The templates of these texts. A template for conversations with tools that stands alone is the template of all.
    pub(super) fn new(default: Option<String>, tool_use: Option<String>) -> Self {
        let not_empty = |text: &String| !text.trim().is_empty();
        match (default.filter(not_empty), tool_use.filter(not_empty)) {
            (None, Some(only)) => Self { default: Some(only), tool_use: None },
            (default, tool_use) => Self { default, tool_use },
        }
    }

    /// The templates of a folder: `chat_template.jinja` and `additional_chat_templates/tool_use.jinja` first, then
    /// `chat_template` of `tokenizer_config.json`: a text, or named templates of which `default` and `tool_use` are taken.
    ///
    /// # Errors
    /// Input: a file that is not UTF-8; named templates without `default` and `tool_use`; a key of another type.
    pub(super) fn of_folder(folder: &Path, config: &Value) -> Result<Self> {
        let default = read(&folder.join("chat_template.jinja"))?;
        let tool_use = read(&folder.join(NAMED_FOLDER).join(format!("{TOOL_USE}.jinja")))?;
        if default.is_some() {
            return Ok(Self::new(default, tool_use));
        }
        let config =
            of_config(&config["chat_template"], || folder.join("tokenizer_config.json").display().to_string())?;
        Ok(Self::new(config.default, tool_use.or(config.tool_use)))
    }

    /// `chat_template` of a `tokenizer_config.json` that has these templates; `None` where there are none.
    pub(super) fn to_config(&self) -> Option<Value> {
        match (&self.default, &self.tool_use) {
            (None, None) => None,
            (Some(default), None) => Some(json!(default)),
            (default, tool_use) => {
                let named = [("default", default), (TOOL_USE, tool_use)];
                let named = named
                    .into_iter()
                    .filter_map(|(name, text)| text.as_ref().map(|text| json!({"name": name, "template": text})));
                Some(named.collect())
            }
        }
    }
}

/// The text of a template's file; `None` where there is none.
fn read(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    String::from_utf8(open::read(path, MAX_CONFIG_BYTES)?)
        .map(Some)
        .map_err(|_| Error::input(path.display(), "the chat template is not UTF-8"))
}

/// `chat_template` of a `tokenizer_config.json`.
fn of_config(value: &Value, place: impl Fn() -> String) -> Result<Templates> {
    let named: Vec<(String, Option<String>)> = match value {
        Value::Null => return Ok(Templates::default()),
        Value::String(text) => return Ok(Templates { default: Some(text.clone()), tool_use: None }),
        Value::Array(named) => named.iter().map(|one| (text(&one["name"]), optional_text(&one["template"]))).collect(),
        Value::Object(named) => named.iter().map(|(name, one)| (name.clone(), optional_text(one))).collect(),
        other => {
            let message = format!("`chat_template` is {}; expected a text or named templates", json_kind(other));
            return Err(Error::input(place(), message));
        }
    };
    let find = |name: &str| named.iter().find(|(other, _)| other == name).and_then(|(_, text)| text.clone());
    let (default, tool_use) = (find("default"), find(TOOL_USE));
    if default.is_none() && tool_use.is_none() {
        let names: Vec<String> = named.iter().map(|(name, _)| format!("{name:?}")).collect();
        let message =
            format!("`chat_template` has {}; one named \"default\" or \"tool_use\" is needed", names.join(", "));
        return Err(Error::input(place(), message));
    }
    Ok(Templates { default, tool_use })
}

fn text(value: &Value) -> String {
    optional_text(value).unwrap_or_else(|| value.to_string())
}

fn optional_text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
