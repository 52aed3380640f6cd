//! The table of what each consumer can take: its page, and the sentences before a run.

use burnish::adapter::spec::{AdapterSpec, Targets};
use burnish::export::feasible::{Facts, markdown, ruled_out};
use burnish::model::BaseFiles;
use burnish::quant::Quant;

use super::fixture;

#[test]
fn the_page_has_the_table_of_the_code() {
    const BEGIN: &str = "<!-- feasible -->\n";
    const END: &str = "<!-- end of feasible -->";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/exports.md");
    let page = std::fs::read_to_string(&path).expect("docs/exports.md");
    let (before, rest) = page.split_once(BEGIN).expect("the mark where the table begins");
    let (table, after) = rest.split_once(END).expect("the mark where it ends");
    if std::env::var_os("BURNISH_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", markdown())).expect("written");
    } else {
        assert_eq!(table, markdown(), "run the tests with BURNISH_WRITE_DOCS=1 to write docs/exports.md anew");
    }
}

#[test]
fn a_run_is_told_which_exports_it_rules_out() {
    let base = |name: &str| {
        let family = fixture("families").join(name);
        let path = if family.exists() { family } else { fixture("models").join(name) };
        BaseFiles::open(&path).expect("a base")
    };
    let notices_of = |name: &str, spec: AdapterSpec| {
        let base = base(name);
        let adapter = spec.initialise(&base, Quant::None, 1).expect("an adapter");
        ruled_out(&Facts { config: base.config(), adapter: &adapter })
    };
    let notices = |name: &str, changes_head: bool| {
        let head = Targets::named([base(name).config().names.head]);
        let targets = if changes_head { head } else { Targets::Attention };
        notices_of(name, AdapterSpec { rank: 1, targets, ..AdapterSpec::default() })
    };
    let dora = notices_of("llama_gqa", AdapterSpec { dora: true, ..AdapterSpec::default() });
    assert!(dora.len() == 1 && dora[0].contains("GGUF-LoRA is ruled out") && dora[0].contains("DoRA"), "{dora:?}");
    for name in ["llama_gqa", "llama_tied", "qwen2", "gemma2_grouped", "olmo2_bf16_tied", "gpt_neox_parallel"] {
        assert_eq!(notices(name, false), Vec::<String>::new(), "{name}");
    }
    assert_eq!(notices("llama_gqa", true), Vec::<String>::new());
    let tied = notices("llama_tied", true);
    assert!(tied.len() == 2 && tied[0].contains("GGUF-LoRA is ruled out"), "{tied:?}");
    assert!(tied[1].contains("adapter (mlx-lm) is ruled out: mlx-lm has no module for a tied head"), "{tied:?}");
    let gemma = notices("gemma2_grouped", true).join("\n");
    assert!(gemma.contains("merged GGUF") && gemma.contains("GGUF-LoRA"), "{gemma}");
    let untied = notices("gemma2_bf16_untied", false);
    assert!(untied.len() == 1 && untied[0].contains("GGUF is ruled out for this base"), "{untied:?}");
    let pattern = notices("gemma3_pattern", false).join("\n");
    assert!(pattern.contains("attention_multiplier"), "{pattern}");
}
