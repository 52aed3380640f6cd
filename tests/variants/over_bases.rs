//! Variants over every kind of base, in whole runs, and where they are refused.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burnish::adapter::combine::{CombineOptions, Majority, Method, combine};
use burnish::adapter::host::HostAdapter;
use burnish::adapter::init::Init;
use burnish::adapter::merge::{MergeBase, MergeOptions, merge};
use burnish::adapter::peft::SaveOptions;
use burnish::adapter::spec::AdapterSpec;
use burnish::export::lora::write_lora;
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::{BaseFiles, Decoder};
use serde_json::Value;

use super::{Variant, change, logits_with, spec};
use crate::cli::{run, text, tiny_job};
use crate::model::{Expected, largest_difference, load, logits, relative_distance, turn};

/// The bases over which a variant runs: dense, and packed by each scheme.
fn bases() -> Vec<(PathBuf, Quant)> {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let packed =
        [Quant::None, Quant::Nf4, Quant::Nf4Double, Quant::Int8].map(|quant| (fixture("models/llama_gqa"), quant));
    packed
        .into_iter()
        .chain([(fixture("gguf/smollm.gguf"), Quant::Keep), (fixture("blocks/tiny.gguf"), Quant::Keep)])
        .collect()
}

fn decoder(base: &BaseFiles, quant: Quant, compute: Compute) -> Decoder {
    let options = LoadOptions { device: Device::flex(), compute, quant };
    Decoder::load(base, &options, |_, _| {}).expect("loads")
}

#[test]
fn a_variant_changes_nothing_at_first_and_merges_into_what_it_computes_over_every_base() {
    let _turn = turn();
    let ids: Vec<u32> = (0..24).map(|index| index * 5 % 90).collect();
    for (path, quant) in bases() {
        let base = BaseFiles::open(&path).expect("a base");
        let decoder = decoder(&base, quant, Compute::F32);
        let alone = logits(&decoder, &ids, None);
        for (init, dora) in Init::ALL.into_iter().flat_map(|init| [(init, false), (init, true)]) {
            let place = format!("{} {quant} {init} {dora}", path.display());
            let begun = AdapterSpec { init, dora, ..spec() }.initialise(&base, quant, 3).expect("begins");
            // The rows' norms are taken anew, and orthogonal factors are so but for rounding.
            let allowed = if dora || init == Init::Orthogonal { 1e-4 } else { 0.0 };
            let first = largest_difference(&logits_with(&decoder, &begun, &ids), &alone);
            assert!(first <= allowed, "{place}: {first}");
            // A few steps away from there.
            let mut adapter = begun;
            for (number, pair) in adapter.pairs.values_mut().enumerate() {
                let moved = |index: usize| 0.02 * (((index * 31 + number * 7) % 23) as f32 - 11.0) / 11.0;
                pair.b.iter_mut().enumerate().for_each(|(index, value)| *value += moved(index));
                let magnitude = pair.magnitude.iter_mut().flatten().enumerate();
                magnitude.for_each(|(index, value)| *value *= 1.0 + moved(index));
            }
            let adapted = logits_with(&decoder, &adapter, &ids);
            assert!(largest_difference(&adapted, &alone) > 0.02, "{place}");
            let folder = tempfile::tempdir().expect("a folder");
            let out = folder.path().join("merged");
            let options = MergeOptions {
                weights: MergeBase::Dequantized(quant),
                float_type: Some(burnish::files::FloatType::F32),
                ..MergeOptions::default()
            };
            merge(&base, &adapter, &out, &options, |_| Ok(())).expect("merged");
            let merged = logits(&load(&out, Compute::F32), &ids, None);
            let difference = largest_difference(&merged, &adapted);
            assert!(difference <= 1e-3, "{place}: {difference}");
        }
    }
}

