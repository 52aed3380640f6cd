//! Training on preferences: against TRL, and as a whole job.

mod trl;

use std::fs;

use burnish::data::{Augment, Augmenter, Example, LongPolicy, Position, Row};
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::with_settings::{a_cut_run_ends_alike, metrics, with};
use crate::cli::{json, refused, run, text, tiny_job, tiny_model};
use crate::conversations::{CHATML, encoder};

/// The tiny job over pairs whose chosen answer is the right sum; as labelled answers in `labelled.*.jsonl`. The validation examples are
/// training examples too: a model of random weights learns nothing about others.
fn job() -> TempDir {
    let folder = tiny_job();
    let write = |name: &str, rows: &[String]| fs::write(folder.path().join(name), rows.concat()).expect("written");
    let sums: Vec<(usize, usize)> = (1..7).flat_map(|a| (1..7).map(move |b| (a, b))).collect();
    let pair = |&(a, b): &(usize, usize)| {
        let (right, wrong) = (a + b, a + b + 1 + a % 3);
        format!("{{\"prompt\": \"{a} and {b} is \", \"chosen\": \"{right}\", \"rejected\": \"{wrong}\"}}\n")
    };
    let answer = |&(a, b): &(usize, usize)| {
        let is_right = (a + b) % 2 == 0;
        let sum = if is_right { a + b } else { a + b + 2 };
        format!("{{\"prompt\": \"{a} and {b} is \", \"completion\": \"{sum}\", \"label\": {is_right}}}\n")
    };
    let (pairs, answers): (Vec<String>, Vec<String>) =
        (sums.iter().map(pair).collect(), sums.iter().map(answer).collect());
    write("train.jsonl", &pairs[..21]);
    write("valid.jsonl", &pairs[6..21]);
    write("labelled.train.jsonl", &answers[..21]);
    write("labelled.valid.jsonl", &answers[6..21]);
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("the recipe");
    let recipe = recipe
        .replace("[train]\n", "[train]\nobjective = \"dpo\"\n")
        .replace("rank = 4\n", "rank = 4\ndropout = 0.1\n");
    fs::write(&path, recipe).expect("written");
    folder
}

const LABELLED: [&str; 3] =
    ["data.train=labelled.train.jsonl", "data.valid=labelled.valid.jsonl", "train.objective=kto"];

#[test]
fn a_job_on_pairs_measures_rewards_and_says_so() {
    let folder = job();
    let report = json(&run(&folder, &["train", "recipe.toml", "--json"]));
    let lines = metrics(&folder.path().join("runs/sums"));
    let evaluations: Vec<&Value> = lines.iter().filter(|line| line.get("valid_loss").is_some()).collect();
    let first = evaluations[0];
    assert!((first["valid_loss"].as_f64().expect("a loss") - 2f64.ln()).abs() < 1e-9, "{first}");
    assert_eq!(
        (first["valid_reward_margin"].as_f64(), first["valid_reward_accuracy"].as_f64()),
        (Some(0.0), Some(0.5))
    );
    let last = evaluations.last().expect("one");
    assert!(last["valid_reward_margin"].as_f64() > Some(0.0), "{last}");
    for key in ["preferred_log_probability", "other_log_probability", "preferred_tokens", "other_tokens"] {
        assert!(last[format!("valid_{key}")].is_f64(), "{key}: {last}");
    }
    assert!(last.get("valid_token_accuracy").is_none() && last.get("valid_loss").is_some());
    let steps: Vec<&Value> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 12);
    assert!(steps.iter().all(|step| step["reward_margin"].is_f64() && step["reward_accuracy"].is_f64()));
    let validation = &report["validation"];
    assert_eq!(validation["examples"], 15);
    assert!(validation.get("perplexity_before").is_none() && validation.get("token_accuracy_after").is_none());
    assert!(validation["loss_after"].as_f64() < validation["loss_before"].as_f64());
    let preferences = &validation["preferences"];
    assert_eq!(preferences["before"]["reward_accuracy"], 0.5);
    assert!(preferences["accuracy"]["low"].is_f64() && preferences["warnings"].is_array());
}

