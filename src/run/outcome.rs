//! The outcome of a training run, for people and as JSON.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::bytes::Size;
use crate::error::{counted, printable};
use crate::eval::loss::{LossComparison, perplexity};

/// The outcome of a training run.
#[derive(Debug, Clone, Serialize)]
pub struct TrainReport {
    /// The run folder.
    pub dir: PathBuf,
    /// Steps done.
    pub steps: u64,
    /// Of these, the ones whose loss or gradient was not finite: they changed nothing.
    pub bad_steps: u64,
    /// Steps that the best adapter had.
    pub best_step: u64,
    /// Early stopping ended the run.
    pub stopped_early: bool,
    /// The user ended the run.
    pub interrupted: bool,
    /// The command that goes on with a run that was interrupted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// Trainable values.
    pub parameters: usize,
    /// Tokens through the model in training, by second of training.
    pub tokens_per_second: f64,
    /// The peak of resident memory.
    pub peak_bytes: u64,
    /// The peak by the memory plan; none where the model lies in another memory than the process.
    pub planned_bytes: Option<u64>,
    /// Validation loss before and after, with a 95% interval of the difference; none without validation data.
    pub validation: Option<Validation>,
    /// The sample prompts, answered before and after.
    pub samples: Vec<Sample>,
}

/// A prompt answered before and after the training.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// The prompt.
    pub prompt: String,
    /// The answer of the base.
    pub before: String,
    /// The answer with the adapter.
    pub after: String,
}

/// The verdict on the validation data.
#[derive(Debug, Clone, Serialize)]
pub struct Validation {
    /// Mean loss over the trained tokens without the adapter.
    pub loss_before: f64,
    /// Mean loss with it.
    pub loss_after: f64,
    /// `exp` of the mean loss without the adapter.
    pub perplexity_before: f64,
    /// `exp` of the mean loss with it.
    pub perplexity_after: f64,
    /// Trained tokens.
    pub tokens: usize,
    /// Examples.
    pub examples: usize,
    /// `loss_after − loss_before`.
    pub difference: f64,
    /// Lower end of the difference's 95% interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The verdict in words.
    pub verdict: &'static str,
    /// Why there is no verdict whatever the interval says; `None` where the interval decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict_reason: Option<String>,
}

impl Validation {
    pub(super) fn of(comparison: &LossComparison, tokens: usize) -> Self {
        Self {
            loss_before: comparison.before,
            loss_after: comparison.after,
            perplexity_before: perplexity(comparison.before),
            perplexity_after: perplexity(comparison.after),
            tokens,
            examples: comparison.examples,
            difference: comparison.difference,
            low: comparison.low,
            high: comparison.high,
            verdict: comparison.verdict.name(),
            verdict_reason: comparison.reason(),
        }
    }
}

impl fmt::Display for TrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sample in &self.samples {
            writeln!(f, "prompt: {}", printable(sample.prompt.trim()))?;
            writeln!(f, "  before: {}", printable(sample.before.trim()))?;
            writeln!(f, "  after:  {}\n", printable(sample.after.trim()))?;
        }
        if let Some(valid) = &self.validation {
            writeln!(f, "{valid}")?;
        }
        let (steps, best) = (counted(self.steps, "step"), self.best_step);
        let early = match (self.interrupted, self.stopped_early) {
            (true, _) => ", interrupted",
            (_, true) => ", stopped early",
            _ => "",
        };
        let (speed, peak) = (self.tokens_per_second, Size(self.peak_bytes));
        write!(f, "{steps}{early}, best at {best}; {speed:.0} tokens/s; peak memory {peak}")?;
        match self.planned_bytes {
            Some(planned) => writeln!(f, " (planned {})", Size(planned))?,
            None => writeln!(f)?,
        }
        if self.bad_steps > 0 {
            writeln!(f, "{} changed nothing: loss or gradient was not finite", counted(self.bad_steps, "step"))?;
        }
        if let Some(command) = &self.resume {
            writeln!(f, "go on with: {command}")?;
        }
        write!(f, "adapter: {} ({})", self.dir.display(), counted(self.parameters, "parameter"))
    }
}

impl fmt::Display for Validation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "validation loss {:.4} -> {:.4} over {} ({:+.4}, 95% interval {:+.4} to {:+.4}): {}",
            self.loss_before,
            self.loss_after,
            counted(self.tokens, "token"),
            self.difference,
            self.low,
            self.high,
            self.verdict
        )?;
        self.verdict_reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_on_too_few_examples_says_so() {
        let examples = |loss_sum| vec![crate::eval::loss::ExampleLoss { loss_sum, tokens: 1 }; 4];
        let comparison =
            crate::eval::loss::compare(&examples(2.0), &examples(1.0), 0, crate::eval::loss::example_number).unwrap();
        let validation = Validation::of(&comparison, 4);
        let text = validation.to_string();
        assert!(text.ends_with("-1.0000): no evidence: 4 examples, at least 10 are needed"), "{text}");
        let json = serde_json::to_value(&validation).unwrap();
        assert_eq!(json["verdict"], "no evidence");
        assert_eq!(json["verdict_reason"], "4 examples, at least 10 are needed");
    }

    #[test]
    fn an_answer_cannot_control_the_terminal() {
        let sample = Sample { prompt: "a\u{1b}[2Jb".into(), before: "\u{7}c".into(), after: "d\u{9b}31m\ne".into() };
        let report = TrainReport {
            dir: "runs/a".into(),
            steps: 1,
            bad_steps: 0,
            best_step: 1,
            stopped_early: false,
            interrupted: false,
            resume: None,
            parameters: 1,
            tokens_per_second: 1.0,
            peak_bytes: 1,
            planned_bytes: None,
            validation: None,
            samples: vec![sample],
        };
        let text = report.to_string();
        assert!(text.contains("1 step, best at 1;") && text.ends_with("(1 parameter)"), "{text}");
        assert!(text.contains("a\\u{1b}[2Jb") && text.contains("\\u{7}c") && text.contains("d\\u{9b}31m\ne"), "{text}");
        assert!(!text.contains(|symbol: char| symbol.is_control() && symbol != '\n'), "{text:?}");
    }
}
