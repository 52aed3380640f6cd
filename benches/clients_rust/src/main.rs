//! `async-openai` against a running `burnish serve`: chat, streams, tools, formats, errors, a client that leaves, embeddings.
//!
//! ```text
//! cargo run --manifest-path benches/clients_rust/Cargo.toml -- http://127.0.0.1:8080
//! ```
//!
//! Tools are checked with every model of the server; a chat template that does not show them has to say so. Exits with 1 where something
//! fails.

use std::fmt::Debug;
use std::process::ExitCode;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{
    ChatCompletionMessageToolCalls, CreateChatCompletionRequest, CreateChatCompletionResponse, FinishReason,
};
use async_openai::types::embeddings::{CreateEmbeddingRequest, EncodingFormat};
use futures::StreamExt;
use serde_json::{Value, json};

/// The checks so far.
struct Checks {
    failures: usize,
}

impl Checks {
    fn check(&mut self, name: &str, holds: bool, found: impl Debug) {
        match holds {
            true => println!("ok     {name}"),
            false => println!("FAILED {name} {found:?}"),
        }
        self.failures += usize::from(!holds);
    }
}

/// A request in the library's own type.
fn request(model: &str, more: Value) -> CreateChatCompletionRequest {
    let messages = json!([{ "role": "user", "content": "What is the capital of France?" }]);
    let mut body = json!({ "model": model, "messages": messages, "max_completion_tokens": 24, "temperature": 0.0 });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    serde_json::from_value(body).expect("a request")
}

fn text(answer: &CreateChatCompletionResponse) -> &str {
    answer.choices[0].message.content.as_deref().unwrap_or_default()
}

/// The text and the last reason of a stream.
async fn streamed(
    client: &Client<OpenAIConfig>,
    request: CreateChatCompletionRequest,
) -> Result<(String, Vec<String>, Option<FinishReason>), OpenAIError> {
    let mut stream = client.chat().create_stream(request).await?;
    let (mut text, mut arguments, mut finish) = (String::new(), Vec::new(), None);
    while let Some(chunk) = stream.next().await {
        for choice in chunk?.choices {
            text += choice.delta.content.as_deref().unwrap_or_default();
            let calls = choice.delta.tool_calls.into_iter().flatten().filter_map(|call| call.function);
            arguments.extend(calls.filter_map(|function| function.arguments));
            finish = choice.finish_reason.or(finish);
        }
    }
    Ok((text, arguments, finish))
}

/// The code of an answer that is refused.
fn code(outcome: &Result<CreateChatCompletionResponse, OpenAIError>) -> Option<&str> {
    match outcome {
        Err(OpenAIError::ApiError(error)) => error.api_error.code.as_deref(),
        _ => None,
    }
}

/// The calls of a tool with one argument, streamed or not, if the model's template shows tools.
async fn tools(client: &Client<OpenAIConfig>, model: &str, checks: &mut Checks) -> Result<(), OpenAIError> {
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "enum": ["Paris", "Rome"] } },
        "required": ["city"],
        "additionalProperties": false,
    });
    let function = json!({ "name": "weather", "description": "The weather.", "parameters": parameters, "strict": true });
    let tools = json!([{ "type": "function", "function": function }]);
    let is_city = |arguments: &str| {
        serde_json::from_str::<Value>(arguments)
            .is_ok_and(|value| value["city"] == "Paris" || value["city"] == "Rome")
    };
    let demanded = json!({ "tools": tools, "tool_choice": "required", "max_completion_tokens": 60 });
    let answer = client.chat().create(request(model, demanded.clone())).await;
    if let Err(OpenAIError::ApiError(error)) = &answer {
        let says_so = error.api_error.message.contains("does not show tools");
        checks.check(&format!("{model}: a template without tools says so"), says_so, error);
        return Ok(());
    }
    let answer = answer?;
    let calls = answer.choices[0].message.tool_calls.as_deref().unwrap_or_default();
    let holds = matches!(calls, [ChatCompletionMessageToolCalls::Function(call)]
        if call.function.name == "weather" && is_city(&call.function.arguments));
    checks.check(&format!("{model}: a demanded call"), holds, &answer);
    let (_, arguments, finish) = streamed(client, request(model, demanded)).await?;
    let holds = arguments.iter().all(|one| is_city(one)) && arguments.len() == 1;
    checks.check(&format!("{model}: a streamed call"), holds && finish == Some(FinishReason::ToolCalls), arguments);
    // The model may call or not; where it does, the arguments are valid.
    let free = json!({ "tools": tools, "max_completion_tokens": 60, "n": 4, "temperature": 1.0, "seed": 1 });
    let answer = client.chat().create(request(model, free)).await?;
    let mut calls = answer.choices.iter().flat_map(|choice| choice.message.tool_calls.iter().flatten());
    let holds = calls.all(|call| match call {
        ChatCompletionMessageToolCalls::Function(call) => is_city(&call.function.arguments),
        ChatCompletionMessageToolCalls::Custom(_) => false,
    });
    checks.check(&format!("{model}: strict calls or text"), holds, &answer);
    Ok(())
}

