//! The nodes of a machine whose memory is nearer to some processors than to others (NUMA), as Linux describes them, and threads that
//! stay on one.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// A node: processors, and the memory that is near to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number.
    pub number: usize,
    /// The numbers of its processors that this process may run on, in order.
    pub processors: Vec<usize>,
}

/// The greatest number of a processor that a list is believed.
const MAX_PROCESSOR: usize = 1 << 16;

/// The nodes that this process may run on, in order; none where the system does not say.
pub fn nodes() -> Vec<Node> {
    nodes_under(Path::new("/sys"), &allowed_processors())
}

/// The nodes that the folder of a sysfs describes, without those of which no processor is `allowed`.
pub fn nodes_under(sysfs: &Path, allowed: &[usize]) -> Vec<Node> {
    let node = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let mut processors = numbers(fs::read_to_string(entry.path().join("cpulist")).ok()?.trim())?;
        processors.retain(|processor| allowed.contains(processor));
        (!processors.is_empty()).then_some(Node { number, processors })
    };
    let entries = fs::read_dir(sysfs.join("devices/system/node")).into_iter().flatten();
    let mut nodes: Vec<Node> = entries.filter_map(|entry| node(entry.ok()?)).collect();
    nodes.sort_by_key(|node| node.number);
    nodes
}

/// The numbers of a list as the kernel writes it, as in `0-3,8,10-11`; `None` for any other text.
fn numbers(list: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last > MAX_PROCESSOR {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// The node of each of `threads` threads, neighbours on one node, by the processors that the nodes have; none where there are not
/// several nodes.
pub fn places(nodes: &[Node], threads: usize) -> Vec<&Node> {
    if nodes.len() < 2 {
        return Vec::new();
    }
    let by_processor: Vec<&Node> =
        nodes.iter().flat_map(|node| std::iter::repeat_n(node, node.processors.len())).collect();
    (0..threads).map(|thread| by_processor[thread * by_processor.len() / threads]).collect()
}

/// The processors that this thread may run on; none where the system does not say.
#[cfg(target_os = "linux")]
pub fn allowed_processors() -> Vec<usize> {
    // SAFETY: the set is plain numbers.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes a set of the size given.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: the numbers lie within the set.
    (0..libc::CPU_SETSIZE as usize).filter(|processor| unsafe { libc::CPU_ISSET(*processor, &set) }).collect()
}

/// The processors that this thread may run on; none where the system does not say.
#[cfg(not(target_os = "linux"))]
pub fn allowed_processors() -> Vec<usize> {
    Vec::new()
}

/// Keeps the calling thread, and the threads that it starts, on these processors. Where the system refuses, they run anywhere.
#[cfg(target_os = "linux")]
pub fn stay_on(processors: &[usize]) {
    // SAFETY: the set is plain numbers.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for processor in processors.iter().filter(|processor| **processor < libc::CPU_SETSIZE as usize) {
        // SAFETY: the number lies within the set.
        unsafe { libc::CPU_SET(*processor, &mut set) };
    }
    // SAFETY: reads a set of the size given.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
}

/// Keeps the calling thread on these processors, where the system can.
#[cfg(not(target_os = "linux"))]
pub fn stay_on(_: &[usize]) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs of nodes with these lists of processors.
    #[expect(clippy::disallowed_methods, reason = "a test makes its input")]
    fn sysfs(lists: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (node, list) in lists {
            let folder = root.path().join("devices/system/node").join(node);
            fs::create_dir_all(&folder).expect("made");
            fs::write(folder.join("cpulist"), format!("{list}\n")).expect("written");
        }
        root
    }

    #[test]
    fn nodes_have_the_processors_that_the_process_may_run_on() {
        // Two sockets of four cores with two threads each, a node of memory alone, and a file beside them.
        let root = sysfs(&[("node1", "4-7,12-15"), ("node0", "0-3,8-11"), ("node2", ""), ("power", "0")]);
        let node = |number, processors: &[usize]| Node { number, processors: processors.to_vec() };
        let all: Vec<usize> = (0..16).collect();
        let both = [node(0, &[0, 1, 2, 3, 8, 9, 10, 11]), node(1, &[4, 5, 6, 7, 12, 13, 14, 15])];
        assert_eq!(nodes_under(root.path(), &all), both);
        // A container, or a launcher, gives a part of them.
        assert_eq!(nodes_under(root.path(), &[2, 3, 4]), [node(0, &[2, 3]), node(1, &[4])]);
        assert_eq!(nodes_under(root.path(), &[5, 6]), [node(1, &[5, 6])]);
        assert_eq!(nodes_under(&root.path().join("none"), &all), []);
        for broken in ["x", "3-", "0-99999999999", "1;2"] {
            assert_eq!(nodes_under(sysfs(&[("node0", broken)]).path(), &all), [], "{broken}");
        }
    }

    #[test]
    fn threads_go_to_nodes_in_order() {
        let node = |number, processors: std::ops::Range<usize>| Node { number, processors: processors.collect() };
        let numbers = |nodes: &[Node], threads| -> Vec<usize> {
            places(nodes, threads).into_iter().map(|node| node.number).collect()
        };
        let even = [node(0, 0..4), node(1, 4..8)];
        assert_eq!(numbers(&even, 8), [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(numbers(&even, 2), [0, 1]);
        assert_eq!(numbers(&even, 3), [0, 0, 1]);
        // A third of the processors gets a third of the threads.
        assert_eq!(numbers(&[node(2, 0..2), node(5, 2..6)], 3), [2, 5, 5]);
        assert_eq!(numbers(&even[..1], 4), [0; 0], "one node: threads go where they like");
        assert_eq!(numbers(&[], 4), [0; 0]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_stays_where_it_is_put() {
        let allowed = allowed_processors();
        let last = *allowed.last().expect("a processor");
        let stayed = std::thread::spawn(move || {
            stay_on(&[last]);
            allowed_processors()
        });
        assert_eq!(stayed.join().expect("it ends"), [last]);
        assert_eq!(allowed_processors(), allowed, "others run where they did");
    }
}
