//! The `burnish` program: parses, runs, reports what went wrong, and sets the exit code (`burnish::cli`).

use std::process::ExitCode;

/// The system's allocator hands large buffers back and forth with the kernel at every step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    burnish::cli::main()
}
