//! Products of bf16 with the tile registers of Intel AMX (Intel Architecture Instruction Set Extensions, chapter 3).
//!
//! There are eight registers of 16 rows of 64 bytes each. `TDPBF16PS` multiplies 16 rows of 32 numbers by 16 units of 16 columns, in the
//! layout of half a panel. Four registers hold the sums of 32 rows and 32 columns; two registers are for each factor. The compiler has no
//! stable intrinsics for these instructions, so this module uses assembly.

use std::{arch::asm, sync::OnceLock};

use super::{
    PANEL,
    tile::{AMX_ROWS, Tile},
};

/// Number of units in a row of a register.
const UNITS: usize = 16;

/// True if the CPU has these instructions and the operating system lets this process use them. The first call requests permission.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    // Miri cannot run assembly, which CPUID needs, too.
    if cfg!(miri) {
        return false;
    }
    *AVAILABLE.get_or_init(|| {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const LEAF: u32 = 7;
        const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        const REQUEST_PERMISSION: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        if __cpuid(0).eax < LEAF {
            return false;
        }
        let supported = __cpuid_count(LEAF, 0).edx & BF16_AND_TILE == BF16_AND_TILE;
        // SAFETY: the call only changes the permissions of this process. It fails if the operating system does not
        // support it, or does not save the tile registers.
        supported && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
    })
}

/// The operand of `LDTILECFG`: palette 1, with 16 rows of 64 bytes in each of the eight registers.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Configures this thread's tile registers, and releases them when dropped.
pub(super) struct TileGuard;

impl TileGuard {
    /// Configures the registers.
    ///
    /// # Safety
    /// [`is_available`] must have returned true.
    pub(super) unsafe fn new() -> Self {
        // SAFETY: the CPU has the instruction, and every CPU with AMX supports this configuration.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags))
        };
        Self
    }
}

impl Drop for TileGuard {
    fn drop(&mut self) {
        // SAFETY: the CPU has the instruction, as `new` required.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Computes a tile of [`AMX_ROWS`] rows, those of two registers, whose depth is a multiple of [`UNITS`]. The units of a row of `a` must be
/// contiguous.
///
/// # Safety
/// As [`Factor::run`](super::Factor::run); this thread must also hold a [`TileGuard`].
pub(super) unsafe fn run(tile: &Tile<u32, f32>) {
    let row = tile.strides.row * size_of::<u32>();
    let width = tile.width * size_of::<f32>();
    let units = tile.panel.len() / PANEL;
    assert!(tile.rows == AMX_ROWS && units > 0 && units.is_multiple_of(UNITS) && tile.strides.col == 1);
    let (a, c) = (tile.a, tile.c);
    // SAFETY: the caller guarantees that the rows of `a` and `c` are in bounds; the panel has `units` rows.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c0} + {width}]",
            "tileloadd tmm1, [{c0} + {width} + 64]",
            "tileloadd tmm2, [{c1} + {width}]",
            "tileloadd tmm3, [{c1} + {width} + 64]",
            "3:",
            "tileloadd tmm4, [{a0} + {row}]",
            "tileloadd tmm6, [{b} + {panel}]",
            "tileloadd tmm7, [{b} + {panel} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a1} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 64",
            "add {a1}, 64",
            "add {b}, {step}",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c0} + {width}], tmm0",
            "tilestored [{c0} + {width} + 64], tmm1",
            "tilestored [{c1} + {width}], tmm2",
            "tilestored [{c1} + {width} + 64], tmm3",
            a0 = inout(reg) a => _,
            a1 = inout(reg) a.wrapping_add(UNITS * tile.strides.row) => _,
            b = inout(reg) tile.panel.as_ptr() => _,
            steps = inout(reg) units / UNITS => _,
            c0 = in(reg) c,
            c1 = in(reg) c.wrapping_add(UNITS * tile.width),
            row = in(reg) row,
            panel = in(reg) PANEL * size_of::<u32>(),
            width = in(reg) width,
            add = in(reg) u32::from(tile.add),
            step = const UNITS * PANEL * size_of::<u32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
