//! Recipes: what they mean, and that every problem is found at once, at its line and column.

use std::fs;

use burnish::Error;
use burnish::adapter::spec::{Modules, Targets};
use burnish::data::{Format, LongPolicy};
use burnish::model::decoder::Recompute;
use burnish::quant::{Compute, Quant};
use burnish::recipe::{Plan, Recipe};
use burnish::settings::OrAuto;
use burnish::train::ScheduleKind;
use proptest::prelude::*;

const SMALLEST: &str = "[base]\nmodel = \"m.gguf\"\n[data]\ntrain = \"t.jsonl\"\n[output]\ndir = \"out\"\n";

fn settings(text: &str) -> Result<Plan, Error> {
    Recipe::parse(text, "recipe.toml", &[])?.settings()
}

pub fn with(overrides: &[&str]) -> Result<Plan, Error> {
    let overrides: Vec<String> = overrides.iter().map(|&setting| setting.to_owned()).collect();
    Recipe::parse(SMALLEST, "recipe.toml", &overrides)?.settings()
}

/// `place: message` of every problem.
fn problems(result: Result<Plan, Error>) -> Vec<String> {
    let error = result.expect_err("a problem");
    assert_eq!(error.exit_code(), 2);
    error.problems().iter().map(|problem| format!("{}: {}", problem.place, problem.message)).collect()
}

#[test]
fn the_smallest_recipe_gets_the_documented_defaults() {
    let plan = settings(SMALLEST).expect("valid");
    assert_eq!((plan.base.compute, plan.base.quant), (Compute::Bf16, Quant::None));
    assert_eq!((plan.data.format, plan.data.overlong), (OrAuto::Auto, LongPolicy::Drop));
    assert_eq!((plan.data.max_seq_tokens, plan.data.packing), (512, false));
    assert_eq!((plan.adapter.rank, plan.adapter.alpha, plan.adapter.dropout), (8, 16.0, 0.0));
    assert_eq!(plan.adapter.targets, Targets::Attention);
    assert_eq!((plan.train.epochs, plan.train.max_steps), (1, None));
    assert_eq!((plan.train.learning_rate, plan.train.schedule), (2e-4, ScheduleKind::Linear));
    assert_eq!((plan.train.recompute, plan.train.seed), (Recompute::None, 0));
    assert!(plan.train.early_stopping.is_none() && plan.data.valid.is_none());
}

#[test]
fn every_setting_can_be_given() {
    let plan = settings(
        r#"
        [base]
        model = "hf:org/repo@v1"
        compute = "f32"
        quant = "nf4-double"
        [data]
        train = "a.jsonl"
        valid = "b.jsonl"
        format = "prompt-completion"
        max_seq_tokens = 1_024
        overlong = "truncate-prompt"
        packing = true
        [data.augment]
        wordings = ["{prompt}", "Please: {prompt}"]
        token_dropout = 0.05
        typing_errors = 0.02
        [data.rehearsal]
        path = "c.jsonl"
        share = 0.2
        format = "chat"
        [adapter]
        rank = 0x10
        alpha = 32
        dropout = 0.05
        targets = ["lm_head", "down_proj"]
        rslora = true
        [train]
        epochs = 3
        max_steps = 100
        micro_batch_seqs = 2
        accumulate_steps = 8
        learning_rate = 1e-4
        schedule = "cosine"
        warmup_steps = 10
        decay_share = 0.3
        b_rate_ratio = 16
        label_smoothing = 0.1
        neftune_alpha = 5
        eval_on = "exact_match"
        optimiser = "lion"
        weight_decay = 0.01
        max_grad_norm = 0
        beta1 = 0.8
        beta2 = 0.95
        eval_steps = 7
        recompute = "block"
        seed = 9007199254740992
        [train.early_stopping]
        patience_evals = 5
        min_delta = 0.001
        [output]
        dir = "adapters/x"
        [sample]
        prompts = ["Hi", "你好"]
        max_tokens = 32
        "#,
    )
    .expect("valid");
    assert_eq!(plan.adapter.targets, Targets::named(["lm_head", "down_proj"]));
    assert_eq!((plan.adapter.rank, plan.adapter.alpha), (16, 32.0));
    assert_eq!(plan.train.early_stopping.as_ref().map(|stop| (stop.patience_evals, stop.min_delta)), Some((5, 0.001)));
    assert_eq!(plan.train.seed, 1 << 53);
    assert_eq!(plan.data.format, OrAuto::Given(Format::PromptCompletion));
    assert_eq!(plan.sample.prompts, ["Hi", "你好"]);
    let json = serde_json::to_value(&plan).expect("serialisable");
    assert_eq!(json["base"]["quant"], "nf4-double");
    assert_eq!(json["adapter"]["targets"], serde_json::json!(["lm_head", "down_proj"]));
}

