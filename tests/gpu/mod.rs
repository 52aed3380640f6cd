//! The GPU path against the processor's kernels, transformers and torch. `BURNISH_TEST_DEVICE` says on which device: `wgpu`, which
//! needs a Vulkan driver (Mesa's software one will do, docs/devices.md), or `cuda`. Without it, the first that was compiled in.

mod families;
mod jobs;
mod kernels;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burnish::device::{self, DeviceChoice};
use burnish::files::bitsandbytes::{Nf4Scales, Nf4Tensor};
use burnish::files::{Bytes, Dtype, RawTensor};
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, LoadOptions, Quant, computes_in};
use burnish::model::{BaseFiles, Decoder};
use burnish::ops::backward_from::backward_from;
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{Dropout, LowRankPair, Projected, linear};
use burnish::quant::float;

use crate::model::{Expected, largest_difference, load_on, logits, turn};
use crate::ops::values;
use crate::training::Run;

/// Of losses and of logits. Burn's products in f32 on CUDA run on tensor cores in TF32, whose mantissa has ten bits.
const TOLERANCE: f32 = 1e-3;

/// How much larger errors of products in f32 may be on this device than in f32 throughout.
fn product_error() -> f32 {
    if gpu_name().starts_with("cuda") { 50.0 } else { 1.0 }
}

/// The device of the tests, as `--device` names it.
fn gpu_name() -> String {
    let first = if cfg!(feature = "wgpu") { "wgpu" } else { "cuda" };
    std::env::var("BURNISH_TEST_DEVICE").unwrap_or_else(|_| first.to_owned())
}

/// Opened once: looking for adapters takes a while.
fn gpu() -> &'static Device {
    static GPU: LazyLock<Device> = LazyLock::new(|| {
        let choice: DeviceChoice = gpu_name().parse().expect("BURNISH_TEST_DEVICE names a device");
        device::open(&choice).unwrap_or_else(|error| panic!("{error}"))
    });
    &GPU
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load_quantised(device: &Device, path: &Path, quant: Quant) -> Decoder {
    let files = BaseFiles::open(path).expect("a base");
    let options = LoadOptions { device: device.clone(), compute: Compute::F32, quant };
    Decoder::load(&files, &options, |_, _| {}).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn logits_are_those_of_transformers() {
    for name in ["llama_gqa", "llama_bias", "llama_tied", "llama_rope_llama3", "mistral_window", "qwen2"] {
        let folder = fixture("models").join(name);
        let expected = Expected::read(&folder);
        let decoder = load_on(gpu(), &folder, Compute::F32);
        let difference = largest_difference(&logits(&decoder, &expected.ids(), None), &expected.floats("logits"));
        assert!(difference <= TOLERANCE, "{}: {difference}", folder.display());
    }
}

#[test]
fn blocks_of_a_gguf_file_are_decoded() {
    let expected = Expected::read_file(&fixture("gguf/smollm.expected.safetensors"));
    let decoder = load_on(gpu(), &fixture("gguf/smollm.gguf"), Compute::F32);
    let difference = largest_difference(&logits(&decoder, &expected.ids(), None), &expected.floats("logits"));
    assert!(difference <= TOLERANCE, "{difference}");
}

#[test]
fn generation_with_a_cache_gives_the_logits_of_the_whole_sequence() {
    for name in ["llama_gqa", "mistral_window"] {
        let folder = fixture("models").join(name);
        let expected = Expected::read(&folder);
        let (ids, logits) = (expected.ids(), expected.floats("logits"));
        let decoder = load_on(gpu(), &folder, Compute::F32);
        let vocabulary = decoder.config().vocab_size;
        let (mut first, mut other) = (decoder.begin(), decoder.begin());
        let half = ids.len() / 2;
        decoder.next_logits(&[&ids[..half]], &mut [&mut first], None);
        for position in half..ids.len() {
            let new = [&ids[position..position + 1], &ids[3..4]];
            let next = decoder.next_logits(&new, &mut [&mut first, &mut other], None);
            let row = &logits[position * vocabulary..(position + 1) * vocabulary];
            let difference = largest_difference(&next[0], row);
            assert!(difference <= TOLERANCE, "{name} at {position}: {difference}");
        }
    }
}

/// Packed `[rows, columns]` weights of every kind: as burnish makes them, and with another of bitsandbytes' block sizes.
fn packed(rows: usize, columns: usize) -> [Nf4Tensor; 3] {
    let values = values(rows * columns, 7);
    let bytes = Bytes::from(float::encode_f32(&values));
    let raw = RawTensor { dtype: Dtype::F32, shape: vec![rows, columns], bytes };
    let quantise = |double| Nf4Tensor::quantise("a weight", &raw, double).expect("finite");
    let (single, double) = (quantise(false), quantise(true));
    let scales: Vec<f32> = values.iter().step_by(32).map(|value| value.abs()).collect();
    let other = Nf4Tensor { block: 32, scales: Nf4Scales::Single(scales.into()), ..single.clone() };
    [single, double, other]
}

/// Sizes at, below and above those of a tile; blocks that end within rows; more than one block of nested scales.
const SIZES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 5, 7), (16, 64, 64), (17, 65, 130), (64, 128, 16), (70, 131, 129), (130, 67, 301)];

