//! The server: OpenAI's protocol, Ollama's in part, and a page, over one base and its adapters.
//!
//! A request passes the gate of `routes`, becomes tokens, gets a place in the queue and goes to the thread that owns the engine
//! (`worker`). The event loop computes nothing. No field of a request becomes a path or an address, and the server opens
//! no connection.

mod access;
mod calls;
mod connections;
mod failure;
mod fields;
mod format;
mod held_calls;
mod limits;
mod metrics;
mod models;
mod ollama;
mod openai;
mod options;
mod page;
mod pictures;
mod routes;
mod runs;
mod stream;
mod votes;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::error::{Error, Result};
use crate::generate::engine::{Engine, EngineOptions};
use crate::run::named::{AdapterFolder, NamedModels};

pub use access::Keys;
pub use limits::Limits;
pub use runs::watch_runs;

use access::Access;
use metrics::Metrics;
use models::Models;
use votes::Votes;
use worker::Worker;

/// The bodies that lie in memory as values at once.
const BODIES_AT_ONCE: usize = 4;
/// The bodies with pictures that are larger than others and lie in memory at once.
const LARGE_BODIES_AT_ONCE: usize = 2;
/// The schemas that are prepared at once: fewer than the threads beside the event loop.
const SCHEMAS_AT_ONCE: usize = 2;
/// The time between two looks whether the server is to end.
const LOOK: Duration = Duration::from_millis(50);
/// The time for work beside the event loop at the end.
const LAST_WORK: Duration = Duration::from_secs(1);

/// The choices of a server's owner.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The address to listen at; port 0 takes a free one.
    pub address: SocketAddr,
    /// The keys of which a request needs one; without any, none is needed.
    pub keys: Keys,
    /// Further names of this machine that requests may be sent to.
    pub hosts: Vec<String>,
    /// Origins whose pages may use the server.
    pub origins: Vec<String>,
    /// The adapters that were named.
    pub adapters: Vec<AdapterFolder>,
    /// A folder whose folders are adapters, under their own names.
    pub adapter_folder: Option<PathBuf>,
    /// The file that keeps votes.
    pub votes: Option<PathBuf>,
    /// The options of the engine.
    pub engine: EngineOptions,
    /// The caps.
    pub limits: Limits,
}

/// The program around a server.
pub trait Host: Send + Sync {
    /// The server listens.
    fn ready(&self, address: SocketAddr);
    /// A request was answered; the line has neither prompts nor keys in it.
    fn line(&self, text: &str);
    /// Something went wrong that the owner of the server should know of.
    fn warn(&self, text: &str);
    /// Whether the server is to end.
    fn is_ending(&self) -> bool;
}

/// Everything that requests share.
struct Server {
    access: Access,
    limits: Limits,
    models: Models,
    worker: Worker,
    metrics: Arc<Metrics>,
    votes: Option<Votes>,
    host: Arc<dyn Host>,
    /// The positions of the model.
    positions: usize,
    /// The logits of the model.
    rows: usize,
    /// A place for each answer that runs or waits.
    places: Arc<Semaphore>,
    /// A place for each connection.
    connections: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    large_bodies: Arc<Semaphore>,
    schemas: Arc<Semaphore>,
    /// The place of the request whose pictures are decoded and seen.
    pictures: Arc<Semaphore>,
    is_ending: AtomicBool,
}

impl Server {
    fn open_connections(&self) -> usize {
        self.limits.connections - self.connections.available_permits()
    }
}

/// Serves `models` until the host ends it; answers that run then are finished first, as far as the limits' time goes.
///
/// # Errors
/// Input: an address for other machines without a key; an address that is taken; a file of votes that is none; adapters that
/// cannot be opened. Failed: a thread or socket cannot be had.
pub fn serve(models: NamedModels, options: ServeOptions, host: Arc<dyn Host>) -> Result<()> {
    let ServeOptions { address, keys, hosts, origins, adapters, adapter_folder, votes, engine, limits } = options;
    let access = Access::new(address, keys, &hosts, &origins)?;
    let votes = votes.as_deref().map(Votes::open).transpose()?;
    let listener = listen(address)?;
    let metrics = Arc::new(Metrics::default());
    let (decoder, tokenizer) = (models.loaded.decoder.clone(), models.base.encoder.tokenizer().clone());
    let (positions, rows) = (decoder.config().max_positions, decoder.config().vocab_size);
    let make = Box::new(move || Engine::new(decoder.clone(), &tokenizer, engine.clone()));
    let (worker, thread) = Worker::start(make, metrics.clone())?;
    let models = Models::new(models, adapters, adapter_folder, worker.clone())?;
    let places = |count: usize| Arc::new(Semaphore::new(count));
    let (answers, connections) = (places(limits.answers), places(limits.connections));
    let is_ending = AtomicBool::new(false);
    let server = Arc::new(Server {
        access,
        limits,
        models,
        worker,
        metrics,
        votes,
        host,
        positions,
        rows,
        places: answers,
        connections,
        bodies: places(BODIES_AT_ONCE),
        large_bodies: places(LARGE_BODIES_AT_ONCE),
        schemas: places(SCHEMAS_AT_ONCE),
        pictures: places(1),
        is_ending,
    });
    let runtime = runtime()?;
    let (limits, places) = (server.limits.clone(), server.connections.clone());
    let (router, host) = (routes::router(server.clone()), server.host.clone());
    let at_end = move || server.is_ending.store(true, std::sync::atomic::Ordering::Relaxed);
    let outcome = runtime.block_on(accept(listener, router, (limits, places), host, at_end));
    runtime.shutdown_timeout(LAST_WORK);
    // The last way to the engine is gone now: its thread ends after the step that it is at.
    let _ = thread.join();
    outcome
}

/// A socket that listens at `address`.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let taken = |error: std::io::Error| {
        Error::input("--port", format!("{address} cannot be listened at: {error}")).because(error)
    };
    let listener = TcpListener::bind(address).map_err(taken)?;
    listener.set_nonblocking(true).map_err(|error| Error::failed("", format!("a socket fails: {error}")))?;
    Ok(listener)
}

/// The threads of a server.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|error| Error::failed("", format!("threads cannot be started: {error}")))
}

/// Answers connections by `router` until the host ends; `at_end` is called then.
async fn accept(
    listener: TcpListener,
    router: axum::Router,
    limits: (Limits, Arc<Semaphore>),
    host: Arc<dyn Host>,
    at_end: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let failed = |error: std::io::Error| Error::failed("", format!("the socket fails: {error}"));
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    host.ready(listener.local_addr().map_err(failed)?);
    let (end, ending) = watch::channel(false);
    tokio::spawn(async move {
        while !host.is_ending() {
            tokio::time::sleep(LOOK).await;
        }
        at_end();
        // Where nobody listens, everything has ended.
        let _ = end.send(true);
    });
    connections::serve(listener, router, limits, ending).await;
    Ok(())
}
