//! Adapters as they are opened for a base: folders that hold none, tokenizers of their own, entries without effect.

use std::path::{Path, PathBuf};

use burnish::adapter::host::HostAdapter;
use burnish::adapter::peft::AdapterHeader;
use burnish::inspect::{Inspection, inspect};
use burnish::run::{OpenAdapter, OpenBase};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cli::{json as json_of, refused, run, text, tiny_model};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Copies an adapter that PEFT wrote, with some keys of its configuration set.
fn copy_of(name: &str, folder: &Path, keys: &Value) {
    let from = fixture("adapters").join(name);
    std::fs::create_dir_all(folder).expect("made");
    std::fs::copy(from.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors")).expect("copied");
    let config = std::fs::read_to_string(from.join("adapter_config.json")).expect("a configuration");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    for (key, value) in keys.as_object().expect("an object") {
        config[key] = value.clone();
    }
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("written");
}

/// Writes an adapter of rank 1 on the query projections of the tiny model; every value of B is `b`.
fn tiny_adapter(folder: &Path, b: f32) {
    let base = burnish::model::BaseFiles::open(&tiny_model()).expect("a base");
    let modules = (0..base.config().layers).map(|layer| format!("model.layers.{layer}.self_attn.q_proj"));
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = modules
        .flat_map(|module| {
            let shape = base.shape(&format!("{module}.weight")).expect("a projection").to_vec();
            let factor = |name: &str, shape: [usize; 2], value: f32| {
                let bytes = value.to_le_bytes().repeat(shape[0] * shape[1]);
                (format!("base_model.model.{module}.{name}.weight"), shape.to_vec(), bytes)
            };
            [factor("lora_A", [1, shape[1]], 0.5), factor("lora_B", [shape[0], 1], b)]
        })
        .collect();
    std::fs::create_dir_all(folder).expect("made");
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"],
        "base_model_name_or_path": "org/tiny"});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("written");
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"))
    });
    serialize_to_file(views, None, &folder.join("adapter_model.safetensors")).expect("written");
}

fn open_base(path: &Path) -> OpenBase {
    OpenBase::open(path.to_str().expect("UTF-8"), &mut |_| {}).expect("a base")
}

fn notices(folder: &Path, base: &Path) -> Vec<String> {
    OpenAdapter::open(folder, &mut open_base(base), false).expect("an adapter").notices
}

/// The remarks on the adapter `name` with these keys set.
fn notices_with(name: &str, keys: &Value) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    copy_of(name, folder.path(), keys);
    header_notices(folder.path()).join("\n")
}

/// The remarks on an adapter of the model `llama_gqa`.
fn header_notices(folder: &Path) -> Vec<String> {
    let base = burnish::model::BaseFiles::open(&fixture("models/llama_gqa")).expect("a base");
    let header = AdapterHeader::read_over(folder, &base).expect("an adapter");
    header.notices(Some(base.config())).expect("patterns that match")
}

