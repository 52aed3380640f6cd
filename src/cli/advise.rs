//! `burnish advise`: the model to fine-tune on this machine.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::Global;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::bytes::Size;
use crate::error::{Error, Place, Result};
use crate::files::atomic;
use crate::run::advise::{AdviseOptions, advise};

/// Say which models can be fine-tuned here: memory, time, disk, and the one that is recommended
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is fetched, and a few made-up training steps are timed. Models whose tokenizer is on this machine count \
                        tokens exactly; those of the others are estimated from the characters. docs/advise.md explains the figures."
)]
pub(super) struct Arguments {
    /// The memory that a run may take, as 16GiB [default: four fifths of what is available]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// The training examples [default: 1,000 of 256 tokens]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The longest run that is recommended, as 90m, 2h or 1d
    #[arg(long, value_name = "TIME", default_value = "2h")]
    time: Duration,
    /// A base to look at instead of the catalogue, as in recipes; may be repeated
    #[arg(long, value_name = "BASE")]
    base: Vec<String>,
    /// Write the recipe of the recommended model to this new file; needs --data
    #[arg(long, value_name = "FILE", requires = "data")]
    write: Option<PathBuf>,
}

/// A time, typed as `90m`, `2h`, `1.5d` or `30s`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Duration {
    seconds: f64,
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [('s', 1.0), ('m', 60.0), ('h', 3600.0), ('d', 86_400.0)];
        let found = units.iter().find_map(|(unit, seconds)| Some((text.trim().strip_suffix(*unit)?, seconds)));
        let seconds = found.and_then(|(number, unit)| Some(number.trim().parse::<f64>().ok()? * unit));
        let seconds = seconds.filter(|seconds| (1.0..=1e9).contains(seconds));
        let seconds = seconds.ok_or_else(|| format!("`{text}` is no time; expected one like 90m, 2h or 1d"))?;
        Ok(Self { seconds })
    }
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let Arguments { memory, data, time, base, write } = arguments;
    if let Some(path) = write.as_ref().filter(|path| path.symlink_metadata().is_ok()) {
        return Err(Error::input(path, "exists").hint("give another name with --write"));
    }
    let options = AdviseOptions {
        device: global.device,
        memory: *memory,
        data: data.as_deref(),
        seconds: Some(time.seconds),
        bases: base,
    };
    let advice = advise(&options, &mut TrainProgress::new(terminal))?;
    terminal.result(&advice)?;
    let Some(path) = write else { return Ok(()) };
    let recipe = advice.recipe.as_ref().ok_or_else(|| {
        Error::failed(Place::argument("--write"), "no model fits, so there is no recipe")
            .hint("allow more memory (--memory) or time (--time)")
    })?;
    atomic::write_bytes(path, recipe.as_bytes())?;
    terminal.message(format_args!("{}: `burnish check {0}`, then `burnish train {0}`", path.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        let of = |text: &str| text.parse::<Duration>().map(|time| time.seconds);
        assert_eq!([of("90m"), of("2h"), of("1.5d"), of(" 30 s ")], [Ok(5400.0), Ok(7200.0), Ok(129_600.0), Ok(30.0)]);
        for text in ["", "2", "h", "-1h", "0s", "nanh", "2 weeks"] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
