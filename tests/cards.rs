//! The model card of a run, and what its adapter says about where it came from.

use std::fs;

use burnish::adapter::host::HostAdapter;
use burnish::files::hex::sha256_of_file;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{run, text, tiny_job, tiny_model};

/// Trains the tiny job with further arguments, and returns its card.
fn trained(folder: &TempDir, more: &[&str]) -> String {
    let output = run(folder, &[&["train", "recipe.toml"][..], more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::read_to_string(folder.path().join("runs/sums/README.md")).expect("a card")
}

fn record(folder: &TempDir) -> Value {
    serde_json::from_slice(&fs::read(folder.path().join("runs/sums/run.json")).expect("run.json")).expect("JSON")
}

fn metadata(folder: &TempDir) -> std::collections::BTreeMap<String, String> {
    HostAdapter::load(&folder.path().join("runs/sums")).expect("an adapter").metadata
}

#[test]
fn a_card_describes_the_run_and_keeps_its_secrets() {
    let folder = tiny_job();
    let card = trained(&folder, &[]);
    let head = "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- burnish\n- lora\n- transformers\n---\n\n# sums\n";
    assert!(card.starts_with(head), "no name on the hub, no licence: neither is claimed: {card}");
    let record = record(&folder);
    let hash = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).expect("a hash").to_owned();
    assert_eq!(hash("/data/train_sha256"), sha256_of_file(&folder.path().join("train.jsonl")).expect("read"));
    for pointer in [
        "/base/sha256",
        "/data/train_sha256",
        "/data/valid_sha256",
        "/provenance/burnish.template_sha256",
        "/provenance/burnish.tokenizer_sha256",
        "/build",
    ] {
        assert!(card.contains(&hash(pointer)), "{pointer} in {card}");
    }
    let validation = &record["outcome"]["validation"];
    let (low, high) = (validation["low"].as_f64().expect("low"), validation["high"].as_f64().expect("high"));
    let verdict = format!("| {low:+.4} to {high:+.4} | {} |", validation["verdict"].as_str().expect("a verdict"));
    assert!(card.contains(&verdict), "{verdict} in {card}");
    for consumer in ["transformers and PEFT", "burnish", "llama.cpp"] {
        assert!(card.contains(&format!("### {consumer}\n")), "{card}");
    }
    // The prompts are bare, and Ollama's file has a template.
    assert!(!card.contains("Ollama") && card.contains("without a chat template"), "{card}");
    let secrets =
        [folder.path().display().to_string(), tiny_model().display().to_string(), "and 2 is".into(), "jsonl".into()];
    for secret in &secrets {
        assert!(!card.contains(secret), "{secret} in {card}");
    }
}

#[test]
fn the_files_with_texts_and_paths_are_left_out_of_uploads() {
    let folder = tiny_job();
    trained(&folder, &["--set", "train.checkpoint_steps=5"]);
    let run_folder = folder.path().join("runs/sums");
    let ignored = fs::read_to_string(run_folder.join(".gitignore")).expect("the list");
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim_end_matches('/')).collect();
    let mut published: Vec<String> = fs::read_dir(&run_folder)
        .expect("the run")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| !ignored.contains(&name.as_str()))
        .collect();
    published.sort();
    let expected = [
        ".gitignore",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(published, expected);
}

#[test]
fn the_adapter_carries_its_provenance_and_its_verdict() {
    let folder = tiny_job();
    trained(&folder, &["--set", "base.quant=nf4"]);
    let (metadata, record) = (metadata(&folder), record(&folder));
    for key in [
        "base_sha256",
        "quantiser_sha256",
        "tokenizer_sha256",
        "template_sha256",
        "data_sha256",
        "valid_sha256",
        "build",
    ] {
        let value = metadata.get(&format!("burnish.{key}")).unwrap_or_else(|| panic!("{key} in {metadata:?}"));
        assert!(
            value.len() == 64 && record["provenance"][format!("burnish.{key}")] == Value::String(value.clone()),
            "{key}: {value}"
        );
    }
    assert_eq!(metadata["burnish.seed"], "0");
    let verdict: Value = serde_json::from_str(&metadata["burnish.verdict"]).expect("JSON");
    assert_eq!(verdict["validation"], record["outcome"]["validation"]);
    assert!(verdict["validation"]["low"].is_f64() && verdict.get("test").is_none());
    let other = tiny_job();
    let test = "{\"prompt\": \"9 and 9 is \", \"completion\": \"18\"}\n".repeat(12);
    fs::write(other.path().join("test.jsonl"), test).expect("written");
    trained(&other, &["--set", "base.quant=int8", "--set", "data.test=test.jsonl"]);
    let quantiser = "burnish.quantiser_sha256";
    let of_other = HostAdapter::load(&other.path().join("runs/sums")).expect("an adapter").metadata;
    assert_ne!(metadata[quantiser], of_other[quantiser]);
    let verdict: Value = serde_json::from_str(&of_other["burnish.verdict"]).expect("JSON");
    assert!(verdict["validation"].is_object() && verdict["test"].is_object(), "{verdict}");
}

#[test]
fn a_card_names_only_the_consumers_that_can_take_the_adapter() {
    let folder = tiny_job();
    // The head is tied: llama.cpp has no tensor for the change of it alone.
    let rows =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"1\"}, {\"role\": \"assistant\", \"content\": \"2\"}]}\n"
            .repeat(3);
    fs::write(folder.path().join("train.jsonl"), rows).expect("written");
    let card = trained(&folder, &["--set", "adapter.targets=[\"lm_head\"]", "--set", "base.quant=nf4-double"]);
    assert!(card.contains("--format gguf --type") && !card.contains("gguf-lora"), "{card}");
    assert!(card.contains("### Ollama") && card.contains("apply_chat_template"), "{card}");
    assert!(card.contains("bnb_4bit_use_double_quant=True") && card.contains("quantization_config=packed"), "{card}");
}

#[test]
fn a_base_from_the_hub_is_named_by_its_repository() {
    let folder = tiny_job();
    // A snapshot in the hub's cache, as Python leaves it.
    let snapshot = folder.path().join("hf/hub/models--some--small-model/snapshots").join("0".repeat(40));
    fs::create_dir_all(&snapshot).expect("a folder");
    fs::copy(tiny_model(), snapshot.join("m.gguf")).expect("copied");
    let refs = snapshot.ancestors().nth(2).expect("the repository").join("refs");
    fs::create_dir_all(&refs).expect("a folder");
    fs::write(refs.join("main"), "0".repeat(40)).expect("written");
    let card = trained(&folder, &["--set", "base.model=hf:some/small-model/m.gguf"]);
    let head = "---\nbase_model: \"some/small-model\"\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n\
                - \"base_model:adapter:some/small-model\"\n- burnish\n";
    assert!(card.starts_with(head), "{card}");
    assert!(
        card.contains("--base hf:some/small-model/m.gguf ") && card.contains("from_pretrained(\"some/small-model\")"),
        "{card}"
    );
}
