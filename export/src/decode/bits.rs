//! A reader of the entropy-coded data of a JPEG scan, bit by bit, up to the next marker.

use super::huffman::{CodeStep, ScanError, Table};

/// The lowest bit of each byte.
const LOW_BITS: u64 = 0x0101_0101_0101_0101;

/// Reads the data bit by bit.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Index of the next byte to read.
    position: usize,
    /// Next bits, the first one in the highest bit.
    buffer: u64,
    /// Number of valid bits in the buffer.
    count: u32,
}

impl<'a> BitReader<'a> {
    /// Creates a reader of the data in `bytes` that begin at `position`.
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position, buffer: 0, count: 0 }
    }

    /// Returns the position after the bytes that were read. After all data, it is the position of a marker.
    pub(super) fn byte_position(&self) -> usize {
        self.position
    }

    /// Fills the buffer with at least 32 bits, unless the next marker comes earlier.
    #[inline]
    fn fill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(next) = self.bytes.get(self.position..).and_then(<[u8]>::first_chunk) {
            let word = u64::from_be_bytes(*next);
            // A byte is 0xff if its complement is 0; the condition detects zero bytes.
            let complement = !word;
            if complement.wrapping_sub(LOW_BITS) & word & (LOW_BITS << 7) == 0 {
                // Bits beyond the valid ones are also the next bits of the data.
                self.buffer |= word >> self.count;
                let bytes = (64 - self.count) / 8;
                self.position += bytes as usize;
                self.count += 8 * bytes;
                return;
            }
        }
        self.fill_bytewise();
    }

    #[cold]
    fn fill_bytewise(&mut self) {
        while self.count <= 56 {
            let Some(&byte) = self.bytes.get(self.position) else { return };
            let last = match byte {
                // In the data, a 0 byte follows 0xff.
                0xff => match self.marker() {
                    Some(last) if self.bytes[last] == 0 => last,
                    _ => return,
                },
                _ => self.position,
            };
            // The buffer may already contain bits of this byte, with the same values.
            self.buffer |= u64::from(byte) << 56 >> self.count;
            self.count += 8;
            self.position = last + 1;
        }
    }

    /// Decodes the next value with `table`.
    #[inline]
    pub(super) fn symbol(&mut self, table: &Table) -> Result<u8, ScanError> {
        self.fill();
        let short = table.short[(self.buffer >> (64 - Table::SHORT)) as usize];
        if short != 0 {
            self.consume(u32::from(short >> 8))?;
            return Ok(short as u8);
        }
        self.long_symbol(table)
    }

    fn long_symbol(&mut self, table: &Table) -> Result<u8, ScanError> {
        let next = (self.buffer >> 48) as u32;
        for length in Table::SHORT + 1..=16 {
            let (end, offset) = table.longer[length as usize];
            if next < end {
                let index = (next >> (16 - length)) as i32 + offset;
                self.consume(length)?;
                return table.values.get(index as usize).copied().ok_or(ScanError::Damaged);
            }
        }
        Err(if self.count < 16 { ScanError::Ended } else { ScanError::Damaged })
    }

    /// Skips the coefficients of a block of a sequential image except the first. The steps of `table` must be filled in.
    #[inline]
    pub(super) fn skip_block(&mut self, table: &Table) -> Result<(), ScanError> {
        let mut k = 1;
        while k < 64 {
            self.fill();
            let [single, combined] = table.steps[(self.buffer >> (64 - Table::SHORT)) as usize];
            let step = match k + u32::from(combined.coefficients) {
                0..64 if combined.bits > 0 => combined,
                _ if single.bits > 0 => single,
                _ => {
                    let step = CodeStep::from_symbol(self.long_symbol(table)?);
                    self.fill();
                    step
                }
            };
            self.consume(step.bits.into())?;
            if step.end {
                break;
            }
            k += u32::from(step.coefficients);
        }
        Ok(())
    }

    /// Reads the next `n` bits, at most 16, as a number.
    pub(super) fn take(&mut self, n: u32) -> Result<u32, ScanError> {
        self.fill();
        let value = if n == 0 { 0 } else { (self.buffer >> (64 - n)) as u32 };
        self.consume(n)?;
        Ok(value)
    }

    /// Skips `n` bits, at most 63.
    #[inline]
    pub(super) fn skip(&mut self, n: u32) -> Result<(), ScanError> {
        let mut remaining = n;
        while remaining > self.count {
            remaining -= self.count;
            (self.buffer, self.count) = (0, 0);
            self.fill();
            if self.count == 0 {
                return Err(ScanError::Ended);
            }
        }
        self.consume(remaining)
    }

    #[inline]
    fn consume(&mut self, n: u32) -> Result<(), ScanError> {
        if n > self.count {
            return Err(ScanError::Ended);
        }
        self.buffer = self.buffer.checked_shl(n).unwrap_or(0);
        self.count -= n;
        Ok(())
    }

    /// Continues after the restart marker that must be next.
    pub(super) fn restart(&mut self) -> Result<(), ScanError> {
        self.fill();
        if self.is_at_restart() {
            self.position = self.marker().unwrap_or(self.position) + 1;
            (self.buffer, self.count) = (0, 0);
            return Ok(());
        }
        Err(if self.bytes.get(self.position).is_none_or(|&byte| byte == 0xff) {
            ScanError::Ended
        } else {
            ScanError::Damaged
        })
    }

    /// True if all data before the next marker have been read, and this marker is a restart marker.
    pub(super) fn is_at_restart(&self) -> bool {
        self.marker().is_some_and(|position| matches!(self.bytes[position], 0xd0..=0xd7))
    }

    /// Returns the position of the second byte of the marker that is next.
    fn marker(&self) -> Option<usize> {
        let rest = self.bytes.get(self.position..).filter(|rest| rest.first() == Some(&0xff))?;
        rest.iter().position(|&byte| byte != 0xff).map(|offset| self.position + offset)
    }
}
