//! Ctrl-C and SIGTERM: nothing half-written stays behind, and a training run ends with the best adapter so far.

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

/// Announces work that looks at [`requested`] and comes to a good end by itself.
pub fn finish_first() -> Finishing {
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
    /// The work that goes on comes to a good end by itself.
    FinishesFirst,
    /// The process ends now.
    EndsNow,
}

/// Listens for SIGINT, SIGTERM and SIGHUP from now on. `announce` reports the effect of each signal to the user.
///
/// A signal that the process was started to ignore (`nohup`, a shell's background job) stays ignored.
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
    #[cfg(unix)]
    let ignored = Ignored::now();
    // Where no handler can be set, the signal ends the process as it always did.
    let _ = ctrlc::set_handler(handler);
    #[cfg(unix)]
    ignored.restore();
}

/// The signals that the process ignores, held back as long as this lives.
#[cfg(unix)]
struct Ignored(Vec<libc::c_int>);

#[cfg(unix)]
impl Ignored {
    /// The signals among those that [`listen`] is about to handle.
    fn now() -> Self {
        let is_ignored = |signal: &libc::c_int| {
            let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: only reads the disposition of a signal into `action`, for which all zeroes are a valid value.
            let action = unsafe {
                libc::sigaction(*signal, std::ptr::null(), action.as_mut_ptr());
                action.assume_init()
            };
            action.sa_sigaction == libc::SIG_IGN
        };
        let signals = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP].into_iter().filter(is_ignored).collect();
        let ignored = Self(signals);
        ignored.mask(libc::SIG_BLOCK);
        ignored
    }

    /// Ignores them again. One that came meanwhile is forgotten.
    fn restore(self) {
        for &signal in &self.0 {
            // SAFETY: sets a disposition that runs no code.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        self.mask(libc::SIG_UNBLOCK);
    }

    /// Blocks or unblocks the signals for this thread: at the start of the process there is no other.
    fn mask(&self, how: libc::c_int) {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: `set` is initialised by `sigemptyset`, and outlives the calls.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &signal in &self.0 {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut());
        }
    }
}
