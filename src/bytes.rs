//! Amounts of memory and disk, as people type and read them.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// An amount of bytes, typed as `8GiB`, `8G`, `500MB` or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

/// Units in lower case, the longest first. A single letter is a power of 1024, as in Docker and Slurm.
const UNITS: [(&str, u64); 13] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let found = UNITS.iter().find_map(|(unit, bytes)| Some((lower.strip_suffix(unit)?, *bytes)));
        let (number, unit) = found.unwrap_or((&lower, 1));
        let bytes = number.trim().parse::<f64>().ok().map(|number| number * unit as f64);
        match bytes {
            Some(bytes) if (1.0..=1e18).contains(&bytes) => Ok(Self(bytes as u64)),
            _ => Err(format!("`{text}` is no amount of memory; expected one like 8GiB, 500MB or 1000000")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MEBIBYTE: f64 = (1u64 << 20) as f64;
        match self.0 as f64 / MEBIBYTE {
            mebibytes if mebibytes >= 10_000.0 => write!(f, "{:.1} GiB", mebibytes / 1024.0),
            mebibytes if mebibytes >= 1.0 => write!(f, "{mebibytes:.0} MiB"),
            _ => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("1.5 GB", 1_500_000_000),
            ("350MiB", 350 << 20),
            ("4096", 4096),
            ("8G", 8 << 30),
            ("8g", 8 << 30),
            ("500m", 500 << 20),
            ("2gb", 2_000_000_000),
            ("12 b", 12),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1GB", "8 gigs", "nan", "1e30", "8GG"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!(Size(350 << 20).to_string(), "350 MiB");
        assert_eq!(Size(64 << 30).to_string(), "64.0 GiB");
        assert_eq!(Size(300).to_string(), "300 bytes");
    }
}
