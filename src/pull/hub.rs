//! The Hugging Face hub, and its cache on disk, laid out as Python's `huggingface_hub` lays it out.
//!
//! ```text
//! <cache>/models--ORG--NAME/blobs/<etag>                 the files; <etag>.incomplete while they are fetched
//!                           snapshots/<commit>/<file>    relative links to blobs
//!                           refs/<revision>              the commit a branch or tag stood at
//! <cache>/.locks/models--ORG--NAME/<etag>.lock
//! ```
//!
//! Either side uses what the other fetched. Why this is not the `hf-hub` crate: 1.0 brings over 300 packages (an async
//! runtime and a second HTTP stack), 0.5 verifies no checksum and knows neither `HF_TOKEN` nor `HF_HUB_OFFLINE` nor
//! `HF_HUB_CACHE`; reading the cache while offline is needed either way, and the rest is this file.

use std::fmt::{Display, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::{Event, Freshness, Progress, home, lock, user_cache_folder, variable};
use crate::error::{Error, Result};

/// How long a name look-up and a connection may take before the hub counts as not reachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the hub may stay silent within a response.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a request is tried again: rate limits, server errors, dropped connections.
const RETRIES: u32 = 4;
/// A hub that asks for a longer wait than this has said no.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The largest listing of a repository, in bytes.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// Where the hub is and where its cache lies.
#[derive(Debug, Clone)]
pub struct Hub {
    /// `https://huggingface.co`, or a mirror.
    pub endpoint: String,
    /// The folder that holds `models--ORG--NAME`.
    pub cache: PathBuf,
    /// Sent to the endpoint, and to no other host.
    pub token: Option<String>,
    /// Only the cache is used.
    pub offline: bool,
}

/// Which files of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A Hugging Face folder: configuration, tokenizer, chat template, safetensors.
    Safetensors,
    /// One file, by name.
    File(String),
}

/// Files besides the weights that a base needs, or that belong beside a merged model.
const SMALL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];
const INDEX: &str = "model.safetensors.index.json";

impl Wanted {
    fn is_wanted(&self, file: &str) -> bool {
        match self {
            Self::File(name) => file == name,
            Self::Safetensors => {
                let is_weight = file.starts_with("model") && file.ends_with(".safetensors");
                SMALL_FILES.contains(&file) || file == INDEX || is_weight
            }
        }
    }

    /// What is missing in `snapshot` for it to be used without asking the hub.
    fn missing(&self, snapshot: &Path) -> Vec<String> {
        let needed = match self {
            Self::File(name) => vec![name.clone()],
            Self::Safetensors => {
                let mut needed = vec!["config.json".to_owned(), "tokenizer.json".to_owned()];
                needed.extend(shards(&snapshot.join(INDEX)).unwrap_or_else(|| vec!["model.safetensors".to_owned()]));
                needed
            }
        };
        needed.into_iter().filter(|file| !snapshot.join(file).is_file()).collect()
    }

    fn path(&self, snapshot: PathBuf) -> PathBuf {
        match self {
            Self::Safetensors => snapshot,
            Self::File(name) => snapshot.join(name),
        }
    }
}

/// The files that a safetensors index names; `None` if it cannot be read as one.
fn shards(index: &Path) -> Option<Vec<String>> {
    let index: Value = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    let mut files: Vec<String> =
        index.get("weight_map")?.as_object()?.values().filter_map(Value::as_str).map(str::to_owned).collect();
    files.sort();
    files.dedup();
    Some(files)
}

/// A part of a repository's name, or the name of a file: nothing that leaves its folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 255 && name.bytes().all(plain) && !name.contains("..") && name != "."
}

