//! A training script in Python, as far as it can be read without running it: the arguments of the calls that set a training up.
//! Literals are read, and names that were given a literal before; anything else is kept as it stands.

use std::collections::HashMap;

use super::value::{Entry, Value};

/// The calls that are read, by the last part of their names.
const CALLS: &[&str] = &[
    "BitsAndBytesConfig",
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "LoraConfig",
    "ORPOConfig",
    "ORPOTrainer",
    "SFTConfig",
    "SFTTrainer",
    "Trainer",
    "TrainingArguments",
    "UnslothTrainer",
    "UnslothTrainingArguments",
    "from_pretrained",
    "get_chat_template",
    "get_peft_model",
    "load_dataset",
    "train_on_responses_only",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A name with its dots: `FastLanguageModel.from_pretrained`.
    Name,
    Number,
    /// A text without a prefix, or with one that changes nothing.
    Text,
    /// A text with expressions in it.
    Formatted,
    Sign,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
    line: usize,
    /// Brackets that are open before it.
    depth: usize,
}

/// The arguments of the calls of a script: `SFTConfig.learning_rate`, and for those without a name their number, `load_dataset.0`.
pub(super) fn read(text: &str) -> Vec<Entry> {
    let script = Script { text, tokens: tokens(text) };
    let (mut names, mut entries) = (HashMap::new(), Vec::new());
    for at in 0..script.tokens.len() {
        let token = script.tokens[at];
        if token.kind != Kind::Name {
            continue;
        }
        let name = script.of(token);
        let next = script.tokens.get(at + 1).map(|next| script.of(*next));
        if token.depth == 0 && next == Some("=") {
            let end = script.end_of_line(at + 2);
            match script.value(at + 2, end, &names) {
                Value::Expression(_) => names.remove(name),
                value => names.insert(name.to_owned(), value),
            };
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_of_a_tokenizer = name.contains("Tokenizer") || name.contains("Processor");
        let is_defined = at > 0 && matches!(script.of(script.tokens[at - 1]), "def" | "class");
        if next == Some("(") && CALLS.contains(&last) && !is_of_a_tokenizer && !is_defined {
            script.arguments(at + 2, last, &names, &mut entries);
        }
    }
    entries
}

struct Script<'t> {
    text: &'t str,
    tokens: Vec<Token>,
}

