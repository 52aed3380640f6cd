//! The modules that an adapter changes: names, patterns, layers and exclusions select what they select in PEFT.

use std::path::{Path, PathBuf};

use burnish::adapter::host::HostAdapter;
use burnish::adapter::peft::SaveOptions;
use burnish::adapter::spec::{AdapterSpec, ByPattern, Modules, Targets};
use burnish::files::safetensors::SafeTensorsFile;
use burnish::model::BaseFiles;
use burnish::quant::Quant;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn base(name: &str) -> BaseFiles {
    BaseFiles::open(&fixture(name)).expect("a base")
}

const SEVEN: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const LLAMA: &str = "models/llama_gqa";
const NEOX: &str = "families/gpt_neox_parallel";

fn pattern(text: &str) -> Modules {
    Modules::Pattern(text.to_owned())
}

fn named(names: &[&str]) -> Modules {
    Modules::Named(names.iter().map(|name| (*name).to_owned()).collect())
}

/// The settings of `make_adapters.py` in the words of a recipe, each with its base and its folder.
fn choices_of_peft() -> Vec<(&'static str, &'static str, AdapterSpec)> {
    let spec = |rank, alpha, targets| AdapterSpec { rank, alpha, targets, ..AdapterSpec::default() };
    vec![
        (LLAMA, "regex", spec(2, 2.0, Targets::Modules(pattern(r".*\.layers\.1\.self_attn\.(q|o)_proj")))),
        (LLAMA, "rslora", AdapterSpec { rslora: true, ..spec(9, 5.0, Targets::Attention) }),
        (LLAMA, "seven_and_head", spec(4, 4.0, Targets::named(SEVEN.into_iter().chain(["lm_head"])))),
        (
            LLAMA,
            "patterns",
            AdapterSpec {
                rank_pattern: ByPattern::of([
                    ("model.layers.1.self_attn.q_proj", 7),
                    ("k_proj", 2),
                    (r"layers\.0\.mlp\..*", 5),
                ]),
                alpha_pattern: ByPattern::of([("v_proj", 1.0), (r"layers\.1\.mlp\.down_proj", 20.0)]),
                ..spec(4, 6.0, Targets::named(SEVEN))
            },
        ),
        (
            LLAMA,
            "layers",
            AdapterSpec {
                exclude: Some(named(&["self_attn.o_proj"])),
                layers: Some(vec![1]),
                ..spec(3, 9.0, Targets::named(["q_proj", "o_proj", "mlp.down_proj", "model.layers.0.mlp.up_proj"]))
            },
        ),
        (LLAMA, "all_linear", AdapterSpec { exclude: Some(pattern(r".*\.0\..*")), ..spec(2, 3.0, Targets::AllLinear) }),
        (
            NEOX,
            "neox_patterns",
            AdapterSpec {
                exclude: Some(named(&["layers.0.mlp.dense_4h_to_h"])),
                rank_pattern: ByPattern::of([("query_key_value", 2)]),
                alpha_pattern: ByPattern::of([(r"layers\.1\.mlp\..*", 12.0)]),
                ..spec(
                    4,
                    6.0,
                    Targets::Modules(pattern(
                        r"gpt_neox\.layers\.\d+\.(attention\.query_key_value|mlp\.dense_4h_to_h)",
                    )),
                )
            },
        ),
        (
            NEOX,
            "neox_layers",
            AdapterSpec {
                layers: Some(vec![1]),
                ..spec(2, 4.0, Targets::named(["query_key_value", "dense", "lm_head"]))
            },
        ),
    ]
}

#[test]
fn choices_of_a_recipe_are_those_of_peft() {
    for (base_name, name, spec) in choices_of_peft() {
        let base = base(base_name);
        let peft = HostAdapter::load_over(&fixture("adapters").join(name), &base).expect("PEFT's adapter");
        let ours = spec.initialise(&base, Quant::None, 1).expect("an adapter");
        let shapes = |adapter: &HostAdapter| -> Vec<(String, usize, f32)> {
            adapter.pairs.iter().map(|(module, pair)| (module.clone(), pair.rank, pair.scale)).collect()
        };
        assert_eq!(shapes(&ours), shapes(&peft), "{name}");
    }
}