#[test]
fn a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped() {
    // The rate does not depend on the length of the run, and step 4 is evaluated in any case.
    let common =
        ["train.checkpoint_steps=2", "train.accumulate_steps=2", "train.eval_steps=2", "train.schedule=constant"];
    for settings in [&["train.objective=dpo"][..], &LABELLED] {
        let settings = [settings, &common, &["train.epochs=3"]].concat();
        a_cut_run_ends_alike(job, &settings, 4);
    }
}

#[test]
fn every_objective_trains_in_every_layout() {
    let cases: [&[&str]; 6] = [
        &["train.objective=ipo", "train.recompute=block"],
        &["train.objective=orpo", "base.quant=nf4"],
        &["train.objective=simpo", "data.packing=true"],
        &["train.objective=dpo", "base.compute=bf16", "train.rpo_alpha=0.2", "data.augment.typing_errors=0.1"],
        &[
            "data.train=labelled.train.jsonl",
            "data.valid=labelled.valid.jsonl",
            "train.objective=kto",
            "train.recompute=block",
        ],
        &["data.train=train.jsonl", "train.preference_smoothing=0.1", "train.length_normalised=true", "train.beta=1"],
    ];
    let folder = job();
    for (index, settings) in cases.into_iter().enumerate() {
        let dir = format!("output.dir=runs/{index}");
        let settings = [settings, &["train.epochs=4", &dir]].concat();
        let report = json(&run(&folder, &with(&["train", "recipe.toml", "--json"], &settings)));
        let validation = &report["validation"];
        assert!(validation["loss_after"].as_f64() < validation["loss_before"].as_f64(), "{settings:?}: {validation}");
    }
}

/// An adapter that goes on from another has it as its reference: before the first step, nothing differs from it.
#[test]
fn the_reference_of_a_further_training_is_the_adapter_it_begins_with() {
    let folder = job();
    assert!(run(&folder, &["train", "recipe.toml", "--quiet"]).status.success());
    let further = with(&["train", "recipe.toml", "--json"], &["adapter.from=runs/sums", "output.dir=runs/further"]);
    let report = json(&run(&folder, &further));
    assert!((report["validation"]["loss_before"].as_f64().expect("a loss") - 2f64.ln()).abs() < 1e-9);
    let before = |report: &Value| report["validation"]["preferences"]["before"]["preferred_log_probability"].as_f64();
    let first = json(&run(&folder, &with(&["train", "recipe.toml", "--json"], &["output.dir=runs/again"])));
    assert_ne!(before(&report), before(&first));
}