/// A branch, tag, commit or `refs/pr/N`.
pub(super) fn is_revision(revision: &str) -> bool {
    revision.split('/').all(is_plain_name)
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a repository is taken from where no revision is named.
pub const DEFAULT_REVISION: &str = "main";

/// Why the hub gave nothing.
enum Failure {
    /// No connection: the cache, or another source, may serve.
    Unreachable(Error),
    /// It answered, and the answer was no.
    Refused(Error),
}

impl Failure {
    fn error(self) -> Error {
        match self {
            Self::Unreachable(error) | Self::Refused(error) => error,
        }
    }
}

/// A repository at a commit.
struct Listing {
    commit: String,
    files: Vec<String>,
}

/// What the hub says about a file.
struct Remote {
    etag: String,
    bytes: Option<u64>,
}

impl Remote {
    /// Large files have the SHA-256 of their content as etag; small ones have git's blob id.
    fn sha256(&self) -> Option<&str> {
        let is_sha256 = self.etag.len() == 64 && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_sha256.then_some(self.etag.as_str())
    }
}

impl Hub {
    /// As Python finds it: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// Input: no home folder and no variable that stands in for it.
    pub fn from_env() -> Result<Self> {
        let hf_home = match variable("HF_HOME") {
            Some(folder) => expand_home(&folder)?,
            None => user_cache_folder()?.join("huggingface"),
        };
        let cache = match variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")) {
            Some(folder) => expand_home(&folder)?,
            None => hf_home.join("hub"),
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let token_file = match variable("HF_TOKEN_PATH") {
            Some(path) => expand_home(&path)?,
            None => hf_home.join("token"),
        };
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token: token(&token_file),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
        })
    }

    /// What the cache holds of a repository, if that is complete.
    pub fn cached(&self, repo: &str, revision: &str, wanted: &Wanted) -> Option<PathBuf> {
        let snapshot = self.snapshot_of(repo, revision)?;
        wanted.missing(&snapshot).is_empty().then(|| wanted.path(snapshot))
    }

    fn snapshot_of(&self, repo: &str, revision: &str) -> Option<PathBuf> {
        let folder = self.repo_folder(repo);
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => fs::read_to_string(folder.join("refs").join(revision)).ok()?.trim().to_owned(),
        };
        is_commit(&commit).then(|| folder.join("snapshots").join(commit))
    }

    fn repo_folder(&self, repo: &str) -> PathBuf {
        self.cache.join(format!("models--{}", repo.replace('/', "--")))
    }

    /// The folder (or the one file) of `repo` at `revision`, fetched unless the cache has it.
    ///
    /// # Errors
    /// Input: no such repository, revision or file; no permission. Failed: network, checksum, disk full.
    pub fn fetch(
        &self,
        repo: &str,
        revision: &str,
        wanted: &Wanted,
        freshness: Freshness,
        progress: Progress,
    ) -> Result<PathBuf> {
        let cached = self.cached(repo, revision, wanted);
        if let Some(path) =
            cached.clone().filter(|_| freshness == Freshness::Cached || is_commit(revision) || self.offline)
        {
            return Ok(path);
        }
        if self.offline {
            return Err(self.not_in_cache(repo, revision, wanted));
        }
        let agent = agent()?;
        let listing = match (self.list(&agent, repo, revision), cached) {
            (Ok(listing), _) => listing,
            (Err(Failure::Unreachable(error)), Some(path)) => {
                let reason = error.problems().first().map_or(String::new(), |problem| problem.message.clone());
                progress(Event::Notice(&format!("Hugging Face hub: {reason}; using what is in the cache")));
                return Ok(path);
            }
            (Err(failure), _) => return Err(failure.error()),
        };
        let files = self.choose(repo, &listing, wanted)?;
        for file in files {
            self.fetch_file(&agent, repo, &listing.commit, file, progress)?;
        }
        let folder = self.repo_folder(repo);
        if revision != listing.commit {
            write_ref(&folder.join("refs").join(revision), &listing.commit)?;
        }
        Ok(wanted.path(folder.join("snapshots").join(&listing.commit)))
    }

    fn not_in_cache(&self, repo: &str, revision: &str, wanted: &Wanted) -> Error {
        let missing = match self.snapshot_of(repo, revision) {
            Some(snapshot) => format!("lacks {}", wanted.missing(&snapshot).join(", ")),
            None => format!("has nothing of it at `{revision}`"),
        };
        let message = format!("HF_HUB_OFFLINE is set and the cache {} {missing}", self.cache.display());
        Error::input(format!("hf:{repo}"), message).hint("fetch it once without HF_HUB_OFFLINE, or copy the cache here")
    }

    fn list(&self, agent: &Agent, repo: &str, revision: &str) -> Result<Listing, Failure> {
        let url = format!("{}/api/models/{repo}/revision/{}", self.endpoint, revision.replace('/', "%2F"));
        let mut response = self.get(agent, &url, 0)?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Refused(self.refusal(repo, revision, &response)));
        }
        let strange = |what: &dyn Display| {
            Failure::Refused(Error::failed(&url, format!("the hub's answer is not a repository: {what}")))
        };
        let text = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string();
        let text = text.map_err(|error| strange(&error))?;
        let answer: Value = serde_json::from_str(&text).map_err(|error| strange(&error))?;
        let commit = answer.get("sha").and_then(Value::as_str).filter(|commit| is_commit(commit));
        let commit = commit.ok_or_else(|| strange(&"it names no commit"))?.to_owned();
        let siblings = answer.get("siblings").and_then(Value::as_array).ok_or_else(|| strange(&"it lists no files"))?;
        let files = siblings.iter().filter_map(|file| file.get("rfilename")?.as_str().map(str::to_owned)).collect();
        Ok(Listing { commit, files })
    }

    /// The files to fetch, small ones first, so that what cannot work is known before gigabytes are fetched.
    fn choose<'l>(&self, repo: &str, listing: &'l Listing, wanted: &Wanted) -> Result<Vec<&'l str>> {
        let place = format!("hf:{repo}");
        let all = || listing.files.iter().map(String::as_str);
        let mut files: Vec<&str> = all().filter(|file| is_plain_name(file) && wanted.is_wanted(file)).collect();
        files.sort_by_key(|file| (file.ends_with(".safetensors"), *file));
        let gguf: Vec<&str> = all().filter(|file| file.ends_with(".gguf") && is_plain_name(file)).collect();
        let gguf_hint = || match gguf.first() {
            Some(file) => format!("it has GGUF files: {}; name one as hf:{repo}/{file}", gguf.join(", ")),
            None => format!("what it has: {}/{repo}/tree/main", self.endpoint),
        };
        match wanted {
            Wanted::File(name) if files.is_empty() => {
                Err(Error::input(place, format!("the repository has no file `{name}`")).hint(gguf_hint()))
            }
            Wanted::Safetensors if !files.iter().any(|file| file.ends_with(".safetensors")) => {
                Err(Error::input(place, "the repository has no model*.safetensors").hint(gguf_hint()))
            }
            Wanted::Safetensors if !files.contains(&"config.json") => {
                Err(Error::input(place, "the repository has no config.json, so it is not a model that runs"))
            }
            _ => Ok(files),
        }
    }

    fn fetch_file(&self, agent: &Agent, repo: &str, commit: &str, file: &str, progress: Progress) -> Result<()> {
        let folder = self.repo_folder(repo);
        let link = folder.join("snapshots").join(commit).join(file);
        if link.is_file() {
            return Ok(());
        }
        let url = format!("{}/{repo}/resolve/{commit}/{file}", self.endpoint);
        let remote = self.describe(agent, repo, commit, &url)?;
        let repo_name = folder.file_name().unwrap_or_default();
        let lock_path = self.cache.join(".locks").join(repo_name).join(format!("{}.lock", remote.etag));
        let _lock = lock(&lock_path, file, progress)?;
        let blob = folder.join("blobs").join(&remote.etag);
        if !blob.is_file() {
            Download { hub: self, agent, repo, commit, file, url: &url, remote: &remote }.run(&blob, progress)?;
        }
        link_blob(&blob, &link)
    }

    /// Asks for a file's etag and size. The first answer of the hub itself counts, not that of the store it sends us to.
    fn describe(&self, agent: &Agent, repo: &str, commit: &str, url: &str) -> Result<Remote> {
        let mut url = url.to_owned();
        for _ in 0..5 {
            let response = self.retried(|| {
                let request = agent.head(&url).header("Accept-Encoding", "identity");
                let request = request.config().max_redirects(0).build();
                self.authorised(request).call()
            });
            let response = response.map_err(Failure::error)?;
            let headers = response.headers();
            if response.status().is_redirection()
                && let Some(path) = header(headers, "Location").filter(|target| target.starts_with('/'))
            {
                // A renamed repository: the same hub, another path.
                url = format!("{}{path}", self.endpoint);
                continue;
            }
            if !response.status().is_success() && !response.status().is_redirection() {
                return Err(self.refusal(repo, commit, &response));
            }
            let etag = header(headers, "X-Linked-Etag").or_else(|| header(headers, "ETag"));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
            let etag = etag.filter(|etag| is_plain_name(etag));
            let etag = etag.ok_or_else(|| Error::failed(&url, "the hub's answer has no usable ETag"))?;
            // The length of a redirect is that of the redirect itself.
            let own_length = if response.status().is_success() { header(headers, "Content-Length") } else { None };
            let bytes = header(headers, "X-Linked-Size").or(own_length).and_then(|length| length.parse().ok());
            return Ok(Remote { etag, bytes });
        }
        Err(Error::failed(url, "the hub redirects in a circle"))
    }

    /// `GET`, from byte `start` on, following redirects; the token goes to the hub's own host only.
    fn get(&self, agent: &Agent, url: &str, start: u64) -> Result<Response<Body>, Failure> {
        self.retried(|| {
            let request = agent.get(url).header("Accept-Encoding", "identity");
            let request = if start > 0 { request.header("Range", format!("bytes={start}-")) } else { request };
            self.authorised(request).call()
        })
    }

    fn authorised<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends a request; waits and tries again on a rate limit, a server error or a dropped connection.
    fn retried(&self, send: impl Fn() -> Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let mut attempt = 0;
        loop {
            let wait = match send() {
                Ok(response) if !is_temporary(response.status()) || attempt == RETRIES => return Ok(response),
                Ok(response) => match retry_after(response.headers()) {
                    Some(wait) if wait > LONGEST_WAIT => return Ok(response),
                    Some(wait) => wait,
                    None => backoff(attempt),
                },
                // Nothing was reached: there is no point in waiting for it.
                Err(error) if attempt == RETRIES || !is_dropped(&error) => {
                    let message = format!("{} cannot be reached ({error})", self.endpoint);
                    return Err(Failure::Unreachable(
                        Error::failed("Hugging Face hub", message)
                            .hint("without network: give a Hugging Face folder or a .gguf file as the base"),
                    ));
                }
                Err(_) => backoff(attempt),
            };
            attempt += 1;
            thread::sleep(wait);
        }
    }

    /// What a refusal means to the user (`X-Error-Code` says what the status leaves open).
    fn refusal(&self, repo: &str, revision: &str, response: &Response<Body>) -> Error {
        let place = format!("hf:{repo}");
        let status = response.status().as_u16();
        let code = header(response.headers(), "X-Error-Code").unwrap_or_default();
        let page = format!("{}/{repo}", self.endpoint);
        let with_token = if self.token.is_some() { "with this token" } else { "without a token" };
        match (status, code) {
            (_, "GatedRepo") => Error::input(place, format!("access is granted on request only ({status})"))
                .hint(format!("ask for it at {page}, then set HF_TOKEN or run `hf auth login`")),
            (_, "RevisionNotFound") => Error::input(place, format!("there is no revision `{revision}`")),
            (_, "EntryNotFound") => Error::input(place, "a file that the hub lists is not there"),
            (401, _) => Error::input(place, format!("does not exist, or is not shown {with_token} (401)"))
                .hint("check the name; for a private model set HF_TOKEN or run `hf auth login`"),
            (403, _) => Error::input(place, format!("is forbidden {with_token} (403)"))
                .hint(format!("see {page} for how access is granted")),
            (404, _) => Error::input(place, "does not exist on the hub (404)").hint(format!("looked for {page}")),
            (429, _) => {
                let wait =
                    retry_after(response.headers()).map_or(String::new(), |wait| format!(" for {} s", wait.as_secs()));
                Error::failed(place, format!("the hub limits our rate{wait} (429)")).hint("wait, or set HF_TOKEN")
            }
            _ => Error::failed(place, format!("the hub answered with status {status}")),
        }
    }
}

