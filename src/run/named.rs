//! A base and its adapters by name, as chat and server answer with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use serde_json::Value;

use super::adapter::OpenAdapter;
use super::answer::PromptForm;
use super::base::OpenBase;
use super::model::ModelChoice;
use super::prompt_pictures::{PictureReader, PromptPictures};
use super::watch::Watch;
use crate::adapter::host::HostAdapter;
use crate::data::{Encoder, Message, Role};
use crate::device::{self, DeviceChoice};
use crate::error::{Error, Result};
use crate::model::load::LoadOptions;
use crate::model::vision::features::PictureFeatures;
use crate::model::{Decoder, ModelConfig};
use crate::nn::Adapter;
use crate::quant::{Compute, Quant};

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 200;

/// A prompt.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The features of the pictures among them.
    pub pictures: Vec<Arc<PictureFeatures>>,
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self { ids, pictures: Vec::new() }
    }
}

/// The way from a conversation to tokens and back: that of the base, or that of an adapter's training.
#[derive(Debug)]
pub struct NamedModel {
    /// The name that requests choose it by.
    pub name: String,
    /// Its tokenizer and chat template.
    pub encoder: Encoder,
    /// The form of its prompts.
    pub form: PromptForm,
    /// The tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// The reader of pictures, where the base sees any.
    pub(crate) reader: Option<Arc<PictureReader>>,
}

impl NamedModel {
    fn new(name: String, encoder: Encoder, form: PromptForm, config: &ModelConfig) -> Self {
        let mut end_tokens = encoder.stop_tokens();
        end_tokens.extend(&config.eos_tokens);
        Self { name, encoder, form, end_tokens, reader: None }
    }

    /// Whether prompts may show pictures.
    pub fn sees_pictures(&self) -> bool {
        self.reader.is_some() && self.form == PromptForm::Conversation
    }

    /// The pictures of a prompt, none so far.
    ///
    /// # Errors
    /// Input: the model sees no pictures, or takes bare prompts.
    pub fn pictures(&self) -> Result<PromptPictures> {
        let name = &self.name;
        match &self.reader {
            Some(reader) if self.sees_pictures() => Ok(reader.begin()),
            Some(_) => Err(Error::input("", format!("`{name}` was trained on bare prompts: it takes no pictures"))),
            None => Err(Error::input("", format!("`{name}` sees no pictures"))
                .hint("Idefics3, SmolVLM and LLaVA see pictures, in a Hugging Face folder")),
        }
    }

    /// The tokens of a conversation up to where the answer begins. An adapter that was trained on bare prompts takes one
    /// message of the user, as it is.
    ///
    /// # Errors
    /// Input: those of template and tokenizer; tools that the template does not show; a conversation where the adapter knows
    /// bare prompts.
    pub fn prompt(&self, messages: &[Message], tools: Option<&Value>) -> Result<Vec<u32>> {
        if self.form != PromptForm::Conversation {
            return match (messages, tools) {
                ([Message { role: Role::User, content, .. }], None) => self.form.encode(&self.encoder, content),
                _ => Err(Error::input(
                    "",
                    format!(
                        "`{}` was trained on bare prompts: it takes one message of the user, without tools",
                        self.name
                    ),
                )),
            };
        }
        self.conversation(&self.encoder, messages, tools)
    }

    /// [`Self::prompt`] of messages that show pictures by the names of `pictures`. The ids of their rows are those of a
    /// [`Request`](crate::generate::engine::Request) that brings the features of `pictures`.
    ///
    /// # Errors
    /// Those of [`Self::prompt`].
    pub fn prompt_showing(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        pictures: &PromptPictures,
    ) -> Result<Vec<u32>> {
        let encoder = self.encoder.clone().with_pictures(Some(pictures.met.clone()));
        self.conversation(&encoder, messages, tools)
    }

