//! `/v1/embeddings`: the mean of a text's last hidden states, of length 1.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::completions::input_ids;
use super::take_fields_of_the_service;
use crate::serve::Server;
use crate::serve::failure::{Failure, Outcome};
use crate::serve::fields::Fields;

/// Embeds texts.
pub(in crate::serve) async fn answer(server: Arc<Server>, mut fields: Fields) -> Outcome<Response> {
    let model = fields.text("model")?;
    let model = server.models.get(&fields.required("model", model)?)?;
    let as_base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Failure::field("encoding_format", "must be `float` or `base64`")),
    };
    take_fields_of_the_service(&mut fields);
    fields.refuse(&[("dimensions", Value::Null, "a vector has the width of the model")])?;
    let inputs = input_ids(&mut fields, "input", &model).await?;
    fields.finish()?;
    let _permit = server.places.clone().try_acquire_owned().map_err(|_| Failure::overloaded())?;
    let (mut data, mut tokens) = (Vec::new(), 0);
    for (index, ids) in inputs.into_iter().enumerate() {
        if ids.len() > server.positions {
            return Err(Failure::too_long(ids.len(), server.positions));
        }
        tokens += ids.len();
        let embedded = server.worker.embed(ids, model.key.clone()).await;
        let vector = of_length_one(embedded.map_err(|error| Failure::of(&error, "input"))?);
        let embedding = match as_base64 {
            true => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Value::from(STANDARD.encode(bytes))
            }
            false => Value::from(vector),
        };
        data.push(json!({ "object": "embedding", "index": index, "embedding": embedding }));
    }
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(Json(json!({ "object": "list", "data": data, "model": model.named.name, "usage": usage })).into_response())
}

/// The vector of the same direction and the length 1; a vector of zeros stays.
fn of_length_one(vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.into_iter().map(|value| (f64::from(value) * factor) as f32).collect()
}
