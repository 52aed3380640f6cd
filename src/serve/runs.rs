//! The page of the runs in a folder, live: `burnish ui`. For this machine alone; it reads files and changes nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use futures_core::Stream;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, watch};

use super::access::{Access, Keys};
use super::failure::{Failure, Outcome};
use super::limits::{KEEP_ALIVE, Limits};
use super::{Host, accept, listen, routes, runtime};
use crate::error::{Error, Result};
use crate::report::compare::compare;
use crate::report::{RunFiles, page};

/// The time between two looks at the folder.
const LOOK: Duration = Duration::from_millis(500);
/// How deep below the folder runs are looked for.
const MAX_DEPTH: usize = 4;
/// The most runs that are listed.
const MAX_RUNS: usize = 2000;
/// The most runs that are shown over one another.
const MAX_SHOWN: usize = 16;
/// The most bytes of the names in a request.
const MAX_QUERY_BYTES: usize = 8 << 10;
/// The files whose change is a change of a run.
const FILES: [&str; 6] = ["run.json", "run.lock", "metrics.jsonl", "timings.jsonl", "samples.jsonl", "report.json"];

/// The runs of a folder.
struct Runs {
    access: Access,
    /// The folder of each run, by its name.
    found: Mutex<BTreeMap<String, PathBuf>>,
    /// The list as JSON, and its changes.
    list: watch::Receiver<String>,
}

type Shared = Arc<Runs>;

/// Serves the page of the runs in `folder` until the host ends it.
///
/// # Errors
/// Input: `folder` is none; an address that is taken, or another one than this machine's own. Failed: a thread or socket cannot be
/// had.
pub fn watch_runs(folder: &Path, address: SocketAddr, host: Arc<dyn Host>) -> Result<()> {
    if !folder.is_dir() {
        return Err(Error::input(folder, "is no folder").hint("expected a folder with run folders in it"));
    }
    let access = Access::new(address, Keys::default(), &[], &[])?;
    let listener = listen(address)?;
    let (sender, list) = watch::channel("[]".to_owned());
    let runs = Arc::new(Runs { access, found: Mutex::default(), list });
    let looking = {
        let (runs, host, folder) = (runs.clone(), host.clone(), folder.to_owned());
        std::thread::Builder::new().name("runs".to_owned()).spawn(move || look(&folder, &runs, &*host, &sender))
    };
    let looking = looking.map_err(|error| Error::failed("", format!("a thread cannot be started: {error}")))?;
    let limits = Limits { drain_time: Duration::from_secs(1), ..Limits::default() };
    let places = Arc::new(Semaphore::new(limits.connections));
    let runtime = runtime()?;
    let outcome = runtime.block_on(accept(listener, router(runs), (limits, places), host, || {}));
    runtime.shutdown_timeout(Duration::from_secs(1));
    // It ends with the host.
    let _ = looking.join();
    outcome
}

fn router(runs: Shared) -> Router {
    let routes = Router::new()
        .route("/", get(async || page_response()))
        .route("/api/data", get(data))
        .route("/api/events", get(events))
        .fallback(async || Failure::no_route())
        .method_not_allowed_fallback(async || Failure::wrong_method());
    routes.layer(middleware::from_fn_with_state(runs.clone(), gate)).with_state(runs)
}

/// Lets requests pass that come from this machine's own page.
async fn gate(State(runs): State<Shared>, request: Request, next: Next) -> Response {
    let mut response = match runs.access.check_source(request.uri(), request.headers()) {
        Err(failure) => failure.into_response(),
        Ok(_) => next.run(request).await,
    };
    routes::protect(response.headers_mut());
    response
}

