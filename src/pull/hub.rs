//! The Hugging Face hub over HTTP.
//!
//! The `hf-hub` crate does not serve here: 1.0 brings over 300 packages (an async runtime and a second HTTP stack), 0.5
//! verifies no checksum and knows neither `HF_TOKEN` nor `HF_HUB_OFFLINE` nor `HF_HUB_CACHE`; reading the cache while
//! offline is needed either way (`cache.rs`), and the rest is this file and `download.rs`.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

pub use super::cache::Wanted;
use super::cache::{CachedRepository, is_commit, is_plain_name, link_blob};
use super::download::{Download, Remote};
use super::environment::{expand_home, is_on, token, user_cache_folder, variable};
use super::{Event, Freshness, Progress};
use crate::error::{Error, Result};
use crate::files::open;
use crate::files::output::lock;

/// The longest time for a name look-up and a connection; after it the hub counts as not reachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence of the hub within a response.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of retries of a request: after rate limits, server errors, dropped connections.
pub(super) const RETRIES: u32 = 4;
/// The longest wait that a hub may ask for; a longer one counts as a refusal.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The largest listing of a repository, in bytes.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// The largest file of certificates, in bytes.
const MAX_CERTIFICATES_BYTES: u64 = 16 << 20;

/// The address of the hub and the place of its cache.
#[derive(Debug, Clone)]
pub struct Hub {
    /// `https://huggingface.co`, or a mirror.
    pub endpoint: String,
    /// The folder that holds `models--ORG--NAME`.
    pub cache: PathBuf,
    /// The token, sent to the endpoint and to no other host.
    pub token: Option<String>,
    /// Whether only the cache is used.
    pub offline: bool,
}

/// The revision of a repository where none is named.
pub const DEFAULT_REVISION: &str = "main";

/// The reason for a failed request.
pub(super) enum Failure {
    /// No connection: the cache, or another source, may serve.
    Unreachable(Error),
    /// The hub refused the request.
    Refused(Error),
}

impl Failure {
    pub(super) fn error(self) -> Error {
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

impl Hub {
    /// The hub of the environment, by the variables that Python reads: `HF_ENDPOINT`, `HF_HUB_CACHE`,
    /// `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`.
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

    /// The cached folder or file of a repository, if it is complete.
    pub fn cached(&self, repo: &str, revision: &str, wanted: &Wanted) -> Option<PathBuf> {
        let snapshot = self.repository(repo).snapshot_of(revision)?;
        wanted.missing(&snapshot).is_empty().then(|| wanted.path(snapshot))
    }

    fn repository(&self, repo: &str) -> CachedRepository {
        CachedRepository::new(&self.cache, repo)
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
        let repository = self.repository(repo);
        if revision != listing.commit {
            repository.set_reference(revision, &listing.commit)?;
        }
        Ok(wanted.path(repository.snapshot(&listing.commit)))
    }

    pub(super) fn not_in_cache(&self, repo: &str, revision: &str, wanted: &Wanted) -> Error {
        let missing = match self.repository(repo).snapshot_of(revision) {
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
            None => format!("its files: {}/{repo}/tree/main", self.endpoint),
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
        let repository = self.repository(repo);
        let link = repository.snapshot(commit).join(file);
        if link.is_file() {
            return Ok(());
        }
        let url = format!("{}/{repo}/resolve/{commit}/{file}", self.endpoint);
        let remote = self.describe(agent, repo, commit, &url)?;
        let waiting = || progress(Event::Notice(&format!("waiting for another process that is fetching {file}")));
        let _lock = lock::take(&repository.lock_file(&remote.etag), waiting)?;
        let blob = repository.blob(&remote.etag);
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
    pub(super) fn get(&self, agent: &Agent, url: &str, start: u64) -> Result<Response<Body>, Failure> {
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
                // A hub that cannot be reached is not worth a wait.
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

    /// The error that a refusal is to the user (`X-Error-Code` says what the status leaves open).
    pub(super) fn refusal(&self, repo: &str, revision: &str, response: &Response<Body>) -> Error {
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
            (404, _) => Error::input(place, "does not exist on the hub (404)").hint(format!("the address was {page}")),
            (429, _) => {
                let wait =
                    retry_after(response.headers()).map_or(String::new(), |wait| format!(" for {} s", wait.as_secs()));
                Error::failed(place, format!("the hub limits the rate of requests{wait} (429)"))
                    .hint("wait, or set HF_TOKEN")
            }
            _ => Error::failed(place, format!("the hub answered with status {status}")),
        }
    }
}

fn agent() -> Result<Agent> {
    let mut tls = TlsConfig::builder();
    if let Some(path) = variable("SSL_CERT_FILE") {
        // Behind a proxy that opens TLS, its certificate is here, as for curl and Python.
        let path = PathBuf::from(path);
        let pem = open::read(&path, MAX_CERTIFICATES_BYTES).map_err(|error| error.hint("SSL_CERT_FILE names it"))?;
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

/// Whether an established connection broke, as opposed to one that was never made.
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

/// The header as text.
pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
