//! Merging: the folder holds `W + scale * B * A`, everything else as it was, and nothing where it fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burnish::adapter::host::{HostAdapter, HostPair, provenance};
use burnish::adapter::merge::{MergeOptions, MergeReport, merge};
use burnish::files::FloatType;
use burnish::model::BaseFiles;
use burnish::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn base(name: &str) -> BaseFiles {
    BaseFiles::open(&fixture("models").join(name)).expect("a base")
}

fn adapter(name: &str) -> HostAdapter {
    HostAdapter::load(&fixture("adapters").join(name)).expect("an adapter")
}

fn no_tokenizer(_: &Path) -> Result<()> {
    Ok(())
}

/// Merges into `folder/merged`.
fn merged(folder: &Path, base: &BaseFiles, adapter: &HostAdapter, options: MergeOptions) -> Result<MergeReport> {
    merge(base, adapter, &folder.join("merged"), &options, no_tokenizer)
}

/// Every tensor of all safetensors files of a folder, as the safetensors crate reads them.
fn tensors(folder: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let is_weights = path.extension().is_some_and(|extension| extension == "safetensors");
        if is_weights && path.file_name().is_some_and(|name| name != "expected.safetensors") {
            let bytes = std::fs::read(&path).expect("a file");
            let file = SafeTensors::deserialize(&bytes).expect("valid");
            let views = file.iter();
            all.extend(
                views
                    .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))),
            );
        }
    }
    all
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
}

/// `W + scale * B * A` value by value in f64.
fn sum(weight: &[f32], pair: &HostPair) -> Vec<f64> {
    let mut values: Vec<f64> = weight.iter().copied().map(f64::from).collect();
    for row in 0..pair.output {
        for column in 0..pair.input {
            for k in 0..pair.rank {
                values[row * pair.input + column] += f64::from(pair.scale)
                    * f64::from(pair.b[row * pair.rank + k])
                    * f64::from(pair.a[k * pair.input + column]);
            }
        }
    }
    values
}

fn assert_close(found: &[f32], expected: &[f64], name: &str) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 2e-6 * (1.0 + expected.abs()), "{name}: {found} for {expected}");
    }
}

fn nothing_is_left(folder: &Path) {
    let left: Vec<_> = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one").path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn changed_modules_hold_the_sum_and_all_others_their_bytes() {
    for (model, name) in [
        ("llama_gqa", "seven"),
        ("llama_gqa", "seven_and_head"),
        ("llama_gqa", "patterns"),
        ("llama_odd", "odd"),
        ("llama_gqa", "rslora"),
        ("llama_bias", "biases"),
        ("qwen2", "qwen2"),
        ("llama_gqa", "regex"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, adapter) = (base(model), adapter(name));
        let report = merged(folder.path(), &base, &adapter, MergeOptions::default()).expect("merged");
        let (before, after) = (tensors(base.path()), tensors(&folder.path().join("merged")));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        let mut changed = 0;
        for (name, (dtype, shape, bytes)) in &before {
            let (found_dtype, found_shape, found) = &after[name];
            assert_eq!((dtype, shape), (found_dtype, found_shape));
            match adapter.pairs.get(name.trim_end_matches(".weight")) {
                Some(pair) => assert_close(&f32s(found), &sum(&f32s(bytes), pair), name),
                None => assert!(bytes == found, "{name} has changed"),
            }
            changed += usize::from(bytes != found);
        }
        assert_eq!(
            (changed, report.modules_changed, report.modules),
            (adapter.pairs.len(), changed, changed),
            "{name}"
        );
        assert_eq!((report.tensors, report.tensors_compared), (before.len(), before.len()));
        assert!(!report.untied_head && report.base_matches.is_none() && report.max_difference < 1e-6);
        assert_eq!(json(&base.path().join("config.json")), json(&folder.path().join("merged/config.json")));
    }
}

