//! Faults while outputs are written: the power fails, an operation of the disk fails, stored bytes change. A simulated disk
//! (`simulated.rs`) takes the place of the system's.

mod damage;
mod failures;
mod fault;
mod merges;
mod power;
mod simulated;
mod system;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use burnish::error::Result;
use burnish::files::atomic;
use burnish::files::output::disk;
use burnish::files::output::versions::{Newest, Version, Versions};
use serde_json::{Value, json};
use simulated::Simulated;

/// The versions that are kept.
const KEEP: usize = 2;
/// The names of the files of a version.
const FILES: [&str; 3] = ["adapter.safetensors", "moments.bin", "metrics.jsonl"];

fn folder() -> PathBuf {
    PathBuf::from("/run/checkpoints")
}

/// The content of a file of the version at `step`; one file is empty.
fn content(step: u64, name: &str) -> Vec<u8> {
    let bytes = match name {
        "metrics.jsonl" => 0,
        _ => name.len() * 3 + step as usize % 7,
    };
    (0..bytes).map(|index| (step as usize * 31 + index * 7 + name.len()) as u8).collect()
}

fn identity(step: u64) -> Value {
    json!({ "base_sha256": format!("{step:064x}"), "recipe": { "rank": step } })
}

/// Saves a version with the content for its step.
fn save(versions: &mut Versions, step: u64) -> Result<()> {
    let saved = versions.save(step, &identity(step), |draft| {
        FILES.iter().try_for_each(|name| {
            let failed = |error: std::io::Error| burnish::Error::write(Path::new(name), &error);
            draft.file(name, |writer| writer.write_all(&content(step, name)).map_err(failed))
        })
    });
    saved.map(drop)
}

/// The newest version on a disk.
fn newest(disk: &Simulated) -> Result<Newest> {
    disk::on(Rc::new(disk.clone()), || Versions::open(&folder(), KEEP).newest())
}

/// Whether a version is exactly what was written at its step.
fn check_content(disk: &Simulated, version: &Version) -> Result<(), String> {
    let step = version.step;
    if version.identity != identity(step) {
        return Err(format!("step {step} has the identity {}", version.identity));
    }
    disk::on(Rc::new(disk.clone()), || {
        FILES.iter().try_for_each(|name| match version.read(name) {
            Ok(bytes) if bytes == content(step, name) => Ok(()),
            Ok(bytes) => Err(format!("step {step}: {name} is {bytes:?}")),
            Err(error) => Err(format!("step {step}: {error}")),
        })
    })
}

/// Writes the adapter of a run: weights with their configuration. Both are a single byte, repeated.
fn write_adapter(weights: u8, config: u8) -> Result<()> {
    let failed = |error: std::io::Error| burnish::Error::write(Path::new("weights"), &error);
    let content = atomic::prepare(Path::new("/run/weights"), |writer| {
        std::io::Write::write_all(writer, &[weights; 40]).map_err(failed)
    })?;
    atomic::publish_described(content, Path::new("/run/config"), &[config; 10])
}

/// The adapter on a disk: a byte of its weights and one of its configuration; `None` where one of the files is missing.
fn adapter(disk: &Simulated) -> Result<Option<(u8, u8)>, String> {
    let read = |name: &str, bytes: usize| match disk::Disk::read(disk, Path::new(name), 1 << 20) {
        Err(_) => Ok(None),
        Ok(found) if found.len() == bytes && found.iter().all(|byte| *byte == found[0]) => Ok(Some(found[0])),
        Ok(found) => Err(format!("{name} is torn: {found:?}")),
    };
    Ok(read("/run/weights", 40)?.zip(read("/run/config", 10)?))
}
