//! Ollama's protocol: `/api/chat`, `/api/generate` and the requests that its clients begin with.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Server;
use super::calls::CallGate;
use super::failure::{Failure, Outcome};
use super::fields::Fields;
use super::format::AnswerFormat;
use super::limits::{STOP_BYTES, STOP_STRINGS};
use super::models::ServedModel;
use super::openai::chat::Conversation;
use super::options::{AnswerOptions, bare_ids, encoded, seed, whole};
use super::stream::{self, Framing, Objects};
use crate::data::Message;
use crate::eval::tool_calls::ToolCall;
use crate::generate::engine::{TokenLogProbability, Usage};
use crate::generate::run::Finish;
use crate::generate::sample::SamplerConfig;
use crate::run::named::Prompt;

/// Ollama's name of a version that a client may append.
const LATEST: &str = ":latest";

fn model_of(server: &Server, fields: &mut Fields) -> Outcome<Arc<ServedModel>> {
    let name = fields.text("model")?;
    let name = fields.required("model", name)?;
    let found = server.models.get(&name);
    found.or_else(|missing| server.models.get(name.strip_suffix(LATEST).unwrap_or_default()).map_err(|_| missing))
}

/// The options of an answer, under Ollama's names and with its defaults.
fn options_of(fields: &mut Fields) -> Outcome<AnswerOptions> {
    fields.without_effect(&["keep_alive"]);
    fields.refuse(&[
        ("think", json!(false), "the model has no such setting"),
        ("images", Value::Null, "`/api/chat` takes pictures, in its messages"),
        ("template", json!(""), "the model's own chat template is used"),
        ("suffix", json!(""), "the model continues a text and does not fill gaps"),
        ("context", Value::Null, "conversations go through `/api/chat`"),
        ("logprobs", json!(false), "`/v1/chat/completions` has them"),
        ("top_logprobs", json!(0), "`/v1/chat/completions` has them"),
    ])?;
    let mut options = match fields.object("options")? {
        Some(options) => options,
        None => Fields::parse(b"{}")?,
    };
    // The size of the cache and of batches, and the threads, are the server's.
    options.without_effect(&["num_ctx", "num_batch", "num_thread", "num_gpu", "num_keep", "use_mmap", "numa"]);
    let sampler = SamplerConfig {
        temperature: options
            .number("temperature", 0.0..=2.0)?
            .map_or(0.8, |given| if given < 1e-6 { 0.0 } else { given }),
        top_k: whole(options.integer("top_k", 0..=i64::from(u32::MAX))?).unwrap_or(40),
        top_p: options.number("top_p", 0.0..=1.0)?.unwrap_or(0.9),
        min_p: options.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        repetition_penalty: options.number("repeat_penalty", 0.01..=100.0)?.unwrap_or(1.0),
        frequency_penalty: options.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        presence_penalty: options.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        logit_bias: Vec::new(),
        seed: seed(&mut options)?,
    };
    // -1 and -2 mean no limit.
    let max_tokens = options.integer("num_predict", -2..=i64::from(u32::MAX))?.filter(|count| *count > 0);
    let stop = options.texts("stop", STOP_STRINGS, STOP_BYTES)?;
    let stop = stop.into_iter().filter(|text| !text.is_empty()).collect();
    options.finish()?;
    let max_tokens = whole(max_tokens);
    Ok(AnswerOptions { sampler, max_tokens, stop, likeliest: None, choices: 1 })
}

/// Ollama streams unless it is told not to.
fn streams(fields: &mut Fields) -> Outcome<bool> {
    match fields.value("stream") {
        None | Some(Value::Bool(true)) => Ok(true),
        Some(Value::Bool(false)) => Ok(false),
        Some(_) => Err(Failure::field("stream", "must be true or false")),
    }
}

/// `format`: "json" stands for any object, an object is a schema.
fn format_of(fields: &mut Fields) -> Outcome<Option<AnswerFormat>> {
    let schema = match fields.value("format") {
        None => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::String(text)) if text == "json" => json!({ "type": "object" }),
        Some(schema @ Value::Object(_)) => schema,
        Some(_) => return Err(Failure::field("format", "must be \"json\" or a schema")),
    };
    Ok(Some(AnswerFormat { schema, opening: None, field: "format" }))
}

/// `/api/chat`.
pub(super) async fn chat(server: Arc<Server>, mut fields: Fields) -> Outcome<Response> {
    let model = model_of(&server, &mut fields)?;
    let (options, streams) = (options_of(&mut fields)?, streams(&mut fields)?);
    let mut conversation = Conversation::read(&mut fields, true)?;
    let format = format_of(&mut fields)?;
    conversation.check_format(format.as_ref())?;
    fields.finish()?;
    let (prompt, format) = conversation.prepare(&server, &model, format).await?;
    reply(&server, model, (prompt, format), &options, streams, Some(conversation.gate())).await
}

