//! The `burnish` program: parses, runs, reports what went wrong, and sets the exit code (`burnish::cli`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;

fn main() -> ExitCode {
    burnish::allocator::keep_freed_memory();
    burnish::cli::main()
}

#[global_allocator]
static ALLOCATOR: Reporting = Reporting;

/// The allocator of the system. Where it has no memory left, the program ends with an error that says so; the standard library
/// would abort.
struct Reporting;

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Reporting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller vouches.
        had(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller vouches.
        had(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as the caller vouches.
        had(unsafe { System.realloc(memory, layout, bytes) }, bytes)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The memory, if there is some.
fn had(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() { end_without_memory(bytes) } else { memory }
}

/// Reports the failure and ends the program; nothing here allocates. What is on the disk is whole.
#[cold]
fn end_without_memory(bytes: usize) -> ! {
    use std::io::Write;
    let mut text = [0; 320];
    let mut rest = &mut text[..];
    let _ = write!(
        rest,
        "error: out of memory: {bytes} bytes could not be had\n  hint: `burnish train --max-memory SIZE` makes a run fit into less \
         and trains the same; `--resume` goes on with a run that has begun\n"
    );
    let unused = rest.len();
    let written = text.len() - unused;
    #[cfg(unix)]
    // SAFETY: writes initialised memory and ends the process, without the handlers that might allocate.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), written);
        libc::_exit(1)
    }
    #[cfg(not(unix))]
    {
        let _ = std::io::stderr().write_all(&text[..written]);
        std::process::exit(1)
    }
}
