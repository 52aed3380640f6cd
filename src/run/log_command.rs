//! A command that gets each line of the metrics on its stdin, for any tracker. The run does not wait for it and does not mind its end.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::watch::Watch;
use crate::error::{Error, Place, Result};

/// Lines that wait for a command that reads slowly; further ones do not reach it.
const WAITING_LINES: usize = 10_000;
/// The time that a command has to end in after the run.
const LAST_TIME: Duration = Duration::from_secs(10);
/// The time between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// A command that reads metrics. When it is dropped, its stdin ends, and it gets some time to end too.
#[derive(Debug)]
pub(super) struct LogCommand {
    child: Child,
    /// The way to the thread that writes; none once the command does not read any more.
    lines: Option<SyncSender<String>>,
    lost: u64,
}

impl LogCommand {
    /// Starts `command` by the shell. Its output goes to stderr.
    ///
    /// # Errors
    /// Input: it cannot be started.
    pub(super) fn start(command: &str) -> Result<Self> {
        let (shell, option) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        let mut shell = Command::new(shell);
        shell.args([option, command]).stdin(Stdio::piped()).stdout(std::io::stderr());
        // A signal from the keyboard is for the run, which ends the command's input.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let mut child = shell.spawn().map_err(|error| {
            Error::input(Place::argument("--log-to"), format!("cannot be started: {error}")).because(error)
        })?;
        let (lines, waiting) = sync_channel(WAITING_LINES);
        if let Some(stdin) = child.stdin.take() {
            std::thread::spawn(move || write(stdin, &waiting));
        }
        Ok(Self { child, lines: Some(lines), lost: 0 })
    }

    /// Sends a line of the metrics.
    pub(super) fn send(&mut self, line: &Value, watch: &mut dyn Watch) {
        let Some(lines) = &self.lines else { return };
        match lines.try_send(format!("{line}\n")) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.lost += 1;
                if self.lost == 1 {
                    watch.notice("warning: the command of --log-to reads too slowly, and misses lines of the metrics");
                }
            }
            Err(TrySendError::Disconnected(_)) => {
                self.lines = None;
                watch.notice("warning: the command of --log-to does not read any more; training goes on");
            }
        }
    }
}

/// Writes lines until there are no more, or nobody reads them.
fn write(mut stdin: ChildStdin, lines: &Receiver<String>) {
    while let Ok(line) = lines.recv() {
        if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

impl Drop for LogCommand {
    fn drop(&mut self) {
        self.lines = None;
        let began = Instant::now();
        while began.elapsed() < LAST_TIME && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(LOOK);
        }
    }
}