    /// The tokens of a conversation by the chat template.
    fn conversation(&self, encoder: &Encoder, messages: &[Message], tools: Option<&Value>) -> Result<Vec<u32>> {
        let ids = encoder.encode_prompt_with(messages, tools)?;
        if tools.is_some() && encoder.encode_prompt(messages)? == ids {
            return Err(Error::input("", format!("the chat template of `{}` does not show tools", self.name)));
        }
        Ok(ids)
    }
}

/// The folder of an adapter and the name that it is used by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterFolder {
    /// The name.
    pub name: String,
    /// The folder, in PEFT's format.
    pub folder: PathBuf,
}

/// `NAME=DIR`, or a folder under its own name.
impl std::str::FromStr for AdapterFolder {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, folder) = match text.split_once('=') {
            Some((name, folder)) => (name.to_owned(), Path::new(folder)),
            None => {
                let folder = Path::new(text);
                let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                (name.to_owned(), folder)
            }
        };
        check_name(&name)?;
        match folder.as_os_str().is_empty() {
            true => Err("names no folder; expected NAME=DIR".to_owned()),
            false => Ok(Self { name, folder: folder.to_owned() }),
        }
    }
}

/// Whether `name` can be the name of a model.
///
/// # Errors
/// The reason why not.
pub fn check_name(name: &str) -> std::result::Result<(), String> {
    let is_plain = !name.is_empty() && !name.chars().any(|symbol| symbol.is_control() || symbol.is_whitespace());
    match is_plain && name.len() <= MAX_NAME_BYTES {
        true => Ok(()),
        false => Err(format!("a name has 1 to {MAX_NAME_BYTES} bytes and no white space")),
    }
}

/// An adapter that is ready for use.
pub struct NamedAdapter {
    /// Its prompts and answers.
    pub model: NamedModel,
    /// Its factors on the device.
    pub attached: Adapter,
    /// Remarks for the user.
    pub notices: Vec<String>,
}

/// A base with the adapters that were named with it.
pub struct NamedModels {
    /// The weights of the base.
    pub loaded: LoadedBase,
    /// The prompts and answers of the base.
    pub base: NamedModel,
    /// The adapters, in the order of their folders.
    pub adapters: Vec<NamedAdapter>,
}

/// A base whose weights are loaded, to which adapters can be added.
pub struct LoadedBase {
    /// The weights.
    pub decoder: Decoder,
    /// How the weights are held.
    pub quant: Quant,
    /// The precision of the products.
    pub compute: Compute,
    device: Device,
    /// The reader of pictures, where the base sees any.
    reader: Option<Arc<PictureReader>>,
    /// The name under which the base can be opened again, without the network.
    path: String,
    force: bool,
}

impl NamedModels {
    /// Loads the base that `choice` names, and the adapters. Where `choice` leaves the precision or the quantisation open, the
    /// weights are held as the adapters were trained, if these agree, or else in the fastest way.
    ///
    /// # Errors
    /// Those of [`OpenBase::open`], [`OpenAdapter::open`], the device and loading; a name that stands twice.
    pub fn load(
        choice: &ModelChoice,
        adapters: &[AdapterFolder],
        device: &DeviceChoice,
        watch: &mut dyn Watch,
    ) -> Result<Self> {
        let device = device::open(device)?;
        let base = OpenBase::open(&choice.base, &mut |event| watch.pull(event))?;
        let name = base.short_name();
        for (index, adapter) in adapters.iter().enumerate() {
            if adapter.name == name || adapters[..index].iter().any(|before| before.name == adapter.name) {
                return Err(Error::input("--adapter", format!("`{}` is the name of two models", adapter.name))
                    .hint("`--adapter NAME=DIR` gives an adapter a name"));
            }
        }
        let path = base.path().to_str().unwrap_or(&base.name).to_owned();
        let opened = adapters.iter().map(|adapter| open(base.clone(), adapter, choice.force));
        let opened = opened.collect::<Result<Vec<_>>>()?;
        let hosts: Vec<&HostAdapter> = opened.iter().map(|(_, adapter, _)| adapter).collect();
        let quant = quant_for(choice, &base, &hosts)?;
        let (quant, compute) = choice.form_for_answers(&base, quant, choice.compute(None, &device)?, &device);
        let options = LoadOptions { device: device.clone(), compute, quant };
        let decoder = base.load(&options, |done, total| watch.loading(done, total))?;
        let reader = PictureReader::of(&base, &options);
        let base = NamedModel::new(name, base.encoder, PromptForm::Conversation, decoder.config());
        let base = NamedModel { reader: reader.clone(), ..base };
        let loaded = LoadedBase { decoder, quant, compute, device, reader, path, force: choice.force };
        let adapters: Vec<NamedAdapter> =
            opened.into_iter().map(|opened| loaded.attach(opened)).collect::<Result<_>>()?;
        adapters.iter().flat_map(|adapter| &adapter.notices).for_each(|notice| watch.notice(notice));
        Ok(Self { loaded, base, adapters })
    }
}

