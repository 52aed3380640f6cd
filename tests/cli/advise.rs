//! `advise`: the costs of every model, the recommended one, and a recipe that runs.

use std::fs;

use super::{json, refused, run, text, tiny_job, tiny_model};

#[test]
fn the_largest_model_that_fits_is_recommended_and_its_recipe_checks() {
    let folder = tiny_job();
    let advise =
        ["advise", "--data", "train.jsonl", "--memory", "6GiB", "--time", "9d", "--write", "mine.toml", "--json"];
    let advice = json(&run(&folder, &advise));
    let models = advice["models"].as_array().expect("models");
    let limit = 6u64 << 30;
    let mut before = 0;
    for model in models {
        let methods = model["methods"].as_array().expect("methods");
        let number = |index: usize, key: &str| methods[index][key].as_f64().expect("a number");
        // Packed weights and activations that are computed again take less memory; computing again takes more time.
        assert!(number(0, "peak_bytes") > number(2, "peak_bytes") && number(2, "peak_bytes") > number(3, "peak_bytes"));
        assert!(number(3, "peak_bytes") > number(4, "peak_bytes"), "{model}");
        assert!(number(1, "training_seconds") >= number(0, "training_seconds") && number(0, "training_seconds") > 0.0);
        let parameters = model["parameters"].as_u64().expect("parameters");
        assert!(parameters > before && number(0, "disk_bytes") > 2.0 * parameters as f64);
        before = parameters;
        for (index, method) in methods.iter().enumerate() {
            let fits = method["peak_bytes"].as_u64().expect("bytes") <= limit;
            assert_eq!(method["fits"], fits, "{index}: {model}");
        }
        let fits = methods.iter().any(|method| method["fits"] == true);
        assert_eq!(model["chosen"].is_u64(), fits);
    }
    let mut open = models.iter().filter(|model| model["chosen"].is_u64() && model["is_gated"] == false);
    assert_eq!(advice["recommended"], open.next_back().expect("one fits")["name"]);
    let largest = models.last().expect("a model");
    assert!(largest["methods"][0]["fits"] == false && advice["recommended"] != models[0]["name"], "{advice}");
    let recipe = fs::read_to_string(folder.path().join("mine.toml")).expect("a recipe");
    assert!(recipe.contains("# by `burnish advise`, for 6144 MiB of memory"), "{recipe}");
    let table: toml::Table = recipe.parse().expect("TOML");
    let name = advice["recommended"].as_str().expect("a name");
    assert!(table["base"]["model"].as_str().is_some_and(|base| base.starts_with("hf:") && base.ends_with(name)));
    assert!(refused(&run(&folder, &advise)).contains("mine.toml: exists"));
}

#[test]
fn a_base_of_ones_own_has_its_tokens_counted() {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    let output =
        run(&folder, &["advise", "--data", "train.jsonl", "--base", &base, "--write", "mine.toml", "--memory", "1GiB"]);
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(told.contains("* smollm") && told.contains("recommended: smollm, the largest that fits"), "{told}");
    let checked = json(&run(&folder, &["check", "mine.toml", "--json"]));
    assert_eq!(checked["train"]["examples"].as_u64(), Some(17), "{checked}");
    // All of its 21 examples, by the model's own tokenizer.
    let tokens = json(&run(&folder, &["check", "recipe.toml", "--json"]))["train"]["tokens"].clone();
    assert!(
        told.starts_with(&format!("21 examples of train.jsonl, {tokens} tokens, within 2.0 h in 1024 MiB")),
        "{told}"
    );
}

#[test]
fn advice_that_cannot_be_given_is_refused() {
    let folder = tiny_job();
    for (arguments, message) in [
        (&["advise", "--time", "soon"][..], "`soon` is no time; expected one like 90m, 2h or 1d"),
        (&["advise", "--write", "r.toml"], "--data <FILE>"),
        (&["advise", "--data", "none.jsonl"], "none.jsonl"),
        (&["advise", "--base", "nothing-here"], "is no known model"),
        (&["advise", "--device", "wgpu"], "--device: is wgpu; advice is for the processor"),
    ] {
        let said = refused(&run(&folder, arguments));
        assert!(said.contains(message), "{arguments:?}: {said}");
    }
    assert!(!folder.path().join("r.toml").exists());
}
