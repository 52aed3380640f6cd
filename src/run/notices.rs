//! The lines that a run reports before it starts: examples that are not used, and figures that flatter.

use super::answer::PromptForm;
use super::prepare::Prepared;

/// Every notice about `prepared`, in order.
pub(super) fn notices(prepared: &Prepared) -> Vec<String> {
    let mut notices = prepared.adjustments.clone();
    notices.extend(prepared.base.parts_passed_over());
    let limit = prepared.plan.data.max_seq_tokens.min(prepared.base.files.config().max_positions);
    for (name, set) in [("train", &prepared.train), ("valid", &prepared.valid)] {
        for (count, what) in [
            (set.dropped_long, format!("left out: longer than {limit} tokens")),
            (set.truncated, format!("had their prompt cut to {limit} tokens")),
        ] {
            if count > 0 {
                notices.push(format!("{name}: {count} examples {what}"));
            }
        }
        notices.extend(set.notices.iter().map(|notice| format!("{name}: {notice}")));
        if set.untrained_turns > 0 {
            notices.push(format!(
                "{name}: {} turns of the assistant are not trained: the chat template shows them differently once the \
                 conversation goes on",
                set.untrained_turns
            ));
        }
    }
    let encoder = &prepared.base.encoder;
    let ends = if prepared.form == PromptForm::Bare { encoder.tokenizer().eos_tokens() } else { encoder.stop_tokens() };
    if ends.is_empty() {
        notices.push(
            "the tokenizer names no end token (`eos_token`): no end is trained, and answers go on to their limit"
                .into(),
        );
    }
    if prepared.seen_in_training > 0 {
        let seen = prepared.seen_in_training;
        notices.push(format!("valid: {seen} examples are in the training data too: the validation loss flatters"));
    }
    notices
}
