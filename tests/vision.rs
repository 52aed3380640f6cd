//! Models that see pictures against transformers and PEFT, and the whole job with them (fixtures/vision,
//! tests/reference/make_vision.py).

use std::fs;
use std::path::Path;

use burn::tensor::{DType, Device};
use burnish::adapter::host::{HostAdapter, HostTensor};
use burnish::adapter::merge::{MergeOptions, merge};
use burnish::adapter::peft::SaveOptions;
use burnish::adapter::spec::{AdapterSpec, Targets};
use burnish::data::images::Picture;
use burnish::data::{self, Pictures};
use burnish::files::safetensors::SafeTensorsFile;
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::vision::Vision;
use burnish::model::vision::features::{FIRST_ID, is_feature};
use burnish::model::{BaseFiles, Batch, Decoder, ModelConfig};
use burnish::nn::Noise;
use burnish::run::OpenBase;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{json as printed, run, text};
use crate::hostile_weights::{copied, fixture, refused};
use crate::model::{Expected, fixtures, largest_difference, load, logits, turn};

/// Trained tokens at the end of a row in `trained.safetensors`.
pub const ANSWER: usize = 3;

pub fn open(folder: &Path) -> OpenBase {
    OpenBase::open(folder.to_str().expect("UTF-8"), &mut |_| {}).expect("a base")
}

/// Shows the decoder the pictures that were met, without a cache on the disk.
pub fn show(base: &OpenBase, decoder: &Decoder) {
    let options = LoadOptions { device: Device::flex(), compute: Compute::F32, quant: Quant::None };
    let vision = Vision::load(&base.files, &options).expect("a tower");
    let pictures = pictures(base);
    for picture in pictures.met_from(decoder.features().rows()) {
        let tiles = pictures.tiles(&picture).expect("a picture");
        decoder.features().add(vision.picture(&tiles.values, tiles.size));
    }
}

/// Keeps tower, connector and the pictures that were met, for an adapter that changes them.
pub fn keep(base: &OpenBase, decoder: &Decoder, compute: Compute) {
    let options = LoadOptions { device: Device::flex(), compute, quant: Quant::None };
    decoder.features().keep(Vision::load(&base.files, &options).expect("a tower"));
    for picture in pictures(base).met_from(0) {
        let tiles = pictures(base).tiles(&picture).expect("a picture");
        decoder.features().keep_tiles(tiles.values, tiles.size);
    }
}

fn pictures(base: &OpenBase) -> &Pictures {
    base.encoder.pictures().expect("a base that sees pictures")
}

/// The token ids of every row of the fixture's data.
pub fn rows(base: &OpenBase, folder: &Path) -> Vec<Vec<u32>> {
    let rows = data::read(folder.join("data.jsonl"), None).expect("rows");
    rows.iter().map(|row| base.encoder.encode(&row.example).expect("encoded").ids).collect()
}

pub fn assert_near(found: &[f32], expected: &[f32], place: &str) {
    let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let difference = largest_difference(found, expected) / scale;
    assert!(difference <= 1e-4, "{place}: off by {difference} of {scale}");
}

#[test]
fn tokens_features_and_logits_are_those_of_transformers() {
    let _turn = turn();
    for folder in fixtures("vision") {
        let (place, expected) = (folder.display().to_string(), Expected::read(&folder));
        let (base, decoder) = (open(&folder), load(&folder, Compute::F32));
        let token = base.files.config().vision.as_ref().expect("a tower").image_token;
        let width = base.files.config().hidden_size;
        for (row, ids) in rows(&base, &folder).into_iter().enumerate() {
            show(&base, &decoder);
            let wanted = expected.ids_of(&format!("{row}.ids"));
            let plain: Vec<u32> = ids.iter().map(|id| if is_feature(*id) { token } else { *id }).collect();
            // Where the template ends an answer without an end token, training adds one.
            assert_eq!(plain[..wanted.len()], wanted, "{place}: row {row}");
            assert!(plain.len() <= wanted.len() + 1, "{place}: row {row}");
            let ids = &ids[..wanted.len()];
            let seen: Vec<u32> = ids.iter().copied().filter(|id| is_feature(*id)).collect();
            if !seen.is_empty() {
                let mut features = vec![0.0; seen.len() * width];
                decoder.features().fill(&seen, &mut features);
                assert_near(
                    &features,
                    &expected.floats(&format!("{row}.features")),
                    &format!("{place}: features of row {row}"),
                );
            }
            let ours = logits(&decoder, ids, None);
            assert_near(&ours, &expected.floats(&format!("{row}.logits")), &format!("{place}: logits of row {row}"));
            // Piece by piece, a cut in the middle of a picture included.
            let mut past = decoder.begin();
            let half = ids.len() / 2;
            decoder.next_logits(&[&ids[..half]], &mut [&mut past], None);
            let last = decoder.next_logits(&[&ids[half..]], &mut [&mut past], None);
            let vocabulary = decoder.config().vocab_size;
            assert_near(&last[0], &ours[ours.len() - vocabulary..], &format!("{place}: row {row} in pieces"));
        }
    }
}

