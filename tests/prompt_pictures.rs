//! Prompts with pictures in the engine and in `burnish chat`: the answers of `burnish generate --image`, whatever runs beside them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use burn::tensor::Device;
use burnish::data::Message;
use burnish::device::DeviceChoice;
use burnish::generate::engine::{Engine, EngineOptions, Precision, Request};
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::vision::features::FIRST_ID;
use burnish::run::OpenBase;
use burnish::run::model::ModelChoice;
use burnish::run::named::{AdapterFolder, NamedModel, NamedModels};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{burnish as program, json as printed, refused, run, text, tiny_model};
use crate::engine::{Answer, answers, greedy, options};
use crate::hostile_weights::fixture;
use crate::model::{fixtures, turn};

fn picture(folder: &Path, name: &str) -> PathBuf {
    folder.join("pictures").join(name)
}

/// A question of more tokens than a kept block has.
fn question() -> String {
    "Which colour is this? ".repeat(14)
}

fn named(folder: &Path, compute: Compute) -> NamedModels {
    let choice = ModelChoice { compute: Some(compute), ..ModelChoice::base(folder.display().to_string()) };
    NamedModels::load(&choice, &[], &DeviceChoice::Cpu, &mut ()).expect("loaded")
}

/// A request that shows these pictures before its text.
fn showing(model: &NamedModel, paths: &[PathBuf], question: &str) -> Request {
    let mut pictures = model.pictures().expect("it sees pictures");
    let names: Vec<&str> = paths.iter().map(|path| path.to_str().expect("UTF-8")).collect();
    for name in &names {
        pictures.add(name, Arc::new(fs::read(name).expect("a fixture"))).expect("a picture");
    }
    let message = Message::user(question).showing(names);
    let ids = model.prompt_showing(&[message], None, &pictures).expect("a prompt");
    Request { pictures: pictures.features().expect("features"), ..greedy(&ids, 6) }
}

fn engine(models: &NamedModels, options: EngineOptions) -> Engine {
    Engine::new(models.loaded.decoder.clone(), models.base.encoder.tokenizer(), options)
}

#[test]
fn an_answer_about_a_picture_is_the_same_bits_alone_together_and_after_others() {
    let _turn = turn();
    for folder in fixtures("vision") {
        for (compute, precision) in [(Compute::F32, Precision::Exact), (Compute::Bf16, Precision::Fast)] {
            let models = named(&folder, compute);
            let place = format!("{} {precision:?}", folder.display());
            let of = |names: &[&str]| {
                let paths: Vec<PathBuf> = names.iter().map(|name| picture(&folder, name)).collect();
                showing(&models.base, &paths, &question())
            };
            let requests = [of(&["wide.png"]), of(&["tall.png"]), of(&["square.png", "wide.png"]), of(&["wide.png"])];
            let alone: Vec<Answer> = requests
                .iter()
                .map(|request| {
                    let mut engine = engine(&models, EngineOptions { max_prefix_bytes: 0, ..options(precision) });
                    answers(&mut engine, std::slice::from_ref(request)).remove(0)
                })
                .collect();
            assert_ne!(alone[0].outcome().1, alone[1].outcome().1, "{place}: pictures count");
            assert_eq!(alone[0].outcome(), alone[3].outcome(), "{place}");
            for piece_tokens in [7, 256] {
                let mut engine = engine(&models, EngineOptions { piece_tokens, ..options(precision) });
                for round in 0..2 {
                    let together = answers(&mut engine, &requests);
                    for (alone, together) in alone.iter().zip(&together) {
                        assert_eq!(alone.outcome(), together.outcome(), "{place}, round {round}");
                    }
                }
                assert!(engine.statistics().cached_prompt_tokens >= 64, "{place}: the same pictures share a beginning");
            }
        }
    }
}

/// The rows of a picture have the numbers of the one before it, which is gone: nothing but its content tells them apart.
#[test]
fn a_beginning_is_not_shared_with_another_picture_of_the_same_ids() {
    let _turn = turn();
    let folder = fixture("vision/llava_clip");
    let models = named(&folder, Compute::F32);
    let [wide, tall] =
        ["wide.png", "tall.png"].map(|name| showing(&models.base, &[picture(&folder, name)], &question()));
    assert_eq!(wide.prompt, tall.prompt, "the ids do not tell pictures apart");
    let fresh = |request: &Request| {
        answers(&mut engine(&models, options(Precision::Exact)), std::slice::from_ref(request)).remove(0)
    };
    let mut shared = engine(&models, options(Precision::Exact));
    let mut cached = 0;
    let blocks = (wide.prompt.len() - 1) / 64 * 64;
    assert!(blocks > 0);
    for (request, expected) in [(&wide, 0), (&tall, 0), (&wide, blocks), (&tall, blocks)] {
        let answer = answers(&mut shared, std::slice::from_ref(request)).remove(0);
        assert_eq!(answer.outcome(), fresh(request).outcome());
        let so_far = shared.statistics().cached_prompt_tokens;
        assert_eq!(so_far - cached, expected as u64, "tokens from the cache");
        cached = so_far;
    }
}

