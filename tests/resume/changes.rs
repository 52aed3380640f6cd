//! Changes between a checkpoint and the run that goes on from it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{Results, checkpoints, job, metrics, record, runs, train, trained};
use crate::cli::{burnish, json as json_of, refused, run, text, tiny_model};

/// A run that has made its first steps.
fn begun() -> TempDir {
    let folder = job();
    fs::copy(tiny_model(), folder.path().join("base.gguf")).expect("copied");
    trained(&folder, &["--set", "base.model=base.gguf", "--set", "train.max_steps=6"]);
    folder
}

const ON: [&str; 5] = ["--resume", "--set", "base.model=base.gguf", "--set", "train.max_steps=8"];

/// Asserts that going on names `kind` as the only thing that has changed, and does it all the same where that is accepted.
fn refuses(folder: &TempDir, kind: &str, more: &[&str], said: &str) {
    let error = refused(&train(folder, &[&ON[..], more].concat()));
    assert!(error.contains(&format!("the {kind} has changed since this checkpoint: ")), "{kind}: {error}");
    assert!(error.contains(said), "{kind}: {error}");
    assert!(error.contains(&format!("go on all the same with `--accept-change {kind}`")), "{error}");
    assert_eq!(metrics(folder).lines().filter(|line| line.contains("grad_norm")).count(), 6, "nothing was trained");
    let accepted = trained(folder, &[&ON[..], more, &["--accept-change", kind]].concat());
    assert!(accepted.contains(&format!("since the checkpoint the {kind} has changed: ")), "{accepted}");
    assert_eq!(metrics(folder).lines().filter(|line| line.contains("grad_norm")).count(), 8, "{kind}");
}

/// Changes one text of a checkpoint's identity, as if it had been saved under other circumstances.
fn another_identity(folder: &TempDir, kind: &str) {
    for name in checkpoints(folder) {
        let path = runs(folder).join("checkpoints").join(name).join("manifest.json");
        let text = fs::read_to_string(&path).expect("a manifest");
        let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
        let value = &mut manifest["identity"][kind];
        match value {
            Value::Object(parts) => *parts.values_mut().next().expect("a part") = json!("another"),
            value => *value = json!("another"),
        }
        manifest.as_object_mut().expect("an object").shift_remove("sha256");
        let text = serde_json::to_string_pretty(&manifest).expect("JSON");
        let body = text.strip_suffix("\n}").expect("an object");
        let hash = burnish::files::hex::encode(&Sha256::digest(body.as_bytes()));
        fs::write(&path, format!("{body},\n  \"sha256\": \"{hash}\"\n}}\n")).expect("written");
    }
}

#[test]
fn every_change_is_named_and_refused_unless_accepted() {
    for kind in
        ["base", "data", "recipe", "tokenizer", "template", "adapter", "program", "device", "instruction-set", "layout"]
    {
        let folder = begun();
        another_identity(&folder, kind);
        refuses(&folder, kind, &[], "was another and is ");
    }
}

#[test]
fn changed_files_and_settings_are_noticed() {
    let edit = |path: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(path).expect("text");
        assert!(text.contains(from));
        fs::write(path, text.replacen(from, to, 1)).expect("written");
    };
    let folder = begun();
    edit(&folder.path().join("train.jsonl"), "1 and 1", "1 and 7");
    refuses(&folder, "data", &[], "train was ");
    let folder = begun();
    edit(&folder.path().join("valid.jsonl"), "3 and 1", "3 and 7");
    refuses(&folder, "data", &[], "valid was ");
    let folder = begun();
    let path = folder.path().join("base.gguf");
    let mut bytes = fs::read(&path).expect("the base");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(path, bytes).expect("written");
    refuses(&folder, "base", &[], "weights was ");
    refuses(&begun(), "recipe", &["--set", "train.learning_rate=1e-3"], "train.learning_rate was 0.01 and is 0.001");
    let folder = begun();
    let planned = json_of(&run(&folder, &["check", "recipe.toml", "--json", "--set", "output.dir=other"]));
    let less = (planned["memory_bytes"].as_u64().expect("bytes") - 1).to_string();
    refuses(&folder, "layout", &["--max-memory", &less], "and is {\"part\":");
}

