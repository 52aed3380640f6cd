//! Training on several ranks: the same bits on any number of them, and no ranks where there is no MPI.

use std::cell::Cell;
use std::fs;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use burnish::device::DeviceChoice;
use burnish::error::Result;
use burnish::recipe::Recipe;
use burnish::run::check::{CheckOptions, check};
use burnish::run::resume::Start;
use burnish::run::train::{RunOptions, train};
use burnish::train::Ranks;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::tiny_job;
#[cfg(not(feature = "mpi"))]
use crate::cli::{burnish, refused, text};

/// Ranks that are threads of this process.
#[derive(Debug)]
struct Threads {
    rank: usize,
    group: Arc<Group>,
    sent_bytes: Cell<u64>,
}

#[derive(Debug)]
struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Ranks that have come to the next meeting.
    here: usize,
    /// Meetings so far.
    meetings: usize,
    bytes: Vec<Vec<u8>>,
}

impl Threads {
    fn of(count: usize) -> Vec<Self> {
        let state = Mutex::new(State { here: 0, meetings: 0, bytes: vec![Vec::new(); count] });
        let group = Arc::new(Group { state, changed: Condvar::new() });
        (0..count).map(|rank| Self { rank, group: Arc::clone(&group), sent_bytes: Cell::new(0) }).collect()
    }

    /// Waits for all ranks; one that does not come fails the test.
    fn meet(&self, change: impl FnOnce(&mut State)) -> Vec<Vec<u8>> {
        let mut state = self.group.state.lock().expect("no panic");
        change(&mut state);
        state.here += 1;
        if state.here == state.bytes.len() {
            state.here = 0;
            state.meetings += 1;
            self.group.changed.notify_all();
            return state.bytes.clone();
        }
        let meetings = state.meetings;
        let waiting = |state: &mut State| state.meetings == meetings;
        let (state, waited) =
            self.group.changed.wait_timeout_while(state, Duration::from_secs(120), waiting).expect("no panic");
        assert!(!waited.timed_out(), "rank {} waits in vain", self.rank);
        state.bytes.clone()
    }
}

impl Ranks for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.group.state.lock().expect("no panic").bytes.len()
    }

    fn name(&self, rank: usize) -> String {
        format!("rank {rank} on thread {rank}")
    }

    fn sum(&self, values: &mut [i64]) {
        let own: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.sent_bytes.set(self.sent_bytes.get() + own.len() as u64);
        values.fill(0);
        for bytes in self.gather(&own) {
            for (sum, number) in values.iter_mut().zip(bytes.as_chunks().0) {
                *sum = sum.wrapping_add(i64::from_le_bytes(*number));
            }
        }
    }

    fn sent_bytes(&self) -> u64 {
        self.sent_bytes.get()
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let all = self.meet(|state| state.bytes[self.rank] = bytes.to_vec());
        // Nobody brings the next bytes before all have these.
        self.meet(|_| ());
        all
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.gather(&bytes).swap_remove(0)
    }
}

/// The recipe of the tiny job in `folder`, with paths that hold in any current folder, and steps of four micro-batches of two.
fn recipe(folder: &TempDir, dir: &str, settings: &[&str]) -> Recipe {
    let here = |name: &str| folder.path().join(name).display().to_string();
    let paths = [("data.train", here("train.jsonl")), ("output.dir", here(dir))];
    let step = ["train.micro_batch_seqs=2", "train.accumulate_steps=4"].into_iter().chain(settings.iter().copied());
    let paths = paths.map(|(key, path)| format!("{key}={path:?}"));
    let settings: Vec<String> = step.map(str::to_owned).chain(paths).collect();
    let path = folder.path().join("recipe.toml");
    let text = fs::read_to_string(&path).expect("a recipe");
    let valid = format!("valid = {:?}", here("valid.jsonl"));
    Recipe::parse(&text.replace("valid = \"valid.jsonl\"", &valid), "recipe.toml", &settings).expect("a recipe")
}

/// Trains by these recipes, a rank by each.
fn train_together(recipes: Vec<Recipe>, start: Start<'static>) -> Vec<Result<()>> {
    let ranks = Threads::of(recipes.len());
    let train_one = move |(ranks, recipe): (Threads, Recipe)| {
        train(&recipe, &RunOptions { ranks: &ranks, start, ..RunOptions::default() }, &mut ()).map(drop)
    };
    let threads: Vec<_> =
        ranks.into_iter().zip(recipes).map(|rank| std::thread::spawn(move || train_one(rank))).collect();
    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}

