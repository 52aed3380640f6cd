//! The decoder against transformers and PEFT: logits, losses and gradients, on every instruction set of the machine.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use burn::tensor::{DType, Device};
use burnish::adapter::host::HostAdapter;
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::{BaseFiles, Batch, Decoder, ModelConfig, SiteKind};
use burnish::nn::{Delta, Noise};
use burnish::ops::cpu::isa::Isa;

/// The instruction set is a setting of the whole process: tests that change it take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Those that tests of the ops run: all the machine has.
pub fn instruction_sets() -> impl Iterator<Item = Isa> {
    Isa::supported()
}

pub fn fixtures(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).expect("fixtures").map(|entry| entry.expect("entry").path()).collect();
    entries.sort();
    entries
}

pub struct Expected {
    bytes: Vec<u8>,
}

impl Expected {
    pub fn read(folder: &Path) -> Self {
        Self::read_file(&folder.join("expected.safetensors"))
    }

    pub fn read_file(path: &Path) -> Self {
        Self { bytes: std::fs::read(path).expect("expected values") }
    }

    fn tensor(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).expect("valid");
        let view = file.tensor(name).unwrap_or_else(|_| panic!("{name} is there"));
        (view.shape().to_vec(), view.data().to_vec())
    }

    pub fn has(&self, name: &str) -> bool {
        safetensors::SafeTensors::deserialize(&self.bytes).expect("valid").tensor(name).is_ok()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name).1.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    pub fn ids(&self) -> Vec<u32> {
        self.ids_of("ids")
    }

    pub fn ids_of(&self, name: &str) -> Vec<u32> {
        self.tensor(name).1.chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

pub fn load(path: &Path, compute: Compute) -> Decoder {
    load_on(&Device::flex(), path, compute)
}

pub fn load_on(device: &Device, path: &Path, compute: Compute) -> Decoder {
    let base = BaseFiles::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let options = LoadOptions { device: device.clone(), compute, quant: Quant::None };
    Decoder::load(&base, &options, |_, _| {}).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `‖a − b‖ / ‖b‖`.
pub fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square_sum = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = square_sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (difference / square_sum(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)).sqrt()
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |largest, d| if d.is_nan() { f32::NAN } else { largest.max(d) })
}

pub fn logits(decoder: &Decoder, ids: &[u32], adapter: Option<&burnish::nn::Adapter>) -> Vec<f32> {
    decoder.logits(ids, &[ids.len()], adapter).cast(DType::F32).into_data().iter::<f32>().collect()
}

#[test]
fn logits_are_those_of_transformers_for_every_shape_of_model() {
    let _turn = turn();
    for isa in Isa::supported() {
        isa.choose();
        for folder in fixtures("models") {
            let expected = Expected::read(&folder);
            let decoder = load(&folder, Compute::F32);
            let difference = largest_difference(&logits(&decoder, &expected.ids(), None), &expected.floats("logits"));
            assert!(difference <= 5e-5, "{} on {}: {difference}", folder.display(), isa.name());
        }
    }
    Isa::preferred().choose();
}

