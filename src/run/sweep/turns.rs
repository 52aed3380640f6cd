//! Turns of trials: several runs of this process at once, each on its share of the threads, over one base.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use crate::bytes::Size;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::recipe::Recipe;
use crate::run::SharedBase;
use crate::run::folder::Found;
use crate::run::outcome::TrainReport;
use crate::run::resume::Start;
use crate::run::train::{RunOptions, Turn, train};
use crate::run::watch::Watch;
use crate::train::Event;

/// The stack of a thread that trains: that of a main thread.
const STACK_BYTES: usize = 8 << 20;

/// A turn that a trial is to take.
pub(super) struct Task<'r> {
    /// The number of the trial.
    pub(super) trial: usize,
    /// Its recipe.
    pub(super) recipe: &'r Recipe,
    /// The step after which the turn ends; `None` for the last one.
    pub(super) until_step: Option<u64>,
}

/// The circumstances of all turns.
pub(super) struct Circumstances<'a> {
    pub(super) device: DeviceChoice,
    pub(super) max_memory: Option<Size>,
    /// Trials that train at once.
    pub(super) at_once: usize,
    pub(super) base: &'a SharedBase,
    /// The command that goes on with the sweep.
    pub(super) command: &'a str,
}

/// News of a trial.
pub(super) enum News {
    /// Its turn begins.
    Begins,
    /// A line for the user.
    Notice(String),
    /// An evaluation.
    Evaluated { step: u64, loss: f64 },
    /// Its turn is over.
    Ended(Box<Result<TrainReport>>),
}

/// Takes these turns in their order, several at once; `news` hears of them. After a signal none begins, and those under way end.
///
/// # Errors
/// The first that `news` returns; it ends all turns.
pub(super) fn take_turns(
    tasks: Vec<Task<'_>>,
    circumstances: &Circumstances<'_>,
    news: &mut dyn FnMut(usize, News) -> Result<()>,
) -> Result<()> {
    let workers = circumstances.at_once.min(tasks.len());
    let tasks = Mutex::new(VecDeque::from(tasks));
    let ends_now = AtomicBool::new(false);
    let (tasks, ends_now) = (&tasks, &ends_now);
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let start = |number: usize| {
            let sender = sender.clone();
            let thread = thread::Builder::new().name(format!("trial-{number}")).stack_size(STACK_BYTES);
            thread.spawn_scoped(scope, move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| work(tasks, ends_now, circumstances, &sender)));
                outcome.unwrap_or_else(|panic| {
                    ends_now.store(true, Ordering::Relaxed);
                    resume_unwind(panic)
                })
            })
        };
        let started: Vec<_> = (0..workers).map(start).collect();
        drop(sender);
        let mut failed = None;
        for (trial, one) in receiver {
            if let Err(error) = news(trial, one) {
                ends_now.store(true, Ordering::Relaxed);
                failed = failed.or(Some(error));
            }
        }
        for thread in started {
            match thread.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(())) => {}
                Ok(Err(panic)) => resume_unwind(panic),
                Err(error) => {
                    failed = failed.or(Some(Error::failed("", format!("a thread cannot be started: {error}"))))
                }
            }
        }
        failed.map_or(Ok(()), Err)
    })
}

/// Takes turns until none is left.
fn work(
    tasks: &Mutex<VecDeque<Task<'_>>>,
    ends_now: &AtomicBool,
    circumstances: &Circumstances<'_>,
    sender: &mpsc::Sender<(usize, News)>,
) {
    while !interrupt::requested() && !ends_now.load(Ordering::Relaxed) {
        let next = tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(Task { trial, recipe, until_step }) = next else { return };
        let Circumstances { device, max_memory, at_once, base, command } = *circumstances;
        let mut relay = Relay { trial, sender };
        relay.send(News::Begins);
        let turn = Turn { until_step, ends_now, command };
        let outcome = recipe.settings().and_then(|plan| {
            let start = match Found::at(&plan.output.dir) {
                Found::Nothing => Start::Fresh,
                _ => Start::Resumed(&[]),
            };
            let options =
                RunOptions { device, max_memory, start, base: Some(base), turn: Some(turn), ..RunOptions::default() };
            on_share_of_threads(at_once, || train(recipe, &options, &mut relay))
        });
        relay.send(News::Ended(Box::new(outcome)));
    }
}

/// Does `work` on the threads that each of so many at once has.
fn on_share_of_threads<T>(at_once: usize, work: impl FnOnce() -> T) -> T {
    #[cfg(feature = "cpu")]
    if at_once > 1 {
        let threads = (crate::ops::cpu::pool::threads() / at_once).max(1);
        return crate::ops::cpu::pool::with_threads(threads, work);
    }
    let _ = at_once;
    work()
}

/// Tells the thread of the sweep what a trial tells.
struct Relay<'s> {
    trial: usize,
    sender: &'s mpsc::Sender<(usize, News)>,
}

impl Relay<'_> {
    fn send(&self, news: News) {
        // It is received as long as this thread runs.
        let _ = self.sender.send((self.trial, news));
    }
}

impl Watch for Relay<'_> {
    fn notice(&mut self, text: &str) {
        self.send(News::Notice(text.to_owned()));
    }

    fn event(&mut self, event: &Event<'_>) {
        if let Event::Evaluation { step, valid_loss, .. } = *event {
            self.send(News::Evaluated { step, loss: valid_loss });
        }
    }
}
