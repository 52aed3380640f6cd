//! Completions, manual pages, `doctor`, the recipes that come with the program and their schema.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{json as result, refused, run, text};

#[test]
fn shells_complete_every_command() {
    let folder = tempfile::tempdir().expect("a folder");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(&folder, &["completions", shell]);
        assert!(output.status.success(), "{shell}: {}", text(&output.stderr));
        let script = text(&output.stdout);
        for command in burnish::cli::command().get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
        }
        assert!(script.contains("max-memory"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(run(&folder, &["man", "pages/man1"]).status.success());
    let page = |name: &str| fs::read_to_string(folder.path().join("pages/man1").join(name)).expect("a page");
    for command in burnish::cli::command().get_subcommands() {
        let about = command.get_about().expect("a sentence").to_string();
        // Manual pages write `\-` for a hyphen.
        let first = about.split_whitespace().next().expect("a word").replace('-', "\\-");
        let text = page(&format!("burnish-{}.1", command.get_name()));
        assert!(text.contains(".TH ") && text.contains(&first), "{text}");
    }
    assert!(page("burnish-data-clean.1").contains("dedupe"));
    // The same again replaces them.
    assert!(run(&folder, &["man", "pages/man1"]).status.success());
}

#[test]
fn doctor_finds_the_kernels_right() {
    let folder = tempfile::tempdir().expect("a folder");
    let health = result(&run(&folder, &["doctor", "--json", "--threads", "2"]));
    let [exact, rounded] = [0, 1].map(|index| health["differences"][index].as_f64().expect("a number"));
    assert!(exact <= 1e-5 && rounded <= 2e-2, "{health}");
    assert_eq!(health["threads"], 2);
    assert!(health["instruction_set"].is_string(), "{health}");
    let told = text(&run(&folder, &["doctor"]).stdout);
    assert!(told.contains("self-test   right") && told.contains("cache"), "{told}");
}

/// The parts of `value` that a schema of the kinds that [`burnish::recipe::schema`] uses does not allow.
fn mistakes(value: &Value, schema: &Value, place: &str, found: &mut Vec<String>) {
    if let Some(words) = schema["enum"].as_array() {
        found.extend((!words.contains(value)).then(|| format!("{place}: {value} is none of {words:?}")));
    } else if let Some(any) = schema["anyOf"].as_array() {
        let fits = any.iter().any(|one| {
            let mut inner = Vec::new();
            mistakes(value, one, place, &mut inner);
            inner.is_empty()
        });
        found.extend((!fits).then(|| format!("{place}: {value} fits none")));
    } else {
        let fits = match schema["type"].as_str().expect("a type") {
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("{place}: the type {other}"),
        };
        found.extend((!fits).then(|| format!("{place}: {value} is no {}", schema["type"])));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        if schema["items"].is_object() {
            mistakes(item, &schema["items"], &format!("{place}[{index}]"), found);
        }
    }
    for (key, item) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{key}");
        match (&schema["properties"][key], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => found.push(format!("{place}: unknown")),
            (Value::Null, Value::Object(_)) => mistakes(item, &schema["additionalProperties"], &place, found),
            (Value::Null, _) => {}
            (of_key, _) => mistakes(item, of_key, &place, found),
        }
    }
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        found.extend((value.is_object() && value[key].is_null()).then(|| format!("{place}.{key}: missing")));
    }
}

#[test]
fn recipes_name_their_schema_and_follow_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (path, schema) = (root.join("docs/recipe.schema.json"), burnish::recipe::schema());
    let pretty = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
    if std::env::var_os("BURNISH_WRITE_DOCS").is_some() {
        fs::write(&path, &pretty).expect("written");
    }
    assert!(
        fs::read_to_string(&path).is_ok_and(|kept| kept == pretty),
        "run the tests with BURNISH_WRITE_DOCS=1 to write docs/recipe.schema.json anew"
    );
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(text(&run(&folder, &["schema"]).stdout), pretty);

    for entry in fs::read_dir(root.join("recipes")).expect("recipes") {
        let path = entry.expect("a recipe").path();
        let recipe = fs::read_to_string(&path).expect("a recipe");
        assert!(recipe.starts_with("#:schema ../docs/recipe.schema.json\n"), "{}", path.display());
        let table: toml::Table = recipe.parse().expect("TOML");
        let mut found = Vec::new();
        mistakes(&serde_json::to_value(table).expect("JSON"), &schema, "", &mut found);
        assert_eq!(found, [""; 0], "{}", path.display());
    }

    let wrong = json!({
        "base": { "model": 3 }, "data": { "format": "csv" }, "train": { "epoch": 2, "learning_rate": "fast" }, "output": {},
        "adapter": { "targets": [1], "rank": -1 }
    });
    let mut found = Vec::new();
    mistakes(&wrong, &schema, "", &mut found);
    found.sort();
    let places: Vec<&str> = found.iter().map(|found| found.split(':').next().expect("a place")).collect();
    let expected = [
        ".adapter.rank",
        ".adapter.targets",
        ".base.model",
        ".data.format",
        ".output.dir",
        ".train.epoch",
        ".train.learning_rate",
    ];
    assert_eq!(places, expected, "{found:?}");
}

#[test]
fn every_recipe_of_the_repository_comes_with_the_program() {
    let folder = tempfile::tempdir().expect("a folder");
    let listed = result(&run(&folder, &["recipes", "list", "--json"]));
    let listed: Vec<&str> =
        listed.as_array().expect("a list").iter().filter_map(|entry| entry["name"].as_str()).collect();
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes")).expect("recipes");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a recipe").path()).collect();
    paths.sort();
    let names: Vec<&str> = paths.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
    assert_eq!(listed, names);
    for (name, path) in names.iter().zip(&paths) {
        let shown = text(&run(&folder, &["recipes", "show", name]).stdout);
        assert_eq!(shown, fs::read_to_string(path).expect("a recipe"));
    }
    let told = text(&run(&folder, &["recipes", "list"]).stdout);
    assert!(told.lines().all(|line| line.split_whitespace().count() > 3), "every recipe says what it is for: {told}");
    assert!(refused(&run(&folder, &["recipes", "show", "nothing"])).contains("quickstart"));
}