#[test]
fn every_problem_is_reported_at_once_at_its_line_and_column() {
    let text = "[base]\nmodel = \"m.gguf\"\ncomputer = \"f32\"\n\n[data]\ntrain = 7\n\n[adapter]\nrank = 0\nalpha = nan\n\
                targets = \"q_proj\"\n\n[train]\nlearning_rate = \"fast\"\nepochs = 0\n  seed = -1\n";
    assert_eq!(
        problems(settings(text)),
        [
            "recipe.toml: `output.dir` is missing",
            "recipe.toml:3:1: unknown key `base.computer`",
            "recipe.toml:6:9: `data.train`: expected a path or a list of paths, found the whole number 7",
            "recipe.toml:9:8: `adapter.rank`: expected 1 to 65536, found the whole number 0",
            "recipe.toml:10:9: `adapter.alpha`: expected above 0, up to 1000000, found the number nan",
            "recipe.toml:11:11: `adapter.targets`: expected `attention`, `all-linear`, a list of names of modules such as \
             q_proj, or a regular expression, found the string \"q_proj\"",
            "recipe.toml:14:17: `train.learning_rate`: expected a number, found the string \"fast\"",
            "recipe.toml:15:10: `train.epochs`: expected 1 to 1000000000, found the whole number 0",
            "recipe.toml:16:10: `train.seed`: expected a whole number from 0 to 18446744073709551615, found the whole \
             number -1",
        ]
    );
}

#[test]
fn columns_count_characters() {
    let text = SMALLEST.replace("\"m.gguf\"", "\"模型.gguf\"") + "[sample]\nprompts = [\"你好\", 3]\n";
    assert_eq!(
        problems(settings(&text)),
        ["recipe.toml:8:18: `sample.prompts`: expected a string, found the whole number 3"]
    );
}

#[test]
fn an_unknown_key_names_the_nearest() {
    for (setting, hint) in [
        ("train.learnig_rate=1e-4", "did you mean `learning_rate`?"),
        ("train.rank=4", "did you mean `adapter.rank`?"),
        ("trian.epochs=1", "did you mean `train`?"),
        ("base.xyzzy=1", "[base] has model, compute, quant"),
        ("base.quant=nf", "did you mean `nf4`?"),
        ("train.lr=1e-4", "did you mean `learning_rate`?"),
        ("lr=1e-4", "did you mean `train.learning_rate`?"),
        ("train.batch_size=4", "did you mean `micro_batch_seqs`?"),
        ("train.gradient_accumulation_steps=4", "did you mean `accumulate_steps`?"),
        ("adapter.lora_alpha=4", "did you mean `alpha`?"),
        ("lora.r=4", "did you mean `adapter`?"),
        ("base.compute=bfloat16", "did you mean `bf16`?"),
        ("base.quant=4bit", "did you mean `nf4`?"),
        ("data.format=ShareGPT", "did you mean `chat`?"),
        ("adapter.targets=all", "did you mean `all-linear`?"),
        ("adapter.targets=all_linear", "did you mean `all-linear`?"),
        ("adapter.targets=q_proj", "did you mean `[\"q_proj\"]`?"),
    ] {
        let error = with(&[setting]).expect_err(setting);
        assert_eq!(error.problems()[0].hint.as_deref(), Some(hint), "{setting}");
    }
}