/// A file on its way to the cache.
struct Download<'d> {
    hub: &'d Hub,
    agent: &'d Agent,
    repo: &'d str,
    commit: &'d str,
    file: &'d str,
    url: &'d str,
    remote: &'d Remote,
}

impl Download<'_> {
    /// Fetches into `<blob>.incomplete`, going on where an earlier attempt stopped; verified, it becomes `blob`.
    fn run(&self, blob: &Path, progress: Progress) -> Result<()> {
        let mut incomplete = blob.as_os_str().to_owned();
        incomplete.push(".incomplete");
        let incomplete = PathBuf::from(incomplete);
        let write_error = |error: io::Error| Error::write(&incomplete, &error);
        let folder = incomplete.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
        let mut output = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&incomplete);
        let output = output.as_mut().map_err(|error| Error::write(&incomplete, error))?;
        let mut stalled = 0;
        let mut hash = Sha256::new();
        let mut done = io::copy(output, &mut Hashing(&mut hash)).map_err(write_error)?;
        loop {
            if self.remote.bytes.is_some_and(|bytes| done > bytes) {
                (hash, done) = restart(output).map_err(write_error)?;
            }
            progress(Event::Start { file: self.file, bytes_done: done, bytes_total: self.remote.bytes });
            let before = done;
            if self.remote.bytes != Some(done) || done == 0 {
                let mut response = self.hub.get(self.agent, self.url, done).map_err(Failure::error)?;
                let goes_on = match response.status() {
                    StatusCode::PARTIAL_CONTENT => continues_at(response.headers(), done),
                    StatusCode::OK => done == 0,
                    StatusCode::RANGE_NOT_SATISFIABLE => false,
                    _ => return Err(self.hub.refusal(self.repo, self.commit, &response)),
                };
                if !goes_on {
                    (hash, done) = restart(output).map_err(write_error)?;
                    if response.status() != StatusCode::OK {
                        stalled += 1;
                        self.give_up_after(stalled, done)?;
                        continue;
                    }
                }
                done += self.receive(&mut response, output, &mut hash, progress).map_err(write_error)?;
            }
            if self.remote.bytes.is_none_or(|bytes| done == bytes) {
                break;
            }
            stalled = if done > before { 0 } else { stalled + 1 };
            self.give_up_after(stalled, done)?;
        }
        output.sync_all().map_err(write_error)?;
        let found = hexadecimal(&hash.finalize());
        if let Some(expected) = self.remote.sha256().filter(|expected| *expected != found) {
            // What is here is not what the hub has: no later attempt must go on from it.
            let _ = fs::remove_file(&incomplete);
            let message = format!("the download of {} is corrupt: sha256 {found}, expected {expected}", self.file);
            return Err(Error::failed(format!("hf:{}", self.repo), message).hint("try again"));
        }
        fs::rename(&incomplete, blob).map_err(|error| Error::write(blob, &error))?;
        progress(Event::Finish);
        Ok(())
    }

    /// Appends what the response holds to `output`; a connection that drops ends it early. Errors are the disk's.
    fn receive(
        &self,
        response: &mut Response<Body>,
        output: &mut File,
        hash: &mut Sha256,
        progress: Progress,
    ) -> io::Result<u64> {
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        let mut received = 0;
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(received),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(received),
            };
            let chunk = buffer.get(..count).unwrap_or_default();
            output.write_all(chunk)?;
            hash.update(chunk);
            received += count as u64;
            progress(Event::Advance { bytes: count as u64 });
        }
    }

    fn give_up_after(&self, stalled: u32, done: u64) -> Result<()> {
        if stalled <= RETRIES {
            return Ok(());
        }
        let expected = self.remote.bytes.map_or(String::new(), |bytes| format!(" of {bytes}"));
        let message = format!("the download of {} stops at byte {done}{expected}", self.file);
        Err(Error::failed(format!("hf:{}", self.repo), message).hint("run it again: it goes on where it stopped"))
    }
}