async fn run(server: &str, checks: &mut Checks) -> Result<(), OpenAIError> {
    let config = OpenAIConfig::new().with_api_base(format!("{server}/v1")).with_api_key("none");
    let client = Client::with_config(config);
    let models: Vec<String> = client.models().list().await?.data.into_iter().map(|model| model.id).collect();
    let model = models[0].as_str();
    let whole = client.chat().create(request(model, json!({}))).await?;
    let used = whole.usage.as_ref().map_or(0, |usage| usage.completion_tokens);
    checks.check("chat", text(&whole).len() > 10 && used > 0, &whole);
    let (pieces, _, finish) = streamed(&client, request(model, json!({}))).await?;
    checks.check("stream", pieces == text(&whole) && finish.is_some(), &pieces);
    for model in &models {
        tools(&client, model, checks).await?;
    }
    let schema = json!({
        "type": "object",
        "properties": { "name": { "type": "string", "maxLength": 30 }, "kind": { "enum": ["city", "country"] } },
        "required": ["name", "kind"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "place", "strict": true, "schema": schema } });
    let more = json!({ "response_format": format, "max_completion_tokens": 80 });
    let held = client.chat().create(request(model, more)).await?;
    let kind = serde_json::from_str::<Value>(text(&held)).map(|place| place["kind"].clone());
    let is_kind = kind.is_ok_and(|kind| kind == "city" || kind == "country");
    checks.check("response_format", is_kind && held.choices[0].finish_reason == Some(FinishReason::Stop), &held);
    let unknown = client.chat().create(request("none", json!({}))).await;
    checks.check("error: a model that is not there", code(&unknown) == Some("model_not_found"), &unknown);
    let odd = client.chat().create(request(model, json!({ "verbosity": "high" }))).await;
    checks.check("error: a field that is not supported", code(&odd) == Some("unsupported_parameter"), &odd);
    let mut left = client.chat().create_stream(request(model, json!({ "max_completion_tokens": 500 }))).await?;
    let begun = left.next().await;
    drop(left);
    let again = client.chat().create(request(model, json!({}))).await?;
    checks.check("a client that leaves", matches!(begun, Some(Ok(_))) && text(&again) == text(&whole), &again);
    let input = json!(["a dog", "a cat", "the stock exchange"]);
    let asked: CreateEmbeddingRequest =
        serde_json::from_value(json!({ "model": model, "input": input })).expect("a request");
    let vectors = client.embeddings().create(asked.clone()).await?.data;
    let dot = |one: usize, other: usize| -> f32 {
        vectors[one].embedding.iter().zip(&vectors[other].embedding).map(|(x, y)| x * y).sum()
    };
    let near = (dot(0, 0) - 1.0).abs() < 1e-4 && dot(0, 1) > dot(0, 2);
    checks.check("embeddings", vectors.len() == 3 && near, vectors.len());
    let asked = CreateEmbeddingRequest { encoding_format: Some(EncodingFormat::Base64), ..asked };
    let coded: Vec<f32> = client.embeddings().create_base64(asked).await?.data.remove(0).embedding.into();
    checks.check("embeddings in base64", coded == vectors[0].embedding, coded.len());
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(server) = std::env::args().nth(1) else {
        eprintln!("expected the address of the server, as http://127.0.0.1:8080");
        return ExitCode::from(2);
    };
    let mut checks = Checks { failures: 0 };
    if let Err(error) = run(&server, &mut checks).await {
        checks.check("every request", false, error);
    }
    ExitCode::from(u8::from(checks.failures > 0))
}
