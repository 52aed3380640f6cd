//! Comparisons and loops in the tags of a template, put into functions where minijinja answers and Jinja2 raises: none and
//! undefined values have no order, and there is nothing in none to go through.

use minijinja::Environment;
use minijinja::value::{Value, ValueKind};

use super::filters::{compared, refused};

/// Words between which an operand of a comparison lies.
const BOUNDS: [&str; 11] = ["and", "or", "not", "if", "elif", "else", "in", "is", "recursive", "set", "print"];
/// The comparisons, with the end of the function's name.
const COMPARISONS: [(&str, &str); 4] = [("<=", "le"), (">=", "ge"), ("<", "lt"), (">", "gt")];

/// Adds the functions; their names begin with `prefix`.
pub(super) fn add(environment: &mut Environment<'_>, prefix: &str) {
    for (operator, name) in COMPARISONS {
        environment.add_function(format!("{prefix}_{name}"), move |one: &Value, other: &Value| {
            let order = compared(one, other)?;
            Ok::<_, minijinja::Error>(match operator {
                "<=" => order.is_le(),
                ">=" => order.is_ge(),
                "<" => order.is_lt(),
                _ => order.is_gt(),
            })
        });
    }
    environment.add_function(format!("{prefix}_each"), |value: Value| match value.kind() {
        kind @ (ValueKind::None | ValueKind::Number | ValueKind::Bool) => {
            refused(format!("a value of type {kind} is not iterable"))
        }
        _ => Ok(value),
    });
}

/// A word, an operator or a bracket in a tag.
struct Token<'a> {
    text: &'a str,
    start: usize,
    depth: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }

    fn is_comparison(&self) -> bool {
        matches!(self.text, "<" | ">" | "<=" | ">=" | "==" | "!=")
    }

    fn is_bound(&self) -> bool {
        matches!(self.text, "," | ":" | "=") || BOUNDS.contains(&self.text)
    }
}

/// The content of a tag with its comparisons and its loop in functions. Comparisons in a chain stay as they are.
pub(super) fn rewritten(body: &str, prefix: &str) -> String {
    let tokens = tokens(body);
    // What is put in place of so many bytes at a position.
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let Some((_, name)) = COMPARISONS.iter().find(|(operator, _)| *operator == token.text) else { continue };
        let stops = |other: &&Token| {
            other.depth < token.depth || (other.depth == token.depth && (other.is_bound() || other.is_comparison()))
        };
        let before = tokens[..at].iter().rfind(stops);
        let after = tokens[at + 1..].iter().find(stops);
        if [before, after].into_iter().flatten().any(|other| other.depth == token.depth && other.is_comparison()) {
            continue;
        }
        let start = before.map_or(0, Token::end);
        let end = after.map_or(body.len(), |after| after.start);
        let is_blank = |start: usize, end: usize| body[start..end].trim().is_empty();
        if is_blank(start, token.start) || is_blank(token.end(), end) {
            continue;
        }
        edits.push((start, 0, format!(" {prefix}_{name}(")));
        edits.push((token.start, token.text.len(), ",".to_owned()));
        edits.push((end, 0, ") ".to_owned()));
    }
    if tokens.first().is_some_and(|token| token.text == "for")
        && let Some(at) = tokens.iter().position(|token| token.depth == 0 && token.text == "in")
    {
        let ends = |token: &Token| token.depth == 0 && matches!(token.text, "if" | "recursive");
        let rest = &tokens[at + 1..];
        let (start, end) =
            (tokens[at].end(), rest.iter().find(|token| ends(token)).map_or(body.len(), |end| end.start));
        let is_tuple = rest.iter().take_while(|token| !ends(token)).any(|token| token.depth == 0 && token.text == ",");
        if !is_tuple && !body[start..end].trim().is_empty() {
            edits.push((start, 0, format!(" {prefix}_each(")));
            edits.push((end, 0, ") ".to_owned()));
        }
    }
    edits.sort_by_key(|(start, _, _)| *start);
    let mut out = String::with_capacity(body.len());
    let mut done = 0;
    for (start, length, text) in edits {
        out.push_str(&body[done..start]);
        out.push_str(&text);
        done = start + length;
    }
    out + &body[done..]
}

/// The tokens of a tag. A bracket has the depth of what stands around it; strings, which nothing here looks at, are left
/// out.
fn tokens(body: &str) -> Vec<Token<'_>> {
    let bytes = body.as_bytes();
    let mut tokens = Vec::new();
    let (mut at, mut depth) = (0, 0usize);
    while let Some(&byte) = bytes.get(at) {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
        let length = match byte {
            b'"' | b'\'' => {
                at = super::lexer::end_of_text(bytes, at) + 1;
                continue;
            }
            byte if is_word(&byte) => bytes[at..].iter().take_while(|byte| is_word(byte)).count(),
            b'<' | b'>' | b'=' | b'!' if bytes.get(at + 1) == Some(&b'=') => 2,
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            _ => 1,
        };
        let text = &body[at..at + length];
        if matches!(text, ")" | "]" | "}") {
            depth = depth.saturating_sub(1);
        }
        tokens.push(Token { text, start: at, depth });
        if matches!(text, "(" | "[" | "{") {
            depth += 1;
        }
        at += length;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_end_at_words_commas_and_brackets() {
        for (body, expected) in [
            (" a < b ", " k_lt( a , b ) "),
            ("if not a|length > 0 and (b.c <= d[1] or e)", "if not k_gt( a|length , 0 ) and ( k_le(b.c , d[1] ) or e)"),
            ("set x = f(a, b >= '<') if c else d", "set x = f(a, k_ge( b , '<') ) if c else d"),
            ("a < b < c", "a < b < c"),
            ("a == b", "a == b"),
            ("for x in y.z if x > 1", "for x in k_each( y.z ) if k_gt( x , 1) "),
            ("for k, v in d.items() recursive", "for k, v in k_each( d.items() ) recursive"),
            ("for x in 1, 2", "for x in 1, 2"),
            ("for x in ", "for x in"),
            ("a < ", "a <"),
        ] {
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join("");
            assert_eq!(squeezed(&rewritten(body, "k")), squeezed(expected), "{body}");
        }
    }
}
