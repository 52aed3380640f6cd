//! The identity of the program's source: one hash over the source files, the versions of its dependencies, its features, the
//! target and the compiler. Checkpoints and adapters keep it; no path of a machine is part of it.
#![allow(clippy::print_stdout, reason = "Cargo reads the lines")]

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use sha2::{Digest, Sha256};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut files = Vec::new();
    list(&root.join("src"), &mut files)?;
    // A dependency comes without a lock file: the one that counts is then its user's.
    files.extend(["Cargo.lock", "Cargo.toml"].map(|name| root.join(name)).into_iter().filter(|path| path.is_file()));
    files.sort();
    let mut hash = Sha256::new();
    for path in &files {
        let name = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().replace('\\', "/");
        update(&mut hash, name.as_bytes());
        update(&mut hash, &fs::read(path)?);
    }
    let mut features: Vec<String> =
        env::vars().map(|(name, _)| name).filter(|name| name.starts_with("CARGO_FEATURE_")).collect();
    features.sort();
    for text in features.into_iter().chain([env::var("TARGET").unwrap_or_default(), compiler()]) {
        update(&mut hash, text.as_bytes());
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=BURNISH_BUILD={digest}");
    for watched in ["src", "Cargo.lock", "Cargo.toml", "build.rs"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    Ok(())
}

/// The files below `folder`.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The compiler's version; empty where it does not say.
fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = std::process::Command::new(rustc).arg("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Adds a piece with its length, so that pieces cannot run into each other.
fn update(hash: &mut Sha256, piece: &[u8]) {
    hash.update((piece.len() as u64).to_le_bytes());
    hash.update(piece);
}
