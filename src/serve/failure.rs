//! Failed requests, in the form in which OpenAI's clients read them.
//!
//! The messages come from a fixed list, with the name of a field or model at most: none has a path, an address or a
//! prompt in it.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::{Error, Kind};

/// A request that is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    pub(super) message: String,
    /// The field that is to blame.
    field: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which another try may succeed.
    retry_after: Option<u32>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), field: None, code: None, retry_after: None }
    }

    /// The request is wrong as a whole.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request is wrong.
    pub(super) fn field(field: &str, message: impl AsRef<str>) -> Self {
        let message = format!("`{field}` {}", message.as_ref());
        Self { field: Some(field.to_owned()), ..Self::invalid(message) }
    }

    /// A field asks for something that this server does not do.
    pub(super) fn unsupported(field: &str, reason: &str) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(field, format!("is not supported: {reason}")) }
    }

    /// A field that this server does not know.
    pub(super) fn unknown_field(field: &str) -> Self {
        let field: String = field.chars().take(100).collect();
        Self { code: Some("unknown_parameter"), ..Self::field(&field, "is not a field of this request") }
    }

    /// The prompt does not fit.
    pub(super) fn too_long(tokens: usize, positions: usize) -> Self {
        let message = format!("the prompt has {tokens} tokens; the model has {positions} positions");
        let code = Some("context_length_exceeded");
        Self { code, field: Some("messages".to_owned()), ..Self::invalid(message) }
    }

    pub(super) fn no_model(name: &str) -> Self {
        let name: String = name.chars().take(100).collect();
        Self {
            code: Some("model_not_found"),
            field: Some("model".to_owned()),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", format!("there is no model `{name}`"))
        }
    }

    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "there is nothing under this path")
    }

    pub(super) fn wrong_method() -> Self {
        let message = "this path does not know the method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    pub(super) fn no_key() -> Self {
        let message = "a key is needed, as `Authorization: Bearer KEY`";
        let code = Some("invalid_api_key");
        Self { code, ..Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message) }
    }

    pub(super) fn foreign(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub(super) fn not_json() -> Self {
        let message = "the body must be JSON, with the header `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    pub(super) fn too_large(bytes: usize) -> Self {
        let message = format!("the body has more than {bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "the body did not arrive in time")
    }

    pub(super) fn overloaded() -> Self {
        Self {
            code: Some("queue_full"),
            retry_after: Some(1),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "too many requests wait; try again")
        }
    }

    pub(super) fn ending() -> Self {
        let retry_after = Some(5);
        let message = "the server is ending; it takes no new requests";
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message) }
    }

    pub(super) fn internal() -> Self {
        let message = "the server failed at this request; others are not affected";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The failure that an error of the library is to a client. Its place, which may be a path, stays here; the part of it
    /// that names the prompt is the field `field`.
    pub(super) fn of(error: &Error, field: &str) -> Self {
        if error.kind() != Kind::Input {
            return Self::internal();
        }
        let messages: Vec<&str> = error.problems().iter().map(|problem| problem.message.as_str()).collect();
        Self { field: Some(field.to_owned()), ..Self::invalid(format!("`{field}`: {}", messages.join("; "))) }
    }

    /// The failure of an answer that has begun: a format that turns out too complex is the request's.
    pub(super) fn of_answer(error: &Error) -> Self {
        let message = error.problems().first().map_or("", |problem| problem.message.as_str());
        if error.kind() == Kind::Input { Self::invalid(message) } else { Self::internal() }
    }

    /// OpenAI's object.
    pub(super) fn object(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind, "param": self.field, "code": self.code } })
    }

    /// The same failure in Ollama's form.
    pub(super) fn for_ollama(self) -> OllamaFailure {
        OllamaFailure(self)
    }

    fn response(&self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.response(self.object())
    }
}

/// A failed request of a client that speaks Ollama's protocol.
pub(super) struct OllamaFailure(Failure);

impl IntoResponse for OllamaFailure {
    fn into_response(self) -> Response {
        self.0.response(json!({ "error": self.0.message }))
    }
}

/// The outcome of a step of a request.
pub(super) type Outcome<T> = std::result::Result<T, Failure>;
