//! The pixels of a PNG or JPEG file, as upright RGB on a white ground.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::png;
use crate::bytes::Size;
use crate::error::{Error, Result};

/// The largest file of a picture.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// The most bytes of the decoded pixels: 67 million of them in RGB.
const MAX_DECODED_BYTES: usize = 192 << 20;
/// The most pixels of a side, which is the most that a JPEG can have.
const MAX_SIDE: usize = 65_535;

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
    const JPEG: &[u8] = b"\xff\xd8\xff";
    let broken = |message: String| Error::input("", format!("cannot be decoded: {message}"));
    if bytes.starts_with(png::SIGNATURE) {
        let (picture, exif) = png::decode(bytes).map_err(broken)?;
        return Ok(upright(picture, exif.and_then(orientation)));
    }
    if bytes.starts_with(JPEG) {
        let (picture, exif) = jpeg(bytes).map_err(broken)?;
        return Ok(upright(picture, exif.as_deref().and_then(orientation)));
    }
    Err(Error::input("", "is neither a PNG nor a JPEG file: pictures are PNG or JPEG files"))
}

/// Whether a picture of this size, with so many bytes of file data a pixel, is within the limits.
pub(super) fn check_size(width: usize, height: usize, pixel_bytes: usize) -> Result<(), String> {
    let found = format!("it has {width} × {height} pixels");
    if width == 0 || height == 0 {
        return Err(found);
    }
    if width.max(height) > MAX_SIDE {
        return Err(format!("{found}; a side has at most {MAX_SIDE}"));
    }
    let bytes = width * height * pixel_bytes.max(3);
    if bytes > MAX_DECODED_BYTES {
        let [bytes, most] = [bytes, MAX_DECODED_BYTES].map(|bytes| Size(bytes as u64));
        return Err(format!("{found}, {bytes} once it is decoded; at most {most}"));
    }
    Ok(())
}

/// Decodes a JPEG file; its EXIF data beside it.
fn jpeg(bytes: &[u8]) -> Result<(Rgb, Option<Vec<u8>>), String> {
    // Strict: a file that is cut is an error, not a grey area.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("it has no size")?;
    check_size(width, height, 3)?;
    let exif = decoder.exif().cloned();
    let values = decoder.decode().map_err(|error| error.to_string())?;
    match values.len() == 3 * width * height {
        true => Ok((Rgb { width, height, values }, exif)),
        false => Err(format!("its pixels make {} values, not {width} × {height} × 3", values.len())),
    }
}

/// The orientation that EXIF data names: a number from 1 to 8 (tag 0x0112 of the first directory).
fn orientation(exif: &[u8]) -> Option<u16> {
    let is_big = match exif.get(..4)? {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes = exif.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let bytes = exif.get(4..8)?.try_into().ok()?;
    let directory = if is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) } as usize;
    let entries = usize::from(short(directory)?);
    let mut entries = (0..entries).map(|entry| directory + 2 + 12 * entry);
    let entry = entries.find(|entry| short(*entry) == Some(0x0112) && short(entry + 2) == Some(3))?;
    short(entry + 8).filter(|orientation| (1..=8).contains(orientation))
}

/// The picture turned and mirrored from this orientation.
fn upright(picture: Rgb, orientation: Option<u16>) -> Rgb {
    let Rgb { width, height, values } = &picture;
    let (right, bottom) = (width - 1, height - 1);
    // The pixel of the file, column and row, at a column and a row of the picture.
    let source: Box<dyn Fn(usize, usize) -> (usize, usize)> = match orientation {
        Some(2) => Box::new(move |x, y| (right - x, y)),
        Some(3) => Box::new(move |x, y| (right - x, bottom - y)),
        Some(4) => Box::new(move |x, y| (x, bottom - y)),
        Some(5) => Box::new(move |x, y| (y, x)),
        Some(6) => Box::new(move |x, y| (y, bottom - x)),
        Some(7) => Box::new(move |x, y| (right - y, bottom - x)),
        Some(8) => Box::new(move |x, y| (right - y, x)),
        _ => return picture,
    };
    let (new_width, new_height) = if orientation >= Some(5) { (*height, *width) } else { (*width, *height) };
    let pixels = (0..new_height).flat_map(|y| (0..new_width).map(move |x| (x, y)));
    let turned = pixels.flat_map(|(x, y)| {
        let (x, y) = source(x, y);
        let at = 3 * (y * width + x);
        [values[at], values[at + 1], values[at + 2]]
    });
    Rgb { width: new_width, height: new_height, values: turned.collect() }
}

/// A value with this alpha over white, rounded as Pillow does (`AlphaComposite.c`).
pub(super) fn over_white(value: u8, alpha: u8) -> u8 {
    if alpha == 255 {
        return value;
    }
    let sum = (u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha))) * 128 + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}