#[test]
fn hostile_values_are_range_or_type_errors() {
    for setting in [
        "train.learning_rate=nan",
        "train.learning_rate=inf",
        "train.learning_rate=-1e-4",
        "train.learning_rate=0",
        "train.learning_rate=1e999",
        "train.micro_batch_seqs=0",
        "train.accumulate_steps=0",
        "train.epochs=0",
        "train.epochs=9223372036854775808",
        "train.epochs=99999999999999999999999999999999999999999999",
        "train.epochs=1.5",
        "train.epochs=\"1\"",
        "train.max_steps=0",
        "train.seed=-1",
        "train.seed=9007199254740993",
        "train.beta1=1.0",
        "train.beta2=1.0",
        "train.b_rate_ratio=0",
        "train.warmup_share=1.1",
        "train.decay_share=-0.1",
        "train.optimiser=sgd",
        "train.weight_decay=-0.1",
        "train.max_grad_norm=nan",
        "train.eval_steps=0",
        "adapter.rank=0",
        "adapter.rank=-8",
        "adapter.alpha=0",
        "adapter.alpha=nan",
        "adapter.dropout=1.0",
        "adapter.dropout=-0.1",
        "adapter.targets=[]",
        "adapter.targets=[\"q_proj\", 1]",
        "adapter.targets=q_proj",
        "adapter.targets=[\"q_proj\", \"q_proj\"]",
        "adapter.rslora=1",
        "data.max_seq_tokens=1",
        "data.valid_fraction=0",
        "data.valid_fraction=1",
        "data.train=2026-01-01",
        "data.train=''",
        "data.train=\"a\\u0000b\"",
        "data.packing=yes",
        "base.model=''",
        "base.model=hf:../../etc",
        "base.compute=f16",
        "base.quant=[]",
        "base=3",
        "output.dir=true",
        "sample.prompts=[\"\"]",
    ] {
        assert_eq!(problems(with(&[setting])).len(), 1, "{setting}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_problems() {
    let contradiction = |overrides: &[&str]| problems(with(overrides)).remove(0);
    assert!(contradiction(&["train.warmup_steps=3", "train.warmup_share=0.1"]).contains("exclude each other"));
    assert!(contradiction(&["data.valid=v.jsonl", "data.valid_fraction=0.1"]).contains("exclude each other"));
    assert!(contradiction(&["data.group=user"]).contains("`data.valid_fraction` keeps together"));
    assert!(contradiction(&["train.early_stopping.min_delta=0.1"]).contains("needs validation examples"));
}

#[test]
fn overrides_are_toml_or_bare_strings_and_the_last_wins() {
    let plan =
        with(&["train.epochs=2", "train.epochs = 3", "base.model=./other model.gguf", "adapter.targets=['k_proj']"]);
    let plan = plan.expect("valid");
    assert_eq!(plan.train.epochs, 3);
    assert_eq!(plan.base.model, "./other model.gguf");
    assert_eq!(plan.adapter.targets, Targets::named(["k_proj"]));
    assert_eq!(
        problems(with(&["adapter.rank=none"])),
        ["--set adapter.rank: `adapter.rank`: expected a whole number, found the string \"none\""]
    );
    for form in ["", "=", "train", "train.=1", ".epochs=1", "a.b.c.d.e.f.g.h.i.j=1"] {
        assert_eq!(problems(with(&[form])).len(), 1, "{form}");
    }
    assert!(problems(with(&["base.model.name=x"]))[0].contains("not a section"));
}

#[test]
fn targets_are_a_word_or_a_list() {
    let targets = |setting: &str| with(&[setting]).expect("valid").adapter.targets;
    assert_eq!(targets("adapter.targets=attention"), Targets::Attention);
    assert_eq!(targets("adapter.targets=\"all-linear\""), Targets::AllLinear);
    assert_eq!(targets("adapter.targets=['dense', 'fc1']"), Targets::named(["dense", "fc1"]));
    let pattern = Targets::Modules(Modules::Pattern(r".*\.1\.self_attn\..*".to_owned()));
    assert_eq!(targets(r"adapter.targets='.*\.1\.self_attn\..*'"), pattern);
}

#[test]
fn values_are_literal() {
    let plan = with(&["output.dir=${HOME}/$(id)"]).expect("valid");
    assert_eq!(plan.output.dir.to_str(), Some("${HOME}/$(id)"));
}

#[test]
fn a_backslash_between_double_quotes_gets_advice() {
    let hint = |text: &str| settings(text).expect_err("wrong").problems()[0].hint.clone().unwrap_or_default();
    let with_train = |value: &str| SMALLEST.replace("\"t.jsonl\"", value);
    // No escape at all, one that TOML has, and both in another setting.
    for text in [
        with_train(r#""C:\Users\me\train.jsonl""#),
        with_train(r#""C:\new\table.jsonl""#),
        SMALLEST.replace("\"m.gguf\"", r#""models\base""#),
        SMALLEST.replace("\"m.gguf\"", r#""D:\qwen""#),
    ] {
        assert!(hint(&text).contains("single quotes"), "{text}");
    }
    let plan = settings(&with_train(r"'C:\Users\me\train.jsonl'")).expect("valid");
    assert_eq!(plan.data.train.to_string(), r"C:\Users\me\train.jsonl");
    // On the command line quotes ask for TOML; without them the value is taken as it is.
    let error = with(&[r#"data.train="C:\Users\me""#]).expect_err("an escape");
    assert!(error.problems()[0].hint.as_ref().is_some_and(|hint| hint.contains("single quotes")), "{error}");
    let plan = with(&[r"data.train=C:\Users\me"]).expect("valid");
    assert_eq!(plan.data.train.to_string(), r"C:\Users\me");
}

#[test]
fn every_syntax_error_is_reported() {
    let found = problems(settings("[base\nmodel = \"m\"\n[data]\ntrain = \"a\"\ntrain = \"b\"\n"));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("recipe.toml:1:"), "{found:#?}");
    assert!(found.iter().any(|problem| problem.starts_with("recipe.toml:5:1: ")), "{found:#?}");
    assert!(problems(settings("[base]\nmodel = \n"))[0].starts_with("recipe.toml:2:9: "));
    let deep = format!("x = {}", "[".repeat(100_000));
    assert!(!problems(settings(&deep)).is_empty());
    assert!(!problems(settings(&format!("{}x = 1", "a.".repeat(100_000)))).is_empty());
}

#[test]
fn files_are_looked_at_before_anything_starts() {
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("train.jsonl"), "{}\n").expect("written");
    fs::write(at("base.gguf"), "").expect("written");
    let path = folder.path().join("recipe.toml");
    let recipe = |train: &str, base: &str, dir: &str| {
        let text = format!("[base]\nmodel = {base:?}\n[data]\ntrain = {train:?}\n[output]\ndir = {dir:?}\n");
        fs::write(&path, text).expect("written");
        Recipe::load(&path, &[]).expect("parsed").plan()
    };
    recipe(&at("train.jsonl"), &at("base.gguf"), &at("out")).expect("all there");
    recipe(&at("train.jsonl"), "smollm2-135m-instruct", &at("out")).expect("a known name is pulled later");
    let found = problems(recipe(&at("missing.jsonl"), "smolm2-135m-instruct", &at("")));
    assert_eq!(found.len(), 2, "a folder that exists may hold a run to go on with: {found:#?}");
    assert!(found[0].contains("recipe.toml:2:9: `base.model`"), "{found:#?}");
    assert!(found[1].contains("recipe.toml:4:9: `data.train`"), "{found:#?}");
    recipe(&at(""), &at("base.gguf"), &at("out")).expect("a folder of data files");
    fs::create_dir(at("empty")).expect("made");
    for (train, expected) in [("empty", "holds no data file"), ("*.csv", "matches no file")] {
        let found = problems(recipe(&at(train), &at("base.gguf"), &at("out")));
        assert!(
            found.len() == 1 && found[0].contains("recipe.toml:4:9: `data.train`: ") && found[0].contains(expected),
            "{found:#?}"
        );
    }
    for name in ["HuggingFaceTB/SmolLM2-135M", "https://huggingface.co/HuggingFaceTB/SmolLM2-135M"] {
        let error = recipe(&at("train.jsonl"), name, &at("out")).expect_err("no such path");
        let hint = error.problems()[0].hint.clone().unwrap_or_default();
        assert!(hint.contains("did you mean `hf:HuggingFaceTB/SmolLM2-135M`?"), "{hint}");
    }
}

#[test]
fn what_is_no_recipe_file_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let refused = |path: &std::path::Path| Recipe::load(path, &[]).expect_err("refused");
    assert_eq!(refused(folder.path()).exit_code(), 2);
    assert_eq!(refused(&folder.path().join("none.toml")).exit_code(), 2);
    let path = folder.path().join("latin1.toml");
    fs::write(&path, b"[base]\nmodel = \"\xe9\"\n").expect("written");
    assert!(refused(&path).to_string().contains("offset 16"));
    fs::File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("sparse");
    assert!(refused(&path).to_string().contains("bytes"));
}

#[cfg(unix)]
#[test]
fn a_recipe_that_is_a_device_is_refused_without_reading_it() {
    assert_eq!(Recipe::load(std::path::Path::new("/dev/zero"), &[]).expect_err("refused").exit_code(), 2);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\[|\\]|\\.|=|\"|'|\n|base|model|train|data|output|dir|rank|é| |[0-9]|e|-|nan|\\{|\\}|,|#)*") {
        let _ = settings(&text);
    }

    #[test]
    fn no_override_makes_it_panic(key in "[a-z.]{0,30}", value in "\\PC{0,30}") {
        let _ = with(&[&format!("{key}={value}"), &value]);
    }
}

#[test]
fn every_shipped_recipe_is_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let paths = fs::read_dir(folder).expect("recipes").flatten().map(|entry| entry.path());
    let recipes: Vec<_> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    assert!(!recipes.is_empty());
    for path in recipes {
        Recipe::load(&path, &[]).and_then(|recipe| recipe.settings()).expect("valid");
    }
}

#[test]
fn a_resolved_recipe_means_the_same() {
    let text = "[base]\nmodel = \"it's a \\\"base\\\"\"\n[data]\ntrain = \"a.jsonl\"\nvalid_fraction = 0.1\n[adapter]\n\
                targets = [\"q_proj\"]\n[train]\nlearning_rate = 1e-7\nmax_steps = 9\n[train.early_stopping]\n\
                [output]\ndir = \"out put\"\n[sample]\nprompts = [\"a\\nb\"]\n";
    let recipe = Recipe::parse(text, "recipe.toml", &["train.seed=7".to_owned()]).expect("parsed");
    let plan = recipe.settings().expect("valid");
    let resolved = burnish::recipe::resolved(&plan).expect("written");
    let again = Recipe::parse(&resolved, "recipe.toml", &[]).expect("parsed").settings().expect("valid");
    assert_eq!(again, plan, "{resolved}");
    assert!(resolved.contains("seed = 7") && resolved.contains("patience_evals = 3"), "{resolved}");
}

/// The settings as `docs/recipe.md` lists them.
fn reference() -> String {
    let validated = [
        "data.valid=v.jsonl",
        "train.early_stopping={}",
        "data.sources=[{path='s.jsonl'}]",
        "data.augment={}",
        "data.rehearsal={path='g.jsonl'}",
    ];
    let mut defaults = serde_json::to_value(with(&validated).expect("valid")).expect("serialisable");
    let swept = ["sweep.values.train.seed=[0, 1]".to_owned()];
    let swept = Recipe::parse(SMALLEST, "recipe.toml", &swept).and_then(|recipe| recipe.sweep()).expect("valid");
    defaults["sweep"] = serde_json::to_value(swept).expect("serialisable");
    let mut text = String::new();
    let mut open_section = "";
    let settings = burnish::recipe::settings();
    for setting in &settings {
        let (section, name) = setting.key.rsplit_once('.').expect("every setting is in a section");
        if section != open_section {
            let section = if section == "data.sources" { "[data.sources]" } else { section };
            text += &format!("\n## `[{section}]`\n\n| key | default | accepted | what it does |\n|---|---|---|---|\n");
            open_section = setting.key.rsplit_once('.').expect("a section").0;
        }
        let default = setting
            .key
            .split('.')
            .fold(&defaults, |value, part| value.get(0).unwrap_or(value).get(part).unwrap_or(&serde_json::Value::Null));
        let default = match default {
            _ if setting.key == "data.train" => "required, unless there are `sources`".to_owned(),
            _ if setting.required => "required".to_owned(),
            serde_json::Value::Null => "none".to_owned(),
            _ if setting.key == "data.valid" => "none".to_owned(),
            value => format!("`{value}`"),
        };
        text += &format!("| `{name}` | {default} | {} | {} |\n", setting.expected, setting.doc.replace('|', "\\|"));
    }
    text
}

#[test]
fn the_reference_lists_every_setting() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipe.md");
    let page = fs::read_to_string(&path).expect("docs/recipe.md");
    let (introduction, listed) = page.split_once("<!-- settings -->\n").expect("the mark where the list begins");
    let expected = reference();
    if std::env::var_os("BURNISH_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{introduction}<!-- settings -->\n{expected}")).expect("written");
    } else {
        assert_eq!(listed, expected, "run the tests with BURNISH_WRITE_DOCS=1 to write docs/recipe.md anew");
    }
}
