//! Low-rank pairs on tower and connector against PEFT, the choice of their modules, and the whole job with them (fixtures/vision,
//! tests/reference/make_vision.py).

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use burnish::adapter::host::HostAdapter;
use burnish::adapter::init::Init;
use burnish::adapter::map::map;
use burnish::adapter::merge::{MergeOptions, merge};
use burnish::adapter::peft::SaveOptions;
use burnish::adapter::spec::{AdapterSpec, Bias, Modules, Targets};
use burnish::files::safetensors::SafeTensorsFile;
use burnish::model::decoder::Recompute;
use burnish::model::load::Compute;
use burnish::model::{BaseFiles, Batch, Decoder, ModelConfig};
use burnish::nn::{Adapter, Noise, token_numbers};
use burnish::quant::Quant;
use burnish::run::OpenBase;
use serde_json::Value;

use crate::cli::{json as printed, refused, run, text};
use crate::hostile_weights::fixture;
use crate::model::{Expected, largest_difference, load, logits, turn};
use crate::vision::{ANSWER, assert_near, job, keep, open, rows, show};

/// The models with an adapter of PEFT over tower and connector.
const SEEING: [&str; 3] = ["smolvlm_tiles", "llava_clip", "llava_siglip"];

/// A model that has met the pictures of its rows and keeps them, its rows, and an adapter of PEFT.
fn prepared(name: &str, compute: Compute) -> (OpenBase, Decoder, Vec<Vec<u32>>, HostAdapter) {
    let folder = fixture("vision").join(name);
    let (base, decoder) = (open(&folder), load(&folder, compute));
    let all = rows(&base, &folder);
    show(&base, &decoder);
    keep(&base, &decoder, compute);
    let adapter = HostAdapter::load_over(&folder.join("seeing_adapter"), &base.files).expect("PEFT's adapter");
    (base, decoder, all, adapter)
}

/// The tensors in a folder's file of weights.
fn names(folder: &Path) -> Vec<String> {
    let file = SafeTensorsFile::open(&folder.join("adapter_model.safetensors")).expect("weights");
    file.names().map(str::to_owned).collect()
}

/// Gradients by module and half, as far as there are any.
type Gradients = Vec<(String, Option<Vec<f32>>)>;

/// The mean loss over the last tokens of rows, and its gradients.
fn gradients(
    decoder: &Decoder,
    adapter: &Adapter,
    rows: &[&[u32]],
    noise: Noise,
    recompute: Recompute,
) -> (f32, Gradients) {
    let lengths: Vec<usize> = rows.iter().map(|ids| ids.len()).collect();
    let mask = |length: &usize| (0..*length).map(|at| at + ANSWER >= *length).collect::<Vec<_>>();
    let trained = lengths.iter().flat_map(mask).collect();
    let batch = Batch { ids: rows.concat(), lengths, trained };
    let mut weigh = |losses: &[f32]| vec![1.0 / ANSWER as f32; losses.len()];
    let mut result = decoder.loss_and_gradients(&batch, adapter, noise, recompute, &mut weigh);
    let mut found = Vec::new();
    for (number, site) in decoder.config().all_sites() {
        let Some(delta) = adapter.at(number) else { continue };
        for (parameter, half) in delta.parameters().zip(["lora_A", "lora_B"]) {
            let gradient = result.gradients.remove::<2>(parameter.id);
            let gradient = gradient.map(|gradient| gradient.cast(DType::F32).into_data().iter::<f32>().collect());
            found.push((format!("{}.{half}", site.module), gradient));
        }
    }
    (result.losses.iter().sum::<f32>() / ANSWER as f32, found)
}

/// Off by at most `share` of the greatest value, or of a thousandth.
fn assert_close(found: &[f32], expected: &[f32], share: f32, place: &str) {
    let scale = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
    let difference = largest_difference(found, expected) / scale;
    assert!(difference <= share, "{place}: off by {difference} of {scale}");
}

