//! Classification: against transformers and PEFT, and as a whole job.

mod peft;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::signals::wait_for;
use crate::cli::with_settings::{a_cut_run_ends_alike, metrics, with};
use crate::cli::{burnish, json as object, refused, run, text, tiny_job, tiny_model};

const WORDS: [(&str, &str); 3] = [("plum", "fruit"), ("iron", "metal"), ("rain", "weather")];

/// The text of a number, and its label.
fn example(number: usize) -> (String, &'static str) {
    let (word, label) = WORDS[number % 3];
    (format!("{} times {word} or more {word}", number / 3 + 1), label)
}

/// The tiny job over texts whose label follows from a word. The validation examples are training examples too: a model of random
/// weights learns nothing about others.
fn job() -> TempDir {
    let folder = tiny_job();
    let write = |name: &str, content: String| fs::write(folder.path().join(name), content).expect("written");
    let row = |number: usize| {
        let (text, label) = example(number);
        format!("{}\n", json!({ "text": text, "label": label }))
    };
    write("train.jsonl", (0..30).map(row).collect());
    write("valid.jsonl", (6..27).map(row).collect());
    let recipe = fs::read_to_string(folder.path().join("recipe.toml")).expect("the recipe");
    let recipe = recipe
        .replace("[train]\nepochs = 2\n", "[train]\nobjective = \"classify\"\nepochs = 4\n")
        .replace("rank = 4\n", "rank = 4\ndropout = 0.1\n")
        .replace("[sample]\nprompts = [\"1 and 2 is \"]\nmax_tokens = 4\n", "");
    write("recipe.toml", recipe);
    folder
}

/// The objects on stdout, one a line.
fn lines(output: &std::process::Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_job_measures_its_labels_and_its_adapter_gives_them() {
    let folder = job();
    let base = tiny_model();
    let base = base.to_str().expect("a path");
    let report = object(&run(&folder, &["train", "recipe.toml", "--json"]));
    let runs = folder.path().join("runs/sums");
    let all = metrics(&runs);
    let evaluations: Vec<&Value> = all.iter().filter(|line| line.get("valid_loss").is_some()).collect();
    for key in ["valid_accuracy", "valid_macro_f1", "valid_calibration_error"] {
        assert!(evaluations.iter().all(|line| line[key].is_f64()), "{key}: {evaluations:#?}");
    }
    assert!(evaluations[0].get("valid_token_accuracy").is_none());
    // Three labels, and a head that is nearly zero.
    assert!((evaluations[0]["valid_loss"].as_f64().expect("a loss") - 3f64.ln()).abs() < 0.15, "{}", evaluations[0]);
    let validation = &report["validation"];
    let classes = &validation["classes"];
    assert_eq!((&validation["verdict"], &validation["examples"]), (&json!("improved"), &json!(21)));
    assert!(classes["accuracy"]["after"].as_f64() > Some(0.9), "{classes:#}");
    let after = &classes["after"];
    assert!(after["accuracy"]["low"].is_f64() && after["macro_f1"]["high"].is_f64());
    let names: Vec<&str> =
        after["labels"].as_array().expect("labels").iter().filter_map(|one| one["label"].as_str()).collect();
    assert_eq!(names, ["fruit", "metal", "weather"]);
    let row_sums: Vec<u64> = after["confusion"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row.as_array().expect("a row").iter().filter_map(Value::as_u64).sum())
        .collect();
    assert_eq!(row_sums, [7, 7, 7]);

    let config: Value =
        serde_json::from_slice(&fs::read(runs.join("adapter_config.json")).expect("read")).expect("JSON");
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["score"])));
    let card = fs::read_to_string(runs.join("README.md")).expect("a card");
    assert!(
        card.contains("pipeline_tag: text-classification")
            && card.contains("labels = [\"fruit\",\"metal\",\"weather\"]"),
        "{card}"
    );

    let measured = object(&run(
        &folder,
        &["eval", "--base", base, "--adapter", "runs/sums", "--data", "valid.jsonl", "--json", "--out", "each.jsonl"],
    ));
    let is_close = |a: &Value, b: &Value| (a.as_f64().expect("a number") - b.as_f64().expect("a number")).abs() < 1e-6;
    assert!(is_close(&measured["loss"], &validation["loss_after"]), "{measured}");
    assert_eq!(measured["classes"], *after);
    let each: Vec<Value> = fs::read_to_string(folder.path().join("each.jsonl"))
        .expect("written")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!((each.len(), &each[0]["label"]), (21, &json!("fruit")));

    let predicted =
        lines(&run(&folder, &["predict", "valid.jsonl", "--base", base, "--adapter", "runs/sums", "--quiet"]));
    assert_eq!(predicted.len(), 21);
    for (one, eval) in predicted.iter().zip(&each) {
        assert_eq!((&one["label"], &one["place"]), (&eval["predicted"], &eval["place"]));
        let probabilities = one["probabilities"].as_object().expect("probabilities");
        assert_eq!(probabilities.keys().collect::<Vec<_>>(), ["fruit", "metal", "weather"]);
        let sum: f64 = probabilities.values().filter_map(Value::as_f64).sum();
        assert!(
            (sum - 1.0).abs() < 1e-5 && probabilities[one["label"].as_str().expect("a label")] == one["probability"]
        );
    }
    predict_reads_texts_of_every_kind(&folder, base, &predicted);
    other_commands_refuse(&folder, base);
}

