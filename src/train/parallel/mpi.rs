//! Ranks by MPI: the collectives of one of its implementations, through rsmpi.
//!
//! MPI knows two ends: all ranks come to `MPI_Finalize`, or one aborts and takes the others with it. So nothing here is finalised
//! by dropping it, since a panic or an error on one rank would then wait for the others for ever.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::collective::SystemOperation;
use ::mpi::datatype::{Partition, PartitionMut};
use ::mpi::environment::Universe;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::Ranks;
use super::deadline::{Deadline, quit};
use super::launch::{Launched, host, named};
use super::packed::{self, BLOCK};
use super::pulse::Pulse;
use crate::error::{Error, Place, Result};

/// Blocks of numbers that are added up in one exchange: eight megabytes, of which packed copies are made.
const BLOCKS_AT_ONCE: usize = (1 << 20) / BLOCK;
/// So many numbers or more are packed; with fewer, the time is that of the exchanges themselves.
const PACKED_FROM: usize = 8 * BLOCK;
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
    deadline: Deadline,
    sent_bytes: AtomicU64,
}

impl MpiRanks {
    /// Initialises MPI.
    pub(super) fn join(
        launched: &Launched,
        timeout: Duration,
        lost: impl Fn(&Error) + Send + Sync + 'static,
    ) -> Result<Self> {
        let lost: Arc<dyn Fn(&Error) + Send + Sync> = Arc::new(lost);
        let deadline = Deadline { name: launched.name(), timeout, lost: Arc::clone(&lost) };
        let initialised = deadline.of("the start of MPI", || ::mpi::initialize_with_threading(Threading::Multiple));
        let Some((universe, threading)) = initialised else {
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
        let hosts = deadline.of("the first exchange", || gather(&world, host().as_bytes()));
        let hosts: Vec<String> = hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        let names = (0..count).map(|rank| named(rank, &hosts[rank])).collect();
        let pulse = Pulse::begin(rank, names, timeout, move |error| {
            lost(error);
            end(1)
        });
        Ok(Self { world, universe, rank, hosts, pulse, deadline, sent_bytes: AtomicU64::new(0) })
    }

    /// Adds up values whose blocks need at most `widths` bits on every rank: each rank gets the values of its share of the blocks from
    /// all others, and all get its sums.
    fn sum_packed(&self, values: &mut [i64], widths: &[u8]) {
        let (rank, ranks) = (self.rank, self.count());
        let of_sums = packed::widths_of_sums(widths, ranks);
        let shares = packed::shares(widths.len(), ranks);
        let places: Vec<_> = shares.iter().map(|share| packed::values_of(share, values.len())).collect();
        let counts = |widths: &[u8]| shares.iter().map(|share| count(packed::words(&widths[share.clone()]))).collect();
        let own_widths = &widths[shares[rank].clone()];

        let counts_sent: Vec<i32> = counts(widths);
        let sent = packed::pack(values, widths);
        let own_words = packed::words(own_widths);
        let counts_received = vec![count(own_words); ranks];
        let mut received = vec![0u64; ranks * own_words];
        self.world.all_to_all_varcount_into(
            &Partition::new(&sent[..], &counts_sent[..], begins(&counts_sent)),
            &mut PartitionMut::new(&mut received[..], &counts_received[..], begins(&counts_received)),
        );
        let sums = &mut values[places[rank].clone()];
        for other in (0..ranks).filter(|other| *other != rank) {
            packed::add(&received[other * own_words..][..own_words], own_widths, sums);
        }

        let own = packed::pack(sums, &of_sums[shares[rank].clone()]);
        let counts_all: Vec<i32> = counts(&of_sums);
        let begins_all = begins(&counts_all);
        let mut all = vec![0u64; packed::words(&of_sums)];
        let parts = &mut PartitionMut::new(&mut all[..], &counts_all[..], &begins_all[..]);
        self.world.all_gather_varcount_into(&own[..], parts);
        for other in (0..ranks).filter(|other| *other != rank) {
            let sums = &mut values[places[other].clone()];
            sums.fill(0);
            packed::add(&all[index(begins_all[other])..], &of_sums[shares[other].clone()], sums);
        }
        self.sent(size_of_val(&sent[..]) - size_of::<u64>() * own_words + (ranks - 1) * size_of_val(&own[..]));
    }

    fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
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
        if values.len() < PACKED_FROM {
            let own = values.to_vec();
            self.world.all_reduce_into(&own[..], values, SystemOperation::sum());
            self.sent(size_of_val(&own[..]));
            return;
        }
        let own = packed::widths(values);
        let mut widths = own.clone();
        self.world.all_reduce_into(&own[..], &mut widths[..], SystemOperation::max());
        self.sent(size_of_val(&own[..]));
        for (values, widths) in values.chunks_mut(BLOCKS_AT_ONCE * BLOCK).zip(widths.chunks(BLOCKS_AT_ONCE)) {
            self.sum_packed(values, widths);
        }
    }

    fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
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
        let Self { universe, pulse, deadline, .. } = *self;
        pulse.leave();
        deadline.of("the end of MPI", || drop(ManuallyDrop::into_inner(universe)));
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
        quit(code)
    });
    SimpleCommunicator::world().abort(code)
}

/// The bytes of every rank.
fn gather(world: &SimpleCommunicator, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut lengths = vec![0i32; index(world.size())];
    let length = i32::try_from(bytes.len()).expect("what ranks tell each other is shorter than 2 GiB");
    world.all_gather_into(&length, &mut lengths[..]);
    let begins = begins(&lengths);
    let mut all = vec![0u8; lengths.iter().map(|length| index(*length)).sum()];
    world.all_gather_varcount_into(bytes, &mut PartitionMut::new(&mut all[..], &lengths[..], &begins[..]));
    begins.iter().zip(&lengths).map(|(&begin, &length)| all[index(begin)..index(begin + length)].to_vec()).collect()
}

/// The begin of each part of a buffer.
fn begins(lengths: &[i32]) -> Vec<i32> {
    let mut end = 0;
    let begins = lengths.iter().map(|length| {
        end += length;
        end - length
    });
    begins.collect()
}

/// A length that MPI takes.
fn count(length: usize) -> i32 {
    i32::try_from(length).expect("an exchange of eight megabytes")
}

/// A number of MPI, none of which is negative here.
fn index(number: i32) -> usize {
    usize::try_from(number).unwrap_or_default()
}
