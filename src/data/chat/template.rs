//! Chat templates: a model's own Jinja program that turns messages into text.
//!
//! A template comes with the model, so it is someone else's program. It has no loader (nothing to include), it
//! runs on threads of their own with a large stack, on a budget of steps and memory, and against a deadline.

use std::sync::{Arc, OnceLock};

use minijinja::value::{Enumerator, Object, Value};
use serde_json::{Value as Json, json};
use time::OffsetDateTime;

use super::lexer::{check_size, rewritten, unused_name, with_line_feeds};
use super::worker::{Program, Workers};
use crate::data::example::Message;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// The most that a template may write around a conversation.
const MAX_MARKUP_BYTES: usize = 512 << 10;
/// The most times that a template may write the conversation.
const MAX_COPIES: usize = 4;

/// A compiled chat template. Renders from any thread. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    plain: Arc<Compiled>,
    /// The template for conversations with tools, where the model brings one (`tool_use`).
    tool_use: Option<Arc<Compiled>>,
    /// The tools that the assistant may call.
    tools: Option<Value>,
    tools_bytes: usize,
}

/// One template, its source and the threads that render it.
#[derive(Debug)]
struct Compiled {
    place: String,
    source: String,
    workers: Workers,
    /// Whether it writes a generation prompt where one is asked for.
    asks: OnceLock<bool>,
    /// Whether it shows the content of a turn only as a list of parts.
    wants_parts: OnceLock<bool>,
    /// The text behind the end token of an answer that is written only at the end of a conversation.
    closing: OnceLock<Option<String>>,
}

/// Messages to render.
pub(super) struct Job {
    pub(super) messages: Vec<Fields>,
    pub(super) tools: Value,
    pub(super) add_generation_prompt: bool,
}

impl Compiled {
    fn new(source: &str, place: String, named_tokens: &[(&str, &str)], now: OffsetDateTime) -> Result<Self> {
        let bad = |message: String| Error::input(&place, message);
        check_size(source).map_err(bad)?;
        let source = with_line_feeds(source);
        let kept = unused_name(&source);
        let text = rewritten(&source, &kept).map_err(bad)?;
        let globals = named_tokens.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let workers = Workers::start(Program { text, kept, globals, now }, &place)?;
        let (asks, wants_parts, closing) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Ok(Self { place, source, workers, asks, wants_parts, closing })
    }
}

impl ChatTemplate {
    /// The template of a tokenizer; `None` if it has none. `place` names the model in messages.
    ///
    /// # Errors
    /// Input: a template that is too large or does not compile.
    pub fn of(tokenizer: &Tokenizer, place: &str) -> Result<Option<Self>> {
        let Some(source) = tokenizer.chat_template() else { return Ok(None) };
        let named_tokens = tokenizer.named_tokens();
        let template = Self::compile(source, place, &named_tokens)?;
        match tokenizer.tool_use_template() {
            Some(source) => template.with_tool_use(source, place, &named_tokens).map(Some),
            None => Ok(Some(template)),
        }
    }

    /// Compiles a template. `named_tokens` are what it may refer to: `("bos_token", "<s>")` and so on. The
    /// date that `strftime_now` gives is that of the compilation, the same for the whole run.
    ///
    /// # Errors
    /// Those of [`Self::of`].
    pub fn compile(source: &str, place: &str, named_tokens: &[(&str, &str)]) -> Result<Self> {
        Self::compile_at(source, place, named_tokens, now())
    }

    /// [`Self::compile`] with the time that `strftime_now` gives.
    ///
    /// # Errors
    /// Those of [`Self::of`].
    pub fn compile_at(source: &str, place: &str, named_tokens: &[(&str, &str)], now: OffsetDateTime) -> Result<Self> {
        let compiled = Compiled::new(source, format!("{place}: chat template"), named_tokens, now)?;
        Ok(Self { plain: Arc::new(compiled), tool_use: None, tools: None, tools_bytes: 0 })
    }

    /// The same template, with another one for conversations with tools (transformers' `tool_use`).
    ///
    /// # Errors
    /// Those of [`Self::of`].
    pub fn with_tool_use(self, source: &str, place: &str, named_tokens: &[(&str, &str)]) -> Result<Self> {
        let compiled = Compiled::new(source, format!("{place}: chat template tool_use"), named_tokens, now())?;
        Ok(Self { tool_use: Some(Arc::new(compiled)), ..self })
    }

    /// The same template for conversations with these tools.
    pub fn with_tools(&self, tools: Option<&Json>) -> Self {
        let tools_bytes = tools.map_or(0, |tools| tools.to_string().len());
        Self { tools: tools.map(value_of), tools_bytes, ..self.clone() }
    }

    /// The template that renders: `tool_use` where there are tools and the model brings it.
    fn compiled(&self) -> &Compiled {
        match (&self.tools, &self.tool_use) {
            (Some(_), Some(tool_use)) => tool_use,
            _ => &self.plain,
        }
    }

