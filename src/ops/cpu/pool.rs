//! The threads that kernels run on: the caller and helpers that wait for it, spinning for a while before they sleep.
//!
//! A training step is a thousand short products one after another. rayon puts a thread to sleep as soon as it finds
//! nothing to do, and waking it costs as much as a tenth of such a product (docs/performance.md); here a helper spins
//! through the gap between two of them.
//!
//! Tasks have a home: each thread begins with its own share of them, in order, and helps out with the others' when that
//! is done. Where tasks are ordered by the rows they work on, a row stays with one thread from op to op, and so in its
//! cache: what another core has written costs five times as much to read as what one has written oneself, where the two
//! share no cache.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::shared::SharedMut;
use crate::device::nodes;

/// How long a helper spins before it sleeps: longer than what lies between two kernels of a step.
const SPIN: Duration = Duration::from_millis(2);

/// Set by [`use_threads`] before the pool starts; 0 leaves the number to the machine.
static WANTED: AtomicUsize = AtomicUsize::new(0);
/// Set by [`place_threads`] before the pool starts.
static PLACES: OnceLock<Vec<Vec<usize>>> = OnceLock::new();
static POOL: OnceLock<Pool> = OnceLock::new();

thread_local! {
    /// This thread is inside a task: what it calls runs on it alone.
    static BUSY: Cell<bool> = const { Cell::new(false) };
    /// Set by [`with_threads`].
    static LIMIT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// How many threads kernels use; without effect once one has run.
pub fn use_threads(threads: usize) {
    WANTED.store(threads, Ordering::Relaxed);
}

/// The processors that each helper stays on, by its number; number 0 is the caller's, which goes where it likes, because the threads that it
/// starts later would stay with it. Without effect once a kernel has run.
pub fn place_threads(processors: Vec<Vec<usize>>) {
    let _ = PLACES.set(processors);
}

/// Number of threads, the caller's included.
pub fn threads() -> usize {
    LIMIT.get().unwrap_or_else(|| pool().helpers + 1)
}

/// Runs `work` with kernels that split their work as for `threads` threads.
pub fn with_threads<R>(threads: usize, work: impl FnOnce() -> R) -> R {
    /// Puts the limit back that was there before, after a panic as well.
    struct Restore(Option<usize>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    let _restore = Restore(LIMIT.replace(Some(threads)));
    work()
}

/// Calls `work(0)`, `work(1)`, … `work(tasks - 1)`, each once, on several threads; neighbours tend to run on one.
///
/// A panic of a task reaches the caller once every thread has let go of `work`.
pub fn for_each(tasks: usize, work: impl Fn(usize) + Sync) {
    if tasks <= 1 || threads() == 1 || BUSY.get() || !pool().run(tasks, &work) {
        (0..tasks).for_each(work);
    }
}

/// `work(0)`, `work(1)`, … in order, computed as by [`for_each`].
pub fn map<T: Send>(tasks: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut results: Vec<Option<T>> = std::iter::repeat_with(|| None).take(tasks).collect();
    let slots = SharedMut::new(&mut results);
    for_each(tasks, |index| {
        let result = work(index);
        // SAFETY: every task writes its own slot.
        unsafe { slots.set(index, Some(result)) };
    });
    results.into_iter().flatten().collect()
}

/// Calls `work(index, chunk)` for every `size` values of `data`, as [`for_each`] does.
pub fn for_each_chunk<T: Send>(data: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let data = SharedMut::new(data);
    for_each(data.len().div_ceil(size), |index| {
        let first = index * size;
        // SAFETY: chunks do not overlap.
        work(index, unsafe { data.slice(first, size.min(data.len() - first)) });
    });
}

fn pool() -> &'static Pool {
    POOL.get_or_init(|| {
        let wanted = match WANTED.load(Ordering::Relaxed) {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            wanted => wanted,
        };
        // A helper that cannot be started is missed by no one: tasks are taken, not handed out.
        let helpers = (1..wanted)
            .filter(|&index| {
                let place = PLACES.get().and_then(|places| places.get(index)).cloned();
                start(index, place, move || help(index)).is_ok()
            })
            .count();
        Pool { helpers, callers: Mutex::new(()) }
    })
}

/// Starts a helper that stays on these processors, if there are any.
fn start(
    index: usize,
    processors: Option<Vec<usize>>,
    life: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(format!("kernels-{index}")).spawn(move || {
        if let Some(processors) = processors {
            nodes::stay_on(&processors);
        }
        life();
    })
}

struct Pool {
    helpers: usize,
    /// Held by the one caller whose tasks the helpers work on.
    callers: Mutex<()>,
}

/// The place where helpers find the job. There is one job at a time.
static SLOT: JobSlot = JobSlot {
    state: AtomicU64::new(CLOSED),
    job: Mutex::new(None),
    sleepers: AtomicUsize::new(0),
    sleep: Mutex::new(()),
    wake: Condvar::new(),
};

struct JobSlot {
    /// Number of the job in the upper half; whether it is closed; how many helpers are at it.
    state: AtomicU64,
    job: Mutex<Option<Job>>,
    /// Helpers that sleep or are about to.
    sleepers: AtomicUsize,
    /// Held by a helper while it decides to sleep.
    sleep: Mutex<()>,
    wake: Condvar,
}

const CLOSED: u64 = 1 << 31;
const HELPERS: u64 = CLOSED - 1;

fn number(state: u64) -> u64 {
    state >> 32
}

/// Tasks of a caller that waits until everyone has let go of them.
#[derive(Clone, Copy)]
struct Job(*const Tasks<'static>);
// SAFETY: the tasks are shared only, and outlive the job (see `Pool::run`).
unsafe impl Send for Job {}

struct Tasks<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    count: usize,
    /// The next task of each thread's share.
    shares: [Share; MOST_SHARES],
    threads: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Number of task queues. With more threads than this, several threads take from one queue.
const MOST_SHARES: usize = 64;

/// On a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicUsize);

impl Tasks<'_> {
    fn new(work: &(dyn Fn(usize) + Sync), count: usize, threads: usize) -> Tasks<'_> {
        let threads = threads.min(MOST_SHARES);
        let tasks = Tasks {
            work,
            count,
            shares: [const { Share(AtomicUsize::new(0)) }; MOST_SHARES],
            threads,
            panic: Mutex::new(None),
        };
        for (share, next) in tasks.shares.iter().enumerate().take(threads) {
            next.0.store(tasks.first(share), Ordering::Relaxed);
        }
        tasks
    }

    /// The first task of a share.
    fn first(&self, share: usize) -> usize {
        share * self.count / self.threads
    }

    /// Takes tasks until none is left: its own, then those of the next threads.
    fn take(&self, thread: usize) {
        BUSY.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for share in (0..self.threads).map(|offset| (thread + offset) % self.threads) {
                let end = self.first(share + 1);
                loop {
                    let index = self.shares[share].0.fetch_add(1, Ordering::Relaxed);
                    if index >= end {
                        break;
                    }
                    (self.work)(index);
                }
            }
        }));
        BUSY.set(false);
        if let Err(payload) = outcome {
            for share in &self.shares[..self.threads] {
                share.0.store(self.count, Ordering::Relaxed);
            }
            *lock(&self.panic) = Some(payload);
        }
    }
}

