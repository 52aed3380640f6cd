//! Any bytes as the parts of a 4-bit weight.

#![no_main]

#[allow(dead_code)]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| readers::bitsandbytes(data));
