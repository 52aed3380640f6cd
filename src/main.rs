//! The `burnish` program: parses, runs, reports what went wrong, and sets the exit code (`burnish::cli`).

use std::process::ExitCode;

/// The system's allocator hands large buffers back and forth with the kernel at every step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps freed memory for the next step rather than giving its pages back: a step needs the same buffers again, and
/// fresh pages cost a fifth of its time (docs/performance.md).
fn keep_freed_memory() {
    // `mi_option_purge_delay` in mimalloc.h; -1 is never.
    const PURGE_DELAY: i32 = 15;
    // SAFETY: sets a number in the allocator's own table.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

fn main() -> ExitCode {
    keep_freed_memory();
    burnish::cli::main()
}
