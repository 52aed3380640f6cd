//! Ranks by MPI: the collectives of one of its implementations, through rsmpi.
//!
//! MPI knows two ends: all ranks come to `MPI_Finalize`, or one aborts and takes the others with it. So nothing here is finalised
//! by dropping it, since a panic or an error on one rank would then wait for the others for ever.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::collective::SystemOperation;
use ::mpi::datatype::PartitionMut;
use ::mpi::environment::Universe;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::Ranks;
use super::launch::{Launched, host, named};
use super::pulse::Pulse;
use crate::error::{Error, Place, Result};

/// Numbers that are added up in one call: what is sent is a copy of them, eight megabytes.
const NUMBERS_AT_ONCE: usize = 1 << 20;
/// Bytes that are sent in one call; MPI counts them in 32 bits.
const BYTES_AT_ONCE: usize = 1 << 30;
/// A process that MPI could not end, because its launcher is out of reach, ends itself after this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether this process has joined others.
static JOINED: AtomicBool = AtomicBool::new(false);

/// The ranks of `MPI_COMM_WORLD`.
pub(super) struct MpiRanks {
    world: SimpleCommunicator,
    /// Finalised by [`Ranks::leave`] alone.
    universe: ManuallyDrop<Universe>,
    rank: usize,
    hosts: Vec<String>,
    pulse: Pulse,
}

impl MpiRanks {
    /// Initialises MPI.
    pub(super) fn join(launched: &Launched, timeout: Duration, lost: impl Fn(&Error) + Send + 'static) -> Result<Self> {
        let Some((universe, threading)) = ::mpi::initialize_with_threading(Threading::Multiple) else {
            return Err(Error::failed("MPI", "is initialised already"));
        };
        let universe = ManuallyDrop::new(universe);
        JOINED.store(true, Ordering::Relaxed);
        let world = universe.world();
        let (rank, count) = (index(world.rank()), index(world.size()));
        if count != launched.count {
            let Launched { variable, count: started, .. } = launched;
            let message =
                format!("connects {count} of the {started} processes that were started together ({variable})");
            return Err(Error::input(Place::from("MPI"), message).hint(
                "start them with the `mpirun` of the MPI that burnish was built with, or with `srun --mpi=pmix`",
            ));
        }
        if threading != Threading::Multiple {
            return Err(Error::failed("MPI", "has no support for calls from several threads (MPI_THREAD_MULTIPLE)")
                .hint("use an MPI that was built with it, as those of the distributions are"));
        }
        let hosts = gather(&world, host().as_bytes());
        let hosts: Vec<String> = hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        let names = (0..count).map(|rank| named(rank, &hosts[rank])).collect();
        let pulse = Pulse::begin(rank, names, timeout, move |error| {
            lost(error);
            end(1)
        });
        Ok(Self { world, universe, rank, hosts, pulse })
    }
}

impl Ranks for MpiRanks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.hosts.len()
    }

    fn name(&self, rank: usize) -> String {
        named(rank, &self.hosts[rank])
    }

    fn sum(&self, values: &mut [i64]) {
        let mut own = vec![0; values.len().min(NUMBERS_AT_ONCE)];
        for values in values.chunks_mut(NUMBERS_AT_ONCE) {
            let own = &mut own[..values.len()];
            own.copy_from_slice(values);
            self.world.all_reduce_into(&*own, values, SystemOperation::sum());
        }
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        gather(&self.world, bytes)
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let first = self.world.process_at_rank(0);
        let mut length = bytes.len() as u64;
        first.broadcast_into(&mut length);
        bytes.resize(usize::try_from(length).unwrap_or_default(), 0);
        bytes.chunks_mut(BYTES_AT_ONCE).for_each(|bytes| first.broadcast_into(bytes));
        bytes
    }

    fn begin_step(&self, step: u64) {
        self.pulse.begin_step(step);
    }

    fn leave(self: Box<Self>) {
        let Self { universe, pulse, .. } = *self;
        pulse.leave();
        drop(ManuallyDrop::into_inner(universe));
    }
}

impl fmt::Debug for MpiRanks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiRanks").field("rank", &self.rank).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Ends all ranks; returns where this process has not joined others.
pub(super) fn abort(code: i32) {
    if JOINED.load(Ordering::Relaxed) {
        end(code)
    }
}

/// Ends all ranks.
fn end(code: i32) -> ! {
    std::thread::spawn(move || {
        std::thread::sleep(PATIENCE);
        // SAFETY: ends the process, without handlers that might wait for MPI.
        unsafe { libc::_exit(code) }
    });
    SimpleCommunicator::world().abort(code)
}

/// The bytes of every rank.
fn gather(world: &SimpleCommunicator, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut lengths = vec![0i32; index(world.size())];
    let length = i32::try_from(bytes.len()).expect("what ranks tell each other is shorter than 2 GiB");
    world.all_gather_into(&length, &mut lengths[..]);
    let mut begins = Vec::with_capacity(lengths.len());
    let mut end = 0;
    for length in &lengths {
        begins.push(end);
        end += length;
    }
    let mut all = vec![0u8; index(end)];
    world.all_gather_varcount_into(bytes, &mut PartitionMut::new(&mut all[..], &lengths[..], &begins[..]));
    begins.iter().zip(&lengths).map(|(&begin, &length)| all[index(begin)..index(begin + length)].to_vec()).collect()
}

/// A number of MPI, none of which is negative here.
fn index(number: i32) -> usize {
    usize::try_from(number).unwrap_or_default()
}