#[test]
fn other_kernels_are_another_instruction_set() {
    let folder = begun();
    let mut command = burnish(&folder);
    command.args(["train", "recipe.toml"]).args(ON).env("BURNISH_ISA", "portable");
    let error = refused(&command.output().expect("starts"));
    assert!(error.contains("the instruction-set has changed") && error.contains("and is portable"), "{error}");
}

#[test]
fn several_changes_are_named_together() {
    let folder = begun();
    another_identity(&folder, "program");
    let more = ["--set", "train.learning_rate=1e-3", "--set", "train.weight_decay=0.1"];
    let error = refused(&train(&folder, &[&ON[..], &more].concat()));
    assert_eq!(error.matches("has changed since this checkpoint").count(), 3, "{error}");
    assert!(error.contains("--accept-change recipe --accept-change program"), "{error}");
}

#[test]
fn other_validation_data_are_evaluated_from_the_start() {
    let folder = begun();
    let rows = fs::read_to_string(folder.path().join("valid.jsonl")).expect("rows");
    let fewer: String = rows.lines().take(12).map(|line| format!("{line}\n")).collect();
    fs::write(folder.path().join("valid.jsonl"), fewer).expect("written");
    trained(&folder, &[&ON[..], &["--accept-change", "data"]].concat());
    let about = record(&folder);
    let validation = &about["outcome"]["validation"];
    assert_eq!(validation["examples"], 12);
    // Before stands the adapter as the run began.
    let base = folder.path().join("base.gguf").display().to_string();
    let eval = ["eval", "--base", &base, "--data", "valid.jsonl", "--compute", "f32", "--json"];
    let untrained = json_of(&run(&folder, &eval))["loss"].as_f64().expect("a loss");
    assert!((validation["loss_before"].as_f64().expect("a loss") - untrained).abs() < 1e-6);
}

#[test]
fn a_finished_run_trains_on_for_more_epochs() {
    let folder = job();
    let constant = ["--set", "train.schedule=constant"];
    trained(&folder, &constant);
    let said = trained(&folder, &[&constant[..], &["--resume", "--set", "train.epochs=5"]].concat());
    assert!(said.contains("train.epochs was 4 and is 5"), "{said}");
    assert!(said.contains("the schedule `constant` over 30 steps from here on; the 24 steps behind"), "{said}");
    assert_eq!(record(&folder)["outcome"]["steps"], 30);
    // The kept recipe repeats the run as it is now.
    let kept = fs::read_to_string(runs(&folder).join("recipe.toml")).expect("the recipe");
    assert!(kept.contains("epochs = 5") && kept.contains("schedule = \"constant\""), "{kept}");
    let repeated = run(&folder, &["train", "runs/sums/recipe.toml", "--set", "output.dir=again"]);
    assert!(repeated.status.success(), "{}", text(&repeated.stderr));
    let adapter = |dir: &str| fs::read(folder.path().join(dir).join("adapter_model.safetensors")).expect("an adapter");
    assert!(adapter("again") == adapter("runs/sums"), "under a constant rate the two ways are one");
    // Fewer epochs than are behind is no longer run.
    let error = refused(&train(&folder, &[&constant[..], &["--resume", "--set", "train.epochs=2"]].concat()));
    assert!(error.contains("the recipe has changed since this checkpoint: train.epochs was 5 and is 2"), "{error}");
}

