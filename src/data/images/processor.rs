//! From a picture to the values that a tower sees, as the base's `preprocessor_config.json` says: sizes, tiles, normalisation.

use std::path::Path;

use serde_json::{Map, Value};

use super::decode::Rgb;
use super::resize::{Filter, resized};
use crate::error::{Error, Result};
use crate::files::json;
use crate::model::config::Fields;

/// The settings of an image processor.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    form: Form,
    filter: Filter,
    /// The factor on the values, where there is one.
    rescale: Option<f64>,
    /// Mean and standard deviation of each colour, where the values are normalised.
    normal: Option<[[f64; 3]; 2]>,
}

/// The way to the size that the tower sees.
#[derive(Debug, Clone, PartialEq)]
enum Form {
    /// Idefics3 and SmolVLM: in tiles of `tile` pixels and all of it in one, or only that.
    Tiles { longest_edge: usize, tile: usize, splits: bool },
    /// CLIP, SigLIP and LLaVA: made square with the mean colour, resized, cut in the middle, each where it is asked for.
    Single { is_padded: bool, size: Option<Edge>, crop: Option<[usize; 2]> },
}

/// The size of a resized picture.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Edge {
    /// The shortest edge gets so many pixels.
    Shortest(usize),
    /// Height and width.
    Both([usize; 2]),
}

/// The tiles of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiles {
    /// Rows and columns of the tiles; 0 where the picture is one tile. One more tile, the last, is all of the picture.
    pub grid: [usize; 2],
    /// Height and width of a tile.
    pub size: [usize; 2],
    /// The tiles end to end, each as planes of red, green and blue.
    pub values: Vec<f32>,
}

/// Sides of a picture beyond which Idefics3 makes none larger.
const MAX_SIDE: usize = 4096;
/// The largest size in pixels that a configuration may ask for.
const MAX_ASKED: usize = 8192;
/// The most pixels of a picture on the way to its tiles.
const MAX_PIXELS: usize = 1 << 26;

impl ImageProcessor {
    /// Reads the settings from the folder of a model: `preprocessor_config.json`, or `image_processor` of `processor_config.json`
    /// where that has it.
    ///
    /// # Errors
    /// Input: neither file is there, a processor that is not supported, settings that make no sense.
    pub fn read(folder: &Path) -> Result<Self> {
        const OWN: &str = "preprocessor_config.json";
        const NESTED: &str = "processor_config.json";
        const KEY: &str = "image_processor";
        let nested = folder.join(NESTED);
        if nested.exists()
            && let Some(Value::Object(settings)) = json::read(&nested)?.get(KEY)
        {
            return Self::of(&format!("{}: {KEY}", nested.display()), settings);
        }
        let own = folder.join(OWN);
        if !own.exists() {
            let error = Error::input(folder.display(), format!("has no {OWN}, and pictures need its settings"));
            return Err(error.hint("copy it from the model that the folder was made from"));
        }
        match json::read(&own)? {
            Value::Object(settings) => Self::of(&own.display().to_string(), &settings),
            _ => Err(Error::input(own.display(), "is not a JSON object")),
        }
    }