#[test]
fn bf16_compute_stays_near_f32_with_magnitudes() {
    let _turn = turn();
    let variant = Variant::named("dora");
    let expected = Expected::read(&variant.folder);
    let found = logits_with(&load(&variant.base, Compute::Bf16), &variant.trained(), &expected.ids());
    let error = relative_distance(&found, &expected.floats("logits"));
    assert!(error > 0.0 && error < 3e-2, "{error}");
}

#[test]
fn predictions_with_a_scaled_head_are_the_losses_of_training() {
    let _turn = turn();
    let variant = Variant::named("dora");
    let decoder = load(&variant.base, Compute::F32);
    let (ids, adapter) = (Expected::read(&variant.folder).ids(), variant.trained());
    let batch = burnish::model::Batch { trained: vec![true; ids.len()], lengths: vec![ids.len()], ids };
    let frozen = adapter.attach(decoder.config(), &Device::flex()).expect("fits");
    let predicted: Vec<f32> =
        decoder.predictions(&batch, Some(&frozen)).iter().map(|prediction| prediction.loss).collect();
    let trained = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
    let mut weigh = |losses: &[f32]| vec![1.0; losses.len()];
    let noise = burnish::nn::Noise::default();
    let losses = decoder.loss_and_gradients(&batch, &trained, noise, Recompute::None, &mut weigh).losses;
    assert!(predicted.len() > 20 && largest_difference(&predicted, &losses) < 1e-4);
}

#[test]
fn settings_that_contradict_each_other_are_named() {
    let base = Variant::named("pissa").base();
    let refused = |spec: AdapterSpec| spec.begin(&base, Quant::None, &[], &[], 0).expect_err("refused").to_string();
    let error = refused(AdapterSpec { dora: true, dropout: 0.1, ..spec() });
    assert!(error.contains("adapter.dropout: is 0.1") && error.contains("DoRA"), "{error}");
    for init in [Init::Pissa, Init::Olora] {
        let error = refused(AdapterSpec { init, dropout: 0.1, ..spec() });
        assert!(error.contains("adapter.dropout: is 0.1") && error.contains(init.name()), "{error}");
    }
    let error = refused(AdapterSpec { init: Init::Orthogonal, rank: 3, ..spec() });
    assert!(error.contains("adapter.rank: is 3") && error.contains("even"), "{error}");
    let dora = Variant::named("dora");
    let from = Some(dora.folder.join("adapter"));
    let like = AdapterSpec { from, ..dora.spec.clone() };
    let found = like.begin(&dora.base(), Quant::None, &[], &[], 0).expect("the adapter itself");
    assert_eq!(found.pairs, dora.saved().expect("PEFT's").pairs);
    let refused =
        |spec: AdapterSpec| spec.begin(&dora.base(), Quant::None, &[], &[], 0).expect_err("refused").to_string();
    let error = refused(AdapterSpec { dora: false, ..like.clone() });
    assert!(error.contains("adapter.dora: is false") && error.contains("set it to true"), "{error}");
    let error = refused(AdapterSpec { init: Init::Pissa, ..like });
    assert!(error.contains("adapter.init: is `pissa`"), "{error}");
}

#[test]
fn magnitudes_are_refused_by_name_where_they_have_no_place() {
    let variant = Variant::named("dora");
    let adapter = variant.saved().expect("PEFT's");
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("lora.gguf");
    let error = write_lora(variant.base().config(), &adapter, "dora", &out).expect_err("refused").to_string();
    assert!(error.contains("DoRA's magnitudes") && error.contains("merge --format gguf"), "{error}");
    assert!(!out.exists());
    for method in Method::ALL {
        let options = CombineOptions {
            method,
            weights: vec![1.0],
            density: None,
            majority: Majority::Total,
            rank: None,
            seed: 0,
        };
        let error = combine(&[("dora".to_owned(), adapter.clone())], &options).expect_err("refused").to_string();
        assert!(error.contains("DoRA's magnitudes"), "{method}: {error}");
    }
    let mut mixed = adapter;
    mixed.pairs.values_mut().take(1).for_each(|pair| pair.magnitude = None);
    let targets: Vec<String> = mixed.pairs.keys().cloned().collect();
    let options = SaveOptions { targets: &targets, ..SaveOptions::default() };
    let error = mixed.save(&folder.path().join("mixed"), &options).expect_err("refused").to_string();
    assert!(error.contains("has no magnitude"), "{error}");
}