/// Feeds what is written to a hash.
struct Hashing<'h>(&'h mut Sha256);

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An empty file, and the state that goes with it.
fn restart(output: &mut File) -> io::Result<(Sha256, u64)> {
    output.set_len(0)?;
    io::Seek::rewind(output)?;
    Ok((Sha256::new(), 0))
}

/// Whether a partial response starts at byte `start`.
fn continues_at(headers: &HeaderMap, start: u64) -> bool {
    let range = header(headers, "Content-Range").and_then(|range| range.strip_prefix("bytes "));
    range.and_then(|range| range.split('-').next()?.parse().ok()) == Some(start)
}

/// Makes `link` stand for `blob`, as Python does: a relative link where there are links, else a copy.
fn link_blob(blob: &Path, link: &Path) -> Result<()> {
    let folder = link.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
    if fs::symlink_metadata(link).is_ok() {
        fs::remove_file(link).map_err(|error| Error::write(link, &error))?;
    }
    let linked = {
        #[cfg(unix)]
        {
            let target = Path::new("../../blobs").join(blob.file_name().unwrap_or_default());
            std::os::unix::fs::symlink(target, link)
        }
        #[cfg(not(unix))]
        {
            fs::copy(blob, link).map(|_| ())
        }
    };
    linked.map_err(|error| Error::write(link, &error))
}

