//! An answer as a stream of JSON objects: server-sent events for OpenAI's clients, lines for Ollama's.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use tokio::time::Interval;

use super::failure::{Failure, Outcome};
use super::limits::KEEP_ALIVE;
use super::worker::{Answers, Update};
use crate::generate::engine::{TokenLogProbability, Usage};
use crate::generate::run::Finish;

/// The form of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// `data: {…}`, an empty line; `[DONE]` at the end.
    Events,
    /// An object a line.
    Lines,
}

/// The objects that tell of an answer.
pub(super) trait Objects: Send + Unpin + 'static {
    /// The objects before the first token.
    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }
    /// The objects of a token of the answer `index`.
    fn token(&mut self, index: usize, text: String, log_probability: Option<TokenLogProbability>) -> Vec<Value>;
    /// The objects of the end of the answer `index`; `text` was held back until it.
    fn finished(&mut self, index: usize, text: String, finish: Finish, usage: &Usage) -> Vec<Value>;
    /// The objects after the last answer.
    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }
    /// The object of a failure.
    fn failed(&self, failure: &Failure) -> Value {
        failure.object()
    }
}

struct ObjectStream<O> {
    answers: Answers,
    objects: O,
    framing: Framing,
    ready: VecDeque<Bytes>,
    keep_alive: Interval,
    has_ended: bool,
}

impl<O: Objects> ObjectStream<O> {
    fn queue(&mut self, objects: Vec<Value>) {
        let framed = |object: Value| match self.framing {
            Framing::Events => Bytes::from(format!("data: {object}\n\n")),
            Framing::Lines => Bytes::from(format!("{object}\n")),
        };
        self.ready.extend(objects.into_iter().map(framed));
    }

    fn take(&mut self, update: Option<(usize, Update)>) {
        let objects = match update {
            Some((index, Update::Token { text, log_probability })) => self.objects.token(index, text, log_probability),
            Some((index, Update::Finished { text, finish, usage })) => {
                self.objects.finished(index, text, finish, &usage)
            }
            Some((_, Update::Failed(failure))) => {
                self.has_ended = true;
                vec![self.objects.failed(&failure)]
            }
            None => {
                self.has_ended = true;
                let objects = self.objects.end();
                self.queue(objects);
                if self.framing == Framing::Events {
                    self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                }
                return;
            }
        };
        self.queue(objects);
    }
}

impl<O: Objects> Stream for ObjectStream<O> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                self.keep_alive.reset();
                return Poll::Ready(Some(Ok(bytes)));
            }
            if self.has_ended {
                return Poll::Ready(None);
            }
            match self.answers.poll_next(context) {
                Poll::Ready(update) => self.take(update),
                Poll::Pending if self.framing == Framing::Lines => return Poll::Pending,
                Poll::Pending => match self.keep_alive.poll_tick(context) {
                    Poll::Ready(_) => self.ready.push_back(Bytes::from_static(b": waiting\n\n")),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

/// The response that streams the answers. A client that leaves drops it, and the answers end.
pub(super) fn response(answers: Answers, mut objects: impl Objects, framing: Framing) -> Response {
    let begun = objects.begin();
    let start = tokio::time::Instant::now() + KEEP_ALIVE;
    let keep_alive = tokio::time::interval_at(start, KEEP_ALIVE);
    let mut stream = ObjectStream { answers, objects, framing, ready: VecDeque::new(), keep_alive, has_ended: false };
    stream.queue(begun);
    let mut response = Body::from_stream(stream).into_response();
    let kind = match framing {
        Framing::Events => "text/event-stream; charset=utf-8",
        Framing::Lines => "application/x-ndjson",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // A proxy that collects a stream would hold every token back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A whole answer.
pub(super) struct Completed {
    pub(super) text: String,
    pub(super) finish: Finish,
    pub(super) usage: Usage,
    pub(super) log_probabilities: Vec<TokenLogProbability>,
}

/// The answers once all of them have ended, in the order of their requests.
pub(super) async fn collect(mut answers: Answers, count: usize) -> Outcome<Vec<Completed>> {
    let mut texts = vec![String::new(); count];
    let mut log_probabilities: Vec<Vec<TokenLogProbability>> = (0..count).map(|_| Vec::new()).collect();
    let mut ends: Vec<Option<(Finish, Usage)>> = (0..count).map(|_| None).collect();
    while let Some((index, update)) = answers.next().await {
        match update {
            Update::Token { text, log_probability } => {
                texts[index] += &text;
                log_probabilities[index].extend(log_probability);
            }
            Update::Finished { text, finish, usage } => {
                texts[index] += &text;
                ends[index] = Some((finish, usage));
            }
            Update::Failed(failure) => return Err(failure),
        }
    }
    let all = texts.into_iter().zip(log_probabilities).zip(ends);
    let completed = all.map(|((text, log_probabilities), end)| {
        let (finish, usage) = end.ok_or_else(Failure::internal)?;
        Ok(Completed { text, finish, usage, log_probabilities })
    });
    completed.collect()
}
