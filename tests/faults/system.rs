//! Versions on the disk of the system.

use std::fs;
use std::path::Path;

use burnish::files::output::versions::Versions;

use super::{KEEP, save};

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("listed");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn leftovers_go_with_the_next_save_and_files_of_others_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("a/b");
    for leftover in [".tmp-step-00000009", ".trash-step-00000001"] {
        fs::create_dir_all(folder.join(leftover)).expect("made");
        fs::write(folder.join(leftover).join("moments.bin"), "half").expect("written");
    }
    for others in ["notes.txt", "step-12", "step-00000012.1", "step-x"] {
        fs::write(folder.join(others), "mine").expect("written");
    }
    let mut versions = Versions::open(&folder, KEEP);
    assert!(versions.newest().expect("read").version.is_none(), "no leftover is a version");
    (1..=3).for_each(|step| save(&mut versions, step).expect("saved"));
    let expected = ["notes.txt", "step-00000002", "step-00000003", "step-00000012.1", "step-12", "step-x"];
    assert_eq!(names(&folder), expected);
    let version = Versions::open(&folder, KEEP).newest().expect("read").version.expect("whole");
    assert_eq!(version.step, 3);
    assert!(version.read("moments.bin").is_ok() && version.read("other").is_err());
}

#[test]
fn a_version_that_cannot_be_written_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut versions = Versions::open(folder.path(), KEEP);
    save(&mut versions, 1).expect("saved");
    for name in ["a/b", "..", "", "manifest.json", "twice"] {
        let saved = versions.save(2, &"identity".into(), |draft| {
            draft.file("twice", |_| Ok(()))?;
            draft.file(name, |_| Ok(()))
        });
        assert!(saved.is_err(), "{name}");
        assert_eq!(names(folder.path()), ["step-00000001"], "{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_file_is_damage_and_does_not_wait() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut versions = Versions::open(folder.path(), KEEP);
    (1..=2).for_each(|step| save(&mut versions, step).expect("saved"));
    let file = folder.path().join("step-00000002/moments.bin");
    fs::remove_file(&file).expect("removed");
    let path = std::ffi::CString::new(file.to_str().expect("UTF-8")).expect("no zero byte");
    // SAFETY: `path` ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let found = versions.newest().expect("read");
    assert_eq!((found.version.expect("the one before").step, found.damaged.len()), (1, 1));
}