impl Pool {
    /// Whether the tasks ran: not if there is no helper, or another thread has them all.
    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) -> bool {
        if self.helpers == 0 {
            return false;
        }
        let Ok(_alone) = self.callers.try_lock() else { return false };
        let tasks = Tasks::new(work, count, self.helpers + 1);
        let erased = std::ptr::from_ref(&tasks).cast::<Tasks<'static>>();
        *lock(&SLOT.job) = Some(Job(erased));
        let job = number(SLOT.state.load(Ordering::Relaxed)).wrapping_add(1) << 32;
        SLOT.state.store(job, Ordering::SeqCst);
        if SLOT.sleepers.load(Ordering::SeqCst) > 0 {
            let _awake = lock(&SLOT.sleep);
            SLOT.wake.notify_all();
        }
        tasks.take(0);
        // From here on no helper begins; those at it are waited for, so that `tasks` outlives them.
        SLOT.state.fetch_or(CLOSED, Ordering::SeqCst);
        let mut spins = 0u32;
        while SLOT.state.load(Ordering::Acquire) & HELPERS > 0 {
            pause(&mut spins);
        }
        *lock(&SLOT.job) = None;
        let panic = lock(&tasks.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
        true
    }
}

/// A helper's life: it ends with the process.
fn help(thread: usize) {
    let mut seen = 0;
    loop {
        let state = wait_for_job_after(seen);
        seen = number(state);
        if state & CLOSED > 0
            || SLOT.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed).is_err()
        {
            // It is over, or another helper came or went: look again, unless it is over.
            if state & CLOSED == 0 {
                seen = seen.wrapping_sub(1);
            }
            continue;
        }
        let job = *lock(&SLOT.job);
        if let Some(Job(tasks)) = job {
            // SAFETY: the caller waits until this helper is off the job, and counted it as on it before.
            unsafe { (*tasks).take(thread) };
        }
        SLOT.state.fetch_sub(1, Ordering::Release);
    }
}

