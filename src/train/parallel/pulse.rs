//! Signs of life between ranks: MPI itself waits for ever for a rank that is stopped or out of reach.
//!
//! Every rank sends one to rank 0 several times a second, with the number of its step, and rank 0 sends one to each. A thread sends and
//! receives them, whatever the rank computes or waits for. Another one, which makes no call of MPI that could block, ends
//! everything once a rank has been silent for too long, or once the launcher that started this process has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, Destination, Source};

use crate::error::{Error, Place};

/// The tag of the messages.
const TAG: i32 = 7;
/// A sign of life of rank 0.
static ALIVE: u64 = 0;
/// The last message of a rank that has come to its end.
static GOODBYE: u64 = u64::MAX;
/// Rank 0, which knows best who is silent, speaks first.
const HEAD_START: Duration = Duration::from_secs(1);
/// A thread that slept for so much longer than it wanted belongs to a process that was stopped.
const STOPPED: Duration = Duration::from_secs(2);
/// The bounds of the time between two signs of life.
const INTERVALS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(200)];

/// The signs of life of this rank, and its watch over the others.
pub(super) struct Pulse {
    shared: Arc<Shared>,
    beat: JoinHandle<()>,
}

/// The knowledge that the threads share.
struct Shared {
    rank: usize,
    /// The names of all ranks.
    names: Vec<String>,
    interval: Duration,
    began: Instant,
    /// Milliseconds from `began` to the last sign of life, by rank.
    heard: Vec<AtomicU64>,
    /// The step that each rank was last known to be in, this one's included.
    steps: Vec<AtomicU64>,
    /// The ranks that have come to their end.
    left: Vec<AtomicBool>,
    /// This rank has come to its end.
    leaves: AtomicBool,
    /// Nothing is to be watched any more.
    is_over: AtomicBool,
}

impl Pulse {
    /// Begins to send and to watch. `lost` ends the process.
    pub(super) fn begin(
        rank: usize,
        names: Vec<String>,
        timeout: Duration,
        lost: impl Fn(&Error) + Send + 'static,
    ) -> Self {
        let count = names.len();
        let numbers = || (0..count).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            rank,
            names,
            interval: (timeout / 10).clamp(INTERVALS[0], INTERVALS[1]),
            began: Instant::now(),
            heard: numbers(),
            steps: numbers(),
            left: (0..count).map(|_| AtomicBool::new(false)).collect(),
            leaves: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let beating = Arc::clone(&shared);
        let beat = std::thread::spawn(move || if rank == 0 { beating.beat_as_first() } else { beating.beat() });
        let watching = Arc::clone(&shared);
        std::thread::spawn(move || watching.watch(timeout, &lost));
        Self { shared, beat }
    }

    /// This rank begins a step.
    pub(super) fn begin_step(&self, step: u64) {
        self.shared.steps[self.shared.rank].store(step, Ordering::Relaxed);
    }

