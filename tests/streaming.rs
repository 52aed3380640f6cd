//! Models larger than memory: layers read from their files as they are needed, and activations computed again layer by layer, to the bit.

use std::fs;
use std::path::Path;

use burn::optim::GradientsParams;
use burn::tensor::Device;
use burnish::adapter::host::HostAdapter;
use burnish::model::decoder::Recompute;
use burnish::model::gradients::{Receiver, RecomputedLayers};
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::quantize::{QuantizeOptions, quantize};
use burnish::model::{BaseFiles, Batch, Decoder};
use burnish::nn::{Adapter, Noise};
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{json, refused, run, text, tiny_job, tiny_model};
use crate::model::{base_of, fixtures, turn};

/// The losses of a part and its gradients, in the order of the adapter's matrices.
type Outcome = (Vec<f32>, Vec<Option<Vec<f32>>>);

/// Keeps what comes, and sees that all of a matrix comes at once.
struct Keeping<'a> {
    adapter: &'a Adapter,
    parts: Vec<Outcome>,
}

impl Receiver for Keeping<'_> {
    fn weigh(&mut self, part: usize, losses: &[f32]) -> Vec<f32> {
        self.parts[part].0 = losses.to_vec();
        (0..losses.len()).map(|index| 1.0 / (3 + index) as f32).collect()
    }

    fn take(&mut self, part: usize, mut gradients: GradientsParams) {
        for (index, matrix) in self.adapter.matrices().enumerate() {
            let Some(gradient) = gradients.remove::<2>(matrix.id) else { continue };
            let kept = &mut self.parts[part].1[index];
            assert!(kept.is_none(), "matrix {index} comes twice");
            *kept = Some(gradient.into_data().iter::<f32>().collect());
        }
    }
}

fn outcomes(decoder: &Decoder, adapter: &Adapter, batches: &[Batch], recompute: RecomputedLayers) -> Vec<Outcome> {
    let nothing = (Vec::new(), vec![None; adapter.matrices().count()]);
    let mut keeping = Keeping { adapter, parts: vec![nothing; batches.len()] };
    let parts = batches.iter().map(|batch| (batch, Noise::default())).collect();
    decoder.accumulate(parts, adapter, recompute, &mut keeping);
    keeping.parts
}

fn batches(vocabulary: usize) -> Vec<Batch> {
    let batch = |first: u32, lengths: &[usize]| {
        let tokens = lengths.iter().sum::<usize>();
        Batch {
            ids: (0..tokens as u32).map(|token| (first + 7 * token) % vocabulary as u32).collect(),
            lengths: lengths.to_vec(),
            trained: (0..tokens).map(|token| token % 3 > 0).collect(),
        }
    };
    vec![batch(1, &[9, 14]), batch(5, &[20]), batch(11, &[3, 4, 5])]
}

#[test]
fn recomputed_and_streamed_layers_change_no_bit() {
    let _turn = turn();
    for folder in fixtures("adapters") {
        let base = BaseFiles::open(&base_of(&folder)).expect("a base");
        let host = HostAdapter::load_over(&folder, &base).expect("an adapter");
        let device = Device::flex();
        // Modules that are trained as a whole are trained in f32.
        let computes = if host.whole.is_empty() { &[Compute::F32, Compute::Bf16][..] } else { &[Compute::F32] };
        for &compute in computes {
            let options = LoadOptions { device: device.clone(), compute, quant: Quant::None };
            let resident = Decoder::load(&base, &options, |_, _| {}).expect("loads");
            let streamed = Decoder::load_streamed(&base, &options, |_, _| {}).expect("loads");
            assert!(streamed.is_streamed() && !resident.is_streamed());
            let adapter = host.attach(resident.config(), &device.clone().autodiff()).expect("fits");
            let batches = batches(resident.config().vocab_size);
            let one_by_one = |decoder: &Decoder, recompute| -> Vec<Outcome> {
                batches.chunks(1).flat_map(|batch| outcomes(decoder, &adapter, batch, recompute)).collect()
            };
            let expected = one_by_one(&resident, Recompute::Block.into());
            assert!(expected.iter().all(|(losses, _)| losses.iter().all(|loss| loss.is_finite())));
            let place = format!("{} in {compute}", folder.display());
            for recomputed in 0..resident.config().layers {
                let found = one_by_one(&resident, RecomputedLayers(recomputed));
                assert!(found == expected, "{place}: {recomputed} layers computed again");
            }
            let all = RecomputedLayers(usize::MAX);
            assert!(outcomes(&resident, &adapter, &batches, all) == expected, "{place}: parts together");
            assert!(
                outcomes(&streamed, &adapter, &batches, RecomputedLayers(0)) == expected,
                "{place}: streamed together"
            );
            assert!(one_by_one(&streamed, Recompute::None.into()) == expected, "{place}: streamed one by one");
            let logits = |decoder: &Decoder| -> Vec<f32> {
                let frozen = host.attach(decoder.config(), &device).expect("fits");
                let logits = decoder.logits(&batches[0].ids, &batches[0].lengths, Some(&frozen));
                logits.into_data().iter::<f32>().collect()
            };
            assert_eq!(logits(&resident), logits(&streamed), "{place}");
        }
    }
}

/// The tiny job over a base that `quantize` packed, a sequence at a time and three to a step.
fn packed_job(scheme: &str) -> TempDir {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    json(&run(&folder, &["quantize", "--base", &base, "--out", "packed", "--scheme", scheme, "--json"]));
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("a recipe").replace(&format!("{:?}", tiny_model()), "\"packed\"");
    let recipe = recipe.replace("[train]\n", "[train]\nmicro_batch_seqs = 1\naccumulate_steps = 3\n");
    fs::write(&path, recipe.replace("epochs = 2", "epochs = 1")).expect("written");
    folder
}

