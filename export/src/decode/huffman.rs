//! The Huffman tables of a JPEG file.

/// The reason why a scan could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanError {
    /// A marker, or the end of the file, comes before the last block.
    Ended,
    /// The data are invalid.
    Damaged,
}

/// A Huffman table.
pub(super) struct Table {
    /// The code's length in the upper byte and its value in the lower one, indexed by the next bits; 0 for longer codes.
    pub short: Vec<u16>,
    /// For each length, the first code that is longer, in 16 bits, and the offset from a code to its index in the values.
    pub longer: [(u32, i32); 17],
    /// The values, in the order of their codes.
    pub values: Vec<u8>,
    /// Effect on the coefficients of a sequential image, indexed by the next bits; filled when needed.
    pub steps: Vec<[CodeStep; 2]>,
}

/// The effect of some bits on the coefficients of a sequential image.
#[derive(Clone, Copy, Default)]
pub(super) struct CodeStep {
    /// Number of bits, with those of the coefficients; 0 for a code that is too long.
    pub bits: u8,
    /// Number of coefficients.
    pub coefficients: u8,
    /// True if the rest of the block is 0.
    pub end: bool,
}

impl CodeStep {
    /// Returns the effect of a table's value, without the bits of its code.
    pub(super) fn from_symbol(value: u8) -> Self {
        let (run, size) = (value >> 4, value & 15);
        Self { bits: size, coefficients: run + 1, end: size == 0 && run < 15 }
    }
}

impl Table {
    /// Number of bits that are looked up at once.
    pub const SHORT: u32 = 10;

    /// Builds a table from the number of codes of each length, 1 to 16 bits, and the values.
    pub(super) fn new(counts: &[u8; 16], values: &[u8]) -> Option<Self> {
        let (mut short, mut longer) = (vec![0; 1 << Self::SHORT], [(0, 0); 17]);
        let (mut code, mut index) = (0u32, 0usize);
        for (length, &count) in (1u32..).zip(counts) {
            longer[length as usize].1 = index as i32 - code as i32;
            for &value in values.get(index..index + usize::from(count))? {
                if code >> length != 0 {
                    return None;
                }
                if let Some(free_bits) = Self::SHORT.checked_sub(length) {
                    short[(code << free_bits) as usize..((code + 1) << free_bits) as usize]
                        .fill((length as u16) << 8 | u16::from(value));
                }
                code += 1;
            }
            index += usize::from(count);
            longer[length as usize].0 = code << (16 - length);
            code <<= 1;
        }
        Some(Self { short, longer, values: values.to_vec(), steps: Vec::new() })
    }

    /// Fills [`steps`](Self::steps). The first entry is the effect of one code, the second that of all codes that fit.
    pub(super) fn prepare(&mut self) {
        if !self.steps.is_empty() {
            return;
        }
        let code = |next: usize| {
            let short = self.short[next & ((1 << Self::SHORT) - 1)];
            let step = CodeStep::from_symbol(short as u8);
            if short == 0 {
                CodeStep::default()
            } else {
                CodeStep { bits: step.bits + (short >> 8) as u8, ..step }
            }
        };
        let step_pair = |next: usize| {
            let single = code(next);
            let mut combined = CodeStep::default();
            while !combined.end {
                // The bits shifted in are unknown: a code that includes them does not fit.
                let more = code(next << combined.bits);
                if more.bits == 0 || u32::from(combined.bits + more.bits) > Self::SHORT {
                    break;
                }
                let (bits, coefficients) =
                    (combined.bits + more.bits, combined.coefficients + more.coefficients);
                combined = CodeStep { bits, coefficients, end: more.end };
            }
            [single, if combined.bits == 0 { single } else { combined }]
        };
        self.steps = (0..1 << Self::SHORT).map(step_pair).collect();
    }
}
