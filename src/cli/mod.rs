//! The command line: one file a command. Nothing here computes.
//!
//! The result goes to stdout, and nothing else does; everything else goes to stderr. Exit codes: 0 done, 1 failed,
//! 2 used wrongly (arguments, recipe, bad input), 128 + its number where a signal ended the work (130 SIGINT, 143 SIGTERM).

mod advise;
mod chat;
mod check;
mod combine;
mod data;
mod doctor;
mod eval;
pub mod examples;
mod explain;
mod export;
mod generate;
mod import;
mod init;
mod inspect;
mod merge;
mod model;
mod panic;
mod predict;
mod progress;
mod prompts;
mod pull;
mod quantize;
mod recipes;
mod report;
#[cfg(feature = "serve")]
mod serve;
mod shell;
mod sweep;
mod terminal;
mod train;
#[cfg(feature = "serve")]
mod ui;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Args, FromArgMatches, Parser, Subcommand, value_parser};

use crate::device::DeviceChoice;
use crate::error::{Error, Place, Result};
use crate::interrupt::{self, Effect};
use crate::train::parallel::launch::{self, Launched};
use terminal::{Colour, Terminal};

/// Fine-tune LLaMA-family language models with LoRA and QLoRA.
#[derive(Debug, Parser)]
#[command(name = "burnish", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The options of every command.
#[derive(Debug, Args)]
struct Global {
    /// The device to compute on: cpu, wgpu, wgpu:N, cuda or cuda:N
    #[arg(long, global = true, env = "BURNISH_DEVICE", default_value_t, value_name = "DEVICE")]
    device: DeviceChoice,
    /// Threads to compute with [default: one for each core]
    #[arg(long, global = true, env = "BURNISH_THREADS", value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Whether threads stay on a NUMA node, where the machine has several
    #[cfg(feature = "cpu")]
    #[arg(long, global = true, env = "BURNISH_PIN_THREADS", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pin_threads: bool,
    /// Print the result as one JSON object
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but the result and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Print more of what happens
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Colour on stderr
    #[arg(long, global = true, env = "BURNISH_COLOR", value_enum, default_value_t, value_name = "WHEN")]
    color: Colour,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pull(pull::Arguments),
    Advise(advise::Arguments),
    Init(init::Arguments),
    Import(import::Arguments),
    Check(check::Arguments),
    Explain(explain::Arguments),
    Data(data::Arguments),
    #[command(after_help = "The adapter with the lowest validation loss stands in the run folder, in PEFT's format. \
                            docs/recipe.md explains every setting.")]
    Train(train::TrainArguments),
    Sweep(sweep::Arguments),
    Eval(eval::Arguments),
    Predict(predict::Arguments),
    Merge(merge::Arguments),
    Export(export::Arguments),
    Combine(combine::Arguments),
    Quantize(quantize::Arguments),
    Generate(generate::Arguments),
    Chat(chat::Arguments),
    #[cfg(feature = "serve")]
    Serve(serve::Arguments),
    Report(report::Arguments),
    #[cfg(feature = "serve")]
    Ui(ui::Arguments),
    Inspect(inspect::Arguments),
    Recipes(recipes::Arguments),
    Doctor(doctor::Arguments),
    Completions(shell::CompletionsArguments),
    Man(shell::ManArguments),
    Schema(shell::SchemaArguments),
}

/// The command line as clap has it: every command with its arguments.
pub fn command() -> clap::Command {
    examples::with_examples(<Cli as clap::CommandFactory>::command())
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    panic::keep_quiet();
    interrupt::listen(announce);
    let matches = command().try_get_matches();
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
                let refused = Error::input(Place::Nowhere, error.render().to_string().trim());
                // A closed pipe is no reason to complain.
                let _ = writeln!(std::io::stdout(), "{}", terminal::error_object(&refused));
            }
            // Help and version come as errors too, for stdout and with code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let terminal = Terminal::new(&cli.global);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&cli, &terminal)));
    interrupt::wait_for_the_end();
    let result = outcome.unwrap_or_else(|_| Err(panic::as_error()));
    match result {
        Ok(_) if interrupt::requested() => ExitCode::from(interrupt::exit_code()),
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Unfit) => ExitCode::from(2),
        Err(error) => {
            report_among_ranks(&terminal, error.clone());
            launch::abort(error.exit_code());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Reports an error. Of several ranks the first does so at once: most errors are those of all, and its end ends them.
fn report_among_ranks(terminal: &Terminal, error: Error) {
    const LATER: Duration = Duration::from_secs(2);
    match Launched::of_this_process().filter(|launched| launched.rank > 0) {
        None => terminal.error(&error),
        Some(launched) => {
            std::thread::sleep(LATER);
            terminal.error(&error.within(launched.name().as_str()));
        }
    }
}

/// The ending of a command that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// All is well: exit code 0.
    Done,
    /// The result says that what was looked at is of no use as it is: exit code 2.
    Unfit,
}

