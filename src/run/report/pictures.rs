//! The pictures in a report: small copies of those that its examples and samples show.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::examples::shown_examples;
use crate::data::images::decode::MAX_FILE_BYTES;
use crate::data::images::thumbnail::thumbnail;
use crate::files::open;
use crate::run::prepare::Prepared;

/// The most pixels of a side.
const SIDE: usize = 72;
/// The most characters of all copies together; the pictures after them are named only.
const MAX_CHARACTERS: usize = 256 << 10;

/// A picture as the page shows it.
#[derive(Debug, Serialize)]
pub(super) struct Thumbnail {
    /// The name of its file, without the folder.
    name: String,
    /// A PNG file in base64; none where there is no room for it, or the file is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    png: Option<String>,
}

/// The pictures of the examples and of the samples, by their SHA-256.
pub(super) fn thumbnails(prepared: &Prepared) -> BTreeMap<String, Thumbnail> {
    let Some(pictures) = prepared.base.encoder.pictures() else { return BTreeMap::new() };
    let questions = prepared.held_out.questions.iter().map(|question| question.ids.as_slice());
    let (mut thumbnails, mut room) = (BTreeMap::new(), MAX_CHARACTERS);
    for picture in shown_examples(prepared).map(|(ids, ..)| ids).chain(questions).flat_map(|ids| pictures.shown_in(ids))
    {
        thumbnails.entry(picture.sha256).or_insert_with(|| {
            let name = picture.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let small = || thumbnail(&open::read(&picture.path, MAX_FILE_BYTES).ok()?, SIDE).ok();
            let png = if room > 0 { small().map(|png| STANDARD.encode(png)) } else { None };
            let png = png.filter(|png| png.len() <= room);
            room -= png.as_ref().map_or(0, String::len);
            Thumbnail { name, png }
        });
    }
    thumbnails
}
