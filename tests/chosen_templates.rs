//! The chat template that a recipe names in place of the base's, and texts that were rendered before they came here.

use std::fs;

use burnish::data::chat::builtin::with_chosen_template;
use burnish::data::{ControlTokens, Encoder, LongPolicy, jsonl};
use serde_json::{Value, json};

use crate::cli::{refused, run, text, tiny_job, tiny_model};
use crate::conversations::{CHATML, encoded, encoder, set, talk, trained_text};
use crate::tokenizer::{fixtures, open};

#[test]
fn a_template_that_the_recipe_names_goes_with_the_adapter() {
    let folder = tiny_job();
    for (name, answer) in [("chat.jsonl", "b"), ("other.jsonl", "c")] {
        let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]});
        fs::write(folder.path().join(name), row.to_string()).expect("written");
    }
    let settings =
        ["data.train='chat.jsonl'", "data.valid='other.jsonl'", "data.template='zephyr'", "train.max_steps=1"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let json = |arguments: &[&str]| -> Value {
        let output = run(&folder, arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let checked = json(&[&["check", "recipe.toml", "--json"][..], &settings].concat());
    let trained = run(&folder, &[&["train", "recipe.toml"][..], &settings].concat());
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let config = fs::read_to_string(folder.path().join("runs/sums/tokenizer_config.json")).expect("saved");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let template = config["chat_template"].as_str().expect("a template");
    assert!(template.contains("'<|' + message.role + '|>\\n'"), "{template}");
    // The adapter brings its template along, to evaluation and into a merged folder.
    let base = tiny_model().display().to_string();
    let data = ["--data", "chat.jsonl", "--json"];
    let with_adapter = ["eval", "--base", &base, "--adapter", "runs/sums"];
    let with_adapter = json(&[&with_adapter[..], &data].concat());
    assert_eq!(with_adapter["tokens"], checked["train"]["trained_tokens"]);
    assert!(run(&folder, &["merge", "--base", &base, "--adapter", "runs/sums", "--out", "merged"]).status.success());
    let merged = json(&[&["eval", "--base", "merged"][..], &data].concat());
    assert_eq!(merged["tokens"], with_adapter["tokens"]);
    let plain = json(&[&["eval", "--base", &base][..], &data].concat());
    assert_ne!(plain["loss"], merged["loss"]);
    // What is wrong with the setting is said at its place.
    let setting = |value: &str| {
        let settings = [&settings[..], &["--set", value]].concat();
        refused(&run(&folder, &[&["check", "recipe.toml"][..], &settings].concat()))
    };
    let stderr = setting("data.template='chatmal'");
    assert!(stderr.contains("`chatmal`, which is neither a built-in template nor a file"), "{stderr}");
    assert!(stderr.contains("data.template") && stderr.contains("`chatml`, `llama2`"), "{stderr}");
    let stderr = setting("data.template='llama3'");
    assert!(stderr.contains("ends an answer with `<|eot_id|>`, which is no token of"), "{stderr}");
}

#[test]
fn a_base_without_a_template_gets_one() {
    let bare = open("bytelevel");
    let row = talk();
    let rows = jsonl::parse(row.to_string().as_bytes(), "d.jsonl", None).expect("reads");
    let without = Encoder::new(bare.clone(), None).encode_all(&rows, 64, LongPolicy::Error);
    let error = without.expect_err("no template").to_string();
    assert!(error.contains("data.template = \"chatml\""), "{error}");
    let chosen = with_chosen_template(&bare, "chatml").expect("has the tokens");
    let by_name = Encoder::of(chosen, "model").expect("compiles");
    assert_eq!(encoded(&by_name, &row), encoded(&encoder(CHATML), &row));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mine.jinja");
    let write = |template: &str| fs::write(&path, template).expect("written");
    let open_file = || with_chosen_template(&bare, &path.display().to_string());
    write(CHATML);
    let by_file = Encoder::of(open_file().expect("has the tokens"), "model").expect("compiles");
    assert_eq!(encoded(&by_file, &row), encoded(&by_name, &row));
    for (template, part) in [
        (CHATML.replace("im_end", "eot"), "ends an answer with `<|eot|>`, which is no token of"),
        (CHATML.replace("m.content", "''"), "does not show the assistant's answers"),
        ("{% for %}".to_owned(), "does not compile"),
    ] {
        write(&template);
        let error = open_file().expect_err("refused").to_string();
        assert!(error.contains(part), "{error}");
    }
    // Without an end token of the base, nothing ends an answer of this template.
    let nameless = burnish::text::Tokenizer::from_json(
        &fs::read(fixtures().join("bytelevel/tokenizer.json")).expect("the fixture"),
        "tokenizer.json",
    );
    write("{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}");
    let error =
        with_chosen_template(&nameless.expect("reads"), &path.display().to_string()).expect_err("no end").to_string();
    assert!(error.contains("ends an answer with the end token, and tokenizer.json names none"), "{error}");
}

#[test]
fn texts_rendered_beforehand_can_keep_their_control_tokens() {
    let row = talk();
    let mut encoder = encoder(CHATML);
    let chat = encoded(&encoder, &row);
    let parts = ["user\nIs the door open?", "assistant\nIt is.", "user\nAnd the gate?", "assistant\nShut."];
    let rendered: Vec<String> = parts.iter().map(|part| format!("<|im_start|>{part}<|im_end|>\n")).collect();
    let whole = json!({"text": rendered.concat()});
    assert_ne!(encoded(&encoder, &whole).ids, chat.ids);
    let notices = set(&encoder, &whole).notices;
    assert!(matches!(&notices[..], [one] if one.contains("`data.control_tokens = \"tokens\"`")), "{notices:?}");
    encoder.read_control_tokens(ControlTokens::Tokens);
    let as_tokens = encoded(&encoder, &whole);
    assert_eq!(as_tokens.ids, chat.ids, "no second end");
    assert!(as_tokens.trained.iter().all(|trained| *trained) && set(&encoder, &whole).notices.is_empty());
    let prompt = rendered[..3].concat() + "<|im_start|>assistant\n";
    for (completion, end) in [("Shut.<|im_end|>", "<|im_end|>"), ("Shut.", "<|im_end|>")] {
        let encoded = encoded(&encoder, &json!({"prompt": prompt, "completion": completion}));
        assert_eq!(trained_text(&encoder, &encoded), format!("Shut.{end}"));
        assert_eq!(encoded.ids, chat.ids[..chat.ids.len() - 1], "all but the last line end");
    }
    // What people wrote in a conversation stays text.
    let spelled =
        json!({"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "b"}]});
    let controls = encoded(&encoder, &spelled).ids.iter().filter(|id| **id == 2).count();
    assert_eq!(controls, 2);
}
