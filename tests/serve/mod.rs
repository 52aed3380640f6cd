//! The server over loopback sockets, with a tiny model: its protocols, its limits, its life.

mod client;
mod formats;
mod hostile;
mod lifecycle;
mod models;
mod ollama;
mod openai;
mod pictures;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use burnish::device::DeviceChoice;
use burnish::generate::engine::EngineOptions;
use burnish::quant::{Compute, Quant};
use burnish::run::model::ModelChoice;
use burnish::run::named::{AdapterFolder, NamedModels};
use burnish::serve::{Host, Keys, Limits, ServeOptions, serve};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{burnish as program, text, tiny_model};

/// The name of the tiny model.
const BASE: &str = "smollm";

/// The program around a server in a test.
struct Owner {
    ready: Mutex<Option<mpsc::Sender<SocketAddr>>>,
    is_ending: AtomicBool,
    lines: Mutex<String>,
}

impl Host for Owner {
    fn ready(&self, address: SocketAddr) {
        let sender = self.ready.lock().expect("a lock").take().expect("ready once");
        sender.send(address).expect("someone waits");
    }

    fn line(&self, text: &str) {
        *self.lines.lock().expect("a lock") += &format!("{text}\n");
    }

    fn warn(&self, text: &str) {
        self.line(text);
    }

    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }
}

/// A server that ends with this.
struct Running {
    address: SocketAddr,
    owner: Arc<Owner>,
    thread: Option<JoinHandle<burnish::Result<()>>>,
}

impl Running {
    fn of(change: impl FnOnce(&mut ServeOptions)) -> Self {
        Self::over(&tiny_model(), change)
    }

    /// A server over another base.
    fn over(base: &Path, change: impl FnOnce(&mut ServeOptions)) -> Self {
        let mut options = ServeOptions {
            address: "127.0.0.1:0".parse().expect("an address"),
            keys: Keys::default(),
            hosts: Vec::new(),
            origins: Vec::new(),
            adapters: Vec::new(),
            adapter_folder: None,
            votes: None,
            engine: EngineOptions::default(),
            limits: Limits::default(),
        };
        change(&mut options);
        let (compute, quant) = (Some(Compute::F32), Some(Quant::None));
        let choice = ModelChoice { compute, quant, ..ModelChoice::base(base.display().to_string()) };
        let models = NamedModels::load(&choice, &options.adapters, &DeviceChoice::Cpu, &mut ()).expect("loaded");
        let (ready, listening) = mpsc::channel();
        let (ready, lines) = (Mutex::new(Some(ready)), Mutex::default());
        let owner = Arc::new(Owner { ready, is_ending: AtomicBool::new(false), lines });
        let of_thread = owner.clone();
        let thread = std::thread::spawn(move || serve(models, options, of_thread));
        let Ok(address) = listening.recv() else { panic!("{:?}", thread.join()) };
        Self { address, owner, thread: Some(thread) }
    }

    fn plain() -> Self {
        Self::of(|_| {})
    }

    fn post(&self, path: &str, body: &Value) -> client::Answer {
        client::post(self.address, path, &body.to_string())
    }

    fn get(&self, path: &str) -> client::Answer {
        client::get(self.address, path)
    }

    /// An answer to a conversation of one message, greedy.
    fn answer(&self, model: &str, question: &str) -> Value {
        let answer = self.post("/v1/chat/completions", &asking(model, question));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// A figure of `/metrics`.
    fn figure(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("burnish_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    /// Asks the server to end.
    fn begin_to_end(&self) {
        self.owner.is_ending.store(true, Ordering::Relaxed);
    }

    fn end(mut self) {
        self.begin_to_end();
        self.thread.take().expect("a thread").join().expect("no panic").expect("a good end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.begin_to_end();
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().expect("no panic").expect("a good end");
        }
    }
}

fn asking(model: &str, question: &str) -> Value {
    let messages = json!([{ "role": "user", "content": question }]);
    json!({ "model": model, "messages": messages, "temperature": 0, "max_tokens": 12 })
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("a text")
}

/// Trains an adapter of the tiny model into `folder`, on conversations or on bare prompts, so far that it answers otherwise than
/// the base.
fn adapter(folder: &Path, words: &str, is_bare: bool) -> PathBuf {
    let work = tempfile::tempdir().expect("a folder");
    let row = match is_bare {
        true => json!({ "prompt": "hello ", "completion": words }),
        false => {
            json!({ "messages": [{ "role": "user", "content": "hello" }, { "role": "assistant", "content": words }] })
        }
    };
    fs::write(work.path().join("train.jsonl"), format!("{row}\n").repeat(4)).expect("written");
    let recipe = format!(
        "[base]\nmodel = {:?}\ncompute = \"f32\"\n[data]\ntrain = \"train.jsonl\"\nmax_seq_tokens = 96\n[adapter]\nrank = 4\n\
         targets = \"all-linear\"\n[train]\nmax_steps = 8\nlearning_rate = 2e-2\n[output]\ndir = {folder:?}\n",
        tiny_model()
    );
    fs::write(work.path().join("recipe.toml"), recipe).expect("written");
    let trained = program(&work).args(["train", "recipe.toml", "--quiet"]).output().expect("the program starts");
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    folder.to_owned()
}

fn named(name: &str, folder: &Path) -> AdapterFolder {
    AdapterFolder { name: name.to_owned(), folder: folder.to_owned() }
}

/// A folder, and the adapters `one` and `two` within it.
fn two_adapters() -> (TempDir, Vec<AdapterFolder>) {
    let folder = tempfile::tempdir().expect("a folder");
    let one = adapter(&folder.path().join("one"), "one two three four", false);
    let two = adapter(&folder.path().join("two"), "red green blue grey", false);
    let adapters = vec![named("one", &one), named("two", &two)];
    (folder, adapters)
}
