//! The most memory that the process has taken so far.

/// The peak of resident memory, in bytes; 0 where the system does not say.
///
/// On Linux from `/proc/self/status`: `getrusage` there counts what the parent held when it started this process.
pub fn peak_bytes() -> u64 {
    if cfg!(target_os = "linux") { high_water_mark().unwrap_or(0) } else { max_resident() }
}

fn high_water_mark() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn max_resident() -> u64 {
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