/// `y`, and the gradients of `x`, the factors and the residual, of a projection with all that it can have.
fn project(weight: &FrozenWeight, tokens: usize, device: &Device) -> Vec<Vec<f32>> {
    let [out, input] = weight.dims();
    let leaf = |rows: usize, columns: usize, seed| {
        let data = TensorData::new(values(rows * columns, seed), [rows, columns]);
        Tensor::<2>::from_data(data, &device.clone().autodiff()).require_grad()
    };
    let [x, a, b, residual] = [leaf(tokens, input, 1), leaf(3, input, 2), leaf(out, 3, 3), leaf(tokens, out, 4)];
    let dropout = Some(Dropout { probability: 0.25, seed: 5, tokens: (0..tokens as u64).collect() });
    let low_rank = Some(LowRankPair { a: a.clone(), b: b.clone(), scale: 0.5, dropout });
    let bias = values(out, 6);
    let group = [
        Projected { weight, bias: Some(&bias), low_rank, column_scale: None },
        Projected { weight, bias: None, low_rank: None, column_scale: None },
    ];
    let both = Tensor::cat(vec![residual.clone(), residual.clone()], 1);
    let y = linear(x.clone(), &group, Some(both));
    let upstream = TensorData::new(values(tokens * 2 * out, 8), [tokens, 2 * out]);
    let gradients = backward_from(y.clone(), Tensor::from_data(upstream, device));
    let floats = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect();
    let leaves = [x, a, b, residual].map(|leaf| floats(leaf.grad(&gradients).expect("a gradient")));
    [vec![floats(y.inner())], leaves.into()].concat()
}

#[test]
fn products_by_a_packed_weight_are_those_of_the_decoded_one() {
    for (tokens, out, input) in SIZES {
        for tensor in packed(out, input) {
            let there = FrozenWeight::from_nf4(&tensor, out, input, gpu());
            let here = FrozenWeight::from_values(tensor.to_f32(), out, input, &Device::flex(), DType::F32);
            let (ours, expected) = (project(&there, tokens, gpu()), project(&here, tokens, &Device::flex()));
            for (index, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
                let difference = largest_difference(ours, expected);
                let place = format!("{tokens} x {out} x {input}, block {}, value {index}", tensor.block);
                assert!(difference <= 5e-5 * product_error(), "{place}: {difference}");
            }
        }
    }
}

#[test]
fn a_packed_weight_decodes_on_the_device_as_on_the_processor() {
    for (_, out, input) in SIZES {
        for tensor in packed(out, input) {
            let there = FrozenWeight::from_nf4(&tensor, out, input, gpu());
            let expected = tensor.to_f32();
            let ours: Vec<f32> = there.tensor(gpu()).into_data().iter::<f32>().collect();
            // A device may fuse the multiplication and addition of a nested scale.
            let tolerance = if matches!(tensor.scales, Nf4Scales::Single(_)) { 0.0 } else { 1e-6 };
            let difference = largest_difference(&ours, &expected);
            assert!(difference <= tolerance, "{out} x {input}, block {}: {difference}", tensor.block);
            let last = out - 1;
            assert_eq!(there.select(&[last as u32, 0]), [&ours[last * input..], &ours[..input]].concat());
        }
    }
}

