//! How much memory the process has taken.

/// The most memory the process has had resident so far, in bytes; 0 where the system does not tell.
pub fn peak_bytes() -> u64 {
    // SAFETY: `getrusage` fills the structure it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &mut usage) != 0 {
            return 0;
        }
        usage
    };
    let peak = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    if cfg!(target_os = "macos") { peak } else { peak * 1024 }
}