#[test]
fn the_features_of_a_prompt_are_those_of_the_whole_base() {
    let _turn = turn();
    let folder = fixture("vision/smolvlm_tiles");
    let models = named(&folder, Compute::F32);
    let path = picture(&folder, "tall.png");
    let request = showing(&models.base, std::slice::from_ref(&path), "Which shape is this?");
    let found = answers(&mut engine(&models, options(Precision::Exact)), std::slice::from_ref(&request)).remove(0);
    // As `burnish generate` does it: the encoder meets files, and the decoder is shown them for good.
    let base = OpenBase::open(folder.to_str().expect("UTF-8"), &mut |_| {}).expect("a base");
    let message = Message::user("Which shape is this?").showing(path.to_str());
    let ids = base.encoder.encode_prompt(&[message]).expect("a prompt");
    assert_eq!(ids, request.prompt);
    let load = LoadOptions { device: Device::flex(), compute: Compute::F32, quant: Quant::None };
    let decoder = base.load(&load, |_, _| {}).expect("loaded");
    let mut engine = Engine::new(decoder, base.encoder.tokenizer(), options(Precision::Exact));
    assert_eq!(answers(&mut engine, &[greedy(&ids, 6)]).remove(0).outcome(), found.outcome());
}

/// An adapter with low-rank pairs on the tower has features of its own, and its answers are those of `burnish generate`.
#[test]
fn an_adapter_of_the_tower_sees_by_itself() {
    let folder = fixture("vision/llava_clip");
    let adapter = folder.join("seeing_adapter").display().to_string();
    let choice = ModelChoice { compute: Some(Compute::F32), ..ModelChoice::base(folder.display().to_string()) };
    let adapters = [format!("tuned={adapter}").parse::<AdapterFolder>().expect("a folder")];
    let models = NamedModels::load(&choice, &adapters, &DeviceChoice::Cpu, &mut ()).expect("loaded");
    let wide = [picture(&folder, "wide.png")];
    let of = |model: &NamedModel| showing(model, &wide, "Which colour?").pictures.remove(0);
    let (plain, tuned) = (of(&models.base), of(&models.adapters[0].model));
    assert_eq!((&plain.sha256, plain.count()), (&tuned.sha256, tuned.count()));
    assert_ne!(plain.rows.to_f32().expect("floats"), tuned.rows.to_f32().expect("floats"));

    let work = tempfile::tempdir().expect("a folder");
    let model = ["--adapter", &adapter, "--compute", "f32", "--json"];
    let path = wide[0].to_str().expect("UTF-8");
    let base = folder.to_str().expect("UTF-8");
    let ask = ["generate", "--base", base, "--prompt", "Which colour?", "--max-tokens", "6", "--image", path];
    let generated = printed(&run(&work, &[&ask[..], &model].concat()))["answer"].clone();
    let told = told(&chat(&work, &folder, &model, &format!("/image {path}\nWhich colour?\n")));
    assert_eq!(json!(told[0]), generated);
}

#[test]
fn rows_that_a_request_does_not_bring_are_refused() {
    let _turn = turn();
    let folder = fixture("vision/llava_clip");
    let models = named(&folder, Compute::F32);
    let request = showing(&models.base, &[picture(&folder, "wide.png")], "Which colour?");
    let mut engine = engine(&models, options(Precision::Exact));
    let rows = request.pictures[0].count();
    let mut beyond = request.clone();
    beyond.prompt.push(FIRST_ID + rows as u32);
    let error = engine.submit(beyond).expect_err("refused");
    assert!(error.to_string().contains(&format!("shows row {rows} of its pictures")), "{error}");
    let other = named(&fixture("vision/llava_siglip"), Compute::F32);
    let mut narrow = showing(&other.base, &[picture(&folder, "wide.png")], "Which colour?");
    narrow.pictures[0] = Arc::new(burnish::model::vision::features::PictureFeatures {
        sha256: String::new(),
        rows: burnish::files::RawTensor { shape: vec![rows, 3], ..narrow.pictures[0].rows.clone() },
    });
    assert!(engine.submit(narrow).expect_err("refused").to_string().contains("expected rows of"));
    assert_eq!(models.loaded.decoder.features().rows(), 0, "nothing stays");
}

/// The program with these lines on stdin.
fn chat(folder: &TempDir, base: &Path, arguments: &[&str], lines: &str) -> Output {
    let mut command = program(folder);
    command.args(["chat", "--max-tokens", "6", "--temperature", "0", "--base"]).arg(base).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().expect("stdin").write_all(lines.as_bytes()).expect("written");
    child.wait_with_output().expect("it ends")
}

