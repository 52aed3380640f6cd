//! The lines that a run reports before it starts: examples that are not used, and figures that flatter.

use std::collections::HashSet;

use super::answer::PromptForm;
use super::prepare::Prepared;
use crate::data::canaries;
use crate::error::counted;
use crate::export::feasible::{Facts, ruled_out};

/// The notices about the run: settings that were adjusted, the parts of the base that it does without, and the exports that
/// the choices rule out.
pub(super) fn notices_of_run(prepared: &Prepared) -> Vec<String> {
    let mut notices = prepared.adjustments.clone();
    notices.extend(prepared.base.parts_passed_over());
    notices.extend(ruled_out(&facts(prepared)));
    notices
}

/// The facts of the run that rule exports out.
pub(super) fn facts(prepared: &Prepared) -> Facts<'_> {
    Facts { config: prepared.base.files.config(), adapter: &prepared.start }
}

/// Whether the answers of the run have no end that could be trained.
pub(super) fn has_no_end(prepared: &Prepared) -> bool {
    if prepared.start.classifier.is_some() {
        return false;
    }
    let encoder = &prepared.base.encoder;
    let ends = if prepared.form == PromptForm::Bare { encoder.tokenizer().eos_tokens() } else { encoder.stop_tokens() };
    ends.is_empty()
}

/// Every notice about `prepared`, in order. Those about the data are findings of a check.
pub(super) fn notices(prepared: &Prepared) -> Vec<String> {
    let mut notices = notices_of_run(prepared);
    let measured = [("test", &prepared.held_out.test), ("guard", &prepared.held_out.guard)];
    let measured = measured.into_iter().filter_map(|(name, set)| Some((name, &set.as_ref()?.set)));
    for (name, set) in [("train", &prepared.train), ("valid", &prepared.valid)].into_iter().chain(measured) {
        notices.extend(set.notices.iter().map(|notice| format!("{name}: {notice}")));
    }
    if has_no_end(prepared) {
        notices.push(
            "the tokenizer names no end token (`eos_token`): no end is trained, and answers go on to their limit"
                .into(),
        );
    }
    let mut distinct = HashSet::new();
    let positions = &prepared.train.positions;
    let own = prepared.train.sequences.iter().zip(positions).filter(|(_, position)| *position.file != *canaries::FILE);
    let copies = own.filter(|(sequence, _)| !distinct.insert(sequence.ids.as_slice())).count();
    if copies > 0 {
        notices.push(format!(
            "train: {} the same as an earlier one (`burnish check` names the lines)",
            counted(copies, "example")
        ));
    }
    if prepared.seen_in_training > 0 {
        let seen = counted(prepared.seen_in_training, "example");
        notices.push(format!("valid: {seen} found in the training data too: the validation loss flatters"));
    }
    notices
}
