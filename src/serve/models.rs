//! The models that requests choose from: the base, and adapters that can come, change and go while answers run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::SystemTime;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::failure::{Failure, Outcome};
use super::worker::Worker;
use crate::error::{Error, Result};
use crate::generate::constraint::Vocabulary;
use crate::run::answer::PromptForm;
use crate::run::named::{AdapterFolder, LoadedBase, NamedAdapter, NamedModel, NamedModels, check_name};

/// A model as requests use it. An answer keeps its model: an adapter leaves the engine after its last answer.
pub(super) struct ServedModel {
    pub(super) named: NamedModel,
    /// The adapter's name in the engine, which no later version of it has; none for the base.
    pub(super) key: Option<String>,
    created: i64,
    worker: Worker,
    /// The base, where this is an adapter.
    base: Option<Arc<ServedModel>>,
    /// The tokens for formats of answers, made when the first answer needs them.
    vocabulary: OnceLock<Result<Vocabulary>>,
}

impl ServedModel {
    /// The tokens for formats of answers by a model with so many logits. Adapters with the base's tokenizer share the base's.
    ///
    /// # Errors
    /// Those of [`Vocabulary::new`].
    pub(super) fn vocabulary(&self, rows: usize) -> Result<Vocabulary> {
        let tokens = |model: &NamedModel| (model.encoder.tokenizer().sha256(), model.end_tokens.clone());
        let made = self.vocabulary.get_or_init(|| match &self.base {
            Some(base) if tokens(&base.named) == tokens(&self.named) => base.vocabulary(rows),
            _ => Vocabulary::new(self.named.encoder.tokenizer(), &self.named.end_tokens, rows),
        });
        made.clone()
    }

    /// Seconds since 1970 at which it was loaded.
    pub(super) fn created(&self) -> i64 {
        self.created
    }

    /// OpenAI's object, with the form of the prompts, whether they may show pictures and whether it is the base, for the page.
    pub(super) fn object(&self) -> Value {
        let form = if self.named.form == PromptForm::Conversation { "conversation" } else { "bare" };
        json!({
            "id": self.named.name, "object": "model", "created": self.created, "owned_by": "burnish",
            "is_base": self.key.is_none(), "prompt_form": form, "sees_pictures": self.named.sees_pictures(),
        })
    }
}

impl Drop for ServedModel {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.worker.remove(key);
        }
    }
}

/// The times and sizes of an adapter's files: another state is another version.
type Version = Vec<(Option<SystemTime>, u64)>;

struct Loaded {
    model: Arc<ServedModel>,
    version: Version,
}

/// The base and the adapters by name.
pub(super) struct Models {
    loaded: LoadedBase,
    base: Arc<ServedModel>,
    adapters: RwLock<BTreeMap<String, Loaded>>,
    /// The adapters that were named at the start.
    named: Vec<AdapterFolder>,
    /// A folder whose folders are adapters.
    folder: Option<PathBuf>,
    worker: Worker,
    versions: AtomicU64,
    /// One reload at a time.
    reloading: Mutex<()>,
}

/// The changes of a reload, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) added: Vec<String>,
    pub(super) replaced: Vec<String>,
    pub(super) removed: Vec<String>,
    /// Adapters that could not be loaded, with the reason, which is not for clients.
    pub(super) failed: Vec<(String, Error)>,
}

impl Models {
    /// The base with the adapters that came with it, and those of `folder`.
    ///
    /// # Errors
    /// Those of [`Worker::add`] and of the adapters in `folder`.
    pub(super) fn new(
        models: NamedModels,
        named: Vec<AdapterFolder>,
        folder: Option<PathBuf>,
        worker: Worker,
    ) -> Result<Self> {
        let NamedModels { loaded, base, adapters: opened } = models;
        let created = OffsetDateTime::now_utc().unix_timestamp();
        let base = ServedModel {
            named: base,
            key: None,
            created,
            worker: worker.clone(),
            base: None,
            vocabulary: OnceLock::new(),
        };
        let base = Arc::new(base);
        let (adapters, versions, reloading) = (RwLock::default(), AtomicU64::new(0), Mutex::default());
        let models = Self { loaded, base, adapters, named, folder, worker, versions, reloading };
        for (adapter, source) in opened.into_iter().zip(&models.named) {
            models.insert(adapter, version_of(&source.folder))?;
        }
        let failed = models.reload().failed.into_iter().map(|(name, error)| error.within(name));
        Error::none_of(failed.collect(), models)
    }