/// Writes where a branch stands, in one rename.
fn write_ref(path: &Path, commit: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(commit.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    written().map_err(|error| Error::write(path, &error))
}

fn agent() -> Result<Agent> {
    let mut tls = TlsConfig::builder();
    if let Some(path) = variable("SSL_CERT_FILE") {
        // Behind a proxy that opens TLS, its certificate is here, as for curl and Python.
        let path = PathBuf::from(path);
        let pem = fs::read(&path).map_err(|error| Error::read(&path, &error).hint("SSL_CERT_FILE names it"))?;
        let certificates = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        tls = tls.root_certs(RootCerts::new_with_certs(&certificates.collect::<Vec<_>>()));
    }
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .user_agent(concat!("burnish/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects_will_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT));
    Ok(config.build().new_agent())
}

fn is_temporary(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// Whether the connection was there and broke, as opposed to never having been there.
fn is_dropped(error: &ureq::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        ureq::Error::Io(error) => {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        }
        _ => false,
    }
}

fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(250 << attempt.min(6))
}

/// The wait that the hub asks for, in seconds (the form with a date is not used by it).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header(headers, "Retry-After")?.trim().parse().ok().map(Duration::from_secs)
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn token(file: &Path) -> Option<String> {
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let token = token.or_else(|| fs::read_to_string(file).ok())?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// Whether a switch in the environment is on, by Python's rule.
fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

fn expand_home(path: &str) -> Result<PathBuf> {
    match path.strip_prefix("~/") {
        Some(rest) => Ok(home()?.join(rest)),
        None => Ok(PathBuf::from(path)),
    }
}

/// Lower-case hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