#[test]
fn pairs_on_tower_and_connector_give_the_logits_losses_and_gradients_of_peft() {
    let _turn = turn();
    for name in SEEING {
        let (base, decoder, all, adapter) = prepared(name, Compute::F32);
        let folder = fixture("vision").join(name);
        let (expected, plain) = (Expected::read_file(&folder.join("seeing.safetensors")), Expected::read(&folder));
        assert_eq!(2 * adapter.pairs.len(), names(&folder.join("seeing_adapter")).len(), "{name}: every pair is read");
        assert!(adapter.changes_vision(base.files.config()), "{name}");
        let trainable = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
        let attached = adapter.attach(decoder.config(), &Device::flex()).expect("fits");
        for (row, ids) in all.iter().enumerate() {
            let place = format!("{name}: row {row}");
            let ids = &ids[..plain.ids_of(&format!("{row}.ids")).len()];
            let wanted = expected.floats(&format!("{row}.logits"));
            assert_near(&logits(&decoder, ids, Some(&attached)), &wanted, &place);
            for recompute in [Recompute::None, Recompute::Block] {
                let (loss, found) = gradients(&decoder, &trainable, &[ids], Noise::default(), recompute);
                let wanted = expected.floats(&format!("{row}.loss"))[0];
                assert!((loss - wanted).abs() < 1e-4, "{place}: {loss}, not {wanted}");
                for (parameter, gradient) in found {
                    let key = format!("{row}.grad.{parameter}");
                    // A text has none for the tower, and a layer behind the state that is used never has.
                    assert_eq!(gradient.is_some(), expected.has(&key), "{place}: {parameter}");
                    let Some(gradient) = gradient else { continue };
                    assert_close(&gradient, &expected.floats(&key), 1e-4, &format!("{place}: {parameter}"));
                }
            }
        }
        merges(&folder, &base, &adapter, &all[1]);
    }
}

/// The merged folder has the tower and the connector with their pairs.
fn merges(folder: &Path, base: &OpenBase, adapter: &HostAdapter, ids: &[u32]) {
    let out = tempfile::tempdir().expect("a folder");
    let merged = out.path().join("merged");
    let save = |folder: &Path| base.encoder.tokenizer().save(folder);
    let report = merge(&base.files, adapter, &merged, &MergeOptions::default(), save).expect("merged");
    assert_eq!(report.modules_changed, adapter.pairs.len(), "unused layers too");
    let (whole, decoder) = (open(&merged), load(&merged, Compute::F32));
    rows(&whole, folder);
    show(&whole, &decoder);
    let expected = Expected::read_file(&folder.join("seeing.safetensors")).floats("1.logits");
    let ours = logits(&decoder, &ids[..expected.len() / decoder.config().vocab_size], None);
    assert_close(&ours, &expected, 1e-3, &format!("{}: merged", folder.display()));
}

#[test]
fn gradients_in_bf16_stay_near() {
    let _turn = turn();
    let of = |compute| {
        let (_, decoder, all, adapter) = prepared("smolvlm_tiles", compute);
        let trainable = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
        gradients(&decoder, &trainable, &[&all[0]], Noise::default(), Recompute::None).1
    };
    for ((parameter, exact), (_, rounded)) in of(Compute::F32).into_iter().zip(of(Compute::Bf16)) {
        let (exact, rounded) = (exact.expect("a gradient"), rounded.expect("a gradient"));
        let distance = crate::model::relative_distance(&rounded, &exact);
        assert!(distance > 0.0 && distance < 0.2, "{parameter}: {distance}");
    }
}

