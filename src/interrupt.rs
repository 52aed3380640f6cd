//! Ctrl-C and SIGTERM: nothing half-written stays behind, and a training run ends with what it has learned.

use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::files::temporary;

/// The exit code of a process that a user interrupted, by convention 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// The process is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);
static FINISHING: AtomicUsize = AtomicUsize::new(0);
/// The process that [`Helper`] stands for; 0 for none.
static HELPER: AtomicU32 = AtomicU32::new(0);

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Waits for the end of the process, if a signal is about to end it: what fails meanwhile fails because its files are
/// being removed, and has nothing to tell.
pub fn wait_for_the_end() {
    while ENDING.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// While it lives, the first signal only makes [`requested`] true.
#[derive(Debug)]
pub struct Finishing(());

/// The work that follows looks at [`requested`] and comes to a good end by itself.
pub fn finish_first() -> Finishing {
    FINISHING.fetch_add(1, Ordering::Relaxed);
    Finishing(())
}

impl Drop for Finishing {
    fn drop(&mut self) {
        FINISHING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Another program that works for this one. While this lives, a signal that ends this process ends that one too.
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
    /// The work that goes on comes to a good end by itself.
    FinishesFirst,
    /// The process ends now.
    EndsNow,
}

/// Listens for signals, from now on. `announce` reports the effect of each to the user.
pub fn listen(announce: impl Fn(Effect) + Send + 'static) {
    let handler = move || {
        let is_first = !REQUESTED.swap(true, Ordering::Relaxed);
        if is_first && FINISHING.load(Ordering::Relaxed) > 0 {
            announce(Effect::FinishesFirst);
        } else {
            announce(Effect::EndsNow);
            ENDING.store(true, Ordering::Release);
            stop_helper();
            temporary::remove_all();
            std::process::exit(EXIT_CODE.into());
        }
    };
    // Where no handler can be set, the signal ends the process as it always did.
    let _ = ctrlc::set_handler(handler);
}
