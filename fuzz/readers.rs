//! The bodies of the fuzz targets: one function per reader of files that others write. Each takes any bytes, needs no
//! file, and expects a value or an error of exit code 2, never a panic.
//!
//! `fuzz_targets/` calls them with libFuzzer on a nightly compiler, `tests/fuzz.rs` with mutated seeds on a stable one.

use std::io::{self, Cursor, Read};

use burnish::adapter::peft::PeftConfig;
use burnish::data::{ChatTemplate, Message, jsonl, tables};
use burnish::error::Error;
use burnish::files::bitsandbytes::{Storage, read_int8, read_nf4, storage};
use burnish::files::gguf::Gguf;
use burnish::files::safetensors::SafeTensorsFile;
use burnish::files::{Bytes, Dtype, json};
use burnish::model::ModelConfig;
use burnish::pull::zip::open_member;
use burnish::quant::nf4;
use burnish::recipe::Recipe;
use burnish::text::Tokenizer;

/// A reader that takes any bytes.
type Reader = fn(&[u8]);

/// The readers by name, as `fuzz_targets/` and `seeds` of `tests/fuzz.rs` know them.
pub const READERS: [(&str, Reader); 12] = [
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("config", config),
    ("jsonl", data_rows),
    ("recipe", recipe),
    ("tokenizer", tokenizer),
    ("template", template),
    ("adapter_config", adapter_config),
    ("bitsandbytes", bitsandbytes),
    ("zip", zip),
    ("csv", csv),
    ("parquet", parquet),
];

/// The value; `None` where the input is refused, as it has to be: as bad input.
fn accepted<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(|error| assert_eq!(error.exit_code(), 2, "{error}")).ok()
}

/// Any bytes as a safetensors file: opened, every tensor decoded.
pub fn safetensors(data: &[u8]) {
    let Some(file) = accepted(SafeTensorsFile::from_bytes("fuzz", Bytes::from(data.to_vec()))) else { return };
    for name in file.names() {
        weight(&file, name);
    }
}

/// Reads one tensor the way it is stored.
fn weight(file: &SafeTensorsFile, name: &str) {
    match storage(file, name) {
        Storage::Dense => {
            if let Some(tensor) = accepted(file.tensor(name)) {
                let values = tensor.to_f32().expect("an opened file's tensors fit their shapes");
                assert_eq!(values.len(), tensor.elements());
                accepted(tensor.check_finite(name));
            }
        }
        Storage::FourBit => {
            if let Some(weight) = accepted(read_nf4(file, name)) {
                assert_eq!(weight.to_f32().len(), weight.elements());
            }
        }
        Storage::EightBit => {
            if let Some(weight) = accepted(read_int8(file, name)) {
                assert_eq!(weight.to_f32().len(), weight.elements());
            }
        }
    }
}

/// Any bytes as a GGUF file: opened, every tensor decoded, a configuration and a tokenizer made of its metadata.
pub fn gguf(data: &[u8]) {
    let Some(gguf) = accepted(Gguf::from_bytes("fuzz", Bytes::from(data.to_vec()))) else { return };
    for name in gguf.names() {
        let tensor = gguf.tensor(name).expect("an opened file holds its tensors");
        let values = tensor.to_f32().expect("an opened file's tensors fit their shapes");
        assert_eq!(values.len(), tensor.elements());
        accepted(tensor.check_finite(name));
    }
    accepted(ModelConfig::from_gguf(&gguf));
    accepted(Tokenizer::from_gguf(&gguf));
}

/// Any bytes as a `config.json`: parsed strictly, checked, and written back for transformers.
pub fn config(data: &[u8]) {
    let Some(value) = accepted(json::parse("fuzz", data)) else { return };
    let Some(config) = accepted(ModelConfig::from_json("fuzz", &value, Some(&value))) else { return };
    let written = config.to_hf_json(Dtype::Bf16);
    assert_eq!(ModelConfig::from_json("fuzz", &written, None).expect("what was valid stays so"), config);
}

/// Any bytes as a JSONL data file, and as a JSON list of examples.
pub fn data_rows(data: &[u8]) {
    accepted(jsonl::parse(data, "fuzz", None));
}

/// Any text as a recipe: parsed, and its settings read.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    accepted(Recipe::parse(text, "fuzz", &[]).and_then(|recipe| recipe.settings()));
}

