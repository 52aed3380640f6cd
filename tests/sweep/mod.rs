//! Sweeps: the trials and their ranking, losers that pause, sweeps that are cut off and go on, and searches that are refused.

mod refused;
#[cfg(unix)]
mod resumed;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{json, run, text, tiny_job};
use crate::report::island;

/// The tiny job with 24 steps, an evaluation every three, and a section [sweep].
fn job(sweep: &str) -> TempDir {
    let folder = tiny_job();
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("the recipe");
    let recipe = recipe.replace("epochs = 2\n", "epochs = 4\n").replace("eval_steps = 5\n", "eval_steps = 3\n");
    let recipe = recipe.replace("prompts = [\"1 and 2 is \"]\n", "valid_prompts = 0\n");
    fs::write(&path, format!("{recipe}[sweep]\n{sweep}\n")).expect("written");
    folder
}

/// Six trials, of which three go on after the third step and two after the twelfth.
const HALVING: &str =
    "rungs = [0.125, 0.5]\n[sweep.values]\ntrain.learning_rate = [1e-4, 1e-3, 1e-2]\nadapter.rank = [2, 4]";

fn swept(folder: &TempDir, more: &[&str]) -> Value {
    json(&run(folder, &[&["sweep", "recipe.toml", "--json"][..], more].concat()))
}

fn trial(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join("runs/sums").join(name)
}

fn names<'r>(report: &'r Value, state: &str) -> Vec<&'r str> {
    let trials = report["trials"].as_array().expect("trials").iter().filter(|trial| trial["state"] == state);
    trials.map(|trial| trial["name"].as_str().expect("a name")).collect()
}

/// The results of a run, which must not depend on pauses.
fn results(dir: &Path) -> (String, String, Value) {
    let adapter = burnish::files::hex::sha256_of_file(&dir.join("adapter_model.safetensors")).expect("an adapter");
    let record: Value = serde_json::from_slice(&fs::read(dir.join("run.json")).expect("run.json")).expect("JSON");
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics");
    (adapter, metrics, record["outcome"]["validation"].clone())
}

#[test]
fn every_combination_is_trained_and_the_best_recipe_runs() {
    let folder = job("rungs = []\n[sweep.values]\ntrain.learning_rate = [1e-4, 1e-2]\nadapter.rank = [2, 4]");
    let report = swept(&folder, &[]);
    let trials = report["trials"].as_array().expect("trials");
    assert_eq!(names(&report, "finished").len(), 4, "{report}");
    let losses: Vec<f64> = trials.iter().map(|trial| trial["loss"].as_f64().expect("a loss")).collect();
    assert!(losses.is_sorted() && losses[0] < losses[3], "the best first: {losses:?}");
    for trial in trials {
        let dir = folder.path().join("runs/sums").join(trial["name"].as_str().expect("a name"));
        let (_, metrics, validation) = results(&dir);
        let evaluated = metrics
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).expect("JSON")["valid_loss"].as_f64());
        let loss = trial["loss"].as_f64().expect("a loss");
        for expected in [evaluated.min_by(f64::total_cmp), validation["loss_after"].as_f64()] {
            assert!((expected.expect("a loss") - loss).abs() < 1e-9, "{expected:?}: {trial}");
        }
        let kept = fs::read_to_string(dir.join("recipe.toml")).expect("a recipe");
        let table: toml::Table = kept.parse().expect("TOML");
        assert!(table.get("sweep").is_none(), "a trial is no sweep: {kept}");
        assert_eq!(table["adapter"]["rank"].as_integer(), trial["values"]["adapter.rank"].as_i64());
        assert_eq!(table["train"]["learning_rate"].as_float(), trial["values"]["train.learning_rate"].as_f64());
    }
    let best = fs::read_to_string(folder.path().join("runs/sums/best.toml")).expect("the best recipe");
    assert!(
        best.starts_with(&format!("# The best of 4 trials by loss: {}, ", trials[0]["name"].as_str().expect("a name"))),
        "{best}"
    );
    let again = json(&run(&folder, &["train", "runs/sums/best.toml", "--json"]));
    assert_eq!(again["dir"], "runs/sums/best");
    let name = trials[0]["name"].as_str().expect("a name");
    assert_eq!(results(&trial(&folder, "best")), results(&trial(&folder, name)), "the same run");

    let page = fs::read_to_string(folder.path().join("runs/sums/sweep.html")).expect("a page");
    let data = island(&page);
    assert_eq!(data["sweep"]["trials"], report["trials"]);
    assert_eq!(data["runs"].as_array().map(Vec::len), Some(4));
    assert_eq!(data["runs"][0]["name"], trials[0]["name"]);
    let metrics = fs::read_to_string(trial(&folder, name).join("metrics.jsonl")).expect("metrics");
    assert_eq!(data["runs"][0]["metrics"].as_array().map(Vec::len), Some(metrics.lines().count()));
}