#[test]
fn bf16_logits_stay_near_those_of_f32() {
    let _turn = turn();
    for isa in Isa::supported() {
        isa.choose();
        for folder in fixtures("models") {
            let expected = Expected::read(&folder);
            let decoder = load(&folder, Compute::Bf16);
            let (ours, exact) = (logits(&decoder, &expected.ids(), None), expected.floats("logits"));
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
            let error = norm(&mut ours.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
            assert!(error <= 3e-2, "{} on {}: {error}", folder.display(), isa.name());
        }
    }
    Isa::preferred().choose();
}

#[test]
fn generation_with_a_cache_gives_the_logits_of_the_whole_sequence() {
    let _turn = turn();
    for folder in fixtures("models") {
        let expected = Expected::read(&folder);
        let (ids, logits) = (expected.ids(), expected.floats("logits"));
        let decoder = load(&folder, Compute::F32);
        let vocabulary = decoder.config().vocab_size;
        // Two sequences side by side: one fed in two pieces and then token by token, one from its second token on.
        let (mut first, mut other) = (decoder.begin(), decoder.begin());
        let half = ids.len() / 2;
        decoder.next_logits(&[&ids[..half - 2]], &mut [&mut first], None);
        decoder.next_logits(&[&ids[half - 2..half], &ids[1..3]], &mut [&mut first, &mut other], None);
        for position in half..ids.len() {
            let new = [&ids[position..position + 1], &ids[3..4]];
            let next = decoder.next_logits(&new, &mut [&mut first, &mut other], None);
            let row = &logits[position * vocabulary..(position + 1) * vocabulary];
            let difference = largest_difference(&next[0], row);
            assert!(difference <= 5e-5, "{} at {position}: {difference}", folder.display());
        }
    }
}

pub fn base_of(adapter: &Path) -> PathBuf {
    let config = std::fs::read_to_string(adapter.join("adapter_config.json")).expect("a config");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(config["base_model_name_or_path"].as_str().expect("a base"))
}

#[test]
fn adapters_written_by_peft_give_its_logits_losses_and_gradients() {
    let _turn = turn();
    for isa in Isa::supported() {
        isa.choose();
        for folder in fixtures("adapters") {
            let expected = Expected::read(&folder);
            let decoder = load(&base_of(&folder), Compute::F32);
            let base = BaseFiles::open(&base_of(&folder)).expect("a base");
            let adapter = HostAdapter::load_over(&folder, &base).expect("an adapter");
            let ids = expected.ids();
            let place = format!("{} on {}", folder.display(), isa.name());

            let attached = adapter.attach(decoder.config(), &Device::flex()).expect("fits");
            let difference = largest_difference(&logits(&decoder, &ids, Some(&attached)), &expected.floats("logits"));
            assert!(difference <= 5e-5, "{place}: logits {difference}");

            let trainable = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
            let batch = Batch { trained: vec![true; ids.len()], lengths: vec![ids.len()], ids };
            let tokens = batch.trained_tokens() as f32;
            for recompute in [Recompute::None, Recompute::Block] {
                let mut result =
                    decoder.loss_and_gradients(&batch, &trainable, Noise::default(), recompute, &mut |losses| {
                        vec![1.0 / tokens; losses.len()]
                    });
                let loss = result.losses.iter().copied().map(f64::from).sum::<f64>() / f64::from(tokens);
                assert!((loss - f64::from(expected.floats("loss")[0])).abs() < 1e-5, "{place}: loss {loss}");
                let sites = decoder.config().sites();
                assert_eq!(sites.len(), decoder.sites());
                let adapted = sites.iter().enumerate().filter_map(|(number, site)| Some((site, trainable.at(number)?)));
                let adapted = adapted.filter(|(_, delta)| !matches!(delta, Delta::Rows(_)));
                assert_eq!(adapted.clone().count(), adapter.pairs.len());
                for (site, delta) in adapted {
                    let module = &site.module;
                    let names = match site.kind {
                        // Transposed, the factors change places.
                        SiteKind::Embedding => ["lora_embedding_B", "lora_embedding_A"],
                        _ => ["lora_A", "lora_B"],
                    };
                    for (parameter, name) in delta.parameters().zip(names) {
                        let mut gradient = result.gradients.remove::<2>(parameter.id).expect("a gradient");
                        if site.kind == SiteKind::Embedding {
                            gradient = gradient.transpose();
                        }
                        let gradient: Vec<f32> = gradient.into_data().iter::<f32>().collect();
                        let wanted = expected.floats(&format!("grad.{module}.{name}"));
                        let scale = wanted.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                        let difference = largest_difference(&gradient, &wanted) / scale;
                        assert!(difference <= 1e-4, "{place} {recompute:?}: {module}.{name} {difference} of {scale}");
                    }
                }
                // In the order in which they were attached.
                let rows = trainable.deltas.iter().filter_map(|delta| match delta {
                    Delta::Rows(rows) => Some(&rows.values),
                    _ => None,
                });
                let modules = adapter.rows.iter().flat_map(|rows| rows.values.keys());
                let rows = modules.map(|module| format!("{module}.rows")).zip(rows);
                for (name, parameter) in adapter.whole.keys().cloned().zip(&trainable.whole).chain(rows) {
                    let gradient = result.gradients.remove::<2>(parameter.id).expect("a gradient");
                    let gradient: Vec<f32> = gradient.into_data().iter::<f32>().collect();
                    let wanted = expected.floats(&format!("grad.{name}"));
                    let scale = wanted.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                    let difference = largest_difference(&gradient, &wanted) / scale;
                    assert!(difference <= 1e-4, "{place} {recompute:?}: {name} {difference} of {scale}");
                }
            }
        }
    }
    Isa::preferred().choose();
}

#[test]
fn a_configuration_written_for_transformers_says_what_was_read() {
    for folder in fixtures("models") {
        let path = folder.join("config.json");
        let Ok(text) = std::fs::read(&path) else { continue };
        let value = burnish::files::json::parse("config.json", &text).expect("JSON");
        let config = ModelConfig::from_json("config.json", &value, None).expect("a configuration");
        let written = config.to_hf_json(burnish::files::Dtype::Bf16);
        let again = ModelConfig::from_json("written", &written, None).expect("what was valid stays so");
        assert_eq!(again, config, "{}", path.display());
    }
}
