//! A reader of the entropy-coded data of a JPEG scan, bit by bit, up to the next marker.

use super::jpeg::{CodeStep, ScanError, Table};

/// The lowest bit of each byte.
const LOWEST: u64 = 0x0101_0101_0101_0101;

/// A position in the data.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Index of the next byte to read.
    at: usize,
    /// Next bits, the first one uppermost.
    buffer: u64,
    /// Number of valid bits in the buffer.
    count: u32,
}

impl<'a> BitReader<'a> {
    /// Creates a reader of the data in `bytes` that begin at `at`.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, buffer: 0, count: 0 }
    }

    /// Returns the end of the bytes that were read: the position of a marker, once all data were read.
    pub(super) fn byte_position(&self) -> usize {
        self.at
    }

    /// Fills the buffer with at least 32 bits, if there are as many before the next marker.
    #[inline]
    fn fill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(eight) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk) {
            let word = u64::from_be_bytes(*eight);
            // A byte is 0xff if its complement is 0, and this finds a zero byte.
            let zero = !word;
            if zero.wrapping_sub(LOWEST) & word & (LOWEST << 7) == 0 {
                // Bits beyond the valid ones are the following bits of the data, too.
                self.buffer |= word >> self.count;
                let bytes = (64 - self.count) / 8;
                self.at += bytes as usize;
                self.count += 8 * bytes;
                return;
            }
        }
        self.fill_slowly();
    }

    #[cold]
    fn fill_slowly(&mut self) {
        while self.count <= 56 {
            let Some(&byte) = self.bytes.get(self.at) else { return };
            let last = match byte {
                // In the data, a 0 byte follows 0xff.
                0xff => match self.marker() {
                    Some(last) if self.bytes[last] == 0 => last,
                    _ => return,
                },
                _ => self.at,
            };
            // The buffer may already hold bits of this byte: the same ones.
            self.buffer |= u64::from(byte) << 56 >> self.count;
            self.count += 8;
            self.at = last + 1;
        }
    }

    /// Decodes the next value with `table`.
    #[inline]
    pub(super) fn symbol(&mut self, table: &Table) -> Result<u8, ScanError> {
        self.fill();
        let short = table.short[(self.buffer >> (64 - Table::SHORT)) as usize];
        if short != 0 {
            self.drop(u32::from(short >> 8))?;
            return Ok(short as u8);
        }
        self.long_symbol(table)
    }

    fn long_symbol(&mut self, table: &Table) -> Result<u8, ScanError> {
        let next = (self.buffer >> 48) as u32;
        for length in Table::SHORT + 1..=16 {
            let (end, offset) = table.longer[length as usize];
            if next < end {
                let place = (next >> (16 - length)) as i32 + offset;
                self.drop(length)?;
                return table.values.get(place as usize).copied().ok_or(ScanError::Damaged);
            }
        }
        Err(if self.count < 16 { ScanError::Ended } else { ScanError::Damaged })
    }

    /// Skips the coefficients of a block of a sequential image except the first. `table` must be prepared.
    #[inline]
    pub(super) fn skip_block(&mut self, table: &Table) -> Result<(), ScanError> {
        let mut k = 1;
        while k < 64 {
            self.fill();
            let [one, all] = table.steps[(self.buffer >> (64 - Table::SHORT)) as usize];
            let step = match k + u32::from(all.coefficients) {
                0..64 if all.bits > 0 => all,
                _ if one.bits > 0 => one,
                _ => {
                    let step = CodeStep::of(self.long_symbol(table)?);
                    self.fill();
                    step
                }
            };
            self.drop(step.bits.into())?;
            if step.end {
                break;
            }
            k += u32::from(step.coefficients);
        }
        Ok(())
    }

    /// Takes the next `n` bits, at most 16, as a number.
    pub(super) fn take(&mut self, n: u32) -> Result<u32, ScanError> {
        self.fill();
        let value = if n == 0 { 0 } else { (self.buffer >> (64 - n)) as u32 };
        self.drop(n)?;
        Ok(value)
    }

    /// Skips `n` bits, at most 63.
    #[inline]
    pub(super) fn skip(&mut self, n: u32) -> Result<(), ScanError> {
        let mut left = n;
        while left > self.count {
            left -= self.count;
            (self.buffer, self.count) = (0, 0);
            self.fill();
            if self.count == 0 {
                return Err(ScanError::Ended);
            }
        }
        self.drop(left)
    }

    #[inline]
    fn drop(&mut self, n: u32) -> Result<(), ScanError> {
        if n > self.count {
            return Err(ScanError::Ended);
        }
        self.buffer = self.buffer.checked_shl(n).unwrap_or(0);
        self.count -= n;
        Ok(())
    }

    /// Continues behind the restart marker that must be next.
    pub(super) fn restart(&mut self) -> Result<(), ScanError> {
        self.fill();
        if self.at_restart() {
            self.at = self.marker().unwrap_or(self.at) + 1;
            (self.buffer, self.count) = (0, 0);
            return Ok(());
        }
        Err(if self.bytes.get(self.at).is_none_or(|&byte| byte == 0xff) {
            ScanError::Ended
        } else {
            ScanError::Damaged
        })
    }

    /// True if all data before the next marker have been read, and it is a restart marker.
    pub(super) fn at_restart(&self) -> bool {
        self.marker().is_some_and(|at| matches!(self.bytes[at], 0xd0..=0xd7))
    }

    /// Returns the position of the second byte of the marker that is next.
    fn marker(&self) -> Option<usize> {
        let rest = self.bytes.get(self.at..).filter(|rest| rest.first() == Some(&0xff))?;
        rest.iter().position(|&byte| byte != 0xff).map(|place| self.at + place)
    }
}
