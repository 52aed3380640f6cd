//! The programs in `examples/`, compiled into the tests and run on the tiny job.

use std::fs;
use std::path::Path;

use crate::cli::{tiny_job, tiny_model};

#[allow(dead_code, reason = "an example's `main` is not called")]
#[path = "../examples/evaluate.rs"]
mod evaluate;
#[allow(dead_code, reason = "an example's `main` is not called")]
#[path = "../examples/resume.rs"]
mod resume;
#[allow(dead_code, reason = "an example's `main` is not called")]
#[path = "../examples/train.rs"]
mod train;

#[test]
fn a_run_its_continuation_and_its_evaluation_take_few_lines() {
    let folder = tiny_job();
    let absolute = |name: &str| folder.path().join(name);
    let path = absolute("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("the recipe");
    let recipe = ["train.jsonl", "valid.jsonl", "runs/sums"]
        .iter()
        .fold(recipe, |recipe, name| recipe.replace(&format!("{name:?}"), &format!("{:?}", absolute(name))));
    let recipe = recipe.replace("epochs = 2", "epochs = 2\nschedule = \"constant\"");
    fs::write(&path, &recipe).expect("written");
    let report = train::fine_tune(&path).expect("trained");
    assert_eq!(report.steps, 12);
    fs::write(&path, recipe.replace("epochs = 2", "epochs = 3")).expect("written");
    let report = resume::go_on(&path).expect("trained on");
    assert_eq!(report.steps, 18);
    let validation = report.validation.expect("validation examples");
    assert!(validation.loss_after < validation.loss_before);
    let base = tiny_model().display().to_string();
    let measured = evaluate::measure(&base, &absolute("runs/sums"), &absolute("valid.jsonl")).expect("measured");
    let loss = measured.loss.expect("a loss");
    assert!((loss - validation.loss_after).abs() < 1e-6, "{loss}, not {}", validation.loss_after);

    let examples = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).expect("examples");
    for example in examples {
        let path = example.expect("an example").path();
        let lines = fs::read_to_string(&path).expect("an example").lines().count();
        assert!(lines < 40, "{} has {lines} lines", path.display());
    }
}