    /// The settings that an object holds; `place` names it.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub fn of(place: &str, settings: &Map<String, Value>) -> Result<Self> {
        let mut fields = Fields::new(place, settings);
        let named = ["image_processor_type", "feature_extractor_type"].iter().find_map(|key| fields.text(key));
        let name = named.unwrap_or_default();
        let stem =
            name.trim_end_matches("Fast").trim_end_matches("FeatureExtractor").trim_end_matches("ImageProcessor");
        const HALF: [f64; 3] = [0.5; 3];
        const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
        const CLIP_DEVIATION: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];
        let (mean, deviation) =
            if stem == "CLIP" || stem == "Llava" { (CLIP_MEAN, CLIP_DEVIATION) } else { (HALF, HALF) };
        let (form, filter) = match stem {
            "Idefics3" | "SmolVLM" => (tiles(&mut fields), Filter::Lanczos),
            "CLIP" | "Siglip" | "Llava" => (single(&mut fields, stem), Filter::Bicubic),
            _ => {
                let message = format!("is {name:?}; supported are those of Idefics3, SmolVLM, CLIP, SigLIP and LLaVA");
                fields.problem("image_processor_type", message);
                (Form::Single { is_padded: false, size: None, crop: None }, Filter::Bicubic)
            }
        };
        let filter = match fields.count("resample") {
            None => filter,
            Some(number) => Filter::of_number(number).unwrap_or_else(|| {
                fields
                    .problem("resample", format!("is {number}; supported are 1 (Lanczos), 2 (bilinear), 3 (bicubic)"));
                filter
            }),
        };
        let rescale = fields.flag("do_rescale").unwrap_or(true);
        let factor = fields.number("rescale_factor").unwrap_or(1.0 / 255.0);
        let normal = fields.flag("do_normalize").unwrap_or(true);
        let normal =
            normal.then(|| [colours(&mut fields, "image_mean", mean), colours(&mut fields, "image_std", deviation)]);
        if factor <= 0.0 || normal.is_some_and(|[_, deviation]| deviation.iter().any(|value| *value <= 0.0)) {
            fields.problem("image_std", "or rescale_factor is not above 0");
        }
        Error::none_of(fields.into_errors(), Self { form, filter, rescale: rescale.then_some(factor), normal })
    }

    /// Height and width of a tile; `None` where they are those of the picture.
    pub fn tile_size(&self) -> Option<[usize; 2]> {
        match &self.form {
            Form::Tiles { tile, .. } => Some([*tile; 2]),
            Form::Single { crop: Some(crop), .. } => Some(*crop),
            Form::Single { size: Some(Edge::Both(size)), .. } => Some(*size),
            Form::Single { .. } => None,
        }
    }

    /// Rows and columns of the tiles of a picture of this size ([`Tiles::grid`]).
    pub fn grid(&self, width: usize, height: usize) -> [usize; 2] {
        match &self.form {
            Form::Tiles { longest_edge, tile, splits: true } => {
                let (width, height) = in_whole_tiles(first_size(width, height, *longest_edge), *tile);
                if width > *tile || height > *tile { [height / tile, width / tile] } else { [0, 0] }
            }
            Form::Tiles { .. } | Form::Single { .. } => [0, 0],
        }
    }

    /// The reason why a picture of this size is not processed: it would become too large on the way. `None` where it is.
    pub fn refusal(&self, width: usize, height: usize) -> Option<String> {
        let Form::Single { is_padded, size: Some(size), .. } = &self.form else { return None };
        let side = width.max(height);
        let [height, width] = if *is_padded { [side; 2] } else { [height, width] };
        let [new_height, new_width] = size.of(width, height);
        // The first axis is resized before the second.
        let largest = [height * width, height * new_width, new_height * new_width].into_iter().max().unwrap_or(0);
        (largest > MAX_PIXELS).then(|| format!("would have {largest} pixels while it is resized; at most {MAX_PIXELS}"))
    }

    /// The tiles of a picture.
    pub fn tiles(&self, picture: &Rgb) -> Tiles {
        let grid = self.grid(picture.width, picture.height);
        let (parts, size) = match &self.form {
            Form::Tiles { longest_edge, tile, splits } => {
                let first = first_size(picture.width, picture.height, *longest_edge);
                let mut whole = resized(picture, first.0, first.1, self.filter);
                if *splits {
                    let (width, height) = in_whole_tiles(first, *tile);
                    whole = resized(&whole, width, height, self.filter);
                }
                let [rows, columns] = grid;
                let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
                let mut parts: Vec<Rgb> =
                    places.map(|(row, column)| part(&whole, [row * tile, column * tile], [*tile; 2])).collect();
                parts.push(resized(&whole, *tile, *tile, self.filter));
                (parts, [*tile; 2])
            }
            Form::Single { is_padded, size, crop } => {
                let mut whole = if *is_padded { self.squared(picture) } else { picture.clone() };
                if let Some(size) = size {
                    let [height, width] = size.of(whole.width, whole.height);
                    whole = resized(&whole, width, height, self.filter);
                }
                if let Some(crop) = crop {
                    whole = centred(&whole, *crop);
                }
                let size = [whole.height, whole.width];
                (vec![whole], size)
            }
        };
        let values = parts.iter().flat_map(|part| self.planes(part)).collect();
        Tiles { grid, size, values }
    }

    /// The planes of the colours, rescaled and normalised in f32.
    fn planes(&self, part: &Rgb) -> Vec<f32> {
        let factor = self.rescale.unwrap_or(1.0);
        let mut planes = Vec::with_capacity(part.values.len());
        for colour in 0..3 {
            let values = part.values.iter().skip(colour).step_by(3).map(|value| f32::from(*value));
            match (&self.normal, self.rescale) {
                (Some([mean, deviation]), _) => {
                    // transformers brings mean and deviation to the scale of the pixels.
                    let at_scale = |value: f64| value as f32 * (1.0 / factor) as f32;
                    let (mean, deviation) = (at_scale(mean[colour]), at_scale(deviation[colour]));
                    planes.extend(values.map(|value| (value - mean) / deviation));
                }
                (None, Some(factor)) => planes.extend(values.map(|value| value * factor as f32)),
                (None, None) => planes.extend(values),
            }
        }
        planes
    }

    /// The picture in the middle of a square of the mean colour.
    fn squared(&self, picture: &Rgb) -> Rgb {
        let side = picture.width.max(picture.height);
        let mean = self.normal.map_or([0.0; 3], |[mean, _]| mean);
        let ground = mean.map(|value| (value * 255.0) as u8);
        placed(picture, [side, side], [(side - picture.height) / 2, (side - picture.width) / 2], ground)
    }
}

