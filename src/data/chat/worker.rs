//! The threads on which a chat template renders, and the deadline of each rendering.
//!
//! There are as many as the machine has cores. A job, a single rendering or all that is done with a few rows, waits without a
//! clock until one of them is free. A clock runs while a template renders. After one deadline the template is given up: its
//! thread may still be busy.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minijinja::value::Value;
use minijinja::{ErrorKind, Template};
use time::OffsetDateTime;

use super::environment::environment;
use super::template::Job;
use crate::error::{Error, Result};

/// Enough for the deepest chain that fits into the largest template, with a wide margin.
const STACK_BYTES: usize = 64 << 20;
/// The longest a template may take to compile or render.
const DEADLINE: Duration = Duration::from_secs(5);

/// The source that a thread compiles.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The source as minijinja gets it.
    pub(super) text: String,
    /// The name in it of the function that checks what a namespace is given.
    pub(super) kept: String,
    /// `("bos_token", "<s>")` and so on.
    pub(super) globals: Vec<(String, String)>,
    /// The result of `strftime_now`.
    pub(super) now: OffsetDateTime,
}

/// The threads of one template.
pub(super) struct Workers {
    program: Arc<Program>,
    deadline: Duration,
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    idle: Vec<Worker>,
    /// Threads that may still be started.
    unstarted: usize,
    given_up: bool,
}

/// Work for a thread, which sends its own outcome.
type Task = Box<dyn FnOnce() + Send>;

/// One thread: the way to it, and its clock.
struct Worker {
    tasks: Sender<Task>,
    clock: Arc<Clock>,
}

/// The time that a thread has been rendering.
struct Clock {
    zero: Instant,
    /// Microseconds from `zero` to the begin of the rendering that goes on; [`IDLE`] while there is none.
    begun: AtomicU64,
}

/// The value of a clock that does not run.
const IDLE: u64 = u64::MAX;

/// The means of a thread of a template.
#[derive(Clone, Copy)]
struct Here {
    program: *const Program,
    template: *const Template<'static, 'static>,
    clock: *const Clock,
}

thread_local! {
    /// The template of this thread, while it works on a task.
    static HERE: Cell<Option<Here>> = const { Cell::new(None) };
}

impl Workers {
    /// Starts the first thread, which compiles the program.
    ///
    /// # Errors
    /// Input: it does not compile, or not in time.
    pub(super) fn start(program: Program, place: &str) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let program = Arc::new(program);
        let first = Worker::start(&program, DEADLINE, place)?;
        let state = State { idle: vec![first], unstarted: threads - 1, given_up: false };
        Ok(Self { program, deadline: DEADLINE, state: Mutex::new(state), freed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renders `job`, on this thread if it is one of these, else on the next free one. `place` stands in messages.
    ///
    /// # Errors
    /// Input: what the template raises; the deadline has passed, now or earlier.
    pub(super) fn render(&self, job: Job, place: &str) -> Result<String> {
        let rendered = match HERE.get().filter(|here| std::ptr::eq(here.program, Arc::as_ptr(&self.program))) {
            Some(here) => here.render(job),
            None => self.run(place, || HERE.get().expect("a thread of a template").render(job))?,
        };
        rendered.map_err(|message| Error::input(place, message))
    }

    /// Does `task` on the next free thread, where [`Self::render`] needs no other.
    ///
    /// # Errors
    /// Input: the deadline of a rendering has passed, now or earlier.
    pub(super) fn run<T: Send + 'static>(&self, place: &str, task: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let worker = match self.take(place)? {
            Some(worker) => Ok(worker),
            None => Worker::start(&self.program, self.deadline, place),
        };
        let outcome = worker.and_then(|worker| Ok((worker.run(task, self.deadline, place)?, worker)));
        let mut state = self.state();
        match outcome {
            Ok((result, worker)) => {
                state.idle.push(worker);
                self.freed.notify_one();
                Ok(result)
            }
            Err(error) => {
                state.given_up = true;
                self.freed.notify_all();
                Err(error)
            }
        }
    }

    /// An idle thread; `None` where the caller may start one.
    fn take(&self, place: &str) -> Result<Option<Worker>> {
        let mut state = self.state();
        loop {
            if state.given_up {
                return Err(Error::input(place, "stopped working on an earlier conversation"));
            }
            if let Some(worker) = state.idle.pop() {
                return Ok(Some(worker));
            }
            if state.unstarted > 0 {
                state.unstarted -= 1;
                return Ok(None);
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl Worker {
    fn start(program: &Arc<Program>, deadline: Duration, place: &str) -> Result<Self> {
        let (tasks, inbox) = channel();
        let (compiled, compilation) = channel();
        let clock = Arc::new(Clock { zero: Instant::now(), begun: AtomicU64::new(IDLE) });
        let (program, of_thread) = (Arc::clone(program), Arc::clone(&clock));
        std::thread::Builder::new()
            .name("chat-template".into())
            .stack_size(STACK_BYTES)
            .spawn(move || work(&program, &of_thread, &compiled, &inbox))
            .map_err(|error| Error::failed(place, format!("cannot start a thread: {error}")))?;
        let outcome: Result<(), String> = compilation.recv_timeout(deadline).map_err(|error| match error {
            RecvTimeoutError::Timeout => too_slow(deadline, place, "compile"),
            RecvTimeoutError::Disconnected => Error::input(place, "minijinja failed to compile it"),
        })?;
        outcome.map_err(|message| Error::input(place, message))?;
        Ok(Self { tasks, clock })
    }

    /// The outcome of `task`, unless a rendering in it takes longer than `deadline`.
    fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
        deadline: Duration,
        place: &str,
    ) -> Result<T> {
        let (sender, outcome) = channel();
        // A thread that is gone shows when the outcome is waited for, and one that is given up has no receiver.
        let _ = self.tasks.send(Box::new(move || {
            let _ = sender.send(task());
        }));
        let mut left = deadline;
        loop {
            match outcome.recv_timeout(left) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::input(place, "minijinja failed to render it"));
                }
                Err(RecvTimeoutError::Timeout) => left = deadline.saturating_sub(self.clock.rendering()),
            }
            if left.is_zero() {
                return Err(too_slow(deadline, place, "render"));
            }
        }
    }
}