/// PEFT passes over all of these in silence, so the scales are as without them.
#[test]
fn entries_that_match_nothing_are_named() {
    assert_eq!(notices_with("qv", &json!({})), "");
    assert_eq!(notices_with("patterns", &json!({})), "");
    // PEFT's defaults are nobody's mistake.
    assert_eq!(notices_with("qv", &json!({"target_modules": null})), "");
    for (keys, expected) in [
        (json!({"alpha_pattern": {"^v_proj": 64}}), "`alpha_pattern`: `^v_proj` matches no adapted module"),
        (json!({"rank_pattern": {"k_proj": 9}}), "`rank_pattern`: `k_proj` matches no adapted module"),
        (
            json!({"alpha_pattern": {"v_proj": 8, "layers.0.self_attn.v_proj": 2}}),
            "`layers.0.self_attn.v_proj` has no effect: an earlier key matches the same modules first",
        ),
        (json!({"target_modules": ["q_proj", "v_proj", "query"]}), "`target_modules`: `query` matches no module"),
        (json!({"exclude_modules": ["vision"]}), "`exclude_modules`: `vision` matches no module"),
        (json!({"exclude_modules": ".*vision.*"}), "`exclude_modules`: `.*vision.*` matches no module"),
        (json!({"layers_to_transform": [0, 1, 7]}), "`layers_to_transform`: layer 7 holds no adapted module"),
    ] {
        let found = notices_with("qv", &keys);
        assert!(found.contains(expected) && found.lines().count() == 1, "{keys}: {found}");
        assert!(found.starts_with("adapter_config.json: "), "{found}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    copy_of(
        "qv",
        folder.path(),
        &json!({"alpha_pattern": {"^v_proj": 64, "k_proj": 1}, "exclude_modules": ["k_proj"]}),
    );
    let long = |index: usize| (format!("x{index}{}", "y".repeat(200)), json!(1));
    let many: serde_json::Map<String, Value> = (0..30).map(long).collect();
    let told = notices_with("qv", &json!({"alpha_pattern": many}));
    assert!(told.lines().count() == 21 && told.ends_with("and 10 more entries without effect"), "{told}");
    assert!(told.lines().all(|line| line.chars().count() < 200), "{told}");
    let found = HostAdapter::load(folder.path()).expect("an adapter");
    assert_eq!(found.pairs, HostAdapter::load(&fixture("adapters/qv")).expect("an adapter").pairs);
    let Inspection::Adapter(adapter) = inspect(folder.path()).expect("an adapter") else { panic!("an adapter") };
    assert_eq!(adapter.notices.len(), 2, "{:?}", adapter.notices);
    // As PEFT wrote them: full paths of modules that are excluded are no mistake.
    for (name, expected) in [("all_linear", 0), ("layers", 0), ("unmatched", 3)] {
        let found = header_notices(&fixture("adapters").join(name));
        assert_eq!(found.len(), expected, "{name}: {found:?}");
    }
}

#[test]
fn every_command_says_that_an_adapter_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = tiny_model();
    let base = base.to_str().expect("UTF-8");
    std::fs::write(folder.path().join("rows.jsonl"), "{\"prompt\": \"1 and 2 is \", \"completion\": \"3\"}\n")
        .expect("rows");
    for (name, b) in [("zero", 0.0), ("minus-zero", -0.0), ("usual", 0.25)] {
        tiny_adapter(&folder.path().join(name), b);
        let merged = format!("merged-{name}");
        for arguments in [
            &["inspect", name][..],
            &["eval", "--base", base, "--adapter", name, "--data", "rows.jsonl"],
            &["generate", "--base", base, "--adapter", name, "--raw", "--prompt", "1 and", "--max-tokens", "2"],
            &["merge", "--base", base, "--adapter", name, "--out", &merged],
        ] {
            let output = run(&folder, arguments);
            assert!(output.status.success(), "{}", text(&output.stderr));
            let said = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(said.contains("changes nothing"), name != "usual", "{arguments:?}: {said}");
        }
    }
}

/// The tiny model as a folder, with the tokenizer's files in it.
fn folder_base(folder: &TempDir) -> PathBuf {
    tiny_adapter(&folder.path().join("for-base"), 0.0);
    let base = tiny_model();
    let arguments = ["merge", "--base", base.to_str().expect("UTF-8"), "--adapter", "for-base", "--out", "base"];
    assert!(run(folder, &arguments).status.success());
    folder.path().join("base")
}

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant: {% endif %}";

