//! Checks of a `tokenizer.json` before the `tokenizers` crate sees it.
//!
//! `tokenizers` 0.23 panics on merges outside the vocabulary and on broken character maps, and a padding
//! strategy can make it allocate gigabytes. Truncation, padding and the post-processor are taken out: this
//! crate decides itself what goes around a text.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Larger ids would make tables as large as the largest id; no vocabulary comes near.
const MAX_ID: u64 = 10_000_000;
const MAX_MERGES: usize = 4_000_000;
const MAX_ADDED_TOKENS: usize = 200_000;
const MAX_TOKEN_BYTES: usize = 64 * 1024;
const MAX_STEPS: usize = 64;
const MAX_PATTERN_BYTES: usize = 16 * 1024;
const MAX_CHARSMAP_BYTES: usize = 4 << 20;
/// The largest factor by which all replacements together may lengthen a text.
const MAX_EXPANSION: usize = 1024;

/// Checks `tokenizer` and takes out what this crate does itself. `place` is the file it came from.
pub fn checked(place: &str, tokenizer: &mut Value) -> Result<()> {
    let Some(fields) = tokenizer.as_object_mut() else {
        return Err(Error::input(place, "expected a JSON object with `model`, `pre_tokenizer`, …"));
    };
    for field in ["truncation", "padding", "post_processor"] {
        fields.insert(field.into(), Value::Null);
    }
    let specials = added_tokens(place, fields)?;
    for field in ["normalizer", "pre_tokenizer", "decoder"] {
        if let Some(value) = fields.get(field) {
            steps(place, field, value)?;
        }
    }
    let Some(Value::Object(model)) = fields.get_mut("model") else {
        return Err(Error::input(place, "`model` is missing or not an object"));
    };
    check_model(place, model, &specials)
}

/// Checks the added tokens; returns the text of the special ones.
///
/// Special tokens are matched in the text as typed (`normalized: false`): a match after normalising would
/// let text that only resembles a control token become one.
fn added_tokens(place: &str, fields: &mut Map<String, Value>) -> Result<HashSet<String>> {
    let tokens = match fields.get_mut("added_tokens") {
        None | Some(Value::Null) => return Ok(HashSet::new()),
        Some(Value::Array(tokens)) => tokens,
        Some(_) => return Err(Error::input(place, "`added_tokens` is not a list")),
    };
    if tokens.len() > MAX_ADDED_TOKENS {
        let message = format!("{} added tokens; at most {MAX_ADDED_TOKENS} are supported", tokens.len());
        return Err(Error::input(place, message));
    }
    let mut seen = HashSet::new();
    let mut specials = HashSet::new();
    for (index, token) in tokens.iter_mut().enumerate() {
        let at = |message: &str| Error::input(place, format!("`added_tokens[{index}]`: {message}"));
        let Some(token) = token.as_object_mut() else { return Err(at("not an object")) };
        let content = token.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
        if content.is_empty() || content.len() > MAX_TOKEN_BYTES {
            return Err(at("`content` must be a text of 1 to 65,536 bytes"));
        }
        if token.get("id").and_then(Value::as_u64).is_none_or(|id| id > MAX_ID) {
            return Err(at("`id` must be an integer from 0 to 10,000,000"));
        }
        if !seen.insert(content.clone()) {
            return Err(at(&format!("{content:?} stands twice")));
        }
        for flag in ["single_word", "lstrip", "rstrip", "normalized", "special"] {
            if !matches!(token.get(flag), None | Some(Value::Bool(_))) {
                return Err(at(&format!("`{flag}` must be true or false")));
            }
            token.entry(flag).or_insert(json!(false));
        }
        if token["special"] == json!(true) {
            token.insert("normalized".into(), json!(false));
            specials.insert(content);
        }
    }
    Ok(specials)
}