impl LoadedBase {
    /// Opens one more adapter.
    ///
    /// # Errors
    /// Those of [`OpenAdapter::open`]; a pair that does not fit the base.
    pub fn open(&self, adapter: &AdapterFolder) -> Result<NamedAdapter> {
        self.attach(open(OpenBase::open(&self.path, &mut |_| {})?, adapter, self.force)?)
    }

    fn attach(&self, (mut model, adapter, mut notices): Opened) -> Result<NamedAdapter> {
        let attached = adapter.attach(self.decoder.config(), &self.device)?;
        model.reader = match &self.reader {
            Some(reader) if adapter.changes_vision(self.decoder.config()) => Some(reader.under(attached.clone())),
            reader => reader.clone(),
        };
        if let Some(quant) = adapter.trained_over()?.filter(|quant| *quant != self.quant) {
            let (name, used) = (&model.name, self.quant.name());
            notices.push(format!("{name}: trained over a base in `{}`; the base is held as `{used}`", quant.name()));
        }
        Ok(NamedAdapter { model, attached, notices })
    }
}

/// An adapter on the host, with its remarks.
type Opened = (NamedModel, HostAdapter, Vec<String>);

/// Opens an adapter over a base of its own: an adapter may bring a tokenizer.
fn open(mut base: OpenBase, AdapterFolder { name, folder }: &AdapterFolder, force: bool) -> Result<Opened> {
    let OpenAdapter { adapter, notices } = OpenAdapter::open(folder, &mut base, force)?;
    adapter.check_gives_text(folder)?;
    let format = adapter.data_format().map_err(|error| error.within(folder))?;
    let form = format.map_or(PromptForm::Conversation, PromptForm::of);
    Ok((NamedModel::new(name.clone(), base.encoder, form, base.files.config()), adapter, notices))
}

/// The scheme that `choice` names, or else that of the adapters' training, if they agree on one.
fn quant_for(choice: &ModelChoice, base: &OpenBase, adapters: &[&HostAdapter]) -> Result<Quant> {
    if choice.quant.is_some() {
        return choice.quant(base, None);
    }
    let trained = adapters.iter().map(|adapter| adapter.trained_over()).collect::<Result<Vec<_>>>()?;
    Ok(match trained.split_first() {
        Some((Some(first), others)) if others.iter().all(|other| other.as_ref() == Some(first)) => *first,
        _ => Quant::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_has_the_name_that_is_given_or_that_of_its_folder() {
        let parsed = |text: &str| text.parse::<AdapterFolder>();
        let expected = |name: &str, folder: &str| Ok(AdapterFolder { name: name.to_owned(), folder: folder.into() });
        assert_eq!(parsed("sql=runs/a"), expected("sql", "runs/a"));
        assert_eq!(parsed("runs/a/"), expected("a", "runs/a/"));
        for text in ["", "=a", "a=", "a b=c", "..", "a\u{7}=c"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
