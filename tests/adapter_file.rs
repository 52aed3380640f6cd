//! The PEFT adapter folder: what PEFT wrote is read as PEFT means it, and what we write is what PEFT writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burnish::adapter::host::{HostAdapter, provenance};
use burnish::adapter::peft::{PeftConfig, SaveOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters").join(name)
}

/// Names of targets, as [`SaveOptions`] takes them.
fn named(targets: &[&str]) -> Vec<String> {
    targets.iter().map(|target| (*target).to_owned()).collect()
}

fn load(name: &str) -> HostAdapter {
    HostAdapter::load(&fixture(name)).expect("an adapter that PEFT wrote")
}

fn pair<'a>(adapter: &'a HostAdapter, module: &str) -> &'a burnish::adapter::host::HostPair {
    adapter.pairs.get(module).unwrap_or_else(|| panic!("a pair for {module}"))
}

/// Every tensor of a file, as the safetensors crate reads it.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(path).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), view.data().to_vec()))).collect()
}

const SEVEN_AND_HEAD: [&str; 8] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"];

#[test]
fn sizes_ranks_and_scales_are_those_of_peft() {
    let qv = load("qv");
    assert_eq!((qv.pairs.len(), qv.rank, qv.alpha), (4, 4, 8.0));
    let query = pair(&qv, "model.layers.1.self_attn.q_proj");
    assert_eq!((query.rank, query.input, query.output, query.scale), (4, 32, 32, 2.0));
    let value = pair(&qv, "model.layers.0.self_attn.v_proj");
    assert_eq!((value.input, value.output, value.a.len(), value.b.len()), (32, 16, 128, 64));

    let rslora = load("rslora");
    assert!(rslora.pairs.values().all(|pair| pair.scale == (5.0f64 / 3.0) as f32));
    assert_eq!(load("seven").pairs.len(), 14);
    assert_eq!(pair(&load("seven_and_head"), "lm_head").output, 96);
    let regex: Vec<_> = load("regex").pairs.into_keys().collect();
    assert_eq!(regex, ["model.layers.1.self_attn.o_proj", "model.layers.1.self_attn.q_proj"]);
}

/// `rank_pattern` and `alpha_pattern` of tests/reference/make_adapters.py over r 4, alpha 6.
#[test]
fn patterns_give_each_module_its_rank_and_scale() {
    let patterns = load("patterns");
    let expected = [
        ("model.layers.0.self_attn.q_proj", 4, 6.0 / 4.0),
        ("model.layers.1.self_attn.q_proj", 7, 6.0 / 7.0),
        ("model.layers.0.self_attn.k_proj", 2, 6.0 / 2.0),
        ("model.layers.1.self_attn.v_proj", 4, 1.0 / 4.0),
        ("model.layers.0.mlp.up_proj", 5, 6.0 / 5.0),
        ("model.layers.0.mlp.down_proj", 5, 6.0 / 5.0),
        ("model.layers.1.mlp.down_proj", 4, 20.0 / 4.0),
    ];
    for (module, rank, scale) in expected {
        let pair = pair(&patterns, module);
        assert_eq!((pair.rank, pair.scale), (rank, scale as f32), "{module}");
    }
}

#[test]
fn the_numbers_are_those_in_the_file() {
    let adapter = load("odd");
    for (name, (shape, bytes)) in tensors(&fixture("odd").join("adapter_model.safetensors")) {
        let path = name.strip_prefix("base_model.model.").and_then(|path| path.strip_suffix(".weight"));
        let (module, half) = path.and_then(|path| path.rsplit_once('.')).expect("PEFT's naming");
        let pair = pair(&adapter, module);
        let (values, expected_shape) = match half {
            "lora_A" => (&pair.a, [pair.rank, pair.input]),
            _ => (&pair.b, [pair.output, pair.rank]),
        };
        assert_eq!(shape, expected_shape);
        assert_eq!(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>(), bytes, "{name}");
    }
}

