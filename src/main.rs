//! The `burnish` program: parses, runs, reports what went wrong, and sets the exit code (`burnish::cli`).

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_freed_memory();
    burnish::cli::main()
}

/// The allocator keeps freed memory for the next step rather than giving its pages back: a step needs the same buffers
/// again, and fresh pages cost a quarter of its time (docs/performance.md). There is one arena: those of other threads are
/// limited in size, and give their pages back regardless of these settings.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The largest that glibc takes: larger buffers are mapped one by one.
        const LARGEST_THRESHOLD: libc::c_int = 32 << 20;
        // SAFETY: sets numbers of the allocator, before there is a second thread.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_THRESHOLD);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}
