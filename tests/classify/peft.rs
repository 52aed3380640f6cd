//! Twenty steps of a classifier against transformers and PEFT: losses, the final factors and head, and the probabilities after them; and
//! PEFT's files in and out.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burnish::adapter::host::{HostAdapter, HostClassifier};
use burnish::adapter::peft::SaveOptions;
use burnish::data::{Encoded, Judged};
use burnish::model::Batch;
use burnish::model::decoder::Recompute;
use burnish::model::load::Compute;
use burnish::train::evaluate::{classify, evaluate};
use burnish::train::label_weights::LabelWeights;
use burnish::train::reference::References;
use burnish::train::step::AdapterTrainer;
use burnish::train::{Alone, ObjectiveKind, TrainSettings};
use serde_json::Value;

use crate::model::{Expected, load, relative_distance, turn};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/classify").join(name)
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama_gqa")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a fixture")).expect("JSON")
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().expect("numbers").iter().map(|number| number.as_u64().expect("a number") as usize).collect()
}

/// The texts with their labels.
fn texts() -> Vec<Encoded> {
    let data = json(&fixture("data.json"));
    let labels = numbers(&data["labels"]);
    let text = |(ids, label): (&Value, usize)| {
        let ids: Vec<u32> = numbers(ids).into_iter().chain([label]).map(|id| id as u32).collect();
        let trained = (1..=ids.len()).map(|at| at == ids.len()).collect();
        Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged: Judged::Not }
    };
    data["texts"].as_array().expect("texts").iter().zip(labels).map(text).collect()
}

