//! Reports: the page of a run and of several, other tools' files, and what hostile texts make of them.

mod compared;
mod hostile;
#[cfg(feature = "serve")]
mod live;
mod logged;
mod pictures;
mod redacted;

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{json, refused, run, text, tiny_job};

/// Trains the tiny job into `dir` with these settings; there is time for every part of a report.
pub fn train_into(folder: &TempDir, dir: &str, settings: &[&str]) -> Value {
    let dir = format!("output.dir={dir}");
    let mut arguments = vec!["train", "recipe.toml", "--json", "--set", "sample.time_share=1", "--set", &dir];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    json(&run(folder, &arguments))
}

/// The data in a page.
pub fn island(page: &str) -> Value {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"island\">").expect("the data");
    let (data, _) = rest.split_once("</script>").expect("its end");
    serde_json::from_str(data).expect("JSON")
}

fn page_of(dir: &Path) -> Value {
    island(&fs::read_to_string(dir.join("report.html")).expect("a page"))
}

/// The objects of a JSONL file.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("lines");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_page_has_the_numbers_of_the_run_and_every_part() {
    let folder = tiny_job();
    let report = train_into(&folder, "runs/sums", &[]);
    let dir = folder.path().join("runs/sums");
    let page = fs::read_to_string(dir.join("report.html")).expect("a page");
    let data = island(&page);
    let run_data = &data["runs"][0];
    for (key, file) in [("metrics", "metrics.jsonl"), ("timings", "timings.jsonl"), ("samples", "samples.jsonl")] {
        assert_eq!(run_data[key], Value::Array(lines(&dir.join(file))), "{file}");
        // Digit for digit.
        for line in fs::read_to_string(dir.join(file)).expect("lines").lines() {
            assert!(page.contains(&burnish::report::page::for_script(line)), "{line}");
        }
    }
    let beside = run_data.to_string().len();
    assert!(page.len() < beside + (400 << 10), "{} bytes, {beside} of them data", page.len());
    let record: Value = serde_json::from_slice(&fs::read(dir.join("run.json")).expect("run.json")).expect("JSON");
    assert_eq!((&run_data["record"], run_data["state"].as_str()), (&record, Some("finished")));
    assert_eq!(record["outcome"]["validation"], report["validation"]);
    let validation = &report["validation"];
    let number = |key: &str| validation[key].as_f64().expect("a number");
    let said = run_data["sentence"]["text"].as_str().expect("a sentence");
    let expected = format!(
        "over 15 validation examples the mean loss fell from {:.4} to {:.4}, a difference of {:+.4} with a 95% interval from {:+.4} to {:+.4}",
        number("loss_before"),
        number("loss_after"),
        number("difference"),
        number("low"),
        number("high")
    );
    assert!(said.contains(&expected), "{said}");
    assert_eq!(run_data["missing"], serde_json::json!([]));
    assert!(run_data["use"].as_str().is_some_and(|text| text.contains("### transformers and PEFT")), "{run_data}");
    assert!(run_data["recipe"].as_str().is_some_and(|text| text.contains("rank = 4")));

    let details = &run_data["details"];
    assert_eq!(details["left_out"], serde_json::json!({}), "there was time");
    let [train, valid] = &details["lengths"].as_array().expect("lengths")[..] else { panic!("{details}") };
    let bars = |set: &Value| set["bars"].as_array().expect("bars").iter().filter_map(Value::as_u64).sum::<u64>();
    assert_eq!((bars(train), bars(valid)), (21, 15));
    let rendered = &details["rendered"][0];
    let texts: Vec<&str> = rendered["tokens"].as_array().expect("tokens").iter().filter_map(Value::as_str).collect();
    let trained = rendered["trained"].as_array().expect("a mask");
    assert!(texts.concat().contains("1 and 1 is 2"), "{texts:?}");
    let masked: String =
        texts.iter().zip(trained).filter(|(_, trained)| **trained == true).map(|(text, _)| *text).collect();
    assert!(masked.starts_with('2'), "the completion and the end: {masked}");
    let tokens = &details["tokens"];
    assert_eq!(tokens["after_step"], report["best_step"]);
    let sum = |key: &str| {
        let examples = tokens["examples"].as_array().expect("examples").iter();
        examples.flat_map(|one| one[key].as_array().expect("losses")).filter_map(Value::as_f64).sum::<f64>()
    };
    assert!(sum("after") < sum("before"), "it learned: {tokens}");
    let modules = details["adapter"].as_array().expect("a map");
    assert_eq!(modules.len(), 6, "three modules in two layers");
    assert!(
        modules.iter().all(|one| one["update_norm"].as_f64() > Some(0.0) && one["weight_norm"].as_f64() > Some(0.0))
    );
    let parts = |key: &str| details["modules"][key].as_array().map(Vec::len);
    assert_eq!((parts("by_name"), parts("by_layer"), parts("by_module")), (Some(3), Some(2), Some(6)));
    let losses = &details["losses"];
    let sum = |key: &str| losses[key].as_array().expect("losses").iter().filter_map(Value::as_f64).sum::<f64>();
    let mean = sum("after") / sum("tokens");
    assert!((mean - number("loss_after")).abs() < 1e-9, "{mean}, not {validation}");
}

