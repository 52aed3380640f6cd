//! Embeddings, whole modules, biases and rows of tokens, from the recipe to the merged model: what PEFT wrote is merged as it
//! computes, and a run with each goes on, is evaluated and is merged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burnish::adapter::host::HostAdapter;
use burnish::adapter::merge::{MergeOptions, merge};
use burnish::adapter::peft::SaveOptions;
use burnish::adapter::spec::Bias;
use burnish::export::lora::write_lora;
use burnish::export::mlx::write_mlx;
use burnish::files::safetensors::SafeTensorsFile;
use burnish::model::BaseFiles;
use burnish::model::load::Compute;
use serde_json::Value;

use crate::cli::{json, run, text, tiny_job};
use crate::model::{Expected, largest_difference, load, logits, turn};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The fixtures of PEFT, each with its base and the biases that it trains.
const KINDS: [(&str, &str, Bias); 9] = [
    ("embedding", "models/llama_gqa", Bias::None),
    ("embedding_tied", "models/llama_tied", Bias::None),
    ("saved", "models/llama_gqa", Bias::None),
    ("saved_tied", "models/llama_tied", Bias::None),
    ("saved_neox", "families/gpt_neox_parallel", Bias::None),
    ("bias_lora_only", "models/llama_bias", Bias::LoraOnly),
    ("bias_all", "families/gpt_neox_parallel", Bias::All),
    ("tokens", "models/llama_gqa", Bias::None),
    ("tokens_tied", "models/llama_tied", Bias::None),
];

fn open(name: &str, base: &str) -> (BaseFiles, HostAdapter) {
    let base = BaseFiles::open(&fixture(base)).expect("a base");
    let adapter = HostAdapter::load_over(&fixture("adapters").join(name), &base).expect("PEFT's adapter");
    (base, adapter)
}

#[test]
fn merged_models_compute_what_peft_does() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    for (name, base, _) in KINDS {
        let (base, adapter) = open(name, base);
        let out = folder.path().join(name);
        let report = merge(&base, &adapter, &out, &MergeOptions::default(), |_| Ok(())).expect("merged");
        assert_eq!((report.modules, report.modules_changed > 0), (adapter.modules(), true), "{name}");
        let expected = Expected::read(&fixture("adapters").join(name));
        let found = logits(&load(&out, Compute::F32), &expected.ids(), None);
        let difference = largest_difference(&found, &expected.floats("logits"));
        assert!(difference <= 1e-4, "{name} is off by {difference}");
    }
}

/// Names and values of an adapter's file.
fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafeTensorsFile::open(&folder.join("adapter_model.safetensors")).expect("a file");
    let tensor = |name: &str| file.tensor(name).expect("a tensor");
    file.names().map(|name| (name.to_owned(), (tensor(name).shape, tensor(name).to_f32().expect("floats")))).collect()
}

#[test]
fn what_is_saved_has_the_tensors_of_peft() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, base, bias) in KINDS {
        let (base, adapter) = open(name, base);
        let out = folder.path().join(name);
        let targets: Vec<String> = adapter.pairs.keys().cloned().collect();
        let head = Some(base.config().names.head);
        let options = SaveOptions { targets: &targets, bias, head, ..SaveOptions::default() };
        adapter.save(&out, &options).expect("saved");
        assert_eq!(tensors(&out), tensors(&fixture("adapters").join(name)), "{name}");
        assert_eq!(HostAdapter::load_over(&out, &base).expect("ours"), adapter, "{name}");
    }
}

#[test]
fn low_rank_formats_refuse_the_rest_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    for (name, base, _) in KINDS.into_iter().filter(|(name, ..)| !name.starts_with("embedding")) {
        let (base, adapter) = open(name, base);
        for error in [
            write_lora(base.config(), &adapter, "name", &out).expect_err("refused"),
            write_mlx(base.config(), &adapter, "name", &out).expect_err("refused"),
        ] {
            assert!(error.to_string().contains("is trained in part or as a whole"), "{name}: {error}");
            assert_eq!((error.exit_code(), out.exists()), (2, false));
        }
    }
}

const CHOICES: [(&str, &[&str]); 4] = [
    ("embedding", &["adapter.targets=['q_proj', 'embed_tokens']", "adapter.rank_pattern={ q_proj = 2 }"]),
    ("whole", &["adapter.modules_to_save=['embed_tokens', 'norm', 'input_layernorm', '0.mlp.down_proj']"]),
    ("head", &["adapter.modules_to_save=['lm_head']", "adapter.layers=[1]", "base.quant=nf4"]),
    ("tokens", &["adapter.new_tokens=['<|sum|>', 'and']", "adapter.modules_to_save=['norm']", "base.quant=int8"]),
];

