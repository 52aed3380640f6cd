//! A base model ready for use: fetched if need be, opened, with its tokenizer and chat template.

use std::path::Path;

use crate::adapter::begin::TrainedToken;
use crate::data::chat::builtin::with_chosen_template;
use crate::data::{DataSettings, Encoder, Pictures};
use crate::error::{Error, Place, Result, counted};
use crate::model::load::LoadOptions;
use crate::model::{BaseFiles, Decoder};
use crate::pull;
use crate::quant::Quant;
use crate::text::Tokenizer;

/// An open base model; its weights are still in their files.
#[derive(Debug, Clone)]
pub struct OpenBase {
    /// Its name as the user gave it.
    pub name: String,
    /// Its files.
    pub files: BaseFiles,
    /// Its tokenizer and chat template.
    pub encoder: Encoder,
}

impl OpenBase {
    /// Resolves a name or path and opens the model there; a model that is missing is fetched.
    ///
    /// # Errors
    /// Those of resolving, of opening and of the tokenizer.
    pub fn open(name: &str, progress: &mut dyn FnMut(pull::Event<'_>)) -> Result<Self> {
        let path = pull::resolve(name, progress)?;
        let files = BaseFiles::open(&path)?;
        let tokenizer = Tokenizer::of_base(&files)?;
        let vision = files.config().vision.as_ref();
        let pictures = vision.map(|vision| Pictures::new(files.path(), vision, &tokenizer)).transpose()?;
        let encoder = Encoder::of(tokenizer, &path.display().to_string())?;
        let encoder = encoder.for_vocabulary(files.config().vocab_size).with_pictures(pictures);
        Ok(Self { name: name.to_owned(), files, encoder })
    }

    /// The same base as the recipe's data settings want it: with their chat template, if they name one, and their reading of
    /// control tokens.
    ///
    /// # Errors
    /// Those of [`with_chosen_template`].
    pub fn for_data(mut self, settings: &DataSettings) -> Result<Self> {
        if let Some(chosen) = &settings.template {
            let tokenizer = with_chosen_template(self.encoder.tokenizer(), chosen)?;
            self.encode_with(Encoder::of(tokenizer, chosen)?);
        }
        self.encoder.read_control_tokens(settings.control_tokens);
        Ok(self)
    }

    /// The same base with the tokens of `texts`: its tokenizer, its embedding and its head grow by those that it does not have. Returns
    /// the tokens in the order of `texts`.
    ///
    /// # Errors
    /// Those of [`Tokenizer::with_tokens`].
    pub fn with_tokens(mut self, texts: &[String]) -> Result<(Self, Vec<TrainedToken>)> {
        let before = self.encoder.tokenizer().clone();
        let tokenizer = before.with_tokens(texts)?;
        let token = |text: &String| {
            let id = tokenizer.token_to_id(text);
            let id = id.ok_or_else(|| Error::failed(tokenizer.place(), format!("has no token {text:?}")))?;
            Ok(TrainedToken { id, is_new: before.token_to_id(text).is_none() })
        };
        let tokens: Vec<TrainedToken> = texts.iter().map(token).collect::<Result<_>>()?;
        if let Some(largest) = tokens.iter().filter(|token| token.is_new).map(|token| token.id).max() {
            self.files = self.files.with_vocabulary(largest as usize + 1);
            let place = self.path().display().to_string();
            self.encode_with(Encoder::of(tokenizer, &place)?);
        }
        Ok((self, tokens))
    }

    /// Makes the base encode with another tokenizer or template from now on. The limit of its embedding and the pictures that it has met
    /// stay.
    pub(super) fn encode_with(&mut self, encoder: Encoder) {
        let pictures = self.encoder.pictures().cloned();
        self.encoder = encoder.for_vocabulary(self.files.config().vocab_size).with_pictures(pictures);
    }

    /// The folder or file of the model.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// A line about the parts of a larger model that training and merging do without, if the base has any.
    pub fn parts_passed_over(&self) -> Option<String> {
        self.parts_beside_the_decoder().filter(|_| self.files.config().vision.is_none())
    }

    /// A line about the parts of a larger model that a decoder alone does without, if the base has any.
    pub fn parts_beside_the_decoder(&self) -> Option<String> {
        let parts = self.files.passed_over();
        let list: Vec<String> =
            parts.iter().map(|(part, tensors)| format!("{part} ({})", counted(*tensors, "tensor"))).collect();
        (!list.is_empty()).then(|| format!("base: only the text decoder is used; passed over: {}", list.join(", ")))
    }

    /// Loads the weights as `options` say, and shows the decoder the pictures that the encoder has met; calls `progress(done, total)`
    /// after each tensor, then after each picture.
    ///
    /// # Errors
    /// Those of [`Decoder::load`] and [`Self::show_pictures`].
    pub fn load(&self, options: &LoadOptions, mut progress: impl FnMut(usize, usize)) -> Result<Decoder> {
        let decoder = Decoder::load(&self.files, options, &mut progress)?;
        self.show_pictures(&decoder, options, &mut progress)?;
        Ok(decoder)
    }

    /// [`Self::load`] for weights that need not fit into memory ([`Decoder::load_streamed`]).
    ///
    /// # Errors
    /// Those of [`Decoder::load_streamed`] and [`Self::show_pictures`].
    pub fn load_streamed(&self, options: &LoadOptions, mut progress: impl FnMut(usize, usize)) -> Result<Decoder> {
        let decoder = Decoder::load_streamed(&self.files, options, &mut progress)?;
        self.show_pictures(&decoder, options, &mut progress)?;
        Ok(decoder)
    }

    /// Whether its weights can be held as `quant` says; `key` is the setting that says so.
    ///
    /// # Errors
    /// Input: blocks are to be kept that are not there; packed weights are to be packed otherwise.
    pub fn check_quant(&self, key: impl Into<Place>, quant: Quant) -> Result<()> {
        if quant == Quant::Keep && !self.files.is_gguf() {
            return Err(Error::input(key, "is `keep`: a GGUF file's own blocks as they are; this base has none")
                .hint("`nf4`, `nf4-double` and `int8` quantise any base"));
        }
        let packed = self.files.tensor_names().find(|name| self.files.is_packed(name));
        let stored = packed.and_then(|name| self.files.storage_name(name));
        match (quant, stored) {
            (Quant::Nf4 | Quant::Nf4Double, Some(stored)) if stored != "NF4" => {
                Err(packed_otherwise(key, quant, &stored))
            }
            (Quant::Int8, Some(stored)) if stored != "INT8" => Err(packed_otherwise(key, quant, &stored)),
            _ => Ok(()),
        }
    }

    /// The repository on the hub, `org/repo`; `None` for a model that is not from there.
    pub fn hub_repository(&self) -> Option<String> {
        match pull::Source::parse(&self.name) {
            Ok(pull::Source::Known(model)) => Some(model.repo.to_owned()),
            Ok(pull::Source::Hub { repo, .. }) => Some(repo),
            _ => None,
        }
    }

    /// The name in an adapter's configuration: the hub's where there is one, else the user's.
    pub fn hub_name(&self) -> String {
        self.hub_repository().unwrap_or_else(|| self.name.clone())
    }

    /// The last part of its name, without the ending of a file.
    pub fn short_name(&self) -> String {
        let name = self.hub_name();
        let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or(&name);
        last.strip_suffix(".gguf").unwrap_or(last).to_owned()
    }

    /// The revision on the hub; `None` for the default branch, and for a model that is not from the hub.
    pub fn hub_revision(&self) -> Option<String> {
        match pull::Source::parse(&self.name) {
            Ok(pull::Source::Hub { revision, .. }) if revision != pull::hub::DEFAULT_REVISION => Some(revision),
            _ => None,
        }
    }
}

fn packed_otherwise(key: impl Into<Place>, quant: Quant, stored: &str) -> Error {
    let message = format!("is `{}`; the base is stored as {stored}, and is used as it is", quant.name());
    Error::input(key, message).hint("leave it `none`, or name the model that the base was made from")
}