/// How many of a decoder's weights lie packed on the device.
fn packed_weights(decoder: &Decoder) -> usize {
    format!("{decoder:?}").matches("DeviceNf4 {").count()
}

#[test]
fn what_bitsandbytes_packed_in_nf4_stays_packed() {
    for name in ["nf4_model", "nf4_double_model"] {
        let ids: Vec<u32> = (0..20).collect();
        let [there, here] =
            [gpu(), &Device::flex()].map(|device| load_on(device, &fixture("blocks").join(name), Compute::F32));
        assert_eq!(packed_weights(&there), 7 * there.config().layers, "{name}");
        let files = BaseFiles::open(&fixture("blocks").join(name)).expect("a base");
        let [there_bytes, here_bytes] = [gpu(), &Device::flex()].map(|device| {
            let options = LoadOptions { device: device.clone(), compute: Compute::F32, quant: Quant::None };
            options.bytes_of(&files, "model.layers.0.mlp.down_proj.weight")
        });
        assert_eq!(there_bytes, here_bytes, "{name}");
        let difference = largest_difference(&logits(&there, &ids, None), &logits(&here, &ids, None));
        assert!(difference <= TOLERANCE, "{name}: {difference}");
    }
}

/// Replays a recorded run on both devices: every step's loss and gradient norm must agree, and over dense weights the loss with PEFT's.
fn compare_run(name: &str, quant: Quant, recompute: Recompute) {
    let run = Run::read(&fixture("training").join(name));
    let [there, here] = [gpu(), &Device::flex()].map(|device| load_quantised(device, &run.base, quant));
    let projections = if quant == Quant::None { 0 } else { 7 * there.config().layers };
    assert_eq!(packed_weights(&there), projections, "{name} {quant:?}");
    let [ours, expected] = [&there, &here].map(|decoder| run.replay(decoder, recompute).0);
    assert!(!ours.is_empty());
    for (index, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        let place = format!("{name} {quant:?} {recompute:?} step {index}");
        let (loss, norm) = (ours.loss - expected.loss, ours.grad_norm - expected.grad_norm);
        assert!(loss.abs() <= f64::from(TOLERANCE), "{place}: loss {} - {}", ours.loss, expected.loss);
        if quant == Quant::None {
            let theirs = run.steps[index]["loss"].as_f64().expect("a loss");
            assert!((ours.loss - theirs).abs() <= f64::from(TOLERANCE), "{place}: loss {}, PEFT {theirs}", ours.loss);
        }
        let norm_tolerance = 1e-3 * f64::from(product_error()).sqrt();
        assert!(
            norm.abs() <= norm_tolerance * expected.grad_norm,
            "{place}: {} - {}",
            ours.grad_norm,
            expected.grad_norm
        );
    }
}

#[test]
fn the_losses_of_a_run_are_the_processors() {
    let _turn = turn();
    for name in ["qv", "seven_and_head"] {
        for recompute in [Recompute::None, Recompute::Block] {
            compare_run(name, Quant::None, recompute);
        }
    }
}

#[test]
fn the_losses_of_a_run_over_nf4_are_the_processors() {
    let _turn = turn();
    compare_run("qv", Quant::Nf4, Recompute::None);
    compare_run("seven_and_head", Quant::Nf4Double, Recompute::Block);
}

#[test]
fn what_only_the_processor_can_do_is_a_named_error() {
    let dense = fixture("models/llama_gqa");
    for (base, compute, quant, place) in [
        (&dense, Compute::F32, Quant::Int8, "base.quant"),
        (&fixture("gguf/smollm.gguf"), Compute::F32, Quant::Keep, "base.quant"),
        (&fixture("blocks/int8_model"), Compute::F32, Quant::None, "base.quant"),
    ] {
        let files = BaseFiles::open(base).expect("a base");
        let error =
            Decoder::load(&files, &LoadOptions { device: gpu().clone(), compute, quant }, |_, _| {}).expect_err(place);
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(place), "{place}: {error}");
    }
    if !computes_in(gpu(), Compute::Bf16) {
        let options = LoadOptions { device: gpu().clone(), compute: Compute::Bf16, quant: Quant::None };
        let error = options.check().expect_err("no bf16");
        assert!(error.exit_code() == 2 && error.to_string().contains("base.compute"), "{error}");
    }
}