#[test]
fn losers_pause_and_those_that_go_on_are_the_runs_they_would_have_been() {
    let folder = job(HALVING);
    let report = swept(&folder, &[]);
    assert_eq!((names(&report, "finished").len(), names(&report, "stopped").len()), (2, 4), "{report}");
    let steps: Vec<u64> =
        report["trials"].as_array().expect("trials").iter().filter_map(|one| one["steps"].as_u64()).collect();
    assert_eq!(steps, [24, 24, 12, 3, 3, 3]);
    // The three that went on after the first rung had the lowest losses there, and so on.
    let loss_at = |name: &str, step: u64| {
        let (_, metrics, _) = results(&trial(&folder, name));
        let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let losses =
            lines.filter(|line| line["step"].as_u64() <= Some(step)).filter_map(|line| line["valid_loss"].as_f64());
        losses.min_by(f64::total_cmp).expect("a loss")
    };
    let all: Vec<&str> =
        report["trials"].as_array().expect("trials").iter().filter_map(|one| one["name"].as_str()).collect();
    let worst_of = |names: &[&str], step| names.iter().map(|name| loss_at(name, step)).fold(f64::MIN, f64::max);
    let best_of = |names: &[&str], step| names.iter().map(|name| loss_at(name, step)).fold(f64::MAX, f64::min);
    assert!(worst_of(&all[..3], 3) <= best_of(&all[3..], 3));
    assert!(worst_of(&all[..2], 12) <= best_of(&all[2..3], 12));
    for one in report["trials"].as_array().expect("trials").iter().take(2) {
        let name = one["name"].as_str().expect("a name");
        let rank = format!("adapter.rank={}", one["values"]["adapter.rank"]);
        let rate = format!("train.learning_rate={}", one["values"]["train.learning_rate"]);
        let dir = format!("output.dir=whole/{name}");
        let output = run(&folder, &["train", "recipe.toml", "--set", &rank, "--set", &rate, "--set", &dir]);
        let said = text(&output.stderr);
        assert!(output.status.success() && said.contains("[sweep] is left out"), "{said}");
        assert_eq!(results(&trial(&folder, name)), results(&folder.path().join("whole").join(name)), "{name}");
    }
    // A loser can go on by itself.
    let loser = all[5];
    let recipe = format!("runs/sums/{loser}/recipe.toml");
    let gone_on = json(&run(&folder, &["train", &recipe, "--resume", "--json"]));
    assert_eq!((&gone_on["steps"], &gone_on["interrupted"]), (&24.into(), &false.into()));
}

#[test]
fn trials_at_once_are_the_same_trials() {
    let (one, several) = (job(HALVING), job(HALVING));
    let (first, second) = (swept(&one, &[]), swept(&several, &["--parallel", "3", "--threads", "2"]));
    let without_times = |report: &Value| {
        let mut trials = report["trials"].clone();
        for trial in trials.as_array_mut().expect("trials") {
            trial.as_object_mut().expect("a trial").remove("seconds");
        }
        trials
    };
    assert_eq!(without_times(&first), without_times(&second));
    for name in names(&first, "finished") {
        assert_eq!(results(&trial(&one, name)), results(&trial(&several, name)), "{name}");
    }
    let said =
        text(&run(&several, &["sweep", "recipe.toml", "--resume", "--parallel", "3", "--max-memory", "1GiB"]).stderr);
    assert!(said.contains("6 trials, 3 at once"), "{said}");
    let planned = json(&run(&one, &["check", "recipe.toml", "--json", "--set", "output.dir=other"]));
    let bytes = planned["memory_bytes"].as_u64().expect("bytes").to_string();
    let said =
        text(&run(&several, &["sweep", "recipe.toml", "--resume", "--parallel", "3", "--max-memory", &bytes]).stderr);
    assert!(said.contains("may be used: ") && !said.contains("6 trials, 3 at once"), "{said}");
}

