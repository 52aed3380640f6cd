//! The outcome of a training run, for people and as JSON: its verdicts, and whether they suffice.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::classes::ClassVerdict;
use super::preferences::PreferenceVerdict;
use crate::bytes::Size;
use crate::error::{Error, Place, Result, counted, printable};
use crate::eval::bootstrap::{Comparison, Verdict};
use crate::eval::loss::{self, ExampleLoss, perplexity};
use crate::settings::choice;
use crate::train::Guarantee;

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
    /// The promise to the training examples, where the run was private.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Guarantee>,
    /// Validation loss before and after, with a 95% interval of the difference; none without validation data.
    pub validation: Option<Validation>,
    /// The same on the test examples, by which nothing was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Validation>,
    /// The same on the guard, which the adapter was not trained for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard: Option<Validation>,
    /// The sample prompts, answered before and after.
    pub samples: Vec<Sample>,
}

impl TrainReport {
    /// The verdicts by data set; `None` where there is none.
    pub fn verdicts(&self) -> Option<Value> {
        let verdicts = self.validation.iter().chain(&self.test).chain(&self.guard);
        let by_name: Map<String, Value> = verdicts.map(|verdict| (verdict.name.to_owned(), json!(verdict))).collect();
        (!by_name.is_empty()).then_some(Value::Object(by_name))
    }

    /// Checks the verdict that decides, by the test examples or else by the validation examples, and that on the guard.
    ///
    /// # Errors
    /// Those of [`Requirement::check`].
    pub fn check(&self, required: Requirement) -> Result<()> {
        let decisive = self.test.as_ref().or(self.validation.as_ref());
        let decisive = decisive.map(|validation| (validation.name, validation.verdict));
        required.check(decisive, self.guard.as_ref().map(|guard| guard.verdict))
    }
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

choice! {
    /// The verdict that a command demands, for its exit code.
    Requirement {
        /// The adapter is better than the base, by the test examples or else the validation examples, and not worse on the guard.
        Improved = "improved",
        /// The adapter is nowhere worse than the base.
        NotWorse = "not-worse",
    }
}

impl Requirement {
    /// Checks the verdict that decides, with its name, and the one on the guard.
    ///
    /// # Errors
    /// Failed: a verdict does not suffice, or there is none.
    pub fn check(self, decisive: Option<(&str, Verdict)>, guard: Option<Verdict>) -> Result<()> {
        let place = || Place::argument("--require");
        let Some((name, verdict)) = decisive else {
            return Err(Error::failed(place(), "there is no verdict: nothing was compared with the base")
                .hint("give validation examples, or with `eval` an adapter"));
        };
        let is_met = |verdict, requirement| match requirement {
            Self::Improved => verdict == Verdict::Improved,
            Self::NotWorse => verdict != Verdict::Worse,
        };
        let judged = std::iter::once((name, verdict, self)).chain(guard.map(|guard| ("guard", guard, Self::NotWorse)));
        let unmet = judged.filter(|(_, verdict, requirement)| !is_met(*verdict, *requirement));
        let errors = unmet.map(|(name, verdict, requirement)| {
            Error::failed(place(), format!("the {name} verdict is `{}`, not `{requirement}`", verdict.name()))
        });
        Error::none_of(errors.collect(), ())
    }
}

/// The verdict on a data set.
#[derive(Debug, Clone, Serialize)]
pub struct Validation {
    /// The data set: `validation`, `test` or `guard`.
    #[serde(skip)]
    pub name: &'static str,
    /// Mean loss over the trained tokens without the adapter; for preferences, the mean loss of an example by the objective.
    pub loss_before: f64,
    /// Mean loss with it.
    pub loss_after: f64,
    /// `exp` of the mean loss without the adapter; none for preferences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_before: Option<f64>,
    /// `exp` of the mean loss with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_after: Option<f64>,
    /// Trained tokens; of a classifier, labels.
    pub tokens: usize,
    /// Share of the trained tokens than which the base found no other likelier; none for preferences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_accuracy_before: Option<f64>,
    /// The same with the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_accuracy_after: Option<f64>,
    /// The measures of preferences, where the examples are such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferences: Option<PreferenceVerdict>,
    /// The measures of labels, where the adapter is a classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<ClassVerdict>,
    /// Examples.
    pub examples: usize,
    /// Examples of the set that were not measured.
    pub unmeasured_examples: usize,
    /// `loss_after − loss_before`.
    pub difference: f64,
    /// Lower end of the difference's 95% interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The conclusion from the interval.
    pub verdict: Verdict,
    /// Why there is no evidence; `None` where there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict_reason: Option<String>,
    /// A remedy for what the verdict says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Validation {
    /// The verdict on the data set `name`, by the losses of base and adapter. The rest is [`loss::compare`].
    ///
    /// # Errors
    /// Those of [`loss::compare`].
    pub(super) fn of(
        name: &'static str,
        (before, after): (&[ExampleLoss], &[ExampleLoss]),
        seed: u64,
        place: impl Fn(usize) -> String,
    ) -> Result<Self> {
        let comparison = loss::compare(before, after, seed, place)?;
        Ok(Self {
            perplexity_before: Some(perplexity(comparison.before)),
            perplexity_after: Some(perplexity(comparison.after)),
            token_accuracy_before: Some(loss::token_accuracy(before)),
            token_accuracy_after: Some(loss::token_accuracy(after)),
            ..Self::by(name, &comparison, after.iter().map(|example| example.tokens).sum())
        })
    }