/// Dropout on the way of a picture belongs to the place where it stands: the same however a step is cut, another for every picture.
#[test]
fn dropout_in_the_tower_belongs_to_the_example() {
    let _turn = turn();
    let (_, decoder, all, adapter) = prepared("smolvlm_tiles", Compute::F32);
    let adapter = HostAdapter { dropout: 0.4, ..adapter };
    let trainable = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
    let noise = |examples: &[u64], rows: &[&[u32]]| {
        let lengths: Vec<usize> = rows.iter().map(|ids| ids.len()).collect();
        Noise { seed: 5, tokens: token_numbers(examples, &lengths), ..Noise::default() }
    };
    let of = |examples: &[u64], rows: &[&[u32]], recompute| {
        gradients(&decoder, &trainable, rows, noise(examples, rows), recompute).1
    };
    let [first, second] = [of(&[3], &[&all[0]], Recompute::None), of(&[8], &[&all[1]], Recompute::None)];
    for recompute in [Recompute::None, Recompute::Block] {
        let together = of(&[3, 8], &[&all[0], &all[1]], recompute);
        for (((parameter, together), (_, first)), (_, second)) in together.into_iter().zip(&first).zip(&second) {
            let (first, second) = (first.as_ref().expect("a gradient"), second.as_ref().expect("a gradient"));
            let sum: Vec<f32> = first.iter().zip(second).map(|(first, second)| first + second).collect();
            assert_close(&together.expect("a gradient"), &sum, 1e-4, &parameter);
        }
    }
    let of_vision = |gradients: &Gradients| -> Vec<Option<Vec<f32>>> {
        let of_vision = gradients.iter().filter(|(name, _)| name.contains("vision_model"));
        of_vision.map(|(_, gradient)| gradient.clone()).collect()
    };
    let another_step = Noise { seed: 6, ..noise(&[3], &[&all[0]]) };
    let another_step = gradients(&decoder, &trainable, &[&all[0]], another_step, Recompute::None).1;
    for other in [of(&[4], &[&all[0]], Recompute::None), another_step] {
        assert_ne!(of_vision(&first), of_vision(&other), "another mask");
    }
}

fn config(name: &str) -> ModelConfig {
    BaseFiles::open(&fixture("vision").join(name)).expect("a base").config().clone()
}

/// The modules that targets take, without the paths of the decoder.
fn taken(config: &ModelConfig, targets: Targets) -> (usize, Vec<String>) {
    let spec = AdapterSpec { rank: 1, targets, ..AdapterSpec::default() };
    let modules = spec.adapted(config).expect("sites").into_iter().map(|adapted| adapted.site.module);
    let (of_vision, of_decoder): (Vec<String>, Vec<String>) =
        modules.partition(|module| config.vision.as_ref().expect("a tower").owns(module));
    (of_decoder.len(), of_vision)
}

