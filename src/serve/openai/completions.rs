//! `/v1/completions`: texts that the model continues.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::{Delivery, Head, Tokens, finish_reason, take_fields_of_the_service};
use crate::generate::engine::{TokenLogProbability, Usage};
use crate::generate::run::Finish;
use crate::run::named::Prompt;
use crate::serve::Server;
use crate::serve::failure::{Failure, Outcome};
use crate::serve::fields::Fields;
use crate::serve::limits::PROMPTS;
use crate::serve::models::ServedModel;
use crate::serve::options::{AnswerOptions, bare_ids, encoded, likeliest};
use crate::serve::stream::{self, Framing, Objects};

/// A text, or token ids.
enum Input {
    Text(String),
    Ids(Vec<u32>),
}

/// The inputs under `field`, in any of OpenAI's four forms: a text, token ids, or a list of either.
fn inputs(fields: &mut Fields, field: &str) -> Outcome<Vec<Input>> {
    let value = fields.value(field);
    let wrong =
        || Failure::field(field, format!("must be a text, token ids, or a list of at most {PROMPTS} of either"));
    let ids = |items: Vec<Value>| {
        let id = |item: Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
        items.into_iter().map(id).collect::<Outcome<Vec<u32>>>().map(Input::Ids)
    };
    let items = match fields.required(field, value)? {
        Value::String(text) => return Ok(vec![Input::Text(text)]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => return Ok(vec![ids(items)?]),
        Value::Array(items) if (1..=PROMPTS).contains(&items.len()) => items,
        _ => return Err(wrong()),
    };
    let input = |item: Value| match item {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(items) => ids(items),
        _ => Err(wrong()),
    };
    items.into_iter().map(input).collect()
}

/// The tokens of each input under `field`.
pub(super) async fn input_ids(
    fields: &mut Fields,
    field: &'static str,
    model: &Arc<ServedModel>,
) -> Outcome<Vec<Vec<u32>>> {
    let inputs = inputs(fields, field)?;
    encoded(model, field, move |named| {
        let ids = inputs.into_iter().map(|input| match input {
            Input::Text(text) => bare_ids(named, &text),
            Input::Ids(ids) => {
                named.encoder.check_ids(&ids)?;
                Ok(ids)
            }
        });
        ids.collect()
    })
    .await
}

/// Continues texts.
pub(in crate::serve) async fn answer(server: Arc<Server>, mut fields: Fields) -> Outcome<Response> {
    let model = fields.text("model")?;
    let model = server.models.get(&fields.required("model", model)?)?;
    let mut options = AnswerOptions::read(&mut fields, &["max_tokens"])?;
    options.likeliest = likeliest(&mut fields, "logprobs")?;
    let delivery = Delivery::read(&mut fields)?;
    take_fields_of_the_service(&mut fields);
    fields.refuse(&[
        ("best_of", json!(options.choices), "every answer is given back"),
        ("echo", json!(false), "the answer comes without the prompt"),
        ("suffix", json!(""), "the model continues a text and does not fill gaps"),
    ])?;
    let prompts = input_ids(&mut fields, "prompt", &model).await?;
    fields.finish()?;
    let count = prompts.len() * options.choices;
    let prompts = prompts.into_iter().map(Prompt::from).collect();
    let answers = server.answer(&model, prompts, &options, Vec::new()).await?;
    let head = Head::new("cmpl-", &model.named.name);
    if delivery.streams {
        let lengths = vec![0; count];
        let chunks = Chunks { head, delivery, model, choices: options.choices, lengths, tokens: Tokens::default() };
        return Ok(stream::response(answers, chunks, Framing::Events));
    }
    let completed = stream::collect(answers, count).await?;
    let tokens = Tokens::of(&completed, options.choices);
    let choices = completed.into_iter().enumerate().map(|(index, one)| {
        let logprobs = options.likeliest.map(|_| logprobs(&model, &one.log_probabilities, &mut 0));
        let finish = finish_reason(one.finish);
        json!({ "index": index, "text": one.text, "logprobs": logprobs, "finish_reason": finish })
    });
    let mut object = head.object("text_completion", choices.collect());
    object["usage"] = tokens.object();
    Ok(Json(object).into_response())
}

/// The log-probabilities of tokens; `length` is the number of characters before them.
fn logprobs(model: &ServedModel, tokens: &[TokenLogProbability], length: &mut usize) -> Value {
    let text = |token: u32| Server::token_text(&model.named.encoder, token);
    let (mut texts, mut offsets, mut values, mut likeliest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for one in tokens {
        let own = text(one.token);
        offsets.push(*length);
        *length += own.chars().count();
        texts.push(own);
        values.push(one.log_probability.max(-9999.0));
        let others = one.likeliest.iter().map(|(token, value)| (text(*token), Value::from(value.max(-9999.0))));
        likeliest.push(others.collect::<Map<_, _>>());
    }
    json!({ "tokens": texts, "token_logprobs": values, "top_logprobs": likeliest, "text_offset": offsets })
}

/// The objects of a stream.
struct Chunks {
    head: Head,
    delivery: Delivery,
    model: Arc<ServedModel>,
    /// Answers to each prompt.
    choices: usize,
    /// The characters of each answer's tokens so far.
    lengths: Vec<usize>,
    tokens: Tokens,
}

const CHUNK: &str = "text_completion";

impl Chunks {
    fn chunk(&self, index: usize, text: &str, logprobs: Option<Value>, finish: Option<&str>) -> Value {
        let choice = json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish });
        self.delivery.object(&self.head, CHUNK, choice)
    }
}

impl Objects for Chunks {
    fn token(&mut self, index: usize, text: String, log_probability: Option<TokenLogProbability>) -> Vec<Value> {
        let one = log_probability.as_ref().map(std::slice::from_ref);
        let logprobs = one.map(|one| logprobs(&self.model, one, &mut self.lengths[index]));
        if text.is_empty() && logprobs.is_none() {
            return Vec::new();
        }
        vec![self.chunk(index, &text, logprobs, None)]
    }

    fn finished(&mut self, index: usize, text: String, finish: Finish, usage: &Usage) -> Vec<Value> {
        self.tokens.add(usage, index.is_multiple_of(self.choices));
        vec![self.chunk(index, &text, None, Some(finish_reason(finish)))]
    }

    fn end(&mut self) -> Vec<Value> {
        self.delivery.last(&self.head, CHUNK, self.tokens)
    }
}
