//! A base model that is ready for use: fetched if need be, opened, with its tokenizer and chat template.

use std::path::{Path, PathBuf};

use burn::tensor::Device;

use crate::data::Encoder;
use crate::error::Result;
use crate::model::load::{Compute, LoadOptions, Quant};
use crate::model::{BaseFiles, Decoder};
use crate::pull;
use crate::text::Tokenizer;

/// An open base model; its weights are still in their files.
#[derive(Debug)]
pub struct OpenBase {
    /// As the user named it.
    pub name: String,
    pub files: BaseFiles,
    pub encoder: Encoder,
}

impl OpenBase {
    /// Resolves a name or path and opens what is there; fetches it if it is missing.
    ///
    /// # Errors
    /// What resolving, opening or the tokenizer say.
    pub fn open(name: &str, progress: &mut dyn FnMut(pull::Event<'_>)) -> Result<Self> {
        let path = pull::resolve(name, progress)?;
        let files = BaseFiles::open(&path)?;
        let tokenizer = match files.gguf() {
            Some(gguf) => Tokenizer::from_gguf(gguf)?,
            None => Tokenizer::from_folder(&path)?,
        };
        let encoder = Encoder::of(tokenizer, &path.display().to_string())?.for_vocabulary(files.config().vocab_size);
        Ok(Self { name: name.to_owned(), files, encoder })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// Loads the weights onto `device`; `progress` is told (tensors done, tensors in all).
    ///
    /// # Errors
    /// What [`Decoder::load`] says.
    pub fn load(
        &self,
        device: &Device,
        compute: Compute,
        quant: Quant,
        progress: impl FnMut(usize, usize),
    ) -> Result<Decoder> {
        let options = LoadOptions { device: device.clone(), compute, quant };
        Decoder::load(&self.files, &options, progress)
    }

    /// What an adapter's configuration calls it: the hub's name where there is one, else as the user named it.
    pub fn hub_name(&self) -> String {
        match pull::Source::parse(&self.name) {
            Ok(pull::Source::Known(model)) => model.repo.to_owned(),
            Ok(pull::Source::Hub { repo, .. }) => repo,
            _ => self.name.clone(),
        }
    }
}

/// The SHA-256 of a file, in hex.
///
/// # Errors
/// It cannot be read.
pub fn sha256_of(path: &PathBuf) -> Result<String> {
    use sha2::{Digest, Sha256};
    use std::io::Read;
    let read = |error: std::io::Error| crate::error::Error::read(path, &error);
    let mut file = std::fs::File::open(path).map_err(read)?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0u8; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(read)? {
            0 => break,
            count => digest.update(&buffer[..count]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