#[test]
fn tower_and_connector_are_taken_where_they_are_named() {
    let smolvlm = config("smolvlm_tiles");
    let pattern = |text: &str| Targets::Modules(Modules::Pattern(text.to_owned()));
    // Names of the language model keep to it.
    assert_eq!(taken(&smolvlm, Targets::named(["q_proj", "v_proj"])), (4, vec![]));
    assert_eq!(taken(&smolvlm, Targets::named(["self_attn.q_proj"])), (2, vec![]));
    assert_eq!(taken(&smolvlm, Targets::Attention), (8, vec![]));
    assert_eq!(taken(&smolvlm, Targets::AllLinear), (14, vec![]));
    // Names of the tower or the connector alone, whole paths and patterns take these.
    let proj = "model.connector.modality_projection.proj";
    assert_eq!(taken(&smolvlm, Targets::named(["q_proj", "modality_projection.proj"])), (2, vec![proj.to_owned()]));
    assert_eq!(taken(&smolvlm, Targets::named(["fc1", "out_proj"])).1.len(), 4);
    let path = "model.vision_model.encoder.layers.1.self_attn.q_proj";
    assert_eq!(taken(&smolvlm, Targets::named([path])), (0, vec![path.to_owned()]));
    assert_eq!(taken(&smolvlm, pattern(r".*\.q_proj")).0, 2);
    assert_eq!(taken(&smolvlm, pattern(r".*\.q_proj")).1.len(), 2);
    assert_eq!(taken(&smolvlm, pattern(r"model\.(vision_model|connector)\..*(proj|fc\d)")).1.len(), 13);
    // As PEFT has it, the layers behind the state that is used are taken too, and SigLIP's pooling.
    assert_eq!(taken(&config("llava_clip"), Targets::named(["fc1", "linear_2"])).1.len(), 4);
    assert_eq!(taken(&config("llava_siglip"), Targets::named(["fc1"])).1.len(), 3);
    assert_eq!(taken(&config("llava_siglip_mistral"), Targets::named(["fc1"])).1.len(), 3);

    let spec = |targets| AdapterSpec { rank: 1, targets, ..AdapterSpec::default() };
    let refused = |spec: &AdapterSpec| spec.adapted(&config("llava_clip")).expect_err("refused").to_string();
    let unused = refused(&spec(Targets::named(["encoder.layers.2.mlp.fc1"])));
    assert!(unused.contains("take no projection of the base that is used"), "{unused}");
    let norm = refused(&spec(Targets::named(["layer_norm1"])));
    assert!(norm.contains("`layer_norm1` is the name of no projection"), "{norm}");
    let excluded =
        AdapterSpec { exclude: Some(Modules::Named(vec!["k_proj".into()])), ..spec(pattern(r".*\.[qk]_proj")) };
    assert_eq!(excluded.adapted(&smolvlm).expect("sites").len(), 4);
    let saved = AdapterSpec { modules_to_save: vec!["vision_model".into()], ..spec(pattern(r".*\.q_proj")) };
    assert_eq!(saved.adapted(&smolvlm).expect("sites").len(), 2, "a whole tower has no pairs");
    let biases = AdapterSpec { bias: Bias::LoraOnly, ..spec(Targets::named(["fc1", "q_proj"])) };
    let biases = biases.whole(&smolvlm).expect("biases");
    assert_eq!(biases, [0, 1].map(|layer| format!("model.vision_model.encoder.layers.{layer}.mlp.fc1.bias")));
}

#[test]
fn an_adapter_over_the_tower_is_saved_with_the_names_of_peft() {
    let out = tempfile::tempdir().expect("a folder");
    for name in SEEING {
        let folder = fixture("vision").join(name);
        let base = BaseFiles::open(&folder).expect("a base");
        let adapter = HostAdapter::load_over(&folder.join("seeing_adapter"), &base).expect("PEFT's adapter");
        let targets: Vec<String> = adapter.pairs.keys().cloned().collect();
        let dir = out.path().join(name);
        adapter.save(&dir, &SaveOptions { targets: &targets, ..SaveOptions::default() }).expect("saved");
        assert_eq!(names(&dir), names(&folder.join("seeing_adapter")), "{name}");
        assert_eq!(HostAdapter::load_over(&dir, &base).expect("ours").pairs, adapter.pairs, "{name}");
        // What the settings name is what PEFT's list takes.
        let spec = AdapterSpec {
            rank: 1,
            targets: Targets::named(targets.iter().map(String::as_str)),
            ..AdapterSpec::default()
        };
        let mut listed = spec.target_names(base.config()).expect("names");
        listed.sort_unstable();
        assert_eq!(listed, targets, "{name}");
        let fresh = spec.initialise(&base, Quant::None, 1).expect("an adapter");
        assert!(fresh.pairs.keys().eq(adapter.pairs.keys()), "{name}");
    }
}

