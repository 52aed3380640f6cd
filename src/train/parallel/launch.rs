//! The ranks that the environment asks for: a launcher has started this process several times, and each is to know the others.

use super::{Alone, ParallelSettings, Ranks};
use crate::device::nodes::Node;
use crate::error::{Error, Result};

/// The variables in which launchers tell a process how many were started together, and which of them it is: Open MPI, MPICH and its
/// kin, MVAPICH, a job step of Slurm, torchrun.
const LAUNCHERS: [(&str, &str); 5] = [
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("WORLD_SIZE", "RANK"),
];
/// The variables in which they tell it how many of these run on this machine; Slurm counts by machine, as in `4(x2),3`.
const ON_THIS_MACHINE: [&str; 4] =
    ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"];

/// The processes that a launcher has started together, more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launched {
    /// The variable that says so.
    pub variable: &'static str,
    /// The number of processes.
    pub count: usize,
    /// The number of this one.
    pub rank: usize,
}

impl Launched {
    /// The launch of this process; `None` where it was started alone.
    pub fn of_this_process() -> Option<Self> {
        Self::of(|name| std::env::var(name).ok())
    }

    /// The launch that an environment describes.
    fn of(environment: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| environment(name)?.trim().parse::<usize>().ok();
        let launched = LAUNCHERS.iter().find_map(|&(variable, rank)| {
            let (count, rank) = (number(variable)?, number(rank)?);
            (count > 1).then_some(Self { variable, count, rank })
        });
        launched.filter(|launched| launched.rank < launched.count)
    }

    /// The name of this process for messages.
    pub fn name(&self) -> String {
        named(self.rank, &host())
    }
}

/// The name of a rank for messages.
pub(super) fn named(rank: usize, host: &str) -> String {
    format!("rank {rank} on {host}")
}

/// Joins the processes that a launcher has started together with this one; one that was started alone stays alone. `lost` gets the
/// error before another rank's silence ends the process.
///
/// # Errors
/// Input: several processes were started, and this burnish is built without MPI, or MPI does not connect them.
pub fn join(settings: &ParallelSettings, lost: impl Fn(&Error) + Send + Sync + 'static) -> Result<Box<dyn Ranks>> {
    match Launched::of_this_process() {
        None => Ok(Box::new(Alone)),
        Some(launched) => join_launched(launched, settings, lost),
    }
}

#[cfg(feature = "mpi")]
fn join_launched(
    launched: Launched,
    settings: &ParallelSettings,
    lost: impl Fn(&Error) + Send + Sync + 'static,
) -> Result<Box<dyn Ranks>> {
    let timeout = std::time::Duration::from_secs_f64(settings.timeout_seconds);
    Ok(Box::new(super::mpi::MpiRanks::join(&launched, timeout, lost)?))
}

#[cfg(not(feature = "mpi"))]
fn join_launched(
    launched: Launched,
    _settings: &ParallelSettings,
    _lost: impl Fn(&Error) + Send + Sync + 'static,
) -> Result<Box<dyn Ranks>> {
    let Launched { variable, count, .. } = launched;
    let message = format!(
        "{count} processes were started together ({variable}), and this burnish is built without MPI: each would train by itself"
    );
    Err(Error::input("", message)
        .hint("build it with `cargo build --release --features mpi` (docs/distributed.md), or start one process"))
}

/// Ends the processes of all ranks, this one included, with this exit code; returns where there are no others.
pub fn abort(code: u8) {
    #[cfg(feature = "mpi")]
    super::mpi::abort(code.into());
    let _ = code;
}

/// The threads that this process may compute with, where a launcher has started several on this machine; `None` otherwise. The
/// launcher may have bound them to cores of their own; where it has not, they share what there is.
pub fn threads() -> Option<usize> {
    Launched::of_this_process()?;
    let on_this_machine = ON_THIS_MACHINE.iter().find_map(|name| first_number(&std::env::var(name).ok()?))?;
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    Some(allowed.min((cores()? / on_this_machine.max(1)).max(1)))
}

/// The advice to start a rank on each of several nodes; `None` where there are no several, and for a process that is one of several.
pub fn advice(nodes: &[Node], launched: Option<Launched>) -> Option<String> {
    let count = nodes.len();
    (count > 1 && launched.is_none()).then(|| {
        format!(
            "this process may run on {count} NUMA nodes, and one process waits for the memory of the others: a rank on each computes beside \
             its own memory (`mpirun -n {count} --map-by numa --bind-to numa burnish train …`, docs/distributed.md)"
        )
    })
}

/// The number that a text begins with.
fn first_number(text: &str) -> Option<usize> {
    let digits = text.trim().split(|symbol: char| !symbol.is_ascii_digit()).next();
    digits?.parse().ok()
}

/// The cores of the machine, whichever of them this process may use.
fn cores() -> Option<usize> {
    #[cfg(unix)]
    // SAFETY: reads a number of the system.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    #[cfg(not(unix))]
    let cores = 0;
    usize::try_from(cores).ok().filter(|cores| *cores > 0)
}

/// The name of this machine.
pub(super) fn host() -> String {
    let mut name = [0u8; 256];
    #[cfg(unix)]
    // SAFETY: writes at most the length given, which leaves a zero at the end.
    unsafe {
        libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1);
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or_default();
    match String::from_utf8_lossy(&name[..end]) {
        name if name.is_empty() => "this machine".to_owned(),
        name => name.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<(&'static str, usize, usize)> {
        let value = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Launched::of(value).map(|launched| (launched.variable, launched.count, launched.rank))
    }

    #[test]
    fn every_launcher_is_known_by_its_variables() {
        for (count, rank) in LAUNCHERS {
            assert_eq!(of(&[(count, "4"), (rank, "3")]), Some((count, 4, 3)));
            assert_eq!(of(&[(count, "1"), (rank, "0")]), None, "one process is no group");
            assert_eq!(of(&[(count, "4")]), None, "of a script that starts nothing");
        }
        // A script of `sbatch --ntasks=4` is one process.
        assert_eq!(of(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn slurm_counts_the_processes_of_a_machine_in_its_own_way() {
        assert_eq!([first_number("4(x2),3"), first_number("2"), first_number("")], [Some(4), Some(2), None]);
    }

    #[test]
    fn a_rank_a_node_is_advised_where_there_are_several() {
        let nodes: Vec<Node> = (0..4).map(|number| Node { number, processors: vec![number] }).collect();
        let advised = advice(&nodes, None).expect("advice");
        assert!(advised.contains("mpirun -n 4 --map-by numa --bind-to numa burnish train"), "{advised}");
        assert_eq!([advice(&nodes[..1], None), advice(&[], None)], [None, None]);
        let launched = Launched { variable: "PMI_SIZE", count: 4, rank: 0 };
        assert_eq!(advice(&nodes, Some(launched)), None, "it is followed");
    }

    #[cfg(unix)]
    #[test]
    fn a_machine_has_a_name_and_cores() {
        assert!(!host().is_empty() && cores().is_some_and(|cores| cores > 0));
    }
}
