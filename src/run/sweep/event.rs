//! The events of a sweep.

use serde_json::{Map, Value};

use crate::report::sweep::{Summary, SummaryRow};

/// The events of a sweep, in order.
pub enum SweepEvent<'a> {
    /// Before the first trial.
    Begins {
        /// Trials.
        trials: usize,
        /// Trials at once.
        at_once: usize,
    },
    /// A line for the user.
    Notice(&'a str),
    /// A trial begins or goes on.
    TrialBegins {
        /// Its name.
        trial: &'a str,
        /// The values of its settings.
        values: &'a Map<String, Value>,
        /// The step where it pauses; `None` where it goes to its end.
        until_step: Option<u64>,
    },
    /// An evaluation of a trial.
    Evaluated {
        /// Its name.
        trial: &'a str,
        /// Steps done.
        step: u64,
        /// The validation loss.
        loss: f64,
    },
    /// A trial pauses, or is at its end.
    TrialEnds(&'a SummaryRow),
    /// The trials of a rung are compared.
    Compared(&'a Summary),
}
