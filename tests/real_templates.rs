//! Templates of the kinds that real models have, against transformers (tests/reference/make_templates.py): the strings, the
//! token ids, and the parts that are trained, which there are those between the `generation` tags.

use std::fs;

use burnish::data::chat::builtin::BuiltinTemplate;
use burnish::data::{ChatTemplate, Encoder, Example, jsonl};
use burnish::text::Tokenizer;
use serde_json::{Value, json};
use time::{Date, Month, Time};

use crate::tokenizer::fixtures;

/// The cases of all templates.
fn cases() -> Value {
    let path = fixtures().with_file_name("templates/cases.json");
    serde_json::from_slice(&fs::read(path).expect("the fixture")).expect("JSON")
}

/// The small byte-level tokenizer with the control tokens of a template.
fn tokenizer(template: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = fs::read(fixtures().join("bytelevel/tokenizer.json")).expect("the fixture");
    let mut tokenizer: Value = serde_json::from_slice(&bytes).expect("JSON");
    let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
    for (token, id) in template["tokens"].as_object().expect("tokens") {
        added.retain(|known| known["content"] != json!(token));
        added.push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        }));
    }
    added.sort_by_key(|token| token["id"].as_u64());
    let config = json!({"bos_token": template["bos"], "eos_token": template["eos"]});
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("written");
    Tokenizer::from_folder(folder.path()).expect("a tokenizer")
}

fn compiled(source: &str, name: &str, tokenizer: &Tokenizer) -> ChatTemplate {
    let day = Date::from_calendar_date(2024, Month::July, 6).expect("a date");
    let noon = day.with_time(Time::from_hms(15, 4, 5).expect("a time")).assume_utc();
    ChatTemplate::compile_at(source, name, &tokenizer.named_tokens(), noon).expect("compiles")
}

fn example(cases: &Value, case: &Value) -> Example {
    let conversation = &cases["conversations"][case["conversation"].as_u64().expect("a number") as usize];
    jsonl::parse(conversation.to_string().as_bytes(), "d.jsonl", None).expect("reads").remove(0).example
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// A text with its trained parts in brackets, for messages.
fn with_marks(tokenizer: &Tokenizer, ids: &[u32], trained: &[bool]) -> String {
    let mut text = String::new();
    for (at, id) in ids.iter().enumerate() {
        let before = at > 0 && trained[at - 1];
        match (before, trained[at]) {
            (false, true) => text.push('⟦'),
            (true, false) => text.push('⟧'),
            _ => {}
        }
        text.push_str(&tokenizer.decode(&[*id], false).expect("decodes"));
    }
    text
}

#[test]
fn every_turn_of_the_assistant_is_trained_with_its_stop_token_and_nothing_else() {
    let cases = cases();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for found in cases["templates"].as_array().expect("a list") {
        let name = found["name"].as_str().expect("a name");
        let source =
            fs::read_to_string(fixtures().with_file_name(format!("templates/{name}.jinja"))).expect("the fixture");
        let tokenizer = tokenizer(found);
        let template = compiled(&source, name, &tokenizer);
        let encoder = Encoder::new(tokenizer.clone(), Some(template.clone()));
        for case in found["cases"].as_array().expect("cases") {
            let place = format!("{name}, conversation {}", case["conversation"]);
            let row = example(&cases, case);
            let Example::Chat { messages, tools } = &row else { panic!("{place}: a conversation") };
            let template = template.with_tools(tools.as_ref());
            let Some(text) = case["text"].as_str() else {
                assert!(template.render(messages, false).is_err() && encoder.encode(&row).is_err(), "{place}: raises");
                continue;
            };
            assert_eq!(template.render(messages, false).expect("renders"), text, "{place}");
            let last = messages.iter().rposition(|message| message.is_answer()).expect("an answer");
            let prompt = match &case["prompt"] {
                Value::String(prompt) => prompt,
                length => &text[..length.as_u64().expect("a length") as usize],
            };
            assert_eq!(template.render(&messages[..last], true).expect("renders"), prompt, "{place}");
            let encoded = encoder.encode(&row).expect("encodes");
            let (ids, mask) = (ids(&case["ids"]), case["mask"].as_str().expect("a mask"));
            let mask: Vec<bool> = mask.chars().map(|symbol| symbol == '1').collect();
            if (&encoded.ids, &encoded.trained, encoded.untrained_turns) != (&ids, &mask, 0) {
                let marked = |ids, trained| with_marks(&tokenizer, ids, trained);
                let (ours, theirs) = (marked(&encoded.ids, &encoded.trained), marked(&ids, &mask));
                wrong.push(format!(
                    "{place}, {} untrained\n  ours:   {ours:?}\n  theirs: {theirs:?}",
                    encoded.untrained_turns
                ));
            }
            compared += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 150, "only {compared} cases");
}

#[test]
fn built_in_templates_write_what_their_models_were_trained_on() {
    let cases = cases();
    let mut compared = 0;
    for (builtin, name, with_system) in [
        (BuiltinTemplate::Chatml, "chatml", true),
        (BuiltinTemplate::Llama2, "llama2", true),
        (BuiltinTemplate::Llama3, "llama3", true),
        (BuiltinTemplate::Gemma, "gemma3", true),
        (BuiltinTemplate::Zephyr, "zephyr", true),
        (BuiltinTemplate::Vicuna, "vicuna", true),
        (BuiltinTemplate::Phi3, "phi3", true),
        // This one puts the system text before the last question, the built-in one before the first.
        (BuiltinTemplate::Mistral, "mistral_v3", false),
        // This one has a default system text.
        (BuiltinTemplate::Qwen, "qwen2_5", true),
    ] {
        let templates = cases["templates"].as_array().expect("a list");
        let found = templates.iter().find(|template| template["name"] == name).expect("is in the fixture");
        let template = compiled(builtin.source(), builtin.name(), &tokenizer(found));
        for case in found["cases"].as_array().expect("cases") {
            let Example::Chat { messages, tools } = example(&cases, case) else { panic!("a conversation") };
            let has_system = messages[0].role.name() == "system";
            let has_default = builtin == BuiltinTemplate::Qwen && !has_system;
            let has_tools = tools.is_some() && builtin != BuiltinTemplate::Qwen;
            if (has_system && !with_system) || has_default || has_tools {
                continue;
            }
            let text = case["text"].as_str().expect("renders");
            // Phi-3's own template ends a conversation with another end token, which is not trained.
            let text = text.strip_suffix("<|endoftext|>").unwrap_or(text);
            let rendered = template.with_tools(tools.as_ref()).render(&messages, false);
            assert_eq!(rendered.expect("renders"), text, "{builtin}");
            compared += 1;
        }
    }
    assert!(compared > 40, "only {compared} cases");
    assert_eq!(BuiltinTemplate::ALL.len(), 9, "each has its model above");
}
