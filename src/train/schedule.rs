//! The learning rate of each step, as a closed form of the step's number.

use crate::settings::choice;

choice! {
    /// The learning rate after the warm-up.
    ScheduleKind {
        /// It stays.
        Constant = "constant",
        /// It falls in a straight line to 0 at the last step.
        Linear = "linear",
        /// It falls along half a cosine to 0 at the last step.
        Cosine = "cosine",
        /// It stays, and falls along half a cosine to 0 in the last `decay_share` of the run.
        WarmupStableDecay = "warmup-stable-decay",
    }
}

/// transformers' schedules (`get_linear_schedule_with_warmup` and its siblings).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Its form after the warm-up.
    pub kind: ScheduleKind,
    /// The rate at the end of the warm-up.
    pub peak: f64,
    /// Steps over which the rate rises from 0 to the peak.
    pub warmup_steps: u64,
    /// Steps at the end of the run over which a warm-up-stable-decay schedule falls; others do not read it.
    pub decay_steps: u64,
    /// Steps of the run.
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of update number `step`, counted from 0: `step / warmup_steps` of the peak during the warm-up, so
    /// the very first update of a warm-up has a rate of 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        // The steps in which the rate falls: all after the warm-up, or the last of them.
        let after_warmup = self.total_steps.saturating_sub(self.warmup_steps);
        let falling = match self.kind {
            ScheduleKind::WarmupStableDecay => self.decay_steps.min(after_warmup),
            ScheduleKind::Constant | ScheduleKind::Linear | ScheduleKind::Cosine => after_warmup,
        };
        let fallen = step.saturating_sub(self.total_steps.saturating_sub(falling).max(self.warmup_steps));
        let progress = (fallen as f64 / falling.max(1) as f64).min(1.0);
        self.peak
            * match self.kind {
                ScheduleKind::Constant => 1.0,
                ScheduleKind::Linear => 1.0 - progress,
                ScheduleKind::Cosine | ScheduleKind::WarmupStableDecay => {
                    0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
                }
            }
    }
}
