//! Several adapter folders combined into one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::adapter::holds_the_same_files;
use crate::adapter::combine::{self, CombineOptions};
use crate::adapter::host::{HostAdapter, HostPair};
use crate::adapter::peft::{AdapterHeader, PeftConfig, SaveOptions};
use crate::error::{Error, Result};
use crate::files::staging::Staging;
use crate::text::Tokenizer;

/// The outcome of a combination.
#[derive(Debug, Serialize)]
pub struct CombineReport {
    /// Modules with a low-rank pair.
    pub modules: usize,
    /// The largest rank of a pair.
    pub rank: usize,
    /// The values of all pairs.
    pub parameters: usize,
    /// Remarks for the user, a sentence each.
    pub notices: Vec<String>,
}

/// Combines the adapters in `folders` into the new folder `out`, in PEFT's format. The base is not needed. The tokenizer and
/// chat template that the first adapter with its own has come along.
///
/// # Errors
/// Input: a folder that holds no adapter, `out` exists, and what [`combine::combine`] refuses. Failed: a file cannot be
/// written.
pub fn combine(folders: &[PathBuf], out: &Path, options: &CombineOptions) -> Result<CombineReport> {
    Error::both(Staging::check_free(out), options.check(folders.len()))?;
    let (mut adapters, mut configs, mut errors, mut notices) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for folder in folders {
        let place = folder.display().to_string();
        match open(folder) {
            Ok((config, remarks, adapter)) => {
                notices.extend(remarks.into_iter().map(|remark| format!("{place}: {remark}")));
                configs.push(config);
                adapters.push((place, adapter));
            }
            Err(error) => errors.push(error),
        }
    }
    let adapters = Error::none_of(errors, adapters)?;
    let combined = combine::combine(&adapters, options)?;
    let staging = Staging::beside(out)?;
    let save = SaveOptions {
        targets: &targets(&configs, &combined),
        base_name: configs.iter().find_map(|config| config.base_name.as_deref()),
        revision: None,
        ..SaveOptions::default()
    };
    combined.save(staging.path(), &save)?;
    notices.extend(save_tokenizer(folders, staging.path())?);
    staging.publish(out)?;
    let parameters = combined.pairs.values().map(HostPair::parameters).sum();
    Ok(CombineReport { modules: combined.pairs.len(), rank: combined.rank, parameters, notices })
}

fn open(folder: &Path) -> Result<(PeftConfig, Vec<String>, HostAdapter)> {
    let header = AdapterHeader::read(folder, |_, _| false)?;
    Ok((header.config().clone(), header.notices(None)?, header.decode()?))
}

/// Names for `target_modules`: those of the adapters where all are lists, else the path of every module.
fn targets(configs: &[PeftConfig], combined: &HostAdapter) -> Vec<String> {
    let lists: Option<Vec<&[String]>> = configs.iter().map(PeftConfig::listed_targets).collect();
    match lists {
        Some(lists) => lists.concat().into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
        None => combined.pairs.keys().cloned().collect(),
    }
}

/// Saves the tokenizer of the first folder that has one, and returns a remark where another folder's differs.
fn save_tokenizer(folders: &[PathBuf], out: &Path) -> Result<Option<String>> {
    let mut with_tokenizer = folders.iter().filter(|folder| folder.join("tokenizer.json").is_file());
    let Some(first) = with_tokenizer.next() else { return Ok(None) };
    Tokenizer::from_folder(first)?.save(out)?;
    let is_same = |other: &Path| holds_the_same_files(first, other) && holds_the_same_files(other, first);
    Ok(with_tokenizer.find(|other| !is_same(other)).map(|other| {
        let (first, other) = (first.display(), other.display());
        format!("{first} and {other} have different tokenizers or chat templates; the combination has those of {first}")
    }))
}
