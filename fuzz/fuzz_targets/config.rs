//! Any bytes as a config.json: parsed strictly, checked, and written back for transformers.

#![no_main]

use burnish::files::{Dtype, json};
use burnish::model::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = json::parse("fuzz", data) else { return };
    let Ok(config) = ModelConfig::from_json("fuzz", &value, Some(&value)) else { return };
    let written = config.to_hf_json(Dtype::Bf16);
    assert_eq!(ModelConfig::from_json("fuzz", &written, None).expect("what was valid stays so"), config);
});