/// The same texts as JSONL from stdin, as lines, and as a table give the same labels.
fn predict_reads_texts_of_every_kind(folder: &TempDir, base: &str, expected: &[Value]) {
    let arguments = |file: &'static str| ["predict", file, "--base", base, "--adapter", "runs/sums", "--quiet"];
    let from_stdin = |input: &str| {
        let mut command = burnish(folder);
        command.args(arguments("-")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("written");
        lines(&child.wait_with_output().expect("ends"))
    };
    let probabilities = |found: &[Value]| found.iter().map(|one| one["probabilities"].clone()).collect::<Vec<_>>();
    let rows = fs::read_to_string(folder.path().join("valid.jsonl")).expect("read");
    let by_row = from_stdin(&rows);
    assert_eq!(probabilities(&by_row), probabilities(expected));
    assert_eq!(by_row[1]["place"], "stdin:2");
    let texts: String = (6..27).map(|number| example(number).0 + "\n").collect();
    assert_eq!(probabilities(&from_stdin(&texts)), probabilities(expected));
    #[cfg(feature = "tables")]
    {
        let table: String = (6..27).map(|number| format!("{number},{}\n", example(number).0)).collect();
        fs::write(folder.path().join("texts.csv"), format!("id,message\n{table}")).expect("written");
        let columns = [&arguments("texts.csv")[..], &["--columns", "text=message", "--out", "labels.jsonl"]].concat();
        let output = run(folder, &columns);
        assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
        let written = fs::read_to_string(folder.path().join("labels.jsonl")).expect("written");
        let written: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(probabilities(&written), probabilities(expected));
        let error = refused(&run(folder, &columns));
        assert!(error.contains("labels.jsonl exists already"), "{error}");
    }
}

/// Commands that need text refuse a classifier by a sentence.
fn other_commands_refuse(folder: &TempDir, base: &str) {
    for arguments in [
        &["generate", "--prompt", "a"][..],
        &["merge", "--out", "merged"],
        &["export", "--format", "gguf-lora", "--out", "lora.gguf"],
        &["export", "--format", "mlx", "--out", "mlx"],
    ] {
        let (command, rest) = arguments.split_first().expect("a command");
        let error = refused(&run(folder, &[&[*command, "--base", base, "--adapter", "runs/sums"], rest].concat()));
        assert!(
            error.contains("runs/sums: is a classifier of the labels fruit, metal, weather: it gives no text"),
            "{command}: {error}"
        );
        assert!(error.contains("`burnish predict`"), "{error}");
    }
    #[cfg(feature = "serve")]
    {
        let error = refused(&run(folder, &["serve", "--base", base, "--adapter", "labels=runs/sums", "--port", "0"]));
        assert!(error.contains("it gives no text"), "{error}");
    }
    let error = refused(&run(folder, &["combine", "runs/sums", "runs/sums", "--out", "both"]));
    assert!(error.contains("score") && error.contains("cannot be combined"), "{error}");
    fs::write(folder.path().join("plain.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n").expect("written");
    let error = refused(&run(folder, &["eval", "--base", base, "--adapter", "runs/sums", "--data", "plain.jsonl"]));
    assert!(error.contains("`text` is missing"), "{error}");
    fs::write(folder.path().join("other.jsonl"), "{\"text\": \"a\", \"label\": \"fruits\"}\n").expect("written");
    let error = refused(&run(folder, &["eval", "--base", base, "--adapter", "runs/sums", "--data", "other.jsonl"]));
    assert!(error.contains("other.jsonl:1: the label \"fruits\" is unknown; expected \"fruit\""), "{error}");
    let error = refused(&run(folder, &["predict", "other.jsonl", "--base", base]));
    assert!(error.contains("--adapter: is missing"), "{error}");
}

#[test]
fn an_adapter_of_another_task_gives_no_labels() {
    let folder = tiny_job();
    assert!(run(&folder, &["train", "recipe.toml", "--quiet"]).status.success());
    let base = tiny_model();
    let base = base.to_str().expect("a path");
    fs::write(folder.path().join("texts.jsonl"), "{\"text\": \"a\"}\n").expect("written");
    let error = refused(&run(&folder, &["predict", "texts.jsonl", "--base", base, "--adapter", "runs/sums"]));
    assert!(error.contains("is no classifier: it gives text, and no labels"), "{error}");
}

#[test]
fn a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped() {
    let settings = [
        "train.checkpoint_steps=2",
        "train.accumulate_steps=2",
        "train.eval_steps=2",
        "train.schedule=constant",
        "train.eval_on=accuracy",
        "train.label_weights=balanced",
    ];
    a_cut_run_ends_alike(job, &settings, 6);
}

#[test]
fn an_interrupted_classifier_is_judged_by_its_evaluations() {
    let folder = job();
    let mut command = burnish(&folder);
    command.args(["train", "recipe.toml", "--set", "train.epochs=100000", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    wait_for(&folder.path().join("runs/sums/adapter_model.safetensors"));
    // SAFETY: sends a signal to the child.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let output = child.wait_with_output().expect("it ends");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let validation = &report["validation"];
    assert_eq!((&report["interrupted"], &validation["tokens"]), (&json!(true), &json!(21)), "{}", text(&output.stderr));
    assert!(validation["loss_after"].is_f64() && validation.get("perplexity_after").is_none(), "{validation}");
}

#[test]
fn a_classifier_trains_over_every_base_and_in_every_layout() {
    let cases: [&[&str]; 6] = [
        &["base.quant=nf4", "train.recompute=block"],
        &["base.quant=int8", "train.label_smoothing=0.05"],
        &["base.quant=keep", "data.packing=true", "train.micro_batch_seqs=2"],
        &["base.compute=bf16", "train.accumulate_steps=2", "data.augment.typing_errors=0.02"],
        &["train.label_weights={ fruit = 2.0, metal = 0.5 }", "adapter.dropout=0", "adapter.dora=true"],
        &["train.early_stopping.patience_evals=1", "train.eval_on=accuracy", "train.eval_steps=2", "train.epochs=8"],
    ];
    let folder = job();
    for (index, settings) in cases.into_iter().enumerate() {
        let dir = format!("output.dir=runs/{index}");
        let settings = [settings, &[dir.as_str()]].concat();
        let report = object(&run(&folder, &with(&["train", "recipe.toml", "--json"], &settings)));
        let validation = &report["validation"];
        assert!(validation["classes"]["accuracy"]["after"].as_f64() > Some(0.6), "{settings:?}: {validation}");
    }
}

#[test]
fn a_classifier_goes_on_from_an_adapter_with_or_without_labels() {
    let folder = job();
    assert!(run(&folder, &["train", "recipe.toml", "--quiet"]).status.success());
    let further = ["adapter.from=runs/sums", "output.dir=runs/further"];
    let report = object(&run(&folder, &with(&["train", "recipe.toml", "--json"], &further)));
    assert!(report["validation"]["loss_before"].as_f64() < Some(0.9), "it begins where the other ended: {report}");
    let other = [&further[..1], &["output.dir=runs/other", "data.labels=[\"metal\", \"fruit\", \"weather\"]"]].concat();
    let error = refused(&run(&folder, &with(&["train", "recipe.toml"], &other)));
    assert!(error.contains("is a classifier of fruit, metal, weather"), "{error}");
}

#[test]
fn bad_labels_and_settings_are_refused_by_name() {
    let folder = job();
    let refusal = |settings: &[&str]| refused(&run(&folder, &with(&["train", "recipe.toml"], settings)));
    let train = |rows: &[Value]| {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(folder.path().join("bad.jsonl"), text).expect("written");
        refusal(&["data.train=bad.jsonl"])
    };
    let good = json!({"text": "a", "label": "fruit"});
    for (row, said) in [
        (json!({"text": "a"}), "bad.jsonl:2: `label` is missing"),
        (json!({"label": "fruit"}), "bad.jsonl:2: `text` is missing"),
        (json!({"text": "a", "label": true}), "`label` is the boolean true; expected a text or a whole number"),
        (json!({"text": "a", "label": 1.5}), "`label` is the number 1.5"),
        (json!({"text": "a", "label": " "}), "`label` is a text"),
        (json!({"text": 3, "label": "fruit"}), "`text` is the number 3"),
    ] {
        let error = train(&[good.clone(), row.clone()]);
        assert!(error.contains(said), "{row}: {error}");
    }
    for (settings, said) in [
        (
            &["data.labels=[\"fruit\", \"metal\"]"][..],
            "the label \"weather\" is unknown; expected \"fruit\", \"metal\"",
        ),
        (&["data.labels=[\"fruit\"]"], "two or more different texts"),
        (&["train.label_weights={ fruits = 2 }"], "gives a weight to \"fruits\"; the labels are fruit, metal, weather"),
        (&["train.label_weights={ fruit = 0 }"], "`train.label_weights`"),
        (&["train.eval_on=exact_match"], "`train.eval_on` does not go with a classifier"),
        (&["sample.prompts=[\"a\"]"], "`sample.prompts` does not go with a classifier"),
        (&["eval.guard.path=valid.jsonl"], "`eval.guard` does not go with a classifier"),
        (&["train.beta=1"], "`train.beta` does nothing under `train.objective = \"classify\"`"),
        (&["train.objective=sft", "train.eval_on=accuracy"], "belongs to classify"),
        (&["train.objective=sft", "data.labels=[\"a\", \"b\"]"], "`data.labels` does nothing"),
        (&["train.objective=sft", "data.format=class"], "is read as `class`"),
        (&["adapter.targets=[\"q_proj\", \"lm_head\"]"], "which a classifier does not use"),
    ] {
        let error = refusal(settings);
        assert!(error.contains(said), "{settings:?}: {error}");
    }
    let one = [good, json!({"text": "b", "label": "fruit"})].map(|row| format!("{row}\n")).concat();
    fs::write(folder.path().join("one.jsonl"), one).expect("written");
    let error = refusal(&["data.train=one.jsonl", "data.valid=one.jsonl"]);
    assert!(error.contains("has the label \"fruit\" alone"), "{error}");
    assert!(!folder.path().join("runs").exists(), "nothing was begun");
}

#[test]
fn a_check_finds_the_defects_of_labels() {
    let folder = job();
    let row = |text: &str, label: &str| format!("{}\n", json!({ "text": text, "label": label }));
    let mut rows: Vec<String> =
        (0..40).map(|number| row(&format!("the {number}th plum of the year"), "fruit")).collect();
    rows.push(row("iron and steel", "metal"));
    rows.push(row("a stone of a plum", "fruit"));
    rows.push(row("a stone of a plum", "metal"));
    rows.push(row(&"many words ".repeat(60), "fruit"));
    fs::write(folder.path().join("defects.jsonl"), rows.concat()).expect("written");
    fs::write(folder.path().join("unseen.jsonl"), row("rain", "weather") + &row("ore", "metal")).expect("written");
    let settings = ["data.train=defects.jsonl", "data.valid=unseen.jsonl"];
    let found = |settings: &[&str]| -> Vec<(String, String)> {
        let report = object(&run(&folder, &with(&["check", "recipe.toml", "--json"], settings)));
        let findings = report["findings"].as_array().expect("findings").clone();
        findings
            .iter()
            .map(|finding| (finding["code"].as_str().expect("a code").to_owned(), finding.to_string()))
            .collect()
    };
    let defects = found(&settings);
    let text_of = |code: &str| defects.iter().find(|(found, _)| found == code).map(|(_, text)| text.clone());
    for (code, said) in
        [("D005", "2 of `metal`, 42 of `fruit`"), ("D006", "`weather`"), ("D103", "defects.jsonl"), ("D701", "64")]
    {
        let text = text_of(code).unwrap_or_else(|| panic!("{code}: {defects:#?}"));
        assert!(text.contains(said), "{code}: {text}");
    }
    for code in ["D508", "D704", "D304", "D301"] {
        assert_eq!(text_of(code), None, "a label is no answer in words");
    }
    let cut = found(&[&settings[..], &["data.overlong=truncate-prompt"]].concat());
    assert!(cut.iter().any(|(code, _)| code == "D702"), "{cut:#?}");
    fs::write(folder.path().join("one.jsonl"), row("a", "fruit") + &row("b", "fruit")).expect("written");
    let one = run(&folder, &with(&["check", "recipe.toml"], &["data.train=one.jsonl", "data.valid=one.jsonl"]));
    assert!(text(&one.stdout).contains("D004") && text(&one.stdout).contains("`fruit`"), "{}", text(&one.stdout));
    let shown = run(&folder, &["check", "recipe.toml", "--show", "2"]);
    assert!(text(&shown.stdout).contains("(label)\nmetal"), "{}", text(&shown.stdout));
}

/// The cheap way: the likelihood of label words, by the base and by an adapter that answers.
#[test]
fn label_words_are_chosen_by_their_likelihood() {
    let folder = job();
    let base = tiny_model();
    let base = base.to_str().expect("a path");
    let eval = |prompt: &str| {
        ["eval", "--base", base, "--data", "valid.jsonl", "--label-prompt", prompt, "--json"].map(str::to_owned)
    };
    let run_with = |prompt: &str| {
        let arguments = eval(prompt);
        run(&folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let report = object(&run_with("Text: {text}\nKind:"));
    assert_eq!(report["scores"]["accuracy"]["examples"], 21);
    assert!(report.get("loss").is_none());
    // As multiple choice with the same texts.
    let question = |number: usize| {
        let (text, label) = example(number);
        let row = json!({"prompt": format!("Text: {text}\nKind:"), "choices": ["fruit", "metal", "weather"], "answer": label});
        format!("{row}\n")
    };
    fs::write(folder.path().join("choices.jsonl"), (6..27).map(question).collect::<String>()).expect("written");
    let same = object(&run(&folder, &["eval", "--base", base, "--data", "choices.jsonl", "--json"]));
    assert_eq!(same["scores"], report["scores"]);
    let error = refused(&run_with("no place"));
    assert!(error.contains("has no `{text}`"), "{error}");
}