    /// The verdict of a comparison over `tokens` trained tokens, without further measures.
    pub(super) fn by(name: &'static str, comparison: &Comparison, tokens: usize) -> Self {
        Self {
            name,
            loss_before: comparison.before,
            loss_after: comparison.after,
            perplexity_before: None,
            perplexity_after: None,
            tokens,
            token_accuracy_before: None,
            token_accuracy_after: None,
            preferences: None,
            classes: None,
            examples: comparison.examples,
            unmeasured_examples: 0,
            difference: comparison.difference,
            low: comparison.low,
            high: comparison.high,
            verdict: comparison.verdict,
            verdict_reason: comparison.reason(),
            advice: None,
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
        for verdict in self.validation.iter().chain(&self.test).chain(&self.guard) {
            writeln!(f, "{verdict}")?;
        }
        if self.validation.is_some() && self.best_step > 0 {
            let test = match self.test {
                Some(_) => "nothing was chosen by the test examples",
                None => "examples in `data.test` would have the last word",
            };
            writeln!(f, "the best step was chosen by the validation examples; {test}")?;
        }
        if let Some(privacy) = &self.privacy {
            writeln!(f, "privacy: {privacy}")?;
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
        write!(f, "{} loss {:.4} -> {:.4}", self.name, self.loss_before, self.loss_after)?;
        if let (Some(before), Some(after)) = (self.token_accuracy_before, self.token_accuracy_after) {
            write!(f, ", token accuracy {:.1}% -> {:.1}%", 100.0 * before, 100.0 * after)?;
        }
        let unit = if self.classes.is_some() { "text" } else { "token" };
        write!(f, " over {}", counted(self.tokens, unit))?;
        if self.unmeasured_examples > 0 {
            write!(f, " of {} of {} examples", self.examples, self.examples + self.unmeasured_examples)?;
        }
        let Self { difference, low, high, verdict, .. } = self;
        write!(f, " ({difference:+.4}, 95% interval {low:+.4} to {high:+.4}): {}", verdict.name())?;
        self.verdict_reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))?;
        self.advice.as_ref().map_or(Ok(()), |advice| write!(f, "; {advice}"))?;
        self.preferences.as_ref().map_or(Ok(()), |preferences| write!(f, "\n{preferences}"))?;
        self.classes.as_ref().map_or(Ok(()), |classes| write!(f, "\n{classes}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validation(name: &'static str, before: f64, after: f64, examples: usize) -> Validation {
        let losses = |loss_sum| vec![ExampleLoss { loss_sum, tokens: 1, correct_tokens: 0 }; examples];
        Validation::of(name, (&losses(before), &losses(after)), 0, loss::example_number).unwrap()
    }

    #[test]
    fn a_requirement_looks_at_the_verdict_and_at_the_guard() {
        use Verdict::{Improved, NoEvidence, Worse};
        let met = |requirement: Requirement, verdict, guard| {
            let checked = requirement.check(Some(("test", verdict)), guard);
            checked.map_err(|error| (error.exit_code(), error.to_string())).err()
        };
        assert_eq!(met(Requirement::Improved, Improved, None), None);
        assert_eq!(met(Requirement::Improved, Improved, Some(NoEvidence)), None);
        assert_eq!(met(Requirement::NotWorse, NoEvidence, None), None);
        let error = |text: &str| Some((1, format!("--require: {text}")));
        let said = error("the test verdict is `no evidence`, not `improved`");
        assert_eq!(met(Requirement::Improved, NoEvidence, None), said);
        let said = error("the guard verdict is `worse`, not `not-worse`");
        assert_eq!(met(Requirement::Improved, Improved, Some(Worse)), said);
        assert_eq!(met(Requirement::NotWorse, Worse, None), error("the test verdict is `worse`, not `not-worse`"));
        assert!(Requirement::NotWorse.check(None, None).unwrap_err().to_string().contains("there is no verdict"));
    }

    #[test]
    fn a_verdict_on_too_few_examples_says_so() {
        let validation = validation("validation", 2.0, 1.0, 4);
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
            privacy: None,
            validation: None,
            test: None,
            guard: None,
            samples: vec![sample],
        };
        let text = report.to_string();
        assert!(text.contains("1 step, best at 1;") && text.ends_with("(1 parameter)"), "{text}");
        assert!(text.contains("a\\u{1b}[2Jb") && text.contains("\\u{7}c") && text.contains("d\\u{9b}31m\ne"), "{text}");
        assert!(!text.contains(|symbol: char| symbol.is_control() && symbol != '\n'), "{text:?}");
    }
}