#[test]
fn a_folder_with_a_run_in_it_says_how_to_go_on() {
    let folder = job();
    trained(&folder, &[]);
    let error = refused(&train(&folder, &[]));
    assert!(error.contains("`output.dir` is runs/sums, which holds a finished run"), "{error}");
    assert!(error.contains("`burnish train runs/sums/recipe.toml --resume --set train.epochs=N`"), "{error}");
    let mut about = record(&folder);
    about["outcome"] = Value::Null;
    fs::write(runs(&folder).join("run.json"), about.to_string()).expect("written");
    let error = refused(&train(&folder, &[]));
    assert!(error.contains("which holds a run that is not finished"), "{error}");
    assert!(error.contains("`burnish train runs/sums/recipe.toml --resume` goes on with it"), "{error}");
    // A check shows all the rest too.
    let checked = run(&folder, &["check", "recipe.toml", "--json"]);
    assert_eq!(checked.status.code(), Some(2));
    let shown: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    assert_eq!(shown["total_steps"], 24);
    assert_eq!(shown["findings"][0]["code"], "D901");
    assert!(shown["findings"][0]["message"].as_str().is_some_and(|text| text.contains("`output.dir` is runs/sums")));
    let other = folder.path().join("other");
    fs::create_dir(&other).expect("made");
    fs::write(other.join("notes.txt"), "mine").expect("written");
    for more in [&["--set", "output.dir=other"][..], &["--set", "output.dir=other", "--resume"]] {
        assert!(refused(&train(&folder, more)).contains("`output.dir` is other, which exists"));
    }
}

#[test]
fn damaged_checkpoints_give_way_to_the_one_before() {
    let folder = job();
    trained(&folder, &[]);
    let whole = Results::of(&folder);
    let names = checkpoints(&folder);
    assert_eq!(names, ["step-00000021", "step-00000024"]);
    let damage = |name: &str| {
        let path = runs(&folder).join("checkpoints").join(name).join("tensors.safetensors");
        let mut bytes = fs::read(&path).expect("tensors");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(path, bytes).expect("written");
    };
    damage(&names[1]);
    let said = trained(&folder, &["--resume"]);
    assert!(said.contains("is damaged") && said.contains("going on from the checkpoint of step 21"), "{said}");
    assert_eq!(Results::of(&folder), whole);
    checkpoints(&folder).iter().for_each(|name| damage(name));
    let error = refused(&train(&folder, &["--resume"]));
    assert!(error.contains("no checkpoint is whole"), "{error}");
}

#[test]
fn a_run_begins_from_another_adapter_that_fits() {
    let folder = job();
    trained(&folder, &["--set", "train.epochs=1"]);
    let on = ["--from-adapter", "runs/sums", "--set", "output.dir=second", "--set", "train.epochs=1"];
    trained(&folder, &on);
    let about: Value =
        serde_json::from_slice(&fs::read(folder.path().join("second/run.json")).expect("run.json")).expect("JSON");
    let loss = |about: &Value, key: &str| about["outcome"]["validation"][key].as_f64().expect("a loss");
    assert_eq!(loss(&about, "loss_before"), loss(&record(&folder), "loss_after"), "it begins where the other ended");
    assert!(loss(&about, "loss_after") < loss(&about, "loss_before"));
    // PEFT's own folder knows nothing of burnish's metadata.
    for (setting, said) in [
        ("adapter.rank=8", "`adapter.rank` is 8; the adapter in runs/sums has rank 4"),
        ("adapter.alpha=4.0", "`adapter.alpha` is 4; the adapter in runs/sums has alpha 16"),
        (
            "adapter.targets=[\"q_proj\"]",
            "`adapter.targets` do not take model.layers.0.mlp.down_proj, which the adapter",
        ),
        ("adapter.targets=[\"q_proj\",\"v_proj\",\"down_proj\",\"o_proj\"]", "which the adapter in runs/sums lacks"),
        ("adapter.rslora=true", "rank 4 and scale 8; in runs/sums it has rank 4 and scale 4"),
    ] {
        let error =
            refused(&train(&folder, &["--from-adapter", "runs/sums", "--set", "output.dir=third", "--set", setting]));
        assert!(error.contains(said), "{setting}: {error}");
    }
    assert!(!folder.path().join("third").exists());
}