#[test]
fn a_combined_pair_has_its_subtraction_in_it() {
    let variant = Variant::named("pissa");
    let trained = variant.trained();
    let options = CombineOptions {
        method: Method::Cat,
        weights: vec![0.5, 0.5],
        density: None,
        majority: Majority::Total,
        rank: None,
        seed: 0,
    };
    let both = [("one".to_owned(), trained.clone()), ("other".to_owned(), trained.clone())];
    let combined = combine(&both, &options).expect("combined");
    for (module, pair) in &combined.pairs {
        assert!(relative_distance(&change(pair), &change(&trained.pairs[module])) < 1e-4, "{module}");
    }
}

#[test]
fn runs_of_variants_go_on_where_they_stopped_and_end_in_files_that_every_command_reads() {
    for settings in [&["adapter.dora=true"][..], &["adapter.init=pissa", "adapter.dora=true", "adapter.rslora=true"]] {
        let train = |folder: &tempfile::TempDir, steps: &str, more: &[&str]| {
            let steps = format!("train.max_steps={steps}");
            let overrides = settings.iter().copied().chain(["train.schedule=constant", &steps]);
            let overrides: Vec<&str> = overrides.flat_map(|setting| ["--set", setting]).collect();
            let output = run(folder, &[&["train", "recipe.toml"][..], &overrides, more].concat());
            let stderr = text(&output.stderr);
            assert!(output.status.success(), "{stderr}");
            stderr
        };
        let adapter =
            |folder: &tempfile::TempDir| std::fs::read(folder.path().join("runs/sums/adapter_model.safetensors"));
        let (whole, parted) = (tiny_job(), tiny_job());
        let stderr = train(&whole, "10", &[]);
        assert!(stderr.contains("GGUF-LoRA is ruled out: llama.cpp has no tensor for DoRA's magnitudes"), "{stderr}");
        train(&parted, "5", &[]);
        let before = adapter(&parted).expect("weights");
        train(&parted, "10", &["--resume"]);
        let after = adapter(&parted).expect("weights");
        assert!(after != before && after == adapter(&whole).expect("weights"), "{settings:?}");

        let found = HostAdapter::load(&whole.path().join("runs/sums")).expect("an adapter");
        let rank = if settings.len() == 1 { 4 } else { 8 };
        assert!(found.pairs.values().all(|pair| pair.rank == rank && pair.magnitude.is_some()));
        let base = crate::cli::tiny_model().display().to_string();
        let with = |command: &str, more: &[&str]| {
            let output = run(&whole, &[&[command, "--base", &base, "--adapter", "runs/sums"][..], more].concat());
            assert!(output.status.success(), "{command}: {}", text(&output.stderr));
            text(&output.stdout)
        };
        with("merge", &["--out", "merged"]);
        with("merge", &["--format", "gguf", "--out", "merged.gguf"]);
        let evaluated = |more: &[&str]| {
            let text = with("eval", &[&["--data", "valid.jsonl", "--json"][..], more].concat());
            serde_json::from_str::<Value>(&text).expect("JSON")
        };
        assert!(evaluated(&[]).to_string().contains("loss"));
        assert!(!with("generate", &["--prompt", "1 and 2 is ", "--max-tokens", "4"]).is_empty());
        let inspected = text(&run(&whole, &["inspect", "runs/sums"]).stdout);
        assert!(inspected.contains("DoRA"), "{inspected}");
    }
}