/// The problems of a case, each micro-batch of which has `texts_at_once` texts.
fn replayed(name: &str, texts_at_once: usize, recompute: Recompute) -> Vec<String> {
    let case = &json(&fixture("cases.json"))[name];
    let start = HostAdapter::load(&fixture("start")).expect("an adapter");
    let decoder = load(&base(), Compute::F32);
    let given = case["weights"].as_array().map(|weights| {
        let weight =
            |(number, weight): (usize, &Value)| (format!("LABEL_{number}"), weight.as_f64().expect("a number"));
        weights.iter().enumerate().map(weight).collect()
    });
    let settings = TrainSettings {
        objective: ObjectiveKind::Classify,
        label_weights: given.map_or(LabelWeights::Equal, LabelWeights::Given),
        max_grad_norm: 0.0,
        ..TrainSettings::default()
    };
    let train = texts();
    let mut references = References::of(&decoder, &start, &train, &settings).expect("known");
    let adapter = start.attach(decoder.config(), &decoder.device().clone().autodiff()).expect("fits");
    let mut trainer = AdapterTrainer::new(adapter, settings.objective(), &settings, recompute);
    let mut problems = Vec::new();
    let steps = case["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 20);
    for (number, step) in steps.iter().enumerate() {
        let parts: Vec<Vec<usize>> = numbers(&step["texts"]).chunks(texts_at_once).map(<[usize]>::to_vec).collect();
        let of_part = |part: &Vec<usize>| part.iter().map(|index| Cow::Borrowed(&train[*index])).collect();
        let of_step: Vec<Vec<Cow<'_, Encoded>>> = parts.iter().map(of_part).collect();
        let join = |part: &Vec<Cow<'_, Encoded>>| Batch::join(part.iter().flat_map(|one| one.sequences()));
        let batches: Vec<Batch> = of_step.iter().map(join).collect();
        let known =
            references.known(&Alone, &trainer.adapter, &parts, &of_step, false).expect("known").expect("to the end");
        let report = trainer.step_knowing(&decoder, &batches, &known, case["rate"].as_f64().expect("a rate"), 0);
        let theirs = step["loss"].as_f64().expect("a loss");
        if (report.loss - theirs).abs() > 1e-4 * theirs.max(1.0) {
            problems.push(format!("{name}, step {number}: loss {}, not {theirs}", report.loss));
        }
    }
    let trained = trainer.adapter.valid();
    let ours = start.with_values(decoder.config(), &trained);
    let theirs = Expected::read_file(&fixture(&format!("{name}.safetensors")));
    let pairs = ours.pairs.iter().flat_map(|(module, pair)| {
        [("lora_A", &pair.a), ("lora_B", &pair.b)].map(|(factor, values)| (format!("{module}.{factor}"), values))
    });
    let score = ours.classifier.iter().map(|classifier| ("score".to_owned(), &classifier.weight));
    for (tensor, values) in pairs.chain(score) {
        let off = relative_distance(values, &theirs.floats(&tensor));
        if off > 1e-3 {
            problems.push(format!("{name}, {tensor}: off by {off:e}"));
        }
    }
    let classified = classify(&decoder, &trained, &train, &mut |_| Ok(())).expect("measured");
    let found: Vec<f32> = classified.iter().flat_map(|one| &one.log_probabilities).map(|value| *value as f32).collect();
    let expected = theirs.floats("log_probabilities");
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    if worst > 1e-3 {
        problems.push(format!("{name}: log-probabilities off by {worst:e}"));
    }
    // The other way to the losses, which a long text goes too.
    let losses = evaluate(&decoder, Some(&trained), &train, &mut |_| Ok(())).expect("measured");
    let in_pieces = burnish::train::evaluate::evaluate_at_once(&decoder, Some(&trained), &train, 4, &mut |_| Ok(()));
    for ((loss, piecewise), one) in losses.iter().zip(in_pieces.expect("measured")).zip(&classified) {
        let own = one.loss();
        assert_eq!((loss.tokens, loss.correct_tokens), (1, own.correct_tokens));
        assert!((loss.loss_sum - own.loss_sum).abs() < 1e-5 && (piecewise.loss_sum - own.loss_sum).abs() < 1e-4);
    }
    problems
}

#[test]
fn twenty_steps_follow_transformers_and_peft() {
    let _turn = turn();
    let problems = [replayed("plain", 4, Recompute::None), replayed("weighted", 4, Recompute::None)].concat();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The mean and the weights belong to the step: cutting it into micro-batches changes nothing.
#[test]
fn accumulation_and_recompute_change_nothing() {
    let _turn = turn();
    let problems = [replayed("plain", 3, Recompute::Block), replayed("weighted", 1, Recompute::Block)].concat();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// PEFT's classifier has no names of labels; ours come back in their order.
#[test]
fn the_files_of_peft_are_read_and_written() {
    let theirs = HostAdapter::load(&fixture("final")).expect("an adapter");
    let classifier = theirs.classifier.as_ref().expect("a classifier");
    assert_eq!(classifier.labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let expected = Expected::read_file(&fixture("plain.safetensors"));
    assert_eq!(classifier.weight, expected.floats("score"));

    let labels = ["zebra", "apple", "10"].map(str::to_owned).to_vec();
    let named = HostAdapter {
        classifier: Some(HostClassifier { labels: labels.clone(), weight: classifier.weight.clone() }),
        ..theirs.clone()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(str::to_owned);
    named.save(folder.path(), &SaveOptions { targets: &targets, ..SaveOptions::default() }).expect("saved");
    let config = json(&folder.path().join("adapter_config.json"));
    assert_eq!(
        (config["task_type"].as_str(), &config["modules_to_save"]),
        (Some("SEQ_CLS"), &serde_json::json!(["score"]))
    );
    let names = |path: &Path| -> Vec<String> {
        let bytes = fs::read(path.join("adapter_model.safetensors")).expect("weights");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
        let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(folder.path()), names(&fixture("final")), "PEFT's own names");
    let again = HostAdapter::load(folder.path()).expect("an adapter");
    assert_eq!(again.classifier, named.classifier);
    assert_eq!(again.pairs, theirs.pairs);
}

#[test]
fn a_classifier_that_is_not_whole_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = |name: &str| fs::copy(fixture("final").join(name), folder.path().join(name)).expect("copied");
    copy("adapter_config.json");
    // Its head is missing.
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters/seven/adapter_model.safetensors"),
        folder.path().join("adapter_model.safetensors"),
    )
    .expect("copied");
    let error = HostAdapter::load(folder.path()).expect_err("no head").to_string();
    assert!(error.contains("has no `base_model.model.score.weight`") && error.contains("SEQ_CLS"), "{error}");
    copy("adapter_model.safetensors");
    let config = fs::read_to_string(fixture("final").join("adapter_config.json")).expect("read");
    fs::write(folder.path().join("adapter_config.json"), config.replace("SEQ_CLS", "CAUSAL_LM")).expect("written");
    let adapter = HostAdapter::load(folder.path()).expect("read without a base");
    let decoder = load(&base(), Compute::F32);
    let error = adapter.check_against(decoder.config()).expect_err("a stray head").to_string();
    assert!(error.contains("score.weight"), "{error}");
}
