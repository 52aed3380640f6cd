//! The source of a chat template before minijinja compiles it: limits of its size, and what is rewritten in it.
//!
//! minijinja compiles long chains of operators by recursion and in quadratic time, so their length is limited first.

use super::operators;

/// The longest templates of known models have about 25 KB.
const MAX_TEMPLATE_BYTES: usize = 128 * 1024;
/// Operators in one `{{ … }}` or `{% … %}`.
const MAX_CHAIN: usize = 400;
/// Operators in the whole template.
const MAX_OPERATORS: usize = 20_000;
const MAX_ELIFS: usize = 500;

/// The source with a line feed for every line end, as Jinja2 reads it.
pub(super) fn with_line_feeds(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Refuses what minijinja would compile by deep recursion or in minutes.
pub(super) fn check_size(source: &str) -> Result<(), String> {
    if source.len() > MAX_TEMPLATE_BYTES {
        return Err(format!("has {} bytes; at most {MAX_TEMPLATE_BYTES} are supported", source.len()));
    }
    let (mut operators, mut elifs) = (0, 0);
    for piece in pieces(source) {
        let Piece::Tag { tag, .. } = piece else { continue };
        if tag.operators > MAX_CHAIN {
            return Err(format!("chain too long: more than {MAX_CHAIN} operators in one tag"));
        }
        operators += tag.operators;
        elifs += usize::from(tag.is_elif);
    }
    if operators > MAX_OPERATORS || elifs > MAX_ELIFS {
        return Err(format!(
            "chain too long: {operators} operators and {elifs} `elif`; at most {MAX_OPERATORS} and {MAX_ELIFS}"
        ));
    }
    Ok(())
}

/// A part of a template's source, cut where minijinja's lexer cuts it.
enum Piece<'a> {
    /// Text, a comment, or a `raw` block with all that is in it.
    Inert(&'a str),
    /// `text` is the whole tag, `body` what stands between its marks (and their `-` and `+`).
    Tag { text: &'a str, body: &'a str, is_block: bool, tag: Tag },
}

/// The parts of `source`, in order; together they are `source`.
fn pieces(source: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = source;
    std::iter::from_fn(move || {
        let (piece, after) = next_piece(rest)?;
        rest = after;
        Some(piece)
    })
}

fn next_piece(source: &str) -> Option<(Piece<'_>, &str)> {
    let inert = |length: usize| {
        let (text, after) = source.split_at(length);
        Some((Piece::Inert(text), after))
    };
    let bytes = source.as_bytes();
    let opens = |at: usize| bytes[at] == b'{' && matches!(bytes.get(at + 1), Some(b'{' | b'%' | b'#'));
    match (0..bytes.len()).find(|at| opens(*at)) {
        Some(0) => {}
        Some(at) => return inert(at),
        None if source.is_empty() => return None,
        None => return inert(source.len()),
    }
    let opening = 2 + usize::from(matches!(bytes.get(2), Some(b'-' | b'+')));
    let inside = &source[opening..];
    match bytes[1] {
        b'#' => inert(inside.find("#}").map_or(source.len(), |end| opening + end + 2)),
        b'%' if let Some(length) = bare_tag(inside, "raw") => inert(opening + length + raw_length(&inside[length..])),
        mark => {
            let is_block = mark == b'%';
            let tag = Tag::read(inside, is_block);
            let (text, after) = source.split_at((opening + tag.length + 2).min(source.len()));
            let body = inside[..tag.length].trim_end_matches(['-', '+']);
            Some((Piece::Tag { text, body, is_block, tag }, after))
        }
    }
}

/// The length of a tag of the one word `word`, closing mark included, if `inside` begins with it.
fn bare_tag(inside: &str, word: &str) -> Option<usize> {
    let is_space = |symbol: char| symbol.is_ascii_whitespace();
    let rest = inside.trim_start_matches(is_space).strip_prefix(word)?.trim_start_matches(is_space);
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")?;
    Some(inside.len() - rest.len())
}

/// The length of what is left of a `raw` block, its `endraw` tag included.
fn raw_length(block: &str) -> usize {
    block
        .match_indices("{%")
        .find_map(|(at, mark)| {
            let inside = &block[at + mark.len()..];
            let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
            Some(block.len() - inside.len() + bare_tag(inside, "endraw")?)
        })
        .unwrap_or(block.len())
}

/// The content of one `{{ … }}` or `{% … %}`.
struct Tag {
    operators: usize,
    is_elif: bool,
    /// Bytes up to the closing mark.
    length: usize,
}

impl Tag {
    /// Reads a tag from after its opening mark: texts are skipped, everything that chains is counted.
    fn read(body: &str, is_block: bool) -> Self {
        let bytes = body.as_bytes();
        let (mut at, mut operators, mut braces, mut words) = (0, 0usize, 0i32, 0);
        let mut is_elif = false;
        while let Some(&byte) = bytes.get(at) {
            let next = bytes.get(at + 1).copied();
            match byte {
                b'%' if is_block && next == Some(b'}') => break,
                b'}' if !is_block && braces <= 0 && next == Some(b'}') => break,
                b'{' => braces += 1,
                b'}' => braces -= 1,
                b'"' | b'\'' => at = end_of_text(bytes, at),
                b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                    let end = bytes[at..]
                        .iter()
                        .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
                        .map_or(bytes.len(), |length| at + length);
                    let word = &bytes[at..end];
                    is_elif |= words == 0 && is_block && word == b"elif";
                    words += 1;
                    operators +=
                        usize::from([&b"and"[..], b"or", b"not", b"is", b"in", b"if", b"else"].contains(&word));
                    at = end - 1;
                }
                byte if b"~.|([+-*/%<>=!".contains(&byte) => operators += 1,
                _ => {}
            }
            at += 1;
        }
        // Without a closing mark the tag goes on to the end, also where that is inside a text that ends with `\\`.
        Self { operators, is_elif, length: at.min(body.len()) }
    }
}