/// Trains in the run folder `dir` on so many ranks.
fn trained(folder: &TempDir, dir: &str, settings: &[&str], count: usize, start: Start<'static>) {
    let recipes = (0..count).map(|_| recipe(folder, dir, settings)).collect();
    train_together(recipes, start).into_iter().for_each(|outcome| outcome.expect("trained"));
}

/// The results of a run that must not depend on the number of its ranks: adapter, metrics and verdict.
fn results(folder: &TempDir, dir: &str) -> (String, String, Value) {
    let path = folder.path().join(dir);
    let about: Value = serde_json::from_slice(&fs::read(path.join("run.json")).expect("run.json")).expect("JSON");
    let adapter = burnish::files::hex::sha256_of_file(&path.join("adapter_model.safetensors")).expect("an adapter");
    let metrics = fs::read_to_string(path.join("metrics.jsonl")).expect("metrics");
    (adapter, metrics, about["outcome"]["validation"].clone())
}

fn same_on_any_number_of_ranks(settings: &[&str]) {
    same_in(&tiny_job(), settings);
}

fn same_in(folder: &TempDir, settings: &[&str]) {
    trained(folder, "alone", settings, 1, Start::Fresh);
    let alone = results(folder, "alone");
    assert!(alone.1.lines().count() > 6 && alone.2["loss_after"].is_f64(), "{}", alone.1);
    for count in [2, 4] {
        let dir = format!("ranks{count}");
        trained(folder, &dir, settings, count, Start::Fresh);
        assert_eq!(results(folder, &dir), alone, "{count} ranks");
    }
}

#[test]
fn ranks_train_the_adapter_of_one_process_with_noise() {
    same_on_any_number_of_ranks(&["adapter.dropout=0.3", "train.neftune_alpha=5", "train.epochs=3"]);
}

#[test]
fn ranks_train_the_adapter_of_one_process_where_the_last_step_is_one_micro_batch() {
    same_on_any_number_of_ranks(&["train.micro_batch_seqs=5", "train.epochs=4"]);
}

#[test]
fn ranks_train_the_adapter_of_one_process_in_private() {
    let folder = tiny_job();
    let settings = ["privacy={noise_multiplier=0.3, delta=1e-3, max_noise_to_signal=100}", "train.epochs=3"];
    let resumed = |dir: &str, count| {
        // The same secret for all: that of a process that was killed before its first checkpoint.
        let path = folder.path().join(dir);
        fs::create_dir(&path).expect("a folder");
        fs::write(path.join("run.lock"), "").expect("written");
        fs::write(path.join("privacy.key"), [7; 32]).expect("written");
        trained(&folder, dir, &settings, count, Start::Resumed(&[]));
        results(&folder, dir)
    };
    let alone = resumed("alone", 1);
    assert_eq!(resumed("ranks2", 2), alone);
    assert_eq!(resumed("ranks3", 3), alone);
}

#[test]
fn ranks_train_the_adapter_of_one_process_over_nf4() {
    same_on_any_number_of_ranks(&[
        "base.quant=nf4",
        "base.compute=bf16",
        "adapter.targets=\"all-linear\"",
        "adapter.dropout=0.1",
        "train.epochs=3",
    ]);
}

#[test]
fn ranks_train_the_adapter_of_one_process_packed_and_by_exact_answers() {
    let packed = ["data.packing=true", "data.max_seq_tokens=16", "train.epochs=6"];
    same_on_any_number_of_ranks(&[&packed[..], &["train.eval_on=\"exact_match\""]].concat());
}

#[test]
fn ranks_train_the_adapter_of_one_process_by_answers_with_labels() {
    let folder = tiny_job();
    for name in ["train.jsonl", "valid.jsonl"] {
        let path = folder.path().join(name);
        let rows = fs::read_to_string(&path).expect("rows");
        let labelled = rows.lines().enumerate().map(|(index, row)| {
            let is_desirable = index % 3 > 0;
            format!("{}, \"label\": {is_desirable}}}\n", row.trim_end_matches('}'))
        });
        fs::write(&path, labelled.collect::<String>()).expect("written");
    }
    // It compares with a reference, and estimates a divergence by answers to other prompts: both are shared.
    same_in(&folder, &["train.objective=\"kto\"", "train.epochs=3"]);
}