    /// Renders messages to text. With `add_generation_prompt` the text ends where the assistant's answer begins.
    ///
    /// # Errors
    /// Input: what the template raises; a rendering that takes too long or becomes too large.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_in(messages, add_generation_prompt, self.wants_parts())
    }

    /// Does `task` on a thread of the template, where renderings need no other: much shorter for whoever renders often.
    ///
    /// # Errors
    /// Input: a rendering in it that takes too long.
    pub(in crate::data) fn on_its_thread<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let compiled = self.compiled();
        compiled.workers.run(&compiled.place, task)
    }

    /// [`Self::render`], every content as a list of one part where `in_parts` says so.
    fn render_in(&self, messages: &[Message], add_generation_prompt: bool, in_parts: bool) -> Result<String> {
        let compiled = self.compiled();
        let said = self.tools_bytes + messages.iter().map(bytes_of).sum::<usize>();
        let messages = messages.iter().map(|message| Fields::of(message, in_parts)).collect();
        let tools = self.tools.clone().unwrap_or(Value::from(()));
        let text = compiled.workers.render(Job { messages, tools, add_generation_prompt }, &compiled.place)?;
        let limit = MAX_MARKUP_BYTES + MAX_COPIES * said;
        if text.len() > limit {
            let message = format!("makes {} bytes of a conversation of {said}; at most {limit}", text.len());
            return Err(Error::input(&compiled.place, message));
        }
        Ok(text)
    }

    /// Whether it writes something more where a generation prompt is asked for.
    pub(in crate::data) fn writes_generation_prompt(&self) -> bool {
        let compiled = self.compiled();
        *compiled.asks.get_or_init(|| {
            let question = [Message::user("a")];
            match (self.render(&question, true), self.render(&question, false)) {
                (Ok(asked), Ok(plain)) => asked != plain,
                _ => compiled.source.contains("add_generation_prompt"),
            }
        })
    }

    /// Whether it shows the content of a turn as a list of parts and not as a text, as templates for images do.
    fn wants_parts(&self) -> bool {
        const WORDS: &str = "Is the door open?";
        *self.compiled().wants_parts.get_or_init(|| {
            let shows = |in_parts| {
                let rendered = self.render_in(&[Message::user(WORDS)], true, in_parts);
                rendered.is_ok_and(|text| text.contains(WORDS))
            };
            !shows(false) && shows(true)
        })
    }

    /// The text that is written behind the end token of an answer only at the end of a conversation, as `find` finds it the
    /// first time.
    pub(super) fn closing(&self, find: impl FnOnce(&Self) -> Option<String>) -> Option<&str> {
        self.compiled().closing.get_or_init(|| find(self)).as_deref()
    }

    /// Whether `word` stands in the template's source as a whole word.
    pub(in crate::data) fn mentions(&self, word: &str) -> bool {
        let source = &self.compiled().source;
        let is_part = |symbol: char| symbol.is_alphanumeric() || symbol == '_';
        source.match_indices(word).any(|(at, _)| {
            let (before, after) = (source[..at].chars().next_back(), source[at + word.len()..].chars().next());
            !before.is_some_and(is_part) && !after.is_some_and(is_part)
        })
    }

    /// A text that differs between two templates that render some conversation differently.
    pub(in crate::data) fn identity(&self) -> String {
        let sources =
            [Some(&self.plain), self.tool_use.as_ref()].map(|one| one.map(|compiled| compiled.source.as_str()));
        let shows_date = sources.iter().flatten().any(|source| source.contains("strftime_now"));
        let date = shows_date.then(|| now().date());
        format!("{sources:?}{date:?}")
    }

    /// The source of the template, for messages.
    pub fn place(&self) -> &str {
        &self.compiled().place
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc())
}

/// The size of what a message brings to a template.
fn bytes_of(message: &Message) -> usize {
    let more = message.more.iter().map(|(key, value)| key.len() + value.to_string().len());
    message.content.len() + more.sum::<usize>()
}

/// The keys under which a turn brings its reasoning; the first one that is there counts (transformers'
/// `_REASONING_FIELDS`).
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message, or an object in it, as a template sees it: a map that keeps its order.
#[derive(Debug, Clone)]
pub(super) struct Fields(Vec<(String, Value)>);

impl Fields {
    /// The reasoning of a turn also stands under `thinking` and `reasoning_content`, in the order that transformers'
    /// `_alias_reasoning_fields` gives the keys.
    fn of(message: &Message, in_parts: bool) -> Self {
        let content = match message.more.get("content") {
            Some(content) => value_of(content),
            None if in_parts => value_of(&json!([{"type": "text", "text": message.content}])),
            None => Value::from(message.content.as_str()),
        };
        let mut fields = vec![("role".to_owned(), Value::from(message.role.name())), ("content".to_owned(), content)];
        let more = message.more.iter().filter(|(key, _)| *key != "content");
        fields.extend(more.map(|(key, value)| (key.clone(), value_of(value))));
        let reasoning = REASONING.iter().find_map(|key| message.more.get(*key).filter(|value| !value.is_null()));
        if let Some(reasoning) = reasoning.map(value_of) {
            if !message.more.contains_key("thinking") {
                fields.insert(0, ("thinking".to_owned(), reasoning.clone()));
            }
            match fields.iter_mut().find(|(key, _)| key == "reasoning_content") {
                Some((_, value)) => *value = reasoning,
                None => fields.push(("reasoning_content".to_owned(), reasoning)),
            }
        }
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
pub(super) fn value_of(json: &Json) -> Value {
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