fn page_response() -> Response {
    let mut response = Html(page::with_data("Runs", "The page needs scripts.", "{\"live\":true}")).into_response();
    let policy = format!("{}; frame-ancestors 'none'", page::policy());
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// The data of the runs that the query names.
async fn data(State(runs): State<Shared>, request: Request) -> Outcome<Response> {
    let names = names(request.uri().query().unwrap_or_default())?;
    let folders: Vec<(String, PathBuf)> = {
        let found = runs.found.lock().unwrap_or_else(PoisonError::into_inner);
        names.into_iter().filter_map(|name| found.get(&name).cloned().map(|path| (name, path))).collect()
    };
    let made = tokio::task::spawn_blocking(move || {
        let read = |(name, path): (String, PathBuf)| Some(RunFiles { name, ..RunFiles::read(&path).ok()? });
        page::data(&folders.into_iter().filter_map(read).collect::<Vec<_>>())
    });
    let text = made.await.map_err(|_| Failure::internal())?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// The values of `run` in a query.
fn names(query: &str) -> Outcome<Vec<String>> {
    let bad = || Failure::invalid("expected `run=NAME`, up to 16 of them");
    if query.len() > MAX_QUERY_BYTES {
        return Err(bad());
    }
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let names: Option<Vec<String>> = pairs.map(|pair| decoded(pair.strip_prefix("run=")?)).collect();
    names.filter(|names| names.len() <= MAX_SHOWN).ok_or_else(bad)
}

/// A value of a query as it was before it was encoded; `None` where it is none.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| (byte as char).to_digit(16);
                (16 * digit(rest.next()?)? + digit(rest.next()?)?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The list of runs, and again whenever something of them changes.
async fn events(State(runs): State<Shared>) -> Response {
    let (sender, receiver) = mpsc::channel(1);
    let mut list = runs.list.clone();
    tokio::spawn(async move {
        loop {
            let event = format!("event: runs\ndata: {}\n\n", *list.borrow_and_update());
            if sender.send(Bytes::from(event)).await.is_err() {
                return;
            }
            let mut changed = tokio::time::timeout(KEEP_ALIVE, list.changed()).await;
            while changed.is_err() {
                if sender.send(Bytes::from_static(b": waiting\n\n")).await.is_err() {
                    return;
                }
                changed = tokio::time::timeout(KEEP_ALIVE, list.changed()).await;
            }
            if let Ok(Err(_)) = changed {
                // The server ends.
                return;
            }
        }
    });
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    (headers, Body::from_stream(Events(receiver))).into_response()
}

/// The events of one client.
struct Events(mpsc::Receiver<Bytes>);

impl Stream for Events {
    type Item = std::result::Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(Ok))
    }
}

/// Looks at the folder until the host ends; then the list has no sender any more, and streams end.
fn look(folder: &Path, runs: &Runs, host: &dyn Host, sender: &watch::Sender<String>) {
    let mut rows: BTreeMap<String, (Stamp, Value)> = BTreeMap::new();
    let mut before = String::new();
    while !host.is_ending() {
        let found = find(folder);
        rows.retain(|name, _| found.contains_key(name));
        for (name, path) in &found {
            let stamp = stamp(path);
            if rows.get(name).is_none_or(|(known, _)| *known != stamp) {
                let row = RunFiles::read(path).ok().map(|run| row(&RunFiles { name: name.clone(), ..run }, &stamp));
                rows.insert(
                    name.clone(),
                    (stamp, row.unwrap_or_else(|| json!({ "name": name, "state": "unreadable" }))),
                );
            }
        }
        let mut list: Vec<&Value> = rows.values().map(|(_, row)| row).collect();
        let loss = |row: &Value| row["loss"].as_f64().unwrap_or(f64::INFINITY);
        list.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
        let text = json!(list).to_string();
        *runs.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        if text != before {
            // Where nobody listens, the next one to come gets it.
            let _ = sender.send(text.clone());
            before = text;
        }
        std::thread::sleep(LOOK);
    }
}

/// The state of a run's files: the size and the time of each.
type Stamp = Vec<(u64, Option<SystemTime>)>;

fn stamp(path: &Path) -> Stamp {
    let of = |name: &&str| {
        let metadata = path.join(name).metadata().ok();
        metadata.map_or((0, None), |metadata| (metadata.len(), metadata.modified().ok()))
    };
    FILES.iter().map(of).collect()
}

/// A run in the list.
fn row(run: &RunFiles, stamp: &Stamp) -> Value {
    let row = compare(std::slice::from_ref(run)).runs.remove(0);
    let sizes: Vec<String> = stamp
        .iter()
        .map(|(bytes, time)| {
            let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
            format!("{bytes}@{}", since.unwrap_or_default().as_nanos())
        })
        .collect();
    json!({
        "name": run.name, "state": row.state, "verdict": row.verdict, "loss": row.loss, "steps": row.steps,
        "started": run.record.value["started"], "stamp": sizes.join(","),
    })
}

/// The run folders in `folder`, by their paths below it; itself by its own name.
fn find(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    if RunFiles::is_run(folder) {
        let name = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        found.insert(name.unwrap_or_else(|| "run".to_owned()), folder.to_owned());
        return found;
    }
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((path, depth)) = folders.pop() {
        let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
        for entry in entries {
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            // Links may lead anywhere, in circles too.
            if is_hidden || !entry.file_type().is_ok_and(|kind| kind.is_dir()) || found.len() >= MAX_RUNS {
                continue;
            }
            let path = entry.path();
            if RunFiles::is_run(&path) {
                let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                found.insert(name, path);
            } else if depth + 1 < MAX_DEPTH {
                folders.push((path, depth + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_of_queries() {
        let names = |query: &str| names(query).ok();
        assert_eq!(names("run=a%2Fb&run=c+d"), Some(vec!["a/b".to_owned(), "c d".to_owned()]));
        assert_eq!(names(""), Some(Vec::new()));
        assert_eq!(names("path=a"), None);
        for broken in ["run=%", "run=%4", "run=%zz", "run=%ff"] {
            assert_eq!(names(broken), None, "{broken}");
        }
        assert_eq!(names(&"run=a&".repeat(MAX_SHOWN + 1)), None);
    }
}