#[test]
fn ranks_train_the_classifier_of_one_process() {
    let folder = tiny_job();
    for name in ["train.jsonl", "valid.jsonl"] {
        let rows = (0..24).map(|index| {
            let label = ["odd", "even", "third"][index % 3];
            format!("{{\"text\": \"{index} and {} is {label}\", \"label\": \"{label}\"}}\n", index * 7)
        });
        fs::write(folder.path().join(name), rows.collect::<String>()).expect("written");
    }
    let path = folder.path().join("recipe.toml");
    let text = fs::read_to_string(&path).expect("a recipe");
    fs::write(&path, text.replace("prompts = [\"1 and 2 is \"]\n", "")).expect("written");
    same_in(&folder, &["train.objective=\"classify\"", "train.eval_on=\"accuracy\"", "train.epochs=3"]);
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let folder = tiny_job();
    let path = folder.path().join("recipe.toml");
    let text = fs::read_to_string(&path).expect("a recipe");
    // The end of a part would be an evaluation that the whole has not.
    fs::write(&path, text.replace("valid = \"valid.jsonl\"\n", "")).expect("written");
    let settings = ["train.epochs=4", "train.schedule=\"constant\"", "adapter.dropout=0.2"];
    trained(&folder, "whole", &settings, 1, Start::Fresh);
    for (count, steps) in [(2, 3), (4, 7), (1, 9), (2, 1000)] {
        let limit = format!("train.max_steps={steps}");
        let settings = [&settings[..], &[&limit]].concat();
        trained(&folder, "parts", &settings, count, Start::Resumed(&[]));
    }
    assert_eq!(results(&folder, "parts"), results(&folder, "whole"));
}

#[test]
fn a_rank_with_other_data_is_refused_by_its_name() {
    let (first, other) = (tiny_job(), tiny_job());
    let path = other.path().join("train.jsonl");
    let rows = fs::read_to_string(&path).expect("rows");
    fs::write(&path, rows.replacen("\"2\"", "\"3\"", 1)).expect("written");
    let recipes = vec![recipe(&first, "run", &["train.seed=1"]), recipe(&other, "run", &["train.seed=2"])];
    for outcome in train_together(recipes, Start::Fresh) {
        let error = outcome.expect_err("other data");
        let said = error.to_string();
        assert_eq!(error.exit_code(), 2, "{said}");
        let names = "rank 1 on thread 1: the data is not that of rank 0 on thread 0: train is ";
        assert!(said.contains(names) && said.contains("train.seed is 2, and 1 there"), "{said}");
    }
    assert!(!first.path().join("run").exists() && !other.path().join("run").exists());
}

#[test]
fn more_ranks_than_micro_batches_are_refused() {
    let folder = tiny_job();
    let recipes = (0..2).map(|_| recipe(&folder, "run", &["train.accumulate_steps=1"])).collect();
    for outcome in train_together(recipes, Start::Fresh) {
        let said = outcome.expect_err("one micro-batch").to_string();
        assert!(said.contains("2 ranks train together") && said.contains("train.accumulate_steps=2"), "{said}");
    }
}

