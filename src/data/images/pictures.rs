//! The pictures that an encoder has met: their tokens in a text, and the numbers of their features.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::decode::{MAX_FILE_BYTES, Rgb, decode};
use super::parts::pictures_of;
use super::processor::{ImageProcessor, Tiles};
use crate::data::example::{Message, Row};
use crate::error::{Error, Place, Result};
use crate::files::{hex, open};
use crate::model::vision::features::{FIRST_ID, is_feature};
use crate::model::vision::{ConnectorConfig, VisionConfig};
use crate::text::Tokenizer;

/// The pictures of a model. Clones share what they have met.
#[derive(Debug, Clone)]
pub struct Pictures {
    config: VisionConfig,
    /// The processor, or the reason why there is none: texts alone need none.
    processor: Result<Arc<ImageProcessor>>,
    /// Height and width of a tile; 0 without a processor.
    tile: [usize; 2],
    /// The text of the token in whose places features stand.
    token: String,
    met: Arc<Mutex<Met>>,
}

/// Pictures in the order in which they were met.
#[derive(Debug, Default)]
struct Met {
    pictures: Vec<Picture>,
    by_path: HashMap<PathBuf, usize>,
    by_sha256: HashMap<String, usize>,
}

impl Met {
    /// The rows of the features of all pictures.
    fn rows(&self) -> usize {
        self.pictures.last().map_or(0, |picture| picture.rows().end)
    }
}

/// A picture that was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file that it was met in first.
    pub path: PathBuf,
    /// The SHA-256 of the file in hexadecimal.
    pub sha256: String,
    /// Rows and columns of its tiles ([`Tiles::grid`]).
    pub grid: [usize; 2],
    /// Tokens of a tile.
    pub tile_tokens: usize,
    /// The number of its first row of features.
    pub first_row: usize,
}

impl Picture {
    /// The rows of its features.
    pub fn rows(&self) -> Range<usize> {
        self.first_row..self.first_row + self.tiles() * self.tile_tokens
    }

    /// The number of its tiles.
    fn tiles(&self) -> usize {
        self.grid[0] * self.grid[1] + 1
    }
}

/// A rendered conversation with the tokens of its pictures.
pub(in crate::data) struct Expanded {
    pub(in crate::data) text: String,
    /// The rows of features in the order of the tokens.
    rows: Vec<Range<usize>>,
    token: Option<u32>,
}

impl Pictures {
    /// The pictures of a model in `folder`, with its tokenizer.
    ///
    /// # Errors
    /// Input: the tokenizer lacks the token of pictures.
    pub fn new(folder: &Path, config: &VisionConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let token = tokenizer.id_to_token(config.image_token).ok_or_else(|| {
            let message = format!("has no token {}, which stands for pictures in config.json", config.image_token);
            Error::input(tokenizer.place(), message)
        })?;
        let processor = ImageProcessor::read(folder);
        let tile = processor.as_ref().ok().and_then(ImageProcessor::tile_size).unwrap_or([0; 2]);
        let processor = processor.and_then(|processor| match config.refusal(tile[0], tile[1]) {
            Some(reason) => Err(Error::input(folder.display(), format!("the image processor makes {reason}"))),
            None => Ok(Arc::new(processor)),
        });
        Ok(Self { config: config.clone(), processor, tile, token, met: Arc::default() })
    }