impl<'t> Script<'t> {
    fn of(&self, token: Token) -> &'t str {
        &self.text[token.start..token.end]
    }

    /// The first token after those that stand on the line of `from`, or in brackets that open there.
    fn end_of_line(&self, from: usize) -> usize {
        let Some(first) = self.tokens.get(from) else { return from };
        let mut line = first.line;
        for (at, token) in self.tokens.iter().enumerate().skip(from) {
            if token.depth == 0 && token.line > line && !matches!(self.of(*token), ")" | "]" | "}") {
                return at;
            }
            line = line.max(token.line);
        }
        self.tokens.len()
    }

    /// The arguments from the token `from` to the bracket that closes the call.
    fn arguments(&self, from: usize, call: &str, names: &HashMap<String, Value>, entries: &mut Vec<Entry>) {
        let Some(first) = self.tokens.get(from) else { return };
        let (depth, mut begin, mut number) = (first.depth, from, 0);
        for at in from..self.tokens.len() {
            let token = self.tokens[at];
            let sign = self.of(token);
            let closes = token.depth == depth && matches!(sign, ")" | "]" | "}");
            if !(closes || token.depth == depth && sign == ",") {
                continue;
            }
            if at > begin {
                let is_named = self.tokens[begin].kind == Kind::Name
                    && self.tokens.get(begin + 1).is_some_and(|next| self.of(*next) == "=");
                let (key, value_from) = match is_named {
                    true => (self.of(self.tokens[begin]).to_owned(), begin + 2),
                    false => (number.to_string(), begin),
                };
                number += usize::from(!is_named);
                let value = self.value(value_from, at, names);
                entries.push(Entry { key: format!("{call}.{key}"), line: self.tokens[begin].line, value });
            }
            begin = at + 1;
            if closes {
                return;
            }
        }
    }

    /// The value of the tokens `from..end`.
    fn value(&self, from: usize, end: usize, names: &HashMap<String, Value>) -> Value {
        let mut at = from;
        match self.literal(&mut at, end, names) {
            Some(value) if at == end => value,
            _ => Value::Expression(self.source(from, end)),
        }
    }

    fn source(&self, from: usize, end: usize) -> String {
        match (self.tokens.get(from), end.checked_sub(1).and_then(|last| self.tokens.get(last))) {
            (Some(first), Some(last)) if end > from => self.text[first.start..last.end].to_owned(),
            _ => String::new(),
        }
    }

    /// The literal at the token `at`, which is then the one after it.
    fn literal(&self, at: &mut usize, end: usize, names: &HashMap<String, Value>) -> Option<Value> {
        let token = *self.tokens.get(*at).filter(|_| *at < end)?;
        *at += 1;
        let text = self.of(token);
        match (token.kind, text) {
            (Kind::Name, "None") => Some(Value::Null),
            (Kind::Name, "True" | "False") => Some(Value::Bool(text == "True")),
            // The type of a tensor is a word wherever it is given.
            (Kind::Name, _) if text.starts_with("torch.") => Some(Value::Text(text.to_owned())),
            (Kind::Name, _) => names.get(text).cloned(),
            (Kind::Number, _) => number(text),
            (Kind::Sign, "-" | "+") => match (self.literal(at, end, names)?, text) {
                (Value::Integer(number), "-") => Some(Value::Integer(-number)),
                (Value::Float(number), "-") => Some(Value::Float(-number)),
                (number @ (Value::Integer(_) | Value::Float(_)), _) => Some(number),
                _ => None,
            },
            (Kind::Text, _) => {
                let mut whole = unquoted(text);
                // Texts beside each other are one.
                while let Some(next) = self.tokens.get(*at).filter(|next| *at < end && next.kind == Kind::Text) {
                    whole += &unquoted(self.of(*next));
                    *at += 1;
                }
                Some(Value::Text(whole))
            }
            (Kind::Sign, "[" | "(") => {
                let closing = if text == "[" { "]" } else { ")" };
                let (mut items, mut has_comma): (Vec<Value>, bool) = (Vec::new(), false);
                loop {
                    let next = *self.tokens.get(*at).filter(|_| *at < end)?;
                    if self.of(next) == closing {
                        *at += 1;
                        // Brackets around one value without a comma make no tuple of it.
                        return match (text, &items[..]) {
                            ("(", [one]) if !has_comma => Some(one.clone()),
                            _ => Some(Value::List(items)),
                        };
                    }
                    items.push(self.literal(at, end, names)?);
                    has_comma |= self.skip_comma(at, end);
                }
            }
            (Kind::Sign, "{") => {
                let mut entries = Vec::new();
                loop {
                    let next = *self.tokens.get(*at).filter(|_| *at < end)?;
                    if self.of(next) == "}" {
                        *at += 1;
                        return Some(Value::Table(entries));
                    }
                    let Value::Text(key) = self.literal(at, end, names)? else { return None };
                    if self.tokens.get(*at).is_none_or(|token| self.of(*token) != ":") {
                        return None;
                    }
                    *at += 1;
                    let value = self.literal(at, end, names)?;
                    entries.push(Entry { key, line: next.line, value });
                    self.skip_comma(at, end);
                }
            }
            _ => None,
        }
    }

    /// Goes over a comma; whether there was one.
    fn skip_comma(&self, at: &mut usize, end: usize) -> bool {
        let is_comma = *at < end && self.tokens.get(*at).is_some_and(|token| self.of(*token) == ",");
        *at += usize::from(is_comma);
        is_comma
    }
}

