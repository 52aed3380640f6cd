//! The settings that do not go together with private training.

use super::{Plan, Recipe};
use crate::settings::Reader;
use crate::train::ObjectiveKind;

impl Recipe {
    /// Reports what private training has no use for: one training example may change nothing but its own gradient.
    pub(super) fn check_privacy(&self, plan: &Plan, reader: &mut Reader) {
        let Plan { data, adapter, train, privacy: Some(privacy), .. } = plan else { return };
        let place = self.place("privacy");
        match (privacy.target_epsilon, privacy.noise_multiplier) {
            (None, None) => reader.problem_with_hint(
                &place,
                "`privacy` has no measure: neither `target_epsilon` nor `noise_multiplier`",
                "`target_epsilon = 8` is a common choice",
            ),
            (Some(_), Some(_)) => {
                reader.problem(
                    &place,
                    "`privacy.target_epsilon` and `privacy.noise_multiplier` exclude each other: keep one",
                );
            }
            _ => {}
        }
        let with_weights = data.sources.iter().any(|source| source.weight != 1.0);
        let refused = [
            (
                "train.objective",
                train.objective != ObjectiveKind::Sft,
                "its value joins several examples, or what all of them have",
            ),
            ("data.packing", data.packing, "every example goes through the model alone"),
            (
                "data.valid_fraction",
                data.valid_fraction.is_some(),
                "one example more would change the split: give `data.valid`",
            ),
            ("data.sources", with_weights, "an example that is shown more than once is protected less"),
            ("data.rehearsal", data.rehearsal.is_some(), "its share depends on the number of training examples"),
            ("data.augment", data.augment.is_some(), "its draws belong to the place of an example in the file"),
            ("adapter.dropout", adapter.dropout > 0.0, "its draws belong to the place of an example in the file"),
            (
                "train.neftune_alpha",
                train.neftune_alpha > 0.0,
                "its draws belong to the place of an example in the file",
            ),
        ];
        for (key, _, reason) in refused.into_iter().filter(|(_, is_given, _)| *is_given) {
            let message = format!("`{key}` does not go with `[privacy]`: {reason}");
            reader.problem(&self.place(key), message);
        }
    }
}