/// q, k and v of a head in one matrix, whose rows GGUF orders otherwise; a head that PEFT calls `lm_head`.
#[test]
fn fused_projections_and_a_head_of_another_name_hold_the_sum() {
    let folder = fixture("families/gpt_neox_parallel");
    for path in [folder.clone(), folder.join("model.gguf")] {
        let base = BaseFiles::open(&path).expect("a base");
        for (name, modules) in [("neox_patterns", 3), ("neox_layers", 3)] {
            let adapter = HostAdapter::load_over(&fixture("adapters").join(name), &base).expect("an adapter");
            let out = tempfile::tempdir().expect("a folder");
            let report = merged(out.path(), &base, &adapter, MergeOptions::default()).expect("merged");
            assert_eq!((report.modules_changed, adapter.pairs.len()), (modules, modules), "{name}");
            let after = BaseFiles::open(&out.path().join("merged")).expect("a folder");
            for tensor in base.tensor_names() {
                let values = |base: &BaseFiles| base.tensor(tensor).and_then(|tensor| tensor.to_f32()).expect("floats");
                match adapter.pairs.get(tensor.trim_end_matches(".weight")) {
                    Some(pair) => assert_close(&values(&after), &sum(&values(&base), pair), tensor),
                    None => assert!(values(&base) == values(&after), "{tensor} has changed"),
                }
            }
        }
    }
}

#[test]
fn modules_that_keep_their_values_are_counted() {
    let base = base("llama_bf16");
    let module = "model.layers.0.self_attn.q_proj";
    let report_of = |change: fn(&mut HostPair)| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut adapter = adapter("bf16");
        change(adapter.pairs.get_mut(module).expect("a pair"));
        let report = merged(folder.path(), &base, &adapter, MergeOptions::default()).expect("merged");
        let same = tensors(base.path())[&format!("{module}.weight")].2
            == tensors(&folder.path().join("merged"))[&format!("{module}.weight")].2;
        (report.modules, report.modules_changed, same)
    };
    assert_eq!(report_of(|_| {}), (4, 4, false));
    assert_eq!(report_of(|pair| pair.b.fill(0.0)), (4, 3, true));
    // Not zero, but far below half a unit in the last place of every weight.
    assert_eq!(report_of(|pair| pair.scale = 1e-20), (4, 3, true));
}

/// tests/reference/make_adapters.py: summed in f64 by numpy, rounded once to bf16.
#[test]
fn bf16_is_rounded_once() {
    let folder = tempfile::tempdir().expect("a folder");
    merged(folder.path(), &base("llama_bf16"), &adapter("bf16"), MergeOptions::default()).expect("merged");
    let after = tensors(&folder.path().join("merged"));
    let expected = std::fs::read(fixture("adapters/bf16/merged.safetensors")).expect("a fixture");
    let expected = SafeTensors::deserialize(&expected).expect("valid");
    assert_eq!(expected.len(), 2);
    for (name, view) in expected.iter() {
        assert_eq!((after[name].0, &after[name].2[..]), (Dtype::BF16, view.data()), "{name}");
    }
}

#[test]
fn a_type_can_be_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = MergeOptions { float_type: Some(FloatType::Bf16), ..MergeOptions::default() };
    merged(folder.path(), &base("llama_gqa"), &adapter("seven"), options).expect("merged");
    let after = tensors(&folder.path().join("merged"));
    assert!(after.values().all(|(dtype, _, _)| *dtype == Dtype::BF16));
    assert_eq!(json(&folder.path().join("merged/config.json"))["torch_dtype"], "bfloat16");

    let mut large = adapter("qv");
    large.pairs.values_mut().for_each(|pair| pair.scale = 1e6);
    let other = tempfile::tempdir().expect("a folder");
    let options = MergeOptions { float_type: Some(FloatType::F16), ..MergeOptions::default() };
    let error = merged(other.path(), &base("llama_gqa"), &large, options).expect_err("beyond f16");
    assert!(error.exit_code() == 1 && error.to_string().contains("beyond what F16 holds"), "{error}");
    nothing_is_left(other.path());
}