/// Trains with these arguments; the metrics, the adapter and `run.json`.
fn trained(folder: &TempDir, arguments: &[&str]) -> (Vec<u8>, Vec<u8>, Value) {
    let output = run(folder, &[&["train", "recipe.toml", "--json"][..], arguments].concat());
    json(&output);
    let out = folder.path().join("runs/sums");
    let read = |name: &str| fs::read(out.join(name)).expect("a file");
    let result = (read("metrics.jsonl"), read("adapter_model.safetensors"), read("run.json"));
    fs::remove_dir_all(&out).expect("removed");
    let about: Value = serde_json::from_slice(&result.2).expect("JSON");
    (result.0, result.1, about)
}

#[test]
fn a_limit_below_the_size_of_the_base_trains_the_same_adapter() {
    for scheme in ["nf4", "nf4-double", "int8"] {
        let folder = packed_job(scheme);
        let planned = |arguments: &[&str]| {
            let checked = run(&folder, &[&["check", "recipe.toml", "--json"][..], arguments].concat());
            (json(&checked), text(&checked.stderr))
        };
        let (all_again, _) = planned(&["--set", "train.recompute=block"]);
        assert_eq!(all_again["memory"]["read_a_step"], 0);
        let limit = (all_again["memory_bytes"].as_u64().expect("bytes") - 1).to_string();
        let limited = ["--max-memory", limit.as_str()];
        let (streamed, said) = planned(&limited);
        assert!(said.contains("layers are read from the disk as they are needed"), "{said}");
        assert!(said.contains("of weights, forward and back for") && said.contains("that the disk gives"), "{said}");
        // Two layers, each forward and back, and the head, which is the embedding.
        let read = streamed["memory"]["read_a_step"].as_u64().expect("bytes");
        let base = BaseFiles::open(&folder.path().join("packed")).expect("a base");
        let packed = |name: &&str| base.is_projection(name);
        let size =
            |name: &str| base.stored_bytes(name) + if scheme == "int8" { 0 } else { base.stored_scale_bytes(name) };
        let layers: usize = base.tensor_names().filter(packed).map(size).sum();
        let once = 2 * layers + base.stored_bytes("model.embed_tokens.weight");
        assert!(read >= once as u64 && read.is_multiple_of(once as u64), "{scheme}: {read}, {once} for one pass");

        let (metrics, adapter, about) = trained(&folder, &[]);
        let (streamed_metrics, streamed_adapter, streamed_about) = trained(&folder, &limited);
        assert_eq!(about["layout"]["parts_a_pass"], Value::Null);
        assert!(streamed_about["layout"]["parts_a_pass"].is_u64(), "{}", streamed_about["layout"]);
        assert!(text(&metrics) == text(&streamed_metrics), "{scheme}: the same losses");
        assert!(adapter == streamed_adapter, "{scheme}: the same adapter");
    }
}

#[test]
fn a_base_that_is_packed_while_loading_cannot_be_streamed() {
    let folder = tiny_job();
    let check = ["check", "recipe.toml", "--max-memory", "2MiB", "--set", "base.quant=nf4"];
    let error = refused(&run(&folder, &check));
    assert!(error.contains("`burnish quantize`"), "{error}");
}

/// Bytes of mapped files under `folder` that are in the memory of this process.
#[cfg(target_os = "linux")]
fn resident_bytes(folder: &Path) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").expect("the maps of this process");
    let (mut is_inside, mut kilobytes) = (false, 0);
    for line in maps.lines() {
        if let Some(size) = line.strip_prefix("Rss:") {
            let size = size.trim().trim_end_matches(" kB").parse::<usize>().expect("a size");
            kilobytes += if is_inside { size } else { 0 };
        } else if line.split_whitespace().next().is_some_and(|word| word.contains('-')) {
            is_inside = line.contains(&folder.display().to_string());
        }
    }
    kilobytes << 10
}

#[cfg(target_os = "linux")]
#[test]
fn layers_that_are_not_needed_are_not_in_memory() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let (model, packed) = (folder.path().join("model"), folder.path().join("packed"));
    fs::create_dir(&model).expect("a folder");
    crate::qlora::middling_model(&model);
    let options = QuantizeOptions { scheme: Quant::Nf4Double, float_type: None, max_shard_bytes: 2_000_000 };
    let written = quantize(&BaseFiles::open(&model).expect("a base"), &packed, &options, |_| Ok(())).expect("written");
    assert!(written.files.len() > 1, "layers lie in several files");
    let base = BaseFiles::open(&packed).expect("a base");
    let options = LoadOptions { device: Device::flex(), compute: Compute::F32, quant: Quant::None };
    let ids: Vec<u32> = (3..40).collect();
    let logits = |decoder: &Decoder| -> Vec<f32> {
        decoder.logits(&ids, &[ids.len()], None).into_data().iter::<f32>().collect()
    };
    let streamed = Decoder::load_streamed(&base, &options, |_, _| {}).expect("loads");
    let of_streamed = logits(&streamed);
    let left = resident_bytes(&packed);
    let resident = Decoder::load(&base, &options, |_, _| {}).expect("loads");
    assert!(logits(&resident) == of_streamed);
    let all = resident_bytes(&packed);
    assert!(all as u64 > written.bytes / 2, "{all} of {} bytes", written.bytes);
    // A weight begins and ends within pages that stay, and an access maps those around it.
    assert!(left < all / 2, "{left} bytes of {all} are left in memory after a pass");
}
