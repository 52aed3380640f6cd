//! The executor of the instructions of AMX while these tests run.

use std::io::Write;
use std::sync::LazyLock;

use burnish::ops::cpu::isa::{AmxSupport, Isa};

use crate::emulator;

/// The executor of the instructions of AMX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// The processor: nothing is emulated.
    Processor,
    /// The handler of the illegal instructions that AMX is made of here.
    Emulator,
    /// No one, for this reason.
    Nobody(&'static str),
}

/// Decides who executes them.
///
/// Emulation needs every instruction of AMX to be illegal. Where the operating system has enabled tile registers, the
/// processor loads their configuration itself, and an emulator that sees only what follows is lost. AVX512-BF16 comes with
/// AMX and does what AMX is not used for.
pub fn execution(support: AmxSupport, has_avx512_bf16: bool) -> Execution {
    match support {
        _ if !has_avx512_bf16 => Execution::Nobody("the processor has no AVX512-BF16, which AMX comes with"),
        AmxSupport::Works => Execution::Processor,
        AmxSupport::Absent => Execution::Emulator,
        AmxSupport::Unusable(reason) => Execution::Nobody(reason),
    }
}

/// Decides once, and installs the emulator if it is needed. Where nothing can run, it says so on the real standard error,
/// past the capture of the test harness.
pub fn established() -> Execution {
    static EXECUTION: LazyLock<Execution> = LazyLock::new(|| {
        let execution = execution(Isa::amx_support(), is_x86_feature_detected!("avx512bf16"));
        match execution {
            Execution::Processor => {}
            Execution::Emulator => {
                emulator::install();
                // SAFETY: the emulator answers.
                unsafe { Isa::assume_amx() };
            }
            Execution::Nobody(reason) => {
                let line = format!("NOT RUN: the kernels of AMX were not tested, since {reason}\n");
                std::io::stderr().write_all(line.as_bytes()).expect("standard error");
            }
        }
        execution
    });
    *EXECUTION
}

#[test]
fn the_processor_executes_what_it_can_and_only_what_is_illegal_is_emulated() {
    for (support, has_avx512_bf16, expected) in [
        (AmxSupport::Works, true, Execution::Processor),
        (AmxSupport::Absent, true, Execution::Emulator),
        // Loading a configuration would pass, the tile load after it trap.
        (AmxSupport::Unusable("no permission"), true, Execution::Nobody("no permission")),
    ] {
        assert_eq!(execution(support, has_avx512_bf16), expected);
    }
    for support in [AmxSupport::Works, AmxSupport::Absent, AmxSupport::Unusable("no permission")] {
        assert!(matches!(execution(support, false), Execution::Nobody(_)), "{support:?}");
    }
}
