//! The verdict of a run in one sentence.

use serde::Serialize;
use serde_json::Value;

use super::folder::{RunFiles, RunState};
use crate::error::counted;

/// The verdict of a run in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sentence {
    /// The sentence.
    pub text: String,
    /// `improved`, `worse` or `no evidence`; none where nothing was compared yet.
    pub verdict: Option<String>,
}

/// The verdict of a run: by the test examples, or else by the validation examples.
pub fn sentence(run: &RunFiles) -> Sentence {
    let outcome = run.outcome();
    let decisive =
        ["test", "validation"].into_iter().map(|name| (name, &outcome[name])).find(|(_, value)| value.is_object());
    match decisive {
        Some((name, value)) if run.state != RunState::Measuring => of_verdict(run, name, value),
        _ => Sentence { text: without_verdict(run), verdict: None },
    }
}

fn of_verdict(run: &RunFiles, name: &str, value: &Value) -> Sentence {
    let number = |key: &str| value[key].as_f64().unwrap_or(f64::NAN);
    let (before, after, difference) = (number("loss_before"), number("loss_after"), number("difference"));
    let verdict = value["verdict"].as_str().unwrap_or_default();
    let conclusion = match verdict {
        "improved" => "The adapter is better than the base",
        "worse" => "The adapter is worse than the base",
        _ => "There is no evidence that the adapter is better than the base",
    };
    let direction = if difference <= 0.0 { "fell" } else { "rose" };
    let examples = counted(value["examples"].as_u64().unwrap_or(0), &format!("{name} example"));
    let mut text = format!(
        "{conclusion}: over {examples} the mean loss {direction} from {before:.4} to {after:.4}, a difference of \
         {difference:+.4} with a 95% interval from {:+.4} to {:+.4}",
        number("low"),
        number("high")
    );
    if run.state == RunState::Interrupted {
        text += &format!(", for a run that was interrupted after {}", counted(run.last_step(), "step"));
    }
    if let Some(reason) = value["verdict_reason"].as_str() {
        text += &format!("; {reason}");
    }
    text += ".";
    let privacy = &run.record.value["privacy"];
    if let (Some(epsilon), Some(delta)) = (privacy["epsilon"].as_f64(), privacy["delta"].as_f64()) {
        text += &format!(
            " The adapter is (ε = {epsilon:.2}, δ = {delta:e})-differentially private for one training example."
        );
    }
    Sentence { text, verdict: Some(verdict.to_owned()) }
}

/// The state of a run without a verdict, in words.
fn without_verdict(run: &RunFiles) -> String {
    let steps = counted(run.last_step(), "step");
    let mut best = run.evaluations().filter(|line| line["is_best"] == true);
    let best = best.next_back().and_then(|line| Some((line["step"].as_u64()?, line["valid_loss"].as_f64()?)));
    let best = match best {
        Some((step, loss)) => format!("; the lowest validation loss so far is {loss:.4}, at step {step}"),
        None => String::new(),
    };
    match run.state {
        RunState::Training => format!("The run is training, {steps} done{best}."),
        RunState::Measuring => "The run is trained; base and adapter are being measured for the verdict.".to_owned(),
        RunState::Failed => {
            let error = run.record.value["error"].as_str().unwrap_or_default().trim_end_matches('.');
            format!("The run failed after {steps}{best}: {error}.")
        }
        RunState::BrokenOff => format!("The run broke off after {steps} without an outcome{best}."),
        RunState::Finished | RunState::StoppedEarly => format!(
            "Nothing says whether the adapter is better than the base: the run of {steps} had no validation examples."
        ),
        RunState::Interrupted => format!(
            "Nothing says whether the adapter is better than the base: the run was interrupted after {steps}{best}."
        ),
    }
}
