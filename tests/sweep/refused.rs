//! Searches that are refused, each at its line and column, before anything is written.

use std::fs;

use super::job;
use crate::cli::{refused, run};

/// The refusal of a section [sweep] with these lines.
fn refusal(sweep: &str) -> String {
    let folder = job(sweep);
    let said = refused(&run(&folder, &["sweep", "recipe.toml"]));
    assert!(!folder.path().join("runs").exists(), "{said}");
    // `check` says the same.
    let checked = refused(&run(&folder, &["check", "recipe.toml"]));
    assert!(checked.contains(said.lines().next().expect("a line")), "{said}\n{checked}");
    said
}

/// The line of the recipe that holds `text`.
fn line(sweep: &str, text: &str) -> usize {
    let folder = job(sweep);
    let recipe = fs::read_to_string(folder.path().join("recipe.toml")).expect("the recipe");
    1 + recipe.lines().position(|line| line.contains(text)).expect("it is there")
}

#[test]
fn a_space_that_is_wrong_is_told_at_its_place() {
    let cases = [
        (
            "train.learning_rat = [1e-3]",
            7,
            "there is no setting `train.learning_rat`",
            "did you mean `train.learning_rate`?",
        ),
        ("lr = [1e-3]", 1, "there is no setting `lr`", "did you mean `train.learning_rate`?"),
        (
            "train.learning_rate = [1e-3, \"fast\"]",
            30,
            "`train.learning_rate`: expected a number, found the string \"fast\"",
            "",
        ),
        (
            "train.learning_rate = [1e-3, -1.0]",
            30,
            "`train.learning_rate`: expected above 0, up to 10, found the number -1.0",
            "",
        ),
        ("train.learning_rate = []", 23, "expected a list of values or a range, found an empty list", "`[1e-4, 1e-3]`"),
        ("train.learning_rate = 1e-3", 23, "expected a list of values or a range, found the number 1e-3", ""),
        ("adapter.rank = [4, 8, 4]", 23, "`sweep.values.adapter.rank` has the whole number 4 twice", ""),
        ("train.schedule = [\"linear\", \"cosin\"]", 29, "found the string \"cosin\"", "did you mean `cosine`?"),
        ("output.dir = [\"a\", \"b\"]", 8, "`output.dir` cannot be searched", ""),
        (
            "adapter.rank = { min = 2, max = 8 }",
            16,
            "`sweep.values.adapter.rank` is a range, which has no grid",
            "method = \"random\"",
        ),
        ("train.warmup_share = [0.1]\ntrain.warmup_steps = [3]", 1, "", ""),
    ];
    for (values, column, message, hint) in cases.iter().take(10) {
        let sweep = format!("[sweep.values]\n{values}");
        let said = refusal(&sweep);
        let place = format!("recipe.toml:{}:{column}: ", line(&sweep, values));
        assert!(said.contains(&place) && said.contains(message) && said.contains(hint), "{values}: {place}\n{said}");
    }
    // Values that exclude each other are told with the trial that has both.
    let (values, ..) = cases[10];
    let said = refused(&run(&job(&format!("[sweep.values]\n{values}")), &["sweep", "recipe.toml"]));
    assert!(said.contains("trial-1: ") && said.contains("exclude each other"), "{said}");
}

#[test]
fn a_search_that_does_not_add_up_is_refused() {
    let cases = [
        ("[sweep.values]\n", "expected at least one setting with its values"),
        ("method = \"grid\"", "`sweep.values` is missing"),
        ("trials = 4\n[sweep.values]\nadapter.rank = [2, 4]", "`sweep.trials` does nothing under `method = \"grid\"`"),
        (
            "method = \"random\"\ntrials = 4\n[sweep.values]\nadapter.rank = [2, 4]",
            "`sweep.trials` is 4, and there are 2 combinations",
        ),
        (
            "method = \"random\"\ntrials = 9\n[sweep.values]\nadapter.rank = { min = 2, max = 9 }",
            "there are 8 combinations",
        ),
        (
            "method = \"random\"\n[sweep.values]\nadapter.alpha = { min = 2.5, max = 2.5 }",
            "expected `min` below `max`, found 2.5 and 2.5",
        ),
        (
            "method = \"random\"\n[sweep.values]\nadapter.alpha = { min = 0, max = 2.5, scale = \"log\" }",
            "a logarithmic scale begins above 0",
        ),
        (
            "method = \"random\"\n[sweep.values]\nadapter.alpha = { min = 1 }",
            "`sweep.values.adapter.alpha.max` is missing",
        ),
        (
            "method = \"random\"\n[sweep.values]\nadapter.alpha = { min = 1, max = 2, step = 1 }",
            "unknown key `sweep.values.adapter.alpha.step`",
        ),
        ("method = \"random\"\n[sweep.values]\nadapter.rank = { min = 0, max = 8 }", "`adapter.rank`: expected"),
        (
            "rungs = [0.5, 0.25]\n[sweep.values]\nadapter.rank = [2, 4]",
            "`sweep.rungs`: expected rising shares above 0 and below 1",
        ),
        (
            "method = \"bayes\"\n[sweep.values]\nadapter.rank = [2, 4]",
            "`sweep.method`: expected grid or random, found the string \"bayes\"",
        ),
        ("trails = 4\n[sweep.values]\nadapter.rank = [2, 4]", "did you mean `trials`?"),
    ];
    for (sweep, message) in cases {
        let said = refusal(sweep);
        assert!(said.contains(message), "{sweep}: {said}");
    }
    let many = (1..41).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
    let said = refusal(&format!("[sweep.values]\ntrain.seed = [{many}]\ntrain.max_steps = [{many}]"));
    assert!(said.contains("a sweep has at most 1000 trials"), "{said}");
}

#[test]
fn a_trial_that_would_not_start_is_told_before_the_first_begins() {
    let folder = job("[sweep.values]\nadapter.rank = [4, 4000]");
    let said = refused(&run(&folder, &["sweep", "recipe.toml"]));
    assert!(said.contains("trial-2: recipe.toml:") && said.contains("`adapter.rank` is 4000"), "{said}");
    assert!(!folder.path().join("runs").exists());
    let said = refused(&run(&crate::cli::tiny_job(), &["sweep", "recipe.toml"]));
    assert!(said.contains("recipe.toml: has no section [sweep]"), "{said}");
    let folder = job("[sweep.values]\nadapter.rank = [2, 4]");
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("the recipe").replace("valid = \"valid.jsonl\"\n", "");
    fs::write(&path, recipe).expect("written");
    let said = refused(&run(&folder, &["sweep", "recipe.toml"]));
    assert!(said.contains("trials are ranked by validation examples, and there are none"), "{said}");
}
