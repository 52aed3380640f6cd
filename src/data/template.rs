//! Chat templates: a model's own Jinja program that turns messages into text.
//!
//! A template comes with the model, so it is someone else's program. It has no loader (nothing to include), it
//! runs on a thread of its own with a large stack, on a budget of steps and memory, and against a deadline.
//! Size and chain length are limited before compiling, because minijinja compiles long chains of operators by
//! recursion and in quadratic time.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, Value, ValueKind, from_args};
use minijinja::{Environment, ErrorKind, State};
use minijinja_contrib::pycompat;
use serde_json::Value as Json;
use time::OffsetDateTime;

use super::encode::is_private;
use super::example::Message;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// The longest templates of known models have about 25 KB.
const MAX_TEMPLATE_BYTES: usize = 128 * 1024;
/// Operators in one `{{ … }}` or `{% … %}`.
const MAX_CHAIN: usize = 400;
/// Operators in the whole template.
const MAX_OPERATORS: usize = 20_000;
const MAX_ELIFS: usize = 500;
/// Enough for the deepest chain that fits into the largest template, with a wide margin.
const STACK_BYTES: usize = 64 << 20;
/// Steps of one rendering; each 64 bytes made cost a step too, which bounds memory to 256 MB.
const FUEL: u64 = 4_000_000;
/// The longest a template may take to compile or render.
const DEADLINE: Duration = Duration::from_secs(5);
/// The most that a template may write around a conversation.
const MAX_MARKUP_BYTES: usize = 512 << 10;
/// How often it may write the conversation itself.
const MAX_COPIES: usize = 4;
/// How deep `tojson` goes.
const MAX_JSON_DEPTH: usize = 64;

/// A compiled chat template. Renders from any thread. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    jobs: Sender<Job>,
    place: String,
    /// What the assistant may call.
    tools: Value,
    tools_bytes: usize,
}

/// Messages to render, and where the text goes.
struct Job {
    messages: Vec<Fields>,
    tools: Value,
    add_generation_prompt: bool,
    reply: Sender<Result<String, String>>,
}

impl ChatTemplate {
    /// The template of a tokenizer; `None` if it has none. `place` names the model in messages.
    pub fn of(tokenizer: &Tokenizer, place: &str) -> Result<Option<Self>> {
        match tokenizer.chat_template() {
            Some(source) => Self::compile(source, place, &tokenizer.named_tokens()).map(Some),
            None => Ok(None),
        }
    }

    /// Compiles a template. `named_tokens` are what it may refer to: `("bos_token", "<s>")` and so on. The
    /// date that `strftime_now` gives is that of the compilation, the same for the whole run.
    pub fn compile(source: &str, place: &str, named_tokens: &[(&str, &str)]) -> Result<Self> {
        let now = OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc());
        Self::compile_at(source, place, named_tokens, now)
    }

    /// [`Self::compile`] with the time that `strftime_now` gives.
    pub fn compile_at(source: &str, place: &str, named_tokens: &[(&str, &str)], now: OffsetDateTime) -> Result<Self> {
        let place = format!("{place}: chat template");
        check_size(source).map_err(|message| Error::input(&place, message))?;
        let kept = unused_name(source);
        let source = rewritten(source, &kept).map_err(|message| Error::input(&place, message))?;
        let globals: Vec<(String, String)> =
            named_tokens.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let (jobs, inbox) = channel();
        let (compiled, outcome) = channel();
        std::thread::Builder::new()
            .name("chat-template".into())
            .stack_size(STACK_BYTES)
            .spawn(move || work(source, kept, globals, now, &compiled, &inbox))
            .map_err(|error| Error::failed(&place, format!("cannot start a thread: {error}")))?;
        wait(&outcome, &place, "compile")?;
        Ok(Self { jobs, place, tools: Value::from(()), tools_bytes: 0 })
    }

    /// The same template for conversations with these tools.
    pub fn with_tools(&self, tools: Option<&Json>) -> Self {
        let tools_bytes = tools.map_or(0, |tools| tools.to_string().len());
        Self { tools: tools.map_or(Value::from(()), value_of), tools_bytes, ..self.clone() }
    }

    /// Renders messages to text. With `add_generation_prompt` the text ends where the assistant's answer begins.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let said = self.tools_bytes + messages.iter().map(bytes_of).sum::<usize>();
        let messages = messages.iter().map(Fields::of).collect();
        let (reply, outcome) = channel();
        let job = Job { messages, tools: self.tools.clone(), add_generation_prompt, reply };
        self.jobs.send(job).map_err(|_| Error::input(&self.place, "stopped working on an earlier conversation"))?;
        let text = wait(&outcome, &self.place, "render")?;
        let limit = MAX_MARKUP_BYTES + MAX_COPIES * said;
        if text.len() > limit {
            let message = format!("makes {} bytes of a conversation of {said}; at most {limit}", text.len());
            return Err(Error::input(&self.place, message));
        }
        Ok(text)
    }

    /// Where the template comes from, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }
}

