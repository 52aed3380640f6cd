//! What the tests of the ops take from the tests of the model.

use std::sync::{Mutex, MutexGuard};

use burnish::ops::cpu::amx;
use burnish::ops::cpu::isa::Isa;

use crate::emulator;

/// A turn for a test that changes the instruction set; the first brings AMX.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    emulator::install();
    // SAFETY: the emulator answers, or the processor does.
    unsafe { amx::assume_available() };
    turn
}

/// Those that tests of the ops run: AMX, where the processor has what comes with it.
pub fn instruction_sets() -> impl Iterator<Item = Isa> {
    Isa::supported().filter(|&isa| isa == Isa::Amx)
}
