//! Calls of tools whose arguments are held to their schemas: calls that a request demands, and those of tools with `strict`.
//!
//! The markup of a call is the chat template's, which is asked for it with a call of a tool that does not exist. The prompt of a demanded
//! call goes on with everything before the call's JSON object, so that the model writes what it was trained on, and the object is the
//! answer. An answer that may call strict tools is free text up to that markup.

use serde_json::{Map, Value, json};

use super::failure::{Failure, Outcome};
use super::format::AnswerFormat;
use crate::data::Message;
use crate::data::read::message_of;
use crate::error::{Error, Result};
use crate::run::named::NamedModel;

/// The name of a tool that no client has.
const PROBE: &str = "probe_of_the_markup";
/// An id in the form that the strictest templates want.
const PROBE_ID: &str = "call00000";
/// The keys of a call's arguments in the families' templates.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

/// The functions that an answer can call, with the schemas of their arguments.
#[derive(Debug, Clone)]
pub(super) struct HeldCalls {
    functions: Vec<Function>,
    /// Whether the answer has to be a call of one of them.
    is_demanded: bool,
}

#[derive(Debug, Clone)]
struct Function {
    name: String,
    parameters: Value,
}

impl HeldCalls {
    /// The call that a `tool_choice` demands: of any of the tools, or of that with a name.
    pub(super) fn demanded(tools: &[Value], choice: &Value) -> Outcome<Self> {
        const FIELD: &str = "tool_choice";
        let name = match choice {
            Value::String(word) if word == "required" => None,
            Value::Object(_) if choice["type"] == "function" => {
                let name = choice["function"]["name"].as_str();
                Some(name.ok_or_else(|| Failure::field(FIELD, "names no function"))?)
            }
            _ => return Err(Failure::unsupported(FIELD, "`auto`, `none`, `required` and a function are known")),
        };
        let is_chosen = |tool: &&Value| name.is_none_or(|name| tool["function"]["name"] == name);
        let functions = tools.iter().filter(is_chosen).map(Function::read).collect::<Outcome<Vec<_>>>()?;
        match functions.is_empty() {
            true => Err(Failure::field(FIELD, "demands a function that is not among `tools`")),
            false => Ok(Self { functions, is_demanded: true }),
        }
    }

    /// The calls that the model may make, if any of the tools is `strict`: the others take any object.
    pub(super) fn strict(tools: &[Value]) -> Outcome<Option<Self>> {
        let is_strict = |tool: &Value| tool["function"]["strict"] == true;
        if !tools.iter().any(is_strict) {
            return Ok(None);
        }
        let functions = tools.iter().map(|tool| match is_strict(tool) {
            true => Function::read(tool),
            false => Ok(Function { name: name_of(tool), parameters: json!({ "type": "object" }) }),
        });
        Ok(Some(Self { functions: functions.collect::<Outcome<_>>()?, is_demanded: false }))
    }

    /// Whether the answer has to be a call.
    pub(super) fn is_demanded(&self) -> bool {
        self.is_demanded
    }

    /// The format of the answer, and the tokens of a demanded call before it, which belong to the prompt.
    pub(super) fn prepare(&self, model: &NamedModel) -> Result<(AnswerFormat, Vec<u32>)> {
        let markup = markup(model);
        if self.is_demanded {
            let (beginning, arguments) = markup.unwrap_or((String::new(), ARGUMENTS[0]));
            let ids = model.encoder.tokenizer().encode_continuation(&beginning)?;
            let schema = self.schema(arguments, false);
            return Ok((AnswerFormat { schema, opening: None, field: "tools" }, ids));
        }
        let Some((beginning, arguments)) = markup else {
            let message = format!("the chat template of `{}` writes no calls that can be held to `strict`", model.name);
            return Err(Error::input("", message));
        };
        // Some families write a list of calls.
        let opening = beginning.trim();
        let (opening, is_list) = match opening.strip_suffix('[') {
            Some(before) => (before.trim_end(), true),
            None => (opening, false),
        };
        let (schema, opening) = (self.schema(arguments, is_list), Some(opening.to_owned()));
        Ok((AnswerFormat { schema, opening, field: "tools" }, Vec::new()))
    }

