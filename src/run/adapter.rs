//! An adapter that is opened for a base: checked against it, with the tokenizer and chat template that it was trained with.

use std::path::Path;

use super::base::OpenBase;
use crate::adapter::host::{HostAdapter, provenance};
use crate::adapter::peft::{AdapterHeader, PeftConfig};
use crate::data::Encoder;
use crate::error::{Error, Result};
use crate::files::{json, open};
use crate::text::{FOLDER_FILES, Tokenizer};

/// The largest tokenizer file that is compared; the tokenizer's own limit.
const MAX_COMPARED_BYTES: u64 = 128 << 20;
/// The largest chat template.
const MAX_TEMPLATE_BYTES: u64 = 8 << 20;

/// An adapter ready for use with a base.
#[derive(Debug)]
pub struct OpenAdapter {
    /// The low-rank pairs.
    pub adapter: HostAdapter,
    /// Remarks for the user, a sentence each: what of the adapter has no effect, and what differs from the base.
    pub notices: Vec<String>,
}

impl OpenAdapter {
    /// Opens the adapter folder `folder` for `base`. Where the folder holds a tokenizer of its own, `base` encodes with it
    /// from now on, chat template included: the adapter was trained with it.
    ///
    /// # Errors
    /// Input: what reading the adapter or its tokenizer says; the adapter names another base, unless `force`.
    pub fn open(folder: &Path, base: &mut OpenBase, force: bool) -> Result<Self> {
        let tokens = PeftConfig::vocabulary_of(folder).unwrap_or_default();
        if tokens > base.files.config().vocab_size {
            base.files = base.files.clone().with_vocabulary(tokens);
        }
        let header = AdapterHeader::read_over(folder, &base.files)?;
        if !force {
            check_base(folder, &header, base)?;
        }
        let place = folder.display();
        let mut notices: Vec<String> =
            header.notices(Some(base.files.config()))?.into_iter().map(|notice| format!("{place}: {notice}")).collect();
        let adapter = header.decode_over(&base.files)?;
        if let Some(notice) = use_own_tokenizer(folder, base)? {
            notices.push(format!("{place}: {notice}"));
        }
        base.encoder.read_control_tokens(adapter.control_tokens()?);
        let labels = adapter.classifier.as_ref().map(|classifier| classifier.labels.clone());
        base.encoder.set_labels(labels.unwrap_or_default());
        Ok(Self { adapter, notices })
    }
}

/// Whether the adapter names `base` as the one that it was trained on, or none.
fn check_base(folder: &Path, header: &AdapterHeader, base: &OpenBase) -> Result<()> {
    let Some(expected) = header.metadata.get(provenance::BASE_SHA256) else { return Ok(()) };
    let found = base.files.content_hash()?;
    if *expected == found {
        return Ok(());
    }
    let trained_on = match &header.config().base_name {
        Some(name) => format!("`{name}`"),
        None => "a base that it does not name".to_owned(),
    };
    let short = |hash: &str| hash.chars().take(12).collect::<String>();
    let message = format!(
        "was trained on another base, {trained_on}: its {} is {}…, that of {} is {}…",
        provenance::BASE_SHA256,
        short(expected),
        base.path().display(),
        short(&found)
    );
    let error = Error::input(folder.display(), message);
    Err(error.hint("give that base; another file of the same model has another fingerprint. `--force` uses this one"))
}

