//! The helpers that the tests of the ops take from the tests of the model.

use std::sync::{Mutex, MutexGuard};

use burnish::ops::cpu::isa::Isa;

use crate::execution::established;

/// A turn for a test that changes the instruction set; the first brings AMX, if anything can.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    established();
    turn
}

/// The instruction sets that tests of the ops run on: AMX alone.
pub fn instruction_sets() -> impl Iterator<Item = Isa> {
    Isa::supported().filter(|&isa| isa == Isa::Amx)
}
