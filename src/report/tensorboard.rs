//! TensorBoard's event files: records with masked checksums around a few fields of its protocol buffers (`event.proto`,
//! `summary.proto`; the framing is that of TensorFlow's `record_writer.cc`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::folder::RunFiles;
use crate::error::{Error, Result};
use crate::files::atomic;

/// The tag of each figure, by the key of its line.
const STEP_TAGS: &[(&str, &str)] = &[
    ("loss", "train/loss"),
    ("learning_rate", "train/learning_rate"),
    ("grad_norm", "train/grad_norm"),
    ("epoch", "train/epoch"),
    ("reward_margin", "train/reward_margin"),
    ("reward_accuracy", "train/reward_accuracy"),
];
/// The tags of an evaluation begin so, and go on with its key.
const EVALUATION_TAG: &str = "eval/";
const TIMING_TAGS: &[(&str, &str)] =
    &[("tokens_per_second", "perf/tokens_per_second"), ("peak_bytes", "memory/peak_bytes")];

/// The kinds of a field's content.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// Writes the event file of `run` into the folder `folder`, and returns its name. TensorBoard wants the Unix time in it, which
/// is that of the run's begin: the same run has the same file.
///
/// # Errors
/// Failed: it cannot be written.
pub fn write(run: &RunFiles, folder: &Path) -> Result<String> {
    let started = began(run);
    let name = format!("events.out.tfevents.{:010}.burnish.0.0", started as u64);
    std::fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
    atomic::write_bytes(&folder.join(&name), &events(run))?;
    Ok(name)
}

/// The content of the event file of `run`.
pub fn events(run: &RunFiles) -> Vec<u8> {
    let clock = Clock::of(run);
    let mut bytes = record(&event(clock.began, None, &field_bytes(3, b"brain.Event:2")));
    let mut add = |time: f64, step: u64, tag: &str, value: f64| {
        bytes.extend(record(&event(time, Some(step), &field_bytes(5, &scalar(tag, value as f32)))));
    };
    for line in run.metrics.values() {
        let Some(step) = line["step"].as_u64() else { continue };
        let time = clock.at(step);
        for (key, tag) in STEP_TAGS {
            if let Some(value) = line[key].as_f64() {
                add(time, step, tag, value);
            }
        }
        for (key, value) in line.as_object().into_iter().flatten() {
            if let (Some(name), Some(value)) = (key.strip_prefix("valid_"), value.as_f64()) {
                add(time, step, &format!("{EVALUATION_TAG}{name}"), value);
            }
        }
    }
    for line in run.timings.values() {
        let Some(step) = line["step"].as_u64() else { continue };
        let time = clock.at(step);
        for (key, tag) in TIMING_TAGS {
            if let Some(value) = line[key].as_f64() {
                add(time, step, tag, value);
            }
        }
    }
    bytes
}

/// The Unix time of the begin of a run; 0 where it is not known.
fn began(run: &RunFiles) -> f64 {
    unix_time(&run.record.value["started"]).unwrap_or(0.0)
}

/// The Unix time of a moment in UTC as run folders have it: `2026-01-31T23:59:59.5Z`.
fn unix_time(value: &Value) -> Option<f64> {
    let (date, time) = value.as_str()?.strip_suffix('Z')?.split_once('T')?;
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let month = time::Month::try_from(month.parse::<u8>().ok()?).ok()?;
    let date = time::Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()?;
    let mut parts = time.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let days = date.midnight().assume_utc().unix_timestamp() as f64;
    Some(days + hours * 3600.0 + minutes * 60.0 + seconds)
}

/// The time of each step.
struct Clock {
    began: f64,
    by_step: BTreeMap<u64, f64>,
}

impl Clock {
    fn of(run: &RunFiles) -> Self {
        let times = run.timings.values().filter_map(|line| Some((line["step"].as_u64()?, unix_time(&line["time"])?)));
        Self { began: began(run), by_step: times.collect() }
    }

    /// The time of a step: its own, or that of the last one before it.
    fn at(&self, step: u64) -> f64 {
        self.by_step.range(..=step).next_back().map_or(self.began, |(_, time)| *time)
    }
}

/// An event: its time, its step, and the field with its content.
fn event(time: f64, step: Option<u64>, content: &[u8]) -> Vec<u8> {
    let mut bytes = key(1, FIXED_64);
    bytes.extend(time.to_le_bytes());
    if let Some(step) = step {
        bytes.extend(key(2, VARINT));
        bytes.extend(varint(step));
    }
    bytes.extend_from_slice(content);
    bytes
}

/// A summary of one scalar.
fn scalar(tag: &str, value: f32) -> Vec<u8> {
    let mut bytes = field_bytes(1, tag.as_bytes());
    bytes.extend(key(2, FIXED_32));
    bytes.extend(value.to_le_bytes());
    field_bytes(1, &bytes)
}

fn field_bytes(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = key(number, BYTES);
    bytes.extend(varint(content.len() as u64));
    bytes.extend_from_slice(content);
    bytes
}

fn key(number: u64, kind: u64) -> Vec<u8> {
    varint((number << 3) | kind)
}

/// A number in groups of seven bits, the lowest first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A record: the length of its content, the content, each with its checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked(&length).to_le_bytes());
    bytes.extend_from_slice(content);
    bytes.extend(masked(content).to_le_bytes());
    bytes
}

/// The checksum as records have it, so that one over data with checksums in it is none of a checksum.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: an event has a few dozen bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let of_byte = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    };
    !bytes.iter().fold(u32::MAX, of_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_numbers_are_those_of_their_definitions() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(unix_time(&"2001-09-09T01:46:40.25Z".into()), Some(1_000_000_000.25));
        assert_eq!(unix_time(&"yesterday".into()), None);
        assert_eq!(varint(0), [0]);
    }

    #[test]
    fn a_scalar_has_the_bytes_of_tensorboard() {
        // Made by TensorBoard 2.21: Event(wall_time=1.5, step=300, summary=Summary(value=[Value(tag="a/b", simple_value=0.25)])).
        let expected = [
            0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x10, 0xac, 0x02, 0x2a, 0x0c, 0x0a, 0x0a, 0x0a, 0x03, b'a', b'/', b'b',
            0x15, 0, 0, 0x80, 0x3e,
        ];
        assert_eq!(event(1.5, Some(300), &field_bytes(5, &scalar("a/b", 0.25))), expected);
    }
}