    /// Waits until all ranks have come to their end.
    pub(super) fn leave(self) {
        self.shared.leaves.store(true, Ordering::Relaxed);
        // A panic of the thread leaves nothing to wait for.
        let _ = self.beat.join();
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// Notes a message of a rank.
    fn note(&self, rank: usize, message: u64) {
        self.heard[rank].store(self.now(), Ordering::Relaxed);
        if message == GOODBYE {
            self.left[rank].store(true, Ordering::Relaxed);
        } else if rank != 0 {
            self.steps[rank].store(message, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn has_left(&self, rank: usize) -> bool {
        self.left[rank].load(Ordering::Relaxed)
    }

    /// Rank 0: hears all, and sends to each without waiting for it.
    fn beat_as_first(&self) {
        let world = SimpleCommunicator::world();
        let others = 1..self.names.len();
        ::mpi::request::scope(|scope| {
            let mut sending: Vec<_> = self.names.iter().map(|_| None).collect();
            let mut is_told = vec![false; self.names.len()];
            loop {
                while let Some((message, status)) = world.any_process().immediate_matched_probe_with_tag(TAG) {
                    let (message, _) = message.matched_receive::<u64>();
                    self.note(status.source_rank() as usize, message);
                }
                let is_last = self.leaves.load(Ordering::Relaxed) && others.clone().all(|rank| self.has_left(rank));
                for rank in others.clone() {
                    if let Some(Err(request)) = sending[rank].take().map(::mpi::request::Request::test) {
                        sending[rank] = Some(request);
                    } else if !is_told[rank] {
                        is_told[rank] = is_last;
                        let message = if is_last { &GOODBYE } else { &ALIVE };
                        let other = world.process_at_rank(rank as i32);
                        sending[rank] = Some(other.immediate_send_with_tag(scope, message, TAG));
                    }
                }
                if is_last && others.clone().all(|rank| is_told[rank] && sending[rank].is_none()) {
                    break;
                }
                std::thread::sleep(self.interval);
            }
        });
    }

    /// Any other rank: hears rank 0, and sends to it.
    fn beat(&self) {
        let world = SimpleCommunicator::world();
        let first = world.process_at_rank(0);
        let mut has_said_goodbye = false;
        loop {
            while let Some((message, _)) = first.immediate_matched_probe_with_tag(TAG) {
                let (message, _) = message.matched_receive::<u64>();
                self.note(0, message);
            }
            if !has_said_goodbye {
                has_said_goodbye = self.leaves.load(Ordering::Relaxed);
                let step = self.steps[self.rank].load(Ordering::Relaxed);
                first.send_with_tag(if has_said_goodbye { &GOODBYE } else { &step }, TAG);
            }
            if has_said_goodbye && self.has_left(0) {
                break;
            }
            std::thread::sleep(self.interval);
        }
    }

    /// Looks for ranks that are silent, and for the launcher.
    fn watch(&self, timeout: Duration, lost: &dyn Fn(&Error)) {
        let watched = if self.rank == 0 { 1..self.names.len() } else { 0..1 };
        let timeout = if self.rank == 0 { timeout } else { timeout + HEAD_START };
        let launcher = parent();
        let mut looked = Instant::now();
        while !self.is_over.load(Ordering::Relaxed) {
            std::thread::sleep(self.interval);
            if parent() != launcher {
                lost(&Error::failed(
                    Place::from(self.names[self.rank].as_str()),
                    "the launcher that started it has ended",
                ));
            }
            // This process itself was stopped for a while, and has heard nobody.
            if looked.elapsed() > self.interval + STOPPED {
                self.heard.iter().for_each(|heard| heard.store(self.now(), Ordering::Relaxed));
            }
            looked = Instant::now();
            let is_silent = |rank: &usize| {
                let since = self.now().saturating_sub(self.heard[*rank].load(Ordering::Relaxed));
                !self.has_left(*rank) && u128::from(since) > timeout.as_millis()
            };
            let errors: Vec<Error> = watched.clone().filter(is_silent).map(|rank| self.silent(rank, timeout)).collect();
            if let Some(error) = Error::join(errors) {
                lost(&error.hint(
                    "`--resume` goes on from the last checkpoint; parallel.timeout_seconds is the time that is waited",
                ));
            }
        }
    }

    /// The error of a rank that is silent.
    fn silent(&self, rank: usize, timeout: Duration) -> Error {
        // The step of rank 0 is not in its signs of life; all ranks are in the same step or next to it.
        let known = if rank == 0 { self.rank } else { rank };
        let place = match self.steps[known].load(Ordering::Relaxed) {
            0 => format!("{} before the first step", self.names[rank]),
            step => format!("{} in step {step}", self.names[rank]),
        };
        let seconds = timeout.as_secs_f64();
        Error::failed(place, format!("no sign of life for {seconds:.0} s: it is dead, stopped or out of reach"))
    }
}

/// The process that started this one, or took its place.
fn parent() -> u32 {
    std::os::unix::process::parent_id()
}