/// `/api/generate`.
pub(super) async fn generate(server: Arc<Server>, mut fields: Fields) -> Outcome<Response> {
    let model = model_of(&server, &mut fields)?;
    let (options, streams) = (options_of(&mut fields)?, streams(&mut fields)?);
    let format = format_of(&mut fields)?;
    let prompt = fields.text("prompt")?.unwrap_or_default();
    let system = fields.text("system")?.filter(|system| !system.is_empty());
    let is_raw = fields.flag("raw")?;
    fields.finish()?;
    if prompt.is_empty() {
        // A client's question whether the model is loaded.
        let mut object = beginning(&model);
        object.extend([("response".to_owned(), "".into()), ("done".to_owned(), true.into())]);
        object.insert("done_reason".to_owned(), "load".into());
        return Ok(Json(Value::Object(object)).into_response());
    }
    let ids = encoded(&model, "prompt", move |named| match (is_raw, system) {
        (true, _) => bare_ids(named, &prompt),
        (false, Some(system)) => named.prompt(&[Message::system(system), Message::user(prompt)], None),
        (false, None) => named.prompt(&[Message::user(prompt)], None),
    });
    let ids = ids.await?;
    reply(&server, model, (ids.into(), format), &options, streams, None).await
}

/// Sends an answer; `gate` stands for a message rather than a plain text.
async fn reply(
    server: &Server,
    model: Arc<ServedModel>,
    (prompt, format): (Prompt, Option<AnswerFormat>),
    options: &AnswerOptions,
    streams: bool,
    gate: Option<CallGate>,
) -> Outcome<Response> {
    let started = Instant::now();
    let constraints = server.constraints(&model, format, 1).await?;
    let answers = server.answer(&model, vec![prompt], options, constraints).await?;
    let mut lines = Lines { model, gate, started };
    if streams {
        return Ok(stream::response(answers, lines, Framing::Lines));
    }
    let completed = stream::collect(answers, 1).await?.pop().ok_or_else(Failure::internal)?;
    let (text, calls) = lines.split(completed.text, true);
    let object = lines.last(text, calls, completed.finish, &completed.usage);
    Ok(Json(object).into_response())
}

fn beginning(model: &ServedModel) -> Map<String, Value> {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    Map::from_iter([("model".to_owned(), model.named.name.as_str().into()), ("created_at".to_owned(), now.into())])
}

/// The lines of a stream.
struct Lines {
    model: Arc<ServedModel>,
    gate: Option<CallGate>,
    started: Instant,
}

impl Lines {
    /// The text to send now, and the calls at the end.
    fn split(&mut self, text: String, is_end: bool) -> (String, Vec<ToolCall>) {
        let Some(gate) = &mut self.gate else { return (text, Vec::new()) };
        let text = gate.push(text);
        if !is_end {
            return (text, Vec::new());
        }
        let (rest, calls) = gate.finish();
        (text + &rest, calls)
    }

    fn line(&self, text: String, calls: Vec<ToolCall>, is_done: bool) -> Map<String, Value> {
        let mut line = beginning(&self.model);
        if self.gate.is_some() {
            let mut message = json!({ "role": "assistant", "content": text });
            if !calls.is_empty() {
                let calls = calls.into_iter().map(|call| json!({ "function": call }));
                message["tool_calls"] = calls.collect();
            }
            line.insert("message".to_owned(), message);
        } else {
            line.insert("response".to_owned(), text.into());
        }
        line.insert("done".to_owned(), is_done.into());
        line
    }

    /// The line at the end, with counts, and times in nanoseconds.
    fn last(&self, text: String, calls: Vec<ToolCall>, finish: Finish, usage: &Usage) -> Value {
        let mut line = self.line(text, calls, true);
        let is_stop = matches!(finish, Finish::EndToken | Finish::Stop | Finish::Complete);
        let reason = if is_stop { "stop" } else { "length" };
        let nanoseconds = |seconds: f64| (seconds.max(0.0) * 1e9) as u64;
        line.insert("done_reason".to_owned(), reason.into());
        let times = [
            ("total_duration", self.started.elapsed().as_nanos() as u64),
            ("load_duration", 0),
            ("prompt_eval_count", usage.prompt_tokens as u64),
            ("prompt_eval_duration", nanoseconds(usage.seconds_to_first_token)),
            ("eval_count", usage.answer_tokens as u64),
            ("eval_duration", nanoseconds(usage.seconds - usage.seconds_to_first_token)),
        ];
        line.extend(times.map(|(name, value)| (name.to_owned(), value.into())));
        Value::Object(line)
    }
}

impl Objects for Lines {
    fn token(&mut self, _: usize, text: String, _: Option<TokenLogProbability>) -> Vec<Value> {
        match self.split(text, false).0 {
            text if text.is_empty() => Vec::new(),
            text => vec![Value::Object(self.line(text, Vec::new(), false))],
        }
    }

    fn finished(&mut self, _: usize, text: String, finish: Finish, usage: &Usage) -> Vec<Value> {
        let (text, calls) = self.split(text, true);
        let mut lines = Vec::new();
        if !text.is_empty() || !calls.is_empty() {
            lines.push(Value::Object(self.line(text, calls, false)));
        }
        lines.push(self.last(String::new(), Vec::new(), finish, usage));
        lines
    }

    fn failed(&self, failure: &Failure) -> Value {
        json!({ "error": failure.message })
    }
}

/// `/api/tags`: the models.
pub(super) fn tags(server: &Server) -> Value {
    let models = server.models.all();
    let models = models.iter().map(|model| {
        let created = OffsetDateTime::from_unix_timestamp(model.created()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let modified = created.format(&Rfc3339).unwrap_or_default();
        let name = &model.named.name;
        json!({ "name": name, "model": name, "modified_at": modified, "size": 0, "digest": "", "details": { "format": "burnish" } })
    });
    json!({ "models": models.collect::<Vec<_>>() })
}
