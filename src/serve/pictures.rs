//! The pictures of a request: data URLs among the parts of OpenAI's messages, base64 beside the text of Ollama's. No other address is
//! opened, and no file.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::Server;
use super::failure::{Failure, Outcome};
use super::limits::PICTURES;
use super::models::ServedModel;
use crate::data::Message;
use crate::data::images::parts::{picture_part, text_part};
use crate::run::named::Prompt;

/// The part of a message that shows a picture.
const PART: &str = "{\"type\": \"image_url\", \"image_url\": {\"url\": \"data:image/png;base64,…\"}}, with a PNG or JPEG file in base64";
/// The beginnings of addresses that bring a picture along, in lower case.
const BEGINNINGS: [&str; 3] = ["data:image/png;base64", "data:image/jpeg;base64", "data:image/jpg;base64"];

/// The pictures of a request, which messages show by the names of their fields.
#[derive(Debug, Default)]
pub(super) struct SentPictures {
    sent: Vec<Sent>,
    /// The place among the large bodies, which is kept until the pictures are decoded.
    place: Option<OwnedSemaphorePermit>,
}

/// A picture as a field of the request spells it.
#[derive(Debug)]
struct Sent {
    field: String,
    base64: String,
}

impl SentPictures {
    /// None so far, of a body that has this place among the large ones.
    pub(super) fn within(place: Option<OwnedSemaphorePermit>) -> Self {
        Self { sent: Vec::new(), place }
    }

    /// Takes the pictures out of `message`, which stands at `place`; the parts that it shows in the place of its text, where there are
    /// any.
    pub(super) fn take(
        &mut self,
        message: &mut Map<String, Value>,
        place: &str,
        is_ollama: bool,
    ) -> Outcome<Option<Vec<Value>>> {
        let parts = match is_ollama {
            true => self.take_images(message, place)?,
            false => self.take_parts(message, place)?,
        };
        match self.sent.len() > PICTURES {
            true => Err(Failure::field("messages", format!("have {} pictures; at most {PICTURES}", self.sent.len()))),
            false => Ok(parts),
        }
    }

    /// OpenAI's parts of the type `image_url`.
    fn take_parts(&mut self, message: &mut Map<String, Value>, place: &str) -> Outcome<Option<Vec<Value>>> {
        let Some(Value::Array(content)) = message.get_mut("content") else { return Ok(None) };
        let before = self.sent.len();
        let (mut texts, mut shown) = (Vec::new(), Vec::new());
        for (index, mut part) in std::mem::take(content).into_iter().enumerate() {
            let field = format!("{place}.content[{index}]");
            match part["type"].as_str() {
                Some("image_url") => {
                    let sent = Sent::of_part(&mut part, &field)?;
                    shown.push(picture_part(&sent.field));
                    self.sent.push(sent);
                }
                Some(kind) if kind.contains("image") => {
                    return Err(Failure::field(&field, format!("is a picture in another form; expected {PART}")));
                }
                _ => {
                    shown.extend(part["text"].as_str().map(text_part));
                    texts.push(part);
                }
            }
        }
        *content = texts;
        Ok((self.sent.len() > before).then_some(shown))
    }

    /// Ollama's list of base64 beside the content, which comes before it.
    fn take_images(&mut self, message: &mut Map<String, Value>, place: &str) -> Outcome<Option<Vec<Value>>> {
        let Some(images) = message.shift_remove("images") else { return Ok(None) };
        let field = format!("{place}.images");
        let Value::Array(images) = images else { return Err(Failure::field(&field, "must be a list of base64 texts")) };
        let mut shown = Vec::new();
        for (index, image) in images.into_iter().enumerate() {
            let field = format!("{field}[{index}]");
            let Value::String(base64) = image else { return Err(Failure::field(&field, "must be a text in base64")) };
            shown.push(picture_part(&field));
            self.sent.push(Sent { field, base64 });
        }
        let text = message.get("content").and_then(Value::as_str).unwrap_or_default();
        shown.push(text_part(text));
        Ok((shown.len() > 1).then_some(shown))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// The prompt of messages that show these pictures. They are decoded and seen one request at a time, beside the event loop and the
    /// engine: one may take hundreds of megabytes while it is decoded.
    pub(super) async fn prompt(
        self,
        server: &Server,
        model: &Arc<ServedModel>,
        messages: Vec<Message>,
        tools: Option<Value>,
    ) -> Outcome<Prompt> {
        let first = self.sent.first().map_or("messages", |sent| sent.field.as_str());
        let mut pictures = model.named.pictures().map_err(|error| Failure::of(&error, first))?;
        let turn = server.pictures.clone().acquire_owned().await.map_err(|_| Failure::internal())?;
        let (model, positions) = (model.clone(), server.positions);
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let Self { sent, place } = self;
            for Sent { field, base64 } in sent {
                let bytes = STANDARD
                    .decode(base64)
                    .map_err(|error| Failure::field(&field, format!("is no base64 in one line: {error}")))?;
                pictures.add(&field, Arc::new(bytes)).map_err(|error| Failure::of(&error, &field))?;
            }
            drop(place);
            let ids = model.named.prompt_showing(&messages, tools.as_ref(), &pictures);
            let ids = ids.map_err(|error| Failure::of(&error, "messages"))?;
            if ids.len() >= positions {
                // The tower need not see what does not fit.
                return Err(Failure::too_long(ids.len(), positions));
            }
            let pictures = pictures.features().map_err(|error| Failure::of(&error, "messages"))?;
            Ok(Prompt { ids, pictures })
        });
        // A panic of the work is a bug; it ends this request alone.
        done.await.map_err(|_| Failure::internal())?
    }
}

impl Sent {
    /// The picture of a part `{"type": "image_url", "image_url": {"url": …}}`.
    fn of_part(part: &mut Value, field: &str) -> Outcome<Self> {
        let expected = || Failure::field(field, format!("is no picture; expected {PART}"));
        let fields = part.as_object_mut().ok_or_else(expected)?;
        if let Some(unknown) = fields.keys().find(|key| !["type", "image_url"].contains(&key.as_str())) {
            return Err(Failure::unknown_field(&format!("{field}.{unknown}")));
        }
        let image = fields.get_mut("image_url").and_then(Value::as_object_mut).ok_or_else(expected)?;
        // The choice of a resolution is the model's own.
        image.shift_remove("detail");
        let Some(Value::String(mut url)) = image.shift_remove("url") else { return Err(expected()) };
        if let Some(unknown) = image.keys().next() {
            return Err(Failure::unknown_field(&format!("{field}.image_url.{unknown}")));
        }
        let field = format!("{field}.image_url.url");
        let comma = url.find(',').filter(|comma| {
            let beginning = url[..*comma].to_ascii_lowercase();
            BEGINNINGS.contains(&beginning.as_str())
        });
        let Some(comma) = comma else {
            let message = "is no picture: the server opens no address and no file; expected the file itself, as `data:image/png;base64,…` \
                           or `data:image/jpeg;base64,…`";
            return Err(Failure::field(&field, message));
        };
        let base64 = url.split_off(comma + 1);
        Ok(Self { field, base64 })
    }
}
