//! Runs that are killed while everything that is drawn or kept anew in every step is turned on.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use tempfile::TempDir;

use super::{Results, job, trained};
use crate::cli::burnish;

/// Noise, changed prompts, general examples, packing, exact answers.
const SETTINGS: [&str; 9] = [
    "train.label_smoothing=0.1",
    "train.neftune_alpha=5.0",
    "train.b_rate_ratio=4.0",
    "train.schedule=warmup-stable-decay",
    "train.warmup_share=0.1",
    "train.eval_on=exact_match",
    "data.packing=true",
    "data.augment={token_dropout=0.1, typing_errors=0.1, wordings=['{prompt}', 'Say: {prompt}']}",
    "data.rehearsal={path='general.jsonl', share=0.3}",
];

fn job_with_general_examples() -> TempDir {
    let folder = job();
    let row = |number: usize| format!("{{\"prompt\": \"Letter {number}: \", \"completion\": \"abc\"}}\n");
    fs::write(folder.path().join("general.jsonl"), (0..30).map(row).collect::<String>()).expect("written");
    folder
}

#[test]
fn runs_with_every_kind_of_noise_and_optimiser_go_on_to_the_bit() {
    for optimiser in ["lion", "adafactor"] {
        let optimiser = format!("train.optimiser={optimiser}");
        let all = SETTINGS.iter().copied().chain(["data.max_seq_tokens=24", "train.epochs=6", &optimiser]);
        let all: Vec<&str> = all.flat_map(|setting| ["--set", setting]).collect();
        let whole = job_with_general_examples();
        let begin = Instant::now();
        trained(&whole, &all);
        let length = begin.elapsed();
        let whole = Results::of(&whole);
        assert!(whole.metrics.contains("valid_exact_match"));
        let parts = job_with_general_examples();
        for share in [0.4, 0.5, 0.6, 0.7] {
            let mut command = burnish(&parts);
            command.args(["train", "recipe.toml", "--resume"]).args(&all);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
            std::thread::sleep(length.mul_f64(share));
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
        trained(&parts, &[&["--resume"][..], &all].concat());
        assert_eq!(Results::of(&parts), whole, "{optimiser}");
    }
}