/// The position of the quote that ends the text opened at `start`, or the last position.
pub(super) fn end_of_text(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 1,
            byte if byte == bytes[start] => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// The source as minijinja gets it; `kept` is the name of [`kept`](super::namespace::kept) in it, and the beginning of the
/// names of the functions in [`operators`].
///
/// `{% generation %}` marks the assistant's words for transformers; what is trained is found without it here, so it
/// becomes an `if` that always holds, its whitespace control kept. And what is stored in a namespace goes through
/// [`kept`](super::namespace::kept) at once.
pub(super) fn rewritten(source: &str, kept: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len());
    for piece in pieces(source) {
        let (text, body, is_block) = match piece {
            Piece::Tag { text, body, is_block, .. } => (text, body, is_block),
            Piece::Inert(text) => {
                out.push_str(text);
                continue;
            }
        };
        let start = 2 + usize::from(text[2..].starts_with(['-', '+']));
        let text = &format!("{}{}{}", &text[..start], operators::rewritten(body, kept), &text[start + body.len()..]);
        if !is_block {
            out.push_str(text);
            continue;
        }
        match body.trim() {
            word @ ("generation" | "endgeneration") => {
                let replacement = if word == "generation" { "if true" } else { "endif" };
                out.push_str(&text.replacen(word, replacement, 1));
            }
            _ => {
                out.push_str(text);
                for target in stored_attributes(body)? {
                    // Whitespace after the tag is trimmed as the tag itself says.
                    let control = ["-", "+"].into_iter().find(|sign| text.ends_with(&format!("{sign}%}}")));
                    let control = control.unwrap_or_default();
                    out.push_str(&format!("{{% set {target} = {kept}({target}) {control}%}}"));
                }
            }
        }
    }
    Ok(out)
}

/// The attributes that a `set` tag assigns to, if it is one: `ns.x` of `set ns.x = 1` and of `set (ns.x, y) = z`.
fn stored_attributes(body: &str) -> Result<Vec<&str>, String> {
    let Some(assignment) = body.trim_start().strip_prefix("set") else { return Ok(Vec::new()) };
    let (targets, is_block) = match assignment.find(['=', '|']) {
        Some(end) => (&assignment[..end], assignment[end..].starts_with('|')),
        None => (assignment, true),
    };
    let attributes: Vec<&str> =
        targets.split([',', '(', ')']).map(str::trim).filter(|name| name.contains('.')).collect();
    match is_block {
        // A captured text can hold nothing; what a filter makes of it can.
        true if !attributes.is_empty() && targets.len() < assignment.len() => {
            Err(format!("a `set` block with a filter cannot assign to the attribute `{}`", attributes[0]))
        }
        true => Ok(Vec::new()),
        false => Ok(attributes),
    }
}

/// A name that `source` does not use.
pub(super) fn unused_name(source: &str) -> String {
    let mut name = "kept".to_owned();
    while source.contains(&name) {
        name.push('_');
    }
    name
}
