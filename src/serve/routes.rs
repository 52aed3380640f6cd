//! The routes, and everything that a request passes before it reaches one.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::Server;
use super::access::Access;
use super::failure::{Failure, Outcome};
use super::fields::Fields;
use super::limits::Limits;
use super::openai::{chat, completions, embeddings};
use super::{ollama, page};

type Shared = Arc<Server>;

/// Every route. [`gate`] stands before all of them, so that none can be forgotten.
fn all() -> Vec<(&'static str, MethodRouter<Shared>)> {
    vec![
        ("/", get(page::page)),
        (HEALTH, get(health)),
        ("/metrics", get(metrics)),
        (
            "/v1/chat/completions",
            post(async |State(server): State<Shared>, request: Request| {
                chat::answer(server.clone(), server.read(request).await?).await
            }),
        ),
        (
            "/v1/completions",
            post(async |State(server): State<Shared>, request: Request| {
                completions::answer(server.clone(), server.read(request).await?).await
            }),
        ),
        (
            "/v1/embeddings",
            post(async |State(server): State<Shared>, request: Request| {
                embeddings::answer(server.clone(), server.read(request).await?).await
            }),
        ),
        ("/v1/models", get(models)),
        ("/v1/models/{*name}", get(model).delete(remove)),
        ("/v1/adapters/reload", post(reload)),
        (
            "/api/chat",
            post(async |State(server): State<Shared>, request: Request| {
                let answered = async { ollama::chat(server.clone(), server.read(request).await?).await };
                answered.await.map_err(Failure::for_ollama)
            }),
        ),
        (
            "/api/generate",
            post(async |State(server): State<Shared>, request: Request| {
                let answered = async { ollama::generate(server.clone(), server.read(request).await?).await };
                answered.await.map_err(Failure::for_ollama)
            }),
        ),
        ("/api/tags", get(async |State(server): State<Shared>| Json(ollama::tags(&server)))),
        ("/api/version", get(async || Json(json!({ "version": env!("CARGO_PKG_VERSION") })))),
        ("/api/votes", get(votes).post(vote)),
    ]
}

/// The paths of the routes.
static ROUTES: LazyLock<Vec<&str>> = LazyLock::new(|| all().into_iter().map(|(path, _)| path).collect());

/// The one route that needs neither key nor host.
const HEALTH: &str = "/healthz";

/// The route of a path, for logs and figures: names in it may be anything.
fn label(path: &str) -> &'static str {
    let is_at = |route: &str| route.split_once('{').map_or(route == path, |(before, _)| path.starts_with(before));
    ROUTES.iter().find(|route| is_at(route)).copied().unwrap_or("none")
}

/// The router of the server.
pub(super) fn router(server: Shared) -> Router {
    let routes = all().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    let routes = routes.fallback(async || Failure::no_route());
    let routes = routes.method_not_allowed_fallback(async || Failure::wrong_method());
    routes.layer(middleware::from_fn_with_state(server.clone(), gate)).with_state(server)
}

/// Lets a request pass that may, and counts it.
async fn gate(State(server): State<Shared>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = label(request.uri().path());
    let method = request.method().clone();
    let (mut response, origin) = match server.admit(path, &request) {
        Err(failure) => (failure.into_response(), None),
        Ok(origin) if origin.is_some() && Access::is_preflight(request.method(), request.headers()) => {
            (StatusCode::NO_CONTENT.into_response(), origin)
        }
        Ok(origin) => (next.run(request).await, origin),
    };
    let headers = response.headers_mut();
    protect(headers);
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
        let allowed = HeaderValue::from_static("authorization, content-type");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    let (status, time) = (response.status().as_u16(), started.elapsed());
    server.host.line(&format!("{method} {path}: {status} after {} ms", time.as_millis()));
    server.metrics.request(path, status, time);
    response
}

/// Sets the headers that every response has.
pub(super) fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::VARY, "origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

impl Server {
    /// Whether a request may pass; the origin of its page, if that is one of the list.
    fn admit(&self, path: &str, request: &Request) -> Outcome<Option<HeaderValue>> {
        if path == HEALTH {
            return Ok(None);
        }
        let origin = self.access.check_source(request.uri(), request.headers())?;
        // A browser asks without the key; the page has no secrets, and asks for the key itself.
        let is_open = path == "/" || (origin.is_some() && Access::is_preflight(request.method(), request.headers()));
        if !is_open {
            self.access.check_key(request.headers())?;
        }
        let is_asked = request.method() == Method::POST;
        if is_asked && self.is_ending.load(Ordering::Relaxed) {
            return Err(Failure::ending());
        }
        Ok(origin)
    }

