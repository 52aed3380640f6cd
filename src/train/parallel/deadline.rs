//! The time-out of calls that wait for all ranks where there are no signs of life: MPI begins, or ends.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::error::{Error, Place};

/// The time that a call may take, and the receiver of the error before the process ends.
pub(super) struct Deadline {
    /// The name of this process.
    pub(super) name: String,
    pub(super) timeout: Duration,
    pub(super) lost: Arc<dyn Fn(&Error) + Send + Sync>,
}

impl Deadline {
    /// The result of `call`. Where it takes too long, `what` is reported as not done, and the process ends without it.
    pub(super) fn of<T>(&self, what: &str, call: impl FnOnce() -> T) -> T {
        let seconds = self.timeout.as_secs_f64();
        let message =
            format!("{what} was not done by all ranks within {seconds:.0} s: one is dead, stopped or out of reach");
        let error = Error::failed(Place::from(self.name.as_str()), message)
            .hint("parallel.timeout_seconds is the time that is waited");
        let (timeout, lost) = (self.timeout, Arc::clone(&self.lost));
        let (done, is_done) = channel::<()>();
        std::thread::spawn(move || {
            if is_done.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                lost(&error);
                // The launcher ends the other ranks: MPI, which has not begun or is at its end, cannot.
                quit(1)
            }
        });
        let result = call();
        drop(done);
        result
    }
}

/// Ends this process at once, without handlers that might wait for MPI.
pub(super) fn quit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}