    /// The same model's pictures of one prompt: none has been met.
    pub fn for_prompt(&self) -> Self {
        Self { met: Arc::default(), ..self.clone() }
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pictures met so far, from the one on whose first row has this number.
    pub fn met_from(&self, row: usize) -> Vec<Picture> {
        self.met().pictures.iter().filter(|picture| picture.first_row >= row).cloned().collect()
    }

    /// The pictures whose rows stand among some ids, in the order of the ids.
    pub fn shown_in(&self, ids: &[u32]) -> Vec<Picture> {
        let met = self.met();
        let mut shown: Vec<Picture> = Vec::new();
        for id in ids.iter().filter(|id| is_feature(**id)) {
            let row = (id - FIRST_ID) as usize;
            if shown.iter().any(|picture| picture.rows().contains(&row)) {
                continue;
            }
            let index = met.pictures.partition_point(|picture| picture.first_row <= row);
            shown.extend(index.checked_sub(1).map(|index| met.pictures[index].clone()));
        }
        shown
    }

    /// The rows of the features of all pictures met so far.
    pub fn rows(&self) -> usize {
        self.met().rows()
    }

    /// Values of the tiles of all pictures met so far.
    pub fn tile_values(&self) -> usize {
        let tiles: usize = self.met().pictures.iter().map(Picture::tiles).sum();
        tiles * 3 * self.tile[0] * self.tile[1]
    }

    /// Meets the pictures of some rows in their order, so that their numbers do not depend on threads. A picture that cannot be
    /// read is passed over: encoding its row says why.
    pub(in crate::data) fn meet(&self, rows: &[Row]) {
        let mut paths: Vec<&str> = rows.iter().flat_map(|row| pictures_of(&row.example)).collect();
        let mut seen = HashSet::new();
        paths.retain(|path| seen.insert(*path) && !self.met().by_path.contains_key(Path::new(path)));
        let looked: Vec<_> = paths.par_iter().map(|path| (Path::new(path), self.look(Path::new(path)))).collect();
        for (path, found) in looked {
            if let Ok((sha256, grid)) = found {
                self.add(path, sha256, grid);
            }
        }
    }

    /// The picture at `path`, which is met now if it has not been.
    ///
    /// # Errors
    /// Input: a file that cannot be read or decoded.
    pub fn picture(&self, path: &Path) -> Result<Picture> {
        let known = {
            let met = self.met();
            met.by_path.get(path).map(|index| met.pictures[*index].clone())
        };
        match known {
            Some(picture) => Ok(picture),
            None => self.look(path).map(|(sha256, grid)| self.add(path, sha256, grid)),
        }
    }

    /// Decodes a picture: its SHA-256, and the rows and columns of its tiles.
    fn look(&self, path: &Path) -> Result<(String, [usize; 2])> {
        let bytes = open::read(path, MAX_FILE_BYTES)?;
        let (picture, processor) = self.decoded(Place::file(path), &bytes)?;
        Ok((hex::sha256_of(&bytes), processor.grid(picture.width, picture.height)))
    }

    /// The rows and columns of the tiles of a picture, by the bytes of its file.
    ///
    /// # Errors
    /// Input, nowhere: a file that cannot be decoded; a picture that the processor does not take.
    pub fn grid_of(&self, bytes: &[u8]) -> Result<[usize; 2]> {
        let (picture, processor) = self.decoded(Place::Nowhere, bytes)?;
        Ok(processor.grid(picture.width, picture.height))
    }

    /// The tiles of a picture, by the bytes of its file.
    ///
    /// # Errors
    /// Those of [`Self::grid_of`].
    pub fn tiles_of(&self, bytes: &[u8]) -> Result<Tiles> {
        let (picture, processor) = self.decoded(Place::Nowhere, bytes)?;
        Ok(processor.tiles(&picture))
    }

    /// Meets a picture that lies in no file, under a name in the place of a path.
    pub fn meet_named(&self, name: &str, sha256: String, grid: [usize; 2]) {
        self.add(Path::new(name), sha256, grid);
    }

    /// The pixels of a picture, and the processor that takes them.
    fn decoded(&self, place: Place, bytes: &[u8]) -> Result<(Rgb, Arc<ImageProcessor>)> {
        let picture = decode(bytes).map_err(|error| error.within(&place))?;
        let processor = self.processor.clone()?;
        match processor.refusal(picture.width, picture.height) {
            Some(reason) => Err(Error::input(place, reason)),
            None => Ok((picture, processor)),
        }
    }

    fn add(&self, path: &Path, sha256: String, grid: [usize; 2]) -> Picture {
        let mut met = self.met();
        let index = match met.by_sha256.get(&sha256) {
            Some(index) => *index,
            None => {
                let tile_tokens = self.config.tokens(self.tile[0], self.tile[1]);
                let first_row = met.rows();
                let index = met.pictures.len();
                met.by_sha256.insert(sha256.clone(), index);
                met.pictures.push(Picture { path: path.to_owned(), sha256, grid, tile_tokens, first_row });
                index
            }
        };
        met.by_path.insert(path.to_owned(), index);
        met.pictures[index].clone()
    }

    /// The tiles of a picture that was met.
    ///
    /// # Errors
    /// Input: the file has changed since, or cannot be read any more.
    pub fn tiles(&self, picture: &Picture) -> Result<Tiles> {
        let bytes = open::read(&picture.path, MAX_FILE_BYTES)?;
        if hex::sha256_of(&bytes) != picture.sha256 {
            return Err(Error::input(&*picture.path, "has changed since it was read first").hint("start again"));
        }
        let (decoded, processor) = self.decoded(Place::file(&picture.path), &bytes)?;
        Ok(processor.tiles(&decoded))
    }

    /// A text that differs between two processors that make something else of some picture.
    pub fn identity(&self) -> String {
        format!("{:?}{:?}", self.config, self.processor.as_ref().ok())
    }

    /// The tokens of a picture as a text.
    fn text_of(&self, picture: &Picture) -> String {
        // The texts of `processing_idefics3.py`.
        const AROUND: &str = "<fake_token_around_image>";
        const GLOBAL: &str = "<global-img>";
        let tile = self.token.repeat(picture.tile_tokens);
        if matches!(self.config.connector, ConnectorConfig::Projector { .. }) {
            return tile;
        }
        let [rows, columns] = picture.grid;
        let mut text = String::new();
        for row in 1..=rows {
            for column in 1..=columns {
                text += &format!("{AROUND}<row_{row}_col_{column}>{tile}");
            }
            text.push('\n');
        }
        if rows > 0 {
            text.push('\n');
        }
        text + &format!("{AROUND}{GLOBAL}{tile}{AROUND}")
    }

    /// The rendering `text` of a conversation with the tokens of the pictures that its turns show; `ranges` of the text move with
    /// what they hold.
    ///
    /// # Errors
    /// Input: a picture that cannot be read; a template that shows another number of pictures.
    fn expanded(&self, text: &str, messages: &[Message], ranges: &mut [Range<usize>]) -> Result<Expanded> {
        let pictures = messages.iter().flat_map(Message::pictures).map(|path| self.picture(Path::new(path)));
        let pictures: Vec<Picture> = pictures.collect::<Result<_>>()?;
        let places: Vec<usize> = text.match_indices(&self.token).map(|(at, _)| at).collect();
        if places.len() != pictures.len() {
            let message = format!("shows {} of {} pictures", places.len(), pictures.len());
            let error = Error::input("the chat template", message);
            return Err(error.hint("the template of the model's own processor writes a token for each picture"));
        }
        let (mut expanded, mut done) = (String::with_capacity(text.len()), 0);
        let mut grown = Vec::with_capacity(places.len());
        for (at, picture) in places.iter().zip(&pictures) {
            let own = self.text_of(picture);
            expanded += &text[done..*at];
            expanded += &own;
            done = at + self.token.len();
            grown.push((*at, own.len() - self.token.len()));
        }
        expanded += &text[done..];
        let moved = |place: usize| {
            let before = grown.iter().filter(|(at, _)| *at < place).map(|(_, bytes)| bytes);
            place + before.sum::<usize>()
        };
        ranges.iter_mut().for_each(|range| *range = moved(range.start)..moved(range.end));
        let rows = pictures.iter().map(Picture::rows).collect();
        Ok(Expanded { text: expanded, rows, token: Some(self.config.image_token) })
    }
}

impl Expanded {
    /// The rendering `text` of a conversation with the tokens of its pictures, by the pictures of the model if it sees any.
    ///
    /// # Errors
    /// Those of [`Pictures::expanded`]; there are pictures, and the model sees none.
    pub(in crate::data) fn of(
        pictures: Option<&Pictures>,
        text: String,
        messages: &[Message],
        ranges: &mut [Range<usize>],
    ) -> Result<Self> {
        if !messages.iter().any(Message::shows_pictures) {
            return Ok(Self { text, rows: Vec::new(), token: None });
        }
        match pictures {
            Some(pictures) => pictures.expanded(&text, messages, ranges),
            None => Err(no_pictures()),
        }
    }

    /// Puts the ids of features in the places of the tokens of pictures.
    ///
    /// # Errors
    /// Failed: the tokenizer makes another number of tokens.
    pub(in crate::data) fn place(&self, ids: &mut [u32]) -> Result<()> {
        let Some(token) = self.token else { return Ok(()) };
        let mut rows = self.rows.iter().cloned().flatten();
        let places = ids.iter_mut().filter(|id| **id == token);
        let mut missing = 0;
        for id in places {
            match rows.next() {
                Some(row) => *id = FIRST_ID + row as u32,
                None => missing += 1,
            }
        }
        match (missing, rows.next()) {
            (0, None) => Ok(()),
            _ => Err(Error::input("the tokenizer", "does not keep the tokens of a picture apart")
                .hint("its file has to list them as added tokens")),
        }
    }
}

/// The error about pictures that a model does not see.
pub(in crate::data) fn no_pictures() -> Error {
    Error::input("", "shows a picture, and the model sees none")
        .hint("Idefics3, SmolVLM and LLaVA see pictures, in a Hugging Face folder")
}
