//! The private part of a run: its guarantee, known before the first step, and the secret that its noise follows from.

use std::path::Path;

use serde_json::{Value, json};

use super::folder::KEY;
use super::prepare::Prepared;
use super::watch::Watch;
use crate::adapter::host::{HostAdapter, provenance};
use crate::data::EncodedSet;
use crate::error::{Error, Result};
use crate::files::secret;
use crate::recipe::Plan;
use crate::train::privacy::{Key, RunSize};
use crate::train::{Guarantee, Mechanism, Ranks};

/// Makes every example of a private run a micro-batch of its own, as many of them in a step as before.
pub(super) fn by_example(plan: &mut Plan) {
    if plan.privacy.is_some() {
        plan.train.accumulate_steps *= plan.train.micro_batch_seqs;
        plan.train.micro_batch_seqs = 1;
    }
}

/// The guarantee of a run of `steps` steps, which the adapter's file will tell; `None` for one that is not private. The noise that a target
/// asks for becomes a setting of the plan, which a run that goes on must have again.
///
/// # Errors
/// Those of [`Guarantee::of`].
pub(super) fn guarantee(
    plan: &mut Plan,
    train: &EncodedSet,
    start: &mut HostAdapter,
    steps: u64,
) -> Result<Option<Guarantee>> {
    let Some(settings) = &mut plan.privacy else { return Ok(None) };
    let (examples, batch_examples) = (train.sequences.len(), plan.train.accumulate_steps);
    let guarantee =
        Guarantee::of(settings, RunSize { examples, batch_examples, steps, parameters: start.parameters() })?;
    settings.noise_multiplier = Some(guarantee.noise_multiplier);
    start.metadata.insert(provenance::PRIVACY.to_owned(), json!(guarantee).to_string());
    Ok(Some(guarantee))
}

/// The guarantee and its limits, in words.
pub(super) fn notices(plan: &Plan, guarantee: &Guarantee) -> Vec<String> {
    let mut notices = vec![format!("privacy: the adapter is {guarantee}"), format!("privacy: {}", guarantee.ratio())];
    notices.push(
        "privacy: examples go through the model one at a time; `privacy.clip_norm` bounds the gradient of each, and \
         `train.max_grad_norm` is not applied"
            .to_owned(),
    );
    if plan.data.valid.is_some() {
        let end = if plan.train.early_stopping.is_some() { " and the end of the run" } else { "" };
        notices
            .push(format!("privacy: the validation examples are not covered, and they choose the best adapter{end}"));
    }
    notices.push(
        "privacy: the adapter's files and the model card are covered, metrics, samples and report of the run folder are not".to_owned(),
    );
    notices
}

/// The secret of the run in `folder`, made anew where there is none. `steps_done` are those of an earlier process.
///
/// # Errors
/// Input: the file of the secret is damaged. Failed: it cannot be written.
pub(super) fn secret(folder: &Path, steps_done: Option<u64>, watch: &mut dyn Watch) -> Result<Vec<u8>> {
    let path = folder.join(KEY);
    if path.is_file() {
        let secret = std::fs::read(&path).map_err(|error| Error::read(&path, &error))?;
        return match secret.len() {
            32 => Ok(secret),
            found => Err(Error::input(&path, format!("has {found} bytes; the secret of a private run has 32"))
                .hint("remove it: the noise from here on then follows from a new one")),
        };
    }
    if let Some(steps) = steps_done.filter(|steps| *steps > 0) {
        watch.notice(&format!(
            "privacy: the secret of the first {steps} steps is gone, as after every finished run; the noise from here on follows from a new one"
        ));
    }
    // Seeded by the operating system, and cryptographic.
    let secret: [u8; 32] = rand::random();
    secret::write(&path, &secret)?;
    Ok(secret.to_vec())
}

/// The private part of the steps of a run, by the secret of rank 0; `None` for a run that is not private.
pub(super) fn mechanism(
    prepared: &Prepared,
    secret: Vec<u8>,
    identity: &Value,
    ranks: &dyn Ranks,
) -> Option<Mechanism> {
    let guarantee = prepared.privacy.as_ref()?;
    let secret = ranks.broadcast(secret);
    Some(Mechanism {
        clip_norm: guarantee.clip_norm,
        noise_multiplier: guarantee.noise_multiplier,
        batch_examples: guarantee.batch_examples,
        key: Key::of(&secret, &identity.to_string()),
    })
}

/// Removes the secret of a run that has come to its end: without it nobody can take the noise away.
pub(super) fn forget(folder: &Path, watch: &mut dyn Watch) {
    if let Err(error) = secret::remove(&folder.join(KEY)) {
        watch.notice(&format!("warning: {error}; remove it: with it the noise can be taken away from the adapter"));
    }
}
