//! The variants of LoRA against PEFT: what each begins with, how it trains, what it computes, and what it becomes in files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use burnish::adapter::combine::{CombineOptions, Majority, Method, combine};
use burnish::adapter::host::{HostAdapter, HostPair};
use burnish::adapter::init::Init;
use burnish::adapter::merge::{MergeBase, MergeOptions, merge};
use burnish::adapter::peft::SaveOptions;
use burnish::adapter::spec::{AdapterSpec, Targets};
use burnish::export::lora::write_lora;
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::{BaseFiles, Decoder};
use serde_json::Value;

use crate::cli::{run, text, tiny_job};
use crate::model::{Expected, fixtures, largest_difference, load, logits, turn};
use crate::training::Run;

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
                scale: (self.spec.alpha / if self.spec.rslora { (a_shape[0] as f64).sqrt() } else { a_shape[0] as f64 }) as f32,
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
    AdapterSpec {
        rank: 4,
        alpha: 8.0,
        targets: Targets::AllLinear,
        ..AdapterSpec::default()
    }
}

fn logits_with(decoder: &Decoder, adapter: &HostAdapter, ids: &[u32]) -> Vec<f32> {
    logits(decoder, ids, Some(&adapter.attach(decoder.config(), &Device::flex()).expect("fits")))
}

/// `‖a − b‖ / ‖b‖`.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square_sum = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = square_sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (difference / square_sum(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)).sqrt()
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
                let (loss, norm) = (recorded["loss"].as_f64().expect("a loss"), recorded["grad_norm"].as_f64().expect("a norm"));
                let place = format!("{} {recompute:?} step {step}", variant.name);
                assert!((report.loss - loss).abs() <= 1e-4, "{place}: loss {}, not {loss}", report.loss);
                assert!((report.grad_norm - norm).abs() <= 1e-3 * norm, "{place}: norm {}, not {norm}", report.grad_norm);
            }
            for (module, pair) in &ours.pairs {
                let wanted = &theirs.pairs[module];
                assert_eq!(pair.magnitude.is_some(), variant.spec.dora);
                let magnitudes = pair.magnitude.iter().zip(&wanted.magnitude);
                for (ours, theirs) in [(&pair.a, &wanted.a), (&pair.b, &wanted.b)].into_iter().chain(magnitudes) {
                    let error = relative(ours, theirs);
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
            assert!(relative(&change(pair), &change(theirs)) < 1e-4, "{name} {module}");
        }
    }
}

#[test]
fn first_values_are_those_of_peft() {
    for name in ["pissa", "pissa_rslora", "pissa_dora", "olora"] {
        let variant = Variant::named(name);
        let (ours, theirs) = (variant.spec.initialise(&variant.base(), Quant::None, 1).expect("begins"), variant.start());
        assert!(ours.pairs.keys().eq(theirs.pairs.keys()), "{name}");
        for (module, pair) in &ours.pairs {
            let wanted = &theirs.pairs[module];
            // Signs and directions of equal singular values are free; the product is not.
            let product = |pair: &HostPair| change(&HostPair { subtracted: None, ..pair.clone() });
            let error = relative(&product(pair), &product(wanted));
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

/// The bases over which a variant runs: dense, and packed by each scheme.
fn bases() -> Vec<(PathBuf, Quant)> {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let packed = [Quant::None, Quant::Nf4, Quant::Nf4Double, Quant::Int8].map(|quant| (fixture("models/llama_gqa"), quant));
    packed.into_iter().chain([(fixture("gguf/smollm.gguf"), Quant::Keep), (fixture("blocks/tiny.gguf"), Quant::Keep)]).collect()
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
    let error = relative(&found, &expected.floats("logits"));
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
    let refused = |spec: AdapterSpec| spec.begin(&base, Quant::None, &[], 0).expect_err("refused").to_string();
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
    let found = like.begin(&dora.base(), Quant::None, &[], 0).expect("the adapter itself");
    assert_eq!(found.pairs, dora.saved().expect("PEFT's").pairs);
    let refused = |spec: AdapterSpec| spec.begin(&dora.base(), Quant::None, &[], 0).expect_err("refused").to_string();
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
        let options =
            CombineOptions { method, weights: vec![1.0], density: None, majority: Majority::Total, rank: None, seed: 0 };
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
    let options =
        CombineOptions { method: Method::Cat, weights: vec![0.5, 0.5], density: None, majority: Majority::Total, rank: None, seed: 0 };
    let both = [("one".to_owned(), trained.clone()), ("other".to_owned(), trained.clone())];
    let combined = combine(&both, &options).expect("combined");
    for (module, pair) in &combined.pairs {
        assert!(relative(&change(pair), &change(&trained.pairs[module])) < 1e-4, "{module}");
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
        let adapter = |folder: &tempfile::TempDir| std::fs::read(folder.path().join("runs/sums/adapter_model.safetensors"));
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
