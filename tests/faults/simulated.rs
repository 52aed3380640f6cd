//! A disk in memory that keeps a log of its operations: any of them can fail, and the power can be cut after any, with any
//! choice of the operations that were not synced yet.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::{Component, Path};
use std::rc::Rc;

use burnish::error::{Error, Result};
use burnish::files::output::disk::{Disk, DiskFile};

use super::fault::{Failure, Fault};

/// The number of a file or folder.
type Node = usize;

#[derive(Debug, Clone)]
enum Content {
    File(Vec<u8>),
    Folder(BTreeMap<String, Node>),
}

/// One change of the disk, as small as it can reach the medium alone.
#[derive(Debug, Clone)]
enum Change {
    /// A name in a folder.
    Link { folder: Node, name: String, node: Node },
    /// A name in a folder that becomes another in the same folder.
    Move { folder: Node, from: String, to: String, node: Node },
    /// A name that goes.
    Unlink { folder: Node, name: String, node: Node },
    /// The size of a file: the new part reads as zeros.
    Grow { file: Node, bytes: usize },
    /// A part of the content of a file.
    Data { file: Node, offset: usize, bytes: Vec<u8> },
    /// The content of a file that could not be synced: the system has given it up.
    Lost,
    /// The content of the file is on the medium, and so are its changes above.
    SyncFile(Node),
    /// The names in the folder are on the medium.
    SyncFolder(Node),
}

/// Syncs that do nothing, as on a disk that lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    Nothing,
    Files,
    Folders,
}

struct State {
    nodes: Vec<Content>,
    log: Vec<Change>,
    /// Nodes at the start of the log.
    start: Vec<Content>,
    operations: usize,
    fault: Option<Fault>,
    ignored: Ignored,
}

/// The disk. Clones share it.
#[derive(Clone)]
pub struct Simulated(Rc<RefCell<State>>);

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Simulated")
    }
}

/// A file that is open for writing.
#[derive(Debug)]
struct OpenFile {
    disk: Simulated,
    file: Node,
}

fn not_found() -> io::Error {
    ErrorKind::NotFound.into()
}

impl Simulated {
    /// An empty disk.
    pub fn new(ignored: Ignored) -> Self {
        Self::of(vec![Content::Folder(BTreeMap::new())], ignored)
    }

    fn of(nodes: Vec<Content>, ignored: Ignored) -> Self {
        let start = nodes.clone();
        Self(Rc::new(RefCell::new(State { nodes, log: Vec::new(), start, operations: 0, fault: None, ignored })))
    }

    /// Lets operations go wrong from now on; their numbers begin anew.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.0.borrow_mut();
        state.operations = 0;
        state.fault = fault;
    }

    /// The number of operations since the disk was made or [`Self::set_fault`].
    pub fn operations(&self) -> usize {
        self.0.borrow().operations
    }

    /// The number of changes in the log.
    pub fn changes(&self) -> usize {
        self.0.borrow().log.len()
    }

    /// Changes the content of a file behind everyone's back.
    pub fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.borrow_mut();
        let node = state.node(path).expect("a file");
        let Content::File(bytes) = &mut state.nodes[node] else { panic!("not a file") };
        edit(bytes);
    }

    /// Whether the next operation goes wrong, and how.
    fn failure(&self) -> Option<Failure> {
        let mut state = self.0.borrow_mut();
        let number = state.operations;
        state.operations += 1;
        state.fault.filter(|fault| fault.meets(number)).map(|fault| fault.failure)
    }

    /// Counts an operation, which may fail.
    fn operation(&self) -> io::Result<()> {
        match self.failure() {
            Some(Failure::Code(code)) => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        }
    }

    fn make(&self, path: &Path, content: Content) -> io::Result<Node> {
        let mut state = self.0.borrow_mut();
        let (folder, name) = state.place(path)?;
        if state.folder(folder).contains_key(&name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let node = state.nodes.len();
        state.nodes.push(content.clone());
        state.start.push(content);
        state.change(Change::Link { folder, name, node });
        Ok(node)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let (folder, name) = state.place(path)?;
        let node = *state.folder(folder).get(&name).ok_or_else(not_found)?;
        state.change(Change::Unlink { folder, name, node });
        Ok(())
    }

    /// The places in the log at which the power can be cut, each with the changes before it that are not certain to be on the
    /// medium.
    pub fn cuts(&self) -> Vec<(usize, Vec<usize>)> {
        let state = self.0.borrow();
        let certain_from = state.certain_from();
        let pending = |cut: usize| (0..cut).filter(|change| certain_from[*change] > cut).collect();
        (0..=state.log.len()).map(|cut| (cut, pending(cut))).collect()
    }

    /// The disk after the power was cut when `cut` changes had been made, of which those in `lost` had not reached the medium.
    pub fn after_cut(&self, cut: usize, lost: &[usize]) -> Self {
        let state = self.0.borrow();
        let mut nodes = state.start.clone();
        for (index, change) in state.log[..cut].iter().enumerate() {
            if !lost.contains(&index) {
                apply(&mut nodes, change);
            }
        }
        Self::of(nodes, Ignored::Nothing)
    }
}