fn number(text: &str) -> Option<Value> {
    let digits = text.replace('_', "");
    digits.parse().map(Value::Integer).ok().or_else(|| digits.parse().map(Value::Float).ok())
}

/// The text within its quotes, without the escapes that matter in a configuration.
fn unquoted(text: &str) -> String {
    let prefix = text.find(['"', '\'']).unwrap_or(0);
    let is_raw = text[..prefix].contains(['r', 'R']);
    let quoted = &text[prefix..];
    let quote = if quoted.starts_with("\"\"\"") || quoted.starts_with("'''") { 3 } else { 1 };
    let inner = quoted.get(quote..quoted.len().saturating_sub(quote)).unwrap_or_default();
    match is_raw {
        true => inner.to_owned(),
        false => inner.replace("\\n", "\n").replace("\\\"", "\"").replace("\\'", "'").replace("\\\\", "\\"),
    }
}

/// The tokens of a script. Lines of a notebook that are not Python (`!pip`, `%%capture`) and comments are left out.
fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let (mut tokens, mut at, mut line, mut depth, mut starts_line) = (Vec::new(), 0, 1, 0usize, true);
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'\n' {
            (line, at, starts_line) = (line + 1, at + 1, true);
            continue;
        }
        if byte.is_ascii_whitespace() || byte == b'\\' {
            at += 1;
            continue;
        }
        if byte == b'#' || starts_line && depth == 0 && matches!(byte, b'!' | b'%') {
            at += text[at..].find('\n').unwrap_or(text.len() - at);
            continue;
        }
        starts_line = false;
        let (kind, length) = token(&text[at..]);
        if kind == Kind::Sign && matches!(byte, b')' | b']' | b'}') {
            depth = depth.saturating_sub(1);
            tokens.push(Token { kind, start: at, end: at + length, line, depth: depth + 1 });
        } else {
            tokens.push(Token { kind, start: at, end: at + length, line, depth });
        }
        depth += usize::from(kind == Kind::Sign && matches!(byte, b'(' | b'[' | b'{'));
        line += text[at..at + length].matches('\n').count();
        at += length;
    }
    tokens
}

/// The kind and the length in bytes of the token that `text` begins with.
fn token(text: &str) -> (Kind, usize) {
    let is_word = |symbol: char| symbol.is_alphanumeric() || symbol == '_';
    let first = text.chars().next().unwrap_or(' ');
    if let Some(length) = string(text) {
        let prefix = text.find(['"', '\'']).unwrap_or(0);
        let kind = if text[..prefix].contains(['f', 'F', 'b', 'B']) { Kind::Formatted } else { Kind::Text };
        return (kind, length);
    }
    let digits = text.strip_prefix('.').unwrap_or(text);
    if digits.starts_with(|symbol: char| symbol.is_ascii_digit()) {
        let mut before = ' ';
        let end = text.find(|symbol: char| {
            let is_exponent = matches!(before, 'e' | 'E') && matches!(symbol, '-' | '+');
            before = symbol;
            !(is_word(symbol) || symbol == '.' || is_exponent)
        });
        return (Kind::Number, end.unwrap_or(text.len()));
    }
    if is_word(first) {
        return (Kind::Name, text.find(|symbol: char| !is_word(symbol) && symbol != '.').unwrap_or(text.len()));
    }
    let is_double = ["==", "!=", "<=", ">=", "**", "//", ":=", "->"].iter().any(|sign| text.starts_with(sign));
    (Kind::Sign, if is_double { 2 } else { first.len_utf8() })
}

