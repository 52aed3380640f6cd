//! Each variant against PEFT: first values, five steps, logits, files and merged weights.

use burnish::adapter::host::{HostAdapter, HostPair};
use burnish::adapter::merge::{MergeOptions, merge};
use burnish::adapter::peft::SaveOptions;
use burnish::model::BaseFiles;
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, Quant};
use serde_json::Value;

use super::{Variant, change, logits_with, tensors};
use crate::model::{Expected, largest_difference, load, relative_distance, turn};
use crate::training::Run;

#[test]
fn five_steps_of_each_variant_follow_torch_and_peft() {
    let _turn = turn();
    let variants = Variant::all();
    assert_eq!(variants.len(), 7);
    for variant in &variants {
        let run = Run::of(&variant.folder, variant.start());
        let decoder = load(&variant.base, Compute::F32);
        let theirs = variant.trained();
        for recompute in [Recompute::None, Recompute::Block] {
            let (reports, ours) = run.replay(&decoder, recompute);
            assert_eq!(reports.len(), 5);
            for (step, (report, recorded)) in reports.iter().zip(&run.steps).enumerate() {
                let (loss, norm) =
                    (recorded["loss"].as_f64().expect("a loss"), recorded["grad_norm"].as_f64().expect("a norm"));
                let place = format!("{} {recompute:?} step {step}", variant.name);
                assert!((report.loss - loss).abs() <= 1e-4, "{place}: loss {}, not {loss}", report.loss);
                assert!(
                    (report.grad_norm - norm).abs() <= 1e-3 * norm,
                    "{place}: norm {}, not {norm}",
                    report.grad_norm
                );
            }
            for (module, pair) in &ours.pairs {
                let wanted = &theirs.pairs[module];
                assert_eq!(pair.magnitude.is_some(), variant.spec.dora);
                let magnitudes = pair.magnitude.iter().zip(&wanted.magnitude);
                for (ours, theirs) in [(&pair.a, &wanted.a), (&pair.b, &wanted.b)].into_iter().chain(magnitudes) {
                    let error = relative_distance(ours, theirs);
                    assert!(error <= 1e-3, "{} {recompute:?} {module}: {error}", variant.name);
                }
            }
        }
    }
}

#[test]
fn trained_variants_compute_what_they_do_in_peft() {
    let _turn = turn();
    let mut saved = 0;
    for variant in Variant::all() {
        let (decoder, expected) = (load(&variant.base, Compute::F32), Expected::read(&variant.folder));
        let written = tempfile::tempdir().expect("a folder");
        let trained = variant.trained();
        let targets: Vec<String> = trained.pairs.keys().cloned().collect();
        let rslora = variant.spec.rslora;
        let options = SaveOptions { targets: &targets, rslora, ..SaveOptions::default() };
        trained.save(written.path(), &options).expect("written");
        let again = HostAdapter::load_over(written.path(), &variant.base()).expect("our own");
        let ids = expected.ids();
        for (what, adapter) in [("trained", Some(trained)), ("ours", Some(again)), ("PEFT's", variant.saved())] {
            let Some(adapter) = adapter else { continue };
            saved += usize::from(what == "PEFT's");
            let difference = largest_difference(&logits_with(&decoder, &adapter, &ids), &expected.floats("logits"));
            assert!(difference <= 1e-3, "{} {what}: {difference}", variant.name);
        }
    }
    assert_eq!(saved, 6, "PEFT cannot write PiSSA with magnitudes");
}

#[test]
fn adapters_over_a_base_that_peft_changes_as_it_loads_subtract_what_it_takes() {
    let _turn = turn();
    let mut read = 0;
    for variant in Variant::all() {
        let folder = variant.folder.join("unconverted");
        if !folder.exists() {
            continue;
        }
        read += 1;
        let adapter = HostAdapter::load_over(&folder, &variant.base()).expect("PEFT's own");
        let (decoder, expected) = (load(&variant.base, Compute::F32), Expected::read(&variant.folder));
        let difference =
            largest_difference(&logits_with(&decoder, &adapter, &expected.ids()), &expected.floats("logits"));
        assert!(difference <= 1e-3, "{}: {difference}", variant.name);
        let error = HostAdapter::load(&folder).expect_err("without its base").to_string();
        assert!(error.contains(&format!("`init_lora_weights` = `{}`", variant.spec.init)), "{error}");
    }
    assert_eq!(read, 4);
}

