//! Panics are bugs of burnish. Each is reported as one line rather than as a stack trace.

use std::panic::PanicHookInfo;
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// The message and place of the last panic.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Keeps the message of a panic until it is known whether anyone catches it. With `RUST_BACKTRACE` set, it is printed
/// at once, as usual.
pub(super) fn keep_quiet() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(describe(info));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            usual(info);
        }
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
    match info.location() {
        Some(place) => format!("{message} ({}:{})", place.file(), place.line()),
        None => message,
    }
}

/// The panic that ended the command.
pub(super) fn as_error() -> Error {
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).take();
    let message = format!("this is a bug in burnish: {}", last.as_deref().unwrap_or("no message"));
    Error::failed("", message).hint("please report it, with what you ran; RUST_BACKTRACE=1 shows where it happened")
}
