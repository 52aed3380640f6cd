//! PNG files (ISO/IEC 15948:2004): chunks, filters and interlacing; `flate2` inflates. Sizes are checked before pixels are read, and
//! no chunk is read but those of the picture and its orientation, so that memory stays within the decoded size.

use std::io::Read;

use flate2::Crc;
use flate2::read::ZlibDecoder;

use super::decode::{Rgb, check_size, over_white};

/// The first bytes of a file.
pub(super) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

const GREY: u8 = 0;
const RGB: u8 = 2;
const PALETTE: u8 = 3;
const GREY_ALPHA: u8 = 4;
const RGB_ALPHA: u8 = 6;

/// First column, first row, and the steps of columns and rows of the passes of an interlaced picture.
const PASSES: [[usize; 4]; 7] =
    [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

/// The chunk `IHDR`.
#[derive(Debug, Clone, Copy)]
struct Header {
    width: usize,
    height: usize,
    /// Bits of a sample.
    depth: usize,
    colour: u8,
    is_interlaced: bool,
}

/// The chunks that make the picture.
struct Chunks<'a> {
    header: Header,
    palette: &'a [u8],
    /// The chunk `tRNS`: alphas of the palette, or the colour that is transparent.
    transparency: Option<&'a [u8]>,
    exif: Option<&'a [u8]>,
    /// The compressed rows.
    data: Vec<u8>,
}

impl Header {
    fn parse(data: &[u8]) -> Result<Self, String> {
        let &[w3, w2, w1, w0, h3, h2, h1, h0, depth, colour, compression, filter, interlace] = data else {
            return Err("its header has another size than 13 bytes".to_owned());
        };
        let size = |bytes: [u8; 4]| u32::from_be_bytes(bytes) as usize;
        let is_known = match colour {
            GREY => [1, 2, 4, 8, 16].contains(&depth),
            PALETTE => [1, 2, 4, 8].contains(&depth),
            RGB | GREY_ALPHA | RGB_ALPHA => [8, 16].contains(&depth),
            _ => false,
        };
        if !is_known || compression != 0 || filter != 0 || interlace > 1 {
            return Err("its header names a form that PNG does not have".to_owned());
        }
        Ok(Self {
            width: size([w3, w2, w1, w0]),
            height: size([h3, h2, h1, h0]),
            depth: usize::from(depth),
            colour,
            is_interlaced: interlace == 1,
        })
    }

    /// Samples of a pixel.
    fn channels(&self) -> usize {
        match self.colour {
            GREY | PALETTE => 1,
            GREY_ALPHA => 2,
            RGB => 3,
            _ => 4,
        }
    }

    /// Bytes of a row of so many pixels, without the byte that names its filter.
    fn row_bytes(&self, width: usize) -> usize {
        (width * self.channels() * self.depth).div_ceil(8)
    }

    /// The passes that have pixels, each with its width and height.
    fn passes(&self) -> Vec<([usize; 4], [usize; 2])> {
        let passes: &[[usize; 4]] = if self.is_interlaced { &PASSES } else { &[[0, 0, 1, 1]] };
        let sized = passes.iter().map(|&[x, y, dx, dy]| {
            let size = [self.width.saturating_sub(x).div_ceil(dx), self.height.saturating_sub(y).div_ceil(dy)];
            ([x, y, dx, dy], size)
        });
        sized.filter(|(_, size)| size.iter().all(|edge| *edge > 0)).collect()
    }
}

