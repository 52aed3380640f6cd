//! SIGKILL at any moment, and a run that goes on as if nothing had happened.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Results, checkpoints, job, record, trained};
use crate::cli::burnish;

/// Kills a run so many times, then lets it come to its end.
fn killed(kills: usize, seed: u64, more: &[&str], undisturbed: Duration) -> Results {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let folder = job();
    let mut interrupted = 0;
    for kill in 0..kills {
        let threads = if kill % 2 == 0 { "1" } else { "2" };
        let mut command = burnish(&folder);
        command.args(["train", "recipe.toml", "--resume", "--threads", threads]).args(more);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        let micros = generator.next_u64() % (undisturbed.as_micros() as u64).max(1);
        std::thread::sleep(Duration::from_micros(micros));
        child.kill().expect("killed");
        interrupted += usize::from(!child.wait().expect("ended").success());
    }
    trained(&folder, &[&["--resume"], more].concat());
    println!("{interrupted} of {kills} kills found the run at work");
    assert!(kills < 4 || interrupted * 4 >= kills, "{interrupted}");
    Results::of(&folder)
}

#[test]
fn a_run_that_is_killed_ends_as_if_it_had_not_been() {
    // Three hundred: BURNISH_KILLS=300.
    let kills = std::env::var("BURNISH_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(10);
    let more = ["--quiet"];
    let folder = job();
    let begin = Instant::now();
    trained(&folder, &more);
    let undisturbed = begin.elapsed();
    let whole = Results::of(&folder);
    assert!(whole.metrics.lines().count() > 24 && whole.verdict["loss_after"].is_f64());
    assert_eq!(checkpoints(&folder).len(), 2);
    for (round, left) in (0..kills).step_by(5).enumerate() {
        assert_eq!(killed(5.min(kills - left), round as u64, &more, undisturbed), whole, "round {round}");
    }
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
    let shape = ["--set", "train.eval_steps=7", "--set", "train.checkpoint_steps=5", "--set", "train.accumulate_steps=2"];
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