#[test]
fn an_adapter_is_used_with_the_chat_template_that_it_was_trained_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder_base(&folder);
    let gguf = tiny_model();
    let rows = json!({"messages": [{"role": "user", "content": "1 and 2"}, {"role": "assistant", "content": "3"}]});
    std::fs::write(folder.path().join("rows.jsonl"), format!("{rows}\n")).expect("rows");
    for name in ["own", "same", "none", "lone", "lone-config"] {
        tiny_adapter(&folder.path().join(name), 0.25);
    }
    let tokenizer = open_base(&base).encoder.tokenizer().clone();
    for name in ["own", "same"] {
        tokenizer.save(&folder.path().join(name)).expect("saved");
    }
    std::fs::write(folder.path().join("own/chat_template.jinja"), TEMPLATE).expect("written");
    std::fs::write(folder.path().join("lone/chat_template.jinja"), TEMPLATE).expect("written");
    let config = json!({"chat_template": TEMPLATE}).to_string();
    std::fs::write(folder.path().join("lone-config/tokenizer_config.json"), config).expect("written");
    // The base with that template of its own: what the adapter's loss has to be.
    let expected_base = folder.path().join("expected");
    std::fs::create_dir(&expected_base).expect("made");
    for entry in std::fs::read_dir(&base).expect("listed") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), expected_base.join(entry.file_name())).expect("copied");
    }
    std::fs::write(expected_base.join("chat_template.jinja"), TEMPLATE).expect("written");
    // Line ends are no difference: templates are rendered with plain ones.
    for name in ["crlf", "crlf-lone"] {
        let adapter = folder.path().join(name);
        tiny_adapter(&adapter, 0.25);
        if name == "crlf" {
            tokenizer.save(&adapter).expect("saved");
        }
        std::fs::write(adapter.join("chat_template.jinja"), TEMPLATE.replace('\n', "\r\n")).expect("written");
        assert_eq!(notices(&adapter, &expected_base), [""; 0], "{name}");
    }

    let eval = |base: &Path, adapter: &str| {
        let base = base.to_str().expect("UTF-8");
        let arguments =
            ["eval", "--base", base, "--adapter", adapter, "--data", "rows.jsonl", "--json", "--compute", "f32"];
        let output = run(&folder, &arguments);
        let report = json_of(&output);
        ((report["tokens"].as_u64(), report["loss"].as_f64()), text(&output.stderr))
    };
    let (plain, said) = eval(&base, "none");
    assert!(!said.contains("template"), "{said}");
    let (own, said) = eval(&base, "own");
    assert!(said.contains("own: its chat template differs from the base's"), "{said}");
    assert_eq!(own, eval(&expected_base, "none").0);
    assert_ne!(own, plain);
    let of_gguf = eval(&gguf, "own").0;
    assert!(
        of_gguf.0 == own.0 && (of_gguf.1.unwrap_or(0.0) - own.1.unwrap_or(9.0)).abs() < 1e-2,
        "{of_gguf:?}, {own:?}"
    );
    for base in [&base, &gguf] {
        let (same, said) = eval(base, "same");
        assert_eq!((same.0, said.contains("template")), (plain.0, false), "{said}");
    }
    for name in ["lone", "lone-config"] {
        let (lone, said) = eval(&base, name);
        assert!(lone == own && said.contains(": its chat template differs from the base's"), "{said}");
    }

    let base = base.to_str().expect("UTF-8");
    let output = run(&folder, &["merge", "--base", base, "--adapter", "own", "--out", "merged"]);
    assert!(text(&output.stderr).contains("chat template differs from the base's"), "{}", text(&output.stderr));
    let output = run(&folder, &["eval", "--base", "merged", "--data", "rows.jsonl", "--json", "--compute", "f32"]);
    let merged = json_of(&output);
    assert_eq!(merged["tokens"].as_u64(), own.0);
    assert!((merged["loss"].as_f64().unwrap_or(9.0) - own.1.unwrap_or(0.0)).abs() < 1e-4, "{merged}, {own:?}");
}

#[test]
fn a_tokenizer_with_other_tokens_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder_base(&folder);
    let adapter = folder.path().join("adapter");
    tiny_adapter(&adapter, 0.25);
    open_base(&base).encoder.tokenizer().save(&adapter).expect("saved");
    assert!(notices(&adapter, &base).is_empty());
    let path = adapter.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("a file")).expect("JSON");
    config["eos_token"] = json!("<|im_start|>");
    std::fs::write(&path, config.to_string()).expect("written");
    let found = notices(&adapter, &base);
    assert!(
        found.len() == 1 && found[0].contains("its tokenizer differs (in its special tokens) from the base's"),
        "{found:?}"
    );
    std::fs::write(adapter.join("tokenizer.json"), "{}").expect("written");
    let error = OpenAdapter::open(&adapter, &mut open_base(&base), false).expect_err("a broken tokenizer");
    assert!(error.exit_code() == 2 && error.to_string().contains("adapter/tokenizer.json"), "{error}");
}