impl Edge {
    /// Height and width of a resized picture.
    fn of(self, width: usize, height: usize) -> [usize; 2] {
        match self {
            Self::Both(size) => size,
            Self::Shortest(edge) => {
                let longer = |short: usize, long: usize| ((edge * long) as f64 / short as f64) as usize;
                if width <= height { [longer(width, height), edge] } else { [edge, longer(height, width)] }
            }
        }
    }
}

/// Width and height of Idefics3's first resizing: the longest edge as asked for, the other one even
/// (`_resize_output_size_rescale_to_max_len` and `_resize_output_size_scale_below_upper_bound`).
fn first_size(width: usize, height: usize, longest_edge: usize) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    let even = |edge: f64| (edge as usize).next_multiple_of(2).max(1);
    let (width, height) = match width >= height {
        true => (longest_edge, even(longest_edge as f64 / ratio)),
        false => (even(longest_edge as f64 * ratio), longest_edge),
    };
    let ratio = width as f64 / height as f64;
    match width >= height {
        true if width > MAX_SIDE => (MAX_SIDE, ((MAX_SIDE as f64 / ratio) as usize).max(1)),
        false if height > MAX_SIDE => (((MAX_SIDE as f64 * ratio) as usize).max(1), MAX_SIDE),
        _ => (width, height),
    }
}

/// Width and height as multiples of a tile (`resize_for_vision_encoder`).
fn in_whole_tiles((width, height): (usize, usize), tile: usize) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    match width >= height {
        true => {
            let width = width.next_multiple_of(tile);
            (width, ((width as f64 / ratio) as usize).max(1).next_multiple_of(tile))
        }
        false => {
            let height = height.next_multiple_of(tile);
            (((height as f64 * ratio) as usize).max(1).next_multiple_of(tile), height)
        }
    }
}

/// A part of a picture: its first row and column, its height and width.
fn part(picture: &Rgb, [top, left]: [usize; 2], [height, width]: [usize; 2]) -> Rgb {
    let rows = picture.values.chunks_exact(3 * picture.width).skip(top).take(height);
    let values = rows.flat_map(|row| &row[3 * left..3 * (left + width)]).copied().collect();
    Rgb { width, height, values }
}

/// A picture on a larger ground of one colour, its first row and column there.
fn placed(picture: &Rgb, [height, width]: [usize; 2], [top, left]: [usize; 2], ground: [u8; 3]) -> Rgb {
    let mut values: Vec<u8> = ground.iter().copied().cycle().take(3 * height * width).collect();
    let rows = values.chunks_exact_mut(3 * width).skip(top);
    for (row, source) in rows.zip(picture.values.chunks_exact(3 * picture.width)) {
        row[3 * left..3 * (left + picture.width)].copy_from_slice(source);
    }
    Rgb { width, height, values }
}

