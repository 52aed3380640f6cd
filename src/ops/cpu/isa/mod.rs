//! The instruction set of the kernels: found at start, by the processor and its vendor, or chosen by `BURNISH_ISA`.

pub(crate) mod detect;

#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

pub use self::detect::AmxSupport;
#[cfg(target_arch = "x86_64")]
pub use self::detect::{amx_multiplies, amx_multiplies_bytes};

use crate::error::{Error, Result};

/// Set by [`Isa::assume_amx`].
static AMX_IS_ASSUMED: AtomicBool = AtomicBool::new(false);

/// The one in use, plus one; 0 until it is first asked for.
static CURRENT: AtomicU8 = AtomicU8::new(0);

/// Instruction sets with kernels of their own, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any processor.
    Portable,
    /// AVX2 and FMA, f32.
    Avx2,
    /// AVX-512 F/BW/DQ/VL, f32.
    Avx512,
    /// AVX-512 with `vdpbf16ps`: bf16 products, f32 sums.
    Avx512Bf16,
    /// Tile products of AMX-BF16 (with AVX-512-BF16 for the edges).
    Amx,
}

impl Isa {
    /// Every instruction set, weakest first.
    pub const ALL: [Isa; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The value of `BURNISH_ISA` that chooses it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// Has instructions that multiply bf16 pairs; without them bf16 is widened to f32 on the fly.
    pub fn multiplies_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// Frozen weights in bf16 are packed as bf16, whether they are multiplied so or widened by the kernel.
    pub fn packs_bf16(self) -> bool {
        self >= Self::Avx512
    }

    /// The best that this machine has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let best = detect::without_amx();
            let has_amx = || AMX_IS_ASSUMED.load(Ordering::Relaxed) || Self::amx_support() == AmxSupport::Works;
            if best == Self::Avx512Bf16 && has_amx() { Self::Amx } else { best }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Portable
    }

    /// The one that is used unless another is asked for.
    pub fn preferred() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            Self::best().preferred_by(detect::is_intel())
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::best()
    }

    /// The fastest of those up to `self`, the best of a processor. Intel's multiply pairs of bf16 without AMX at half the rate of f32
    /// (docs/performance.md), AMD's at twice that rate.
    fn preferred_by(self, is_intel: bool) -> Self {
        if self == Self::Avx512Bf16 && is_intel { Self::Avx512 } else { self }
    }

    /// Whether this process can use AMX-BF16. The first call asks the operating system for the permission.
    pub fn amx_support() -> AmxSupport {
        #[cfg(target_arch = "x86_64")]
        {
            static SUPPORT: LazyLock<AmxSupport> = LazyLock::new(detect::amx);
            *SUPPORT
        }
        #[cfg(not(target_arch = "x86_64"))]
        AmxSupport::Absent
    }

    /// Whether products of bytes run on tiles: AMX is in use, and the processor has AMX-INT8 and the instructions beside it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn multiplies_bytes_in_tiles() -> bool {
        static WORKS: LazyLock<bool> = LazyLock::new(|| {
            let is_there = detect::has_amx_int8() || AMX_IS_ASSUMED.load(Ordering::Relaxed);
            // SAFETY: AMX is in use, so it is permitted, and the processor or something else executes AMX-INT8.
            is_there && is_x86_feature_detected!("avx512vnni") && unsafe { amx_multiplies_bytes() }
        });
        Self::current() == Self::Amx && *WORKS
    }

    /// Takes AMX for available from now on wherever there is AVX512-BF16, even if the processor does not offer it.
    ///
    /// # Safety
    /// Something answers to the instructions of AMX: the tests emulate them.
    pub unsafe fn assume_amx() {
        AMX_IS_ASSUMED.store(true, Ordering::Relaxed);
    }

    /// Those this machine runs, weakest first.
    pub fn supported() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|&isa| isa <= Self::best())
    }

    /// The one in use: the preferred one, or the one that `BURNISH_ISA` or [`Isa::choose`] names.
    #[inline]
    pub fn current() -> Self {
        match CURRENT.load(Ordering::Relaxed) {
            0 => Self::from_environment(),
            chosen => Self::ALL[usize::from(chosen) - 1],
        }
    }

    /// Uses `self`, or the best there is if that is less, from now on in every thread.
    pub fn choose(self) {
        CURRENT.store(self.min(Self::best()) as u8 + 1, Ordering::Relaxed);
    }

    /// Whether `BURNISH_ISA` names an instruction set, if it is set.
    ///
    /// # Errors
    /// Input: it names none.
    pub fn check_environment() -> Result<()> {
        let Some(name) = std::env::var_os("BURNISH_ISA") else { return Ok(()) };
        if Self::ALL.into_iter().any(|isa| name == isa.name()) {
            return Ok(());
        }
        let known = Self::ALL.map(Self::name).join(", ");
        Err(Error::input("BURNISH_ISA", format!("is `{}`; known are {known}", name.display())))
    }

    #[cold]
    fn from_environment() -> Self {
        let named = std::env::var("BURNISH_ISA").ok();
        let wanted = named.and_then(|name| Self::ALL.into_iter().find(|isa| isa.name() == name));
        wanted.unwrap_or_else(Self::preferred).choose();
        Self::current()
    }
}

/// Defines an element-wise function once and compiles it for AVX-512, AVX2 and the baseline; the call picks
/// by [`Isa::current`]. The body must be plain loops that the compiler vectorises; what it calls must be inlined always.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?)
     $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$generic>)? ($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$generic>)? ($($arg),*) }
                let isa = $crate::ops::cpu::isa::Isa::current();
                if isa >= $crate::ops::cpu::isa::Isa::Avx512 {
                    // SAFETY: the processor has AVX-512: `current` never exceeds what it reports.
                    return unsafe { avx512 $(::<$generic>)? ($($arg),*) };
                }
                if isa >= $crate::ops::cpu::isa::Isa::Avx2 {
                    // SAFETY: the processor has AVX2: `current` never exceeds what it reports.
                    return unsafe { avx2 $(::<$generic>)? ($($arg),*) };
                }
            }
            body $(::<$generic>)? ($($arg),*)
        }
    };
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn intel_without_amx_widens_and_everything_else_is_used_as_far_as_it_goes() {
        assert_eq!(Isa::Avx512Bf16.preferred_by(true), Isa::Avx512);
        assert_eq!(Isa::Avx512Bf16.preferred_by(false), Isa::Avx512Bf16);
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx] {
            assert!([true, false].iter().all(|&is_intel| isa.preferred_by(is_intel) == isa));
        }
        assert!(Isa::preferred() <= Isa::best());
    }
}
