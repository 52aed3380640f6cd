//! Several adapters as one, against PEFT's `add_weighted_adapter`.

use std::path::{Path, PathBuf};

use burnish::adapter::combine::{CombineOptions, Majority, Method, combine};
use burnish::adapter::host::{HostAdapter, HostPair, provenance};
use serde_json::Value;

use crate::cli::burnish;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(name: &str) -> (String, HostAdapter) {
    (name.to_owned(), HostAdapter::load(&fixture("adapters").join(name)).expect("an adapter"))
}

fn options(method: Method, weights: &[f64]) -> CombineOptions {
    CombineOptions { method, weights: weights.to_vec(), density: None, majority: Majority::Total, rank: None, seed: 0 }
}

/// `s·B·A`.
fn product(pair: &HostPair) -> Vec<f64> {
    let mut product = vec![0.0; pair.output * pair.input];
    for row in 0..pair.output {
        for inner in 0..pair.rank {
            let b = f64::from(pair.b[row * pair.rank + inner]) * f64::from(pair.scale);
            for column in 0..pair.input {
                product[row * pair.input + column] += b * f64::from(pair.a[inner * pair.input + column]);
            }
        }
    }
    product
}

/// The same adapter of PEFT.
fn expected(name: &str) -> Vec<(String, HostPair)> {
    let bytes = std::fs::read(fixture("combinations").join(format!("{name}.safetensors"))).expect("a fixture");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    let values = |name: &str| -> (Vec<usize>, Vec<f32>) {
        let view = file.tensor(name).expect(name);
        let values = view.data().chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
        (view.shape().to_vec(), values.collect())
    };
    let mut modules: Vec<&str> = file.names().into_iter().filter_map(|name| name.strip_suffix(".lora_A")).collect();
    modules.sort_unstable();
    let pair = |module: &str| {
        let ((a_shape, a), (b_shape, b)) = (values(&format!("{module}.lora_A")), values(&format!("{module}.lora_B")));
        HostPair { a, b, rank: a_shape[0], input: a_shape[1], output: b_shape[0], scale: 1.0, ..HostPair::default() }
    };
    modules.into_iter().map(|module| (module.to_owned(), pair(module))).collect()
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * largest, "{what}: {found}, PEFT has {expected}");
    }
}

#[test]
fn every_method_equals_pefts() {
    let three = &["qv", "seven", "rslora"][..];
    let two = &["qv", "seven_and_head"][..];
    let with = |method, weights: &[f64], density, majority, rank| CombineOptions {
        density,
        majority,
        rank,
        ..options(method, weights)
    };
    let (total, frequency) = (Majority::Total, Majority::Frequency);
    let cases = [
        ("linear", two, with(Method::Linear, &[0.75, -0.5], None, total, None)),
        ("cat", three, with(Method::Cat, &[0.5, 1.25, -1.0], None, total, None)),
        ("svd", three, with(Method::Svd, &[0.5, 1.25, -1.0], None, total, Some(6))),
        ("svd_default_rank", &three[..2], with(Method::Svd, &[1.0, 1.0], None, total, None)),
        ("ties", two, with(Method::Ties, &[0.75, 0.5], Some(0.3), total, None)),
        ("ties_frequency", two, with(Method::Ties, &[0.75, -0.5], Some(0.7), frequency, None)),
        ("dare", two, with(Method::Dare, &[0.75, 0.5], Some(1.0), total, None)),
        ("dare_ties", two, with(Method::DareTies, &[0.75, 0.5], Some(1.0), total, None)),
        ("magnitude_prune", two, with(Method::MagnitudePrune, &[-0.75, 0.5], Some(0.4), total, None)),
        ("one", &two[..1], with(Method::Svd, &[-0.5], None, total, None)),
    ];
    for (name, adapters, options) in cases {
        let adapters: Vec<_> = adapters.iter().map(|name| load(name)).collect();
        let combined = combine(&adapters, &options).expect(name);
        let expected = expected(name);
        assert_eq!(combined.pairs.len(), expected.len(), "{name}");
        for (module, theirs) in &expected {
            let ours = &combined.pairs[module];
            assert_close(&product(ours), &product(theirs), &format!("{name}: {module}"));
            // The factors themselves, where they are unique.
            if !matches!(options.method, Method::Cat | Method::Svd) || adapters.len() == 1 {
                let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
                assert_close(&wide(&ours.a), &wide(&theirs.a), &format!("{name}: A of {module}"));
                assert_close(&wide(&ours.b), &wide(&theirs.b), &format!("{name}: B of {module}"));
            }
        }
    }
}

