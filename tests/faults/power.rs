//! Cuts of the power: after any change of the disk, with any choice of the changes that were not synced yet lost.
//!
//! `BURNISH_POWER_CUTS` sets the number of states that are looked at; without it they are some thousand.

use std::path::Path;
use std::rc::Rc;

use burnish::files::output::disk::{self, Disk};
use burnish::files::output::versions::Versions;
use burnish::files::staging::Staging;
use burnish::files::{atomic, temporary};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::simulated::{Ignored, Simulated};
use super::{KEEP, adapter, check_content, folder, newest, save, write_adapter};

/// Choices of the lost changes that are all looked at, as a power of two. Beyond it they are sampled.
const EXHAUSTIVE: usize = 8;

/// A promise that was given when the log had this length.
struct Given<T> {
    at: usize,
    promise: T,
}

/// The last promise that was given when the log had `length` changes.
fn last<T>(given: &[Given<T>], length: usize) -> Option<&T> {
    given.iter().rev().find(|given| given.at <= length).map(|given| &given.promise)
}

/// Calls `look` with the disk after each cut; some choices of lost changes are sampled by `seed`. Returns the number of
/// states, or what `look` found wrong with one.
fn every_cut(
    disk: &Simulated,
    seed: u64,
    mut look: impl FnMut(usize, &Simulated) -> Result<(), String>,
) -> Result<usize, String> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut states = 0;
    for (cut, pending) in disk.cuts() {
        let is_exhaustive = pending.len() <= EXHAUSTIVE;
        for choice in 0..1_u64 << pending.len().min(EXHAUSTIVE) {
            let choice = if is_exhaustive { choice } else { random.next_u64() };
            let is_lost = |index: &usize| choice >> index & 1 == 1;
            let lost: Vec<usize> = (0..pending.len()).filter(is_lost).map(|index| pending[index]).collect();
            look(cut, &disk.after_cut(cut, &lost)).map_err(|wrong| format!("cut at {cut}, lost {lost:?}: {wrong}"))?;
            states += 1;
        }
    }
    Ok(states)
}

/// Saves `saves` versions, a second process beginning half-way, and cuts the power everywhere.
fn cut_saves(saves: u64, seed: u64, ignored: Ignored) -> Result<usize, String> {
    let disk = Simulated::new(ignored);
    let mut given = Vec::new();
    disk::on(Rc::new(disk.clone()), || {
        let mut versions = Versions::open(&folder(), KEEP);
        for round in 1..=saves {
            let step = round * (1 + seed % 5);
            if round == saves / 2 {
                versions = Versions::open(&folder(), KEEP);
                versions.newest().expect("read");
            }
            save(&mut versions, step).expect("saved");
            given.push(Given { at: disk.changes(), promise: step });
        }
    });
    every_cut(&disk, seed, |cut, disk| {
        let found = newest(disk).map_err(|error| error.to_string())?;
        if let Some(damage) = found.damaged.first() {
            return Err(format!("a torn version has its final name: {damage}"));
        }
        let promised = last(&given, cut).copied();
        let step = found.version.as_ref().map(|version| version.step);
        if step < promised {
            return Err(format!("step {promised:?} was saved, the newest is {step:?}"));
        }
        found.version.map_or(Ok(()), |version| check_content(disk, &version))?;
        // The folder takes further versions, whatever the cut has left in it.
        if cut % 16 == 0 {
            disk::on(Rc::new(disk.clone()), || save(&mut Versions::open(&folder(), KEEP), 1000))
                .map_err(|error| error.to_string())?;
            let version = newest(disk).map_err(|error| error.to_string())?.version.ok_or("nothing was saved")?;
            return if version.step == 1000 { check_content(disk, &version) } else { Err("another is newer".into()) };
        }
        Ok(())
    })
}

/// Writes the adapter of a run several times, with another configuration in between, and its record; cuts the power
/// everywhere.
fn cut_results(seed: u64, ignored: Ignored) -> Result<usize, String> {
    let adapters = [(1, 1), (2, 1), (3, 2), (4, 2)];
    let disk = Simulated::new(ignored);
    let record = Path::new("/run/run.json");
    let (mut begun, mut given) = (Vec::new(), Vec::new());
    disk::on(Rc::new(disk.clone()), || {
        temporary::make_folders(record.parent().expect("a folder")).expect("made").keep();
        for adapter in adapters {
            begun.push(Given { at: disk.changes(), promise: adapter });
            write_adapter(adapter.0, adapter.1).expect("written");
            atomic::write_bytes(record, &[adapter.0; 30]).expect("written");
            given.push(Given { at: disk.changes(), promise: adapter });
        }
    });
    every_cut(&disk, seed, |cut, disk| {
        let (begun, promised) = (last(&begun, cut).copied(), last(&given, cut).copied());
        let found = adapter(disk)?;
        // Only while the configuration changes there may be no adapter.
        let may_be_missing = promised.is_none() || begun.map(|new| new.1) != promised.map(|old| old.1);
        let is_right = match found {
            None => may_be_missing,
            found => found == begun || found == promised,
        };
        if !is_right {
            return Err(format!("{promised:?} was written, {begun:?} begun; there is {found:?}"));
        }
        let record = disk.read(record, 100).ok();
        let is_one = |adapter: Option<(u8, u8)>| record == adapter.map(|adapter| vec![adapter.0; 30]);
        if is_one(promised) || is_one(begun) { Ok(()) } else { Err(format!("the record is {record:?}")) }
    })
}

/// Writes a model's folder of two files, and cuts the power everywhere.
fn cut_folder(seed: u64, ignored: Ignored) -> Result<usize, String> {
    let (disk, out) = (Simulated::new(ignored), Path::new("/models/merged"));
    let files = ["config.json", "model.safetensors"];
    let published = disk::on(Rc::new(disk.clone()), || {
        let staging = Staging::beside(out).expect("made");
        for name in files {
            atomic::write_bytes(&staging.path().join(name), &[1; 20]).expect("written");
        }
        staging.publish(out).expect("published");
        disk.changes()
    });
    every_cut(&disk, seed, |cut, disk| match disk.names(out) {
        Ok(names) if names == files => files.iter().try_for_each(|name| match disk.read(&out.join(name), 100) {
            Ok(bytes) if bytes == [1; 20] => Ok(()),
            read => Err(format!("{name} is {read:?}")),
        }),
        Err(_) if cut < published => Ok(()),
        names => Err(format!("the folder has {names:?}")),
    })
}

#[test]
fn a_cut_of_the_power_loses_no_saved_version_and_leaves_no_torn_one() {
    let asked: usize = std::env::var("BURNISH_POWER_CUTS").map_or(0, |text| text.parse().expect("a number"));
    let begin = std::time::Instant::now();
    let (mut states, mut seed) = (0, 0);
    while states <= asked {
        states +=
            cut_saves(5 + seed % 4, seed, Ignored::Nothing).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        states += cut_results(seed, Ignored::Nothing).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        states += cut_folder(seed, Ignored::Nothing).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        seed += 1;
    }
    println!("{states} states after a cut of the power, in {:.1?}", begin.elapsed());
    assert!(states > 2000, "the states were reached: {states}");
}

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    for ignored in [Ignored::Files, Ignored::Folders] {
        for (what, found) in [
            ("saves", cut_saves(5, 0, ignored)),
            ("results", cut_results(0, ignored)),
            ("folder", cut_folder(0, ignored)),
        ] {
            assert!(found.is_err(), "{ignored:?}, {what}: {found:?}");
        }
    }
}
