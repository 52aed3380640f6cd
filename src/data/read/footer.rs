//! The footer of a Parquet file, walked before polars reads it: polars makes room for as many elements as a list promises.
//!
//! Thrift's compact protocol: <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.

/// The bytes of the footer's length and of the magic behind it.
const TAIL_BYTES: usize = 8;
/// Far deeper than any footer.
const MAX_DEPTH: usize = 32;
const STRUCT: u8 = 12;
/// The most elements of all lists together: a reader makes room for the elements of a list, up to a kilobyte each, before it reads
/// them. A file has about ten for each column of each group of rows.
const MAX_ELEMENTS: usize = 1 << 20;

/// Whether the footer of a Parquet file is one whole struct whose lists have room for what they promise.
///
/// # Errors
/// In words: the part that is wrong.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let tail = file.len().checked_sub(TAIL_BYTES).ok_or("it is too short")?;
    let length = file[tail..tail + 4].try_into().map(u32::from_le_bytes).map_err(|_| "it is too short")?;
    let begin = tail.checked_sub(length as usize).ok_or("its footer is longer than the file")?;
    let mut walk = Walk { rest: &file[begin..tail], elements_left: MAX_ELEMENTS };
    walk.value(STRUCT, MAX_DEPTH)
        .ok_or_else(|| format!("its footer is damaged, or its lists have more than {MAX_ELEMENTS} elements"))?;
    if walk.rest.is_empty() { Ok(()) } else { Err("its footer ends before its length".to_owned()) }
}

/// The bytes that were not walked yet. `None` stands for a footer that is damaged.
struct Walk<'a> {
    rest: &'a [u8],
    /// The elements that further lists may have.
    elements_left: usize,
}

impl Walk<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.rest = self.rest.get(count..)?;
        Some(())
    }

    /// An unsigned number of seven bits a byte, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A count of elements, each of which takes a byte at least.
    fn count(&mut self, count: u64) -> Option<usize> {
        let count = usize::try_from(count).ok().filter(|count| *count <= self.rest.len())?;
        self.elements_left = self.elements_left.checked_sub(count)?;
        Some(count)
    }

    /// A value of one of Thrift's types.
    fn value(&mut self, kind: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.number().map(|_| ()),
            7 => self.skip(8),
            8 => {
                let length = self.number()?;
                self.skip(usize::try_from(length).ok()?)
            }
            9 | 10 => {
                let head = self.byte()?;
                let promised = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
                for _ in 0..self.count(promised)? {
                    self.value(head & 15, depth)?;
                }
                Some(())
            }
            11 => {
                let promised = self.number()?;
                let kinds = if promised == 0 { 0 } else { self.byte()? };
                for _ in 0..self.count(promised)? {
                    self.value(kinds >> 4, depth)?;
                    self.value(kinds & 15, depth)?;
                }
                Some(())
            }
            STRUCT => loop {
                let head = self.byte()?;
                match head & 15 {
                    0 => return Some(()),
                    _ if head >> 4 == 0 => drop(self.number()?),
                    _ => {}
                }
                // The truth value of a field stands in its type.
                if head & 15 > 2 {
                    self.value(head & 15, depth)?;
                }
            },
            13 => self.skip(16),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose footer is a struct with one list of `count` bytes.
    fn file_with_a_list(count: usize) -> Vec<u8> {
        let mut footer = vec![0x19, 0xf3];
        let mut left = count;
        while left > 0x7f {
            footer.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        footer.push(left as u8);
        footer.resize(footer.len() + count, 0);
        footer.push(0);
        let length = (footer.len() as u32).to_le_bytes();
        [&footer[..], &length, b"PAR1"].concat()
    }

    #[test]
    fn a_list_of_more_elements_than_any_file_has_is_refused() {
        assert_eq!(check(&file_with_a_list(1000)), Ok(()));
        assert_eq!(check(&file_with_a_list(MAX_ELEMENTS)), Ok(()));
        let error = check(&file_with_a_list(MAX_ELEMENTS + 1)).expect_err("too many");
        assert!(error.contains("more than 1048576 elements"), "{error}");
    }
}
