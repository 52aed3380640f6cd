//! Settings of the allocator of the system (glibc's; elsewhere nothing is set).

/// Lets the allocator keep freed memory for the next step rather than give its pages back: a step needs the same buffers
/// again, and fresh pages cost a quarter of its time (docs/performance.md). Called by the program before there is a second
/// thread. Threads keep arenas of their own: in one for all, those that encode text waited for each other two thirds of the time.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The largest that glibc takes: larger buffers are mapped one by one.
        const LARGEST_THRESHOLD: libc::c_int = 32 << 20;
        // SAFETY: sets numbers of the allocator.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_THRESHOLD);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}

/// Gives freed memory back to the system, between two parts of a job that need different buffers.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: has no conditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