#[test]
fn what_is_saved_equals_what_peft_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, targets, rslora) in [
        ("seven", &SEVEN_AND_HEAD[..7], false),
        ("seven_and_head", &SEVEN_AND_HEAD[..], false),
        ("rslora", &SEVEN_AND_HEAD[..4], true),
        ("patterns", &SEVEN_AND_HEAD[..7], false),
        ("odd", &SEVEN_AND_HEAD[..7], false),
    ] {
        let adapter = load(name);
        let base_name = PeftConfig::read(&fixture(name)).expect("a configuration").base_name;
        let dir = folder.path().join(name);
        let options =
            SaveOptions { targets: &named(targets), base_name: base_name.as_deref(), rslora, ..SaveOptions::default() };
        adapter.save(&dir, &options).expect("saved");
        assert_eq!(HostAdapter::load(&dir).expect("ours"), adapter, "{name}");
        let file = "adapter_model.safetensors";
        assert_eq!(tensors(&dir.join(file)), tensors(&fixture(name).join(file)), "{name}");
        assert_same_settings(&dir, &fixture(name));
        assert_eq!(std::fs::read_dir(&dir).expect("listed").count(), 2, "only the two files stay");
    }
}

/// Every key that we write has PEFT's value, where the order and the notation of patterns are free.
fn assert_same_settings(ours: &Path, peft: &Path) {
    let read = |dir: &Path| -> serde_json::Value {
        let text = std::fs::read_to_string(dir.join("adapter_config.json")).expect("a configuration");
        serde_json::from_str(&text).expect("JSON")
    };
    let (ours, peft) = (read(ours), read(peft));
    for (key, value) in ours.as_object().expect("an object") {
        match key.as_str() {
            "rank_pattern" | "alpha_pattern" => {}
            "target_modules" => {
                let names = |value: &serde_json::Value| -> std::collections::BTreeSet<String> {
                    serde_json::from_value(value.clone()).expect("names")
                };
                assert_eq!(names(value), names(&peft[key]));
            }
            // PEFT writes 0.0 as we do, alpha as an integer.
            _ => assert_eq!(value, &peft[key], "{key}"),
        }
    }
}

#[test]
fn saving_over_an_adapter_replaces_all_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = SaveOptions { targets: &named(&SEVEN_AND_HEAD[..7]), ..SaveOptions::default() };
    let (mut first, second) = (load("seven"), load("odd"));
    first.save(folder.path(), &options).expect("saved");
    first.metadata.insert(provenance::SEED.to_owned(), "7".to_owned());
    first.pairs.values_mut().for_each(|pair| pair.a.fill(0.5));
    first.save(folder.path(), &options).expect("the same configuration");
    assert_eq!(HostAdapter::load(folder.path()).expect("ours"), first);
    second.save(folder.path(), &options).expect("another configuration");
    assert_eq!(HostAdapter::load(folder.path()).expect("ours"), second);
}

/// A folder in the weights' place makes the rename fail: the old configuration must not stay for the next reader.
#[test]
fn a_save_that_fails_leaves_no_adapter_of_two_halves() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("adapter_config.json");
    std::fs::write(&config, "{}").expect("an old configuration");
    std::fs::create_dir_all(folder.path().join("adapter_model.safetensors/x")).expect("in the way");
    let options = SaveOptions { targets: &named(&SEVEN_AND_HEAD[..7]), ..SaveOptions::default() };
    let error = load("seven").save(folder.path(), &options).expect_err("a folder is in the way");
    assert_eq!(error.exit_code(), 1);
    assert!(!config.exists());
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "nothing temporary stays");
}

#[test]
fn the_same_adapter_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut adapter = load("seven");
    adapter.metadata = [provenance::BASE_SHA256, provenance::SEED, provenance::VERSION, provenance::QUANT]
        .map(|key| (key.to_owned(), format!("value of {key}")))
        .into();
    let bytes = ["a", "b"].map(|name| {
        let dir = folder.path().join(name);
        adapter
            .save(
                &dir,
                &SaveOptions {
                    targets: &named(&SEVEN_AND_HEAD[..7]),
                    base_name: Some("org/name"),
                    ..SaveOptions::default()
                },
            )
            .expect("saved");
        (std::fs::read(dir.join("adapter_config.json")).ok(), std::fs::read(dir.join("adapter_model.safetensors")).ok())
    });
    assert_eq!(bytes[0], bytes[1]);
    assert_eq!(HostAdapter::load(&folder.path().join("a")).expect("ours").metadata, adapter.metadata);
}
