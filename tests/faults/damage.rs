//! Damage of stored versions: every byte changed, every length cut, files that are missing.

use std::path::PathBuf;
use std::rc::Rc;

use burnish::files::output::disk::{self, Disk};
use burnish::files::output::versions::Versions;

use super::simulated::{Ignored, Simulated};
use super::{FILES, KEEP, check_content, folder, newest, save};

/// A disk with the versions of steps 1 and 2.
fn two_versions() -> Simulated {
    let disk = Simulated::new(Ignored::Nothing);
    disk::on(Rc::new(disk.clone()), || {
        let mut versions = Versions::open(&folder(), KEEP);
        save(&mut versions, 1).expect("saved");
        save(&mut versions, 2).expect("saved");
    });
    disk
}

fn files() -> Vec<PathBuf> {
    let names = FILES.iter().copied().chain(["manifest.json"]);
    names.map(|name| folder().join("step-00000002").join(name)).collect()
}

/// Changes a file of the newest version, looks whether the one before is used instead, and changes it back.
fn damage(disk: &Simulated, path: &std::path::Path, what: &str, edit: impl FnOnce(&mut Vec<u8>)) {
    let whole = disk.read(path, 1 << 20).expect("read");
    disk.edit(path, edit);
    let found = newest(disk).expect("the folder is read");
    let version = found.version.unwrap_or_else(|| panic!("{}: {what}: no version is left", path.display()));
    assert_eq!(version.step, 1, "{}: {what}", path.display());
    check_content(disk, &version).expect("whole");
    let [damage] = &found.damaged[..] else { panic!("{what}: {:?}", found.damaged) };
    assert!(damage.to_string().starts_with(&path.display().to_string()), "{what}: {damage}");
    disk.edit(path, |bytes| *bytes = whole);
}

#[test]
fn every_changed_byte_and_every_cut_length_is_found_and_the_version_before_is_used() {
    let disk = two_versions();
    let mut changes = 0;
    for path in files() {
        let length = disk.read(&path, 1 << 20).expect("read").len();
        for place in 0..length {
            for bit in 0..8 {
                damage(&disk, &path, &format!("bit {bit} of byte {place}"), |bytes| bytes[place] ^= 1 << bit);
            }
            damage(&disk, &path, &format!("cut at {place}"), |bytes| bytes.truncate(place));
            damage(&disk, &path, &format!("{place} taken out"), |bytes| {
                bytes.remove(place);
            });
            changes += 10;
        }
        damage(&disk, &path, "a byte more", |bytes| bytes.push(b' '));
    }
    assert!(changes > 5000, "{changes}");
    assert_eq!(newest(&disk).expect("read").version.expect("whole again").step, 2);
}

#[test]
fn a_missing_file_is_found_and_nothing_whole_is_said_to_be_nothing() {
    for name in files() {
        let disk = two_versions();
        disk.remove_file(&name).expect("removed");
        let found = newest(&disk).expect("read");
        assert_eq!((found.version.expect("the one before").step, found.damaged.len()), (1, 1), "{}", name.display());
        disk.remove_file(&folder().join("step-00000001/manifest.json")).expect("removed");
        let found = newest(&disk).expect("read");
        assert!(found.version.is_none() && found.damaged.len() == 2);
    }
}

#[test]
fn a_version_under_the_name_of_another_step_is_not_used() {
    let disk = two_versions();
    disk.rename(&folder().join("step-00000002"), &folder().join("step-00000009")).expect("renamed");
    let found = newest(&disk).expect("read");
    assert_eq!(found.version.expect("the one before").step, 1);
    assert!(found.damaged[0].to_string().contains("is named otherwise than its manifest says: step 2"));
}

#[test]
fn after_damage_the_same_step_is_saved_again_and_the_damaged_version_goes() {
    let disk = two_versions();
    disk.edit(&files()[0], |bytes| bytes[0] ^= 1);
    disk::on(Rc::new(disk.clone()), || {
        let mut versions = Versions::open(&folder(), KEEP);
        assert_eq!(versions.newest().expect("read").version.expect("whole").step, 1);
        save(&mut versions, 2).expect("saved");
    });
    let found = newest(&disk).expect("read");
    assert_eq!((found.version.as_ref().expect("whole").step, found.damaged.len()), (2, 0));
    check_content(&disk, &found.version.expect("whole")).expect("whole");
    assert_eq!(disk.names(&folder()).expect("listed"), ["step-00000001", "step-00000002.2"]);
}

#[test]
fn the_version_that_a_run_resumed_from_stays_beside_those_that_are_kept() {
    let disk = two_versions();
    disk::on(Rc::new(disk.clone()), || {
        let mut versions = Versions::open(&folder(), KEEP);
        versions.newest().expect("read");
        (3..=6).for_each(|step| save(&mut versions, step).expect("saved"));
    });
    assert_eq!(disk.names(&folder()).expect("listed"), ["step-00000002", "step-00000005", "step-00000006"]);
}