/// DoRA's magnitudes and the decompositions are those of the tower's own weights.
#[test]
fn an_adapter_of_any_kind_begins_without_changing_what_is_seen() {
    let _turn = turn();
    let (base, decoder, all, _) = prepared("smolvlm_tiles", Compute::F32);
    let targets = Targets::Modules(Modules::Pattern(r".*\.(vision_model|connector)\..*(proj|fc\d)".to_owned()));
    let usual = AdapterSpec { rank: 2, targets, ..AdapterSpec::default() };
    let plain = logits(&decoder, &all[0], None);
    for (init, dora) in [(Init::Kaiming, true), (Init::Pissa, false), (Init::Olora, false), (Init::Orthogonal, false)] {
        let adapter = AdapterSpec { init, dora, ..usual.clone() }.initialise(&base.files, Quant::None, 1);
        let adapter = adapter.expect("an adapter");
        let attached = adapter.attach(decoder.config(), &Device::flex()).expect("fits");
        assert!(decoder.features().are_changed_by(&attached), "{init}");
        assert_near(&logits(&decoder, &all[0], Some(&attached)), &plain, &format!("{init}, DoRA {dora}"));
        let updates = map(&adapter, &base.files, Quant::None, &|| true).expect("a map");
        assert_eq!(updates.len(), 13);
        // Layers of the tower are none of the language model's.
        assert!(updates.iter().all(|update| update.layer.is_none() && update.name == update.module), "{updates:?}");
        assert!(updates.iter().all(|update| update.weight_norm > Some(0.0)), "{updates:?}");
    }
}

/// Copies an adapter with other names in the header of its weights.
fn renamed(adapter: &Path, out: &Path, changes: &[(&str, &str)]) {
    fs::create_dir_all(out).expect("made");
    fs::copy(adapter.join("adapter_config.json"), out.join("adapter_config.json")).expect("copied");
    let bytes = fs::read(adapter.join("adapter_model.safetensors")).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).expect("UTF-8");
    let old = changes.iter().fold(header.clone(), |header, (from, to)| header.replace(from, to));
    assert_ne!(old, header);
    let weights = [&(old.len() as u64).to_le_bytes()[..], old.as_bytes(), &bytes[8 + length..]].concat();
    fs::write(out.join("adapter_model.safetensors"), weights).expect("written");
}

#[test]
fn adapters_with_the_names_of_older_transformers_are_read() {
    let folder = fixture("vision/llava_clip");
    let base = BaseFiles::open(&folder).expect("a base");
    let out = tempfile::tempdir().expect("a folder");
    // Before 4.52, and from then on before 5.
    let oldest = [
        ("model.model.language_model.layers", "model.language_model.model.layers"),
        ("model.model.vision_tower.", "model.vision_tower.vision_model."),
        ("model.model.multi_modal_projector", "model.multi_modal_projector"),
    ];
    let before_5 = [("model.vision_tower.encoder", "model.vision_tower.vision_model.encoder")];
    for (adapter, changes) in
        [("adapter", &oldest[..1]), ("seeing_adapter", &oldest[..]), ("seeing_adapter", &before_5[..])]
    {
        let old = out.path().join(format!("{adapter} {}", changes.len()));
        renamed(&folder.join(adapter), &old, changes);
        let [new, old] = [&folder.join(adapter), &old]
            .map(|folder: &PathBuf| HostAdapter::load_over(folder, &base).expect("an adapter"));
        assert_eq!(new.pairs, old.pairs);
    }
}

