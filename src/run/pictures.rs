//! The features of pictures: computed once for each picture and tower, and kept on disk between runs.
//!
//! ```text
//! <cache>/pictures/<key>    the features of a picture in the number format of the activations, SHA-256 of them
//! ```
//!
//! The key is a hash of all that decides them: the picture, the base, the image processor, the precision and the version of this
//! program. A file that is not whole is removed, and its features computed again.

use super::base::OpenBase;
use crate::adapter::host::HostAdapter;
use crate::data::images::{Picture, Pictures, Tiles};
use crate::error::{Error, Result};
use crate::files::output::bounded::BoundedFolder;
use crate::files::{FloatType, RawTensor, hex};
use crate::model::load::{LoadOptions, float_type};
use crate::model::vision::{ConnectorConfig, Features, Vision};
use crate::model::{BaseFiles, Decoder};
use crate::pull;
use crate::quant::Compute;

/// The most bytes of all files together.
const MAX_BYTES: u64 = 4 << 30;

/// The features that are kept on disk.
#[derive(Debug, Clone)]
struct Kept {
    /// `None` without a cache folder.
    folder: Option<BoundedFolder>,
    /// The part of the key that all pictures share.
    shared: String,
    float_type: FloatType,
    /// Values of a row.
    width: usize,
}

impl OpenBase {
    /// Shows `decoder` the pictures that the encoder has met since the last time: computes their features, or takes those that are
    /// kept. Tower and connector are in memory meanwhile only. `progress(done, total)` is called with numbers of pictures.
    ///
    /// # Errors
    /// Input: a picture that has changed or cannot be read any more; weights that cannot be read.
    pub fn show_pictures(
        &self,
        decoder: &Decoder,
        options: &LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let Some(pictures) = self.encoder.pictures() else { return Ok(()) };
        let new = pictures.met_from(decoder.features().rows());
        if new.is_empty() {
            return Ok(());
        }
        let kept = Kept::of(self, pictures, options)?;
        let mut vision = None;
        for (index, picture) in new.iter().enumerate() {
            let features = match kept.get(picture) {
                Some(features) => features,
                None => {
                    let vision = match &mut vision {
                        Some(vision) => vision,
                        none => none.insert(Vision::load(&self.files, options)?),
                    };
                    let tiles = pictures.tiles(picture)?;
                    let features = vision.picture(&tiles.values, tiles.size);
                    // The disk may be full or the folder not ours: then they are computed again the next time.
                    let _ = kept.put(picture, &features);
                    features
                }
            };
            if features.shape.first() != Some(&picture.rows().len()) {
                let message = format!("gives {:?} features, not {}", features.shape, picture.rows().len());
                return Err(Error::failed(&*picture.path, message));
            }
            decoder.features().add(features);
            progress(index + 1, new.len());
        }
        self.keep_new_tiles(decoder)?;
        self.files.release();
        Ok(())
    }

    /// Keeps tower, connector and the tiles of pictures in memory where `adapter` changes features.
    ///
    /// # Errors
    /// Those of [`Self::show_pictures`].
    pub fn keep_vision(&self, decoder: &Decoder, options: &LoadOptions, adapter: &HostAdapter) -> Result<()> {
        if !adapter.changes_vision(self.files.config()) {
            return Ok(());
        }
        decoder.features().keep(Vision::load(&self.files, options)?);
        self.keep_new_tiles(decoder)
    }

    /// Keeps the tiles of the pictures that were shown since the last time, where tower or connector are trained.
    fn keep_new_tiles(&self, decoder: &Decoder) -> Result<()> {
        let (Some(kept), Some(pictures)) = (decoder.features().live_pictures(), self.encoder.pictures()) else {
            return Ok(());
        };
        for picture in pictures.met_from(0).iter().skip(kept) {
            let Tiles { values, size, .. } = pictures.tiles(picture)?;
            decoder.features().keep_tiles(values, size);
        }
        Ok(())
    }