    /// The model of a name.
    pub(super) fn get(&self, name: &str) -> Outcome<Arc<ServedModel>> {
        if name == self.base.named.name {
            return Ok(self.base.clone());
        }
        let adapters = self.adapters.read().unwrap_or_else(PoisonError::into_inner);
        adapters.get(name).map(|loaded| loaded.model.clone()).ok_or_else(|| Failure::no_model(name))
    }

    /// Whether the base sees pictures.
    pub(super) fn see_pictures(&self) -> bool {
        self.base.named.sees_pictures()
    }

    /// All of them, the base first.
    pub(super) fn all(&self) -> Vec<Arc<ServedModel>> {
        let adapters = self.adapters.read().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(&self.base).chain(adapters.values().map(|loaded| &loaded.model)).cloned().collect()
    }

    /// Removes an adapter, until a reload finds it again.
    pub(super) fn remove(&self, name: &str) -> Outcome<()> {
        if name == self.base.named.name {
            return Err(Failure::invalid("the base cannot be removed"));
        }
        let mut adapters = self.adapters.write().unwrap_or_else(PoisonError::into_inner);
        adapters.remove(name).map(drop).ok_or_else(|| Failure::no_model(name))
    }

    /// Looks at the adapters' folders again: new ones come, changed ones replace their former versions, those whose folder is
    /// gone go. Answers that run keep their version. The paths are those of the start; no request names one.
    pub(super) fn reload(&self) -> Changes {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::default();
        let sources = self.sources(&mut changes);
        let known: BTreeMap<String, Version> = {
            let adapters = self.adapters.read().unwrap_or_else(PoisonError::into_inner);
            adapters.iter().map(|(name, loaded)| (name.clone(), loaded.version.clone())).collect()
        };
        for name in known.keys().filter(|name| !sources.contains_key(*name)) {
            if self.remove(name).is_ok() {
                changes.removed.push(name.clone());
            }
        }
        for (name, folder) in sources {
            // Taken before the files are read: a change meanwhile is seen by the next reload.
            let version = version_of(&folder);
            if known.get(&name) == Some(&version) {
                continue;
            }
            let opened = self.loaded.open(&AdapterFolder { name: name.clone(), folder });
            match opened.and_then(|adapter| self.insert(adapter, version)) {
                Ok(()) if known.contains_key(&name) => changes.replaced.push(name),
                Ok(()) => changes.added.push(name),
                Err(error) => changes.failed.push((name, error)),
            }
        }
        changes
    }

    /// The folders of the adapters that are there now, by name.
    fn sources(&self, changes: &mut Changes) -> BTreeMap<String, PathBuf> {
        let mut sources = BTreeMap::new();
        if let Some(folder) = &self.folder {
            let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
            match entries {
                Ok(entries) => sources.extend(entries.into_iter().filter_map(|entry| {
                    let name = entry.file_name().into_string().ok()?;
                    let path = entry.path();
                    (check_name(&name).is_ok() && is_adapter(&path) && name != self.base.named.name)
                        .then_some((name, path))
                })),
                Err(error) => changes.failed.push(("--adapter-folder".to_owned(), Error::read(folder, &error))),
            }
        }
        let named = self.named.iter().filter(|named| is_adapter(&named.folder));
        sources.extend(named.map(|named| (named.name.clone(), named.folder.clone())));
        sources
    }

    fn insert(&self, adapter: NamedAdapter, version: Version) -> Result<()> {
        let NamedAdapter { model, attached, .. } = adapter;
        let key = format!("{}#{}", model.name, self.versions.fetch_add(1, Ordering::Relaxed));
        self.worker.add(&key, attached)?;
        let name = model.name.clone();
        let created = OffsetDateTime::now_utc().unix_timestamp();
        let (worker, base) = (self.worker.clone(), Some(self.base.clone()));
        let served = ServedModel { named: model, key: Some(key), created, worker, base, vocabulary: OnceLock::new() };
        let loaded = Loaded { model: Arc::new(served), version };
        self.adapters.write().unwrap_or_else(PoisonError::into_inner).insert(name, loaded);
        Ok(())
    }
}

/// The files whose change makes another version.
const FILES: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"];

fn is_adapter(folder: &Path) -> bool {
    folder.join(FILES[0]).is_file()
}

fn version_of(folder: &Path) -> Version {
    let version = |name: &&str| {
        let metadata = folder.join(name).metadata();
        metadata.map_or((None, 0), |metadata| (metadata.modified().ok(), metadata.len()))
    };
    FILES.iter().map(version).collect()
}