#[test]
fn folders_without_an_adapter_name_what_lies_in_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let make = |path: &str, files: &[&str]| {
        std::fs::create_dir_all(folder.path().join(path)).expect("made");
        files.iter().for_each(|file| std::fs::write(folder.path().join(path).join(file), "{}").expect("written"));
    };
    for step in [100, 20, 3] {
        copy_of("qv", &folder.path().join(format!("trl/checkpoint-{step}")), &json!({}));
    }
    make("trl/runs", &["events"]);
    copy_of("qv", &folder.path().join("axolotl/lora-out/checkpoint-60"), &json!({}));
    copy_of("qv", &folder.path().join("peft/default"), &json!({}));
    make("full/checkpoint-5", &["config.json"]);
    make("ours", &["run.json", "recipe.toml", "metrics.jsonl"]);
    make("mlx", &["adapter_config.json", "adapters.safetensors"]);
    make("model", &["config.json"]);
    for (path, expected) in [
        ("trl", "trl: holds no adapter itself, but in `checkpoint-3`, `checkpoint-20`, `checkpoint-100`"),
        ("trl", "trl/checkpoint-100`"),
        ("axolotl", "`lora-out/checkpoint-60`"),
        ("peft", "`default`"),
        ("full", "models are in `checkpoint-5`"),
        ("ours", "is the folder of a run that saved no adapter"),
        ("mlx", "`lora_parameters` is missing"),
        ("model", "it is a model"),
        ("absent", "absent: does not exist; expected an adapter's folder"),
        ("trl/checkpoint-3/adapter_config.json", "is a file; expected an adapter's folder"),
    ] {
        let error = HostAdapter::load(&folder.path().join(path)).expect_err("no adapter");
        assert!(error.exit_code() == 2 && error.to_string().contains(expected), "{path}: {error}");
    }
    HostAdapter::load(&folder.path().join("trl/checkpoint-20")).expect("a checkpoint is an adapter");
    for (path, expected) in [
        ("trl", "trl: holds no model; adapters are in `checkpoint-3`, `checkpoint-20`, `checkpoint-100`"),
        ("trl", "trl/checkpoint-100`, as the adapter"),
        ("full", "full: holds no model itself, but in `checkpoint-5`"),
        ("full", "name one of them, as `"),
        ("peft/default", "is an adapter, not a base model"),
    ] {
        let error = burnish::model::BaseFiles::open(&folder.path().join(path)).expect_err("no model");
        assert!(error.exit_code() == 2 && error.to_string().contains(expected), "{path}: {error}");
    }
    let stderr = refused(&run(&folder, &["inspect", "trl"]));
    assert!(stderr.contains("checkpoint-20"), "{stderr}");
}

#[test]
fn another_base_is_refused_with_the_name_of_the_one_trained_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let adapter = folder.path().join("adapter");
    tiny_adapter(&adapter, 0.25);
    let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    let metadata = [("burnish.base_sha256".to_owned(), "ab".repeat(32))].into();
    serialize_to_file(file.iter(), Some(metadata), &adapter.join("adapter_model.safetensors")).expect("written");
    let base = tiny_model();
    let error = OpenAdapter::open(&adapter, &mut open_base(&base), false).expect_err("another base").to_string();
    for expected in ["adapter: was trained on another base, `org/tiny`", "abababababab…", "--force"] {
        assert!(error.contains(expected), "{error}");
    }
    OpenAdapter::open(&adapter, &mut open_base(&base), true).expect("forced");
}

#[test]
fn a_folder_does_not_get_the_name_of_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    tiny_adapter(&folder.path().join("adapter"), 0.25);
    let base = tiny_model();
    let base = base.to_str().expect("UTF-8");
    for (arguments, hint) in [
        (
            &["merge", "--base", base, "--adapter", "adapter", "--out", "out/m.safetensors"][..],
            "name a folder, as `out/m`",
        ),
        (&["quantize", "--base", base, "--out", "m.safetensors"], "name a folder, as `m`"),
    ] {
        let stderr = refused(&run(&folder, arguments));
        assert!(stderr.contains("is the name of a .") && stderr.contains(hint), "{stderr}");
    }
    assert!(!folder.path().join("out").exists() && !folder.path().join("m.safetensors").exists());
}