/// The size of what a message brings to a template.
fn bytes_of(message: &Message) -> usize {
    let more = message.more.iter().map(|(key, value)| key.len() + value.to_string().len());
    message.content.len() + more.sum::<usize>()
}

/// A message, or an object in it, as a template sees it: a map that keeps its order.
#[derive(Debug, Clone)]
struct Fields(Vec<(String, Value)>);

impl Fields {
    fn of(message: &Message) -> Self {
        let content = message.more.get("content").map_or(Value::from(message.content.as_str()), value_of);
        let mut fields = vec![("role".to_owned(), Value::from(message.role.name())), ("content".to_owned(), content)];
        let more = message.more.iter().filter(|(key, _)| *key != "content");
        fields.extend(more.map(|(key, value)| (key.clone(), value_of(value))));
        Self(fields)
    }
}

impl Object for Fields {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| Value::from(name.as_str())).collect())
    }
}

/// A JSON value as a template sees it.
fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(values) => values.iter().map(value_of).collect(),
        Json::Object(fields) => {
            Value::from_object(Fields(fields.iter().map(|(key, value)| (key.clone(), value_of(value))).collect()))
        }
    }
}

/// Waits for the template's thread, but not for ever.
fn wait<T>(outcome: &Receiver<Result<T, String>>, place: &str, doing: &str) -> Result<T> {
    match outcome.recv_timeout(DEADLINE) {
        Ok(result) => result.map_err(|message| Error::input(place, message)),
        Err(RecvTimeoutError::Timeout) => {
            Err(Error::input(place, format!("takes more than {} s to {doing}", DEADLINE.as_secs())))
        }
        Err(RecvTimeoutError::Disconnected) => Err(Error::input(place, format!("minijinja failed to {doing} it"))),
    }
}

/// The life of the template's thread: compile once, render until the handle is gone.
fn work(
    source: String,
    kept: String,
    globals: Vec<(String, String)>,
    now: OffsetDateTime,
    compiled: &Sender<Result<(), String>>,
    inbox: &Receiver<Job>,
) {
    let environment = environment(now, kept);
    let template = match environment.template_from_named_str("chat", &source) {
        Ok(template) => template,
        Err(error) => {
            // Nobody may be listening any more: the deadline has passed.
            let _ = compiled.send(Err(format!("does not compile: {error}")));
            return;
        }
    };
    if compiled.send(Ok(())).is_err() {
        return;
    }
    while let Ok(job) = inbox.recv() {
        let rendered = template.render(context(&job, &globals)).map_err(|error| explain(&error));
        let _ = job.reply.send(rendered);
    }
}

/// What went wrong in a template, without minijinja's own words where the template raised it itself.
fn explain(error: &minijinja::Error) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => "does too much work for one conversation".into(),
        _ => format!("cannot render the conversation: {error}"),
    }
}

/// What a template sees: the names that transformers' `apply_chat_template` gives it.
fn context(job: &Job, globals: &[(String, String)]) -> Value {
    let messages: Vec<Value> = job.messages.iter().cloned().map(Value::from_object).collect();
    let mut pairs = vec![
        ("messages", Value::from(messages)),
        ("tools", job.tools.clone()),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(job.add_generation_prompt)),
    ];
    pairs.extend(globals.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))));
    Value::from_pairs(pairs)
}

