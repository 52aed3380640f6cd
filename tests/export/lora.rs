//! GGUF-LoRA: the factors that llama.cpp multiplies are the adapter's change of the weight in GGUF's order.

use burnish::adapter::host::HostAdapter;
use burnish::export::ExportOptions;
use burnish::export::GgufType;
use burnish::export::lora::write_lora;
use burnish::files::gguf::{Gguf, Value};
use burnish::model::BaseFiles;

use super::{PLAIN, export, fixture, message, temporary};

/// `alpha / rank · B · A` of a pair in the file, `[rows, columns]`.
fn change(lora: &Gguf, name: &str) -> Vec<f32> {
    let factor = |half: &str| lora.tensor(&format!("{name}.{half}")).expect("there");
    let (a, b) = (factor("lora_a"), factor("lora_b"));
    let rank = b.shape[1];
    let alpha = lora.get("adapter.lora.alpha").and_then(Value::as_f64).expect("alpha") as f32;
    let (a, b) = (a.to_f32().expect("floats"), b.to_f32().expect("floats"));
    let scale = alpha / rank as f32;
    if name == "token_embd.weight" {
        // Transposed: `[tokens, rank]` and `[width, rank]`.
        let of = |a: &[f32], b: &[f32]| scale * a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        return a.chunks(rank).flat_map(|a| b.chunks(rank).map(|b| of(a, b)).collect::<Vec<_>>()).collect();
    }
    let columns = a.len() / rank;
    let of_row = |b: &[f32], column: usize| {
        scale * b.iter().zip(a.iter().skip(column).step_by(columns)).map(|(b, a)| b * a).sum::<f32>()
    };
    b.chunks(rank).flat_map(|b| (0..columns).map(move |column| of_row(b, column)).collect::<Vec<_>>()).collect()
}

#[test]
fn the_factors_change_a_gguf_base_as_merging_does() {
    let folder = temporary();
    let family = |name: &str| (fixture("families").join(name), fixture("families").join(name).join("adapter"));
    let llama = |name: &str| (fixture("models/llama_gqa"), fixture("adapters").join(name));
    let cases = [
        llama("seven"),
        llama("rslora"),
        llama("patterns"),
        llama("seven_and_head"),
        llama("embedding"),
        family("qwen3_grouped"),
        family("gpt_neox_parallel"),
        family("granite4_grouped"),
        family("phi3_longrope"),
        family("gemma2_grouped"),
    ];
    for (number, (path, adapter)) in cases.into_iter().enumerate() {
        let base = BaseFiles::open(&path).expect("a base");
        let adapter = HostAdapter::load_over(&adapter, &base).expect("an adapter");
        let out = |name: &str| folder.path().join(format!("{number}-{name}.gguf"));
        let place = path.display().to_string();
        let options = ExportOptions { gguf_type: Some(GgufType::F32), ..PLAIN };
        export(&path, None, &out("base"), &options).expect("exports");
        export(&path, Some(&adapter), &out("merged"), &options).expect("exports");
        let report = write_lora(base.config(), &adapter, "an adapter", &out("lora")).expect("exports");
        assert_eq!(report.modules, adapter.pairs.len());
        let open = |name: &str| Gguf::open(&out(name)).expect("a file");
        let (base, merged, lora) = (open("base"), open("merged"), open("lora"));
        assert_eq!(lora.get("general.type"), Some(&Value::String("adapter".to_owned())));
        assert_eq!(lora.get("adapter.type"), Some(&Value::String("lora".to_owned())));
        assert_eq!(lora.architecture(), base.architecture());
        let mut changed = 0;
        for name in base.names() {
            let values = |file: &Gguf| file.tensor(name).expect("there").to_f32().expect("floats");
            let (before, after) = (values(&base), values(&merged));
            if lora.has(&format!("{name}.lora_a")) {
                changed += 1;
                for ((before, after), change) in before.iter().zip(&after).zip(change(&lora, name)) {
                    assert!((before + change - after).abs() <= 1e-5, "{place}: {name}");
                }
            } else {
                assert_eq!(before, after, "{place}: {name}");
            }
        }
        assert_eq!(2 * changed, lora.names().count(), "{place}: every factor has its tensor");
    }
}

#[test]
fn a_tied_head_is_refused_with_nothing_written() {
    let folder = temporary();
    let base = BaseFiles::open(&fixture("models/llama_tied")).expect("a base");
    let gqa = BaseFiles::open(&fixture("models/llama_gqa")).expect("a base");
    let mut adapter = HostAdapter::load_over(&fixture("adapters/seven_and_head"), &gqa).expect("an adapter");
    adapter.pairs.retain(|module, _| module == "lm_head");
    let out = folder.path().join("lora.gguf");
    let error = write_lora(base.config(), &adapter, "an adapter", &out).expect_err("tied");
    let text = message(&error);
    assert!(text.contains("lm_head") && text.contains("shares the embedding's matrix"), "{text}");
    assert_eq!((error.exit_code(), std::fs::read_dir(folder.path()).expect("listed").count()), (2, 0));
}
