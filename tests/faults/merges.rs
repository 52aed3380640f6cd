//! Merges and exports on a disk that fails, or whose content changes between writing and reading it again: every one of them is
//! caught, and leaves nothing.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use burnish::adapter::host::HostAdapter;
use burnish::adapter::merge::{MergeBase, MergeOptions};
use burnish::error::{Error, Result};
use burnish::export::{ExportOptions, GgufType};
use burnish::files::FloatType;
use burnish::files::output::disk::{self, Disk, DiskFile, System};
use burnish::run::{OpenBase, export, merge};
use safetensors::SafeTensors;

use crate::merge_proof::{adapter, base, examination};

/// Changes a file of weights as soon as it is on the disk.
type Tamper<'a> = Box<dyn Fn(&Path) + 'a>;

/// The disk of the system, which is full after a number of operations, and whose files of weights are changed.
struct Faulty<'a> {
    /// Operations that take room and still succeed.
    room: Cell<usize>,
    operations: Cell<usize>,
    tamper: RefCell<Option<Tamper<'a>>>,
}

impl std::fmt::Debug for Faulty<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

impl Faulty<'_> {
    /// An operation that takes room.
    fn take(&self) -> io::Result<()> {
        self.operations.set(self.operations.get() + 1);
        match self.room.get().checked_sub(1) {
            Some(left) => {
                self.room.set(left);
                Ok(())
            }
            None => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }
}

/// The disk in its shared form, as the library takes it.
#[derive(Debug, Clone)]
struct Shared(Rc<Faulty<'static>>);

#[derive(Debug)]
struct FaultyFile {
    disk: Shared,
    file: Box<dyn DiskFile>,
    path: PathBuf,
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.0.take()?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl DiskFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.0.take()?;
        self.file.sync()
    }

    fn bytes(&self) -> io::Result<u64> {
        let bytes = self.file.bytes()?;
        // The content changes when all has been looked at.
        if bytes > 50_000
            && let Some(tamper) = self.disk.0.tamper.borrow_mut().take()
        {
            tamper(&self.path);
        }
        Ok(bytes)
    }
}

impl Disk for Shared {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.take()?;
        Ok(Box::new(FaultyFile { disk: self.clone(), file: System.create(path)?, path: path.to_owned() }))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.0.take()?;
        System.create_folder(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.take()?;
        System.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        System.remove_file(path)
    }

    fn remove_empty_folder(&self, path: &Path) -> io::Result<()> {
        System.remove_empty_folder(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        System.remove_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        System.sync_folder(path)
    }

    fn exists(&self, path: &Path) -> bool {
        System.exists(path)
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        System.names(folder)
    }

    fn read(&self, path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
        System.read(path, max_bytes)
    }
}

/// The kinds of output.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Output {
    Folder,
    Gguf,
    Ollama,
}

impl Output {
    const ALL: [Self; 3] = [Self::Folder, Self::Gguf, Self::Ollama];

    /// Writes `base` with `adapter`, examined, to `out`.
    fn write(self, base: &OpenBase, adapter: &HostAdapter, out: &Path) -> Result<()> {
        let exported =
            ExportOptions { weights: MergeBase::Original, gguf_type: Some(GgufType::F32), split_bytes: None };
        let examination = Some(examination(base));
        match self {
            Self::Folder => {
                let options = MergeOptions { float_type: Some(FloatType::F32), ..MergeOptions::default() };
                merge::merge(base, adapter, out, &options, examination).map(drop)
            }
            Self::Gguf => export::gguf(base, Some(adapter), out, &exported, None, examination).map(drop),
            Self::Ollama => export::ollama(base, Some(adapter), out, &exported, None, examination).map(drop),
        }
    }

    fn name(self) -> &'static str {
        if self == Self::Gguf { "merged.gguf" } else { "merged" }
    }

    /// The file of weights of a whole output at `out`.
    fn weights(self, out: &Path) -> PathBuf {
        match self {
            Self::Folder => out.join("model.safetensors"),
            Self::Gguf => out.to_owned(),
            Self::Ollama => fs::read_dir(out)
                .expect("a folder")
                .map(|entry| entry.expect("an entry").path())
                .find(|path| path.extension().is_some_and(|extension| extension == "gguf"))
                .expect("a GGUF file"),
        }
    }
}

/// Writes an output on a faulty disk into a new folder. Returns the result, the number of operations, and the names that are left.
fn attempt(
    output: Output,
    base: &OpenBase,
    room: usize,
    tamper: Option<Tamper<'static>>,
) -> (Result<()>, usize, Vec<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    let disk =
        Shared(Rc::new(Faulty { room: Cell::new(room), operations: Cell::new(0), tamper: RefCell::new(tamper) }));
    let out = folder.path().join("new").join(output.name());
    let adapter = adapter(base, 0.3);
    let written = disk::on(Rc::new(disk.clone()), || output.write(base, &adapter, &out));
    let names = fs::read_dir(folder.path()).expect("the folder");
    let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    (written, disk.0.operations.get(), names)
}

