//! Figures of the running server, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::generate::engine::{Statistics, Usage};

/// The upper bounds of the buckets of a time, in seconds.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Values by bucket.
#[derive(Debug, Default, Clone)]
struct Histogram {
    counts: [u64; SECONDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        let buckets = self.counts.iter_mut().zip(SECONDS).filter(|(_, bound)| seconds <= *bound);
        buckets.for_each(|(count, _)| *count += 1);
        self.count += 1;
        self.sum += seconds;
    }
}

#[derive(Debug, Default)]
struct Figures {
    /// By route and status.
    requests: BTreeMap<(&'static str, u16), u64>,
    request_seconds: Histogram,
    first_token_seconds: Histogram,
    token_seconds: Histogram,
    /// Answers whose client left.
    cancelled: u64,
}

/// The figures, for any thread.
#[derive(Debug, Default)]
pub(super) struct Metrics(Mutex<Figures>);

impl Metrics {
    fn change(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A request was answered, or its stream begun.
    pub(super) fn request(&self, route: &'static str, status: u16, time: Duration) {
        self.change(|figures| {
            *figures.requests.entry((route, status)).or_default() += 1;
            figures.request_seconds.add(time.as_secs_f64());
        });
    }

    /// An answer has ended.
    pub(super) fn answer(&self, usage: &Usage, is_cancelled: bool) {
        self.change(|figures| {
            figures.cancelled += u64::from(is_cancelled);
            if usage.answer_tokens > 0 {
                figures.first_token_seconds.add(usage.seconds_to_first_token);
            }
            if usage.answer_tokens > 1 {
                let seconds = usage.seconds - usage.seconds_to_first_token;
                figures.token_seconds.add(seconds / (usage.answer_tokens - 1) as f64);
            }
        });
    }

    /// Everything, as Prometheus reads it.
    pub(super) fn text(&self, engine: &Statistics, connections: usize) -> String {
        let figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            // Writing to a string does not fail.
            let _ =
                writeln!(text, "# HELP burnish_{name} {help}\n# TYPE burnish_{name} {kind}\nburnish_{name} {value}");
        };
        one("connections", "gauge", "Open connections.", connections as f64);
        one("answers_running", "gauge", "Answers that are being written.", engine.running as f64);
        one("answers_waiting", "gauge", "Answers that wait for a place.", engine.waiting as f64);
        one("cache_bytes", "gauge", "Bytes of keys and values.", engine.cache_bytes as f64);
        one("cache_bytes_limit", "gauge", "The most bytes of keys and values.", engine.max_cache_bytes as f64);
        one("prompt_tokens_total", "counter", "Tokens of prompts.", engine.prompt_tokens as f64);
        let help = "Tokens of prompts that were in the cache.";
        one("cached_prompt_tokens_total", "counter", help, engine.cached_prompt_tokens as f64);
        one("answer_tokens_total", "counter", "Tokens of answers.", engine.answer_tokens as f64);
        one("answers_cancelled_total", "counter", "Answers whose client left.", figures.cancelled as f64);
        text += "# HELP burnish_requests_total Requests by route and status.\n# TYPE burnish_requests_total counter\n";
        for ((route, status), count) in &figures.requests {
            let _ = writeln!(text, "burnish_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}");
        }
        let help = "Seconds from a request to its answer, or to the first bytes of a stream.";
        histogram(&mut text, "request_seconds", help, &figures.request_seconds);
        let help = "Seconds from a request's submission to the first token of its answer.";
        histogram(&mut text, "first_token_seconds", help, &figures.first_token_seconds);
        histogram(&mut text, "token_seconds", "Seconds between two tokens of an answer.", &figures.token_seconds);
        text
    }
}

fn histogram(text: &mut String, name: &str, help: &str, values: &Histogram) {
    let _ = writeln!(text, "# HELP burnish_{name} {help}\n# TYPE burnish_{name} histogram");
    for (bound, count) in SECONDS.iter().zip(values.counts) {
        let _ = writeln!(text, "burnish_{name}_bucket{{le=\"{bound}\"}} {count}");
    }
    let Histogram { count, sum, .. } = values;
    let _ = writeln!(text, "burnish_{name}_bucket{{le=\"+Inf\"}} {count}\nburnish_{name}_sum {sum}");
    let _ = writeln!(text, "burnish_{name}_count {count}");
}