/// A run of six steps that stops after three and goes on, and one that does not stop, end with the same adapter; it is evaluated
/// and merged.
#[test]
fn a_run_with_each_choice_goes_on_and_is_merged() {
    for (name, settings) in CHOICES {
        let folder = tiny_job();
        let set: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let train = |dir: &str, more: &[&str]| {
            let output = format!("output.dir={dir}");
            let fixed = ["train", "recipe.toml", "--set", &output, "--set", "train.schedule=constant"];
            let fixed = [&fixed[..], &["--set", "train.eval_steps=3", "--set", "sample.valid_prompts=0"]].concat();
            let output = run(&folder, &[&fixed[..], &set, more].concat());
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
            text(&output.stderr)
        };
        train("whole", &["--set", "train.max_steps=6"]);
        train("cut", &["--set", "train.max_steps=3"]);
        train("cut", &["--resume", "--set", "train.max_steps=6"]);
        let adapter = |dir: &str| tensors(&folder.path().join(dir));
        assert_eq!(adapter("whole"), adapter("cut"), "{name}");

        let base = crate::cli::tiny_model();
        let base = base.to_str().expect("UTF-8");
        let of = ["--base", base, "--adapter", "whole", "--compute", "f32"];
        let scored = json(&run(&folder, &[&["eval", "--data", "valid.jsonl", "--json"][..], &of].concat()));
        let merged = json(&run(&folder, &[&["merge", "--out", "merged", "--type", "f32", "--json"][..], &of].concat()));
        assert!(merged["agreement"].is_object(), "{name}: {merged}");
        let alone = ["eval", "--data", "valid.jsonl", "--json", "--base", "merged", "--compute", "f32"];
        let again = json(&run(&folder, &alone));
        let loss = |report: &Value| report["loss"].as_f64().expect("a loss");
        assert!((loss(&scored) - loss(&again)).abs() <= 1e-3, "{name}: {scored} {again}");
        let answered = run(&folder, &[&["generate", "--max-tokens", "4", "--prompt", "1 and 2 is "][..], &of].concat());
        assert!(answered.status.success(), "{name}: {}", text(&answered.stderr));
    }
}

/// The tokenizer of an adapter with new tokens has them, and so has the merged model.
#[test]
fn new_tokens_are_saved_and_merged() {
    let folder = tiny_job();
    let rows = std::fs::read_to_string(folder.path().join("train.jsonl")).expect("data");
    std::fs::write(folder.path().join("train.jsonl"), rows.replace(" and ", "<|sum|>")).expect("written");
    let settings = ["--set", "adapter.new_tokens=['<|sum|>']", "--set", "train.max_steps=2"];
    let output = run(&folder, &[&["train", "recipe.toml"][..], &settings].concat());
    let said = text(&output.stderr);
    assert!(
        output.status.success() && said.contains("GGUF-LoRA is ruled out: llama.cpp adds low-rank pairs"),
        "{said}"
    );
    let tokenizer = burnish::text::Tokenizer::from_folder(&folder.path().join("runs/sums")).expect("a tokenizer");
    let id = tokenizer.token_to_id("<|sum|>").expect("the token");
    assert_eq!(tokenizer.encode("1<|sum|>2").expect("ids")[1], id);
    let base = BaseFiles::open(&crate::cli::tiny_model()).expect("a base");
    assert_eq!(id as usize, base.config().vocab_size, "the first id that is free");
    let config: Value = burnish::files::json::read(&folder.path().join("runs/sums/adapter_config.json")).expect("JSON");
    assert_eq!(config["trainable_token_indices"]["model.embed_tokens"], serde_json::json!([id]));
    let merged = |out: &str, more: &[&str]| {
        let base = crate::cli::tiny_model();
        let base = base.to_str().expect("UTF-8");
        let fixed = ["merge", "--base", base, "--adapter", "runs/sums", "--compute", "f32", "--out", out];
        let output = run(&folder, &[&fixed[..], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        BaseFiles::open(&folder.path().join(out)).expect("a model")
    };
    for (out, more) in [("merged", &[][..]), ("merged.gguf", &["--type", "f32"])] {
        let model = merged(out, more);
        assert_eq!(model.config().vocab_size, id as usize + 1, "{out}");
        let tokenizer = burnish::text::Tokenizer::of_base(&model).expect("a tokenizer");
        assert_eq!(tokenizer.token_to_id("<|sum|>"), Some(id), "{out}");
        let row = model.tensor("model.embed_tokens.weight").expect("a tensor").to_f32().expect("floats");
        let width = model.config().hidden_size;
        let name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
        let trained = &tensors(&folder.path().join("runs/sums"))[name].1;
        assert!(largest_difference(&row[row.len() - width..], trained) <= 1e-6, "{out}");
    }
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let folder = tiny_job();
    for (settings, expected) in [
        (&["adapter.modules_to_save=['q_norm']"][..], "`q_norm` is the name of no module"),
        (&["adapter.bias=all"], "is \"all\", and there is no such bias in the base"),
        (&["adapter.new_tokens=['']"], "expected different texts that are not empty"),
        (&["adapter.new_tokens=['a', 'a']"], "expected different texts that are not empty"),
        (&["adapter.targets=['q_proj', 'embed_tokens']", "adapter.new_tokens=['<x>']"], "beside another change"),
        (&["adapter.targets=['embed_tokens']", "adapter.dora=true"], "DoRA is for linear layers"),
        (
            &["adapter.targets=['q_proj']", "adapter.modules_to_save=['self_attn']"],
            "`self_attn` is the name of no module",
        ),
    ] {
        let set: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let error = crate::cli::refused(&run(&folder, &[&["check", "recipe.toml"][..], &set].concat()));
        assert!(error.contains(expected), "{settings:?}: {error}");
    }
}
