//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Delivery, Head, Tokens, finish_reason, identifier, take_fields_of_the_service};
use crate::data::read::message_of;
use crate::data::{Message, Role};
use crate::eval::tool_calls::ToolCall;
use crate::generate::engine::{TokenLogProbability, Usage};
use crate::generate::run::Finish;
use crate::run::named::Prompt;
use crate::serve::Server;
use crate::serve::calls::CallGate;
use crate::serve::failure::{Failure, Outcome};
use crate::serve::fields::Fields;
use crate::serve::format::AnswerFormat;
use crate::serve::held_calls::HeldCalls;
use crate::serve::limits::{MESSAGES, TOOLS};
use crate::serve::models::ServedModel;
use crate::serve::options::{AnswerOptions, encoded, likeliest};
use crate::serve::pictures::SentPictures;
use crate::serve::stream::{self, Framing, Objects};

/// A conversation that is to be answered.
pub(in crate::serve) struct Conversation {
    messages: Vec<Message>,
    pictures: SentPictures,
    /// The tools as the template shows them.
    tools: Option<Value>,
    /// Their names.
    names: Vec<String>,
    /// The calls that are held to schemas.
    held: Option<HeldCalls>,
}

impl Conversation {
    /// The messages and tools of a request of OpenAI's clients, or of Ollama's.
    pub(in crate::serve) fn read(fields: &mut Fields, is_ollama: bool) -> Outcome<Self> {
        let messages = fields.list("messages", MESSAGES)?;
        let messages = fields.required("messages", messages)?;
        if messages.is_empty() {
            return Err(Failure::field("messages", "is empty"));
        }
        let mut pictures = SentPictures::within(fields.take_large());
        let message = |(index, message)| read_message(index, message, &mut pictures, is_ollama);
        let messages = messages.into_iter().enumerate().map(message).collect::<Outcome<_>>()?;
        let tools = fields.list("tools", TOOLS)?.filter(|tools| !tools.is_empty());
        let names = tools.iter().flatten().map(tool_name).collect::<Outcome<_>>()?;
        let held = HeldCalls::strict(tools.as_deref().unwrap_or_default())?;
        Ok(Self { messages, pictures, tools: tools.map(Value::Array), names, held })
    }

    /// Does as a request's `tool_choice` says.
    fn choose_tools(&mut self, choice: Option<Value>) -> Outcome<()> {
        let Some(choice) = choice else { return Ok(()) };
        match choice.as_str() {
            Some("auto") => {}
            Some("none") => (self.tools, self.names, self.held) = (None, Vec::new(), None),
            _ => {
                let tools = self.tools.as_ref().and_then(Value::as_array);
                self.held = Some(HeldCalls::demanded(tools.map_or(&[], Vec::as_slice), &choice)?);
            }
        }
        Ok(())
    }

    /// Refuses a format of answers that may be calls instead.
    pub(in crate::serve) fn check_format(&self, format: Option<&AnswerFormat>) -> Outcome<()> {
        let may_call = self.tools.is_some() && !self.held.as_ref().is_some_and(HeldCalls::is_demanded);
        match format.filter(|_| may_call) {
            Some(format) => {
                Err(Failure::unsupported(format.field, "it stands beside `tools`, which the model may call instead"))
            }
            None => Ok(()),
        }
    }

    /// The prompt, and the format of the answer: that of its calls, or else `format`. The messages go with it.
    pub(in crate::serve) async fn prepare(
        &mut self,
        server: &Server,
        model: &Arc<ServedModel>,
        format: Option<AnswerFormat>,
    ) -> Outcome<(Prompt, Option<AnswerFormat>)> {
        let (messages, tools) = (std::mem::take(&mut self.messages), self.tools.clone());
        let pictures = std::mem::take(&mut self.pictures);
        let mut prompt = match pictures.is_empty() {
            true => encoded(model, "messages", move |named| named.prompt(&messages, tools.as_ref())).await?.into(),
            false => pictures.prompt(server, model, messages, tools).await?,
        };
        let Some(held) = self.held.clone() else { return Ok((prompt, format)) };
        let (format, beginning) = encoded(model, "tools", move |named| held.prepare(named)).await?;
        prompt.ids.extend(beginning);
        Ok((prompt, Some(format)))
    }

    /// The part of an answer that is text, and the rest, which may hold calls.
    pub(in crate::serve) fn gate(&self) -> CallGate {
        CallGate::new(self.names.clone())
    }
}

