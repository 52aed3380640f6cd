//! Ollama's Modelfile, parsed back: its template, run as Go's `text/template` runs it, gives the text of the model's own.

use burnish::data::{ChatTemplate, Encoder, Message, Role};
use burnish::export::ollama::{conversations, modelfile};
use burnish::text::Tokenizer;
use serde_json::json;

use super::message;

/// A template and the rest of it after `{{ end }}` or `{{ else … }}`.
#[derive(Debug)]
enum Node {
    Text(String),
    Field(String),
    /// Branches with their conditions, none for the last `else`.
    If(Vec<(Option<Vec<String>>, Vec<Node>)>),
    Range(Vec<Node>),
}

/// Texts and actions by turns.
fn tokens(template: &str) -> Vec<Result<String, String>> {
    let mut tokens = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").expect("closed");
        tokens.push(Ok(text.to_owned()));
        tokens.push(Err(action.trim().to_owned()));
        rest = after;
    }
    tokens.push(Ok(rest.to_owned()));
    tokens
}

fn words(condition: &str) -> Vec<String> {
    condition.split_whitespace().map(str::to_owned).collect()
}

/// Nodes up to `end` or `else`, which is returned.
fn parse(tokens: &mut dyn Iterator<Item = Result<String, String>>) -> (Vec<Node>, String) {
    let mut nodes = Vec::new();
    while let Some(token) = tokens.next() {
        match token {
            Ok(text) => nodes.push(Node::Text(text)),
            Err(action) if action == "end" || action.starts_with("else") => return (nodes, action),
            Err(action) => match action.split_once(' ') {
                Some(("range", ".Messages")) => nodes.push(Node::Range(parse(tokens).0)),
                Some(("if", condition)) => {
                    let mut branches = Vec::new();
                    let mut condition = Some(words(condition));
                    loop {
                        let (inner, end) = parse(tokens);
                        branches.push((condition, inner));
                        condition = match end.as_str() {
                            "end" => break,
                            "else" => None,
                            other => Some(words(other.strip_prefix("else if ").expect("else if"))),
                        };
                    }
                    nodes.push(Node::If(branches));
                }
                _ => nodes.push(Node::Field(action)),
            },
        }
    }
    (nodes, String::new())
}

/// The values that Ollama hands to a template: the system messages joined, and every message.
struct Values<'a> {
    system: String,
    messages: &'a [Message],
    message: Option<&'a Message>,
}

impl Values<'_> {
    fn field(&self, name: &str) -> String {
        match (name, self.message) {
            (".System", None) => self.system.clone(),
            (".Role", Some(message)) => message.role.name().to_owned(),
            (".Content", Some(message)) => message.content.clone(),
            other => panic!("{other:?} is no field"),
        }
    }

    fn holds(&self, condition: &[String]) -> bool {
        match condition {
            [field] => !self.field(field).is_empty(),
            [eq, field, text] if eq == "eq" => self.field(field) == text.trim_matches('"'),
            other => panic!("{other:?} is no condition"),
        }
    }

    fn run(&self, nodes: &[Node], out: &mut String) {
        for node in nodes {
            match node {
                Node::Text(text) => *out += text,
                Node::Field(name) => *out += &self.field(name),
                Node::If(branches) => {
                    let taken = branches
                        .iter()
                        .find(|(condition, _)| condition.as_ref().is_none_or(|condition| self.holds(condition)));
                    taken.into_iter().for_each(|(_, inner)| self.run(inner, out));
                }
                Node::Range(inner) => {
                    for message in self.messages {
                        let values = Values { system: String::new(), messages: self.messages, message: Some(message) };
                        values.run(inner, out);
                    }
                }
            }
        }
    }
}

fn rendered(template: &str, messages: &[Message]) -> String {
    let system: Vec<&str> = messages
        .iter()
        .filter(|message| message.role == Role::System)
        .map(|message| message.content.as_str())
        .collect();
    let mut out = String::new();
    let (nodes, _) = parse(&mut tokens(template).into_iter());
    Values { system: system.join("\n\n"), messages, message: None }.run(&nodes, &mut out);
    out
}

