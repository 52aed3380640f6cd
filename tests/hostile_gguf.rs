//! Hostile and broken GGUF files: every class is a named error with exit code 2, quickly.

use std::time::{Duration, Instant};

use burnish::files::Bytes;
use burnish::files::gguf::Gguf;
use burnish::model::BaseFiles;

use crate::hostile_weights::{fixture, refused};

/// A GGUF file under construction.
#[derive(Clone)]
struct Builder {
    version: u32,
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: usize,
}

impl Builder {
    fn new() -> Self {
        Self { version: 3, metadata: Vec::new(), metadata_count: 0, tensors: Vec::new(), tensor_count: 0, data: 0 }
    }

    fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text].concat()
    }

    /// A metadata entry: key, type, and the value's bytes.
    fn entry(mut self, key: &[u8], kind: u32, value: &[u8]) -> Self {
        self.metadata.extend(Self::string(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.metadata_count += 1;
        self
    }

    fn array(self, key: &str, kind: u32, count: u64, items: &[u8]) -> Self {
        let value = [&kind.to_le_bytes(), &count.to_le_bytes()[..], items].concat();
        self.entry(key.as_bytes(), 9, &value)
    }

    /// A tensor, dimensions innermost first.
    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend(Self::string(name.as_bytes()));
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = bytes;
        self
    }

    fn build(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.metadata_count.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }
}

fn refused_gguf(what: &str, expected: &[&str], bytes: Vec<u8>) {
    refused(what, expected, || Gguf::from_bytes("file.gguf", Bytes::from(bytes)));
}

#[test]
fn gguf_magic_and_versions() {
    let valid = Builder::new().tensor("a", &[8], 0, 0).data(32);
    assert!(Gguf::from_bytes("file.gguf", Bytes::from(valid.build())).is_ok());
    for (magic, expected) in [
        (b"XXXX", "expected the magic \"GGUF\""),
        (b"tjgg", "from before GGUF"),
        (b"lmgg", "from before GGUF"),
        (b"GGJT", "from before GGUF"),
        (b"FUGG", "big-endian"),
    ] {
        let mut bytes = valid.build();
        bytes[..4].copy_from_slice(magic);
        refused_gguf("magic", &[expected], bytes);
    }
    for (version, expected) in
        [(0x0300_0000, "big-endian"), (0, "version 0"), (1, "version 1"), (4, "version 4"), (u32::MAX, "version")]
    {
        refused_gguf("version", &[expected], Builder { version, ..valid.clone() }.build());
    }
    refused_gguf("empty", &["is empty"], Vec::new());
    refused_gguf("no counts", &["missing in the number of tensors"], valid.build()[..10].to_vec());
}

#[test]
fn gguf_counts_and_strings() {
    let valid = Builder::new().entry(b"key", 4, &7u32.to_le_bytes());
    let huge = Builder { tensor_count: 1 << 62, ..valid.clone() };
    refused_gguf("tensors", &["tensors, above the limit"], huge.build());
    let huge = Builder { metadata_count: 1 << 62, ..valid.clone() };
    refused_gguf("metadata", &["metadata entries, above the limit"], huge.build());
    let mut endless = valid.build();
    endless[24..32].copy_from_slice(&(1u64 << 63).to_le_bytes());
    refused_gguf("key of 2^63 bytes", &["metadata key 0 has 9223372036854775808 bytes"], endless);
    refused_gguf("empty key", &["key 0 is empty"], Builder::new().entry(b"", 4, &[0; 4]).build());
    refused_gguf("long key", &["above the limit"], Builder::new().entry(&[b'k'; 65_536], 4, &[0; 4]).build());
    refused_gguf("key of bytes", &["not UTF-8"], Builder::new().entry(b"\xff\xfe", 4, &[0; 4]).build());
    refused_gguf("key twice", &["`key` stands twice"], valid.clone().entry(b"key", 4, &[0; 4]).build());
    let text = Builder::string(b"\xc3");
    refused_gguf("value of bytes", &["`name` is not UTF-8"], Builder::new().entry(b"name", 8, &text).build());
    refused_gguf("type 13", &["unknown metadata type 13"], Builder::new().entry(b"key", 13, &[0; 8]).build());
    refused_gguf("bool 2", &["2 where a boolean"], Builder::new().entry(b"key", 7, &[2]).build());
    let long = (1u64 << 40).to_le_bytes();
    refused_gguf("string of 2^40", &["above the limit"], Builder::new().entry(b"key", 8, &long).build());
}