/// Further fields of a message that a template may show.
const MESSAGE_FIELDS: [&str; 7] =
    ["content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content", "tool_name"];

fn read_message(index: usize, message: Value, pictures: &mut SentPictures, is_ollama: bool) -> Outcome<Message> {
    let place = format!("messages[{index}]");
    let Value::Object(mut message) = message else {
        return Err(Failure::field(&place, "is not an object"));
    };
    // Answers come back as clients keep them.
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    message.retain(|key, value| key == "content" || !is_empty(value));
    if message.get("role").and_then(Value::as_str) == Some("developer") {
        message.insert("role".to_owned(), Value::from("system"));
    }
    let parts = pictures.take(&mut message, &place, is_ollama)?;
    let message = message_of(message).map_err(|reason| Failure::field(&place, format!("is no message: {reason}")))?;
    match message.more.keys().find(|key| !MESSAGE_FIELDS.contains(&key.as_str())) {
        Some(unknown) => Err(Failure::unknown_field(&format!("{place}.{unknown}"))),
        None if parts.is_some() && message.role == Role::Assistant => {
            Err(Failure::field(&place, "has a picture in a turn of the assistant, who answers in words"))
        }
        None => Ok(match parts {
            Some(parts) => message.with_parts(parts),
            None => message,
        }),
    }
}

fn tool_name(tool: &Value) -> Outcome<String> {
    let name = tool["function"]["name"].as_str().filter(|name| !name.is_empty() && name.len() <= 200);
    match (tool["type"].as_str(), name) {
        (Some("function"), Some(name)) => Ok(name.to_owned()),
        _ => Err(Failure::field("tools", "must have items {\"type\": \"function\", \"function\": {\"name\", …}}")),
    }
}

/// Answers a conversation.
pub(in crate::serve) async fn answer(server: Arc<Server>, mut fields: Fields) -> Outcome<Response> {
    let model = fields.text("model")?;
    let model = fields.required("model", model)?;
    let mut conversation = Conversation::read(&mut fields, false)?;
    conversation.choose_tools(fields.value("tool_choice"))?;
    let format = AnswerFormat::read(&mut fields)?;
    conversation.check_format(format.as_ref())?;
    let mut options = AnswerOptions::read(&mut fields, &["max_tokens", "max_completion_tokens"])?;
    let alternatives = likeliest(&mut fields, "top_logprobs")?;
    options.likeliest = fields.flag("logprobs")?.then_some(alternatives.unwrap_or(0));
    if alternatives.is_some_and(|count| count > 0) && options.likeliest.is_none() {
        return Err(Failure::field("top_logprobs", "is given without `logprobs`"));
    }
    let delivery = Delivery::read(&mut fields)?;
    let one_call = fields.value("parallel_tool_calls") == Some(Value::Bool(false));
    take_fields_of_the_service(&mut fields);
    let text_alone = "answers are text";
    fields.refuse(&[
        ("functions", Value::Null, "`tools` took its place"),
        ("function_call", json!("none"), "`tools` and `tool_choice` took its place"),
        ("modalities", json!(["text"]), text_alone),
        ("audio", Value::Null, text_alone),
        ("prediction", Value::Null, "a predicted answer is not used"),
        ("web_search_options", Value::Null, "the server opens no connection"),
        ("reasoning_effort", Value::Null, "the model has no such setting"),
        ("verbosity", Value::Null, "the model has no such setting"),
        ("chat_template", Value::Null, "the model's own chat template is used"),
        ("chat_template_kwargs", Value::Null, "the model's own chat template is used"),
    ])?;
    fields.finish()?;
    let model = server.models.get(&model)?;
    let (prompt, format) = conversation.prepare(&server, &model, format).await?;
    let count = options.choices;
    let constraints = server.constraints(&model, format, count).await?;
    let answers = server.answer(&model, vec![prompt], &options, constraints).await?;
    let head = Head::new("chatcmpl-", &model.named.name);
    if delivery.streams {
        let gates = (0..count).map(|_| conversation.gate()).collect();
        let chunks = Chunks { head, delivery, model, gates, one_call, tokens: Tokens::default() };
        return Ok(stream::response(answers, chunks, Framing::Events));
    }
    let completed = stream::collect(answers, count).await?;
    let tokens = Tokens::of(&completed, count);
    let choices = completed.into_iter().enumerate().map(|(index, one)| {
        let mut gate = conversation.gate();
        let mut text = gate.push(one.text);
        let (rest, calls) = gate.finish();
        text += &rest;
        let calls = call_objects(calls, one_call, false);
        let finish = if calls.is_empty() { finish_reason(one.finish) } else { "tool_calls" };
        let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
        if !calls.is_empty() {
            message["content"] = if text.trim().is_empty() { Value::Null } else { Value::from(text.trim()) };
            message["tool_calls"] = Value::Array(calls);
        }
        let log_probabilities = options.likeliest.map(|_| logprobs(&model, &one.log_probabilities));
        json!({ "index": index, "message": message, "logprobs": log_probabilities, "finish_reason": finish })
    });
    let mut object = head.object("chat.completion", choices.collect());
    object["usage"] = tokens.object();
    Ok(Json(object).into_response())
}

