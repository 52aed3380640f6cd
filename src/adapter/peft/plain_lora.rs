//! Settings of an adapter's configuration that ask for more than LoRA and DoRA: each is refused by its key.

use serde_json::Value;

use super::fields::Fields;
use super::{CAUSAL_LM, SEQ_CLS};
use crate::adapter::init::Init;
use crate::error::Error;
use crate::files::json::shortened;

impl Fields<'_> {
    /// Collects an error for every key that asks for arithmetic other than `W + scale * B * A` and its magnitudes.
    pub fn refuse_what_is_not_plain_lora(&mut self) {
        match self.value("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(other) => self.wrong_type("peft_type", "\"LORA\", the only kind that can be applied", &other),
            None => self.problem("`peft_type` is missing; expected \"LORA\""),
        }
        match self.value("task_type") {
            None => {}
            Some(Value::String(task)) if task == CAUSAL_LM || task == SEQ_CLS => {}
            Some(other) => self.wrong_type("task_type", "\"CAUSAL_LM\" or \"SEQ_CLS\"", &other),
        }
        // A base without biases has none to train, whatever is said here.
        match self.value("bias") {
            None => {}
            Some(Value::String(which)) if ["none", "all", "lora_only"].contains(&which.as_str()) => {}
            Some(other) => self.wrong_type("bias", "\"none\", \"all\" or \"lora_only\"", &other),
        }
        for (key, what) in NOT_APPLICABLE {
            if let Some(value) = self.value(key).filter(|value| !is_empty(value)) {
                self.problem(format!("`{key}` is {}: {what} cannot be applied", shortened(&value)));
            }
        }
    }

    /// The initialisation by `init_lora_weights`, where it subtracts from the base's weights in a way that can be repeated. One that
    /// cannot be, since it depends on chance or data, is refused: the adapter fits that other base only.
    pub fn subtracted(&mut self) -> Option<Init> {
        match self.value("init_lora_weights") {
            None | Some(Value::Bool(_)) => None,
            Some(Value::String(name)) if HARMLESS_INITS.contains(&name.to_lowercase().as_str()) => None,
            Some(Value::String(name)) if name == Init::Pissa.name() => Some(Init::Pissa),
            Some(Value::String(name)) if name.to_lowercase() == Init::Olora.name() => Some(Init::Olora),
            Some(other) => {
                self.errors.push(
                    Error::input(
                        self.place,
                        format!(
                            "`init_lora_weights` is {}: it changes the base's own weights by chance or data, so that the \
                             adapter does not fit the base as published",
                            shortened(&other)
                        ),
                    )
                    .hint("save it as a plain LoRA: PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`"),
                );
                None
            }
        }
    }
}

/// Initialisations that leave the base as it is.
const HARMLESS_INITS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Keys that, unless null, false, empty or `"none"`, ask for arithmetic beyond `W + scale * B * A` and whole tensors.
const NOT_APPLICABLE: [(&str, &str); 10] = [
    ("lora_bias", "biases of the low-rank pair"),
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