#[test]
fn the_whole_job_with_pairs_on_tower_and_connector() {
    for (name, targets, parts) in [
        (
            "smolvlm_tiles",
            r#"".*(text_model|vision_model|connector).*proj""#,
            ["q_proj in vision_model × 2", "proj in connector × 1"],
        ),
        // Of texts, no parameter at all has a gradient.
        (
            "llava_clip",
            r#"["fc1", "linear_1", "linear_2"]"#,
            ["fc1 in vision_tower × 3", "linear_1 in multi_modal_projector × 1"],
        ),
    ] {
        let folder = job(name);
        let base = fixture("vision").join(name);
        let base = base.to_str().expect("UTF-8");
        let targets = format!("adapter.targets={targets}");
        let settings = ["--set", targets.as_str(), "--set", "adapter.dropout=0.1"];
        let memory = |settings: &[&str], part: &str| {
            let checked = text(&run(&folder, &[&["check", "recipe.toml", "--json"], settings].concat()).stdout);
            let checked: Value = serde_json::from_str(checked.lines().last().expect("a result")).expect("JSON");
            checked["memory"][part].as_u64().expect("bytes")
        };
        assert!(memory(&settings, "activations") > memory(&[], "activations"), "{name}: the tower's tape");
        assert!(memory(&settings, "data") > memory(&[], "data"), "{name}: the tiles");

        let report = printed(&run(&folder, &[&["train", "recipe.toml", "--json"], &settings[..]].concat()));
        let (before, after) = (&report["validation"]["loss_before"], &report["validation"]["loss_after"]);
        assert!(after.as_f64() < before.as_f64(), "{report}");
        let inspected = text(&run(&folder, &["inspect", "run"]).stdout);
        assert!(parts.iter().all(|part| inspected.contains(part)), "{inspected}");
        // A run goes on though the layers behind the state that is used never had a gradient.
        let short = ["--set", "train.max_steps=2", "--set", "train.checkpoint_steps=1", "--set", "output.dir=short"];
        let loss_of = |more: &[&[&str]]| {
            let report = printed(&run(
                &folder,
                &[&["train", "recipe.toml", "--json"], &settings[..], &more.concat()[..]].concat(),
            ));
            report["validation"]["loss_after"].as_f64().expect("a loss")
        };
        let first = loss_of(&[&short]);
        let again = loss_of(&[&short, &["--resume", "--accept-change", "recipe", "--set", "train.max_steps=4"]]);
        assert_ne!(again, first, "{name}");

        let data = ["--data", "valid.jsonl", "--compute", "f32", "--json"];
        let of = |model: &[&str]| printed(&run(&folder, &[&["eval"], model, &data[..]].concat()))["loss"].as_f64();
        let adapted = ["--base", base, "--adapter", "run"];
        let loss = of(&adapted).expect("a loss");
        assert!((loss - after.as_f64().expect("a loss")).abs() < 1e-5, "{name}");
        let merge = [&["merge"], &adapted[..], &["--out", "merged", "--type", "f32"]].concat();
        let merged = run(&folder, &merge);
        assert!(merged.status.success(), "{}", text(&merged.stderr));
        assert!((of(&["--base", "merged"]).expect("a loss") - loss).abs() < 1e-4, "{name}");
        let ask = |model: &[&str]| {
            let prompt = ["--prompt", "Which colour is this?", "--max-tokens", "8", "--compute", "f32", "--image"];
            let output = run(&folder, &[&["generate"], model, &prompt, &["pictures/wide.png"]].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
            text(&output.stdout)
        };
        assert_eq!(ask(&adapted), ask(&["--base", "merged"]), "{name}");

        for (format, out) in [("gguf-lora", "a.gguf"), ("gguf", "m.gguf"), ("mlx", "m")] {
            let export = [&["export"], &adapted[..], &["--format", format, "--out", out]].concat();
            let stderr = refused(&run(&folder, &export));
            assert!(stderr.contains("changes the tower or the connector"), "{format}: {stderr}");
        }
    }
}

/// The losses that `merge --compare` prints are those of models whose towers have the pairs.
#[test]
fn a_comparison_of_merges_sees_with_the_merged_tower() {
    let folder = job("smolvlm_tiles");
    let base = fixture("vision/smolvlm_tiles");
    let adapter = base.join("seeing_adapter");
    let adapted = ["--base", base.to_str().expect("UTF-8"), "--adapter", adapter.to_str().expect("UTF-8")];
    let more = ["--data", "valid.jsonl", "--compute", "f32", "--quant", "int8", "--json"];
    let compared = printed(&run(&folder, &[&["merge", "--compare"], &adapted[..], &more].concat()));
    let loss = printed(&run(&folder, &[&["eval"], &adapted[..], &more].concat()))["loss"].as_f64().expect("a loss");
    let of = |key: &str| compared["comparison"][key].as_f64().expect("a loss");
    assert!((of("adapter_on_packed") - loss).abs() < 1e-5, "{loss}: {compared}");
    assert!((of("merged_on_dequantized") - loss).abs() < 1e-3, "{loss}: {compared}");
}