/// Jinja as transformers sets it up: blocks trimmed, Python's string methods, three functions.
fn environment(now: OffsetDateTime, kept_name: String) -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(method);
    environment.add_function(kept_name, |state: &State, value: Value| {
        Ok::<_, minijinja::Error>(kept(state, &value, 0)?.unwrap_or(value))
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| strftime(&format, now));
    environment.add_filter("tojson", tojson);
    // In Python a text and a map have a length and items, too.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment
}

/// Python's methods of texts, lists and maps: minijinja-contrib's, and those that it lacks. minijinja takes no fuel for
/// them, and what `split` gives takes many times the memory of the text.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, minijinja::Error> {
    const BYTES_A_STEP: u64 = 4;
    state.consume_fuel(value.as_str().map_or(0, |text| text.len() as u64 / BYTES_A_STEP))?;
    let found = value.as_str().map(|text| string_method(text, name, arguments)).transpose()?.flatten();
    match found {
        Some(found) => Ok(found),
        None => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn string_method(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, minijinja::Error> {
    let one = || from_args::<(&str,)>(arguments).map(|(argument,)| argument);
    Ok(Some(match name {
        "removeprefix" => text.strip_prefix(one()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one()?).unwrap_or(text).into(),
        "partition" => {
            let separator = one()?;
            let parts = text.split_once(separator).map_or([text, "", ""], |(before, after)| [before, separator, after]);
            Value::from_iter(parts)
        }
        "rpartition" => {
            let separator = one()?;
            let parts =
                text.rsplit_once(separator).map_or(["", "", text], |(before, after)| [before, separator, after]);
            Value::from_iter(parts)
        }
        "rsplit" => match from_args::<(Option<&str>, Option<i64>)>(arguments)? {
            (None, None) => text.split_whitespace().collect(),
            (Some(separator), most) => {
                let most = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most + 1);
                let parts: Vec<&str> = text.rsplitn(most, separator).collect();
                parts.into_iter().rev().collect()
            }
            (None, Some(_)) => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

/// How JSON is laid out.
struct JsonStyle {
    indent: Option<usize>,
    /// Between items, and between key and value.
    separators: [String; 2],
    ascii: bool,
    sorted: bool,
}

/// Python's `json.dumps(value, ensure_ascii=False, …)`, which transformers puts under this name.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let usual = [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned);
    let style = JsonStyle {
        indent,
        separators: separators.and_then(|given| given.try_into().ok()).unwrap_or(usual),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(&mut text, value, &style, 0)?;
    Ok(Value::from(text))
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), minijinja::Error> {
    if depth > MAX_JSON_DEPTH {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: nested too deep"));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.min(16) * depth));
        }
    };
    let [comma, colon] = &style.separators;
    let (open, close) = match value.kind() {
        ValueKind::Map => ('{', '}'),
        ValueKind::Seq | ValueKind::Iterable => ('[', ']'),
        ValueKind::String => {
            write_json_text(out, value.as_str().unwrap_or_default(), style.ascii);
            return Ok(());
        }
        ValueKind::None | ValueKind::Undefined => {
            out.push_str("null");
            return Ok(());
        }
        ValueKind::Bool => {
            out.push_str(if value.is_true() { "true" } else { "false" });
            return Ok(());
        }
        ValueKind::Number => {
            match value.is_integer() {
                true => out.push_str(&value.to_string()),
                false => out.push_str(&python_float(f64::try_from(value.clone())?)),
            }
            return Ok(());
        }
        other => {
            let message = format!("tojson: cannot write {other}");
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    let mut items: Vec<Value> = value.try_iter()?.collect();
    if open == '{' && style.sorted {
        items.sort_by_cached_key(Value::to_string);
    }
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(comma);
        }
        line(out, depth + 1);
        if open == '{' {
            write_json_text(out, &item.to_string(), style.ascii);
            out.push_str(colon);
            write_json(out, &value.get_item(item)?, style, depth + 1)?;
        } else {
            write_json(out, item, style, depth + 1)?;
        }
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// A float as Python writes it: with an exponent of two digits or more below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    match scientific.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
        Some((digits, Ok(exponent))) if value != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{value:?}"),
    }
}

/// A text in quotes; with `ascii`, other characters are escaped.
fn write_json_text(out: &mut String, text: &str, ascii: bool) {
    for symbol in Json::from(text).to_string().chars() {
        // Stand-ins for control tokens have to come out as they are.
        if !ascii || symbol.is_ascii() || is_private(symbol) {
            out.push(symbol);
            continue;
        }
        for unit in symbol.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// The directives of C's `strftime` that templates use, in the C locale; others stay as they are.
fn strftime(format: &str, now: OffsetDateTime) -> String {
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(symbol) = rest.next() {
        if symbol != '%' {
            text.push(symbol);
            continue;
        }
        let month = now.month().to_string();
        let weekday = now.weekday().to_string();
        let hour12 = (now.hour() + 11) % 12 + 1;
        let Some(directive) = rest.next() else {
            text.push('%');
            break;
        };
        text.push_str(&match directive {
            'Y' => now.year().to_string(),
            'y' => format!("{:02}", now.year().rem_euclid(100)),
            'm' => format!("{:02}", u8::from(now.month())),
            'B' => month,
            'b' | 'h' => month.chars().take(3).collect(),
            'd' => format!("{:02}", now.day()),
            'e' => format!("{:2}", now.day()),
            'j' => format!("{:03}", now.ordinal()),
            'A' => weekday,
            'a' => weekday.chars().take(3).collect(),
            'H' => format!("{:02}", now.hour()),
            'I' => format!("{hour12:02}"),
            'p' => if now.hour() < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{:02}", now.minute()),
            'S' => format!("{:02}", now.second()),
            'F' => strftime("%Y-%m-%d", now),
            'T' => strftime("%H:%M:%S", now),
            'D' => strftime("%m/%d/%y", now),
            'R' => strftime("%H:%M", now),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        });
    }
    text
}

/// Refuses what minijinja would compile by deep recursion or in minutes.
fn check_size(source: &str) -> Result<(), String> {
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

/// What stands in one `{{ … }}` or `{% … %}`.
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
fn end_of_text(bytes: &[u8], start: usize) -> usize {
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

/// The source as minijinja gets it; `kept` is the name of [`kept`] in it.
///
/// `{% generation %}` marks the assistant's words for transformers; what is trained is found without it here, so it
/// becomes an `if` that always holds, its whitespace control kept. And what is stored in a namespace goes through
/// [`kept`] at once.
fn rewritten(source: &str, kept: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len());
    for piece in pieces(source) {
        let (text, body) = match piece {
            Piece::Tag { text, body, is_block: true, .. } => (text, body),
            Piece::Inert(text) | Piece::Tag { text, .. } => {
                out.push_str(text);
                continue;
            }
        };
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
fn unused_name(source: &str) -> String {
    let mut name = "kept".to_owned();
    while source.contains(&name) {
        name.push('_');
    }
    name
}

/// How deep what a namespace holds may be nested.
const MAX_STORED_DEPTH: usize = 32;

/// What a namespace holds instead of `value`: its lazy parts evaluated. `None` where it is plain data as it is.
///
/// minijinja prints, compares and drops values by recursion. A namespace is all that a template can change, so it is what
/// lets a value hold itself, or grow deeper with every round of a loop, until the stack overflows.
fn kept(state: &State, value: &Value, depth: usize) -> Result<Option<Value>, minijinja::Error> {
    let refuse = |message: &str| Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()));
    state.consume_fuel(1)?;
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain) {
        return Ok(None);
    }
    if depth == MAX_STORED_DEPTH {
        return refuse("a namespace is given a value that is nested too deep");
    }
    let object = value.as_object().map_or("", |object| object.type_name());
    if kind == ValueKind::Plain || object.ends_with("::Namespace") || object.ends_with("::Loop") {
        return refuse("a namespace can hold texts, numbers, lists and maps; not a macro, a loop or another namespace");
    }
    let mut changed = kind == ValueKind::Iterable;
    let mut items = Vec::new();
    for item in value.try_iter()? {
        let held = if kind == ValueKind::Map { value.get_item(&item)? } else { item.clone() };
        let new = kept(state, &held, depth + 1)?;
        changed |= new.is_some();
        items.push((item, new.unwrap_or(held)));
    }
    Ok(changed.then(|| match kind {
        ValueKind::Map => Value::from_pairs(items),
        _ => items.into_iter().map(|(_, new)| new).collect(),
    }))
}
