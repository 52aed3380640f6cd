//! AMX-BF16 and a part of AMX-INT8 in software: a handler for the illegal instructions that its absence causes.
//!
//! A processor without AMX raises `SIGILL` at each of its instructions. The handler decodes the instruction that the
//! kernel was stopped at, does to memory and to tile registers of its own what the manual says, and goes on behind it.
//! Source: Intel, "Intel 64 and IA-32 Architectures SDM" vol. 2: VEX encoding, `LDTILECFG`, `TILELOADD`, `TILESTORED`,
//! `TILEZERO`, `TILERELEASE`, `TDPBF16PS`, `TDPBSUD`. Whatever the manual calls a fault ends the process with a message.

use std::cell::UnsafeCell;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tile products done so far, by every thread.
pub static PRODUCTS: AtomicU64 = AtomicU64::new(0);

const REGISTERS: usize = 8;
const ROWS: usize = 16;
const BYTES_PER_ROW: usize = 64;

type Register = [[u8; BYTES_PER_ROW]; ROWS];

/// The tile state of a thread.
struct Tiles {
    configured: bool,
    rows: [usize; REGISTERS],
    bytes_per_row: [usize; REGISTERS],
    registers: [Register; REGISTERS],
}

thread_local! {
    // Constant and without a destructor: reading it in a handler allocates nothing.
    static TILES: UnsafeCell<Tiles> = const {
        UnsafeCell::new(Tiles {
            configured: false,
            rows: [0; REGISTERS],
            bytes_per_row: [0; REGISTERS],
            registers: [[[0; BYTES_PER_ROW]; ROWS]; REGISTERS],
        })
    };
}

/// From now on the instructions work, in every thread.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and touches only its own thread's state.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "a handler for SIGILL");
    });
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands over the context of the thread that was stopped.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let code = |registers: &[libc::greg_t]| registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the processor stopped at readable code.
    if !unsafe { is_amx(code(registers)) } {
        fault("an illegal instruction that is not of AMX");
    }
    // The next one is often of AMX too: a signal less.
    // SAFETY: code goes on behind an instruction that is no jump; the tile state is this thread's.
    TILES.with(|tiles| unsafe {
        while is_amx(code(registers)) {
            registers[libc::REG_RIP as usize] += (*tiles.get()).execute(code(registers), registers) as libc::greg_t;
        }
    });
}

/// Whether the instruction at `code` is one of AMX: three-byte VEX (C4, then R̄X̄B̄ and the opcode map, then W, v̄v̄v̄v̄, L and
/// the prefix) with an opcode that is used by nothing else.
///
/// # Safety
/// `code` is readable.
unsafe fn is_amx(code: *const u8) -> bool {
    // SAFETY: as the caller vouches; each byte is looked at if the instruction has it.
    let byte = |at: usize| unsafe { *code.add(at) };
    byte(0) == 0xc4
        && byte(1) & 0x1f == 0b00010
        && byte(2) & 0b1000_0100 == 0
        && matches!(byte(3), 0x49 | 0x4b | 0x5c | 0x5e)
}

/// Ends the process; a panic cannot leave a handler.
fn fault(what: &str) -> ! {
    let text = ["emulated AMX: ", what, "\n"].concat();
    // SAFETY: writes a text that lives, then ends the process.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::abort()
    }
}

/// General registers by their number in an encoding.
const GENERAL: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// A memory operand: base, index times scale (the stride, to tile loads and stores), and where the instruction ends.
struct Operand {
    base: usize,
    stride: isize,
    length: usize,
}

