//! Answers that are held to a schema: the field that asks for it, and its preparation beside the event loop.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Server;
use super::failure::{Failure, Outcome};
use super::fields::Fields;
use super::models::ServedModel;
use crate::error::Error;
use crate::generate::constraint::Constraint;

/// The time to prepare a schema. Work on it goes on behind that time, in one of few places, and is thrown away.
const PREPARATION: Duration = Duration::from_secs(10);

/// A schema that answers are held to.
#[derive(Debug, Clone)]
pub(super) struct AnswerFormat {
    pub(super) schema: Value,
    /// The opening of the parts that are held to it, where answers are free text otherwise.
    pub(super) opening: Option<String>,
    /// The field that asks for it.
    pub(super) field: &'static str,
}

impl AnswerFormat {
    /// OpenAI's `response_format`; none for text.
    pub(super) fn read(fields: &mut Fields) -> Outcome<Option<Self>> {
        const FIELD: &str = "response_format";
        let Some(mut format) = fields.object(FIELD)? else { return Ok(None) };
        let kind = format.text("type")?;
        let schema = match format.required("type", kind)?.as_str() {
            "text" => None,
            "json_object" => Some(json!({ "type": "object" })),
            "json_schema" => {
                let described = format.object("json_schema")?;
                let mut described = format.required("json_schema", described)?;
                // Every schema is held to, `strict` or not.
                described.without_effect(&["name", "description", "strict"]);
                let schema = described.value("schema");
                let schema = described.required("schema", schema)?;
                described.finish()?;
                Some(schema)
            }
            _ => return Err(Failure::unsupported(FIELD, "`text`, `json_object` and `json_schema` are known")),
        };
        format.finish()?;
        Ok(schema.map(|schema| Self { schema, opening: None, field: FIELD }))
    }
}

impl Server {
    /// Prepares the format of `count` answers by a model, on a thread for blocking work; none where there is no format.
    pub(super) async fn constraints(
        &self,
        model: &Arc<ServedModel>,
        format: Option<AnswerFormat>,
        count: usize,
    ) -> Outcome<Vec<Constraint>> {
        let Some(AnswerFormat { schema, opening, field }) = format else { return Ok(Vec::new()) };
        let place = tokio::time::timeout(PREPARATION, self.schemas.clone().acquire_owned()).await;
        let place = place.map_err(|_| Failure::overloaded())?.map_err(|_| Failure::internal())?;
        let (model, rows) = (model.clone(), self.rows);
        let work = tokio::task::spawn_blocking(move || {
            let _place = place;
            let vocabulary = model.vocabulary(rows)?;
            let constraint = match opening {
                Some(opening) => Constraint::calls(&vocabulary, &opening, &schema)?,
                None => Constraint::json_schema(&vocabulary, &schema)?,
            };
            Ok::<_, Error>(vec![constraint; count])
        });
        let done = tokio::time::timeout(PREPARATION, work).await;
        let done = done.map_err(|_| Failure::field(field, "has a schema that takes too long to prepare"))?;
        done.map_err(|_| Failure::internal())?.map_err(|error| Failure::of(&error, field))
    }
}