#[test]
fn features_in_bf16_stay_near() {
    let _turn = turn();
    for folder in fixtures("vision") {
        let base = open(&folder);
        rows(&base, &folder);
        let features = |compute| {
            let options = LoadOptions { device: Device::flex(), compute, quant: Quant::None };
            let vision = Vision::load(&base.files, &options).expect("a tower");
            let picture: Picture = pictures(&base).met_from(0).remove(0);
            let tiles = pictures(&base).tiles(&picture).expect("a picture");
            vision.picture(&tiles.values, tiles.size).to_f32().expect("floats")
        };
        let (exact, rounded) = (features(Compute::F32), features(Compute::Bf16));
        let distance = crate::model::relative_distance(&rounded, &exact);
        assert!(distance > 0.0 && distance < 3e-2, "{}: {distance}", folder.display());
    }
}

#[test]
fn adapters_of_peft_give_its_logits_losses_and_gradients_and_merge() {
    let _turn = turn();
    for folder in fixtures("vision") {
        let place = folder.display().to_string();
        let (base, decoder) = (open(&folder), load(&folder, Compute::F32));
        let all = rows(&base, &folder);
        show(&base, &decoder);
        let trained = Expected::read_file(&folder.join("trained.safetensors"));
        let adapter = HostAdapter::load_over(&folder.join("adapter"), &base.files).expect("PEFT's adapter");
        assert_eq!(adapter.pairs.len(), 8, "{place}: of the decoder alone");
        let trainable = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
        let attached = adapter.attach(decoder.config(), &Device::flex()).expect("fits");
        let expected = Expected::read(&folder);
        for (row, ids) in all.iter().enumerate() {
            let count = expected.ids_of(&format!("{row}.ids")).len();
            let ids = &ids[..count];
            let wanted = trained.floats(&format!("{row}.logits"));
            assert_near(
                &logits(&decoder, ids, Some(&attached)),
                &wanted,
                &format!("{place}: adapted logits of row {row}"),
            );
            let mask = (0..count).map(|at| at >= count - ANSWER).collect();
            let batch = Batch { ids: ids.to_vec(), lengths: vec![count], trained: mask };
            for recompute in [Recompute::None, Recompute::Block] {
                let mut weigh = |losses: &[f32]| vec![1.0 / ANSWER as f32; losses.len()];
                let mut result =
                    decoder.loss_and_gradients(&batch, &trainable, Noise::default(), recompute, &mut weigh);
                let loss = result.losses.iter().sum::<f32>() / ANSWER as f32;
                let wanted = trained.floats(&format!("{row}.loss"))[0];
                assert!((loss - wanted).abs() < 1e-4, "{place}: row {row}: {loss}, not {wanted}");
                for (number, site) in decoder.config().sites().iter().enumerate() {
                    let Some(delta) = trainable.at(number) else { continue };
                    for (parameter, half) in delta.parameters().zip(["lora_A", "lora_B"]) {
                        let gradient = result.gradients.remove::<2>(parameter.id).expect("a gradient");
                        let gradient: Vec<f32> = gradient.cast(DType::F32).into_data().iter::<f32>().collect();
                        let name = format!("{row}.grad.{}.{half}", site.module);
                        assert_near(&gradient, &trained.floats(&name), &format!("{place}: {name}"));
                    }
                }
            }
        }
        merges(&folder, &base, &adapter, &all[1]);
        saves(&folder, &base, &adapter);
    }
}