fn told(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let objects = stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    objects.map(|object| object["answer"].as_str().expect("a text").to_owned()).collect()
}

/// A folder with the fixture's pictures, and an adapter that changes the connector beside the language model.
fn trained() -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let base = fixture("vision/smolvlm_tiles");
    fs::create_dir(folder.path().join("pictures")).expect("made");
    for name in ["wide.png", "tall.png", "square.png"] {
        fs::copy(picture(&base, name), folder.path().join("pictures").join(name)).expect("copied");
    }
    fs::copy(base.join("data.jsonl"), folder.path().join("train.jsonl")).expect("copied");
    let recipe = format!(
        "[base]\nmodel = {base:?}\ncompute = \"f32\"\n[data]\ntrain = \"train.jsonl\"\nmax_seq_tokens = 256\n[adapter]\nrank = 4\n\
         modules_to_save = [\"connector\"]\n[train]\nmax_steps = 4\nlearning_rate = 2e-2\n[output]\ndir = \"run\"\n"
    );
    fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
    let output = run(&folder, &["train", "recipe.toml", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    (folder, base.display().to_string())
}

#[test]
fn chat_answers_about_pictures_as_generate_does() {
    let (folder, base) = trained();
    let mut with_and_without = Vec::new();
    for adapter in [&[][..], &["--adapter", "run"]] {
        for compute in [&["--compute", "f32"][..], &[]] {
            let model = [&["generate", "--base", &base][..], adapter, compute].concat();
            let ask = ["--prompt", "Which colour?", "--max-tokens", "6", "--json"];
            let shown = ["--image", "pictures/wide.png", "--image", "pictures/tall.png"];
            let generated = printed(&run(&folder, &[&model[..], &ask, &shown].concat()))["answer"].clone();
            let lines =
                "/image pictures/wide.png\n/image pictures/tall.png\nWhich colour?\nAnd this?\n/new\nWhich colour?\n";
            let output = chat(&folder, Path::new(&base), &[adapter, compute, &["--json"]].concat(), lines);
            assert!(text(&output.stderr).contains("shows 2 pictures"), "{}", text(&output.stderr));
            let told = told(&output);
            assert_eq!(json!(told[0]), generated, "{adapter:?} {compute:?}");
            let plain = printed(&run(&folder, &[&model[..], &ask].concat()))["answer"].clone();
            assert_eq!(json!(told[2]), plain, "a new conversation shows none");
            with_and_without.push((told[0].clone(), told[2].clone()));
        }
    }
    assert!(with_and_without.iter().any(|(with, without)| with != without), "{with_and_without:?}");
}

#[test]
fn chat_saves_the_paths_of_pictures_and_names_what_it_cannot_show() {
    let (folder, base) = trained();
    let base = Path::new(&base);
    let elsewhere = picture(base, "wide.png");
    let lines = format!(
        "/image pictures/square.png\nWhich shape?\n/image pictures/tall.png\n/image\nAnd now?\n/save talk.jsonl\n/image {}\nThis?\n\
         /save pictures/talk.jsonl\n",
        elsewhere.display()
    );
    let output = chat(&folder, base, &["--json"], &lines);
    let told = told(&output);
    assert!(text(&output.stderr).contains("outside the folder of pictures/talk.jsonl"), "{}", text(&output.stderr));
    let saved = fs::read_to_string(folder.path().join("talk.jsonl")).expect("saved");
    let saved: Value = serde_json::from_str(&saved).expect("JSON");
    let part = json!({"type": "image", "path": "pictures/square.png"});
    assert_eq!(saved["messages"][0]["content"], json!([part, {"type": "text", "text": "Which shape?"}]));
    assert_eq!(saved["messages"][1]["content"], told[0].as_str());
    assert_eq!(saved["messages"][2]["content"], "And now?", "a picture that was taken away is not shown");
    // Training reads it.
    let read = burnish::data::read(folder.path().join("talk.jsonl"), None).expect("rows");
    assert_eq!(read.len(), 1);
    let moved = fs::read_to_string(folder.path().join("pictures/talk.jsonl")).expect("saved");
    assert!(moved.contains("\"square.png\"") && moved.contains(elsewhere.to_str().expect("UTF-8")), "{moved}");

    let blind = refused(&chat(&folder, &tiny_model(), &[], "/image pictures/wide.png\n"));
    assert!(blind.contains("/image: `smollm` sees no pictures"), "{blind}");
    for (line, expected) in [("/image absent.png", "absent.png"), ("/image recipe.toml", "neither a PNG nor a JPEG")] {
        assert!(refused(&chat(&folder, base, &[], &format!("{line}\n"))).contains(expected), "{line}");
    }
}
