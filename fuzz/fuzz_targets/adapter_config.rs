//! Any bytes as an `adapter_config.json`.

#![no_main]

#[allow(dead_code)]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| readers::adapter_config(data));
