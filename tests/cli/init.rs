//! `init`: the recipe that it writes is one that runs.

use std::fs;

use super::{json, refused, run, text, tiny_job, tiny_model};

#[test]
fn the_recipe_of_init_trains() {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    let output = run(&folder, &["init", "train.jsonl", "--base", &base]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let recipe = fs::read_to_string(folder.path().join("train.toml")).expect("a recipe");
    assert_eq!(recipe, text(&output.stdout));
    let table: toml::Table = recipe.parse().expect("TOML");
    let rows = fs::read_to_string(folder.path().join("train.jsonl")).expect("rows").lines().count();
    assert!(recipe.starts_with(&format!("# {rows} examples of train.jsonl")), "{recipe}");
    assert_eq!(table["output"]["dir"].as_str(), Some("adapters/train"));
    let report = json(&run(&folder, &["train", "train.toml", "--json", "--set", "train.max_steps=2"]));
    assert_eq!(report["steps"], 2, "{report}");
    assert!(refused(&run(&folder, &["init", "train.jsonl", "--base", &base])).contains("train.toml: exists"));
}

#[test]
fn the_recipe_follows_the_data() {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    let recipe = |name: &str, rows: String| -> toml::Table {
        fs::write(folder.path().join(name), rows).expect("written");
        let out = format!("{name}.toml");
        let output = run(&folder, &["init", name, "--base", &base, "--out", &out]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        fs::read_to_string(folder.path().join(out)).expect("a recipe").parse().expect("TOML")
    };
    let few = recipe("few.jsonl", "{\"text\": \"a b c\"}\n".repeat(10));
    assert!(few["data"].get("valid_fraction").is_none() && few["train"].get("early_stopping").is_none(), "{few}");
    let many = recipe("many.jsonl", (0..2000).map(|n| format!("{{\"text\": \"{n} a b c\"}}\n")).collect());
    assert_eq!(many["train"]["epochs"].as_integer(), Some(1), "{many}");
    assert_eq!(many["data"]["valid_fraction"].as_float(), Some(0.05), "{many}");
    let pair = |n: usize| format!("{{\"prompt\": \"1 and {n} is \", \"chosen\": \"3\", \"rejected\": \"4\"}}\n");
    assert_eq!(recipe("pairs.jsonl", (0..30).map(pair).collect())["train"]["objective"].as_str(), Some("dpo"));
    let none = run(&folder, &["init", "missing.jsonl", "--base", &base]);
    assert!(refused(&none).contains("missing.jsonl"), "{}", refused(&none));
    assert!(!folder.path().join("missing.toml").exists());
}
