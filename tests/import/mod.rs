//! Recipes from the configurations of other programs: ten of each, of which no key is lost.

use std::fs;
use std::path::{Path, PathBuf};

use burnish::import::{Imported, Tool, import};
use burnish::quant::Compute;
use burnish::recipe::{Plan, Recipe};
use burnish::train::ObjectiveKind;
use serde_json::Value;

use crate::cli::{json, refused, run, text};

fn folder(tool: Tool) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import").join(tool.name())
}

const TOOLS: [Tool; 6] = [Tool::Axolotl, Tool::LlamaFactory, Tool::Unsloth, Tool::MlxLm, Tool::Peft, Tool::Trl];

fn configurations(tool: Tool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(tool)).expect("configurations");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("one").path()).collect();
    paths.sort();
    paths
}

fn plan(imported: &Imported) -> Plan {
    let recipe = Recipe::parse(&imported.recipe, "recipe.toml", &[]);
    recipe.and_then(|recipe| recipe.settings()).unwrap_or_else(|error| panic!("{error}\n{}", imported.recipe))
}

fn one(tool: Tool, name: &str) -> (Imported, Plan) {
    let imported = import(&folder(tool).join(name), None).expect("a recipe");
    let plan = plan(&imported);
    (imported, plan)
}

/// The keys of a configuration by its lines alone: what stands before a colon, or before `=` in a call of a script.
fn keys(path: &Path) -> Vec<String> {
    let (text, is_script) =
        (fs::read_to_string(path).expect("UTF-8"), path.extension().is_some_and(|ending| ending == "py"));
    let mut keys = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let is_argument = line.starts_with("    ");
        let parts = line.split(['{', ',']).map(|part| part.trim().trim_start_matches("- ").trim());
        let parts: Vec<&str> = if is_script { vec![line.trim()] } else { parts.collect() };
        for part in parts.into_iter().filter(|_| is_argument || !is_script) {
            let sign = if is_script { '=' } else { ':' };
            let Some((key, _)) = part.split_once(sign) else { continue };
            let key = key.trim().trim_matches('"');
            // A module of a table of patterns, which stands in the setting itself.
            if !matches!(key, "" | "down_proj") && key.chars().all(|symbol| symbol.is_alphanumeric() || symbol == '_') {
                keys.push(key.to_owned());
            }
        }
    }
    keys
}

#[test]
fn no_key_of_a_configuration_is_lost() {
    for tool in TOOLS {
        let paths = configurations(tool);
        assert_eq!(paths.len(), 10, "{tool}");
        for path in paths {
            let imported = import(&path, None).unwrap_or_else(|error| panic!("{error}"));
            let (name, recipe) = (path.display(), &imported.recipe);
            assert_eq!(imported.tool, tool.name(), "{name}");
            plan(&imported);
            let comments: Vec<&str> =
                recipe.lines().filter_map(|line| line.split_once('#').map(|(_, comment)| comment)).collect();
            let words: Vec<&str> =
                comments.iter().flat_map(|comment| comment.split(|s: char| !s.is_alphanumeric() && s != '_')).collect();
            let keys = keys(&path);
            assert!(keys.len() >= 7, "{name}: {keys:?}");
            for key in keys {
                assert!(words.contains(&key.as_str()), "{name}: `{key}` is lost\n{recipe}");
            }
            // All of these are keys that the programs document.
            let unknown: Vec<&str> = imported
                .left_out
                .iter()
                .filter(|one| one.reason.starts_with("not a key"))
                .map(|one| one.key.as_str())
                .collect();
            let expected: &[&str] = match path.file_name().and_then(|name| name.to_str()) {
                Some("lora_llama3.yml") => &["debug"],
                Some("full_fine_tune.yml") => &["max_packed_sequence_len"],
                Some("linear.yaml") => &["optimizer_config.adamw.bias_correction"],
                _ => &[],
            };
            assert_eq!(unknown, expected, "{name}");
            assert!(imported.left_out.iter().all(|one| one.line > 0 && !one.reason.is_empty()), "{name}");
        }
    }
}

#[test]
fn axolotl_means_the_same() {
    let (_, plan) = one(Tool::Axolotl, "lora_llama3.yml");
    assert_eq!(
        (plan.base.model.as_str(), plan.base.quant.to_string().as_str()),
        ("hf:NousResearch/Meta-Llama-3-8B", "int8")
    );
    assert_eq!((plan.adapter.rank, plan.adapter.alpha, plan.adapter.dropout), (32, 16.0, 0.05));
    assert_eq!((plan.train.micro_batch_seqs, plan.train.accumulate_steps, plan.train.epochs), (2, 4, 4));
    assert_eq!((plan.train.learning_rate, plan.train.warmup_steps), (2e-4, 10));
    assert_eq!((plan.data.valid_fraction, plan.data.max_seq_tokens, plan.data.packing), (Some(0.05), 4096, true));
    let (imported, plan) = one(Tool::Axolotl, "qlora_chat.yaml");
    assert_eq!(plan.base.quant.to_string(), "nf4-double");
    assert_eq!((plan.train.max_steps, plan.train.beta2, plan.train.warmup_share), (Some(300), Some(0.95), Some(0.1)));
    assert!(plan.train.early_stopping.is_some_and(|early| early.patience_evals == 4), "{}", imported.recipe);
    let (_, plan) = one(Tool::Axolotl, "dora_two_sets.yml");
    assert_eq!((plan.data.sources.len(), plan.adapter.dora, plan.adapter.new_tokens.len()), (2, true, 2));
    let (_, plan) = one(Tool::Axolotl, "dpo.yml");
    assert_eq!((plan.train.objective, plan.train.beta, plan.train.rpo_alpha), (ObjectiveKind::Dpo, Some(0.2), 0.5));
    let (imported, plan) = one(Tool::Axolotl, "short.yml");
    assert_eq!((plan.train.epochs, plan.train.max_steps), (1, None));
    assert!(imported.recipe.contains("whole epochs"), "{}", imported.recipe);
    let (_, plan) = one(Tool::Axolotl, "completion.yml");
    assert_eq!((plan.train.accumulate_steps, plan.base.compute), (4, Compute::F32));
}