/// Reports the effect of a signal. The line that it interrupts, `^C` with it, is ended first.
fn announce(effect: Effect) {
    let mut stderr = std::io::stderr();
    // A closed stderr leaves no place to report to.
    let _ = match (effect, interrupt::going_on()) {
        (Effect::FinishesFirst(""), _) => Ok(()),
        (Effect::FinishesFirst(text), _) => writeln!(stderr, "\n{text}"),
        (Effect::EndsNow, Some(text)) => writeln!(stderr, "\ninterrupted; {text}"),
        (Effect::EndsNow, None) if stderr.is_terminal() => writeln!(stderr, "\ninterrupted"),
        (Effect::EndsNow, None) => Ok(()),
    };
}

fn run(cli: &Cli, terminal: &Terminal) -> Result<Ending> {
    use_threads(&cli.global)?;
    #[cfg(feature = "cpu")]
    crate::ops::cpu::isa::Isa::check_environment()?;
    terminal.detail(|| {
        let (version, threads) = (env!("CARGO_PKG_VERSION"), rayon::current_num_threads());
        let compiled = crate::device::compiled_in().join(", ");
        let isa = crate::run::identity::instruction_set(&cli.global.device);
        let kernels = isa.map_or_else(String::new, |isa| format!(" (kernels for {isa})"));
        format!("burnish {version}, built for {compiled}; device {}{kernels}, {threads} threads", cli.global.device)
    });
    let done = match &cli.command {
        Command::Check(arguments) => return check::run(arguments, &cli.global, terminal),
        Command::Doctor(_) => return doctor::run(&cli.global, terminal),
        Command::Completions(arguments) => shell::completions(arguments, terminal),
        Command::Man(arguments) => shell::man(arguments, terminal),
        Command::Schema(_) => shell::schema(terminal),
        Command::Advise(arguments) => advise::run(arguments, &cli.global, terminal),
        Command::Init(arguments) => init::run(arguments, &cli.global, terminal),
        Command::Import(arguments) => import::run(arguments, terminal),
        Command::Recipes(arguments) => recipes::run(arguments, terminal),
        Command::Explain(arguments) => explain::run(arguments, terminal),
        Command::Data(arguments) => data::run(arguments, terminal),
        Command::Pull(arguments) => pull::run(arguments, terminal),
        Command::Train(arguments) => train::run(arguments, &cli.global, terminal),
        Command::Sweep(arguments) => sweep::run(arguments, &cli.global, terminal),
        Command::Eval(arguments) => eval::run(arguments, &cli.global, terminal),
        Command::Predict(arguments) => predict::run(arguments, &cli.global, terminal),
        Command::Combine(arguments) => combine::run(arguments, terminal),
        Command::Merge(arguments) => merge::run(arguments, &cli.global, terminal),
        Command::Export(arguments) => export::run(arguments, &cli.global, terminal),
        Command::Quantize(arguments) => quantize::run(arguments, terminal),
        Command::Generate(arguments) => generate::run(arguments, &cli.global, terminal),
        Command::Chat(arguments) => chat::run(arguments, &cli.global, terminal),
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => serve::run(arguments, &cli.global, terminal),
        Command::Report(arguments) => report::run(arguments, &cli.global, terminal),
        #[cfg(feature = "serve")]
        Command::Ui(arguments) => ui::run(arguments, terminal),
        Command::Inspect(arguments) => inspect::run(arguments, &cli.global, terminal),
    };
    done.map(|()| Ending::Done)
}

/// Sizes the pool of the kernels, and that of everything else; the kernels' threads stay on nodes of the machine.
fn use_threads(global: &Global) -> Result<()> {
    let threads = global.threads.map(usize::from).or_else(launch::threads);
    #[cfg(feature = "cpu")]
    if global.pin_threads {
        let count = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let nodes = crate::device::nodes::nodes();
        let places = crate::device::nodes::places(&nodes, count);
        crate::ops::cpu::pool::place_threads(places.into_iter().map(|node| node.processors.clone()).collect());
    }
    let Some(threads) = threads else { return Ok(()) };
    #[cfg(feature = "cpu")]
    crate::ops::cpu::pool::use_threads(threads);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|error| {
        Error::failed(Place::argument("--threads"), format!("{threads} threads cannot be started: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
