//! Every fuzz target on a stable compiler: seeds, and mutations of them that depend on nothing but their number.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[path = "../fuzz/readers.rs"]
mod readers;

/// Larger seeds only make each run slower.
const MAX_SEED_BYTES: usize = 64 << 10;
/// The longest time of a run, whatever the input: a template or a text has a deadline of its own.
const SLOW: Duration = Duration::from_secs(20);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A linear congruential generator with the output permutation of PCG-XSH-RR (O'Neill 2014): small, and the same on every
/// machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        let state = self.0;
        self.0 = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((((state >> 18) ^ state) >> 27) as u32).rotate_right((state >> 59) as u32)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }
}

/// The mutation of a seed with this number: one to four small changes.
fn mutated(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    const NUMBERS: [u64; 8] =
        [0, 1, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_ffff_ffff];
    const WORDS: [&[u8]; 14] = [
        b"\"",
        b"{",
        b"[",
        b"]",
        b",",
        b"null",
        b"-1",
        b"1e999",
        b"\\ud800",
        b"\xff\xfe",
        b"\0",
        b"18446744073709551616",
        b"{{",
        b"%}",
    ];
    let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635);
    random.next();
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            5 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)];
                for (byte, value) in bytes.iter_mut().skip(at).zip(&number[..width]) {
                    *byte = *value;
                }
            }
            6 => {
                let end = (at + random.below(64)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let end = (from + random.below(64)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
        }
    }
    bytes
}

/// The files below `tests/fixtures` with one of these endings.
fn fixtures(folder: &str, endings: &[&str]) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut folders = vec![root().join("tests/fixtures").join(folder)];
    while let Some(folder) = folders.pop() {
        let mut paths: Vec<_> =
            fs::read_dir(&folder).expect("a folder").map(|one| one.expect("an entry").path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                seeds.extend(Some(fs::read(&path).expect("read")).filter(|bytes| bytes.len() <= MAX_SEED_BYTES));
            }
        }
    }
    seeds
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// A zip archive of one stored member.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let size = (content.len() as u32).to_le_bytes();
    let common = [&[20, 0, 0, 0, 0, 0][..], &[0; 8], &size, &size, &(name.len() as u16).to_le_bytes()].concat();
    let local = [b"PK\x03\x04", &common[..], &[0, 0], name.as_bytes(), content].concat();
    let entry = [b"PK\x01\x02\x14\x00", &common[..], &[0; 16], name.as_bytes()].concat();
    let sizes = [(entry.len() as u32).to_le_bytes(), (local.len() as u32).to_le_bytes()].concat();
    [&local[..], &entry, b"PK\x05\x06\0\0\0\0\x01\0\x01\0", &sizes, &[0, 0]].concat()
}

/// The seeds of a reader.
fn seeds(reader: &str) -> Vec<Vec<u8>> {
    match reader {
        "safetensors" => fixtures("adapters", &["adapter_model.safetensors"]),
        "gguf" => fixtures("text", &[".gguf"]),
        "config" => fixtures("models", &["config.json"]),
        "jsonl" => texts(&[
            "{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"prompt\": \"\u{e9}\", \"completion\": \"\"}\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": [{\"type\": \"text\", \"text\": \"b\"}]}], \"tools\": []}",
            "{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\", \"weight\": 0}]}\r\n",
            "[{\"instruction\": \"a\", \"input\": \"\", \"output\": \"b\", \"system\": \"c\", \"history\": [[\"d\", \"e\"]]}]",
            "{\"text\": \"all of it\"}",
        ]),
        "recipe" => ["quickstart", "wikisql", "qlora-nf4"]
            .iter()
            .map(|name| root().join(format!("recipes/{name}.toml")))
            .map(|path| fs::read(path).expect("a recipe"))
            .collect(),
        "tokenizer" => fixtures("text/bytelevel", &["tokenizer.json"]),
        "template" => {
            let mut seeds = fixtures("text/bytelevel", &[".jinja"]);
            let templates = fs::read(root().join("tests/fixtures/text/templates.json")).expect("a fixture");
            let templates: serde_json::Value = serde_json::from_slice(&templates).expect("JSON");
            let sources = templates.as_array().expect("a list").iter().filter_map(|one| one["template"].as_str());
            seeds.extend(sources.map(|source| source.as_bytes().to_vec()));
            seeds
        }
        "adapter_config" => fixtures("adapters", &["adapter_config.json"]),
        "bitsandbytes" => texts(&[
            "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [2, 64]}\0\0\u{2}\u{1}",
            "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [4, 32], \"nested_blocksize\": 256, \"nested_offset\": 0.1}\0\u{1}\u{2}\u{1}abcdefgh",
        ]),
        "zip" => vec![archive("package/model.gguf", b"content"), archive("a", &[0; 300])],
        "csv" => texts(&[
            "prompt,completion\na,b\n\"c, \"\"d\"\"\",\"e\nf\"\n",
            "\u{feff}instruction,input,output\r\na,,b\r\n",
        ]),
        "parquet" => fixtures("tables", &[".parquet"]),
        other => panic!("no seeds for {other}"),
    }
}

/// Runs a reader on its seeds and their mutations for `BURNISH_FUZZ_SECONDS`, one where that is not set.
fn fuzz(name: &str) {
    let seconds = std::env::var("BURNISH_FUZZ_SECONDS").ok().map_or(1, |text| text.parse().expect("whole seconds"));
    let read = readers::READERS.iter().find(|reader| reader.0 == name).expect("a reader").1;
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let run = |what: &str, bytes: &[u8]| {
        let begin = Instant::now();
        if catch_unwind(AssertUnwindSafe(|| read(bytes))).is_err() {
            panic!("{name}: {what} makes a panic: {}", bytes.escape_ascii());
        }
        assert!(begin.elapsed() < SLOW, "{name}: {what} takes {:?}: {}", begin.elapsed(), bytes.escape_ascii());
    };
    for (index, seed) in seeds.iter().enumerate() {
        run(&format!("seed {index}"), seed);
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut runs = 0u64;
    while Instant::now() < end {
        run(&format!("mutation {runs}"), &mutated(&seeds, runs));
        runs += 1;
    }
    assert!(runs > 0, "{name}: not one mutation in {seconds} s");
    println!("{name}: {runs} mutations of {} seeds", seeds.len());
}

/// A test per reader, so that each is seen and they run side by side.
macro_rules! tests {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        $($(#[$attribute])* #[test] fn $name() { fuzz(stringify!($name)); })*

        #[test]
        fn every_reader_has_a_test_and_a_target() {
            let tests = [$(stringify!($name)),*];
            for (name, _) in readers::READERS {
                assert!(tests.contains(&name), "{name} has no test");
                let target = root().join(format!("fuzz/fuzz_targets/{name}.rs"));
                assert!(target.is_file(), "{} is missing", target.display());
            }
        }
    };
}

tests! {
    safetensors, gguf, config, jsonl, recipe, tokenizer, template, adapter_config, bitsandbytes, zip, csv, parquet,
}

#[test]
fn a_mutation_depends_on_its_number_alone() {
    let seeds = seeds("recipe");
    let of = |number| mutated(&seeds, number);
    assert_eq!(of(7), of(7));
    assert!((0..50).map(of).collect::<std::collections::BTreeSet<_>>().len() > 40, "they differ");
}