/// Tower and connector as wholes beside the pairs, as `modules_to_save` has them.
#[test]
fn gradients_of_tower_and_connector_are_those_of_torch() {
    let _turn = turn();
    for folder in fixtures("vision") {
        let place = folder.display().to_string();
        let (base, decoder) = (open(&folder), load(&folder, Compute::F32));
        let ids = &rows(&base, &folder)[0];
        show(&base, &decoder);
        keep(&base, &decoder, Compute::F32);
        let config = base.files.config();
        let vision = config.vision.as_ref().expect("a tower");
        let mut adapter = HostAdapter::load_over(&folder.join("adapter"), &base.files).expect("PEFT's adapter");
        for name in config.whole_tensors().into_keys().filter(|name| vision.owns(name)) {
            let tensor = base.files.tensor(&name).expect("a tensor");
            let values = tensor.to_f32().expect("floats");
            adapter.whole.insert(name, HostTensor { shape: tensor.shape, values });
        }
        let trainable = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
        let expected = Expected::read_file(&folder.join("trained.safetensors"));
        let count = expected.floats("0.logits").len() / config.vocab_size;
        let trained = (0..count).map(|at| at >= count - ANSWER).collect();
        let batch = Batch { ids: ids[..count].to_vec(), lengths: vec![count], trained };
        for recompute in [Recompute::None, Recompute::Block] {
            let mut weigh = |losses: &[f32]| vec![1.0 / ANSWER as f32; losses.len()];
            let mut result = decoder.loss_and_gradients(&batch, &trainable, Noise::default(), recompute, &mut weigh);
            for (name, parameter) in adapter.whole.keys().zip(&trainable.whole) {
                let gradient = result.gradients.remove::<2>(parameter.id).expect("a gradient");
                let gradient: Vec<f32> = gradient.into_data().iter::<f32>().collect();
                let wanted = expected.floats(&format!("grad.{name}"));
                // The bias of keys changes nothing: its gradient is rounding.
                let scale = wanted.iter().fold(1e-2f32, |largest, value| largest.max(value.abs()));
                let difference = largest_difference(&gradient, &wanted) / scale;
                assert!(difference <= 1e-4, "{place} {recompute:?}: {name} is off by {difference} of {scale}");
            }
        }
    }
}

/// The merged folder is the whole model, and computes what base and adapter do.
fn merges(folder: &Path, base: &OpenBase, adapter: &HostAdapter, ids: &[u32]) {
    let place = folder.display().to_string();
    let out = tempfile::tempdir().expect("a folder");
    let merged = out.path().join("merged");
    let save = |folder: &Path| base.encoder.tokenizer().save(folder);
    merge(&base.files, adapter, &merged, &MergeOptions::default(), save).expect("merged");
    let [before, after] = [folder, &merged].map(|folder| {
        let config = fs::read(folder.join("config.json")).expect("a configuration");
        serde_json::from_slice::<Value>(&config).expect("JSON")
    });
    for key in ["architectures", "model_type", "vision_config", "image_token_id", "image_token_index"] {
        assert_eq!(before.get(key), after.get(key), "{place}: {key}");
    }
    let whole = open(&merged);
    assert_eq!(whole.files.vision_tensor_names().count(), base.files.vision_tensor_names().count(), "{place}");
    let decoder = load(&merged, Compute::F32);
    rows(&whole, folder);
    show(&whole, &decoder);
    let expected = Expected::read_file(&folder.join("trained.safetensors")).floats("1.logits");
    let count = expected.len() / decoder.config().vocab_size;
    let ours = logits(&decoder, &ids[..count], None);
    let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let difference = largest_difference(&ours, &expected) / scale;
    assert!(difference <= 1e-3, "{place}: merged logits are off by {difference}");
}

/// The file that is written has PEFT's names, and its targets leave the tower alone.
fn saves(folder: &Path, base: &OpenBase, adapter: &HostAdapter) {
    let out = tempfile::tempdir().expect("a folder");
    let spec = AdapterSpec { rank: 1, targets: Targets::Attention, ..AdapterSpec::default() };
    let targets = spec.target_names(base.files.config()).expect("names");
    assert!(targets.iter().all(|name| name.contains("text_model.layers") || name.contains("language_model.layers")));
    adapter.save(out.path(), &SaveOptions { targets: &targets, ..SaveOptions::default() }).expect("saved");
    let names = |folder: &Path| {
        let file = SafeTensorsFile::open(&folder.join("adapter_model.safetensors")).expect("weights");
        file.names().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(out.path()), names(&folder.join("adapter")), "{}", folder.display());
    assert_eq!(HostAdapter::load_over(out.path(), &base.files).expect("ours").pairs, adapter.pairs);
}

fn changed(name: &str, change: impl FnOnce(&mut Value)) -> burnish::Result<ModelConfig> {
    let config = fs::read(fixture("vision").join(name).join("config.json")).expect("a fixture");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    change(&mut config);
    ModelConfig::from_json("config.json", &config, None)
}

