//! Twenty steps on preferences against TRL's own losses over a PEFT model: losses, margins and the final factors.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burnish::adapter::host::HostAdapter;
use burnish::data::{Encoded, Judged};
use burnish::model::Batch;
use burnish::model::decoder::Recompute;
use burnish::model::load::Compute;
use burnish::train::reference::References;
use burnish::train::step::AdapterTrainer;
use burnish::train::{Alone, ObjectiveKind, TrainSettings};
use serde_json::Value;

use crate::model::{load, relative_distance, turn};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures().join("preferences").join(name)).expect("a fixture")).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn masked(prompt: &[u32], answer: &[u32]) -> (Vec<u32>, Vec<bool>) {
    ([prompt, answer].concat(), [vec![false; prompt.len()], vec![true; answer.len()]].concat())
}

/// The examples that the objective takes.
fn examples(data: &Value, is_labelled: bool) -> Vec<Encoded> {
    let encoded = |ids, trained, judged| Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged };
    let of_pair = |one: &Value| {
        let prompt = ids(&one["prompt"]);
        let (mut all, mut trained) = masked(&prompt, &ids(&one["chosen"]));
        let second = all.len();
        let rejected = masked(&prompt, &ids(&one["rejected"]));
        all.extend(rejected.0);
        trained.extend(rejected.1);
        encoded(all, trained, Judged::Above(second))
    };
    let of_answer = |one: &Value| {
        let (ids, trained) = masked(&ids(&one["prompt"]), &ids(&one["completion"]));
        encoded(ids, trained, Judged::Labelled(one["label"].as_bool().expect("a label")))
    };
    match is_labelled {
        true => data["labelled"].as_array().expect("examples").iter().map(of_answer).collect(),
        false => data["pairs"].as_array().expect("examples").iter().map(of_pair).collect(),
    }
}

fn settings(case: &Value) -> TrainSettings {
    let given = &case["settings"];
    let number = |key: &str| given[key].as_f64();
    TrainSettings {
        objective: ObjectiveKind::from_name(case["objective"].as_str().expect("a name")).expect("known"),
        beta: number("beta"),
        preference_smoothing: number("label_smoothing").unwrap_or(0.0),
        rpo_alpha: number("rpo_alpha").unwrap_or(0.0),
        length_normalised: given["length_normalised"].as_bool().unwrap_or(false),
        target_margin: number("target_margin"),
        desirable_weight: number("desirable_weight"),
        undesirable_weight: number("undesirable_weight"),
        max_grad_norm: 0.0,
        ..TrainSettings::default()
    }
}

/// The problems of a case, each micro-batch of which has `pairs_at_once` examples.
fn replayed(name: &str, case: &Value, examples_at_once: usize, recompute: Recompute) -> Vec<String> {
    let start = HostAdapter::load(&fixtures().join("training/seven_and_head/start")).expect("an adapter");
    let decoder = load(&fixtures().join("models/llama_gqa"), Compute::F32);
    let settings = settings(case);
    let train = examples(&json("data.json"), settings.objective == ObjectiveKind::Kto);
    let objective = settings.objective();
    let mut references = References::of(&decoder, &start, &train, &settings).expect("a reference");
    let adapter = start.attach(decoder.config(), &decoder.device().clone().autodiff()).expect("fits");
    let mut trainer = AdapterTrainer::new(adapter, objective, &settings, recompute);
    let mut problems = Vec::new();
    for (number, step) in case["steps"].as_array().expect("steps").iter().enumerate() {
        let indices = ids(&step["examples"]);
        let parts: Vec<Vec<usize>> =
            indices.chunks(examples_at_once).map(|part| part.iter().map(|index| *index as usize).collect()).collect();
        let of_part = |part: &Vec<usize>| part.iter().map(|index| Cow::Borrowed(&train[*index])).collect();
        let of_step: Vec<Vec<Cow<'_, Encoded>>> = parts.iter().map(of_part).collect();
        let join = |part: &Vec<Cow<'_, Encoded>>| Batch::join(part.iter().flat_map(|one| one.sequences()));
        let batches: Vec<Batch> = of_step.iter().map(join).collect();
        let known =
            references.known(&Alone, &trainer.adapter, &parts, &of_step, false).expect("known").expect("to the end");
        let report = trainer.step_knowing(&decoder, &batches, &known, case["rate"].as_f64().expect("a rate"), 0);
        let margins = (report.rewards.margin(), step["margin"].as_f64());
        let figures = [("loss", Some(report.loss), step["loss"].as_f64()), ("margin", margins.0, margins.1)];
        for (what, ours, theirs) in figures {
            let is_close = match (ours, theirs) {
                (Some(ours), Some(theirs)) => (ours - theirs).abs() <= 1e-4 * theirs.abs().max(1.0),
                (ours, theirs) => ours == theirs,
            };
            if !is_close {
                problems.push(format!("{name}, step {number}: {what} {ours:?}, not {theirs:?}"));
            }
        }
    }
    let ours = start.with_values(decoder.config(), &trainer.adapter.valid());
    let bytes = fs::read(fixtures().join("preferences").join(format!("{name}.safetensors"))).expect("a fixture");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    let theirs = |tensor: String| -> Vec<f32> {
        let view = file.tensor(&tensor).unwrap_or_else(|error| panic!("{tensor}: {error}"));
        view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect()
    };
    for (module, pair) in &ours.pairs {
        for (factor, values) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
            let off = relative_distance(values, &theirs(format!("{module}.{factor}")));
            if off > 1e-3 {
                problems.push(format!("{name}, {module}.{factor}: off by {off:e}"));
            }
        }
    }
    problems
}

#[test]
fn twenty_steps_of_every_objective_follow_trl() {
    let _turn = turn();
    let cases = json("cases.json");
    let mut problems = Vec::new();
    for (name, case) in cases.as_object().expect("cases") {
        assert_eq!(case["steps"].as_array().expect("steps").len(), 20);
        problems.extend(replayed(name, case, 4, Recompute::None));
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The divergence and the means belong to the step: cutting it into micro-batches changes nothing.
#[test]
fn accumulation_and_recompute_change_no_objective() {
    let _turn = turn();
    let cases = json("cases.json");
    let mut problems = Vec::new();
    for name in ["dpo_rpo", "orpo", "kto"] {
        problems.extend(replayed(name, &cases[name], 1, Recompute::Block));
    }
    assert!(problems.is_empty(), "{problems:#?}");
}