#[test]
fn a_page_is_made_again_from_the_files_alone() {
    let folder = tiny_job();
    train_into(&folder, "runs/sums", &[]);
    let dir = folder.path().join("runs/sums");
    let before = fs::read_to_string(dir.join("report.html")).expect("a page");
    fs::remove_file(dir.join("report.html")).expect("removed");
    // Neither base nor data are there any more.
    for name in ["train.jsonl", "valid.jsonl", "recipe.toml"] {
        fs::remove_file(folder.path().join(name)).expect("removed");
    }
    let output = run(&folder, &["report", "runs/sums"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).trim(), "runs/sums/report.html");
    assert_eq!(fs::read_to_string(dir.join("report.html")).expect("a page"), before);
    assert!(refused(&run(&folder, &["report", "runs"])).contains("is no run folder"));
    assert!(refused(&run(&folder, &["report", "nowhere"])).contains("does not exist"));
}

#[test]
fn a_run_that_broke_off_has_a_page_that_says_so() {
    let folder = tiny_job();
    train_into(&folder, "runs/sums", &[]);
    let dir = folder.path().join("runs/sums");
    // The process was killed while it wrote a line, before there was an outcome.
    let mut record: Value = serde_json::from_slice(&fs::read(dir.join("run.json")).expect("run.json")).expect("JSON");
    record.as_object_mut().expect("an object").remove("outcome");
    fs::write(dir.join("run.json"), record.to_string()).expect("written");
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics");
    let kept: Vec<&str> = metrics.lines().take(5).collect();
    fs::write(dir.join("metrics.jsonl"), kept.join("\n") + "\n{\"step\": 5, \"lo").expect("written");
    for name in ["report.json", "README.md", "timings.jsonl"] {
        fs::remove_file(dir.join(name)).expect("removed");
    }
    let output = run(&folder, &["report", "runs/sums"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("metrics.jsonl has a line that is no JSON object"));
    let data = page_of(&dir);
    let run_data = &data["runs"][0];
    assert_eq!(run_data["state"], "broken off");
    let said = run_data["sentence"]["text"].as_str().expect("a sentence");
    assert!(
        said.starts_with("The run broke off after 4 steps without an outcome; the lowest validation loss"),
        "{said}"
    );
    let missing = run_data["missing"].to_string();
    for file in ["report.json", "timings.jsonl"] {
        assert!(missing.contains(&format!("{file} is not there")), "{missing}");
    }
    assert_eq!((&run_data["use"], &run_data["details"]), (&Value::Null, &Value::Null));
    assert_eq!(run_data["metrics"].as_array().map(Vec::len), Some(5));
}

#[test]
fn a_run_without_time_or_validation_leaves_parts_out_and_says_why() {
    let folder = tiny_job();
    json(&run(&folder, &["train", "recipe.toml", "--json", "--set", "sample.time_share=0"]));
    let left_out = |dir: &str| page_of(&folder.path().join(dir))["runs"][0]["details"]["left_out"].clone();
    let reasons = left_out("runs/sums");
    for part in ["tokens", "modules"] {
        assert_eq!(reasons[part], "`sample.time_share` left no time for it", "{reasons}");
    }
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("the recipe").replace("valid = \"valid.jsonl\"\n", "");
    fs::write(&path, recipe).expect("written");
    train_into(&folder, "runs/blind", &[]);
    let reasons = left_out("runs/blind");
    for part in ["tokens", "modules", "losses"] {
        assert_eq!(reasons[part], "there are no validation examples", "{reasons}");
    }
    let data = page_of(&folder.path().join("runs/blind"));
    let said = data["runs"][0]["sentence"]["text"].as_str().expect("a sentence");
    assert_eq!(
        said,
        "Nothing says whether the adapter is better than the base: the run of 12 steps had no validation examples."
    );
    assert!(data["runs"][0]["details"]["adapter"].is_array());
}

#[test]
fn the_share_of_time_holds_for_samples_and_report_together() {
    let folder = tiny_job();
    let began = std::time::Instant::now();
    // Slow enough for a share to be worth something.
    let settings = ["train.epochs=40", "sample.time_share=0.03"];
    let mut arguments = vec!["train", "recipe.toml", "--json"];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    json(&run(&folder, &arguments));
    let took = began.elapsed().as_secs_f64();
    let data = page_of(&folder.path().join("runs/sums"));
    let details = &data["runs"][0]["details"];
    let seconds = |key: &str| details["seconds"][key].as_f64().expect("seconds");
    assert!(seconds("run") <= took && seconds("samples") + seconds("report") < seconds("run"), "{details}");
    // Parts that did not fit are named; the others are whole.
    for part in ["tokens", "modules"] {
        let is_there = details[part].is_object();
        let is_measured = part != "tokens" || !details[part]["after_step"].is_null();
        assert!(
            (is_there && is_measured) != details["left_out"][part].is_string(),
            "{took} s, {part}: {}",
            details["left_out"]
        );
    }
}

#[test]
fn a_classifier_has_a_page_without_tokens() {
    let folder = tiny_job();
    let rows: Vec<String> = (0..24)
        .map(|number| format!("{{\"text\": \"number {number}\", \"label\": \"{}\"}}\n", ["even", "odd"][number % 2]))
        .collect();
    for name in ["train.jsonl", "valid.jsonl"] {
        fs::write(folder.path().join(name), rows.concat()).expect("written");
    }
    train_into(&folder, "runs/labels", &["train.objective=classify", "sample.prompts=[]"]);
    let data = page_of(&folder.path().join("runs/labels"));
    let details = &data["runs"][0]["details"];
    assert_eq!(details["left_out"]["tokens"], "a classifier gives labels, and no tokens");
    assert!(details["modules"]["by_module"].is_array() && details["losses"]["after"].is_array(), "{details}");
    let last = details["rendered"][0]["tokens"].as_array().and_then(|tokens| tokens.last()).expect("a token");
    assert_eq!(last, " → even");
    // The confusion of the verdict, on the page and as text.
    let after = &data["runs"][0]["record"]["outcome"]["validation"]["classes"]["after"];
    let counts = |row: &Value| row.as_array().expect("counts").iter().filter_map(Value::as_u64).sum::<u64>();
    assert_eq!(after["confusion"].as_array().expect("rows").iter().map(counts).collect::<Vec<_>>(), [12, 12]);
    let told = text(&run(&folder, &["report", "runs/labels", "--format", "text"]).stdout);
    let (_, table) = told.split_once("label  examples").expect("the labels");
    assert!(table.contains("as even") && table.lines().any(|line| line.starts_with("odd    12")), "{told}");
}

#[test]
fn a_run_on_preferences_has_a_page() {
    let folder = tiny_job();
    let pair = |a: usize, b: usize| {
        format!("{{\"prompt\": \"{a} and {b} is \", \"chosen\": \"{}\", \"rejected\": \"{}\"}}\n", a + b, a + b + 2)
    };
    let rows: Vec<String> = (1..5).flat_map(|a| (1..5).map(move |b| pair(a, b))).collect();
    for name in ["train.jsonl", "valid.jsonl"] {
        fs::write(folder.path().join(name), rows.concat()).expect("written");
    }
    for objective in ["dpo", "orpo"] {
        let dir = format!("runs/{objective}");
        train_into(&folder, &dir, &[&format!("train.objective={objective}")]);
        let data = page_of(&folder.path().join(&dir));
        let details = &data["runs"][0]["details"];
        assert_eq!(details["left_out"]["losses"], "losses of preferences depend on the reference of the run");
        assert!(details["tokens"]["examples"][0]["before"].is_array() && details["modules"].is_object(), "{details}");
    }
}