#[test]
fn the_others_mean_the_same() {
    let (_, plan) = one(Tool::LlamaFactory, "lora_sft.yaml");
    // Its default is twice the rank, on all linear layers.
    assert_eq!((plan.adapter.rank, plan.adapter.alpha, plan.data.sources.len()), (8, 16.0, 2));
    assert_eq!((plan.train.learning_rate, plan.train.warmup_share, plan.train.epochs), (1e-4, Some(0.1), 3));
    let (_, plan) = one(Tool::LlamaFactory, "simpo.yaml");
    assert_eq!((plan.train.objective, plan.train.target_margin), (ObjectiveKind::SimPo, Some(1.25)));
    let (_, plan) = one(Tool::LlamaFactory, "qlora.yaml");
    assert_eq!(plan.base.quant.to_string(), "nf4");
    let (_, plan) = one(Tool::MlxLm, "lora_config.yaml");
    // mlx-lm scales by a number of its own.
    assert_eq!((plan.adapter.alpha, plan.train.max_steps, plan.eval.max_examples), (160.0, Some(1000), Some(100)));
    let (_, plan) = one(Tool::MlxLm, "schedule.yaml");
    assert_eq!((plan.train.learning_rate, plan.train.warmup_steps, plan.train.beta2), (1e-5, 100, Some(0.98)));
    let (imported, plan) = one(Tool::Unsloth, "notebook.py");
    assert_eq!((plan.base.quant.to_string().as_str(), plan.train.max_steps), ("nf4-double", Some(60)));
    assert_eq!((plan.adapter.rank, plan.train.seed, plan.train.learning_rate), (16, 3407, 2e-4));
    assert!(imported.recipe.contains("TrainingArguments.fp16 = not is_bfloat16_supported()"), "{}", imported.recipe);
    let (_, plan) = one(Tool::Unsloth, "dpo.py");
    assert_eq!((plan.train.objective, plan.train.beta), (ObjectiveKind::Dpo, Some(0.1)));
    let (_, plan) = one(Tool::Trl, "kto_script.py");
    assert_eq!((plan.train.objective, plan.train.undesirable_weight), (ObjectiveKind::Kto, Some(1.5)));
    let (_, plan) = one(Tool::Trl, "dpo_script.py");
    assert_eq!(plan.train.objective, ObjectiveKind::Ipo);
    let (_, plan) = one(Tool::Peft, "rslora_patterns.json");
    let ranks = serde_json::to_value(&plan.adapter.rank_pattern).expect("JSON");
    assert!(plan.adapter.rslora && ranks.as_object().is_some_and(|ranks| ranks.len() == 2), "{ranks}");
}

#[test]
fn the_program_writes_a_recipe_once_and_refuses_what_it_does_not_know() {
    let here = tempfile::tempdir().expect("a folder");
    let configuration = folder(Tool::MlxLm).join("schedule.yaml");
    let configuration = configuration.to_str().expect("UTF-8");
    let printed = text(&run(&here, &["import", configuration]).stdout);
    assert!(printed.contains("[train]") && printed.contains("# lr_schedule.name"), "{printed}");
    assert!(run(&here, &["import", configuration, "--out", "r.toml"]).status.success());
    assert_eq!(fs::read_to_string(here.path().join("r.toml")).expect("written"), printed);
    assert!(refused(&run(&here, &["import", configuration, "--out", "r.toml"])).contains("exists"));
    let result = json(&run(&here, &["import", configuration, "--json"]));
    assert_eq!((result["tool"].as_str(), result["recipe"].as_str()), (Some("mlx-lm"), Some(printed.as_str())));
    assert!(result["left_out"].as_array().is_some_and(|left_out| !left_out.is_empty()));

    let refusal = |name: &str, content: &str, arguments: &[&str]| {
        fs::write(here.path().join(name), content).expect("written");
        refused(&run(&here, &[&["import", name], arguments].concat()))
    };
    assert!(refusal("a.yaml", "services:\n  web: {image: x}\n", &[]).contains("no configuration that can be told"));
    assert!(refusal("b.yaml", "a: [1\n", &["--from", "axolotl"]).contains("b.yaml:"));
    assert!(refusal("c.py", "print('unsloth')\n", &[]).contains("sets up a training"));
    assert!(refusal("d.json", "{\"peft_type\": \"IA3\", \"inference_mode\": true}", &[]).contains("expected LORA"));
    assert!(refused(&run(&here, &["import", "nowhere.yaml"])).contains("nowhere.yaml"));
    // With a name it is read all the same, and says what it could not use.
    fs::write(here.path().join("e.yaml"), "iters: 3\nfoo: 1\n").expect("written");
    let result = json(&run(&here, &["import", "e.yaml", "--from", "mlx-lm", "--json"]));
    let unknown = Value::from("not a key that this import knows");
    assert_eq!((&result["left_out"][0]["key"], &result["left_out"][0]["reason"]), (&Value::from("foo"), &unknown));
}
