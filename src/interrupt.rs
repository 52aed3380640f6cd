//! Ctrl-C, SIGTERM and SIGHUP: nothing half-written stays behind, and a training run saves its state first.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::files::temporary;

/// The signal that asked this process to stop; 0 for none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// The process is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);
static FINISHING: AtomicUsize = AtomicUsize::new(0);
/// The words for the user when work that finishes first is interrupted.
static FINISHING_TEXT: Mutex<&str> = Mutex::new("");
/// The process that [`Helper`] stands for; 0 for none.
static HELPER: AtomicU32 = AtomicU32::new(0);
/// The way to go on after an interruption, in words.
static GOING_ON: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    /// Whether [`check`] ends the work of this thread.
    static CANCELLABLE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    SIGNAL.load(Ordering::Relaxed) != 0
}

/// Whether Ctrl-C asked to stop; the next one counts as the first again.
pub fn take_ctrl_c() -> bool {
    const SIGINT: i32 = 2;
    SIGNAL.compare_exchange(SIGINT, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// The exit code of a process that a signal ended, by convention 128 + its number: 130 for SIGINT, 143 for SIGTERM.
pub fn exit_code() -> u8 {
    u8::try_from(128 + SIGNAL.load(Ordering::Relaxed)).unwrap_or(u8::MAX)
}

/// Keeps the way to go on, for the message at an interruption.
pub fn set_going_on(text: Option<String>) {
    *GOING_ON.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// The way to go on after an interruption, in words.
pub fn going_on() -> Option<String> {
    GOING_ON.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The payload of the unwinding that ends cancelled work.
struct Cancelled;

/// Runs `work`, which ends at the next [`check`] once the user has asked to stop; `None` then. Everything that `work` changes
/// must be as good before as after it, or be thrown away.
pub fn cancellable<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = CANCELLABLE.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CANCELLABLE.set(before);
    match outcome {
        Ok(value) => Some(value),
        Err(payload) if payload.is::<Cancelled>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// Ends the work of this thread if it is [`cancellable`] and the user has asked to stop. The kernels call it, since a step
/// through a model can take minutes.
pub fn check() {
    if requested() && CANCELLABLE.get() && !std::thread::panicking() {
        resume_unwind(Box::new(Cancelled));
    }
}

/// Waits for the end of the process, if a signal is about to end it: an error meanwhile comes from the removal of its
/// files, and is not worth a report.
pub fn wait_for_the_end() {
    while ENDING.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// A guard: while it lives, the first signal only makes [`requested`] true.
#[derive(Debug)]
pub struct Finishing(());

/// Announces work that looks at [`requested`] and comes to a good end by itself. `text` is for the user when a signal
/// interrupts it; an empty one where the work shows that itself.
pub fn finish_first(text: &'static str) -> Finishing {
    *FINISHING_TEXT.lock().unwrap_or_else(PoisonError::into_inner) = text;
    FINISHING.fetch_add(1, Ordering::Relaxed);
    Finishing(())
}

impl Drop for Finishing {
    fn drop(&mut self) {
        FINISHING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Another program that works for this one. As long as this lives, a signal that ends this process ends that one too.
#[derive(Debug)]
pub struct Helper(());

/// Makes a child process known. There is one at a time.
pub fn helper(child: &Child) -> Helper {
    HELPER.store(child.id(), Ordering::Relaxed);
    Helper(())
}

impl Drop for Helper {
    fn drop(&mut self) {
        HELPER.store(0, Ordering::Relaxed);
    }
}

/// Asks the helper to stop, as Ctrl-C in a terminal does.
fn stop_helper() {
    #[cfg(unix)]
    if let Ok(process) = libc::pid_t::try_from(HELPER.load(Ordering::Relaxed))
        && process > 0
    {
        // SAFETY: sends a signal; at worst the process is gone already.
        unsafe { libc::kill(process, libc::SIGINT) };
    }
}

/// The effect of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The work that goes on comes to a good end by itself, with these words for the user.
    FinishesFirst(&'static str),
    /// The process ends now.
    EndsNow,
}

/// Listens for SIGINT, SIGTERM and SIGHUP from now on. `announce` reports the effect of each signal to the user.
///
/// A signal that the process was started to ignore (`nohup`, a shell's background job) stays ignored.
#[cfg(unix)]
pub fn listen(announce: impl Fn(Effect) + Send + 'static) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    let heeded = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
    // Where no handler can be set, the signal ends the process as it always did.
    let Ok(mut signals) = Signals::new(heeded) else { return };
    std::thread::spawn(move || signals.forever().for_each(|signal| take(signal, &announce)));
}

/// Listens for Ctrl-C from now on. `announce` reports the effect of each to the user.
#[cfg(not(unix))]
pub fn listen(announce: impl Fn(Effect) + Send + 'static) {
    const SIGINT: i32 = 2;
    // Where no handler can be set, Ctrl-C ends the process as it always did.
    let _ = ctrlc::set_handler(move || take(SIGINT, &announce));
}

/// The effect of a signal: the first asks work that saves its state to stop, any other ends the process.
fn take(signal: i32, announce: &impl Fn(Effect)) {
    let is_first = SIGNAL.swap(signal, Ordering::Relaxed) == 0;
    if is_first && FINISHING.load(Ordering::Relaxed) > 0 {
        announce(Effect::FinishesFirst(*FINISHING_TEXT.lock().unwrap_or_else(PoisonError::into_inner)));
    } else {
        announce(Effect::EndsNow);
        ENDING.store(true, Ordering::Release);
        stop_helper();
        temporary::remove_all();
        std::process::exit(exit_code().into());
    }
}

/// Whether the process was started to ignore a signal.
#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only reads the disposition of a signal into `action`, for which all zeroes are a valid value.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_panics_is_not_taken_for_cancelled() {
        assert_eq!(cancellable(|| 7), Some(7));
        let panicked = catch_unwind(|| cancellable(|| panic!("a bug")));
        assert!(panicked.is_err());
        assert!(!CANCELLABLE.get());
    }
}
