//! The identity of a run: all that decides what it learns. A checkpoint keeps it, and a run that goes on must have the same.

use std::fmt;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::prepare::Prepared;
use crate::adapter::host::HostAdapter;
use crate::device::DeviceChoice;
use crate::files::hex;
use crate::recipe::Plan;
use crate::settings::choice;

choice! {
    /// A kind of difference between a checkpoint and the run that is to go on from it.
    Change {
        /// The weights or the configuration of the base.
        Base = "base",
        /// The training or validation data.
        Data = "data",
        /// A setting that decides what is learned.
        Recipe = "recipe",
        /// The tokenizer.
        Tokenizer = "tokenizer",
        /// The chat template.
        Template = "template",
        /// The adapter that the run began with.
        Adapter = "adapter",
        /// The program: its version, and the hash of its sources, dependencies and compiler.
        Program = "program",
        /// The device that computes.
        Device = "device",
        /// The instruction set of the processor's kernels.
        InstructionSet = "instruction-set",
        /// The parts in which a step goes through the model, which `--max-memory` decides.
        Layout = "layout",
    }
}

/// Settings and sections that decide nothing about what is learned, or that are compared by what they name.
const NOT_COMPARED: &[&str] = &[
    "adapter.from",
    "base.model",
    "data.rehearsal.path",
    "data.test",
    "data.train",
    "data.valid",
    "eval.guard",
    "output",
    "parallel",
    "sample",
    "train.checkpoint_minutes",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
];
/// Settings that only say how far a run goes.
const LENGTH: &[&str] = &["train.epochs", "train.max_steps"];

/// A difference to a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its kind.
    pub change: Change,
    /// The thing that differs: a setting, a split of the data, or the kind itself.
    pub name: String,
    /// The value of the checkpoint, in words.
    pub was: String,
    /// The value of now, in words.
    pub is: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, was, is, .. } = self;
        write!(f, "{name} was {was} and is {is}")
    }
}

impl Difference {
    /// Whether it only makes the run longer or shorter.
    pub fn is_length(&self) -> bool {
        self.change == Change::Recipe && LENGTH.contains(&self.name.as_str())
    }
}

/// The identity of a run, by [`Change`]: a text, or texts by name.
///
/// Numbers stand as texts, so that they come back as they were.
pub fn identity(prepared: &Prepared, choice: &DeviceChoice) -> Value {
    let Prepared { plan, base, base_sha256, train_sha256, valid_sha256, start, layout, .. } = prepared;
    let tokenizer = base.encoder.tokenizer();
    let mut recipe = recipe_of(plan);
    let config = sha256(format!("{:?}", base.files.config()));
    let mut identity = Map::new();
    for change in Change::ALL {
        let value = match change {
            Change::Base => json!({ "weights": base_sha256, "configuration": config }),
            Change::Data => json!({ "train": train_sha256, "valid": valid_sha256 }),
            Change::Recipe => Value::Object(std::mem::take(&mut recipe)),
            Change::Tokenizer => json!(tokenizer.sha256()),
            Change::Template => {
                json!({ "chat": tokenizer.chat_template().map(sha256), "tools": tokenizer.tool_use_template().map(sha256) })
            }
            Change::Adapter => json!(adapter_sha256(start)),
            Change::Program => json!({ "version": env!("CARGO_PKG_VERSION"), "build": env!("BURNISH_BUILD") }),
            Change::Device => json!(choice.feature()),
            Change::InstructionSet => json!(instruction_set(choice)),
            Change::Layout => json!(json!(layout).to_string()),
        };
        identity.insert(change.name().to_owned(), value);
    }
    Value::Object(identity)
}

/// The settings that decide what is learned, by key, as texts.
pub(super) fn recipe_of(plan: &Plan) -> Map<String, Value> {
    let mut recipe = Map::new();
    flatten("", &json!(plan), &mut recipe);
    let is_of = |key: &str, section: &str| {
        key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    recipe.retain(|key, _| !NOT_COMPARED.iter().any(|section| is_of(key, section)));
    recipe
}

/// The instruction set of the kernels; `None` where another device computes.
pub fn instruction_set(choice: &DeviceChoice) -> Option<&'static str> {
    #[cfg(feature = "cpu")]
    if *choice == DeviceChoice::Cpu {
        return Some(crate::ops::cpu::isa::Isa::current().name());
    }
    let _ = choice;
    None
}

/// Every difference between the identity of a checkpoint and that of now.
pub fn differences(saved: &Value, now: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    for change in Change::ALL {
        let name = change.name();
        let (saved, now) = (by_name(name, &saved[name]), by_name(name, &now[name]));
        let mut names: Vec<&String> = saved.keys().chain(now.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let (was, is) = (saved.get(name), now.get(name));
            if was != is {
                let (was, is) = (in_words(was), in_words(is));
                found.push(Difference { change, name: name.clone(), was, is });
            }
        }
    }
    found
}

/// The parts of an identity's value.
fn by_name(name: &str, value: &Value) -> Map<String, Value> {
    match value {
        Value::Object(parts) => parts.clone(),
        value => Map::from_iter([(name.to_owned(), value.clone())]),
    }
}

/// A part for people: of a hash its beginning.
fn in_words(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "not there".to_owned(),
        Some(Value::String(text)) if hex::is_hexadecimal(text, 32) => format!("{}…", &text[..12]),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Adds the leaves of `value` by their full keys, as JSON texts.
fn flatten(key: &str, value: &Value, leaves: &mut Map<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, value, leaves);
            }
        }
        leaf => drop(leaves.insert(key.to_owned(), json!(leaf.to_string()))),
    }
}

fn sha256(text: impl AsRef<[u8]>) -> String {
    hex::encode(&Sha256::digest(text.as_ref()))
}

/// The SHA-256 of an adapter's values and scales.
fn adapter_sha256(adapter: &HostAdapter) -> String {
    let mut hash = Sha256::new();
    for pair in adapter.pairs.values() {
        hash.update(pair.scale.to_le_bytes());
    }
    for (name, values) in adapter.vectors() {
        hash.update(name.as_bytes());
        values.iter().for_each(|value| hash.update(value.to_le_bytes()));
    }
    hex::encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_with_both_values() {
        let saved = json!({ "recipe": { "train.epochs": "1", "train.seed": "0" }, "program": "0.1.0", "data": { "train": "a" } });
        let now = json!({ "recipe": { "train.epochs": "2", "train.seed": "0" }, "program": "0.2.0",
                          "data": { "train": "a", "valid": "0".repeat(64) } });
        let found = differences(&saved, &now);
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "valid was not there and is 000000000000…",
                "train.epochs was 1 and is 2",
                "program was 0.1.0 and is 0.2.0"
            ]
        );
        assert_eq!(found.iter().map(Difference::is_length).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(differences(&now, &now), []);
    }
}
