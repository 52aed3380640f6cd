//! `burnish serve`: answers over HTTP.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::Global;
use super::model::{EngineForm, NamedForm};
use super::terminal::Terminal;
use crate::bytes::Size;
use crate::error::{Error, Result};
use crate::generate::engine::EngineOptions;
use crate::interrupt;
use crate::run::named::AdapterFolder;
use crate::serve::{Host, Keys, Limits, ServeOptions, serve};

/// Answer over HTTP: OpenAI's protocol, Ollama's in part, and a page for the browser
#[derive(Debug, Args)]
#[command(after_help = "Without --key-file the server answers this machine alone. docs/serving.md has the routes.")]
pub(super) struct Arguments {
    /// The base: smollm2-135m-instruct, hf:ORG/REPO, a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "BASE")]
    base: String,
    /// An adapter folder in PEFT's format, and the name that requests choose it by; may be repeated
    #[arg(long, value_name = "NAME=DIR")]
    adapter: Vec<AdapterFolder>,
    /// A folder whose folders are adapters, under their own names; `POST /v1/adapters/reload` looks at it again
    #[arg(long, value_name = "DIR")]
    adapter_folder: Option<PathBuf>,
    /// The address to listen at; other machines reach all but this machine's own
    #[arg(long, default_value = "127.0.0.1", env = "BURNISH_HOST", value_name = "ADDRESS")]
    host: IpAddr,
    /// The port to listen at; 0 takes a free one
    #[arg(long, default_value_t = 8080, env = "BURNISH_PORT", value_name = "PORT")]
    port: u16,
    /// A file with keys, one a line; a request needs one of them
    #[arg(long, env = "BURNISH_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A further name of this machine that requests may be sent to; may be repeated
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// An origin, as https://example.org, whose pages may use the server from a browser; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// A file that keeps the votes between two answers
    #[arg(long, value_name = "FILE")]
    votes: Option<PathBuf>,
    /// Answers that run or wait at once; further requests get the status 429
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_answers: u16,
    /// Answers that are written at once
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    max_running: u16,
    /// Memory for the keys and values of running answers and kept prompts
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    max_cache: Size,
    #[command(flatten)]
    form: NamedForm,
    #[command(flatten)]
    engine: EngineForm,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let keys = arguments.key_file.as_deref().map(Keys::read).transpose()?.unwrap_or_default();
    let address = SocketAddr::new(arguments.host, arguments.port);
    if keys.is_empty() && !arguments.host.is_loopback() {
        // Before the weights are loaded; the server itself checks it, too.
        return Err(Error::input(
            "--host",
            format!("is {}: other machines reach it, and it needs a key", arguments.host),
        )
        .hint("give a file with a key by `--key-file`"));
    }
    let models = arguments.form.load(&arguments.base, &arguments.adapter, global, terminal)?;
    let engine = EngineOptions {
        max_sequences: arguments.max_running.into(),
        max_cache_bytes: usize::try_from(arguments.max_cache.0).unwrap_or(usize::MAX),
        ..arguments.engine.options(&models.loaded.decoder, models.loaded.compute)?
    };
    let options = ServeOptions {
        address,
        keys,
        hosts: arguments.allow_host.clone(),
        origins: arguments.allow_origin.clone(),
        adapters: arguments.adapter.clone(),
        adapter_folder: arguments.adapter_folder.clone(),
        votes: arguments.votes.clone(),
        engine,
        limits: Limits { answers: arguments.max_answers.into(), ..Limits::default() },
    };
    let _finishing = interrupt::finish_first("ending: running answers are finished; a second signal ends at once");
    serve(models, options, Arc::new(Owner { terminal: *terminal, serves_clients: true }))
}

/// The program around a server.
pub(super) struct Owner {
    terminal: Terminal,
    /// Whether other programs are clients, beside the page.
    serves_clients: bool,
}

impl Owner {
    /// The program around a server that has a page only.
    pub(super) fn page(terminal: &Terminal) -> Self {
        Self { terminal: *terminal, serves_clients: false }
    }
}

impl Host for Owner {
    fn ready(&self, address: SocketAddr) {
        let clients = format!(", http://{address}/v1 the address for clients");
        let clients = if self.serves_clients { clients.as_str() } else { "" };
        self.terminal.message(format!("http://{address}/ is the page{clients}"));
    }

    fn line(&self, text: &str) {
        self.terminal.detail(|| text.to_owned());
    }

    fn warn(&self, text: &str) {
        self.terminal.message(format!("warning: {text}"));
    }

    fn is_ending(&self) -> bool {
        interrupt::requested()
    }
}
