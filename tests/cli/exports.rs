//! The commands that write for other programs: what they make, and what they refuse.

use std::fs;

use tempfile::TempDir;

use super::{json, refused, run, text, tiny_job, tiny_model};

/// A job whose adapter is trained.
fn trained() -> TempDir {
    let folder = tiny_job();
    let output = run(&folder, &["train", "recipe.toml", "--set", "train.max_steps=2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    folder
}

#[test]
fn a_trained_adapter_goes_to_llama_cpp_and_ollama() {
    let folder = trained();
    let base = tiny_model().display().to_string();
    let model = ["--base", &base, "--adapter", "runs/sums"];
    let with = |command: &str, rest: &[&str]| run(&folder, &[&[command][..], &model, rest].concat());
    let exists = |name: &str| folder.path().join(name).exists();

    // The ending of the name says what is meant.
    let merged = json(&with("merge", &["--out", "m.gguf", "--type", "q8_0", "--json"]));
    assert_eq!((&merged["files"][0], &merged["modules"]), (&"m.gguf".into(), &6.into()), "{merged}");
    assert!(folder.path().join("m.gguf").is_file());
    let inspected = json(&run(&folder, &["inspect", "m.gguf", "--json"]));
    assert_eq!(inspected["format"], "gguf");
    let answer = run(&folder, &["generate", "--base", "m.gguf", "--prompt", "1 + 1 =", "--max-tokens", "3"]);
    assert!(answer.status.success(), "{}", text(&answer.stderr));

    let lora = text(&with("export", &["--format", "gguf-lora", "--out", "lora.gguf"]).stdout);
    assert!(lora.contains("12 tensors") && lora.contains("6 modules"), "{lora}");
    let ollama = text(&with("merge", &["--format", "ollama", "--out", "ollama"]).stdout);
    assert!(ollama.contains("read back and compared"), "{ollama}");
    let modelfile = fs::read_to_string(folder.path().join("ollama/Modelfile")).expect("a Modelfile");
    assert!(modelfile.starts_with("FROM ./model.gguf\n") && modelfile.contains("<|im_start|>user"), "{modelfile}");
    assert!(modelfile.contains("PARAMETER stop \"<|im_end|>\""), "{modelfile}");

    let split = json(&with("export", &["--format", "gguf", "--split-size", "40kB", "--out", "s.gguf", "--json"]));
    let first = split["files"][0].as_str().expect("a name");
    assert!(first.starts_with("s-00001-of-") && exists(first) && !exists("s.gguf"), "{split}");

    for (command, arguments, expected) in [
        ("merge", &["--out", "m.gguf"][..], "m.gguf: exists already"),
        ("export", &["--format", "gguf", "--out", "m.gguf"], "m.gguf: exists already"),
        ("export", &["--format", "gguf-lora", "--out", "lora.gguf"], "lora.gguf: exists already"),
        ("merge", &["--format", "ollama", "--out", "ollama"], "ollama: exists already"),
        ("merge", &["--out", "hf", "--type", "q8_0"], "a Hugging Face folder takes f32, f16 or bf16"),
        ("merge", &["--out", "hf", "--split-size", "1GB"], "--max-shard-bytes"),
        ("merge", &["--out", "n.gguf", "--max-shard-bytes", "1GB"], "`--split-size` splits a GGUF file"),
        ("merge", &["--format", "hf", "--out", "other.gguf"], "is the name of a .gguf file"),
        ("merge", &["--out", "n.gguf", "--compare", "--data", "train.jsonl"], "measures Hugging Face folders"),
        ("export", &["--format", "ollama", "--out", "o", "--split-size", "1GB"], "names one file"),
        ("export", &["--format", "gguf-lora", "--out", "l.gguf", "--type", "f16"], "one small file of weights in f32"),
    ] {
        let said = refused(&with(command, arguments));
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let said = refused(&run(&folder, &["export", "--base", &base, "--format", "gguf-lora", "--out", "l.gguf"]));
    assert!(said.contains("--adapter") && said.contains("is missing"), "{said}");
    for name in ["hf", "other.gguf", "n.gguf", "o", "l.gguf"] {
        assert!(!exists(name), "{name}");
    }
}
