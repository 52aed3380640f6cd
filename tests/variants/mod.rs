//! The variants of LoRA against PEFT: what each begins with, how it trains, what it computes, and what it becomes in files.

mod over_bases;
mod peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use burnish::adapter::host::{HostAdapter, HostPair};
use burnish::adapter::init::Init;
use burnish::adapter::spec::{AdapterSpec, Targets};
use burnish::model::{BaseFiles, Decoder};
use serde_json::Value;

use crate::model::{fixtures, logits};

/// The tensors of a fixture by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), floats(view.data())))).collect()
}

/// A variant as PEFT made it.
struct Variant {
    folder: PathBuf,
    name: String,
    base: PathBuf,
    spec: AdapterSpec,
}

impl Variant {
    fn all() -> Vec<Self> {
        fixtures("variants").into_iter().map(Self::read).collect()
    }

    fn named(name: &str) -> Self {
        Self::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/variants").join(name))
    }

    fn read(folder: PathBuf) -> Self {
        let text = std::fs::read_to_string(folder.join("run.json")).expect("run.json");
        let run: Value = serde_json::from_str(&text).expect("JSON");
        let settings = &run["adapter"];
        let targets = settings["target_modules"].as_array().expect("targets");
        let spec = AdapterSpec {
            rank: settings["r"].as_u64().expect("a rank") as usize,
            alpha: settings["lora_alpha"].as_f64().expect("alpha"),
            targets: Targets::named(targets.iter().map(|target| target.as_str().expect("a name"))),
            rslora: settings["use_rslora"] == true,
            dora: settings["use_dora"] == true,
            init: settings["init_lora_weights"].as_str().map_or(Init::Kaiming, |word| word.parse().expect("known")),
            ..spec()
        };
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(run["base"].as_str().expect("a base"));
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        Self { folder, name, base, spec }
    }

    fn base(&self) -> BaseFiles {
        BaseFiles::open(&self.base).expect("a base")
    }

    /// The adapter with the factors and magnitudes in `values`; those in `start` are subtracted where the variant does.
    fn adapter(&self, values: &Tensors, start: &Tensors) -> HostAdapter {
        let modules = values.keys().filter_map(|name| name.strip_suffix(".lora_A"));
        let pair = |module: &str| {
            let tensor = |values: &Tensors, part: &str| values[&format!("{module}.{part}")].clone();
            let ((a_shape, a), (b_shape, b)) = (tensor(values, "lora_A"), tensor(values, "lora_B"));
            let beginning = || [tensor(start, "lora_A").1, tensor(start, "lora_B").1];
            HostPair {
                a,
                b,
                rank: a_shape[0],
                input: a_shape[1],
                output: b_shape[0],
                scale: (self.spec.alpha / if self.spec.rslora { (a_shape[0] as f64).sqrt() } else { a_shape[0] as f64 })
                    as f32,
                magnitude: self.spec.dora.then(|| tensor(values, "lora_magnitude_vector").1),
                subtracted: self.spec.init.subtracts().then(|| Arc::new(beginning())),
            }
        };
        HostAdapter {
            pairs: modules.map(|module| (module.to_owned(), pair(module))).collect(),
            rank: self.spec.rank,
            alpha: self.spec.alpha,
            ..HostAdapter::default()
        }
    }

    fn start(&self) -> HostAdapter {
        let start = tensors(&self.folder.join("start.safetensors"));
        self.adapter(&start, &start)
    }

    fn trained(&self) -> HostAdapter {
        let start = tensors(&self.folder.join("start.safetensors"));
        self.adapter(&tensors(&self.folder.join("trained.safetensors")), &start)
    }

    /// PEFT's folder of the trained adapter, where PEFT can write one.
    fn saved(&self) -> Option<HostAdapter> {
        let folder = self.folder.join("adapter");
        folder.exists().then(|| HostAdapter::load_over(&folder, &self.base()).expect("PEFT's own"))
    }
}

fn spec() -> AdapterSpec {
    AdapterSpec { rank: 4, alpha: 8.0, targets: Targets::AllLinear, ..AdapterSpec::default() }
}

fn logits_with(decoder: &Decoder, adapter: &HostAdapter, ids: &[u32]) -> Vec<f32> {
    logits(decoder, ids, Some(&adapter.attach(decoder.config(), &Device::flex()).expect("fits")))
}

/// `scale · (B · A − B₀ · A₀)`.
fn change(pair: &HostPair) -> Vec<f32> {
    let mut change = vec![0.0; pair.output * pair.input];
    for (index, row) in change.chunks_mut(pair.input).enumerate() {
        for (factor, a) in pair.terms_of_row(index) {
            row.iter_mut().zip(a).for_each(|(sum, a)| *sum += pair.scale * factor * a);
        }
    }
    change
}