/// Whether an attempt was refused as a failure, and left nothing.
fn is_caught((written, _, left): &(Result<()>, usize, Vec<String>)) -> bool {
    written.as_ref().is_err_and(|error| error.exit_code() == 1) && left.is_empty()
}

#[test]
fn a_full_disk_at_any_write_leaves_nothing() {
    let base = base();
    for output in Output::ALL {
        let (written, operations, left) = attempt(output, &base, usize::MAX, None);
        written.expect("written");
        assert!(operations > 5 && left == ["new"], "{output:?}: {operations} operations, {left:?}");
        // Writes of weights are alike: of a long list every few are tried.
        let step = (operations / 40).max(1);
        for room in (0..operations).step_by(step).chain(operations.saturating_sub(8)..operations) {
            let attempt = attempt(output, &base, room, None);
            assert!(is_caught(&attempt), "{output:?}, full after {room} of {operations} operations: {attempt:?}");
        }
    }
}

#[test]
fn a_byte_that_changes_before_it_is_read_again_is_noticed() {
    let base = base();
    for output in Output::ALL {
        let whole = tempfile::tempdir().expect("a folder");
        let out = whole.path().join(output.name());
        output.write(&base, &adapter(&base, 0.3), &out).expect("written");
        let bytes = fs::metadata(output.weights(&out)).expect("weights").len() as usize;
        // All over the file, its header and its last byte among them.
        let places = (0..24).map(|place| place * bytes / 24 + place % 3).chain([1, 9, bytes - 1]);
        for place in places {
            let flip = move |path: &Path| {
                let mut content = fs::read(path).expect("weights");
                content[place] ^= 1;
                fs::write(path, content).expect("written");
            };
            let attempt = attempt(output, &base, usize::MAX, Some(Box::new(flip)));
            assert!(is_caught(&attempt), "{output:?}, byte {place} of {bytes}: {attempt:?}");
        }
        let cut = |path: &Path| {
            let content = fs::read(path).expect("weights");
            fs::write(path, &content[..content.len() - 40]).expect("written");
        };
        let attempt = attempt(output, &base, usize::MAX, Some(Box::new(cut)));
        assert!(is_caught(&attempt), "{output:?}, cut: {attempt:?}");
    }
}

#[test]
fn the_weights_of_another_merge_are_noticed() {
    let base = base();
    let right = adapter(&base, 0.3);
    // The base's embedding is another one.
    let other_base = || {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("other.gguf");
        let mut bytes = fs::read(base.path()).expect("the base");
        let end = bytes.len() - 64;
        bytes[end..].iter_mut().for_each(|byte| *byte ^= 1);
        fs::write(&path, bytes).expect("written");
        (OpenBase::open(&path.display().to_string(), &mut |_| {}).expect("another base"), folder)
    };
    let wrong_alpha = {
        let mut adapter = right.clone();
        adapter.pairs.values_mut().for_each(|pair| pair.scale *= 1.25);
        adapter
    };
    for output in [Output::Folder, Output::Gguf] {
        #[expect(clippy::type_complexity, reason = "a table that stands here only")]
        let wrong: [(&str, HostAdapter, Option<(OpenBase, tempfile::TempDir)>); 4] = [
            ("the update twice", adapter(&base, 0.6), None),
            ("no update", adapter(&base, 0.0), None),
            ("another alpha", wrong_alpha.clone(), None),
            ("another base", right.clone(), Some(other_base())),
        ];
        for (name, adapter, other) in wrong {
            let folder = tempfile::tempdir().expect("a folder");
            let out = folder.path().join(output.name());
            output.write(other.as_ref().map_or(&base, |(base, _)| base), &adapter, &out).expect("another merge");
            let content = fs::read(output.weights(&out)).expect("weights");
            let replace = move |path: &Path| fs::write(path, &content).expect("written");
            let attempt = attempt(output, &base, usize::MAX, Some(Box::new(replace)));
            assert!(is_caught(&attempt), "{output:?}, {name}: {attempt:?}");
        }
    }
}

#[test]
fn a_tensor_that_is_dropped_is_noticed() {
    let drop_one = |path: &Path| {
        let content = fs::read(path).expect("weights");
        let whole = SafeTensors::deserialize(&content).expect("a file of tensors");
        let kept: Vec<_> =
            whole.tensors().into_iter().filter(|(name, _)| !name.ends_with("0.self_attn.v_proj.weight")).collect();
        assert_eq!(kept.len() + 1, whole.len());
        fs::write(path, safetensors::serialize(kept, None).expect("serialised")).expect("written");
    };
    let attempt = attempt(Output::Folder, &base(), usize::MAX, Some(Box::new(drop_one)));
    assert!(is_caught(&attempt), "{attempt:?}");
    let error: &Error = attempt.0.as_ref().expect_err("refused");
    assert!(error.to_string().contains("v_proj"), "{error}");
}
