//! Every model family against transformers, PEFT and llama.cpp's form of files (fixtures/families; a family is an entry in
//! tests/reference/make_families.py).

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use burnish::adapter::host::HostAdapter;
use burnish::adapter::merge::{MergeOptions, merge};
use burnish::adapter::peft::SaveOptions;
use burnish::adapter::spec::{AdapterSpec, Targets};
use burnish::files::FloatType;
use burnish::files::safetensors::SafeTensorsFile;
use burnish::model::decoder::Recompute;
use burnish::model::load::Compute;
use burnish::model::{BaseFiles, Batch, Decoder, ModelConfig, Site, SiteKind};
use burnish::nn::Noise;
use burnish::train::TrainSettings;
use burnish::train::objective::Sft;
use burnish::train::step::AdapterTrainer;
use serde_json::Value;

use crate::model::{Expected, fixtures, largest_difference, load, logits, turn};

/// Every model of every family, with its GGUF file where there is one.
fn models() -> Vec<(PathBuf, Option<PathBuf>)> {
    let folders = fixtures("families").into_iter();
    let with_gguf = folders.map(|folder| {
        let gguf = folder.join("model.gguf");
        let gguf = gguf.exists().then_some(gguf);
        (folder, gguf)
    });
    with_gguf.collect()
}

/// Asserts that values differ by at most `share` of the largest of them.
pub fn assert_near(found: &[f32], expected: &[f32], share: f32, place: &str) {
    let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let difference = largest_difference(found, expected) / scale;
    assert!(difference <= share, "{place}: off by {difference} of {scale}");
}

pub fn training(folder: &Path) -> Value {
    let text = std::fs::read(folder.join("training.json")).expect("a fixture");
    serde_json::from_slice(&text).expect("JSON")
}

fn adapter(folder: &Path) -> HostAdapter {
    HostAdapter::load_over(&folder.join("adapter"), &BaseFiles::open(folder).expect("a base")).expect("PEFT's adapter")
}

#[test]
fn a_folder_and_a_gguf_file_give_the_logits_of_transformers() {
    let _turn = turn();
    for (folder, gguf) in models() {
        let expected = Expected::read(&folder);
        for path in std::iter::once(&folder).chain(&gguf) {
            let ours = logits(&load(path, Compute::F32), &expected.ids(), None);
            assert_near(&ours, &expected.floats("logits"), 1e-4, &path.display().to_string());
        }
    }
}

