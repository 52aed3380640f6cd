//! Ctrl-C and SIGTERM: nothing half-written stays behind, and a training run ends with what it has learned.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::files::temporary;

/// The exit code of a process that a user interrupted, by convention 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static FINISHING: AtomicUsize = AtomicUsize::new(0);
/// The process is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Waits for the end of the process, if a signal is about to end it: what fails meanwhile fails because its files are gone.
pub fn wait_for_the_end() {
    while ENDING.load(Ordering::Relaxed) {
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

/// Listens, from now on. `announce` tells the user that the first signal was understood.
pub fn listen(announce: impl Fn() + Send + 'static) {
    let handler = move || {
        let is_first = !REQUESTED.swap(true, Ordering::Relaxed);
        if is_first && FINISHING.load(Ordering::Relaxed) > 0 {
            announce();
        } else {
            ENDING.store(true, Ordering::Relaxed);
            temporary::remove_all();
            std::process::exit(EXIT_CODE.into());
        }
    };
    // Where no handler can be set, the signal ends the process as it always did.
    let _ = ctrlc::set_handler(handler);
}