    /// The object in a request's body.
    async fn read(&self, request: Request) -> Outcome<Fields> {
        if !is_json(request.headers()) {
            return Err(Failure::not_json());
        }
        let large = self.large_place(request.headers()).await?;
        let limit = if large.is_some() { self.limits.picture_body_bytes } else { self.limits.body_bytes };
        let body = self.body(request.into_body(), limit).await?;
        // Values take more memory than their text: few bodies are values at once.
        let place = self.bodies.clone().acquire_owned().await.map_err(|_| Failure::internal())?;
        let parsed = match large {
            None => Fields::parse(&body),
            Some(_) => {
                let parsed = tokio::task::spawn_blocking(move || Fields::parse(&body)).await;
                parsed.map_err(|_| Failure::internal())?
            }
        };
        let mut fields = parsed?;
        fields.keep(place, large);
        Ok(fields)
    }

    /// A place for a body that is larger than others, since it may hold pictures; `None` where it is not.
    async fn large_place(&self, headers: &HeaderMap) -> Outcome<Option<OwnedSemaphorePermit>> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let Limits { body_bytes, picture_body_bytes, body_time, .. } = self.limits;
        if !self.models.see_pictures() || length.is_none_or(|length| length <= body_bytes) {
            return Ok(None);
        }
        if length.is_some_and(|length| length > picture_body_bytes) {
            return Err(Failure::too_large(picture_body_bytes));
        }
        let place = tokio::time::timeout(body_time, self.large_bodies.clone().acquire_owned()).await;
        place.map_err(|_| Failure::overloaded())?.map(Some).map_err(|_| Failure::internal())
    }

    async fn body(&self, body: Body, limit: usize) -> Outcome<Bytes> {
        let read = tokio::time::timeout(self.limits.body_time, axum::body::to_bytes(body, limit)).await;
        read.map_err(|_| Failure::too_slow())?.map_err(|error| {
            use std::error::Error;
            let is_too_large = error.source().is_some_and(|source| source.to_string().contains("length limit"));
            if is_too_large { Failure::too_large(limit) } else { Failure::invalid("the body is broken") }
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

async fn health(State(server): State<Shared>) -> Response {
    match server.is_ending.load(Ordering::Relaxed) {
        false => Json(json!({ "status": "ok" })).into_response(),
        true => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "ending" }))).into_response(),
    }
}

async fn metrics(State(server): State<Shared>) -> Response {
    let text = server.metrics.text(&server.worker.statistics(), server.open_connections());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn models(State(server): State<Shared>) -> Json<Value> {
    let data: Vec<Value> = server.models.all().iter().map(|model| model.object()).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(State(server): State<Shared>, Path(name): Path<String>) -> Outcome<Json<Value>> {
    Ok(Json(server.models.get(&name)?.object()))
}

async fn remove(State(server): State<Shared>, Path(name): Path<String>) -> Outcome<Json<Value>> {
    server.models.remove(&name)?;
    Ok(Json(json!({ "id": name, "object": "model", "deleted": true })))
}

async fn reload(State(server): State<Shared>, request: Request) -> Outcome<Json<Value>> {
    server.read(request).await?.finish()?;
    let reloading = server.clone();
    let done = tokio::task::spawn_blocking(move || reloading.models.reload()).await;
    let changes = done.map_err(|_| Failure::internal())?;
    changes.failed.iter().for_each(|(name, error)| server.host.warn(&format!("adapter {name}: {error}")));
    let failed: Vec<&String> = changes.failed.iter().map(|(name, _)| name).collect();
    let (added, replaced, removed) = (changes.added, changes.replaced, changes.removed);
    Ok(Json(json!({ "added": added, "replaced": replaced, "removed": removed, "failed": failed })))
}

async fn votes(State(server): State<Shared>) -> Json<Value> {
    let mut summary = server.votes.as_ref().map_or_else(|| json!({ "pairs": [] }), |votes| votes.summary());
    summary["kept"] = server.votes.is_some().into();
    Json(summary)
}

async fn vote(State(server): State<Shared>, request: Request) -> Outcome<Json<Value>> {
    let fields = server.read(request).await?;
    let votes =
        server.votes.as_ref().ok_or_else(|| Failure::invalid("no votes are kept: the server has no `--votes`"))?;
    Ok(Json(votes.add(fields)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routes_are_those_of_the_documents() {
        let page = include_str!("../../docs/serving.md");
        for (path, _) in all() {
            assert!(page.contains(&format!("`{}`", path.replace("{*name}", "NAME"))), "docs/serving.md lacks {path}");
        }
    }
}