impl Tiles {
    /// Executes the instruction at `code` and returns its length.
    ///
    /// # Safety
    /// `code` is readable and one of AMX ([`is_amx`]); its memory operands are what its program may touch.
    unsafe fn execute(&mut self, code: *const u8, registers: &[libc::greg_t]) -> usize {
        // SAFETY: as the caller vouches.
        let byte = |at: usize| unsafe { *code.add(at) };
        let (extend_index, extend_base) = (byte(1) & 0x40 == 0, byte(1) & 0x20 == 0);
        let second_source = usize::from(!(byte(2) >> 3) & 0xf);
        let (prefix, opcode, modrm) = (byte(2) & 0b11, byte(3), byte(4));
        let (mode, register, last) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
        const NONE: u8 = 0b00;
        const P66: u8 = 0b01;
        const F3: u8 = 0b10;
        const F2: u8 = 0b11;
        // SAFETY: code is readable.
        let operand = || unsafe { operand(code, extend_index, extend_base, registers) };
        match (prefix, opcode, mode) {
            (NONE, 0x49, 0b11) if modrm == 0xc0 => {
                self.configured = false;
                5
            }
            (NONE, 0x49, 0..=2) if register == 0 => {
                let operand = operand();
                // SAFETY: the operand of LDTILECFG is 64 bytes.
                self.configure(unsafe { std::slice::from_raw_parts(operand.base as *const u8, 64) });
                operand.length
            }
            (F2, 0x49, 0b11) if last == 0 => {
                self.check(register);
                self.registers[register] = [[0; BYTES_PER_ROW]; ROWS];
                5
            }
            (F2 | P66, 0x4b, 0..=2) if last == 0b100 => {
                self.check(register);
                let operand = operand();
                self.registers[register] = [[0; BYTES_PER_ROW]; ROWS];
                let count = self.bytes_per_row[register];
                for (index, row) in self.registers[register].iter_mut().take(self.rows[register]).enumerate() {
                    let at = operand.base.wrapping_add_signed(index as isize * operand.stride) as *const u8;
                    // SAFETY: a row of the operand.
                    unsafe { std::ptr::copy_nonoverlapping(at, row.as_mut_ptr(), count) };
                }
                operand.length
            }
            (F3, 0x4b, 0..=2) if last == 0b100 => {
                self.check(register);
                let operand = operand();
                let count = self.bytes_per_row[register];
                for (index, row) in self.registers[register].iter().take(self.rows[register]).enumerate() {
                    let at = operand.base.wrapping_add_signed(index as isize * operand.stride) as *mut u8;
                    // SAFETY: a row of the operand.
                    unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), at, count) };
                }
                operand.length
            }
            (F3, 0x5c, 0b11) => {
                self.multiply(register, last, second_source);
                5
            }
            (F3, 0x5e, 0b11) => {
                self.multiply_bytes(register, last, second_source);
                5
            }
            _ => fault("an instruction of AMX that the kernels should not use"),
        }
    }

    fn configure(&mut self, config: &[u8]) {
        if config[0] != 1 || config[1] != 0 || config[2..16].iter().any(|&byte| byte != 0) {
            fault("LDTILECFG: not palette 1 from row 0");
        }
        for register in 0..REGISTERS {
            let bytes = usize::from(u16::from_le_bytes([config[16 + 2 * register], config[17 + 2 * register]]));
            let rows = usize::from(config[48 + register]);
            if bytes > BYTES_PER_ROW || rows > ROWS || (bytes == 0) != (rows == 0) {
                fault("LDTILECFG: a register with too many rows or bytes");
            }
            (self.rows[register], self.bytes_per_row[register]) = (rows, bytes);
        }
        if config[32..48].iter().chain(&config[56..64]).any(|&byte| byte != 0) {
            fault("LDTILECFG: registers that there are not");
        }
        self.registers = [[[0; BYTES_PER_ROW]; ROWS]; REGISTERS];
        self.configured = true;
    }

    fn check(&self, register: usize) {
        if !self.configured || self.rows[register] == 0 {
            fault("a tile register that is not configured");
        }
    }

    /// The groups of four bytes in a row of `a`, and the columns of `b`, of a product that is counted.
    fn shapes(&self, sums: usize, a: usize, b: usize) -> (usize, usize) {
        if b >= REGISTERS || sums == a || sums == b || a == b {
            fault("a product of operands that are the same register, or none");
        }
        [sums, a, b].into_iter().for_each(|register| self.check(register));
        let (groups, columns) = (self.bytes_per_row[a] / 4, self.bytes_per_row[b] / 4);
        let fits = self.rows[b] == groups && self.rows[sums] == self.rows[a] && self.bytes_per_row[sums] == 4 * columns;
        if !fits {
            fault("a product of registers whose shapes do not fit");
        }
        PRODUCTS.fetch_add(1, Ordering::Relaxed);
        (groups, columns)
    }

    /// `TDPBSUD`: `sums += a · b` over groups of four bytes, those of `a` signed, those of `b` not.
    fn multiply_bytes(&mut self, sums: usize, a: usize, b: usize) {
        let (groups, columns) = self.shapes(sums, a, b);
        for row in 0..self.rows[a] {
            for column in 0..columns {
                let product = |at: usize| {
                    let left = i32::from(self.registers[a][row][at] as i8);
                    left * i32::from(self.registers[b][at / 4][4 * column + at % 4])
                };
                let sum: i32 = (0..4 * groups).map(product).sum();
                let bytes = &mut self.registers[sums][row].as_chunks_mut::<4>().0[column];
                *bytes = i32::from_le_bytes(*bytes).wrapping_add(sum).to_le_bytes();
            }
        }
    }

    /// `TDPBF16PS`: `sums += a · b` over pairs; denormals count as zero, each product and sum rounds to nearest.
    fn multiply(&mut self, sums: usize, a: usize, b: usize) {
        let (pairs, columns) = self.shapes(sums, a, b);
        // [pair][column]: the two halves of each pair of `b`.
        let mut right = [[[0f32; BYTES_PER_ROW / 4]; 2]; ROWS];
        for (pair, right) in right.iter_mut().enumerate().take(pairs) {
            for (half, right) in right.iter_mut().enumerate() {
                for (column, right) in right.iter_mut().enumerate().take(columns) {
                    *right = widen(&self.registers[b][pair][4 * column + 2 * half..]);
                }
            }
        }
        for row in 0..self.rows[a] {
            let mut halves = [[0f32; BYTES_PER_ROW / 4]; 2];
            for (pair, right) in right.iter().enumerate().take(pairs) {
                for (half, sums) in halves.iter_mut().enumerate() {
                    let left = widen(&self.registers[a][row][4 * pair + 2 * half..]);
                    for (sum, right) in sums.iter_mut().zip(&right[half]) {
                        *sum = flushed(*sum + left * right);
                    }
                }
            }
            for (column, bytes) in self.registers[sums][row].as_chunks_mut::<4>().0.iter_mut().enumerate().take(columns)
            {
                let before = flushed(f32::from_le_bytes(*bytes));
                let after = flushed(before + flushed(halves[0][column] + halves[1][column]));
                *bytes = after.to_le_bytes();
            }
        }
    }
}