#[test]
fn settings_and_data_that_do_not_go_with_the_objective_are_refused_by_name() {
    let folder = job();
    let refusal = |settings: &[&str]| refused(&run(&folder, &with(&["train", "recipe.toml"], settings)));
    for (setting, said) in [
        ("train.label_smoothing=0.1", "`train.preference_smoothing` is that of preferences"),
        ("train.eval_on=exact_match", "does not go with preferences"),
        ("data.rehearsal.path=train.jsonl", "`data.rehearsal` does not go with preferences"),
        ("train.target_margin=1", "belongs to simpo"),
        ("train.desirable_weight=2", "belongs to kto"),
    ] {
        let error = refusal(&[setting]);
        assert!(error.contains(said), "{setting}: {error}");
    }
    let error = refusal(&["train.objective=sft", "train.beta=1"]);
    assert!(error.contains("`train.beta` does nothing under `train.objective = \"sft\"`"), "{error}");
    let error = refusal(&["train.objective=sft"]);
    assert!(error.contains("train.jsonl:1: is read as `preference`, and so are 20 more"), "{error}");
    let error = refusal(&["eval.guard.path=valid.jsonl"]);
    assert!(error.contains("valid.jsonl:1: is read as `preference`"), "{error}");
    let error = refusal(&["train.objective=kto"]);
    assert!(error.contains("`label` is missing") || error.contains("`completion` is missing"), "{error}");
    fs::write(folder.path().join("plain.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n").expect("written");
    let error = refusal(&["data.train=plain.jsonl"]);
    assert!(error.contains("plain.jsonl:1: is read as `prompt-completion`; the objective `dpo` takes"), "{error}");
    let one = |label: bool| format!("{{\"prompt\": \"a\", \"completion\": \"b{label}\", \"label\": {label}}}\n");
    fs::write(folder.path().join("one.jsonl"), [one(true), one(false)].concat()).expect("written");
    let error = refusal(&[LABELLED[1], LABELLED[2], "data.train=one.jsonl"]);
    assert!(error.contains("all examples have the same prompt"), "{error}");
    let error = refused(&run(&folder, &["eval", "--base", "x", "--data", "train.jsonl"]));
    assert!(!error.is_empty());
}

/// `eval` compares the answers of pairs by likelihood, the base beside the adapter.
#[test]
fn eval_measures_pairs_with_the_base_beside_the_adapter() {
    let folder = job();
    let trained = json(&run(&folder, &["train", "recipe.toml", "--json"]));
    let base = tiny_model();
    let base = base.to_str().expect("a path");
    let arguments = ["eval", "--base", base, "--data", "valid.jsonl", "--json"];
    let with_adapter = [&arguments[..], &["--adapter", "runs/sums", "--out", "each.jsonl"]].concat();
    let report = json(&run(&folder, &with_adapter));
    let scores = &report["scores"];
    let preferences = &trained["validation"]["preferences"];
    let close = |found: &Value, expected: &Value| {
        (found.as_f64().expect("a number") - expected.as_f64().expect("a number")).abs() < 1e-4
    };
    // The same log-probabilities and rewards as in the verdict of the run.
    for (name, key) in
        [("chosen_log_probability", "preferred_log_probability"), ("rejected_log_probability", "other_log_probability")]
    {
        let against = &scores[name]["against_base"];
        assert!(close(&against["before"], &preferences["before"][key]), "{name}: {against}");
        assert!(close(&against["after"], &preferences["after"][key]), "{name}: {against}");
    }
    assert!(close(&scores["reward_accuracy"]["value"], &preferences["after"]["reward_accuracy"]));
    assert_eq!(scores["reward_accuracy"]["against_base"]["before"], 0.5);
    let margin = &scores["margin"]["against_base"];
    let gained = margin["difference"].as_f64().expect("a number");
    // Of rewards the margin is β times as large.
    assert!(
        (0.1 * gained - preferences["after"]["reward_margin"].as_f64().expect("a margin")).abs() < 1e-4,
        "{margin}"
    );
    assert!(margin["low"].as_f64() < Some(gained) && Some(gained) < margin["high"].as_f64());
    assert!(scores["accuracy"]["against_base"]["verdict"].is_string() && report.get("loss").is_none());
    let each = fs::read_to_string(folder.path().join("each.jsonl")).expect("written");
    let first: Value = serde_json::from_str(each.lines().next().expect("a pair")).expect("JSON");
    assert_eq!((each.lines().count(), &first["place"]), (15, &Value::from("valid.jsonl:1")));
    for key in ["margin", "base_margin", "margin_gain", "chosen_log_probability", "base_accuracy", "chosen_tokens"] {
        assert!(first[key].is_number(), "{key}: {first}");
    }
    let gain = first["margin"].as_f64().expect("a number") - first["base_margin"].as_f64().expect("a number");
    assert!((first["margin_gain"].as_f64().expect("a number") - gain).abs() < 1e-9);

    let alone = json(&run(&folder, &arguments));
    assert!(alone["scores"].get("reward_accuracy").is_none() && alone["scores"]["margin"]["value"].is_f64());
    assert_eq!(alone["scores"]["margin"]["value"], margin["before"]);
    let required = [&with_adapter[..6], &["--adapter", "runs/sums", "--require", "not-worse"]].concat();
    assert!(run(&folder, &required).status.success());
    let error = refused(&run(&folder, &[&arguments[..5], &["--generate"]].concat()));
    assert!(error.contains("holds pairs of preferences"), "{error}");
}

#[test]
fn a_check_finds_the_defects_of_pairs() {
    let folder = job();
    let row = |prompt: &str, chosen: &str, rejected: &str| {
        format!("{{\"prompt\": {prompt:?}, \"chosen\": {chosen:?}, \"rejected\": {rejected:?}}}\n")
    };
    let mut rows: Vec<String> =
        (0..20).map(|index| row(&format!("Item {index}: "), "a much longer answer", "short")).collect();
    rows.push(row("The same: ", "one", "one"));
    rows.push(row("Swapped: ", "left", "right"));
    rows.push(row("Swapped: ", "right", "left"));
    rows.push(row("Long: ", &"word ".repeat(200), "no"));
    fs::write(folder.path().join("defects.jsonl"), rows.concat()).expect("written");
    fs::write(folder.path().join("leak.jsonl"), row("Item 3: ", "another answer", "none")).expect("written");
    let settings = ["data.train=defects.jsonl", "data.valid=leak.jsonl"];
    let report = json(&run(&folder, &with(&["check", "recipe.toml", "--json"], &settings)));
    let findings = report["findings"].as_array().expect("findings");
    let found = |code: &str| -> Option<&Value> { findings.iter().find(|finding| finding["code"] == code) };
    for code in ["D001", "D002", "D003", "D203"] {
        assert!(found(code).is_some(), "{code}: {findings:#?}");
    }
    assert!(found("D103").is_none(), "several answers to a prompt are no contradiction here");
    assert!(found("D003").expect("found").to_string().contains("longer in 92% of 24 pairs"), "{:?}", found("D003"));
    assert!(findings.iter().any(|finding| finding.to_string().contains("64")), "the long answer: {findings:#?}");
    let shown = run(&folder, &["check", "recipe.toml", "--show", "1"]);
    assert!(text(&shown.stdout).contains("(rejected)"), "{}", text(&shown.stdout));
}

#[test]
fn a_pair_has_one_prompt_whatever_is_done_to_it() {
    let encoder = encoder(CHATML);
    let prompt = "Say whether the northern gate of the old town is open to walkers today. ".repeat(4);
    let with = |completion: &str| {
        Box::new(Example::PromptCompletion { prompt: prompt.clone(), completion: completion.to_owned() })
    };
    let pair =
        Example::Preference { chosen: with("It is."), rejected: with("Who knows, who would ask me about gates?") };
    let row = Row::new(Position::line("d.jsonl", 1), pair.clone());
    let whole = encoder.encode(&pair).expect("encodes");
    let max = whole.longest_tokens() - 10;
    let cut =
        |max: usize| encoder.encode_all(std::slice::from_ref(&row), max, LongPolicy::TruncatePrompt).expect("encodes");
    let set = cut(max);
    assert_eq!((set.truncated, set.sequences[0].longest_tokens()), (1, max));
    let parts = |encoded: &burnish::data::Encoded| -> Vec<(Vec<u32>, Vec<u32>)> {
        let split = |(ids, trained): (&[u32], &[bool])| {
            let (prompt, answer) = ids.split_at(trained.iter().position(|trained| *trained).expect("an answer"));
            (prompt.to_vec(), answer.to_vec())
        };
        encoded.sequences().map(split).collect()
    };
    let (before, after) = (parts(&whole), parts(&set.sequences[0]));
    assert_eq!(after[0].0, after[1].0, "one prompt");
    assert_eq!(before[0].0.len(), after[0].0.len() + 10);
    assert!((0..2).all(|index| before[index].1 == after[index].1) && before[0].1 != before[1].1, "answers stay");
    assert_eq!(cut(8).dropped_long, 1);

    let settings =
        Augment { wordings: vec!["{prompt}".into(), "Well: {prompt}".into()], token_dropout: 0.2, typing_errors: 0.1 };
    let examples = [pair];
    let augmenter =
        Augmenter { encoder: &encoder, settings: &settings, seed: 5, max_seq_tokens: 4096, examples: &examples };
    for epoch in 0..5 {
        let changed = parts(&augmenter.sequence(epoch, 0).expect("encodes"));
        assert!(changed[0].0 == changed[1].0 && changed[0].0 != before[0].0, "epoch {epoch}");
        assert!(changed[0].1 == before[0].1 && changed[1].1 == before[1].1);
    }
}

/// Columns of a table by the mapping.
#[cfg(feature = "tables")]
#[test]
fn pairs_come_from_tables_by_the_mapping() {
    let folder = job();
    let rows: Vec<String> = (1..8).map(|a| format!("{a} plus 1 is ,{},{}\n", a + 1, a + 2)).collect();
    fs::write(folder.path().join("pairs.csv"), format!("question,better,worse\n{}", rows.concat())).expect("written");
    let settings = [
        "data.train=pairs.csv",
        "data.valid=pairs.csv",
        "data.columns.prompt=question",
        "data.columns.chosen=better",
        "data.columns.rejected=worse",
        "train.max_steps=2",
    ];
    let report = json(&run(&folder, &with(&["train", "recipe.toml", "--json"], &settings)));
    assert_eq!(report["validation"]["examples"], 7);
}