    /// The schema of a call whose arguments stand under this key, or of a list of calls.
    fn schema(&self, arguments: &str, is_list: bool) -> Value {
        let mut definitions = Map::new();
        let calls = self.functions.iter().enumerate().map(|(index, function)| {
            let place = format!("#/$defs/{index}");
            let mut parameters = function.parameters.clone();
            relocate(&mut parameters, &place, false);
            definitions.insert(index.to_string(), parameters);
            json!({
                "type": "object",
                "properties": { "name": { "const": function.name }, arguments: { "$ref": place } },
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        });
        let calls: Vec<Value> = calls.collect();
        match is_list {
            true => json!({ "type": "array", "items": { "anyOf": calls }, "minItems": 1, "$defs": definitions }),
            false => json!({ "anyOf": calls, "$defs": definitions }),
        }
    }
}

impl Function {
    fn read(tool: &Value) -> Outcome<Self> {
        let name = name_of(tool);
        let mut parameters = match &tool["function"]["parameters"] {
            Value::Null => json!({ "additionalProperties": false }),
            given => given.clone(),
        };
        let Some(fields) = parameters.as_object_mut() else {
            return Err(Failure::field("tools", format!("has `parameters` of `{name}` that are no object")));
        };
        let kind = fields.entry("type").or_insert_with(|| Value::from("object"));
        match *kind == "object" {
            true => Ok(Self { name, parameters }),
            false => Err(Failure::field("tools", format!("has `parameters` of `{name}` that describe no object"))),
        }
    }
}

fn name_of(tool: &Value) -> String {
    tool["function"]["name"].as_str().unwrap_or_default().to_owned()
}

/// The text between the prompt and the JSON object of a call, and the key of the call's arguments, as the chat template writes
/// them; none where it writes calls in another form.
fn markup(model: &NamedModel) -> Option<(String, &'static str)> {
    let message = |fields: Value| message_of(fields.as_object()?.clone()).ok();
    let parameters = json!({ "type": "object", "properties": { "x": { "type": "integer" } } });
    let function = json!({ "name": PROBE, "description": "A probe.", "parameters": parameters });
    let tools = json!([{ "type": "function", "function": function }]);
    let call = json!({ "name": PROBE, "arguments": { "x": 1 } });
    let calls = json!([{ "id": PROBE_ID, "type": "function", "function": call }]);
    let question = Message::user("a");
    let called = message(json!({ "role": "assistant", "content": null, "tool_calls": calls }))?;
    let result = message(json!({ "role": "tool", "name": PROBE, "tool_call_id": PROBE_ID, "content": "1" }))?;
    let asked = model.prompt(std::slice::from_ref(&question), Some(&tools)).ok()?;
    let answered = model.prompt(&[question, called, result], Some(&tools)).ok()?;
    let tail = model.encoder.tokenizer().decode(answered.strip_prefix(asked.as_slice())?, false).ok()?;
    tail.match_indices('{').find_map(|(start, _)| {
        let mut values = serde_json::Deserializer::from_str(&tail[start..]).into_iter::<Value>();
        let object = values.next()?.ok()?;
        let is_call = object["name"] == PROBE;
        let arguments = ARGUMENTS.into_iter().find(|key| is_call && object[*key].is_object())?;
        Some((tail[..start].to_owned(), arguments))
    })
}

/// Lets the references of a schema point into the place at which it stands now. `are_names`: the keys are names of properties or
/// definitions, not keywords.
fn relocate(schema: &mut Value, place: &str, are_names: bool) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| relocate(item, place, false)),
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), &mut *value) {
                    ("$ref", Value::String(reference)) if !are_names => {
                        if let Some(rest) = reference.strip_prefix('#') {
                            *reference = format!("{place}{}", rest.trim_end_matches('/'));
                        }
                    }
                    ("const" | "enum" | "default" | "examples", _) if !are_names => {}
                    ("properties" | "patternProperties" | "$defs" | "definitions", value) if !are_names => {
                        relocate(value, place, true);
                    }
                    (_, value) => relocate(value, place, false),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::Encoder;
    use crate::model::BaseFiles;
    use crate::run::answer::PromptForm;
    use crate::text::Tokenizer;

    fn tool(name: &str, parameters: Value) -> Value {
        json!({ "type": "function", "function": { "name": name, "parameters": parameters } })
    }

    #[test]
    fn references_of_parameters_point_to_their_new_place() {
        let parameters = json!({
            "type": "object",
            "properties": { "a": { "$ref": "#/$defs/A" }, "$ref": { "enum": [{ "$ref": "#/x" }] }, "const": { "$ref": "#" } },
            "$defs": { "A": { "items": [{ "$ref": "#/" }] } },
        });
        let tools = [tool("f", json!({})), tool("g", parameters)];
        let schema = HeldCalls::demanded(&tools, &json!("required")).expect("two").schema("parameters", false);
        let moved = &schema["$defs"]["1"];
        assert_eq!(moved["properties"]["a"]["$ref"], "#/$defs/1/$defs/A");
        assert_eq!(moved["properties"]["const"]["$ref"], "#/$defs/1");
        assert_eq!(moved["properties"]["$ref"]["enum"][0]["$ref"], "#/x", "a constant stays");
        assert_eq!(moved["$defs"]["A"]["items"][0]["$ref"], "#/$defs/1");
        assert_eq!(schema["anyOf"][1]["properties"]["name"]["const"], "g");
        assert_eq!(schema["anyOf"][1]["properties"]["parameters"]["$ref"], "#/$defs/1");
        assert_eq!(schema["$defs"]["0"], json!({ "type": "object" }));
    }

    #[test]
    fn the_markup_of_a_call_is_that_of_the_template() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let base = BaseFiles::open(&fixtures.join("gguf/smollm.gguf")).expect("a base");
        let tokenizer = Tokenizer::of_base(&base).expect("a tokenizer");
        for (name, expected) in [
            ("qwen2_5", Some(("<tool_call>\n", "arguments"))),
            ("qwen3", Some(("<tool_call>\n", "arguments"))),
            ("mistral_v3", Some(("[TOOL_CALLS] [", "arguments"))),
            ("llama3_1", Some(("", "parameters"))),
            ("zephyr", None),
        ] {
            let source = std::fs::read_to_string(fixtures.join(format!("templates/{name}.jinja"))).expect("a template");
            let encoder = Encoder::of(tokenizer.with_chat_template(&source), name).expect("a template");
            let form = PromptForm::Conversation;
            let model = NamedModel { name: name.to_owned(), encoder, form, end_tokens: Vec::new(), reader: None };
            let expected = expected.map(|(beginning, arguments)| (beginning.to_owned(), arguments));
            assert_eq!(markup(&model), expected, "{name}");
        }
    }

    #[test]
    fn a_choice_names_one_of_the_tools() {
        let tools = [tool("f", Value::Null), tool("g", json!({}))];
        let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
        assert_eq!(HeldCalls::demanded(&tools, &named("g")).expect("one").functions.len(), 1);
        let all = HeldCalls::demanded(&tools, &json!("required")).expect("two");
        assert_eq!(all.functions[0].parameters["additionalProperties"], false);
        for choice in [named("h"), json!("any"), json!({ "type": "function" }), json!({ "type": "allowed_tools" })] {
            assert!(HeldCalls::demanded(&tools, &choice).is_err(), "{choice}");
        }
        assert!(HeldCalls::demanded(&[], &json!("required")).is_err());
        for parameters in [json!(true), json!({ "type": "array" })] {
            assert!(HeldCalls::demanded(&[tool("f", parameters)], &json!("required")).is_err());
        }
    }

    #[test]
    fn strict_tools_hold_calls_and_others_take_any_object() {
        let mut tools = [tool("f", json!({ "properties": { "a": { "type": "null" } } })), tool("g", json!(true))];
        assert!(HeldCalls::strict(&tools).expect("none").is_none());
        tools[0]["function"]["strict"] = json!(true);
        let held = HeldCalls::strict(&tools).expect("read").expect("one is strict");
        let schema = held.schema("arguments", true);
        assert!(!held.is_demanded() && schema["items"]["anyOf"][1]["properties"]["name"]["const"] == "g");
        assert_eq!(schema["$defs"]["0"]["properties"]["a"]["type"], "null");
        assert_eq!(schema["$defs"]["1"], json!({ "type": "object" }));
        tools[1]["function"]["strict"] = json!(true);
        assert!(HeldCalls::strict(&tools).is_err());
    }
}
