//! Any bytes as a JSONL data file, and as a JSON list of examples.

#![no_main]

#[allow(dead_code)]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| readers::data_rows(data));
