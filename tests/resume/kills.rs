//! SIGKILL at any moment, and a run that goes on as if nothing had happened.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Results, checkpoints, job, record, runs, trained};
use crate::cli::burnish;

#[test]
fn a_run_that_is_killed_ends_as_if_it_had_not_been() {
    // Three hundred: BURNISH_KILLS=300.
    let kills = std::env::var("BURNISH_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(10);
    let folder = job();
    let begin = Instant::now();
    trained(&folder, &[]);
    let mut longest = begin.elapsed();
    let whole = Results::of(&folder);
    assert!(whole.metrics.lines().count() > 24 && whole.verdict["loss_after"].is_f64());
    assert_eq!(checkpoints(&folder).len(), 2);

    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let (mut killed, mut at_work, mut ends) = (0, 0, 0);
    let mut folder = job();
    while killed < kills || ends == 0 {
        let mut command = burnish(&folder);
        command.args(["train", "recipe.toml", "--resume", "--threads", if killed % 2 == 0 { "1" } else { "2" }]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        if killed < kills {
            std::thread::sleep(longest.mul_f64((generator.next_u32() as f64) / f64::from(u32::MAX)));
            child.kill().expect("killed");
        }
        let status = child.wait().expect("ended");
        if status.success() {
            assert_eq!(Results::of(&folder), whole, "after {killed} kills");
            ends += 1;
            // It was faster than the first: the kills come earlier from now on.
            longest = longest.mul_f64(0.9).max(Duration::from_millis(20));
            folder = job();
        } else {
            assert_eq!(status.signal(), Some(libc::SIGKILL), "it ends by the kill or well");
            killed += 1;
            at_work += usize::from(runs(&folder).join("run.lock").exists());
        }
    }
    println!("{killed} kills, {at_work} of them in a run folder; {ends} runs came to their end, all of them the same");
}

#[test]
fn a_finished_run_that_is_resumed_stays_as_it_is() {
    let folder = job();
    trained(&folder, &[]);
    let whole = Results::of(&folder);
    let said = trained(&folder, &["--resume"]);
    assert!(said.contains("going on from the checkpoint of step 24"), "{said}");
    assert_eq!(Results::of(&folder), whole);
    assert_eq!(record(&folder)["resumed"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_run_without_validation_data_goes_on_to_the_bit() {
    let shape =
        ["--set", "train.eval_steps=7", "--set", "train.checkpoint_steps=5", "--set", "train.accumulate_steps=2"];
    let of = |folder: &tempfile::TempDir| {
        let path = folder.path().join("recipe.toml");
        let recipe = std::fs::read_to_string(&path).expect("the recipe").replace("valid = \"valid.jsonl\"\n", "");
        std::fs::write(&path, recipe).expect("written");
    };
    let whole = job();
    of(&whole);
    trained(&whole, &shape);
    let parts = job();
    of(&parts);
    trained(&parts, &[&shape[..], &["--set", "train.max_steps=6", "--set", "train.schedule=constant"]].concat());
    // The rates of the first steps were another schedule's, so the parts begin anew where that matters.
    let constant = ["--set", "train.schedule=constant"];
    let again = job();
    of(&again);
    trained(&again, &[&shape[..], &constant].concat());
    trained(&parts, &[&shape[..], &constant, &["--resume"]].concat());
    let (parts, again) = (Results::of(&parts), Results::of(&again));
    assert_eq!((&parts.adapter, &parts.metrics), (&again.adapter, &again.metrics));
    assert_ne!(parts.adapter, Results::of(&whole).adapter, "the schedule matters");
}
