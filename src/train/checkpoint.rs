//! The state of a run between two steps, and its way to files and back.
//!
//! The order of examples, noise and learning rates follow from settings and the number of the step, so no generator has a
//! state to save. Numbers are kept by their bits: a run that goes on from the files does as if it had never ended.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::best::{BestSoFar, Evaluations};
use super::optimiser::OptimiserState;
use super::parallel::Ranks;
use crate::adapter::host::HostAdapter;
use crate::error::{Error, Place, Result};
use crate::files::safetensors::{SafeTensorsFile, TensorHeader, write_to};
use crate::files::versions::{Draft, Version};
use crate::files::{Bytes, Dtype};

const STATE_FILE: &str = "state.json";
const TENSORS_FILE: &str = "tensors.safetensors";
/// Prefixes of the tensors' names.
const CURRENT: &str = "adapter.";
const BEST: &str = "best.";
const OPTIMISER: &str = "optimiser.";

/// The state of a run between two steps: all that its further course depends on, beside settings, data and base.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// How far it is.
    pub progress: Progress,
    /// The adapter.
    pub adapter: HostAdapter,
    /// The optimiser.
    pub optimiser: OptimiserState,
    /// The best adapter so far.
    pub best: BestSoFar,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done, those that changed nothing included.
    pub step: u64,
    /// The epoch of the next step, from 0.
    pub epoch: u64,
    /// Steps done in that epoch.
    pub steps_of_epoch: usize,
    /// Steps whose loss or gradient was not finite.
    pub bad_steps: u64,
    /// Those of them since the last good step.
    pub bad_steps_in_a_row: u64,
    /// Tokens through the model in training.
    pub tokens: usize,
    /// The time of training, in seconds.
    pub seconds: f64,
}

/// The part of a state that is no tensor.
#[derive(Serialize, Deserialize)]
struct Record {
    progress: Progress,
    evaluations: Evaluations,
    optimiser_updates: u64,
}

impl State {
    /// Writes the files of the state.
    ///
    /// # Errors
    /// Those of `draft`.
    pub fn write(&self, draft: &mut Draft<'_>) -> Result<()> {
        draft.file(STATE_FILE, |writer| {
            writer.write_all(&self.record()?).map_err(|error| Error::write(Path::new(STATE_FILE), &error))
        })?;
        draft.file(TENSORS_FILE, |writer| self.write_tensors(writer))
    }

    /// Reads the state in `version` of a run that began with an adapter of the shape of `start`.
    ///
    /// # Errors
    /// Input: a file is missing or damaged, or a tensor does not fit `start`.
    pub fn read(version: &Version, start: &HostAdapter) -> Result<Self> {
        Self::of_files(&version.path, &version.read(STATE_FILE)?, version.read(TENSORS_FILE)?, start)
    }

    /// The state that rank 0 goes on from, on every rank; `None` where it begins.
    ///
    /// # Errors
    /// None but those of a state that does not fit `start`.
    pub fn broadcast(of_first: Option<Self>, start: &HostAdapter, ranks: &dyn Ranks) -> Result<Option<Self>> {
        if ranks.count() == 1 {
            return Ok(of_first);
        }
        let (mut record, mut tensors) = (Vec::new(), Vec::new());
        if let Some(state) = &of_first {
            record = state.record()?;
            state.write_tensors(&mut tensors)?;
        }
        let (record, tensors) = (ranks.broadcast(record), ranks.broadcast(tensors));
        match (ranks.is_first(), record.is_empty()) {
            (true, _) => Ok(of_first),
            (false, true) => Ok(None),
            (false, false) => Self::of_files(Path::new("state of rank 0"), &record, tensors, start).map(Some),
        }
    }

    /// The content of the file of the part that is no tensor.
    fn record(&self) -> Result<Vec<u8>> {
        let record = Record {
            progress: self.progress.clone(),
            evaluations: self.best.evaluations.clone(),
            optimiser_updates: self.optimiser.updates,
        };
        serde_json::to_vec(&record).map_err(|error| Error::failed(STATE_FILE, error.to_string()))
    }

    /// Writes the content of the file of tensors.
    fn write_tensors(&self, writer: &mut dyn Write) -> Result<()> {
        let mut tensors: BTreeMap<String, &[f32]> = BTreeMap::new();
        for (prefix, adapter) in [(CURRENT, &self.adapter), (BEST, &self.best.adapter)] {
            tensors.extend(adapter.vectors().map(|(name, values)| (format!("{prefix}{name}"), &values[..])));
        }
        tensors.extend(self.optimiser.tensors.iter().map(|(name, values)| (format!("{OPTIMISER}{name}"), &values[..])));
        let header = |(name, values): (&String, &&[f32])| TensorHeader {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: vec![values.len()],
        };
        let headers: Vec<TensorHeader> = tensors.iter().map(header).collect();
        write_to(writer, Path::new(TENSORS_FILE), &BTreeMap::new(), &headers, |header| {
            let values = tensors.get(&header.name).copied().unwrap_or_default();
            Ok(Bytes::from(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()))
        })
    }

    /// The state in the contents of the two files, which lie in `folder`.
    fn of_files(folder: &Path, record: &[u8], tensors: Vec<u8>, start: &HostAdapter) -> Result<Self> {
        let place = folder.join(STATE_FILE);
        let record: Record = serde_json::from_slice(record)
            .map_err(|error| Error::input(&place, format!("is not the state of a run: {error}")))?;
        let path = folder.join(TENSORS_FILE);
        let file = SafeTensorsFile::from_bytes(path.display().to_string(), tensors.into())?;
        let values = |name: &str| file.tensor(name)?.to_f32();
        let adapter = |prefix: &str| -> Result<HostAdapter> {
            let mut adapter = start.clone();
            for (name, vector) in adapter.vectors_mut() {
                let name = format!("{prefix}{name}");
                let saved = values(&name)?;
                if saved.len() != vector.len() {
                    let message = format!("has {} values; the adapter has {}", saved.len(), vector.len());
                    return Err(Error::input(Place::tensor(&path, name), message));
                }
                *vector = saved;
            }
            Ok(adapter)
        };
        let moments = file.names_from(OPTIMISER).map(|name| Ok((name[OPTIMISER.len()..].to_owned(), values(name)?)));
        Ok(Self {
            progress: record.progress,
            adapter: adapter(CURRENT)?,
            optimiser: OptimiserState { updates: record.optimiser_updates, tensors: moments.collect::<Result<_>>()? },
            best: BestSoFar { adapter: adapter(BEST)?, evaluations: record.evaluations },
        })
    }
}