/// Makes `base` encode with the tokenizer in `folder`, if there is one that differs from the base's. Returns a remark on
/// what differs.
fn use_own_tokenizer(folder: &Path, base: &mut OpenBase) -> Result<Option<String>> {
    if holds_the_same_files(folder, base.path()) {
        return Ok(None);
    }
    if !folder.join("tokenizer.json").is_file() {
        return use_lone_template(folder, base);
    }
    let encoder = Encoder::of(Tokenizer::from_folder(folder)?, &folder.display().to_string())?;
    let (own, theirs) = (encoder.tokenizer(), base.encoder.tokenizer());
    let differences = differences(own, theirs);
    if differences.is_empty() && own.chat_template().is_none() && theirs.chat_template().is_some() {
        return Ok(Some("its tokenizer has no chat template; the base's is used".to_owned()));
    }
    let template_differs = template_of(own) != template_of(theirs);
    // A GGUF file may name more end tokens than the files that were written from it.
    if differences.is_empty() && !template_differs && base.files.is_gguf() {
        return Ok(None);
    }
    base.encode_with(encoder);
    let what = match (template_differs, differences.join(", ")) {
        (false, other) if other.is_empty() => return Ok(None),
        (true, other) if other.is_empty() => "chat template differs".to_owned(),
        (false, other) => format!("tokenizer differs (in its {other})"),
        (true, other) => format!("chat template and tokenizer differ (the latter in its {other})"),
    };
    Ok(Some(of_its_own(&what)))
}

/// Whether every tokenizer file in `folder` is that of the base, byte for byte.
pub(super) fn holds_the_same_files(folder: &Path, base: &Path) -> bool {
    let read = |dir: &Path, name: &str| open::read(&dir.join(name), MAX_COMPARED_BYTES).ok();
    let is_same = |name| read(folder, name).is_some_and(|own| read(base, name).as_ref() == Some(&own));
    FOLDER_FILES.into_iter().all(|name| !folder.join(name).exists() || is_same(name))
}

/// Makes `base` encode with a chat template that came without a tokenizer and is not the base's. Returns a remark on it.
fn use_lone_template(folder: &Path, base: &mut OpenBase) -> Result<Option<String>> {
    let alone = open::read(&folder.join("chat_template.jinja"), MAX_TEMPLATE_BYTES).ok();
    let alone = alone.and_then(|bytes| String::from_utf8(bytes).ok());
    let within = || {
        let config = json::read(&folder.join("tokenizer_config.json")).ok()?;
        Some(config.get("chat_template")?.as_str()?.to_owned())
    };
    let tokenizer = base.encoder.tokenizer();
    let differs = |template: &String| Some(comparable(template)) != template_of(tokenizer);
    let Some(template) = alone.or_else(within).filter(differs) else { return Ok(None) };
    let encoder = Encoder::of(tokenizer.with_chat_template(&template), &folder.display().to_string())?;
    base.encode_with(encoder);
    Ok(Some(of_its_own("chat template differs")))
}

/// The remark on what an adapter brings along.
fn of_its_own(what: &str) -> String {
    format!("its {what} from the base's; the adapter is used with its own, as it was trained")
}

/// The chat template in the form in which it is compared.
fn template_of(tokenizer: &Tokenizer) -> Option<String> {
    tokenizer.chat_template().map(comparable)
}

/// A chat template with the line ends that templates are rendered with, and none after it: editors and libraries change
/// them.
fn comparable(template: &str) -> String {
    template.replace("\r\n", "\n").replace('\r', "\n").trim_end().to_owned()
}

/// The names of what two tokenizers do not have in common, chat templates aside.
fn differences(own: &Tokenizer, base: &Tokenizer) -> Vec<&'static str> {
    let mut differences = Vec::new();
    let tokens = own.vocab_size().max(base.vocab_size()) as u32;
    if (0..tokens).any(|id| own.id_to_token(id) != base.id_to_token(id)) {
        differences.push("tokens");
    }
    let special = |tokenizer: &Tokenizer| {
        let mut special: Vec<(String, u32)> =
            tokenizer.special_tokens().map(|(text, id)| (text.to_owned(), id)).collect();
        special.sort_unstable();
        special
    };
    let first_end = |tokenizer: &Tokenizer| tokenizer.eos_tokens().first().copied();
    if own.bos() != base.bos() || first_end(own) != first_end(base) || special(own) != special(base) {
        differences.push("special tokens");
    }
    if own.adds_bos() != base.adds_bos() {
        differences.push("beginning-of-text rule");
    }
    differences
}