#[test]
fn draws_follow_the_seed() {
    let sweep = "method = \"random\"\ntrials = 3\nseed = 7\n[sweep.values]\n\
                 train.learning_rate = { min = 1e-4, max = 1e-1, scale = \"log\" }\nadapter.rank = { min = 2, max = 6 }";
    let (one, other) = (job(sweep), job(sweep));
    let more = ["--set", "train.max_steps=3"];
    let values = |folder: &TempDir, seed: &[&str]| {
        swept(folder, &[&more[..], seed].concat());
        let journal = fs::read(folder.path().join("runs/sums/sweep.json")).expect("a journal");
        let journal: Value = serde_json::from_slice(&journal).expect("JSON");
        let trials = journal["trials"].as_array().expect("trials").iter().map(|trial| trial["values"].clone());
        trials.collect::<Vec<_>>()
    };
    let first = values(&one, &[]);
    assert_eq!((first.len(), &first), (3, &values(&other, &[])));
    assert!(first.iter().all(|values| values["adapter.rank"].is_u64() && values["train.learning_rate"].is_f64()));
    let third = job(sweep);
    assert_ne!(first, values(&third, &["--set", "sweep.seed=8"]));
}

#[test]
fn a_trial_that_diverges_loses_and_the_others_go_on() {
    let folder = job("rungs = []\n[sweep.values]\ntrain.learning_rate = [10, 1e-3, 1e-4]\ntrain.weight_decay = [1.0]");
    let more = ["--set", "train.schedule=constant", "--set", "train.max_bad_steps=1", "--set", "train.epochs=8"];
    let report = swept(&folder, &more);
    assert_eq!((names(&report, "failed"), names(&report, "finished").len()), (vec!["trial-1"], 2), "{report}");
    let failed = &report["trials"][2];
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("train.learning_rate")), "{failed}");
    let told = text(&run(&folder, &[&["sweep", "recipe.toml", "--resume"][..], &more].concat()).stdout);
    assert!(told.contains("3 trials: 2 finished, 1 failed; the best by loss is trial-"), "{told}");
    assert!(told.lines().nth(3).is_some_and(|line| line.starts_with("trial-1  failed")), "{told}");
}

#[test]
fn a_gain_can_be_ranked_by_its_cost() {
    let folder = job("rungs = []\n[sweep.values]\ntrain.max_steps = [3, 6]");
    let report = swept(&folder, &["--objective", "loss_gain_per_hour"]);
    assert_eq!((&report["objective"], &report["higher_is_better"]), (&"loss_gain_per_hour".into(), &true.into()));
    let mut scores = Vec::new();
    for one in report["trials"].as_array().expect("trials") {
        let number = |key: &str| one[key].as_f64().expect("a number");
        let expected = 3600.0 * (number("loss_before") - number("loss")) / number("seconds");
        assert!((number("score") - expected).abs() < 1e-6 * expected, "{one}");
        scores.push(-expected);
    }
    assert!(scores.is_sorted(), "the largest first: {scores:?}");
}

#[test]
fn exact_answers_rank_where_they_are_measured() {
    let folder = job("rungs = []\nobjective = \"exact_match\"\n[sweep.values]\ntrain.learning_rate = [1e-4, 3e-2]");
    let said = crate::cli::refused(&run(&folder, &["sweep", "recipe.toml"]));
    assert!(said.contains("`train.eval_on` is \"loss\"; the sweep ranks by `exact_match`"), "{said}");
    let report = swept(&folder, &["--set", "train.eval_on=exact_match"]);
    let scores: Vec<f64> =
        report["trials"].as_array().expect("trials").iter().filter_map(|one| one["score"].as_f64()).collect();
    assert!(
        scores.len() == 2 && scores[0] >= scores[1] && scores.iter().all(|score| (0.0..=1.0).contains(score)),
        "{report}"
    );
}

#[test]
fn nothing_in_a_sweep_becomes_markup() {
    use burnish::report::sweep::{Summary, SummaryRow, page};
    let payload = "</script><img src=x onerror=alert(1)>\u{2028}";
    let row = SummaryRow {
        name: payload.to_owned(),
        state: "failed",
        values: serde_json::Map::from_iter([(payload.to_owned(), payload.into())]),
        score: Some(1.0),
        loss_before: None,
        loss: Some(1.0),
        best_step: None,
        steps: 1,
        total_steps: 2,
        seconds: 0.0,
        error: Some(payload.to_owned()),
    };
    let summary = Summary::new(Path::new(payload), ("loss", false, false), vec![row]);
    let made = page(&summary, &[]);
    let own = burnish::report::page::with_data("t", "s", "{}");
    assert_eq!(made.matches('<').count(), own.matches('<').count(), "no element but the page's own");
    assert_eq!(island(&made)["sweep"]["trials"][0]["values"][payload], payload);
}