/// The bf16 that starts `bytes`, denormals as zero.
fn widen(bytes: &[u8]) -> f32 {
    flushed(f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16))
}

fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0 } else { value }
}

/// The memory operand that starts with the ModRM byte at `code + 4`.
///
/// # Safety
/// `code` is readable.
unsafe fn operand(code: *const u8, extend_index: bool, extend_base: bool, registers: &[libc::greg_t]) -> Operand {
    // SAFETY: as the caller vouches.
    let byte = |at: usize| unsafe { *code.add(at) };
    let general =
        |number: u8, extended: bool| registers[GENERAL[usize::from(number) + 8 * usize::from(extended)] as usize];
    let (mode, last) = (byte(4) >> 6, byte(4) & 7);
    let mut length = 5;
    let mut stride = 0;
    let base = if last == 0b100 {
        let sib = byte(5);
        length = 6;
        let index = sib >> 3 & 7;
        if index != 0b100 || extend_index {
            stride = (general(index, extend_index) as isize) << (sib >> 6);
        }
        if sib & 7 == 0b101 && mode == 0 {
            fault("an operand without a base");
        }
        general(sib & 7, extend_base)
    } else if last == 0b101 && mode == 0 {
        fault("an operand relative to the instruction");
    } else {
        general(last, extend_base)
    };
    let displacement = match mode {
        1 => isize::from(byte(length) as i8),
        2 => {
            let bytes = [0, 1, 2, 3].map(|at| byte(length + at));
            i32::from_le_bytes(bytes) as isize
        }
        _ => 0,
    };
    length += [0, 1, 4][usize::from(mode)];
    Operand { base: (base as usize).wrapping_add_signed(displacement), stride, length }
}