#[test]
fn bf16_logits_stay_near() {
    let _turn = turn();
    for (folder, _) in models() {
        let expected = Expected::read(&folder);
        let (ours, exact) = (logits(&load(&folder, Compute::Bf16), &expected.ids(), None), expected.floats("logits"));
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
        let error = norm(&mut ours.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
        assert!(error <= 5e-2, "{}: {error}", folder.display());
    }
}

#[test]
fn a_gguf_file_describes_the_same_model_as_its_folder() {
    for (folder, gguf) in models() {
        let base = BaseFiles::open(&folder).expect("a base");
        // Buffers of a dtype that no weight has are part of it.
        assert_eq!(base.content_hash().expect("a fingerprint").len(), 64);
        let config = base.config().clone();
        if let Some(gguf) = gguf {
            assert_eq!(*BaseFiles::open(&gguf).expect("a base").config(), config, "{}", folder.display());
        }
        let written = config.to_hf_json(burnish::files::Dtype::F32);
        let again = ModelConfig::from_json("written", &written, None).expect("what was valid stays so");
        // What is written is a model of its own.
        let alone = ModelConfig { names: config.family.names, larger: None, ..config };
        assert_eq!(again, alone, "{}", folder.display());
    }
}

#[test]
fn generation_with_a_cache_gives_the_logits_of_the_whole_sequence() {
    let _turn = turn();
    for (folder, _) in models() {
        let expected = Expected::read(&folder);
        let (ids, logits) = (expected.ids(), expected.floats("logits"));
        let decoder = load(&folder, Compute::F32);
        let vocabulary = decoder.config().vocab_size;
        let adapted = adapter(&folder).attach(decoder.config(), &Device::flex()).expect("fits");
        let with_adapter = crate::model::logits(&decoder, &ids, Some(&adapted));
        let (mut plain, mut other) = (decoder.begin(), decoder.begin());
        for (start, end) in [(0, 20), (20, 23)].into_iter().chain((23..60).map(|position| (position, position + 1))) {
            let row = (end - 1) * vocabulary..end * vocabulary;
            let new = &ids[start..end];
            let place = format!("{} at {end}", folder.display());
            let next = decoder.next_logits(&[new], &mut [&mut plain], None);
            assert_near(&next[0], &logits[row.clone()], 1e-4, &place);
            let next = decoder.next_logits(&[new], &mut [&mut other], Some(&adapted));
            assert_near(&next[0], &with_adapter[row], 1e-4, &place);
        }
    }
}

#[test]
fn an_adapter_over_all_linear_layers_gives_the_loss_of_peft_and_merges() {
    let _turn = turn();
    for (folder, gguf) in models() {
        let place = folder.display().to_string();
        let expected = Expected::read(&folder);
        let (ids, decoder) = (expected.ids(), load(&folder, Compute::F32));
        let trained = Expected::read_file(&folder.join("trained.safetensors"));
        let adapter = adapter(&folder);
        let attached = adapter.attach(decoder.config(), &Device::flex()).expect("fits");
        let adapted = trained.floats("adapter_logits");
        assert_near(&logits(&decoder, &ids, Some(&attached)), &adapted, 1e-4, &place);
        let batch = Batch { trained: vec![true; ids.len()], lengths: vec![ids.len()], ids: ids.clone() };
        let losses = decoder.predictions(&batch, Some(&attached));
        let loss = losses.iter().map(|token| f64::from(token.loss)).sum::<f64>() / losses.len() as f64;
        let wanted = training(&folder)["adapter_loss"].as_f64().expect("a loss");
        assert!((loss - wanted).abs() <= 1e-4, "{place}: {loss}, not {wanted}");

        for path in std::iter::once(&folder).chain(&gguf) {
            let base = BaseFiles::open(path).expect("a base");
            let out = tempfile::tempdir().expect("a folder");
            let merged = out.path().join("merged");
            let options = MergeOptions { float_type: Some(FloatType::F32), ..MergeOptions::default() };
            let report = merge(&base, &adapter, &merged, &options, |_| Ok(())).expect("merged");
            assert_eq!(report.modules_changed, adapter.pairs.len());
            assert_near(&logits(&load(&merged, Compute::F32), &ids, None), &adapted, 2e-4, &path.display().to_string());
        }
    }
}

#[test]
fn five_steps_follow_torch_and_peft() {
    let _turn = turn();
    for (folder, _) in models() {
        let decoder = load(&folder, Compute::F32);
        let start = adapter(&folder);
        let run = training(&folder);
        let steps = run["steps"].as_array().expect("steps");
        let rate = run["learning_rate"].as_f64().expect("a rate");
        for recompute in [Recompute::None, Recompute::Block] {
            let settings = TrainSettings {
                weight_decay: run["weight_decay"].as_f64().expect("a number"),
                max_grad_norm: 0.0,
                ..TrainSettings::default()
            };
            let attached = start.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
            let mut trainer = AdapterTrainer::new(attached, Box::new(Sft), &settings, recompute);
            for (index, step) in steps.iter().enumerate() {
                let report = trainer.step(&decoder, &[batch(&step["sequences"])], rate, 0);
                let wanted = step["loss"].as_f64().expect("a loss");
                let place = format!("{} {recompute:?} step {index}", folder.display());
                assert!((report.loss - wanted).abs() <= 1e-4 * wanted, "{place}: {}, not {wanted}", report.loss);
            }
            let ours = start.with_values(decoder.config(), &trainer.adapter.valid());
            compare_factors(&folder, &ours, &decoder);
        }
    }
}

pub fn batch(sequences: &Value) -> Batch {
    let mut batch = Batch { ids: Vec::new(), lengths: Vec::new(), trained: Vec::new() };
    for sequence in sequences.as_array().expect("sequences") {
        let ids = sequence.as_array().expect("ids");
        batch.ids.extend(ids.iter().map(|id| id.as_u64().expect("an id") as u32));
        batch.lengths.push(ids.len());
    }
    batch.trained = vec![true; batch.ids.len()];
    batch
}

/// Saves the adapter and compares its file with PEFT's factors, name for name.
fn compare_factors(folder: &Path, ours: &HostAdapter, decoder: &Decoder) {
    let out = tempfile::tempdir().expect("a folder");
    let spec = AdapterSpec { rank: 1, targets: Targets::AllLinear, ..AdapterSpec::default() };
    let targets = spec.target_names(decoder.config()).expect("names");
    let options = SaveOptions { targets: &targets, ..SaveOptions::default() };
    ours.save(out.path(), &options).expect("saved");
    assert_eq!(HostAdapter::load(out.path()).expect("ours"), *ours, "{}", folder.display());
    let file = SafeTensorsFile::open(&out.path().join("adapter_model.safetensors")).expect("ours");
    let theirs = SafeTensorsFile::open(&folder.join("trained.safetensors")).expect("a fixture");
    let values =
        |file: &SafeTensorsFile, name: &str| file.tensor(name).and_then(|tensor| tensor.to_f32()).expect("floats");
    assert_eq!(file.names().count() + 1, theirs.names().count(), "{}", folder.display());
    for name in file.names() {
        let path = name.strip_prefix("base_model.model.").and_then(|path| path.strip_suffix(".weight"));
        let (found, wanted) = (values(&file, name), values(&theirs, path.expect("PEFT's naming")));
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
        let difference = norm(&mut found.iter().zip(&wanted).map(|(a, b)| a - b)) / norm(&mut wanted.iter().copied());
        assert!(difference <= 1e-3, "{}: {name} is off by {difference}", folder.display());
    }
}

#[test]
fn choices_of_targets_are_those_of_peft() {
    for (folder, _) in models() {
        let config = BaseFiles::open(&folder).expect("a base").config().clone();
        let text = std::fs::read(folder.join("adapter/adapter_config.json")).expect("a fixture");
        let peft: Value = serde_json::from_slice(&text).expect("JSON");
        let theirs: Vec<&str> =
            peft["target_modules"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
        let sites = config.sites();
        let spec = |targets| AdapterSpec { rank: 1, targets, ..AdapterSpec::default() };
        let taken = |targets: Targets| -> Vec<String> {
            let adapted = spec(targets).adapted(&config).expect("sites");
            adapted.into_iter().map(|adapted| adapted.site.module).collect()
        };
        let those = |takes: &dyn Fn(&Site) -> bool| -> Vec<String> {
            sites.iter().filter(|site| takes(site)).map(|site| site.module.clone()).collect()
        };
        for targets in [Targets::AllLinear, Targets::Attention] {
            let names = spec(targets.clone()).target_names(&config).expect("names");
            assert_eq!(taken(Targets::named(names.iter().map(String::as_str))), taken(targets), "{}", folder.display());
        }
        let peft = those(&|site| theirs.iter().any(|name| config.is_named(site, name)));
        assert_eq!(taken(Targets::AllLinear), peft, "{}", folder.display());
        assert_eq!(taken(Targets::Attention), those(&|site| site.kind == SiteKind::Attention));
        let error = spec(Targets::named(["q_prj"])).adapted(&config).expect_err("no such module");
        let existing = sites[0].name();
        assert!(error.to_string().contains("`q_prj`") && error.to_string().contains(existing), "{error}");
    }
}

#[test]
fn gradients_do_not_depend_on_what_is_computed_again() {
    let _turn = turn();
    for (folder, _) in models() {
        let decoder = load(&folder, Compute::F32);
        let attached = adapter(&folder).attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
        let ids: Vec<u32> = Expected::read(&folder).ids()[..50].to_vec();
        let batch = Batch { trained: vec![true; 50], lengths: vec![30, 20], ids };
        let mut gradients = [Recompute::None, Recompute::Block].map(|recompute| {
            let mut weigh = |losses: &[f32]| vec![1.0; losses.len()];
            decoder.loss_and_gradients(&batch, &attached, Noise::default(), recompute, &mut weigh).gradients
        });
        for parameter in attached.deltas.iter().flat_map(|delta| delta.parameters()) {
            let [kept, again] = gradients.each_mut().map(|gradients| {
                let gradient = gradients.remove::<2>(parameter.id).expect("a gradient");
                gradient.into_data().iter::<f32>().collect::<Vec<f32>>()
            });
            assert_near(&again, &kept, 1e-5, &folder.display().to_string());
        }
    }
}