/// The file of an adapter lists names that select its modules, no more and no fewer, and has transformers' name of the head.
#[test]
fn a_saved_choice_selects_the_same_modules() {
    let out = tempfile::tempdir().expect("a folder");
    for (base_name, name, spec) in choices_of_peft() {
        let base = base(base_name);
        let adapter = spec.initialise(&base, Quant::None, 1).expect("an adapter");
        let targets = spec.target_names(base.config()).expect("names");
        let dir = out.path().join(name);
        let head = base.config().names.head;
        let options =
            SaveOptions { targets: &targets, rslora: spec.rslora, head: Some(head), ..SaveOptions::default() };
        adapter.save(&dir, &options).expect("saved");
        assert_eq!(HostAdapter::load_over(&dir, &base).expect("ours").pairs, adapter.pairs, "{name}");
        let names = |dir: &Path| -> Vec<String> {
            let file = SafeTensorsFile::open(&dir.join("adapter_model.safetensors")).expect("a file");
            let mut pairs: Vec<String> =
                file.names().filter(|name| name.contains(".lora_")).map(str::to_owned).collect();
            pairs.sort_unstable();
            pairs
        };
        assert_eq!(names(&dir), names(&fixture("adapters").join(name)), "{name}");
        let all = AdapterSpec { targets: Targets::Modules(pattern(".*")), ..AdapterSpec::default() };
        let of_names = AdapterSpec { targets: Targets::named(targets.iter().map(String::as_str)), ..all };
        let taken = of_names.adapted(base.config()).expect("sites");
        let taken: Vec<&str> = taken.iter().map(|adapted| adapted.site.module.as_str()).collect();
        assert!(taken.iter().all(|module| adapter.pairs.contains_key(*module)), "{name}: {targets:?}");
    }
}

#[test]
fn what_selects_nothing_is_refused() {
    let base = base(LLAMA);
    let refused = |spec: AdapterSpec| {
        let error = spec.adapted(base.config()).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let usual = AdapterSpec::default;
    for (spec, expected) in [
        (
            AdapterSpec { targets: Targets::Modules(pattern("q_proj.*")), ..usual() },
            "`q_proj.*` matches the whole path of no projection",
        ),
        (AdapterSpec { exclude: Some(named(&["proj"])), ..usual() }, "`proj` is the name of no projection"),
        (AdapterSpec { exclude: Some(pattern(".*_proj")), ..usual() }, "take no projection of the base"),
        (AdapterSpec { layers: Some(vec![0, 2]), ..usual() }, "names layer 2; the base has layers 0 to 1"),
        (
            AdapterSpec { rank_pattern: ByPattern::of([("up_proj", 4)]), ..usual() },
            "`up_proj` matches no module that the adapter changes",
        ),
        (
            AdapterSpec { rank_pattern: ByPattern::of([("k_proj", 17)]), ..usual() },
            "is 17, above the 16 of model.layers.0.self_attn.k_proj (16 x 32)",
        ),
        (
            AdapterSpec { alpha_pattern: ByPattern::of([(".*0.*", 1.0), ("q_proj", 2.0)]), ..usual() },
            "both match model.layers.0.self_attn.q_proj, with different values",
        ),
    ] {
        let error = refused(spec);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn modules_are_narrowed_and_have_values_of_their_own() {
    let adapter = crate::recipe::with(&[
        "adapter.exclude=['o_proj']",
        "adapter.layers=[0, 3]",
        r#"adapter.rank_pattern={ "layers\\.0\\..*" = 16, q_proj = 4 }"#,
        "adapter.alpha_pattern.v_proj=2",
    ])
    .expect("valid")
    .adapter;
    assert_eq!(adapter.exclude, Some(Modules::Named(vec!["o_proj".to_owned()])));
    assert_eq!(adapter.layers, Some(vec![0, 3]));
    assert_eq!(adapter.rank_pattern, ByPattern::of([(r"layers\.0\..*", 16), ("q_proj", 4)]));
    assert_eq!(adapter.alpha_pattern, ByPattern::of([("v_proj", 2.0)]));
    for (settings, expected) in [
        (&["adapter.exclude='(x'"][..], "`(x` is not a regular expression"),
        (&["adapter.exclude=o_proj"], "did you mean `[\"o_proj\"]`?"),
        (&["adapter.layers=[]"], "`adapter.layers`: expected something not empty"),
        (&["adapter.rank_pattern={ '(x' = 4 }"], "`adapter.rank_pattern`: `(x` is not a regular expression"),
        (&["adapter.rank_pattern={ q_proj = 0 }"], "expected a table from patterns to numbers, 1 to 65536"),
        (&["adapter.rank_pattern.layers.0.q_proj=4"], "a pattern with dots stands in quotes"),
        (&["adapter.alpha_pattern=3"], "a table from patterns to numbers"),
        (&["adapter.targets='.*q_proj'", "adapter.layers=[1]"], "let the expression name the layers"),
    ] {
        let error = crate::recipe::with(settings).expect_err("refused").to_string();
        assert!(error.contains(expected), "{settings:?}: {error}");
    }
}