#[test]
fn a_tied_head_stays_tied_and_is_untied_where_it_is_adapted() {
    let (base, mut adapter) = (base("llama_tied"), adapter("tied"));
    let folder = tempfile::tempdir().expect("a folder");
    merged(folder.path(), &base, &adapter, MergeOptions::default()).expect("merged");
    assert!(!tensors(&folder.path().join("merged")).contains_key("lm_head.weight"));
    assert_eq!(json(&folder.path().join("merged/config.json"))["tie_word_embeddings"], true);

    let (input, output) = (base.config().hidden_size, base.config().vocab_size);
    let head = HostPair {
        a: vec![0.5; input],
        b: vec![0.25; output],
        rank: 1,
        input,
        output,
        scale: 2.0,
        ..HostPair::default()
    };
    adapter.pairs.insert("lm_head".to_owned(), head.clone());
    let folder = tempfile::tempdir().expect("a folder");
    let report = merged(folder.path(), &base, &adapter, MergeOptions::default()).expect("merged");
    assert!(report.untied_head);
    let (before, after) = (tensors(base.path()), tensors(&folder.path().join("merged")));
    let embedding = &before["model.embed_tokens.weight"].2;
    assert_eq!(embedding, &after["model.embed_tokens.weight"].2);
    assert_close(&f32s(&after["lm_head.weight"].2), &sum(&f32s(embedding), &head), "lm_head");
    assert_eq!(json(&folder.path().join("merged/config.json"))["tie_word_embeddings"], false);
}

/// PEFT leaves the head alone where the embedding is adapted, so that the two part.
#[test]
fn a_tied_head_keeps_its_matrix_where_the_embedding_is_adapted() {
    let (base, adapter) = (base("llama_tied"), adapter("embedding_tied"));
    let folder = tempfile::tempdir().expect("a folder");
    let report = merged(folder.path(), &base, &adapter, MergeOptions::default()).expect("merged");
    assert!(report.untied_head && report.modules == 3);
    let (before, after) = (tensors(base.path()), tensors(&folder.path().join("merged")));
    let embedding = &before["model.embed_tokens.weight"].2;
    assert_eq!(embedding, &after["lm_head.weight"].2);
    let pair = &adapter.pairs["model.embed_tokens"];
    assert_close(&f32s(&after["model.embed_tokens.weight"].2), &sum(&f32s(embedding), pair), "embed_tokens");
    let expected = crate::model::Expected::read(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters/embedding_tied"),
    );
    let decoder = crate::model::load(&folder.path().join("merged"), burnish::model::load::Compute::F32);
    let found = crate::model::logits(&decoder, &expected.ids(), None);
    assert!(crate::model::largest_difference(&found, &expected.floats("logits")) <= 1e-4);
}