/// Checks a normalizer, pre-tokenizer or decoder with everything inside it.
fn steps(place: &str, field: &str, root: &Value) -> Result<()> {
    let mut pending = vec![root];
    let mut count = 0;
    let mut expansion = 1usize;
    while let Some(step) = pending.pop() {
        count += 1;
        if count > MAX_STEPS {
            return Err(Error::input(place, format!("`{field}` has more than {MAX_STEPS} steps")));
        }
        if step.is_null() {
            continue;
        }
        let at = |message: &str| Error::input(place, format!("`{field}`: {message}"));
        let Some(step) = step.as_object() else { return Err(at("a step is not an object")) };
        for list in ["normalizers", "pretokenizers", "decoders"] {
            if let Some(inner) = step.get(list) {
                pending.extend(inner.as_array().ok_or_else(|| at("a sequence is not a list"))?);
            }
        }
        let pattern = pattern_of(step);
        if pattern.is_some_and(|pattern| pattern.len() > MAX_PATTERN_BYTES) {
            return Err(at("a pattern is longer than 16 KiB"));
        }
        match step.get("type").and_then(Value::as_str) {
            Some("Precompiled") => charsmap(step).map_err(|message| at(&message))?,
            Some("FixedLength") if step.get("length").is_some_and(|length| *length == json!(0)) => {
                return Err(at("FixedLength of 0"));
            }
            // A step before the text only ever lengthens it by what it writes for what it finds.
            Some("Replace" | "Prepend") if field == "normalizer" => {
                let written =
                    ["content", "prepend"].iter().filter_map(|key| step.get(*key)?.as_str()).map(str::len).sum();
                let is_text = step.get("pattern").is_some_and(|pattern| pattern.get("String").is_some());
                let found = if is_text { pattern.map_or(1, str::len).max(1) } else { 1 };
                let factor = usize::max(written, 1).div_ceil(found).saturating_add(usize::from(!is_text));
                expansion = expansion.saturating_mul(factor);
                if expansion > MAX_EXPANSION {
                    return Err(at("its replacements could make a text more than 1,024 times as long"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The pattern of a step: `{"Regex": …}` or `{"String": …}`.
fn pattern_of(step: &Map<String, Value>) -> Option<&str> {
    let pattern = step.get("pattern")?;
    pattern.get("Regex").or_else(|| pattern.get("String"))?.as_str()
}

/// Checks a SentencePiece character map, which upstream follows without looking at bounds.
///
/// Layout (sentencepiece's `normalizer.cc`): u32 bytes of trie, the trie as u32 units of a double array,
/// then the replacement texts, each ended by a zero byte.
fn charsmap(step: &Map<String, Value>) -> Result<(), String> {
    let Some(text) = step.get("precompiled_charsmap").and_then(Value::as_str) else {
        return Err("`precompiled_charsmap` is not a text".into());
    };
    if text.len() > MAX_CHARSMAP_BYTES {
        return Err("`precompiled_charsmap` is larger than 4 MiB".into());
    }
    let bytes = base64(text).ok_or("`precompiled_charsmap` is not base64")?;
    let broken = |what: &str| format!("`precompiled_charsmap` is broken: {what}");
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| broken("shorter than its header"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
        return Err(broken("its trie does not fit"));
    }
    let (trie, replacements) = rest.split_at(size);
    let replacements = str::from_utf8(replacements).map_err(|_| broken("its replacements are not UTF-8"))?;
    let units: Vec<usize> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    check_trie(&units, replacements).map_err(broken)
}

/// Follows every edge of a double-array trie (Darts-clone's unit layout) and checks that it stays inside.
fn check_trie(units: &[usize], replacements: &str) -> Result<(), &'static str> {
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let mut visited = vec![false; units.len()];
    let mut pending = vec![offset(*units.first().ok_or("its trie is empty")?)];
    while let Some(node) = pending.pop() {
        // The children of a node are its position XOR a byte: they lie in one block of 256.
        if node | 0xFF >= units.len() {
            return Err("its trie points outside");
        }
        if std::mem::replace(&mut visited[node], true) {
            continue;
        }
        for byte in 1..=255usize {
            let unit = units[node ^ byte];
            if unit & ((1 << 31) | 0xFF) != byte {
                continue;
            }
            let child = (node ^ byte) ^ offset(unit);
            if child >= units.len() {
                return Err("its trie points outside");
            }
            let value = units[child] & ((1 << 31) - 1);
            if unit >> 8 & 1 == 1 && !replacements.is_char_boundary(value) {
                return Err("a replacement starts outside the texts or inside a character");
            }
            pending.push(child);
        }
    }
    Ok(())
}

/// Decodes standard base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0u32, 0);
    for symbol in text.bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

fn check_model(place: &str, model: &mut Map<String, Value>, specials: &HashSet<String>) -> Result<()> {
    if !model.contains_key("type") {
        // Files of before 2020 leave it out.
        let inferred = match (model.contains_key("merges"), model.get("vocab")) {
            (true, _) => "BPE",
            (false, Some(Value::Array(_))) => "Unigram",
            _ => return Err(Error::input(place, "`model.type` is missing")),
        };
        // First in the object, where upstream looks for it.
        let fields = std::mem::take(model);
        model.insert("type".into(), json!(inferred));
        model.extend(fields);
    }
    match model.get("type").and_then(Value::as_str).unwrap_or_default() {
        "BPE" => check_bpe(place, model, specials),
        "Unigram" => check_unigram(place, model),
        "WordLevel" | "WordPiece" => vocabulary(place, model).map(drop),
        other => Err(Error::input(
            place,
            format!("`model.type` {other:?} is not supported; supported: BPE, Unigram, WordLevel, WordPiece"),
        )),
    }
}

/// The vocabulary `{"text": id}` of a model, checked; and that `unk_token` is in it.
fn vocabulary<'a>(place: &str, model: &'a Map<String, Value>) -> Result<HashMap<&'a str, u64>> {
    let Some(Value::Object(entries)) = model.get("vocab") else {
        return Err(Error::input(place, "`model.vocab` is missing or not an object of token: id"));
    };
    let mut vocabulary = HashMap::with_capacity(entries.len());
    let mut ids = HashSet::with_capacity(entries.len());
    for (token, id) in entries {
        let Some(id) = id.as_u64().filter(|id| *id <= MAX_ID) else {
            let message = format!("`model.vocab`: {token:?} has id {id}; expected an integer from 0 to {MAX_ID}");
            return Err(Error::input(place, message));
        };
        if !ids.insert(id) {
            return Err(Error::input(place, format!("`model.vocab`: id {id} ({token:?}) stands twice")));
        }
        vocabulary.insert(token.as_str(), id);
    }
    if let Some(unknown) = model.get("unk_token").filter(|unknown| !unknown.is_null())
        && !unknown.as_str().is_some_and(|unknown| vocabulary.contains_key(unknown))
    {
        return Err(Error::input(place, format!("`model.unk_token` {unknown} is not in the vocabulary")));
    }
    Ok(vocabulary)
}

/// Checks vocabulary, merges and dropout, and drops merges whose product is a special token: ordinary text
/// that spells a control token must never become one.
fn check_bpe(place: &str, model: &mut Map<String, Value>, specials: &HashSet<String>) -> Result<()> {
    match model.get("dropout") {
        None | Some(Value::Null) => {}
        Some(value) if value.as_f64() == Some(0.0) => {}
        Some(value) => {
            let message = format!("`model.dropout` is {value}: the same text would give other ids each time");
            return Err(Error::input(place, message).hint("set it to null"));
        }
    }
    let merges = match model.remove("merges") {
        Some(Value::Array(merges)) => merges,
        None => Vec::new(),
        Some(_) => return Err(Error::input(place, "`model.merges` is not a list")),
    };
    if merges.len() > MAX_MERGES {
        let message = format!("{} merges; at most {MAX_MERGES} are supported", merges.len());
        return Err(Error::input(place, message));
    }
    let vocabulary = vocabulary(place, model)?;
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    let mut kept = Vec::with_capacity(merges.len());
    for (index, merge) in merges.into_iter().enumerate() {
        let at = |message: String| Error::input(place, format!("`model.merges[{index}]`: {message}"));
        let Some((left, right)) = merge_parts(&merge) else {
            return Err(at(format!("{merge} is not a pair of tokens")));
        };
        let Some(appended) = right.strip_prefix(prefix) else {
            return Err(at(format!("{right:?} lacks the prefix {prefix:?} of continuing tokens")));
        };
        let product = format!("{left}{appended}");
        if let Some(absent) = [left, right, &product].into_iter().find(|token| !vocabulary.contains_key(token)) {
            return Err(at(format!("{absent:?} is not in the vocabulary")));
        }
        if !specials.contains(&product) {
            kept.push(json!([left, right]));
        }
    }
    model.insert("merges".into(), Value::Array(kept));
    Ok(())
}

/// `"left right"` or `["left", "right"]`.
fn merge_parts(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
        Value::Array(parts) => match parts.as_slice() {
            [left, right] => Some((left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}

fn check_unigram(place: &str, model: &Map<String, Value>) -> Result<()> {
    let Some(Value::Array(pieces)) = model.get("vocab") else {
        return Err(Error::input(place, "`model.vocab` is missing or not a list of [piece, score]"));
    };
    if pieces.is_empty() || pieces.len() as u64 > MAX_ID {
        return Err(Error::input(place, format!("`model.vocab` has {} pieces", pieces.len())));
    }
    for (index, piece) in pieces.iter().enumerate() {
        let well_formed = piece.as_array().is_some_and(
            |piece| matches!(piece.as_slice(), [Value::String(_), score] if score.as_f64().is_some_and(f64::is_finite)),
        );
        if !well_formed {
            let message = format!("`model.vocab[{index}]`: {piece} is not [piece, finite score]");
            return Err(Error::input(place, message));
        }
    }
    match model.get("unk_id") {
        None | Some(Value::Null) => Ok(()),
        Some(id) if id.as_u64().is_some_and(|id| id < pieces.len() as u64) => Ok(()),
        Some(id) => Err(Error::input(place, format!("`model.unk_id` {id} is outside the {} pieces", pieces.len()))),
    }
}
