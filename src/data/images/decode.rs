//! The pixels of a PNG or JPEG file, as upright RGB on a white ground.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, GenericImageView, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::bytes::Size;
use crate::error::{Error, Result};

/// The largest file of a picture.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// The most bytes of the decoded pixels: 67 million of them in RGB.
const MAX_DECODED_BYTES: u64 = 192 << 20;
/// The most pixels of a side, which is the most that a JPEG can have.
const MAX_SIDE: u32 = 65_535;

/// A picture: `height · width` pixels of red, green and blue, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Three values a pixel.
    pub values: Vec<u8>,
}

/// Decodes a PNG or JPEG file of at most [`MAX_FILE_BYTES`]. It is turned as its EXIF orientation says, transparency is put over
/// white, and of values of 16 bits the high byte counts. Sizes are checked before pixels are decoded.
///
/// # Errors
/// Input: another format; more pixels than the limit; a file that is broken or cut. They lie nowhere: the caller knows the file.
pub fn decode(bytes: &[u8]) -> Result<Rgb> {
    let bad = |message: String| Error::input("", message);
    let broken = |error: image::ImageError| bad(format!("cannot be decoded: {error}"));
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|error| bad(format!("cannot be read: {error}")))?;
    match reader.format() {
        Some(ImageFormat::Png | ImageFormat::Jpeg) => {}
        found => {
            let found = found.map_or("in no known format".to_owned(), |found| format!("a {found:?}"));
            return Err(bad(format!("is {found}; pictures are PNG or JPEG files")));
        }
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(2 * MAX_DECODED_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(bad(format!("has {width} × {height} pixels")));
    }
    if width.max(height) > MAX_SIDE {
        return Err(bad(format!("has {width} × {height} pixels; a side has at most {MAX_SIDE}")));
    }
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        let [found, most] = [decoder.total_bytes(), MAX_DECODED_BYTES].map(Size);
        let message = format!("has {width} × {height} pixels, {found} once it is decoded; at most {most}");
        return Err(bad(message).hint("make it smaller: the model sees far fewer pixels"));
    }
    // An orientation that cannot be read is none.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    image.apply_orientation(orientation);
    Ok(on_white(&image))
}

/// The pixels in 8 bits, over white where they are transparent.
fn on_white(image: &DynamicImage) -> Rgb {
    let (width, height) = image.dimensions();
    let high = |value: &u16| (value >> 8) as u8;
    let grey = |values: &[u8]| values.iter().flat_map(|value| [*value; 3]).collect();
    let high_bytes = |values: &[u16]| values.iter().map(high).collect::<Vec<u8>>();
    let with_alpha = |values: &[u8], colours: usize| -> Vec<u8> {
        let pixels = values.chunks_exact(colours + 1);
        let over = |pixel: &[u8]| -> [u8; 3] {
            let alpha = pixel[colours];
            [0, colours / 2, colours - 1].map(|colour| over_white(pixel[colour], alpha))
        };
        pixels.flat_map(over).collect()
    };
    let values = match image {
        DynamicImage::ImageLuma8(pixels) => grey(pixels.as_raw()),
        DynamicImage::ImageLumaA8(pixels) => with_alpha(pixels.as_raw(), 1),
        DynamicImage::ImageRgba8(pixels) => with_alpha(pixels.as_raw(), 3),
        DynamicImage::ImageLuma16(pixels) => grey(&high_bytes(pixels.as_raw())),
        DynamicImage::ImageLumaA16(pixels) => with_alpha(&high_bytes(pixels.as_raw()), 1),
        DynamicImage::ImageRgb16(pixels) => high_bytes(pixels.as_raw()),
        DynamicImage::ImageRgba16(pixels) => with_alpha(&high_bytes(pixels.as_raw()), 3),
        // RGB of 8 bits, the only form left that PNG and JPEG have.
        other => other.to_rgb8().into_raw(),
    };
    Rgb { width: width as usize, height: height as usize, values }
}

/// A value with this alpha over white, rounded as Pillow does (`AlphaComposite.c`).
fn over_white(value: u8, alpha: u8) -> u8 {
    let sum = (u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha))) * 128 + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}
