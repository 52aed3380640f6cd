//! Progress on stderr: a bar where that is a terminal, plain lines otherwise.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::terminal::Terminal;
use crate::pull::Event;

/// Shows downloads.
pub(super) struct Downloads<'t> {
    terminal: &'t Terminal,
    bar: Option<ProgressBar>,
}

impl<'t> Downloads<'t> {
    pub(super) fn new(terminal: &'t Terminal) -> Self {
        Self { terminal, bar: None }
    }

    /// Shows an event.
    pub(super) fn show(&mut self, event: Event) {
        match event {
            Event::Notice(text) => {
                self.end();
                self.terminal.message(text);
            }
            Event::Start { file, bytes_done, bytes_total } => {
                self.end();
                match (self.terminal.shows_bars(), bytes_total) {
                    (true, total) => self.bar = Some(bytes_bar(file, bytes_done, total)),
                    (false, Some(total)) => self.terminal.message(format!("{file}: {:.1} MB", total as f64 / 1e6)),
                    (false, None) => self.terminal.message(file),
                }
            }
            Event::Advance { bytes } => {
                if let Some(bar) = &self.bar {
                    bar.inc(bytes);
                }
            }
            Event::Finish => {
                if let Some(bar) = self.bar.take() {
                    bar.finish();
                }
            }
        }
    }

    /// Leaves a bar that is not finished as it is.
    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

/// Shows work that is counted, if it takes more than a second: a base that is loaded, an evaluation.
pub(super) struct Counter<'t> {
    terminal: &'t Terminal,
    /// The work, as `loading`.
    work: &'static str,
    /// The things that are counted, as `tensors`.
    things: &'static str,
    began: Instant,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

/// Work that takes less than this gets no bar.
const SHORT: Duration = Duration::from_secs(1);
/// Time between two lines where there is no bar.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

impl<'t> Counter<'t> {
    fn new(terminal: &'t Terminal, work: &'static str, things: &'static str) -> Self {
        Self { terminal, work, things, began: Instant::now(), bar: None, last_line: Instant::now() }
    }

    /// Shows how much of a base is loaded.
    pub(super) fn of_loading(terminal: &'t Terminal) -> Self {
        Self::new(terminal, "loading", "tensors")
    }

    /// Shows how many examples are encoded.
    pub(super) fn of_encoding(terminal: &'t Terminal) -> Self {
        Self::new(terminal, "encoding", "examples")
    }

    /// Shows how much of an evaluation is done.
    pub(super) fn of_evaluation(terminal: &'t Terminal) -> Self {
        Self::new(terminal, "evaluating", "examples")
    }

    /// Shows how many answers are given.
    pub(super) fn of_answers(terminal: &'t Terminal) -> Self {
        Self::new(terminal, "answering", "prompts")
    }

    /// Begins again: the next work of this kind takes its own time.
    fn restart(&mut self) {
        (self.began, self.last_line) = (Instant::now(), Instant::now());
    }

    /// Shows that `done` things of `total` are done.
    pub(super) fn show(&mut self, done: usize, total: usize) {
        if self.terminal.shows_bars() {
            if self.bar.is_none() && self.began.elapsed() > SHORT {
                let bar = ProgressBar::new(total as u64).with_message(self.work);
                let template = format!("{{msg}} {{wide_bar}} {{pos}}/{{len}} {} {{eta}}", self.things);
                bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
                self.bar = Some(bar);
            }
            if let Some(bar) = &self.bar {
                bar.set_position(done as u64);
            }
        } else if done < total && self.last_line.elapsed() > BETWEEN_LINES {
            self.last_line = Instant::now();
            self.terminal.message(format!("{}: {done} of {total} {}", self.work, self.things));
        }
        if done >= total {
            self.bar.take().iter().for_each(ProgressBar::finish_and_clear);
            self.restart();
        }
    }
}

fn bytes_bar(file: &str, done: u64, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
        ),
        None => (ProgressBar::new_spinner(), "{msg} {spinner} {decimal_bytes} {decimal_bytes_per_sec}"),
    };
    // A template that does not parse would only change how the bar looks.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(file.to_owned());
    bar.set_position(done);
    bar.reset_eta();
    bar
}
