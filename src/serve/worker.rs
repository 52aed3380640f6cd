//! The thread that owns the engine: requests go in through a channel, tokens come out through channels of their own.
//!
//! A panic of the engine, which would be a bug, fails the answers that run; the engine is made anew, and the server goes on.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::failure::Failure;
use super::metrics::Metrics;
use super::models::ServedModel;
use crate::error::{Error, Result};
use crate::generate::engine::{Engine, Event, Request, RequestId, Statistics, TokenLogProbability, Usage};
use crate::generate::run::Finish;
use crate::nn::Adapter;

/// The stack of the engine's thread: formats of answers are expressions nested as deeply as a client likes.
const STACK_BYTES: usize = 64 << 20;

/// News of an answer.
#[derive(Debug)]
pub(super) enum Update {
    /// A token, and the text that is certain with it.
    Token { text: String, log_probability: Option<TokenLogProbability> },
    /// The end, and the text that was held back until it.
    Finished { text: String, finish: Finish, usage: Usage },
    /// The answer cannot go on.
    Failed(Failure),
}

/// An update with the index of its answer in the request.
type Indexed = (usize, Update);

enum Command {
    Begin { ticket: u64, requests: Vec<Request>, updates: UnboundedSender<Indexed>, begun: oneshot::Sender<Result<()>> },
    Leave { ticket: u64 },
    Embed { prompt: Vec<u32>, adapter: Option<String>, reply: oneshot::Sender<Result<Vec<f32>>> },
    Add { key: String, adapter: Box<Adapter> },
    Remove { key: String },
}

/// Makes an engine without adapters.
pub(super) type MakeEngine = Box<dyn Fn() -> Engine + Send>;

/// The way to the engine's thread. The thread ends when the last of these is gone.
#[derive(Clone)]
pub(super) struct Worker {
    commands: mpsc::Sender<Command>,
    statistics: Arc<Mutex<Statistics>>,
    tickets: Arc<AtomicU64>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// Failed: there is no thread to be had.
    pub(super) fn start(make: MakeEngine, metrics: Arc<Metrics>) -> Result<(Self, JoinHandle<()>)> {
        let engine = make();
        let statistics = Arc::new(Mutex::new(engine.statistics()));
        let (commands, received) = mpsc::channel();
        let shown = statistics.clone();
        let thread = std::thread::Builder::new().name("engine".to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || {
            let (adapters, routes) = (BTreeMap::new(), HashMap::new());
            Owner { engine, make, adapters, routes, metrics, shown }.run(&received);
        });
        let thread = thread.map_err(|error| Error::failed("", format!("a thread cannot be started: {error}")))?;
        Ok((Self { commands, statistics, tickets: Arc::default() }, thread))
    }

    /// Begins the answers to `requests`. They end early when the result is dropped.
    ///
    /// # Errors
    /// Those of [`Engine::submit`]; Failed: the engine's thread has ended.
    pub(super) async fn begin(
        &self,
        requests: Vec<Request>,
        permit: OwnedSemaphorePermit,
        model: Arc<ServedModel>,
    ) -> Result<Answers> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (updates, receiver) = unbounded_channel();
        let left = requests.len();
        // Dropped by a client that leaves while it waits here, too.
        let answers =
            Answers { ticket, left, receiver, commands: self.commands.clone(), _permit: permit, _model: model };
        let (begun, reply) = oneshot::channel();
        self.send(Command::Begin { ticket, requests, updates, begun })?;
        reply.await.map_err(|_| gone())??;
        Ok(answers)
    }

    /// The mean of a prompt's last hidden states.
    ///
    /// # Errors
    /// Those of [`Engine::embed`]; Failed: the engine's thread has ended.
    pub(super) async fn embed(&self, prompt: Vec<u32>, adapter: Option<String>) -> Result<Vec<f32>> {
        let (reply, received) = oneshot::channel();
        self.send(Command::Embed { prompt, adapter, reply })?;
        received.await.map_err(|_| gone())?
    }

    /// Gives the engine an adapter, before any request that is begun later.
    ///
    /// # Errors
    /// Failed: the engine's thread has ended.
    pub(super) fn add(&self, key: &str, adapter: Adapter) -> Result<()> {
        self.send(Command::Add { key: key.to_owned(), adapter: Box::new(adapter) })
    }

    /// Takes an adapter away; answers that run keep it.
    pub(super) fn remove(&self, key: String) {
        // Where the thread has ended, there is no adapter either.
        let _ = self.send(Command::Remove { key });
    }

    /// The engine's figures after its last step.
    pub(super) fn statistics(&self) -> Statistics {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::failed("", "the engine has ended")
}