impl State {
    fn folder(&self, node: Node) -> &BTreeMap<String, Node> {
        match &self.nodes[node] {
            Content::Folder(names) => names,
            Content::File(_) => panic!("a file, not a folder"),
        }
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        let mut node = 0;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let Content::Folder(names) = &self.nodes[node] else { return Err(ErrorKind::NotADirectory.into()) };
            node = *names.get(name.to_str().expect("UTF-8")).ok_or_else(not_found)?;
        }
        Ok(node)
    }

    /// The folder of a path, and the name in it.
    fn place(&self, path: &Path) -> io::Result<(Node, String)> {
        let folder = self.node(path.parent().expect("a parent"))?;
        Ok((folder, path.file_name().expect("a name").to_str().expect("UTF-8").to_owned()))
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.nodes, &change);
        self.log.push(change);
    }

    /// For each change, the length of the log from which on it is certain to be on the medium.
    fn certain_from(&self) -> Vec<usize> {
        let synced_after = |index: usize, is_sync: &dyn Fn(&Change) -> bool| {
            let later = self.log.iter().enumerate().skip(index + 1);
            later.filter(|(_, change)| is_sync(change)).map(|(index, _)| index + 1).next().unwrap_or(usize::MAX)
        };
        // The name that a folder had is gone for certain, and with it all that was in it.
        let gone = |folder: Node| {
            let unlinked = self.log.iter().enumerate().find_map(|(index, change)| match change {
                Change::Unlink { folder: above, node, .. } if *node == folder => Some((index, *above)),
                _ => None,
            });
            unlinked.map_or(usize::MAX, |(index, above)| {
                synced_after(index, &|change| matches!(change, Change::SyncFolder(node) if *node == above))
            })
        };
        let of_change = |(index, change): (usize, &Change)| match change {
            Change::Link { folder, .. } | Change::Move { folder, .. } | Change::Unlink { folder, .. } => {
                let synced =
                    synced_after(index, &|change| matches!(change, Change::SyncFolder(node) if node == folder));
                synced.min(gone(*folder))
            }
            Change::Grow { file, .. } | Change::Data { file, .. } => {
                synced_after(index, &|change| matches!(change, Change::SyncFile(node) if node == file))
            }
            Change::Lost | Change::SyncFile(_) | Change::SyncFolder(_) => 0,
        };
        self.log.iter().enumerate().map(of_change).collect()
    }
}

/// Makes a change, which may refer to what was lost.
fn apply(nodes: &mut [Content], change: &Change) {
    match change {
        Change::Link { folder, name, node } => {
            names(nodes, *folder).insert(name.clone(), *node);
        }
        Change::Move { folder, from, to, node } => {
            let names = names(nodes, *folder);
            names.remove(from);
            names.insert(to.clone(), *node);
        }
        Change::Unlink { folder, name, .. } => {
            names(nodes, *folder).remove(name);
        }
        Change::Grow { file, bytes } => {
            let content = bytes_of(nodes, *file);
            content.resize(content.len().max(*bytes), 0);
        }
        // Beyond the size of the file nothing is kept.
        Change::Data { file, offset, bytes } => {
            if let Some(part) = bytes_of(nodes, *file).get_mut(*offset..*offset + bytes.len()) {
                part.copy_from_slice(bytes);
            }
        }
        Change::Lost | Change::SyncFile(_) | Change::SyncFolder(_) => {}
    }
}

