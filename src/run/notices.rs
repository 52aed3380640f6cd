//! The lines that a run reports before it starts: examples that are not used, and figures that flatter.

use super::answer::PromptForm;
use super::prepare::Prepared;
use crate::error::counted;

/// Every notice about `prepared`, in order.
pub(super) fn notices(prepared: &Prepared) -> Vec<String> {
    let mut notices = prepared.adjustments.clone();
    notices.extend(prepared.base.parts_passed_over());
    let limit = prepared.plan.data.max_seq_tokens.min(prepared.base.files.config().max_positions);
    let measured = [("test", &prepared.held_out.test), ("guard", &prepared.held_out.guard)];
    let measured = measured.into_iter().filter_map(|(name, set)| Some((name, &set.as_ref()?.set)));
    for (name, set) in [("train", &prepared.train), ("valid", &prepared.valid)].into_iter().chain(measured) {
        for (count, what) in [
            (set.dropped_long, format!("left out: longer than {limit} tokens")),
            (set.truncated, format!("had the prompt cut to {limit} tokens")),
        ] {
            if count > 0 {
                notices.push(format!("{name}: {} {what}", counted(count, "example")));
            }
        }
        notices.extend(set.notices.iter().map(|notice| format!("{name}: {notice}")));
        if set.untrained_turns > 0 {
            notices.push(format!(
                "{name}: {} of the assistant left out of training: the chat template shows such turns differently once \
                 the conversation goes on",
                counted(set.untrained_turns, "turn")
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
        let seen = counted(prepared.seen_in_training, "example");
        notices.push(format!("valid: {seen} found in the training data too: the validation loss flatters"));
    }
    notices
}
