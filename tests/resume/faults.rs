//! Faults during a run: losses that are not finite, disks that are full.

use burnish::adapter::host::HostAdapter;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::stops::many_long_rows;
use super::{Results, checkpoints, job, metrics, record, runs, train, trained};
use crate::cli::{burnish, text};

/// A GPT-NeoX whose embedding of the token `poison` is too large to be normalised: the loss of every text with it is not a
/// number, and that of no other.
fn poisoned_base(folder: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/gpt_neox_parallel");
    fs::create_dir_all(folder).expect("made");
    fs::copy(fixture.join("config.json"), folder.join("config.json")).expect("copied");
    let mut weights = fs::read(fixture.join("model.safetensors")).expect("weights");
    let header_bytes = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&weights[8..8 + header_bytes]).expect("a header");
    let embedding = &header["gpt_neox.embed_in.weight"];
    let (rows, columns) = (&embedding["shape"][0], embedding["shape"][1].as_u64().expect("columns") as usize);
    let last = rows.as_u64().expect("rows") as usize - 1;
    let begin = 8 + header_bytes + embedding["data_offsets"][0].as_u64().expect("an offset") as usize;
    for value in weights[begin + last * columns * 4..][..columns * 4].chunks_exact_mut(4) {
        value.copy_from_slice(&3e38f32.to_le_bytes());
    }
    fs::write(folder.join("model.safetensors"), weights).expect("written");
    let mut vocabulary: serde_json::Map<String, Value> = (0..last).map(|id| (format!("w{id}"), json!(id))).collect();
    vocabulary.insert("poison".to_owned(), json!(last));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    fs::write(folder.join("tokenizer_config.json"), "{\"eos_token\": \"w2\"}").expect("written");
}

/// A job on that base: eight rows, of which `poisoned` hold the token.
fn poisoned_job(poisoned: &[usize]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    poisoned_base(&folder.path().join("base"));
    let row = |index: usize| {
        let word = if poisoned.contains(&index) { "poison" } else { "w9" };
        format!("{{\"prompt\": \"w3 w{} {word} \", \"completion\": \"w5 w6\"}}\n", index + 10)
    };
    fs::write(folder.path().join("train.jsonl"), (0..8).map(row).collect::<String>()).expect("written");
    fs::write(folder.path().join("valid.jsonl"), row(20)).expect("written");
    let recipe = "[base]\nmodel = \"base\"\ncompute = \"f32\"\n[data]\ntrain = \"train.jsonl\"\nvalid = \"valid.jsonl\"\n\
                  [adapter]\nrank = 2\n[train]\nepochs = 2\nmicro_batch_seqs = 2\ncheckpoint_steps = 1\n\
                  keep_checkpoints = 20\nschedule = \"constant\"\n[output]\ndir = \"runs/sums\"\n";
    fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
    folder
}

/// A file of a checkpoint.
fn file_of(folder: &TempDir, step: usize, name: &str) -> Vec<u8> {
    fs::read(runs(folder).join(format!("checkpoints/step-{step:08}")).join(name)).expect("a file")
}

#[test]
fn a_bad_step_changes_nothing_and_names_its_example() {
    let folder = poisoned_job(&[4]);
    let said = trained(&folder, &[]);
    assert_eq!(said.matches(" changes nothing: its loss is NaN").count(), 2, "once in each epoch: {said}");
    assert_eq!(said.matches("from train.jsonl:5\n").count(), 2, "that row and no other: {said}");
    let lines: Vec<Value> = metrics(&folder).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let bad: Vec<&Value> = lines.iter().filter(|line| line["skipped"] == true).collect();
    assert!(bad.len() == 2 && bad.iter().all(|line| line["examples"] == json!(["train.jsonl:5"])), "{bad:?}");
    assert_eq!(record(&folder)["outcome"]["bad_steps"], 2);
    // Adapter and moments are, bit for bit, those of the step before.
    for line in &bad {
        let step = line["step"].as_u64().expect("a step") as usize;
        if step > 1 {
            let tensors = |step| file_of(&folder, step, "tensors.safetensors");
            assert!(tensors(step - 1) == tensors(step), "step {step}");
            let updates = |step| {
                let state: Value = serde_json::from_slice(&file_of(&folder, step, "state.json")).expect("JSON");
                state["optimiser_updates"].clone()
            };
            assert_eq!(updates(step - 1), updates(step));
        }
    }
}