#[test]
fn a_check_times_the_exchange_of_steps() {
    let folder = tiny_job();
    let threads = Threads::of(2).into_iter().map(|ranks| {
        let recipe = recipe(&folder, "run", &[]);
        std::thread::spawn(move || {
            let options = CheckOptions { time: Some(&ranks), ..CheckOptions::default() };
            check(&recipe, &DeviceChoice::default(), None, options, &mut ()).expect("a report")
        })
    });
    let threads: Vec<_> = threads.collect();
    for thread in threads {
        let report = thread.join().expect("no panic");
        let (run, time) = (report.run.expect("a run"), report.time.expect("a time"));
        let communication = time.communication.expect("two ranks");
        // 21 sequences are three steps of four micro-batches of two.
        assert_eq!((communication.ranks, communication.step_seqs, communication.steps_per_epoch), (2, 8, 3));
        let values = 8 * run.adapter_parameters as u64;
        assert!((values..values + values / 4).contains(&communication.bytes), "{communication:?}");
        let share = communication.seconds / (time.training_seconds / run.total_steps as f64);
        assert!(communication.share > 0.0 && communication.share < 1.0, "{communication:?}");
        assert!((share / communication.share - 1.0).abs() < 0.5, "{share}: {communication:?}");
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn ranks_without_mpi_are_refused_and_never_run_by_themselves() {
    for (count, rank) in [("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")] {
        let folder = tiny_job();
        let mut command = burnish(&folder);
        let output = command.args(["train", "recipe.toml"]).env(count, "4").env(rank, "0").output().expect("it runs");
        let said = refused(&output);
        assert!(said.contains(&format!("4 processes were started together ({count})")), "{said}");
        assert!(said.contains("--features mpi"), "{said}");
        assert!(!folder.path().join("runs").exists());
        // One process that a launcher started is one process.
        let mut command = burnish(&folder);
        let alone = command.args(["train", "recipe.toml", "--quiet"]).env(count, "1").env(rank, "0").output();
        let alone = alone.expect("it runs");
        assert!(alone.status.success(), "{}", text(&alone.stderr));
    }
}

/// A file of docs/cluster.
fn cluster_file(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cluster").join(name);
    fs::read_to_string(path).expect("it is there")
}

#[test]
fn the_manifest_starts_a_rank_on_each_worker() {
    let manifest = cluster_file("mpijob.yaml");
    let (_, command) = manifest.split_once("command: [").expect("the launcher's command");
    let command = command.split_once(']').expect("its end").0;
    let words: Vec<&str> = command.split(',').map(|word| word.trim().trim_matches('"')).collect();
    let burnish = words.iter().position(|word| *word == "burnish").expect("burnish");
    burnish::cli::command().try_get_matches_from(&words[burnish..]).expect("arguments that exist");
    let (_, workers) = manifest.split_once("\n    Worker:\n").expect("workers");
    let replicas = workers.split_once("replicas: ").expect("replicas").1.split_whitespace().next();
    let place = words.iter().position(|word| *word == "-n").expect("-n");
    assert_eq!(Some(words[place + 1]), replicas);
    let place = words.iter().position(|word| *word == "--threads").expect("--threads");
    assert!(workers.contains(&format!("limits: {{cpu: \"{}\"", words[place + 1])));
}

/// Runs docs/cluster/train.sbatch with commands of Slurm that only report; the exit code of `srun` is `code`.
#[cfg(unix)]
fn submitted(code: &str, restarts: &str) -> (Option<i32>, String) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    for (name, exit) in [("srun", code), ("scontrol", "0")] {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\necho {name} \"$@\"\nexit {exit}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("a path"));
    let mut script = std::process::Command::new("bash");
    script.args(["docs/cluster/train.sbatch", "my recipe.toml", "--set", "train.seed=1"]);
    script.current_dir(env!("CARGO_MANIFEST_DIR")).env("PATH", path).env("SLURM_JOB_ID", "77");
    script.env("SLURM_CPUS_PER_TASK", "8").env("SLURM_RESTART_COUNT", restarts);
    let output = script.output().expect("bash");
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[cfg(unix)]
#[test]
fn the_batch_script_queues_a_run_again_until_it_has_come_to_its_end() {
    let train = "srun --mpi=pmix --kill-on-bad-exit=1 --cpus-per-task=8 burnish train my recipe.toml --resume --threads 8 \
                 --set train.seed=1\n";
    let requeued = format!("{train}scontrol requeue 77\n");
    assert_eq!(submitted("0", "0"), (Some(0), train.to_owned()));
    assert_eq!(submitted("143", "3"), (Some(0), requeued.clone()), "asked to stop: it goes on");
    assert_eq!(submitted("1", "0"), (Some(0), requeued), "a machine died");
    assert_eq!(submitted("2", "0"), (Some(2), train.to_owned()), "used wrongly: the next try is no better");
    assert_eq!(submitted("1", "20"), (Some(1), train.to_owned()), "tried often enough");
    let arguments = ["burnish", "train", "recipe.toml", "--resume", "--threads", "8", "--set", "train.seed=1"];
    burnish::cli::command().try_get_matches_from(arguments).expect("arguments that exist");
}