#[test]
fn merged_variants_are_those_of_peft() {
    let _turn = turn();
    for variant in Variant::all() {
        let wanted = tensors(&variant.folder.join("merged.safetensors"));
        for adapter in [Some(variant.trained()), variant.saved()].into_iter().flatten() {
            let folder = tempfile::tempdir().expect("a folder");
            let out = folder.path().join("merged");
            let report = merge(&variant.base(), &adapter, &out, &MergeOptions::default(), |_| Ok(())).expect("merged");
            assert_eq!((report.modules, report.modules_changed), (wanted.len(), wanted.len()), "{}", variant.name);
            let merged = BaseFiles::open(&out).expect("a model");
            for (name, (_, wanted)) in &wanted {
                let found = merged.tensor(name).expect("there").to_f32().expect("floats");
                let difference = largest_difference(&found, wanted);
                assert!(difference <= 1e-4, "{} {name}: {difference}", variant.name);
            }
        }
    }
}

#[test]
fn a_plain_file_of_a_subtracted_pair_has_twice_the_rank_and_the_same_scale() {
    for (name, alpha) in [("pissa", 16.0), ("pissa_rslora", 6.0 * 2f64.sqrt()), ("olora", 8.0)] {
        let variant = Variant::named(name);
        let folder = tempfile::tempdir().expect("a folder");
        let trained = variant.trained();
        let targets: Vec<String> = trained.pairs.keys().cloned().collect();
        let rslora = variant.spec.rslora;
        let options = SaveOptions { targets: &targets, rslora, ..SaveOptions::default() };
        trained.save(folder.path(), &options).expect("written");
        let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).expect("a configuration");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!(config["r"], 2 * variant.spec.rank, "{name}");
        assert_eq!(config["lora_alpha"].as_f64(), Some(alpha), "{name}");
        assert_eq!(config["alpha_pattern"], serde_json::json!({}), "{name}");
        assert_eq!(config["init_lora_weights"], true);
        let (ours, theirs) = (HostAdapter::load(folder.path()).expect("our own"), variant.saved().expect("PEFT's"));
        for (module, pair) in &ours.pairs {
            // PEFT's conversion.
            let theirs = &theirs.pairs[module];
            assert_eq!((pair.rank, pair.a.len(), pair.b.len()), (theirs.rank, theirs.a.len(), theirs.b.len()));
            assert!((pair.scale - theirs.scale).abs() < 1e-6, "{name} {module}");
            assert!(relative_distance(&change(pair), &change(theirs)) < 1e-4, "{name} {module}");
        }
    }
}

#[test]
fn first_values_are_those_of_peft() {
    for name in ["pissa", "pissa_rslora", "pissa_dora", "olora"] {
        let variant = Variant::named(name);
        let (ours, theirs) =
            (variant.spec.initialise(&variant.base(), Quant::None, 1).expect("begins"), variant.start());
        assert!(ours.pairs.keys().eq(theirs.pairs.keys()), "{name}");
        for (module, pair) in &ours.pairs {
            let wanted = &theirs.pairs[module];
            // Signs and directions of equal singular values are free; the product is not.
            let product = |pair: &HostPair| change(&HostPair { subtracted: None, ..pair.clone() });
            let error = relative_distance(&product(pair), &product(wanted));
            assert!(error < 1e-2, "{name} {module}: {error}");
            let square = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            for (ours, theirs) in [(&pair.a, &wanted.a), (&pair.b, &wanted.b)] {
                assert!((square(ours) / square(theirs) - 1.0).abs() < 1e-3, "{name} {module}");
            }
            for (ours, theirs) in pair.magnitude.iter().zip(&wanted.magnitude) {
                assert!(largest_difference(ours, theirs) < 1e-5, "{name} {module}");
            }
            assert_eq!(pair.magnitude.is_some(), variant.spec.dora, "{name}");
        }
    }
}
