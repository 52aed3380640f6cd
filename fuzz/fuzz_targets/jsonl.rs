//! Any bytes as a JSONL data file, and as a JSON list of examples.

#![no_main]

use burnish::data::jsonl;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(error) = jsonl::parse(data, "fuzz", None) {
        assert_eq!(error.exit_code(), 2);
    }
    if let Err(error) = jsonl::parse_list(data, "fuzz", None) {
        assert_eq!(error.exit_code(), 2);
    }
});