fn too_slow(deadline: Duration, place: &str, doing: &str) -> Error {
    Error::input(place, format!("takes more than {} s to {doing}", deadline.as_secs_f64()))
}

impl Clock {
    /// The time since the rendering that goes on began; none while there is no rendering.
    fn rendering(&self) -> Duration {
        match self.begun.load(Ordering::Relaxed) {
            IDLE => Duration::ZERO,
            begun => self.zero.elapsed().saturating_sub(Duration::from_micros(begun)),
        }
    }
}

impl Here {
    fn render(self, job: Job) -> Result<String, String> {
        // SAFETY: `work` owns all three for as long as it has put this value into `HERE`, and nothing else gives it out: `HERE` is
        // read on this thread only, and a copy of it is used up before the task ends.
        let (program, template, clock) = unsafe { (&*self.program, &*self.template, &*self.clock) };
        let begun = u64::try_from(clock.zero.elapsed().as_micros()).unwrap_or(IDLE - 1);
        clock.begun.store(begun, Ordering::Relaxed);
        let rendered = template.render(context(job, &program.globals)).map_err(|error| explain(&error));
        clock.begun.store(IDLE, Ordering::Relaxed);
        rendered
    }
}

/// The life of a thread: compile once, work until the template is dropped.
fn work(program: &Program, clock: &Clock, compiled: &Sender<Result<(), String>>, inbox: &Receiver<Task>) {
    let environment = environment(program.now, program.kept.clone());
    let template = match environment.template_from_named_str("chat", &program.text) {
        Ok(template) => template,
        Err(error) => {
            // After the deadline there is no receiver any more.
            let _ = compiled.send(Err(format!("does not compile: {error}")));
            return;
        }
    };
    if compiled.send(Ok(())).is_err() {
        return;
    }
    let here = Here { program, template: (&raw const template).cast(), clock };
    while let Ok(task) = inbox.recv() {
        HERE.set(Some(here));
        task();
        HERE.set(None);
    }
}

/// The reason why a rendering failed: the words of the template where it raised them, or minijinja's.
fn explain(error: &minijinja::Error) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => "does too much work for one conversation".into(),
        _ => format!("cannot render the conversation: {error}"),
    }
}

/// The variables of a template: the names that transformers' `apply_chat_template` gives it.
fn context(job: Job, globals: &[(String, String)]) -> Value {
    let messages: Vec<Value> = job.messages.into_iter().map(Value::from_object).collect();
    let mut pairs = vec![
        ("messages", Value::from(messages)),
        ("tools", job.tools),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(job.add_generation_prompt)),
    ];
    pairs.extend(globals.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))));
    Value::from_pairs(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job { messages: Vec::new(), tools: Value::from(()), add_generation_prompt: false }
    }

    fn workers(text: &str, deadline: Duration, threads: usize) -> Workers {
        let program =
            Program { text: text.into(), kept: "kept".into(), globals: Vec::new(), now: OffsetDateTime::UNIX_EPOCH };
        let mut workers = Workers::start(program, "t").expect("compiles");
        workers.deadline = deadline;
        workers.state().unstarted = threads - 1;
        workers
    }

    #[test]
    fn waiting_for_a_free_thread_is_not_counted() {
        // One rendering takes a part of the deadline, all of them together several times as much.
        let source = "{% for i in range(99999) %}{% set x = i * i %}{% endfor %}x";
        let begun = std::time::Instant::now();
        workers(source, DEADLINE, 1).render(job(), "t").expect("renders");
        let one = begun.elapsed();
        let slow = workers(source, one * 6, 1);
        let outcomes = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..24).map(|_| scope.spawn(|| slow.render(job(), "t"))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        for outcome in outcomes {
            assert_eq!(outcome.expect("renders in its own time"), "x");
        }
    }

    #[test]
    fn after_a_deadline_the_template_is_given_up() {
        let endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
        let workers = workers(endless, Duration::from_millis(1), 2);
        let text = workers.render(job(), "t").expect_err("too slow").to_string();
        assert!(text.contains("takes more than 0.001 s to render"), "{text}");
        let text = workers.render(job(), "t").expect_err("given up").to_string();
        assert!(text.contains("stopped working on an earlier conversation"), "{text}");
    }
}