/// The middle of a picture, with black around it where it is too small.
fn centred(picture: &Rgb, [height, width]: [usize; 2]) -> Rgb {
    let (tall, wide) = (picture.height.max(height), picture.width.max(width));
    let on_ground = placed(picture, [tall, wide], [(tall - picture.height) / 2, (wide - picture.width) / 2], [0; 3]);
    part(&on_ground, [(tall - height) / 2, (wide - width) / 2], [height, width])
}

/// The settings of Idefics3 and SmolVLM.
fn tiles(fields: &mut Fields<'_>) -> Form {
    let longest = |fields: &mut Fields<'_>, key: &str, default: usize| match fields.value(key) {
        None => default,
        Some(size) => match size.get("longest_edge").and_then(Value::as_u64) {
            Some(edge @ 1..) if edge <= MAX_ASKED as u64 => edge as usize,
            _ => {
                let expected = format!("expected {{\"longest_edge\": 1 to {MAX_ASKED}}}");
                fields.problem(key, format!("is {}; {expected}", json::shortened(size)));
                default
            }
        },
    };
    if fields.flag("do_resize") == Some(false) {
        fields.problem("do_resize", "is false; tiles need their size");
    }
    let longest_edge = longest(fields, "size", 4 * 364);
    let tile = longest(fields, "max_image_size", 364);
    Form::Tiles { longest_edge, tile, splits: fields.flag("do_image_splitting").unwrap_or(true) }
}

/// The settings of CLIP, SigLIP and LLaVA.
fn single(fields: &mut Fields<'_>, stem: &str) -> Form {
    const SIDE: usize = 224;
    let default = if stem == "Siglip" { Edge::Both([SIDE; 2]) } else { Edge::Shortest(SIDE) };
    let size = match fields.value("size").cloned() {
        None => default,
        Some(value) => match (edge(&value), edge(&value["shortest_edge"]), both(&value)) {
            (Some(edge), _, _) | (None, Some(edge), _) => Edge::Shortest(edge),
            (None, None, Some(size)) => Edge::Both(size),
            (None, None, None) => {
                let expected = "expected {\"shortest_edge\": …} or {\"height\": …, \"width\": …}";
                fields.problem("size", format!("is {}; {expected}", json::shortened(&value)));
                default
            }
        },
    };
    let size = fields.flag("do_resize").unwrap_or(true).then_some(size);
    let crops = fields.flag("do_center_crop").unwrap_or(stem != "Siglip");
    let crop = match fields.value("crop_size").cloned() {
        None => [SIDE; 2],
        Some(value) => edge(&value).map(|side| [side; 2]).or_else(|| both(&value)).unwrap_or_else(|| {
            fields.problem("crop_size", format!("is {}; expected a height and a width", json::shortened(&value)));
            [SIDE; 2]
        }),
    };
    let is_padded = stem == "Llava" && fields.flag("do_pad").unwrap_or(false);
    Form::Single { is_padded, size, crop: crops.then_some(crop) }
}

/// A number of pixels.
fn edge(value: &Value) -> Option<usize> {
    value.as_u64().map(|edge| edge as usize).filter(|edge| (1..=MAX_ASKED).contains(edge))
}

/// `height` and `width` of an object.
fn both(value: &Value) -> Option<[usize; 2]> {
    Some([edge(&value["height"])?, edge(&value["width"])?])
}

/// Three numbers, one for each colour.
fn colours(fields: &mut Fields<'_>, key: &str, default: [f64; 3]) -> [f64; 3] {
    let Some(value) = fields.value(key) else { return default };
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|values| values.iter().map(Value::as_f64).collect());
    match numbers.as_deref() {
        Some(&[red, green, blue]) => [red, green, blue],
        _ => {
            fields.problem(key, format!("is {}; expected three numbers", json::shortened(value)));
            default
        }
    }
}
