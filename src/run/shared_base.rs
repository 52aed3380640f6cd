//! A base that several runs of one process train over, loaded once.

use std::sync::{Arc, Mutex, PoisonError};

use super::prepare::Prepared;
use super::watch::Watch;
use crate::error::Result;
use crate::model::Decoder;

/// The weights that were loaded last, for the next run that needs the same. A run that needs others loads them in their place.
#[derive(Debug, Default)]
pub struct SharedBase {
    loaded: Mutex<Option<(String, Arc<Decoder>)>>,
}

impl SharedBase {
    /// The weights of a run, loaded where they are not there.
    ///
    /// # Errors
    /// Those of loading.
    pub(super) fn load(&self, prepared: &Prepared, watch: &mut dyn Watch) -> Result<Arc<Decoder>> {
        let identity = Self::identity(prepared);
        // A run that comes while they are loaded waits for them.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, decoder)) = loaded.as_ref().filter(|(of, _)| *of == identity) {
            return Ok(Arc::clone(decoder));
        }
        // The old ones go first, so that no more than one base is in memory, unless a run still has them.
        *loaded = None;
        let decoder = Arc::new(prepared.load(watch)?);
        *loaded = Some((identity, Arc::clone(&decoder)));
        Ok(decoder)
    }

    /// All that decides the weights as they are in memory, and the features of pictures beside them.
    pub(super) fn identity(prepared: &Prepared) -> String {
        let Prepared { plan, base, base_sha256, start, layout, .. } = prepared;
        let pictures = base.encoder.pictures().map(|pictures| pictures.met_from(0));
        let (config, trains_vision) = (base.files.config(), start.changes_vision(base.files.config()));
        let (form, is_streamed) = ((plan.base.compute, plan.base.quant), layout.parts_a_pass.is_some());
        format!("{base_sha256} {form:?} {is_streamed} {config:?} {pictures:?} {trains_vision}")
    }
}
