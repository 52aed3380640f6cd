//! Every shipped recipe, two steps on a tiny base: what it sets goes together, and runs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::{json, run, tiny_job, tiny_model};

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut paths: Vec<_> = fs::read_dir(folder).expect("recipes").map(|entry| entry.expect("one").path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_shipped_recipe_trains_two_steps() {
    let recipes = shipped();
    assert!(recipes.len() >= 5 && recipes.iter().all(|path| path.extension().is_some_and(|ending| ending == "toml")));
    let folder = tiny_job();
    let pairs = "{\"prompt\": \"1 and 2 is \", \"chosen\": \"3\", \"rejected\": \"4\"}\n".repeat(12);
    fs::write(folder.path().join("pairs.jsonl"), pairs).expect("written");
    let labels =
        "{\"text\": \"1 and 2\", \"label\": \"odd\"}\n{\"text\": \"1 and 3\", \"label\": \"even\"}\n".repeat(6);
    fs::write(folder.path().join("labels.jsonl"), labels).expect("written");
    let base = format!("base.model={:?}", tiny_model());
    for recipe in recipes {
        let name = recipe.file_stem().expect("a name").to_str().expect("UTF-8");
        let dir = format!("output.dir=out/{name}");
        let typed: toml::Table = fs::read_to_string(&recipe).expect("a recipe").parse().expect("TOML");
        let (train, valid) = match typed["train"].get("objective").and_then(toml::Value::as_str) {
            Some("classify") => ("data.train=labels.jsonl", "data.valid=labels.jsonl"),
            Some(_) => ("data.train=pairs.jsonl", "data.valid=pairs.jsonl"),
            None => ("data.train=train.jsonl", "data.valid=valid.jsonl"),
        };
        let guard = typed.get("eval").map(|_| "eval.guard.path=valid.jsonl");
        let settings =
            [&base, train, valid, "train.max_steps=2", "train.accumulate_steps=1", "sample.max_tokens=2", &dir];
        // The base of the tests lacks the tokens of other templates.
        let template = typed["data"].get("template").map(|_| "data.template='zephyr'");
        let settings = settings.into_iter().chain(template).chain(guard);
        let overrides: Vec<&str> = settings.flat_map(|setting| ["--set", setting]).collect();
        let arguments = [&["train", recipe.to_str().expect("UTF-8"), "--json"][..], &overrides].concat();
        let report = json(&run(&folder, &arguments));
        assert_eq!(report["steps"], 2, "{name}: {report}");
        assert!(report["validation"]["loss_after"].as_f64().is_some_and(f64::is_finite), "{name}: {report}");
        let out = folder.path().join("out").join(name);
        let about: Value = serde_json::from_slice(&fs::read(out.join("run.json")).expect("a file")).expect("JSON");
        for (key, value) in typed["adapter"].as_table().expect("a section") {
            let meant = serde_json::to_value(value).expect("JSON");
            let close = meant.as_f64().is_some() && meant.as_f64() == about["plan"]["adapter"][key].as_f64();
            assert!(close || meant == about["plan"]["adapter"][key], "{name}: adapter.{key}");
        }
        assert!(out.join("adapter_model.safetensors").is_file(), "{name}");
    }
}