impl<'a> Chunks<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut rest = bytes.strip_prefix(SIGNATURE).ok_or("it has no signature")?;
        let (kind, data) = next_chunk(&mut rest)?;
        if kind != *b"IHDR" {
            return Err("its first chunk is no header".to_owned());
        }
        let header = Header::parse(data)?;
        check_size(header.width, header.height, header.row_bytes(1).max(1))?;
        let (palette, transparency, exif): (&[u8], _, _) = (&[], None, None);
        let mut chunks = Self { header, palette, transparency, exif, data: Vec::new() };
        loop {
            let (kind, data) = next_chunk(&mut rest)?;
            match &kind {
                b"PLTE" => chunks.palette = data,
                b"tRNS" => chunks.transparency = Some(data),
                b"eXIf" => chunks.exif = Some(data),
                b"IDAT" => chunks.data.extend_from_slice(data),
                b"IEND" => return Ok(chunks),
                // The case of the first letter says whether a reader has to know the chunk.
                [first, ..] if first.is_ascii_uppercase() => {
                    return Err(format!("it has an unknown chunk {}", kind.escape_ascii()));
                }
                _ => {}
            }
        }
    }

    /// The rows of all passes, each behind the byte that names its filter.
    fn inflated(&self) -> Result<Vec<u8>, String> {
        let rows = |(_, [width, height]): ([usize; 4], [usize; 2])| (1 + self.header.row_bytes(width)) * height;
        let mut raw = vec![0; self.header.passes().into_iter().map(rows).sum()];
        let read = ZlibDecoder::new(&self.data[..]).read_exact(&mut raw);
        read.map(|()| raw).map_err(|error| format!("its pixels are cut or broken: {error}"))
    }

    /// Red, green, blue and alpha of pixel number `at` of a row.
    fn pixel(&self, row: &[u8], at: usize) -> Result<[u8; 4], String> {
        let Header { depth, colour, .. } = self.header;
        let channels = self.header.channels();
        // The sample in all its bits, and in 8 bits: the high byte of 16.
        let sample = |channel: usize| -> (usize, u8) {
            let index = at * channels + channel;
            match depth {
                8 => (usize::from(row[index]), row[index]),
                16 => (usize::from(row[2 * index]) << 8 | usize::from(row[2 * index + 1]), row[2 * index]),
                _ => {
                    let bit = index * depth;
                    let most = (1usize << depth) - 1;
                    let value = usize::from(row[bit / 8]) >> (8 - depth - bit % 8) & most;
                    (value, (value * 255 / most) as u8)
                }
            }
        };
        // Whether the samples are those of the colour that is transparent.
        let is_key = |samples: &[usize]| {
            let key = self.transparency.map(|key| key.chunks_exact(2));
            key.is_some_and(|key| {
                key.len() == samples.len()
                    && key.zip(samples).all(|(key, sample)| usize::from(key[0]) << 8 | usize::from(key[1]) == *sample)
            })
        };
        let opaque = |is_key: bool| if is_key { 0 } else { 255 };
        Ok(match colour {
            GREY => {
                let (exact, grey) = sample(0);
                [grey, grey, grey, opaque(is_key(&[exact]))]
            }
            GREY_ALPHA => [sample(0).1, sample(0).1, sample(0).1, sample(1).1],
            RGB => {
                let [red, green, blue] = [sample(0), sample(1), sample(2)];
                [red.1, green.1, blue.1, opaque(is_key(&[red.0, green.0, blue.0]))]
            }
            PALETTE => {
                let index = sample(0).0;
                let colour = self.palette.get(3 * index..3 * index + 3).ok_or("it has a pixel beyond its palette")?;
                let alpha = self.transparency.and_then(|alphas| alphas.get(index)).copied().unwrap_or(255);
                [colour[0], colour[1], colour[2], alpha]
            }
            _ => [sample(0).1, sample(1).1, sample(2).1, sample(3).1],
        })
    }
}

/// Kind and data of the next chunk, which is taken from `rest`.
fn next_chunk<'a>(rest: &mut &'a [u8]) -> Result<([u8; 4], &'a [u8]), String> {
    const CUT: &str = "it is cut";
    let (length, after) = rest.split_first_chunk::<4>().ok_or(CUT)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (chunk, after) = after.split_at_checked(length.saturating_add(4)).ok_or(CUT)?;
    let (sum, after) = after.split_first_chunk::<4>().ok_or(CUT)?;
    let mut crc = Crc::new();
    crc.update(chunk);
    if crc.sum() != u32::from_be_bytes(*sum) {
        return Err("a checksum in it is wrong".to_owned());
    }
    *rest = after;
    let (kind, data) = chunk.split_first_chunk::<4>().ok_or(CUT)?;
    Ok((*kind, data))
}

/// Undoes the filter of a row (section 9 of the standard). `before` is the row above, `step` the bytes of a pixel, at least 1.
fn unfilter(filter: u8, row: &mut [u8], before: &[u8], step: usize) -> Result<(), String> {
    for at in 0..row.len() {
        let left = if at < step { 0 } else { row[at - step] };
        let above = before[at];
        let predicted = match filter {
            0 => return Ok(()),
            1 => left,
            2 => above,
            3 => ((u16::from(left) + u16::from(above)) / 2) as u8,
            4 => paeth(left, above, if at < step { 0 } else { before[at - step] }),
            other => return Err(format!("it has a row with the filter {other}")),
        };
        row[at] = row[at].wrapping_add(predicted);
    }
    Ok(())
}

/// The neighbour that is nearest to `left + above − corner`.
fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, above, corner].map(i16::from);
    let estimate = a + b - c;
    let [of_left, of_above, of_corner] = [a, b, c].map(|value| (estimate - value).abs());
    if of_left <= of_above && of_left <= of_corner {
        left
    } else if of_above <= of_corner {
        above
    } else {
        corner
    }
}

/// Decodes a file, over white where it is transparent; its EXIF data beside it.
pub(super) fn decode(bytes: &[u8]) -> Result<(Rgb, Option<&[u8]>), String> {
    let chunks = Chunks::parse(bytes)?;
    let Header { width, height, depth, .. } = chunks.header;
    let mut raw = chunks.inflated()?;
    let step = (chunks.header.channels() * depth).div_ceil(8);
    let mut values = vec![0; 3 * width * height];
    let mut rest = raw.as_mut_slice();
    for ([first_x, first_y, step_x, step_y], [columns, rows]) in chunks.header.passes() {
        let row_bytes = chunks.header.row_bytes(columns);
        let (pass, after) = rest.split_at_mut((1 + row_bytes) * rows);
        rest = after;
        let mut before = vec![0; row_bytes];
        for (number, row) in pass.chunks_exact_mut(1 + row_bytes).enumerate() {
            let (filter, row) = row.split_at_mut(1);
            unfilter(filter[0], row, &before, step)?;
            before.copy_from_slice(row);
            for column in 0..columns {
                let [red, green, blue, alpha] = chunks.pixel(row, column)?;
                let at = 3 * ((first_y + number * step_y) * width + first_x + column * step_x);
                let colours = [red, green, blue].map(|value| over_white(value, alpha));
                values[at..at + 3].copy_from_slice(&colours);
            }
        }
    }
    Ok((Rgb { width, height, values }, chunks.exif))
}