/// The value of `TEMPLATE`, and of every `PARAMETER stop`.
fn parsed(modelfile: &str) -> (String, Vec<String>) {
    let (before, rest) = modelfile.split_once("TEMPLATE \"\"\"").expect("a template");
    assert_eq!(before, "FROM ./model.gguf\n");
    let (template, rest) = rest.split_once("\"\"\"\n").expect("the end of the template");
    let stop =
        |line: &str| line.strip_prefix("PARAMETER stop \"").and_then(|text| text.strip_suffix('"')).map(str::to_owned);
    (template.to_owned(), rest.lines().map(|line| stop(line).expect("a stop")).collect())
}

/// A tokenizer whose only words are these tokens, with its chat template.
fn encoder(tokens: &[&str], bos: Option<&str>, template: &str) -> Encoder {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, value: serde_json::Value| {
        std::fs::write(folder.path().join(name), value.to_string()).expect("written");
    };
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let added: Vec<_> =
        tokens.iter().enumerate().map(|(id, token)| json!({"id": id, "content": token, "special": true})).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    write(
        "tokenizer.json",
        json!({
            "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": []},
        }),
    );
    write(
        "tokenizer_config.json",
        json!({
            "chat_template": template, "eos_token": tokens[0], "bos_token": bos, "add_bos_token": bos.is_some(),
        }),
    );
    let tokenizer = Tokenizer::from_folder(folder.path()).expect("a tokenizer");
    Encoder::of(tokenizer, "a model").expect("a template")
}

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// With a default system message, as SmolLM2 has one.
const DEFAULT_SYSTEM: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are \
     helpful.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + \
     '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const LLAMA3: &str = "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + \
                      '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if \
                      add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
const GEMMA: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% \
                     for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] \
                     %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if \
                     add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

#[test]
fn a_modelfile_renders_ten_conversations_as_the_model_s_own_template() {
    for (name, tokens, bos, template, stops) in [
        ("chatml", &["<|im_end|>", "<|im_start|>"][..], None, CHATML, &["<|im_end|>"][..]),
        ("default system", &["<|im_end|>", "<|im_start|>"], None, DEFAULT_SYSTEM, &["<|im_end|>"]),
        (
            "llama 3",
            &["<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"],
            Some("<|begin_of_text|>"),
            LLAMA3,
            &["<|end_of_text|>", "<|eot_id|>"],
        ),
        (
            "gemma",
            &["<eos>", "<end_of_turn>", "<start_of_turn>", "<bos>"],
            Some("<bos>"),
            GEMMA,
            &["<eos>", "<end_of_turn>"],
        ),
    ] {
        let encoder = encoder(tokens, bos, template);
        let text = modelfile(&encoder).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (template, found) = parsed(&text);
        assert_eq!(found, stops, "{name}");
        let own: &ChatTemplate = encoder.template().expect("a template");
        let mut compared = 0;
        for conversation in conversations() {
            // Gemma's refuses system messages.
            let Ok(expected) = own.render(&conversation, true) else { continue };
            let expected = expected.strip_prefix(bos.unwrap_or_default()).expect("begins with it");
            assert_eq!(rendered(&template, &conversation), expected, "{name}");
            compared += 1;
        }
        assert!(compared == 10 || (name == "gemma" && compared == 7), "{name}: {compared}");
    }
}

#[test]
fn a_template_that_looks_at_more_than_turns_is_refused() {
    let numbered = "{% for message in messages %}{{ loop.index }}: {{ message['content'] }}\n{% endfor %}";
    let last = "{% for message in messages %}{% if loop.last %}LAST {% endif %}[{{ message['role'] }}]{{ message['content'] \
                }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let upper = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] | upper }}{% endfor %}";
    let braces = "{% for message in messages %}{{ '{{' + message['role'] + '}}' + message['content'] }}{% endfor %}\
                  {% if add_generation_prompt %}{{ '{{assistant}}' }}{% endif %}";
    for template in [numbered, last, upper, braces] {
        let text = message(&modelfile(&encoder(&["<eos>"], None, template)).expect_err(template));
        assert!(
            text.contains("Ollama's kind of template cannot express it") && text.contains("--format gguf"),
            "{text}"
        );
    }
}