#[test]
fn gguf_arrays() {
    let array = |kind, count: u64, items: &[u8]| Builder::new().array("list", kind, count, items).build();
    refused_gguf("2^40 items", &["`list` has 1099511627776 items"], array(0, 1 << 40, &[]));
    refused_gguf("2^64 items", &["`list` has"], array(10, u64::MAX, &[]));
    refused_gguf("a million items missing", &["missing in `list`"], array(10, 1_000_000, &[0; 8]));
    refused_gguf("unknown type", &["unknown type 99"], array(99, 1, &[0; 8]));
    refused_gguf("bool 2", &["2 where a boolean"], array(7, 3, &[0, 1, 2]));
    let header = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat();
    refused_gguf("deep", &["nests arrays more than 4 deep"], array(9, 1, &header.repeat(100_000)));
    let item = Builder::string(b"\xff");
    refused_gguf("item of bytes", &["an item of `list` is not UTF-8"], array(8, 1, &item));
    // Many arrays, each below the limit.
    let million = vec![0; 1 << 20];
    let many = (0..20).fold(Builder::new(), |b, i| b.array(&format!("list{i}"), 0, 1 << 20, &million));
    refused_gguf("many arrays", &["in all arrays together"], many.build());
}

#[test]
fn gguf_alignment() {
    let with = |kind, value: &[u8]| {
        Builder::new().entry(b"general.alignment", kind, value).tensor("a", &[8], 0, 0).data(1 << 17).build()
    };
    for alignment in [0u32, 3, 4, 48, 1 << 17, 1 << 31, u32::MAX] {
        refused_gguf("alignment", &["expected a power of two"], with(4, &alignment.to_le_bytes()));
    }
    refused_gguf("i32", &["of type i32; expected u32"], with(5, &32i32.to_le_bytes()));
    refused_gguf("string", &["of type string; expected u32"], with(8, &Builder::string(b"32")));
    assert!(Gguf::from_bytes("file.gguf", Bytes::from(with(4, &64u32.to_le_bytes()))).is_ok());
}

#[test]
fn gguf_tensors() {
    let one = |dimensions: &[u64], kind, offset| Builder::new().tensor("a", dimensions, kind, offset).data(64).build();
    refused_gguf("type", &["tensor a", "unknown type 99"], one(&[8], 99, 0));
    refused_gguf("negative type", &["unknown type 4294967295"], one(&[8], u32::MAX, 0));
    refused_gguf("removed type", &["Q4_2 (removed"], one(&[32], 4, 0));
    refused_gguf("IQ4_XS", &["IQ4_XS, which is not supported", "supported are F32"], one(&[256], 23, 0));
    refused_gguf("row of 255", &["rows of 255 values; Q4_K needs a multiple of 256"], one(&[255, 256], 12, 0));
    refused_gguf("no dimensions", &["has 0 dimensions"], one(&[], 0, 0));
    refused_gguf("five dimensions", &["has 5 dimensions"], one(&[1; 5], 0, 0));
    refused_gguf("dimension 0", &["dimension of 0"], one(&[8, 0], 0, 0));
    refused_gguf("overflow", &["impossible shape"], one(&[1 << 33, 1 << 33], 0, 0));
    refused_gguf("offset", &["not a multiple of the alignment"], one(&[8], 0, 8));
    refused_gguf("offset at the end", &["tensor a", "impossible offset"], one(&[8], 0, u64::MAX - 31));
    refused_gguf("beyond the file", &["bytes are missing before a ends"], one(&[8], 0, 1 << 40));
    refused_gguf("cut", &["1 bytes are missing"], Builder::new().tensor("a", &[8], 0, 0).data(31).build());
    refused_gguf("no name", &["empty name"], Builder::new().tensor("", &[8], 0, 0).data(32).build());
    let twice = Builder::new().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64);
    refused_gguf("twice", &["tensor a: stands twice"], twice.build());
    let over = Builder::new().tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(64);
    refused_gguf("overlap", &["tensor b", "overlaps that of a"], over.build());
}