/// The state of a job other than `seen`: spins, then sleeps.
fn wait_for_job_after(seen: u64) -> u64 {
    let news = || Some(SLOT.state.load(Ordering::SeqCst)).filter(|&state| number(state) != seen);
    let began = Instant::now();
    let mut spins = 0u32;
    loop {
        if let Some(state) = news() {
            return state;
        }
        pause(&mut spins);
        if spins.is_multiple_of(256) && began.elapsed() > SPIN {
            break;
        }
    }
    SLOT.sleepers.fetch_add(1, Ordering::SeqCst);
    let mut asleep = lock(&SLOT.sleep);
    let state = loop {
        if let Some(state) = news() {
            break state;
        }
        asleep = SLOT.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
    };
    drop(asleep);
    SLOT.sleepers.fetch_sub(1, Ordering::SeqCst);
    state
}

/// One turn of a spin; now and then another process may have the core.
fn pause(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(64) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_however_many_callers_there_are() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for tasks in (0..400).chain([10_000]) {
                        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        for_each(tasks, |index| {
                            counts[index].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
        assert_eq!(map(1000, |index| index * index), (0..1000).map(|index| index * index).collect::<Vec<_>>());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_helper_stays_on_its_processors() {
        let allowed = nodes::allowed_processors();
        for place in [Some(allowed[..1].to_vec()), None] {
            let expected = place.clone().unwrap_or_else(|| allowed.clone());
            let life = move || assert_eq!(nodes::allowed_processors(), expected);
            start(1, place, life).expect("a thread").join().expect("on its processors");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for _ in 0..100 {
            let caught = catch_unwind(|| for_each(64, |index| assert!(index != 40, "task {index}")));
            let message = caught.expect_err("a task panicked");
            assert_eq!(message.downcast_ref::<String>().map(String::as_str), Some("task 40"));
        }
        assert_eq!(map(8, |index| index), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_limit_on_threads_ends_with_a_panic_inside() {
        let before = threads();
        let caught = catch_unwind(|| with_threads(before + 5, || panic!("inside with {}", threads())));
        assert!(caught.is_err());
        assert_eq!(threads(), before);
    }

    #[test]
    fn a_task_may_call_again() {
        let sums = map(16, |index| map(10, |inner| index * inner).iter().sum::<usize>());
        assert_eq!(sums, (0..16).map(|index| 45 * index).collect::<Vec<_>>());
    }
}