#[test]
fn large_models_come_in_shards_with_an_index() {
    let (base, adapter) = (base("llama_gqa"), adapter("seven"));
    let (whole, sharded) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    merged(whole.path(), &base, &adapter, MergeOptions::default()).expect("merged");
    let options = MergeOptions { max_shard_bytes: 20_000, ..MergeOptions::default() };
    let report = merged(sharded.path(), &base, &adapter, options).expect("merged");
    let out = sharded.path().join("merged");
    assert!(report.files.len() > 2);
    assert_eq!(report.files[0], format!("model-00001-of-{:05}.safetensors", report.files.len()));
    assert_eq!(tensors(&whole.path().join("merged")), tensors(&out));
    let index = json(&out.join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"], report.bytes);
    assert_eq!(index["weight_map"].as_object().expect("a map").len(), report.tensors);
    let bytes: u64 = tensors(&out).values().map(|(_, _, bytes)| bytes.len() as u64).sum();
    assert_eq!(bytes, report.bytes);
    assert!(!whole.path().join("merged/model.safetensors.index.json").exists());
    for file in &report.files {
        assert!(std::fs::metadata(out.join(file)).expect("a shard").len() < 20_000 + 4_096);
    }
}

#[test]
fn tokenizer_generation_settings_and_licence_go_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let from = folder.path().join("base");
    std::fs::create_dir(&from).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("models/llama_gqa").join(name), from.join(name)).expect("copied");
    }
    std::fs::write(from.join("generation_config.json"), r#"{"eos_token_id":[2,7]}"#).expect("written");
    std::fs::write(from.join("LICENSE.txt"), "terms").expect("written");
    std::fs::write(from.join("README.md"), "the base's own card").expect("written");
    // No licence is as large, and a merge does not fail for it.
    std::fs::write(from.join("NOTICE"), vec![b'x'; (1 << 20) + 1]).expect("written");
    let out = folder.path().join("out/merged");
    let base = BaseFiles::open(&from).expect("a base");
    let report = merge(&base, &adapter("qv"), &out, &MergeOptions::default(), |dir| {
        std::fs::write(dir.join("tokenizer.json"), "{}").map_err(|error| Error::write(dir, &error))
    })
    .expect("merged");
    assert_eq!(report.licences_left_out, ["NOTICE"]);
    let mut names: Vec<_> = std::fs::read_dir(&out).expect("listed").map(|one| one.expect("one").file_name()).collect();
    names.sort();
    assert_eq!(names, ["LICENSE.txt", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(json(&out.join("generation_config.json"))["eos_token_id"], serde_json::json!([2, 7]));
}

#[test]
fn another_base_is_refused_unless_forced() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, mut adapter) = (base("llama_gqa"), adapter("qv"));
    adapter.metadata.insert(provenance::BASE_SHA256.to_owned(), "0".repeat(64));
    adapter.metadata.insert(provenance::QUANT.to_owned(), "nf4".to_owned());
    let error = merged(folder.path(), &base, &adapter, MergeOptions::default()).expect_err("another base");
    assert!(error.exit_code() == 2 && error.to_string().contains("--force"), "{error}");
    nothing_is_left(folder.path());
    let options = MergeOptions { force: true, ..MergeOptions::default() };
    let report = merged(folder.path(), &base, &adapter, options).expect("forced");
    assert_eq!((report.base_matches, report.trained_over), (Some(false), Some("nf4")));

    let folder = tempfile::tempdir().expect("a folder");
    adapter.metadata.insert(provenance::BASE_SHA256.to_owned(), base.content_hash().expect("a hash"));
    let report = merged(folder.path(), &base, &adapter, MergeOptions::default()).expect("the same base");
    assert_eq!(report.base_matches, Some(true));
}

#[test]
fn every_obstacle_is_reported_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("merged")).expect("in the way");
    let options = MergeOptions { max_shard_bytes: 0, ..MergeOptions::default() };
    let mut adapter = adapter("odd");
    if let Some(pair) = adapter.pairs.get_mut("model.layers.0.mlp.up_proj") {
        pair.a.pop();
    }
    let error = merged(folder.path(), &base("llama_gqa"), &adapter, options).expect_err("all of it");
    let text = error.to_string();
    assert_eq!(error.exit_code(), 2);
    for what in ["merged: exists already", "max_shard_bytes", "model.layers.2.", "do not fill"] {
        assert!(text.contains(what), "{what}: {text}");
    }
    nothing_is_left(&folder.path().join("merged"));
}