/// The answers to one request. Dropping them ends those that still run.
pub(super) struct Answers {
    ticket: u64,
    /// Answers that have not ended.
    left: usize,
    receiver: UnboundedReceiver<Indexed>,
    commands: mpsc::Sender<Command>,
    _permit: OwnedSemaphorePermit,
    /// Kept until the answers have ended: an adapter leaves the engine with its last answer.
    _model: Arc<ServedModel>,
}

impl Answers {
    /// The next update, or `None` after the end of every answer.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Indexed>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let update = match self.receiver.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            // The thread has ended.
            Poll::Ready(None) => (0, Update::Failed(Failure::internal())),
            Poll::Ready(Some(update)) => update,
        };
        match update.1 {
            Update::Token { .. } => {}
            Update::Finished { .. } => self.left -= 1,
            Update::Failed(_) => self.left = 0,
        }
        Poll::Ready(Some(update))
    }

    /// [`Self::poll_next`] as a future.
    pub(super) async fn next(&mut self) -> Option<Indexed> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.left > 0 {
            // Where the thread has ended, nothing runs.
            let _ = self.commands.send(Command::Leave { ticket: self.ticket });
        }
    }
}

/// The way of an answer's news.
struct Route {
    ticket: u64,
    index: usize,
    updates: UnboundedSender<Indexed>,
}

/// The engine with everything that its thread keeps beside it.
struct Owner {
    engine: Engine,
    make: MakeEngine,
    adapters: BTreeMap<String, Adapter>,
    routes: HashMap<RequestId, Route>,
    metrics: Arc<Metrics>,
    shown: Arc<Mutex<Statistics>>,
}

impl Owner {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        loop {
            if self.engine.is_idle() {
                let Ok(command) = commands.recv() else { return };
                self.take(command);
            }
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            match catch_unwind(AssertUnwindSafe(|| self.engine.step())) {
                Ok(events) => events.into_iter().for_each(|event| self.hand_out(event)),
                Err(_) => self.begin_anew(),
            }
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.engine.statistics();
        }
    }

    fn take(&mut self, command: Command) {
        // A reply that nobody waits for any more is dropped.
        match command {
            Command::Begin { ticket, requests, updates, begun } => {
                let _ = begun.send(self.begin(ticket, requests, &updates));
            }
            Command::Leave { ticket } => self.cancel(ticket),
            Command::Embed { prompt, adapter, reply } => {
                let vector = catch_unwind(AssertUnwindSafe(|| self.engine.embed(&prompt, adapter.as_deref())));
                let _ = reply.send(vector.unwrap_or_else(|_| {
                    self.begin_anew();
                    Err(Error::failed("", "the engine has failed"))
                }));
            }
            Command::Add { key, adapter } => {
                self.engine.add_adapter(&key, &adapter);
                self.adapters.insert(key, *adapter);
            }
            Command::Remove { key } => {
                self.engine.remove_adapter(&key);
                self.adapters.remove(&key);
            }
        }
    }

    fn begin(&mut self, ticket: u64, requests: Vec<Request>, updates: &UnboundedSender<Indexed>) -> Result<()> {
        for (index, request) in requests.into_iter().enumerate() {
            match self.engine.submit(request) {
                Ok(id) => drop(self.routes.insert(id, Route { ticket, index, updates: updates.clone() })),
                Err(error) => {
                    self.cancel(ticket);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn cancel(&mut self, ticket: u64) {
        let of_ticket = self.routes.iter().filter(|(_, route)| route.ticket == ticket);
        let ids: Vec<RequestId> = of_ticket.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.engine.cancel(id));
    }

    fn hand_out(&mut self, event: Event) {
        let (id, update) = match event {
            Event::Token { request, text, log_probability, .. } => (request, Update::Token { text, log_probability }),
            Event::Finished { request, text, finish, usage } => {
                self.metrics.answer(&usage, finish == Finish::Cancelled);
                (request, Update::Finished { text, finish, usage })
            }
            Event::Failed { request, error } => (request, Update::Failed(Failure::of_answer(&error))),
        };
        let ends = !matches!(update, Update::Token { .. });
        let route = if ends { self.routes.remove(&id) } else { None };
        if let Some(route) = route.as_ref().or_else(|| self.routes.get(&id)) {
            // A client that has left gets nothing.
            let _ = route.updates.send((route.index, update));
        }
    }

    /// Fails every answer and makes a new engine, after a panic that left this one in an unknown state.
    fn begin_anew(&mut self) {
        for (_, route) in self.routes.drain() {
            let _ = route.updates.send((route.index, Update::Failed(Failure::internal())));
        }
        self.engine = (self.make)();
        for (key, adapter) in &self.adapters {
            self.engine.add_adapter(key, adapter);
        }
    }
}