fn names(nodes: &mut [Content], folder: Node) -> &mut BTreeMap<String, Node> {
    match &mut nodes[folder] {
        Content::Folder(names) => names,
        Content::File(_) => panic!("a file, not a folder"),
    }
}

fn bytes_of(nodes: &mut [Content], file: Node) -> &mut Vec<u8> {
    match &mut nodes[file] {
        Content::File(bytes) => bytes,
        Content::Folder(_) => panic!("a folder, not a file"),
    }
}

impl Disk for Simulated {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.operation()?;
        let file = self.make(path, Content::File(Vec::new()))?;
        Ok(Box::new(OpenFile { disk: self.clone(), file }))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        self.make(path, Content::Folder(BTreeMap::new())).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operation()?;
        let mut state = self.0.borrow_mut();
        let (folder, from) = state.place(from)?;
        let (to_folder, to) = state.place(to)?;
        assert_eq!(folder, to_folder, "renames stay in their folder");
        let node = *state.folder(folder).get(&from).ok_or_else(not_found)?;
        if let Some(replaced) = state.folder(folder).get(&to)
            && let Content::Folder(names) = &state.nodes[*replaced]
            && !names.is_empty()
        {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        state.change(Change::Move { folder, from, to, node });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        self.unlink(path)
    }

    fn remove_empty_folder(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        let is_empty = {
            let state = self.0.borrow();
            state.folder(state.node(path)?).is_empty()
        };
        if is_empty { self.unlink(path) } else { Err(ErrorKind::DirectoryNotEmpty.into()) }
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        for name in self.names(path)? {
            self.remove_file(&path.join(name))?;
        }
        self.remove_empty_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        let mut state = self.0.borrow_mut();
        let node = state.node(path)?;
        if state.ignored != Ignored::Folders {
            state.change(Change::SyncFolder(node));
        }
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.borrow().node(path).is_ok()
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.operation()?;
        let state = self.0.borrow();
        Ok(state.folder(state.node(folder)?).keys().cloned().collect())
    }

    fn read(&self, path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
        let read = || {
            self.operation()?;
            let state = self.0.borrow();
            match &state.nodes[state.node(path)?] {
                Content::File(bytes) => Ok(bytes.clone()),
                Content::Folder(_) => Err(ErrorKind::IsADirectory.into()),
            }
        };
        let bytes = read().map_err(|error| Error::read(path, &error))?;
        let fits = bytes.len() as u64 <= max_bytes;
        if fits { Ok(bytes) } else { Err(Error::input(path, "is larger than the limit")) }
    }
}

impl Write for OpenFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let half = bytes.len().div_ceil(2);
        let (taken, said) = match self.disk.failure() {
            None => (bytes.len(), bytes.len()),
            Some(Failure::Code(code)) => return Err(io::Error::from_raw_os_error(code)),
            Some(Failure::ShortWrite) => (half, half),
            Some(Failure::LyingWrite) => (half, bytes.len()),
        };
        let mut state = self.disk.0.borrow_mut();
        let file = self.file;
        let start = bytes_of(&mut state.nodes, file).len();
        state.change(Change::Grow { file, bytes: start + taken });
        // Two parts, so that a write can be torn.
        let middle = taken / 2;
        for (offset, part) in [(start, &bytes[..middle]), (start + middle, &bytes[middle..taken])] {
            if !part.is_empty() {
                state.change(Change::Data { file, offset, bytes: part.to_vec() });
            }
        }
        Ok(said)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for OpenFile {
    fn sync(&mut self) -> io::Result<()> {
        let synced = self.disk.operation();
        let mut state = self.disk.0.borrow_mut();
        let own = self.file;
        if synced.is_ok() {
            if state.ignored != Ignored::Files {
                state.change(Change::SyncFile(own));
            }
            return Ok(());
        }
        // The pages count as clean from now on: no later sync writes them.
        let since = state.log.iter().rposition(|change| matches!(change, Change::SyncFile(file) if *file == own));
        for change in state.log.iter_mut().skip(since.map_or(0, |index| index + 1)) {
            if matches!(change, Change::Data { file, .. } if *file == own) {
                *change = Change::Lost;
            }
        }
        synced
    }

    fn bytes(&self) -> io::Result<u64> {
        self.disk.operation()?;
        let mut state = self.disk.0.borrow_mut();
        Ok(bytes_of(&mut state.nodes, self.file).len() as u64)
    }
}
