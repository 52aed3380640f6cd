//! Small copies of pictures for pages: PNG files of a few kilobytes.

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use super::decode::{Rgb, decode};
use super::png::SIGNATURE;
use super::resize::{Filter, resized};
use crate::error::{Error, Result};

/// A PNG file of the picture in a file's bytes, with at most `side` pixels a side.
///
/// # Errors
/// Those of [`decode`].
pub fn thumbnail(bytes: &[u8], side: usize) -> Result<Vec<u8>> {
    let picture = decode(bytes)?;
    let longest = picture.width.max(picture.height);
    let small = match longest > side {
        true => {
            let scaled = |edge: usize| (edge * side / longest).max(1);
            resized(&picture, scaled(picture.width), scaled(picture.height), Filter::Bilinear)
        }
        false => picture,
    };
    encoded(&small).map_err(|error| Error::failed("", error.to_string()))
}

/// A PNG file (ISO/IEC 15948:2004) whose rows are stored as differences to the pixel on the left.
fn encoded(picture: &Rgb) -> std::io::Result<Vec<u8>> {
    const SUB: u8 = 1;
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in picture.values.chunks_exact(3 * picture.width) {
        let left = std::iter::repeat_n(&0, 3).chain(row);
        let differences = row.iter().zip(left).map(|(value, left)| value.wrapping_sub(*left));
        rows.write_all(&std::iter::once(SUB).chain(differences).collect::<Vec<u8>>())?;
    }
    let [width, height] = [picture.width, picture.height].map(|edge| (edge as u32).to_be_bytes());
    // Eight bits a sample, three samples, no interlacing.
    let header = [&width[..], &height, &[8, 2, 0, 0, 0]].concat();
    let mut file = SIGNATURE.to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", rows.finish()?), (b"IEND", Vec::new())] {
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(&data);
        file.extend((data.len() as u32).to_be_bytes());
        file.extend_from_slice(kind);
        file.extend_from_slice(&data);
        file.extend(crc.sum().to_be_bytes());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbnail_is_a_small_picture_of_the_same_shape() {
        let values = (0..3 * 40 * 25).map(|index| (index * 7 % 256) as u8).collect();
        let picture = Rgb { width: 40, height: 25, values };
        let file = encoded(&picture).expect("a file");
        assert_eq!(decode(&file).expect("a picture"), picture);
        assert_eq!(thumbnail(&file, 40).expect("the picture itself"), file);
        let small = decode(&thumbnail(&file, 10).expect("a thumbnail")).expect("a picture");
        assert_eq!((small.width, small.height), (10, 6));
        assert!(thumbnail(b"no picture", 10).is_err());
    }
}