#[test]
fn gguf_with_a_hole_of_a_terabyte_is_not_read_through() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sparse.gguf");
    std::fs::write(&path, Builder::new().tensor("a", &[1 << 38], 0, 0).build()).expect("written");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    if file.set_len((1 << 40) + 4096).is_err() {
        return; // this file system has no files of that size
    }
    let start = Instant::now();
    assert_eq!(Gguf::open(&path).expect("valid").shape("a"), Some([1 << 38].as_slice()));
    refused("no model", &["architecture"], || BaseFiles::open(&path));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn gguf_vocabularies() {
    let strings = |tokens: &[&str]| tokens.iter().flat_map(|t| Builder::string(t.as_bytes())).collect::<Vec<u8>>();
    let vocabulary = |tokens: &[&str], types: &[i32]| {
        let types: Vec<u8> = types.iter().flat_map(|kind| kind.to_le_bytes()).collect();
        Builder::new().array("tokenizer.ggml.tokens", 8, tokens.len() as u64, &strings(tokens)).array(
            "tokenizer.ggml.token_type",
            5,
            types.len() as u64 / 4,
            &types,
        )
    };
    assert!(Gguf::from_bytes("f", Bytes::from(vocabulary(&["<0x0A>", "<0x-1>"], &[6, 1]).build())).is_ok());
    refused_gguf("types", &["`tokenizer.ggml.token_type` has 1 items for 2"], vocabulary(&["a", "b"], &[1]).build());
    let scores = vocabulary(&["a"], &[1]).array("tokenizer.ggml.scores", 6, 2, &[0; 8]);
    refused_gguf("scores", &["`tokenizer.ggml.scores` has 2 items for 1"], scores.build());
    refused_gguf("empty token", &["token 1 is empty"], vocabulary(&["a", ""], &[1, 1]).build());
    for token in ["<0x-1>", "<0xZZ>", "<0x100>", "0A", "<0x+1>"] {
        refused_gguf(token, &["byte token", token], vocabulary(&[token], &[6]).build());
    }
    let gigabyte = Builder::new().array("tokenizer.ggml.tokens", 8, 1, &(1u64 << 30).to_le_bytes());
    refused_gguf("token of 1 GiB", &["above the limit of 65535"], gigabyte.build());
    let numbers = Builder::new().array("tokenizer.ggml.tokens", 4, 1, &[0; 4]);
    refused_gguf("numbers", &["not an array of strings"], numbers.build());
}

#[test]
fn gguf_models() {
    let whole = std::fs::read(fixture("blocks/tiny.gguf")).expect("a fixture");
    let changed = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let mut bytes = whole.clone();
        let at = bytes.windows(from.len()).position(|window| window == from).expect("there");
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let read = |bytes: Vec<u8>| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).expect("written");
        BaseFiles::open(&path)
    };
    refused("architecture", &["mamba", "LlamaForCausalLM", "qwen2"], || read(changed(b"llama", b"mamba")));
    refused("missing key", &["llama.context_length: is missing"], || {
        read(changed(b"context_length", b"context_strong"))
    });
    refused("tensor", &["blk.0.attn_q.weight: is missing", "blk.0.attn_x.weight: is not part"], || {
        read(changed(b"blk.0.attn_q", b"blk.0.attn_x"))
    });
    for length in [whole.len() - 1, whole.len() / 2, 100, 30] {
        refused("cut", &["missing"], || read(whole[..length].to_vec()));
    }
    // The last projection's blocks come last but for the norm: an infinite scale names its tensor.
    let base = BaseFiles::open(&fixture("blocks/tiny.gguf")).expect("a base");
    let down = base.tensor("model.layers.1.mlp.down_proj.weight").expect("a tensor").bytes;
    let at = whole.windows(down.len()).position(|window| window == &down[..]).expect("there");
    let mut infinite = whole.clone();
    infinite[at..at + 2].copy_from_slice(&[0x00, 0x7c]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, infinite).expect("written");
    let base = BaseFiles::open(&path).expect("its header is fine");
    refused("scale", &["blk.1.ffn_down.weight", "block scale 0 is infinite"], || {
        base.tensor("model.layers.1.mlp.down_proj.weight")
    });
}
