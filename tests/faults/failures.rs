//! Operations of the disk that fail: each alone, and from each on, in every way.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use burnish::files::output::disk::{self, Disk};
use burnish::files::output::versions::Versions;

use super::fault::{Failure, Fault, Then};
use super::simulated::{Ignored, Simulated};
use super::{KEEP, adapter, check_content, folder, newest, save, write_adapter};

/// The promises that a job has given when it ends.
#[derive(Debug, Default)]
struct Promised {
    /// The step of the last version that was saved.
    step: Option<u64>,
    /// The last adapter that was written.
    adapter: Option<(u8, u8)>,
    /// The adapters that were begun after it.
    begun: Vec<(u8, u8)>,
    errors: usize,
}

/// A job that resumes, saves, prunes and writes adapters, and goes on after every error.
fn job(disk: &Simulated) -> Promised {
    disk::on(Rc::new(disk.clone()), || {
        let mut promised = Promised::default();
        let mut versions = Versions::open(&folder(), KEEP);
        for round in 1..=5_u8 {
            if round == 4 {
                versions = Versions::open(&folder(), KEEP);
                promised.errors += usize::from(versions.newest().is_err());
            }
            match save(&mut versions, round.into()) {
                Ok(()) => promised.step = Some(round.into()),
                Err(_) => promised.errors += 1,
            }
            let new = (round, round / 3);
            match write_adapter(new.0, new.1) {
                Ok(()) => (promised.adapter, promised.begun) = (Some(new), Vec::new()),
                Err(_) => {
                    promised.errors += 1;
                    promised.begun.push(new);
                }
            }
        }
        promised
    })
}

/// Whether a disk holds what was promised.
fn check(disk: &Simulated, promised: &Promised) -> Result<(), String> {
    let found = newest(disk).map_err(|error| error.to_string())?;
    let step = found.version.as_ref().map(|version| version.step);
    if step < promised.step {
        return Err(format!("the newest is {step:?}"));
    }
    found.version.map_or(Ok(()), |version| check_content(disk, &version))?;
    let found = adapter(disk)?;
    let is_possible = |found| Some(found) == promised.adapter || promised.begun.contains(&found);
    let is_right = match found {
        Some(found) => is_possible(found),
        // A failure while the configuration changes leaves weights without it.
        None => promised.adapter.is_none_or(|old| promised.begun.iter().any(|new| new.1 != old.1)),
    };
    if is_right { Ok(()) } else { Err(format!("the adapter is {found:?}")) }
}

fn run_with(fault: Option<Fault>) -> (Simulated, Promised) {
    let disk = Simulated::new(Ignored::Nothing);
    // The folder of the run is there.
    disk.create_folder(Path::new("/run")).expect("made");
    disk.sync_folder(Path::new("/")).expect("synced");
    disk.set_fault(fault);
    let promised = job(&disk);
    (disk, promised)
}

/// Lets a job meet a fault, and looks whether the disk holds what was promised: when it works again, and after a cut of the
/// power. Returns whether there were errors, and whether a version was saved.
fn meet(fault: Fault) -> (bool, bool) {
    let (disk, promised) = run_with(Some(fault));
    disk.set_fault(None);
    let wrong = |at: &str, found: String| panic!("{fault:?}, {at}: promised {promised:?}; {found}");
    check(&disk, &promised).unwrap_or_else(|found| wrong("disk healthy again", found));
    let (cut, unsynced) = disk.cuts().pop().expect("the end");
    // All that was not synced is lost, or every other change of it.
    let part = |of: usize| unsynced.iter().copied().filter(|change| of == 2 || change % 2 == of).collect();
    for lost in [0, 1, 2].map(|of| -> Vec<usize> { part(of) }) {
        let disk = disk.after_cut(cut, &lost);
        check(&disk, &promised).unwrap_or_else(|found| wrong("power cut", found));
    }
    (promised.errors > 0, promised.step.is_some())
}

#[test]
fn whatever_operation_fails_nothing_that_was_acknowledged_is_lost() {
    let (disk, promised) = run_with(None);
    let operations = disk.operations();
    assert_eq!((promised.step, promised.errors), (Some(5), 0));
    assert!(operations > 150, "{operations}");
    let ways = [
        (Failure::Code(libc::ENOSPC), &[Then::Never, Then::Every(1)][..]),
        (Failure::Code(libc::EIO), &[Then::Never, Then::Every(1), Then::Every(3)]),
        // A write that is always interrupted never ends, as with the system's own.
        (Failure::Code(libc::EINTR), &[Then::Never, Then::Every(2)]),
        (Failure::ShortWrite, &[Then::Never, Then::Every(1)]),
        (Failure::LyingWrite, &[Then::Never, Then::Every(1), Then::Every(5)]),
    ];
    let mut outcomes = BTreeSet::new();
    for (failure, repetitions) in ways {
        for (then, first) in repetitions.iter().flat_map(|then| (0..operations).map(move |first| (*then, first))) {
            outcomes.insert(meet(Fault { failure, first, then }));
        }
    }
    assert_eq!(outcomes.len(), 3, "errors with and without a version, none with one: {outcomes:?}");
}

/// A long campaign: `BURNISH_FAULT_PAIRS=1`. Without it only the pairs of neighbours are tried.
#[test]
fn whatever_two_operations_fail_nothing_that_was_acknowledged_is_lost() {
    let operations = run_with(None).0.operations();
    let apart = if std::env::var_os("BURNISH_FAULT_PAIRS").is_some() { operations } else { 2 };
    let mut pairs = 0;
    for failure in [Failure::Code(libc::EIO), Failure::LyingWrite] {
        for first in 0..operations {
            for second in first + 1..operations.min(first + apart) {
                meet(Fault { failure, first, then: Then::Again(second) });
                pairs += 1;
            }
        }
    }
    println!("{pairs} pairs of faults");
    assert!(pairs > 300, "{pairs}");
}