/// OpenAI's objects of calls; those of a stream are numbered.
fn call_objects(mut calls: Vec<ToolCall>, one_call: bool, is_stream: bool) -> Vec<Value> {
    calls.truncate(if one_call { 1 } else { usize::MAX });
    let object = |(index, call): (usize, ToolCall)| {
        let function = json!({ "name": call.name, "arguments": call.arguments.to_string() });
        let mut object = json!({ "id": identifier("call_"), "type": "function", "function": function });
        if is_stream {
            object["index"] = Value::from(index);
        }
        object
    };
    calls.into_iter().enumerate().map(object).collect()
}

/// The log-probabilities of tokens, with their bytes where they are whole characters.
fn logprobs(model: &ServedModel, tokens: &[TokenLogProbability]) -> Value {
    let object = |token: u32, log_probability: f64| {
        let text = Server::token_text(&model.named.encoder, token);
        let bytes = (!text.contains(char::REPLACEMENT_CHARACTER)).then(|| text.as_bytes().to_vec());
        // JSON has no number for a probability of 0.
        json!({ "token": text, "logprob": log_probability.max(-9999.0), "bytes": bytes })
    };
    let content = tokens.iter().map(|one| {
        let mut all = object(one.token, one.log_probability);
        let likeliest = one.likeliest.iter().map(|(token, log_probability)| object(*token, *log_probability));
        all["top_logprobs"] = likeliest.collect();
        all
    });
    json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
}

/// The chunks of a stream.
struct Chunks {
    head: Head,
    delivery: Delivery,
    model: Arc<ServedModel>,
    /// One for each answer.
    gates: Vec<CallGate>,
    one_call: bool,
    tokens: Tokens,
}

const CHUNK: &str = "chat.completion.chunk";

impl Chunks {
    fn chunk(&self, index: usize, delta: Value, logprobs: Option<Value>, finish: Option<&str>) -> Value {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        self.delivery.object(&self.head, CHUNK, choice)
    }
}

impl Objects for Chunks {
    fn begin(&mut self) -> Vec<Value> {
        let role = || json!({ "role": "assistant", "content": "", "refusal": null });
        (0..self.gates.len()).map(|index| self.chunk(index, role(), None, None)).collect()
    }

    fn token(&mut self, index: usize, text: String, log_probability: Option<TokenLogProbability>) -> Vec<Value> {
        let text = self.gates[index].push(text);
        let logprobs = log_probability.map(|one| logprobs(&self.model, std::slice::from_ref(&one)));
        if text.is_empty() && logprobs.is_none() {
            return Vec::new();
        }
        vec![self.chunk(index, json!({ "content": text }), logprobs, None)]
    }

    fn finished(&mut self, index: usize, text: String, finish: Finish, usage: &Usage) -> Vec<Value> {
        self.tokens.add(usage, index == 0);
        let mut text = self.gates[index].push(text);
        let (rest, calls) = self.gates[index].finish();
        text += &rest;
        let calls = call_objects(calls, self.one_call, true);
        let finish = if calls.is_empty() { finish_reason(finish) } else { "tool_calls" };
        let mut chunks = Vec::new();
        if !text.is_empty() {
            chunks.push(self.chunk(index, json!({ "content": text }), None, None));
        }
        if !calls.is_empty() {
            chunks.push(self.chunk(index, json!({ "tool_calls": calls }), None, None));
        }
        chunks.push(self.chunk(index, json!({}), None, Some(finish)));
        chunks
    }

    fn end(&mut self) -> Vec<Value> {
        self.delivery.last(&self.head, CHUNK, self.tokens)
    }
}