#[test]
fn a_failure_halfway_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("merged");
    let fail = |_: &Path| Err(Error::failed("tokenizer", "no"));
    let error = merge(&base("llama_gqa"), &adapter("qv"), &out, &MergeOptions::default(), fail).expect_err("it fails");
    assert_eq!(error.exit_code(), 1);
    nothing_is_left(folder.path());
    // Folders made on the way go too, those that were there stay.
    std::fs::create_dir(folder.path().join("there")).expect("a folder");
    let newer = folder.path().join("there/new/newer");
    let out = newer.join("merged");
    merge(&base("llama_gqa"), &adapter("qv"), &out, &MergeOptions::default(), fail).expect_err("it fails");
    nothing_is_left(&folder.path().join("there"));
    merged(&newer, &base("llama_gqa"), &adapter("qv"), MergeOptions::default()).expect("merged");
    assert!(out.join("config.json").exists());
}

/// Names the folder for [`in_a_process_that_may_write_little`].
#[cfg(unix)]
const LIMITED_FOLDER: &str = "BURNISH_TEST_LIMITED_FOLDER";

/// Run by [`a_full_disk_leaves_nothing`] in a process of its own, since a limit holds for a whole process.
#[cfg(unix)]
#[test]
fn in_a_process_that_may_write_little() {
    let Ok(folder) = std::env::var(LIMITED_FOLDER) else { return };
    let limit = libc::rlimit { rlim_cur: 30_000, rlim_max: 30_000 };
    // SAFETY: plain calls; the signal would end the process, ignored it makes the write fail.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let error = merged(Path::new(&folder), &base("llama_gqa"), &adapter("qv"), MergeOptions::default());
    let error = error.expect_err("the file may not grow to its size");
    assert!(error.exit_code() == 1 && error.to_string().contains("cannot be written"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "merge::in_a_process_that_may_write_little"])
        .env(LIMITED_FOLDER, folder.path())
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "the test of that name ran: {said}");
    nothing_is_left(folder.path());
}

/// Blocks become f32, floats stay, q and k rows come in Hugging Face's order.
#[test]
fn a_gguf_base_becomes_a_folder_of_the_same_weights() {
    for name in ["smollm", "llama_bpe", "spm", "qwen2"] {
        let folder = tempfile::tempdir().expect("a folder");
        let base = BaseFiles::open(&fixture("gguf").join(format!("{name}.gguf"))).expect("a base");
        let (input, output) = (base.config().hidden_size, base.config().heads * base.config().head_dim);
        let a: Vec<f32> = (0..2 * input).map(|index| (index % 7) as f32 * 0.1).collect();
        let b: Vec<f32> = (0..2 * output).map(|index| (index % 5) as f32 * 0.2).collect();
        let query = HostPair { a, b, rank: 2, input, output, scale: 0.5, ..HostPair::default() };
        let module = "model.layers.0.self_attn.q_proj";
        let mut adapter = adapter("qv");
        adapter.pairs = BTreeMap::from([(module.to_owned(), query.clone())]);
        let report = merged(folder.path(), &base, &adapter, MergeOptions::default()).expect("merged");
        assert_eq!(report.modules_changed, 1);

        let after = BaseFiles::open(&folder.path().join("merged")).expect("a folder");
        assert_eq!(after.tensor_names().collect::<Vec<_>>(), base.tensor_names().collect::<Vec<_>>());
        for tensor in base.tensor_names() {
            let before = base.tensor(tensor).and_then(|tensor| tensor.to_f32()).expect("decoded");
            let found = after.tensor(tensor).and_then(|tensor| tensor.to_f32()).expect("decoded");
            if tensor.starts_with(module) && tensor.ends_with(".weight") {
                // Stored in 16 bit where the base is.
                for (found, expected) in found.iter().zip(sum(&before, &query)) {
                    assert!((f64::from(*found) - expected).abs() <= expected.abs() / 256.0 + 1e-6, "{tensor}");
                }
            } else {
                assert!(before == found, "{tensor}");
            }
        }
        let generation = json(&folder.path().join("merged/generation_config.json"));
        assert_eq!(generation["eos_token_id"], serde_json::json!(base.config().eos_tokens));
    }
}