#[test]
fn dare_keeps_its_share_and_the_expected_value() {
    let adapters = [load("qv"), load("qv")];
    let whole = combine(&adapters, &options(Method::Linear, &[1.0, 0.0])).expect("a combination");
    let sum = |adapter: &HostAdapter| {
        adapter.pairs.values().flat_map(|pair| &pair.a).map(|value| f64::from(value.abs())).sum::<f64>()
    };
    let (mut kept, mut sums) = (0, 0.0);
    for seed in 0..200 {
        let options = CombineOptions { density: Some(0.25), seed, ..options(Method::Dare, &[1.0, 0.0]) };
        let dropped = combine(&adapters, &options).expect("a combination");
        kept += dropped.pairs.values().flat_map(|pair| &pair.a).filter(|value| **value != 0.0).count();
        sums += sum(&dropped);
    }
    let values: usize = whole.pairs.values().map(|pair| pair.a.len()).sum();
    let share = kept as f64 / (200 * values) as f64;
    // 200 draws of about 800 values: six standard deviations are 0.007.
    assert!((share - 0.25).abs() < 0.007, "{share}");
    assert!((sums / 200.0 / sum(&whole) - 1.0).abs() < 0.03, "{}", sums / 200.0 / sum(&whole));
}

#[test]
fn adapters_that_do_not_belong_together_are_refused() {
    let refusal = |adapters: &[(String, HostAdapter)], options: &CombineOptions| {
        combine(adapters, options).expect_err("refused").to_string()
    };
    let message = refusal(&[load("qv"), load("seven")], &options(Method::Ties, &[1.0, 1.0]));
    assert!(message.contains("seven: module model.layers.0.self_attn.q_proj: has rank 3, and qv rank 4"), "{message}");
    let message = refusal(&[load("qv"), load("odd")], &options(Method::Cat, &[1.0, 1.0]));
    assert!(message.contains("odd: module model.layers.0.self_attn.q_proj: changes a weight ["), "{message}");
    let (mut one, mut other) = (load("qv"), load("seven_and_head"));
    one.1.metadata.insert(provenance::BASE_SHA256.to_owned(), "aa".to_owned());
    other.1.metadata.insert(provenance::BASE_SHA256.to_owned(), "bb".to_owned());
    let message = refusal(&[one, other], &options(Method::Cat, &[1.0, 1.0]));
    assert!(message.contains("seven_and_head: `burnish.base_sha256` is bb, and that of qv is aa"), "{message}");
    let bad = CombineOptions { density: Some(1.5), rank: Some(3), ..options(Method::Ties, &[1.0, f64::NAN, 2.0]) };
    let message = refusal(&[load("qv"), load("seven_and_head")], &bad);
    for part in ["3 weights; expected one for each of 2 adapters", "has NaN", "is 1.5; expected a share", "only `svd`"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn the_command_writes_a_folder_that_can_be_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |out: &str, more: &[&str]| {
        let mut command = burnish(&folder);
        command
            .arg("combine")
            .args([fixture("adapters/qv"), fixture("adapters/layers")])
            .args(["--out", out, "--json"]);
        command.args(more).output().expect("it starts")
    };
    let done = run("sum", &["--weights=0.5,-1"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let again = HostAdapter::load(&folder.path().join("sum")).expect("an adapter");
    assert_eq!(report["modules"], again.pairs.len());
    let wanted = combine(&[load("qv"), load("layers")], &options(Method::Cat, &[0.5, -1.0])).expect("a combination");
    assert_eq!(again.pairs, wanted.pairs);
    assert_eq!(run("sum", &[]).status.code(), Some(2), "an existing folder stays as it is");
    let refused = run("none", &["--weights=1"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(!folder.path().join("none").exists());
}