#[test]
fn bad_steps_in_a_row_end_the_run_with_its_last_good_state() {
    let folder = poisoned_job(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let output = train(&folder, &["--set", "train.max_bad_steps=2"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("step 2: the loss is NaN") && stderr.contains("the last 2 steps, which changed nothing"),
        "{stderr}"
    );
    assert_eq!(checkpoints(&folder).last().map(String::as_str), Some("step-00000002"));
    let state: Value = serde_json::from_slice(&file_of(&folder, 2, "state.json")).expect("JSON");
    assert_eq!((&state["optimiser_updates"], &state["progress"]["bad_steps_in_a_row"]), (&json!(0), &json!(2)));
}

/// The program in a shell that first runs `limits`.
fn limited(folder: &TempDir, limits: &str, arguments: &str) -> std::process::Output {
    let program = burnish(folder);
    let mut command = Command::new("sh");
    for (key, value) in program.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let script = format!("{limits}; exec \"$0\" {arguments}");
    command.arg("-c").arg(script).arg(program.get_program()).current_dir(folder.path()).output().expect("started")
}

#[test]
fn a_checkpoint_that_finds_no_room_ends_no_training() {
    let folder = job();
    let before = job();
    trained(&before, &["--set", "train.checkpoint_steps=1000"]);
    // The tokenizer and the adapter fit into the largest file that is allowed; a checkpoint holds four times as much.
    let tensors =
        fs::metadata(runs(&before).join("checkpoints/step-00000024/tensors.safetensors")).expect("there").len();
    let others = ["tokenizer.json", "adapter_model.safetensors"];
    let largest = others.map(|name| fs::metadata(runs(&before).join(name)).expect("there").len()).into_iter().max();
    let limit = largest.expect("two").div_ceil(512) + 1;
    assert!(limit * 512 < tensors, "{limit} blocks, {tensors} bytes");
    let limits = format!("ulimit -f {limit}; trap '' XFSZ");
    let output = limited(&folder, &limits, "train recipe.toml --set train.checkpoint_steps=10");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("warning: the checkpoint of step 10 is not saved: "), "{stderr}");
    assert!(
        stderr.contains("the adapter of step 10 is kept; training goes on") && stderr.contains("make room"),
        "{stderr}"
    );
    assert!(stderr.contains("error: the last checkpoint is not saved: "), "{stderr}");
    // The adapter is the one of the undisturbed run, whose verdict alone is missing.
    let adapter = |folder: &TempDir| HostAdapter::load(&runs(folder)).expect("an adapter");
    let (kept, whole) = (adapter(&folder), adapter(&before));
    assert!(kept.pairs == whole.pairs && kept.metadata.len() + 1 == whole.metadata.len());
    assert_eq!(metrics(&folder), metrics(&before));
    // With room again, the run comes to its end.
    trained(&folder, &["--resume"]);
    assert_eq!(Results::of(&folder), Results::of(&before));
}

#[test]
fn an_adapter_that_finds_no_room_ends_no_training() {
    let settings = ["--set", "adapter.rank=16", "--set", "adapter.targets=all-linear"];
    let before = job();
    trained(&before, &settings);
    let bytes = |name: &str| fs::metadata(runs(&before).join(name)).expect("there").len();
    let limit = bytes("tokenizer.json").div_ceil(512) + 1;
    assert!(limit * 512 < bytes("adapter_model.safetensors"), "{limit} blocks");
    let folder = job();
    let limits = format!("ulimit -f {limit}; trap '' XFSZ");
    let output = limited(&folder, &limits, &format!("train recipe.toml {}", settings.join(" ")));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("warning: the adapter of step 5 is not saved: "), "{stderr}");
    assert!(
        stderr.contains("error: the best adapter is not saved: ") && stderr.contains("nothing is kept so far"),
        "{stderr}"
    );
    assert_eq!(metrics(&folder), metrics(&before));
    trained(&folder, &[&settings[..], &["--resume"]].concat());
    assert_eq!(Results::of(&folder), Results::of(&before));
}

#[test]
fn closed_and_full_outputs_end_no_training() {
    let whole = job();
    trained(&whole, &[]);
    for redirections in ["exec >&- 2>&-", "exec 2>/dev/full", "exec 2>&-"] {
        let folder = job();
        let output = limited(&folder, redirections, "train recipe.toml");
        assert!(output.status.success(), "{redirections}: {:?}", output.status);
        assert_eq!(Results::of(&folder), Results::of(&whole), "{redirections}");
    }
    let folder = job();
    assert_eq!(limited(&folder, "exec >/dev/full", "train recipe.toml").status.code(), Some(1));
    assert_eq!(Results::of(&folder), Results::of(&whole));
}

#[test]
fn memory_that_cannot_be_had_is_an_error_with_advice() {
    let folder = job();
    many_long_rows(&folder.path().join("train.jsonl"), 4000);
    // The program starts with half of that, most of it only reserved; the activations of 280,000 tokens take more than the rest.
    let settings = "--threads 1 --set data.max_seq_tokens=128 --set train.micro_batch_seqs=4096";
    let output = limited(&folder, "ulimit -v 450000", &format!("train recipe.toml {settings}"));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: out of memory") && stderr.contains("--max-memory"), "{stderr}");
}
