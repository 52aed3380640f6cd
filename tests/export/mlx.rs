//! mlx-lm's own format: adapters that it wrote are read, and ours have the same update under its names.

use burnish::adapter::host::{HostAdapter, HostPair};
use burnish::export::mlx::write_mlx;
use burnish::files::safetensors::SafeTensorsFile;
use burnish::model::BaseFiles;
use burnish::model::load::Compute;
use serde_json::{Value, json};

use super::{fixture, message, temporary};
use crate::model::{Expected, largest_difference, load, logits};

/// `scale · B · A`, `[output, input]`.
fn change(pair: &HostPair) -> Vec<f32> {
    let of_row = |b: &[f32], column: usize| {
        pair.scale * b.iter().zip(pair.a.iter().skip(column).step_by(pair.input)).map(|(b, a)| b * a).sum::<f32>()
    };
    let rows = pair.b.chunks(pair.rank);
    rows.flat_map(|b| (0..pair.input).map(move |column| of_row(b, column)).collect::<Vec<_>>()).collect()
}

fn settings(folder: &std::path::Path) -> Value {
    let text = std::fs::read(folder.join("adapter_config.json")).expect("a file");
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn a_folder_for_mlx_has_the_same_update() {
    let folder = temporary();
    let llama = |name: &str| (fixture("models/llama_gqa"), fixture("adapters").join(name));
    let neox = |name: &str| (fixture("families/gpt_neox_parallel"), fixture("adapters").join(name));
    let family = |name: &str| (fixture("families").join(name), fixture("families").join(name).join("adapter"));
    let seven =
        ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj"];
    let with_head = seven.into_iter().chain(["self_attn.v_proj", "lm_head"]);
    let cases = [
        (llama("qv"), json!(["self_attn.q_proj", "self_attn.v_proj"]), 2),
        (llama("seven_and_head"), with_head.collect(), 2),
        (llama("regex"), json!(["self_attn.o_proj", "self_attn.q_proj"]), 1),
        (llama("patterns"), seven.into_iter().chain(["self_attn.v_proj"]).collect(), 2),
        (
            llama("layers"),
            json!(["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"]),
            2,
        ),
        (llama("embedding"), json!(["self_attn.q_proj", "model.embed_tokens"]), 2),
        (neox("neox_layers"), json!(["attention.dense", "attention.query_key_value", "model.embed_out"]), 1),
        (
            family("phi3_longrope"),
            json!(["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"]),
            2,
        ),
    ];
    for (number, ((base, peft), keys, layers)) in cases.into_iter().enumerate() {
        let base = BaseFiles::open(&base).expect("a base");
        let adapter = HostAdapter::load_over(&peft, &base).expect("an adapter");
        let out = folder.path().join(number.to_string());
        let report = write_mlx(base.config(), &adapter, "org/name", &out).expect("written");
        assert_eq!((report.modules, report.tensors), (adapter.pairs.len(), 2 * adapter.pairs.len()));
        let config = settings(&out);
        assert_eq!((&config["lora_parameters"]["keys"], &config["num_layers"]), (&keys, &json!(layers)), "{peft:?}");
        assert_eq!(config["model"], json!("org/name"));
        let again = HostAdapter::load_over(&out, &base).expect("read back under the base's names");
        assert!(again.pairs.keys().eq(adapter.pairs.keys()), "{peft:?}");
        for (module, pair) in &adapter.pairs {
            let difference = largest_difference(&change(pair), &change(&again.pairs[module]));
            assert!(difference <= 1e-6, "{module} is off by {difference}");
        }
    }
    let file = SafeTensorsFile::open(&folder.path().join("6/adapters.safetensors")).expect("a file");
    assert!(
        file.names().any(|name| name == "model.h.1.attention.dense.lora_a"),
        "{:?}",
        file.names().collect::<Vec<_>>()
    );
}

/// The adapters that mlx-lm saved (tests/reference/make_mlx.py), with the logits that it computes.
#[test]
fn adapters_of_mlx_are_read() {
    for (base, name) in [
        ("models/llama_gqa", "llama"),
        ("models/llama_gqa", "llama_head"),
        ("models/llama_gqa", "llama_embedding"),
        ("models/llama_gqa", "llama_dora"),
        ("families/gpt_neox_parallel", "gpt_neox"),
        ("families/qwen3_grouped", "qwen3"),
    ] {
        let folder = fixture("mlx").join(name);
        let files = BaseFiles::open(&fixture(base)).expect("a base");
        let adapter = HostAdapter::load_over(&folder, &files).expect("mlx-lm's adapter");
        let expected = Expected::read(&folder);
        let decoder = load(&fixture(base), Compute::F32);
        let attached = adapter.attach(decoder.config(), decoder.device()).expect("attached");
        let found = logits(&decoder, &expected.ids(), Some(&attached));
        let difference = largest_difference(&found, &expected.floats("logits"));
        // For GPT-NeoX mlx-lm takes the approximation of GELU by a tanh, where transformers takes GELU.
        let tolerance = if name == "gpt_neox" { 5e-3 } else { 1e-3 };
        assert!(difference <= tolerance, "{name} is off by {difference}");
    }
}

#[test]
fn what_mlx_cannot_take_is_refused() {
    let folder = temporary();
    let out = folder.path().join("out");
    for (base, adapter, expected) in [
        ("families/granite4_grouped", "families/granite4_grouped/adapter", "mlx-lm cuts apart"),
        ("models/llama_tied", "adapters/embedding_tied", "shares its matrix with the head"),
        ("models/llama_gqa", "adapters/seven", "exists"),
    ] {
        let base = BaseFiles::open(&fixture(base)).expect("a base");
        let adapter = HostAdapter::load_over(&fixture(adapter), &base).expect("an adapter");
        if expected == "exists" {
            std::fs::create_dir(&out).expect("made");
        }
        let error = message(&write_mlx(base.config(), &adapter, "name", &out).expect_err("refused"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_is_no_adapter_of_mlx_is_named() {
    let folder = temporary();
    let copy = |change: &dyn Fn(&mut Value)| {
        let dir = tempfile::tempdir_in(folder.path()).expect("a folder").keep();
        let from = fixture("mlx/llama");
        std::fs::copy(from.join("adapters.safetensors"), dir.join("adapters.safetensors")).expect("copied");
        let mut config = settings(&from);
        change(&mut config);
        std::fs::write(dir.join("adapter_config.json"), config.to_string()).expect("written");
        HostAdapter::load(&dir)
    };
    copy(&|_| {}).expect("as it is");
    for (change, expected) in [
        (&(|config: &mut Value| config["fine_tune_type"] = json!("full")) as &dyn Fn(&mut Value), "is \"full\""),
        (&|config: &mut Value| config["lora_parameters"]["rank"] = json!(3), "for the rank in adapter_config.json"),
        (&|config: &mut Value| config["lora_parameters"] = json!({ "rank": 0 }), "`scale` is missing"),
        (&|config: &mut Value| config["lora_parameters"] = json!(null), "`lora_parameters` is missing"),
    ] {
        let error = message(&copy(change).expect_err("refused"));
        assert!(error.contains(expected), "{error}");
    }
}