/// Any bytes as a `tokenizer.json`: read, and a text encoded and decoded.
pub fn tokenizer(data: &[u8]) {
    let Some(tokenizer) = accepted(Tokenizer::from_json(data, "fuzz")) else { return };
    for text in ["Hello, 12 wörld!\n", "", "<s> 你好 \u{1f600}\u{0}"] {
        if let Some(ids) = accepted(tokenizer.encode(text)) {
            accepted(tokenizer.decode(&ids, true));
        }
        accepted(tokenizer.encode_with_special(text));
    }
    accepted(tokenizer.decode(&[0, 1, u32::MAX], false));
}

/// Any text as a chat template: compiled, and two conversations rendered.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let named = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let Some(template) = accepted(ChatTemplate::compile(source, "fuzz", &named)) else { return };
    let messages = [Message::system("Be brief."), Message::user("1 + 1?"), Message::assistant("2")];
    accepted(template.render(&messages, false));
    accepted(template.render(&messages[1..2], true));
}

/// Any bytes as an `adapter_config.json`: read, and its patterns applied.
pub fn adapter_config(data: &[u8]) {
    let Some(value) = accepted(json::parse("fuzz", data)) else { return };
    let Some(config) = accepted(PeftConfig::from_json("fuzz", &value)) else { return };
    for module in ["model.layers.11.self_attn.q_proj", "lm_head", ""] {
        accepted(config.covers(module));
        accepted(config.rank_of(module));
        accepted(config.scale_of(module));
    }
}

/// Any bytes as the parts of a weight in bitsandbytes' 4-bit format, in a sound safetensors file: the quantisation state
/// up to the first zero byte, then one byte for what parts there are and two for how many scales, then the content.
pub fn bitsandbytes(data: &[u8]) {
    let mut halves = data.splitn(2, |byte| *byte == 0);
    let (state, rest) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    let [parts, scales, nested_scales, content @ ..] = rest else { return };
    let (is_nested, own_table) = (parts & 1 == 1, parts & 2 == 2);
    let mut content = content.iter().copied();
    let mut take = |bytes: usize| -> Vec<u8> {
        let mut taken: Vec<u8> = content.by_ref().take(bytes).collect();
        taken.resize(bytes, 0);
        taken
    };
    let count = usize::from(*scales).max(1);
    let mut tensors: Vec<(&str, &str, Vec<u8>)> = vec![match is_nested {
        true => (".absmax", "U8", take(count)),
        false => (".absmax", "F32", take(4 * count)),
    }];
    let table = nf4::CODE.iter().flat_map(|value| value.to_le_bytes());
    tensors.push((".quant_map", "F32", if own_table { take(64) } else { table.collect() }));
    if is_nested {
        tensors.push((".nested_absmax", "F32", take(4 * usize::from(*nested_scales).max(1))));
        tensors.push((".nested_quant_map", "F32", take(1024)));
    }
    tensors.push((".quant_state.bitsandbytes__nf4", "U8", if state.is_empty() { vec![b'{'] } else { state.to_vec() }));
    tensors.push(("", "U8", take(if parts & 4 == 4 { 65 } else { 64 })));
    let (mut header, mut end) = (Vec::new(), 0);
    for (suffix, dtype, bytes) in &tensors {
        let (begin, size) = (end, if *dtype == "F32" { bytes.len() / 4 } else { bytes.len() });
        end += bytes.len();
        header.push(format!(
            "\"w.weight{suffix}\":{{\"dtype\":\"{dtype}\",\"shape\":[{size}],\"data_offsets\":[{begin},{end}]}}"
        ));
    }
    let header = format!("{{{}}}", header.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(tensors.iter().flat_map(|(_, _, bytes)| bytes));
    let file = SafeTensorsFile::from_bytes("fuzz", Bytes::from(file)).expect("made sound");
    weight(&file, "w.weight");
}

/// Any bytes as a zip archive: two members looked for and decompressed as far as 1 MiB.
pub fn zip(data: &[u8]) {
    for member in ["package/model.gguf", "a"] {
        if let Ok(content) = open_member(Cursor::new(data), member) {
            let _ = io::copy(&mut content.take(1 << 20), &mut io::sink());
        }
    }
}

/// Any bytes as a CSV file of examples.
pub fn csv(data: &[u8]) {
    accepted(tables::parse_csv(data.to_vec(), "fuzz", None));
}

/// Any bytes as a Parquet file of examples.
pub fn parquet(data: &[u8]) {
    accepted(tables::parse_parquet(data.to_vec(), "fuzz", None));
}