#[test]
fn configurations_that_make_no_sense_are_named() {
    let set = |key: &'static str, value: Value| move |config: &mut Value| config["vision_config"][key] = value;
    for (key, value, part) in [
        ("num_attention_heads", json!(7), "does not divide"),
        ("num_attention_heads", json!(0), "whole number above 0"),
        ("patch_size", json!(64), "above the 16"),
        ("hidden_size", json!(u64::MAX), "hidden_size"),
        ("num_hidden_layers", json!(100_000), "at most 1000"),
        ("hidden_act", json!("relu9"), "\"relu9\""),
        ("layer_norm_eps", json!(-1), "layer_norm_eps"),
        ("num_channels", json!(4), "num_channels"),
    ] {
        refused(key, &["config.json: vision_config", part], || changed("smolvlm_tiles", set(key, value)));
    }
    refused("factor", &["config.json: scale_factor", "is 3"], || {
        changed("smolvlm_tiles", |config| config["scale_factor"] = json!(3))
    });
    refused("token", &["image_token_id", "outside the vocabulary"], || {
        changed("smolvlm_tiles", |config| config["image_token_id"] = json!(9999))
    });
    refused("no tower", &["config.json: vision_config", "is missing"], || {
        changed("smolvlm_tiles", |config| config["vision_config"] = json!(null))
    });
    refused("another tower", &["vision_config: model_type", "\"pixtral\""], || {
        changed("llava_clip", set("model_type", json!("pixtral")))
    });
    for layer in [json!(4), json!(-5), json!([]), json!("x")] {
        refused("layer", &["config.json: vision_feature_layer"], || {
            changed("llava_clip", |config| config["vision_feature_layer"] = layer)
        });
    }
    // LLaVA 1.5's `text_config` leaves out what Llama has by default.
    let sizes = changed("llava_clip", |config| {
        config["text_config"] = json!({"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096});
    });
    let sizes = sizes.expect("a configuration");
    assert_eq!((sizes.hidden_size, sizes.layers, sizes.heads), (4096, 32, 32));
}

#[test]
fn weights_of_tower_and_connector_are_checked_with_the_others() {
    let folder = copied("vision/smolvlm_tiles");
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    config["vision_config"]["intermediate_size"] = json!(30);
    config["vision_config"]["num_hidden_layers"] = json!(3);
    fs::write(&path, config.to_string()).expect("written");
    let parts = [
        "model.vision_model.encoder.layers.0.mlp.fc1.weight: has shape [28, 20]",
        "model.vision_model.encoder.layers.2.mlp.fc2.bias: is missing",
    ];
    refused("another tower", &parts, || BaseFiles::open(folder.path()));
}

#[test]
fn a_model_without_a_tower_names_the_picture() {
    let folder = fixture("vision/smolvlm_tiles");
    let rows = data::read(folder.join("data.jsonl"), None).expect("rows");
    let base = open(&fixture("vision/smolvlm_tiles"));
    let blind = base.encoder.clone().with_pictures(None);
    refused("blind", &["the model sees none"], || blind.encode(&rows[0].example));
    // A picture is never cut: the example is left out.
    let set = base.encoder.encode_all(&rows, 40, data::LongPolicy::TruncatePrompt).expect("encoded");
    assert_eq!((set.sequences.len(), set.dropped_long), (1, 2));
    assert!(set.sequences.iter().all(|sequence| sequence.ids.iter().all(|id| *id < FIRST_ID)));
}

/// A folder with a copy of the fixture's data and a recipe over it.
pub fn job(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let base = fixture("vision").join(name);
    fs::create_dir(folder.path().join("pictures")).expect("made");
    for picture in ["wide.png", "tall.png", "square.png"] {
        let bytes = fs::read(base.join("pictures").join(picture)).expect("a fixture");
        fs::write(folder.path().join("pictures").join(picture), bytes).expect("written");
    }
    let rows = fs::read(base.join("data.jsonl")).expect("a fixture");
    fs::write(folder.path().join("train.jsonl"), &rows).expect("written");
    fs::write(folder.path().join("valid.jsonl"), &rows).expect("written");
    let recipe = format!(
        "[base]\nmodel = {base:?}\ncompute = \"f32\"\n[data]\ntrain = \"train.jsonl\"\nvalid = \"valid.jsonl\"\n\
         max_seq_tokens = 256\n[adapter]\nrank = 4\ntargets = \"all-linear\"\n[train]\nepochs = 6\nlearning_rate = 2e-2\n\
         micro_batch_seqs = 2\n[output]\ndir = \"run\"\n"
    );
    fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
    folder
}

#[test]
fn the_whole_job_with_pictures_from_check_to_merge() {
    for name in ["smolvlm_tiles", "llava_clip"] {
        let folder = job(name);
        let base = fixture("vision").join(name);
        let base = base.to_str().expect("UTF-8");
        let shown = run(&folder, &["check", "recipe.toml", "--show", "1"]);
        // The validation examples are those of training, which a check finds.
        assert!(text(&shown.stdout).contains("of a picture]"), "{}", text(&shown.stdout));

        let report = printed(&run(&folder, &["train", "recipe.toml", "--json"]));
        let (before, after) = (&report["validation"]["loss_before"], &report["validation"]["loss_after"]);
        assert!(after.as_f64() < before.as_f64(), "{report}");
        let kept = fs::read_dir(folder.path().join("cache/pictures")).expect("features").count();
        assert_eq!(kept, 3, "the features of each picture once");
        // Features that are kept give the same run; a damaged file is computed again.
        let file = fs::read_dir(folder.path().join("cache/pictures")).expect("features").next().expect("one");
        fs::write(file.expect("an entry").path(), b"damaged").expect("written");
        let again = printed(&run(&folder, &["train", "recipe.toml", "--json", "--set", "output.dir=\"again\""]));
        assert_eq!(again["validation"], report["validation"]);

        let data = ["--data", "valid.jsonl", "--compute", "f32", "--json"];
        let of = |model: &[&str]| printed(&run(&folder, &[&["eval"], model, &data[..]].concat()))["loss"].clone();
        let loss = of(&["--base", base, "--adapter", "run"]);
        assert!((loss.as_f64().expect("a loss") - after.as_f64().expect("a loss")).abs() < 1e-5);
        let merged = run(&folder, &["merge", "--base", base, "--adapter", "run", "--out", "merged", "--type", "f32"]);
        assert!(merged.status.success(), "{}", text(&merged.stderr));
        let of_merged = of(&["--base", "merged"]);
        assert!((of_merged.as_f64().expect("a loss") - loss.as_f64().expect("a loss")).abs() < 1e-4);

        let ask = |model: &[&str], picture: &str, more: &[&str]| {
            let prompt = ["--prompt", "Which colour is this?", "--max-tokens", "6", "--image", picture];
            let output = run(&folder, &[&["generate"], model, &prompt, more].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
            text(&output.stdout)
        };
        let adapted = ["--base", base, "--adapter", "run"];
        let exact = ask(&adapted, "pictures/wide.png", &["--compute", "f32"]);
        assert_eq!(exact, ask(&["--base", "merged"], "pictures/wide.png", &["--compute", "f32"]));
        ask(&adapted, "pictures/tall.png", &[]);
        // A template that the adapter brings along leaves the base its pictures.
        let template = folder.path().join("run/chat_template.jinja");
        let text_of_template = fs::read_to_string(&template).expect("the adapter's template");
        fs::write(&template, text_of_template + "{{ '' }}").expect("written");
        assert_eq!(of(&adapted), loss);
        // Tower and connector trained as wholes: the merged model sees as base and adapter do.
        let modules = "adapter.modules_to_save=[\"connector\", \"vision_model\"]";
        let modules =
            if name == "smolvlm_tiles" { modules } else { "adapter.modules_to_save=[\"multi_modal_projector\"]" };
        let more = ["--set", "output.dir=whole", "--set", modules, "--set", "train.learning_rate=2e-3"];
        let report = printed(&run(&folder, &[&["train", "recipe.toml", "--json"], &more[..]].concat()));
        let loss = of(&["--base", base, "--adapter", "whole"]).as_f64().expect("a loss");
        assert!((loss - report["validation"]["loss_after"].as_f64().expect("a loss")).abs() < 1e-5, "{report}");
        assert!(loss < before.as_f64().expect("a loss"), "{report}");
        let merged =
            ["merge", "--base", base, "--adapter", "whole", "--out", "merged whole", "--type", "f32", "--json"];
        let merged = printed(&run(&folder, &merged));
        assert!(merged["modules_changed"].as_u64() <= merged["modules"].as_u64(), "{merged}");
        assert!((of(&["--base", "merged whole"]).as_f64().expect("a loss") - loss).abs() < 1e-4);

        let missing = run(&folder, &["generate", "--base", base, "--prompt", "a", "--image", "absent.png"]);
        assert!(crate::cli::refused(&missing).contains("absent.png"));
    }
}
