//! Hours of short runs in one process, each stopped at random steps and resumed until it is done: resident memory and open files
//! must stay as they are.
//!
//! ```sh
//! cargo bench --bench soak -- RECIPE SECONDS
//! ```
//!
//! The recipe is best a small model with a few dozen steps and samples, checkpoints and evaluations on; its `output.dir` is removed
//! after each run. A line a minute is printed. At the end, the largest values of the last quarter are compared with those of the second:
//! more open files, or more than 5% more memory, end the program with exit code 1.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use burnish::recipe::Recipe;
use burnish::run::resume::Start;
use burnish::run::train::{RunOptions, train};
use burnish::run::watch::Watch;
use burnish::train::Event;
use burnish::{allocator, interrupt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A watch that presses Ctrl-C after a number of steps.
struct Stopper {
    steps_left: u64,
}

impl Watch for Stopper {
    fn event(&mut self, event: &Event<'_>) {
        if !matches!(event, Event::Step { .. }) {
            return;
        }
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left == 0 && !interrupt::requested() {
            // SAFETY: sends a signal to this process, which listens for it.
            unsafe { libc::kill(libc::getpid(), libc::SIGINT) };
            // A signal that came after the training would end the process.
            while !interrupt::requested() {
                yield_now();
            }
        }
    }
}

/// Resident memory in KiB, and the number of open files.
fn usage() -> (u64, usize) {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("resident memory");
    let kibibytes = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    (kibibytes, fs::read_dir("/proc/self/fd").expect("Linux").count())
}

/// The largest memory and the most open files of a part of the samples.
fn largest(samples: &[(u64, usize)]) -> (u64, usize) {
    samples.iter().fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)))
}

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [recipe, seconds] = &arguments[..] else {
        println!("cargo bench --bench soak -- RECIPE SECONDS");
        return ExitCode::from(2);
    };
    let recipe = Recipe::load(Path::new(recipe), &[]).expect("a recipe");
    let dir = recipe.plan().expect("a recipe of files that exist").output.dir;
    let seconds: u64 = seconds.parse().expect("a number of seconds");
    interrupt::listen(|_| ());
    let mut random = StdRng::seed_from_u64(0);
    let (start, mut said) = (Instant::now(), Instant::now());
    let (mut runs, mut stops, mut samples) = (0, 0, Vec::new());
    while start.elapsed() < Duration::from_secs(seconds) {
        let mut begin = Start::Fresh;
        loop {
            let options = RunOptions { start: begin, ..RunOptions::default() };
            let mut watch = Stopper { steps_left: random.random_range(1..=20) };
            let report = train(&recipe, &options, &mut watch).expect("a run");
            // A stop in the last step ends a run that is done.
            stops += u64::from(interrupt::take_ctrl_c());
            if !report.interrupted {
                break;
            }
            begin = Start::Resumed(&[]);
        }
        fs::remove_dir_all(&dir).expect("the run folder");
        runs += 1;
        samples.push(usage());
        if said.elapsed() >= Duration::from_secs(60) {
            let (memory, files) = usage();
            println!(
                "{:>6} s: {runs} runs, {stops} stops, {memory} KiB, {files} open files",
                start.elapsed().as_secs()
            );
            said = Instant::now();
        }
    }
    let quarter = samples.len() / 4;
    let (early, late) = (largest(&samples[quarter..2 * quarter]), largest(&samples[3 * quarter..]));
    println!(
        "{runs} runs, {stops} stops; second quarter {} KiB, {} files; last {} KiB, {} files",
        early.0, early.1, late.0, late.1
    );
    ExitCode::from(u8::from(late.1 > early.1 || late.0 > early.0 + early.0 / 20))
}
