//! The pictures of prompts, which come as bytes: decoded, seen by the tower, and kept for the next prompt of a conversation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::base::OpenBase;
use crate::bytes::Size;
use crate::data::Pictures;
use crate::data::images::Picture;
use crate::data::images::decode::MAX_FILE_BYTES;
use crate::error::{Error, Result};
use crate::files::hex;
use crate::model::BaseFiles;
use crate::model::load::LoadOptions;
use crate::model::vision::Vision;
use crate::model::vision::features::PictureFeatures;
use crate::nn::Adapter;

/// The most bytes of features that are kept for later prompts.
const MAX_KEPT_BYTES: usize = 128 << 20;

/// Tower and connector of a base, which are loaded for the first picture.
#[derive(Debug)]
struct Tower {
    files: BaseFiles,
    options: LoadOptions,
    pictures: Pictures,
    vision: Mutex<Option<Arc<Vision>>>,
}

/// The features of pictures under a base, or under an adapter that changes its tower or connector.
#[derive(Debug)]
pub struct PictureReader {
    tower: Arc<Tower>,
    /// The adapter that changes tower or connector.
    adapter: Option<Mutex<Adapter>>,
    kept: Mutex<Kept>,
}

/// Rows and columns of the tiles of pictures with their features, the least recently used first.
type Kept = Vec<([usize; 2], Arc<PictureFeatures>)>;

/// The pictures of one prompt.
#[derive(Debug)]
pub struct PromptPictures {
    reader: Arc<PictureReader>,
    /// The pictures of this prompt alone, numbered in the order of their rows.
    pub(super) met: Pictures,
    /// The bytes of their files, by their SHA-256.
    files: HashMap<String, Arc<Vec<u8>>>,
}

impl PictureReader {
    /// The reader of a base whose decoder is loaded with `options`; `None` where it sees no pictures.
    pub(super) fn of(base: &OpenBase, options: &LoadOptions) -> Option<Arc<Self>> {
        let pictures = base.encoder.pictures()?.for_prompt();
        let (files, options, vision) = (base.files.clone(), options.clone(), Mutex::default());
        let tower = Arc::new(Tower { files, options, pictures, vision });
        Some(Arc::new(Self { tower, adapter: None, kept: Mutex::default() }))
    }

    /// The same under an adapter that changes tower or connector.
    pub(super) fn under(&self, adapter: Adapter) -> Arc<Self> {
        let (tower, adapter) = (self.tower.clone(), Some(Mutex::new(adapter)));
        Arc::new(Self { tower, adapter, kept: Mutex::default() })
    }

    /// A prompt without pictures so far.
    pub(super) fn begin(self: &Arc<Self>) -> PromptPictures {
        PromptPictures { reader: self.clone(), met: self.tower.pictures.for_prompt(), files: HashMap::new() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A picture whose features are kept.
    fn known(&self, sha256: &str) -> Option<([usize; 2], Arc<PictureFeatures>)> {
        let mut kept = self.kept();
        let place = kept.iter().position(|(_, features)| features.sha256 == sha256)?;
        let found = kept.remove(place);
        kept.push(found.clone());
        Some(found)
    }

    /// The features of a picture.
    fn features(&self, picture: &Picture, bytes: &[u8]) -> Result<Arc<PictureFeatures>> {
        if let Some((_, features)) = self.known(&picture.sha256) {
            return Ok(features);
        }
        let tiles = self.tower.pictures.tiles_of(bytes)?;
        let vision = self.tower.vision()?;
        let rows = match &self.adapter {
            None => vision.picture(&tiles.values, tiles.size),
            Some(adapter) => {
                let adapter = adapter.lock().unwrap_or_else(PoisonError::into_inner);
                vision.picture_under(&adapter, &tiles.values, tiles.size)
            }
        };
        let features = Arc::new(PictureFeatures { sha256: picture.sha256.clone(), rows });
        let mut kept = self.kept();
        kept.push((picture.grid, features.clone()));
        let mut bytes: usize = kept.iter().map(|(_, features)| features.rows.bytes.len()).sum();
        while bytes > MAX_KEPT_BYTES && kept.len() > 1 {
            bytes -= kept.remove(0).1.rows.bytes.len();
        }
        Ok(features)
    }
}

impl Tower {
    /// Tower and connector, loaded now if they have not been.
    fn vision(&self) -> Result<Arc<Vision>> {
        let mut vision = self.vision.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vision) = &*vision {
            return Ok(vision.clone());
        }
        let loaded = Arc::new(Vision::load(&self.files, &self.options)?);
        self.files.release();
        *vision = Some(loaded.clone());
        Ok(loaded)
    }
}

impl PromptPictures {
    /// Adds the picture of a file's bytes, which messages show by this name. A picture whose features are not kept is decoded, and its size
    /// in tokens is known then; the tower does not see it yet.
    ///
    /// # Errors
    /// Input: neither PNG nor JPEG; a file or a picture beyond the limits; a file that is broken or cut. They lie nowhere.
    pub fn add(&mut self, name: &str, bytes: Arc<Vec<u8>>) -> Result<()> {
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let [found, most] = [bytes.len() as u64, MAX_FILE_BYTES].map(Size);
            return Err(Error::input("", format!("has {found}; a picture has at most {most}")));
        }
        let sha256 = hex::sha256_of(&bytes);
        let grid = match self.reader.known(&sha256) {
            Some((grid, _)) => grid,
            None => self.met.grid_of(&bytes)?,
        };
        self.met.meet_named(name, sha256.clone(), grid);
        self.files.insert(sha256, bytes);
        Ok(())
    }

    /// The features of the pictures, in the order of the rows that a prompt's ids name.
    ///
    /// # Errors
    /// Those of loading the tower.
    pub fn features(&self) -> Result<Vec<Arc<PictureFeatures>>> {
        let features = |picture: Picture| {
            let bytes = self.files.get(&picture.sha256).map_or(&[][..], |bytes| bytes.as_slice());
            self.reader.features(&picture, bytes)
        };
        self.met.met_from(0).into_iter().map(features).collect()
    }
}