    /// The features of the pictures met so far by tower and connector of `files`, a copy of this base with changed weights. They are kept
    /// nowhere.
    ///
    /// # Errors
    /// Those of [`Self::show_pictures`].
    pub fn features_by(&self, files: &BaseFiles, options: &LoadOptions) -> Result<Features> {
        let features = Features::default();
        let Some(pictures) = self.encoder.pictures() else { return Ok(features) };
        let vision = Vision::load(files, options)?;
        for picture in pictures.met_from(0) {
            let tiles = pictures.tiles(&picture)?;
            features.add(vision.picture(&tiles.values, tiles.size));
        }
        Ok(features)
    }

    /// Bytes that training tower or connector takes beside the weights, with so many rows of features in a micro-batch: the tiles of
    /// the pictures, and the values that the tower's tape keeps.
    pub fn trained_vision_bytes(&self, feature_rows: usize, compute: Compute) -> (u64, u64) {
        let (Some(pictures), Some(vision)) = (self.encoder.pictures(), &self.files.config().vision) else {
            return (0, 0);
        };
        let tower = &vision.tower;
        let patches = match &vision.connector {
            ConnectorConfig::PixelShuffle { factor } => feature_rows * factor * factor,
            ConnectorConfig::Projector { .. } => feature_rows,
        };
        // In a layer: its input, both normed inputs, q, k and v, the mixed values and the sum; the inner values before and after the
        // activation; in f32 the shares of every head.
        let values = 8 * tower.hidden_size + 2 * tower.intermediate_size;
        let shares = 4 * tower.heads * tower.side() * tower.side();
        let a_patch = vision.used_layers() * (values * float_type(compute).bytes() + shares);
        (4 * pictures.tile_values() as u64, (patches * a_patch) as u64)
    }

    /// Bytes of the features of the pictures met so far, under this precision.
    pub fn picture_bytes(&self, compute: Compute) -> u64 {
        let rows = self.encoder.pictures().map_or(0, Pictures::rows);
        (rows * self.files.config().hidden_size * float_type(compute).bytes()) as u64
    }

    /// Bytes of the weights of tower and connector, which are in memory while features are computed.
    pub fn vision_bytes(&self, options: &LoadOptions) -> u64 {
        let is_needed = self.encoder.pictures().is_some_and(|pictures| pictures.rows() > 0);
        let names = self.files.vision_tensor_names().filter(|_| is_needed);
        names.map(|name| options.bytes_of(&self.files, name) as u64).sum()
    }
}

impl Kept {
    fn of(base: &OpenBase, pictures: &Pictures, options: &LoadOptions) -> Result<Self> {
        let float_type = float_type(options.compute);
        let (weights, device) = (base.files.content_hash()?, &options.device);
        let shared = format!("{weights} {} {float_type:?} {device:?} {}", pictures.identity(), env!("BURNISH_BUILD"));
        let folder = pull::cache_folder().ok().map(|cache| BoundedFolder::new(cache.join("pictures"), MAX_BYTES));
        Ok(Self { folder, shared, float_type, width: base.files.config().hidden_size })
    }

    fn key(&self, picture: &Picture) -> String {
        hex::sha256_of(format!("{} {}", self.shared, picture.sha256).as_bytes())
    }

    fn get(&self, picture: &Picture) -> Option<RawTensor> {
        let rows = picture.rows().len();
        let values = rows * self.width * self.float_type.bytes();
        let bytes = self.folder.as_ref()?.read(&self.key(picture), values as u64)?;
        let features = RawTensor { dtype: self.float_type.dtype(), shape: vec![rows, self.width], bytes: bytes.into() };
        features.check_size().ok().map(|()| features)
    }

    fn put(&self, picture: &Picture, features: &RawTensor) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let key = self.key(picture);
        folder.write(&key, features.bytes.len() as u64, |writer| {
            writer.write_all(&features.bytes).map_err(|error| Error::write(&folder.file(&key), &error))
        })
    }
}
