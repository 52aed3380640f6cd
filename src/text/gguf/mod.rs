//! The vocabulary in a GGUF file's metadata, and its form as a `tokenizer.json` ([`read`], [`write`]).
//!
//! Keys: `tokenizer.ggml.*` (ggml `docs/gguf.md`). Two models: `gpt2`, byte-level BPE with its merges, and
//! `llama`, SentencePiece BPE, whose merges follow from the scores. The split of text before the merges stands
//! in the file only as a name (`tokenizer.ggml.pre`); the patterns behind the names are those of llama.cpp's
//! `llama-vocab.cpp` and of transformers' `gguf_tokenizer_mapping.py`.

mod probes;
mod read;
mod write;

pub use write::GgufVocabulary;

use serde_json::{Value, json};

/// `tokenizer.ggml.token_type` (llama.cpp `llama_token_type`).
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// The split of text before byte-level BPE merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    /// GPT-2's own pattern.
    Gpt2,
    /// Every digit alone, and GPT-2's pattern between them.
    DigitsThenGpt2,
    /// A pattern of its own.
    Pattern(&'static str),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One kind of pre-tokenizer.
struct PreTokenizer {
    name: &'static str,
    split: Split,
    /// A word that is in the vocabulary is taken whole, without going through the merges.
    whole_words: bool,
    /// Whether the beginning-of-text token is added where the file does not say.
    adds_bos: bool,
}

/// The names of `tokenizer.ggml.pre` that the supported architectures use.
///
/// `smollm` is as in llama.cpp and in the models' own `tokenizer.json`. transformers 5.23 does not know the name
/// when it reads a GGUF file and takes GPT-2's pattern: there, spaces and line ends before a digit come out
/// differently (docs/tokenizers.md).
const PRE_TOKENIZERS: [PreTokenizer; 15] = [
    pre("default", Split::Gpt2, false, false),
    pre("gpt-2", Split::Gpt2, false, false),
    pre("smollm", Split::DigitsThenGpt2, false, false),
    pre("llama3", Split::Pattern(LLAMA3), true, true),
    pre("llama-v3", Split::Pattern(LLAMA3), true, true),
    pre("llama-bpe", Split::Pattern(LLAMA3), true, true),
    pre("falcon3", Split::Pattern(LLAMA3), true, true),
    pre("lfm2", Split::Pattern(LLAMA3), true, true),
    pre("smaug-bpe", Split::Pattern(LLAMA3), false, false),
    pre("dbrx", Split::Pattern(LLAMA3), false, false),
    pre("qwen2", Split::Pattern(QWEN2), false, false),
    pre("deepseek-r1-qwen", Split::Pattern(QWEN2), false, false),
    pre("megrez", Split::Pattern(QWEN2), false, false),
    pre("stablelm2", Split::Pattern(QWEN2), false, false),
    pre("tekken", Split::Pattern(TEKKEN), true, true),
];

const fn pre(name: &'static str, split: Split, whole_words: bool, adds_bos: bool) -> PreTokenizer {
    PreTokenizer { name, split, whole_words, adds_bos }
}

/// The step of a `tokenizer.json` that puts bytes into letters; `use_regex` splits by GPT-2's pattern before.
fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex})
}

impl Split {
    /// The pre-tokenizer of a `tokenizer.json` that splits so.
    fn pre_tokenizer(self) -> Value {
        match self {
            Self::Gpt2 => byte_level(true),
            Self::DigitsThenGpt2 => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                byte_level(true),
            ]}),
            Self::Pattern(pattern) => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                byte_level(false),
            ]}),
        }
    }
}