/// The length of the string that `text` begins with, its prefix included. One that is not closed ends with its line.
fn string(text: &str) -> Option<usize> {
    let prefix = text.find(|symbol: char| !"rRbBuUfF".contains(symbol)).filter(|prefix| *prefix <= 2)?;
    let quoted = &text[prefix..];
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| quoted.starts_with(quote))?;
    let (mut escaped, body) = (false, &quoted[quote.len()..]);
    for (at, symbol) in body.char_indices() {
        if !escaped && body[at..].starts_with(quote) {
            return Some(prefix + quote.len() + at + quote.len());
        }
        if symbol == '\n' && quote.len() == 1 && !escaped {
            return Some(prefix + quote.len() + at);
        }
        escaped = symbol == '\\' && !escaped;
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'e>(entries: &'e [Entry], key: &str) -> &'e Value {
        &entries.iter().find(|entry| entry.key == key).unwrap_or_else(|| panic!("{key} in {entries:?}")).value
    }

    #[test]
    fn arguments_are_read_and_names_are_followed() {
        let script = "!pip install \"unsloth[x]\" it's\nlength = 1_024  # a comment, with (brackets\nlr = 2e-4\n\
                      model, tokenizer = FastLanguageModel.from_pretrained(\n    \"org/\"\n    'name', max_seq_length = length,\n    \
                      dtype = None, load_in_4bit=True,\n)\nmodel = FastLanguageModel.get_peft_model(model, r=16,\n    \
                      target_modules=[\"q_proj\", 'v_proj',], lora_dropout = .5, x=(1), y=(1,), z={'a': -1})\n\
                      trainer = SFTTrainer(model=model, args = SFTConfig(learning_rate=lr, fp16 = not is_bf16(), seed=3407))\n\
                      tokenizer = AutoTokenizer.from_pretrained('other')\nt = f\"{x}\"\n";
        let entries = read(script);
        assert_eq!(value(&entries, "from_pretrained.0"), &Value::Text("org/name".into()));
        assert_eq!(value(&entries, "from_pretrained.max_seq_length"), &Value::Integer(1024));
        assert_eq!(value(&entries, "from_pretrained.dtype"), &Value::Null);
        assert_eq!(value(&entries, "get_peft_model.0"), &Value::Expression("model".into()));
        let targets = Value::List(vec![Value::Text("q_proj".into()), Value::Text("v_proj".into())]);
        assert_eq!(value(&entries, "get_peft_model.target_modules"), &targets);
        assert_eq!(value(&entries, "get_peft_model.lora_dropout"), &Value::Float(0.5));
        assert_eq!(value(&entries, "get_peft_model.x"), &Value::Integer(1));
        assert_eq!(value(&entries, "get_peft_model.y"), &Value::List(vec![Value::Integer(1)]));
        assert_eq!(value(&entries, "get_peft_model.z").entries()[0].value, Value::Integer(-1));
        assert_eq!(value(&entries, "SFTConfig.learning_rate"), &Value::Float(2e-4));
        assert_eq!(value(&entries, "SFTConfig.fp16"), &Value::Expression("not is_bf16()".into()));
        assert_eq!(value(&entries, "SFTConfig.seed"), &Value::Integer(3407));
        assert!(
            matches!(value(&entries, "SFTTrainer.args"), Value::Expression(text) if text.starts_with("SFTConfig("))
        );
        assert!(
            entries.iter().all(|entry| entry.value != Value::Text("other".into())),
            "a tokenizer's own call is left out"
        );
        assert_eq!(entries.iter().find(|entry| entry.key == "from_pretrained.dtype").expect("there").line, 7);
    }

    #[test]
    fn a_name_that_no_longer_is_a_literal_is_not_followed() {
        let entries = read("n = 3\nn = count()\nx = SFTConfig(max_steps = n, seed = n2)\n");
        assert_eq!(value(&entries, "SFTConfig.max_steps"), &Value::Expression("n".into()));
    }

    #[test]
    fn broken_scripts_end() {
        for script in [
            "SFTConfig(",
            "SFTConfig(a=[",
            "x = '",
            "f(\"\"\"",
            "SFTConfig(a={'b'",
            ")))",
            "SFTConfig(=,=)",
            "é = SFTConfig(ü='ß",
        ] {
            read(script);
        }
    }
}
