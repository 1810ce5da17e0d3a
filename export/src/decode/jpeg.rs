//! The end of the first image of a JPEG file, and a check that its data are complete.
//!
//! Decoders silently fill missing data with gray, so this module scans the entropy-coded data. It reads and counts Huffman
//! codes, and computes no coefficients. It ignores everything after the first image, such as the video of a motion photo or the
//! further images of an MPO file.

use super::{
    MAX_PIXELS,
    bits::BitReader,
    huffman::{ScanError, Table},
};

/// Maximum number of scans; images with more are left to the decoder, which rejects them.
const MAX_SCANS: usize = 100;

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DHT: u8 = 0xc4;
const DRI: u8 = 0xdd;

/// The end of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Length of the image in bytes, with its end marker.
    pub end: usize,
    /// True if the end marker is present.
    pub has_end_marker: bool,
}

/// The completeness of an image's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completeness {
    /// All data of all components are present; the number of blocks of 64 coefficients.
    Complete(u64),
    /// The data end before the last block.
    Truncated,
    /// The data are damaged or of a kind that is not supported here, such as arithmetic coding.
    Unknown,
}

/// The segments of a file, and the data between them.
struct Segments<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Segments<'a> {
    /// Returns the next marker and its segment; `None` at the end of the file. Like other decoders, it skips bytes that are
    /// not part of a marker.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        loop {
            self.position += self.bytes.get(self.position..)?.iter().position(|&byte| byte == 0xff)?;
            self.position += self.bytes[self.position..].iter().position(|&byte| byte != 0xff)?;
            let marker = self.bytes[self.position];
            self.position += 1;
            match marker {
                0 => {}
                0x01 | 0xd0..=EOI => return Some((marker, &[])),
                _ => {
                    let length: [u8; 2] =
                        self.bytes.get(self.position..self.position + 2)?.try_into().ok()?;
                    let length = usize::from(u16::from_be_bytes(length));
                    let segment = self.bytes.get(self.position + 2..self.position + length.max(2))?;
                    self.position += length.max(2);
                    return Some((marker, segment));
                }
            }
        }
    }
}

/// Finds the end of the first image of the file `bytes`, from its markers.
pub(super) fn extent(bytes: &[u8]) -> Extent {
    let mut segments = Segments { bytes, position: 0 };
    let mut scans = 0;
    while let Some((marker, _)) = segments.next() {
        match marker {
            SOS => scans += 1,
            EOI => return Extent { end: segments.position, has_end_marker: true },
            // The next image begins.
            SOI if scans > 0 => return Extent { end: segments.position - 2, has_end_marker: false },
            _ => {}
        }
    }
    Extent { end: bytes.len(), has_end_marker: false }
}

/// Determines the completeness of the data of the image `bytes`. The time is proportional to the length of `bytes` and the number of
/// blocks. A progressive image needs 8 bytes of memory for each block.
pub(super) fn completeness(bytes: &[u8]) -> Completeness {
    let mut checker =
        ScanChecker { frame: None, dc: Default::default(), ac: Default::default(), interval: 0 };
    let mut segments = Segments { bytes, position: 0 };
    let mut scans = 0;
    while let Some((marker, segment)) = segments.next() {
        let supported = match marker {
            EOI => break,
            0xc0..=0xc2 if checker.frame.is_none() => checker.read_frame(marker == 0xc2, segment),
            DHT => checker.read_tables(segment),
            // Further frames, and those of lossless, hierarchical and arithmetic coding.
            0xc0..=0xcf => None,
            DRI => segment.first_chunk().map(|&interval| checker.interval = u16::from_be_bytes(interval)),
            SOS if scans == MAX_SCANS => None,
            SOS => {
                scans += 1;
                match checker.check_scan(segment, bytes, segments.position) {
                    Ok(end) => segments.position = end,
                    Err(ScanError::Ended) => return Completeness::Truncated,
                    Err(ScanError::Damaged) => return Completeness::Unknown,
                }
                Some(())
            }
            _ => Some(()),
        };
        if supported.is_none() {
            return Completeness::Unknown;
        }
    }
    match &checker.frame {
        Some(frame) if frame.components.iter().all(|component| component.missing == [0; 64]) => {
            Completeness::Complete(frame.components.iter().map(|c| (c.stride * c.rows) as u64).sum())
        }
        Some(_) => Completeness::Truncated,
        None => Completeness::Unknown,
    }
}

struct Component {
    id: u8,
    /// Sampling factors: the blocks of an MCU, horizontally and vertically.
    sampling: [usize; 2],
    /// Blocks that a non-interleaved scan codes, horizontally and vertically.
    noninterleaved_blocks: [usize; 2],
    /// Blocks of all MCUs, horizontally.
    stride: usize,
    /// Blocks of all MCUs, vertically.
    rows: usize,
    /// Number of missing bits for each coefficient, 255 for all.
    missing: [u8; 64],
    /// Coefficients that are known not to be 0, for each block of a progressive image.
    nonzero: Vec<u64>,
}

struct Frame {
    progressive: bool,
    /// MCUs, horizontally and vertically.
    mcus: [usize; 2],
    components: Vec<Component>,
}

struct ScanChecker {
    frame: Option<Frame>,
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    /// MCUs between restart markers; 0 for none.
    interval: u16,
}

/// The kind of a scan: the part of a block that it codes.
#[derive(Clone, Copy)]
enum ScanKind {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

impl ScanChecker {
    /// Reads a frame header. `None` here and in [`read_tables`](Self::read_tables) means that the image is not supported.
    fn read_frame(&mut self, progressive: bool, segment: &[u8]) -> Option<()> {
        let (&[8, h1, h0, w1, w0, count], rest) = segment.split_first_chunk()? else { return None };
        let (width, height) =
            (usize::from(w1) << 8 | usize::from(w0), usize::from(h1) << 8 | usize::from(h0));
        if width == 0 || height == 0 || (width * height) as u64 > MAX_PIXELS || !(1..=4).contains(&count) {
            return None;
        }
        let parts = rest.get(..3 * usize::from(count))?.chunks_exact(3);
        let mut components: Vec<Component> = parts
            .map(|part| Component {
                id: part[0],
                sampling: [usize::from(part[1] >> 4), usize::from(part[1] & 15)],
                noninterleaved_blocks: [0; 2],
                stride: 0,
                rows: 0,
                missing: [255; 64],
                nonzero: Vec::new(),
            })
            .collect();
        if components.iter().flat_map(|c| c.sampling).any(|n| !(1..=4).contains(&n)) {
            return None;
        }
        let max_sampling = |axis: usize| components.iter().map(|c| c.sampling[axis]).max();
        let (max_h, max_v) = (max_sampling(0)?, max_sampling(1)?);
        let mcus = [width.div_ceil(8 * max_h), height.div_ceil(8 * max_v)];
        for component in &mut components {
            let [h, v] = component.sampling;
            component.noninterleaved_blocks =
                [(width * h).div_ceil(8 * max_h), (height * v).div_ceil(8 * max_v)];
            (component.stride, component.rows) = (mcus[0] * h, mcus[1] * v);
            if progressive {
                component.nonzero = vec![0; component.stride * component.rows];
            }
        }
        self.frame = Some(Frame { progressive, mcus, components });
        Some(())
    }

    fn read_tables(&mut self, mut segment: &[u8]) -> Option<()> {
        while !segment.is_empty() {
            let (&id, rest) = segment.split_first()?;
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let (values, rest) = rest.split_at_checked(counts.iter().map(|&n| usize::from(n)).sum())?;
            let tables = if id >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(id & 15))? = Some(Table::new(counts, values)?);
            segment = rest;
        }
        Some(())
    }

    /// Checks the scan with this `header` and the data from `position`. Returns the end of the data.
    fn check_scan(&mut self, header: &[u8], bytes: &[u8], position: usize) -> Result<usize, ScanError> {
        let frame = self.frame.as_mut().ok_or(ScanError::Damaged)?;
        let (&count, rest) = header.split_first().ok_or(ScanError::Damaged)?;
        let (selectors, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or(ScanError::Damaged)?;
        let (&[start, end, bits], _) = rest.split_first_chunk().ok_or(ScanError::Damaged)?;
        let (high, low) = (bits >> 4, bits & 15);
        let (start, end, low, kind) = match (frame.progressive, start, high) {
            // Some programs write other values for sequential images.
            (false, ..) => (0, 63, 0, ScanKind::Sequential),
            (true, 0, 0) => (0, 0, low, ScanKind::DcFirst),
            (true, 0, _) => (0, 0, low, ScanKind::DcRefine),
            (true, _, 0) => (start, end, low, ScanKind::AcFirst),
            (true, _, _) => (start, end, low, ScanKind::AcRefine),
        };
        if end < start || end > 63 || count == 0 || (start > 0 && count > 1) {
            return Err(ScanError::Damaged);
        }
        if !frame.progressive {
            self.ac.iter_mut().flatten().for_each(Table::prepare);
        }
        let mut parts: Vec<ScanComponent> = Vec::new();
        for pair in selectors.chunks_exact(2) {
            let index = frame.components.iter().position(|c| c.id == pair[0]).ok_or(ScanError::Damaged)?;
            let component = &mut frame.components[index];
            let [dc, ac] = [pair[1] >> 4, pair[1] & 15].map(usize::from);
            // The bits that this scan adds are no longer missing.
            component.missing[usize::from(start)..=usize::from(end)].fill(low);
            parts.push(ScanComponent {
                dc: self.dc.get(dc).and_then(Option::as_ref),
                ac: self.ac.get(ac).and_then(Option::as_ref),
                blocks: if count == 1 { [1, 1] } else { component.sampling },
                stride: component.stride,
                nonzero: std::mem::take(&mut component.nonzero),
                index,
            });
        }
        let [columns, rows] =
            if count == 1 { frame.components[parts[0].index].noninterleaved_blocks } else { frame.mcus };
        let mut bits = BitReader::new(bytes, position);
        let band = Band { kind, start: start.into(), end: end.into() };
        let result = band.check(&mut bits, &mut parts, [columns, rows], self.interval.into());
        for part in parts {
            frame.components[part.index].nonzero = part.nonzero;
        }
        result.map(|()| bits.byte_position())
    }
}

/// A component of a scan.
struct ScanComponent<'a> {
    dc: Option<&'a Table>,
    ac: Option<&'a Table>,
    /// Blocks of an MCU, horizontally and vertically.
    blocks: [usize; 2],
    /// Blocks of all MCUs of the component, horizontally.
    stride: usize,
    nonzero: Vec<u64>,
    /// Index of the component.
    index: usize,
}

/// The coefficients that a scan codes.
struct Band {
    kind: ScanKind,
    start: u32,
    end: u32,
}

impl Band {
    fn check(
        &self,
        bits: &mut BitReader,
        parts: &mut [ScanComponent],
        [columns, rows]: [usize; 2],
        interval: usize,
    ) -> Result<(), ScanError> {
        let mut remaining = interval;
        // `skip` counts blocks without coded data; `lost` is true if the rest of a restart interval is lost.
        let (mut skip, mut lost) = (0, false);
        for row in 0..rows {
            for column in 0..columns {
                if interval > 0 {
                    if remaining == 0 {
                        bits.restart()?;
                        (remaining, skip, lost) = (interval, 0, false);
                    }
                    remaining -= 1;
                }
                if lost {
                    continue;
                }
                match self.check_mcu(bits, parts, [column, row], &mut skip) {
                    // Damage within an interval does not mean that the end is missing.
                    Err(ScanError::Ended) if interval > 0 && bits.is_at_restart() => lost = true,
                    result => result?,
                }
            }
        }
        Ok(())
    }

    fn check_mcu(
        &self,
        bits: &mut BitReader,
        parts: &mut [ScanComponent],
        [column, row]: [usize; 2],
        skip: &mut u32,
    ) -> Result<(), ScanError> {
        for part in parts {
            let [horizontal, vertical] = part.blocks;
            for y in 0..vertical {
                for x in 0..horizontal {
                    match (self.kind, part.dc, part.ac) {
                        (ScanKind::Sequential, Some(dc), Some(ac)) => {
                            let size = bits.symbol(dc)?;
                            bits.skip(u32::from(size & 15))?;
                            bits.skip_block(ac)?;
                        }
                        (ScanKind::DcFirst, Some(dc), _) => {
                            let size = bits.symbol(dc)?;
                            bits.skip(u32::from(size & 15))?;
                        }
                        (ScanKind::DcRefine, ..) => bits.skip(1)?,
                        (kind @ (ScanKind::AcFirst | ScanKind::AcRefine), _, Some(ac)) => {
                            let block = (row * vertical + y) * part.stride + column * horizontal + x;
                            let nonzero = part.nonzero.get_mut(block).ok_or(ScanError::Damaged)?;
                            match kind {
                                ScanKind::AcFirst => self.read_first(bits, ac, nonzero, skip)?,
                                _ => self.read_refinement(bits, ac, nonzero, skip)?,
                            }
                        }
                        // The table is missing.
                        _ => return Err(ScanError::Damaged),
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a block of a first scan of AC coefficients of a progressive image.
    fn read_first(
        &self,
        bits: &mut BitReader,
        ac: &Table,
        nonzero: &mut u64,
        skip: &mut u32,
    ) -> Result<(), ScanError> {
        if *skip > 0 {
            *skip -= 1;
            return Ok(());
        }
        let mut k = self.start;
        while k <= self.end {
            let symbol = bits.symbol(ac)?;
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            match (run, size) {
                (15, 0) => k += 16,
                (_, 0) => {
                    *skip = (1 << run) - 1 + bits.take(run)?;
                    break;
                }
                _ => {
                    k += run;
                    if k > self.end {
                        return Err(ScanError::Damaged);
                    }
                    *nonzero |= 1 << k;
                    k += 1;
                    bits.skip(size)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a block of a scan that adds a bit to AC coefficients of a progressive image.
    fn read_refinement(
        &self,
        bits: &mut BitReader,
        ac: &Table,
        nonzero: &mut u64,
        skip: &mut u32,
    ) -> Result<(), ScanError> {
        let mut k = self.start;
        while *skip == 0 && k <= self.end {
            let symbol = bits.symbol(ac)?;
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && run < 15 {
                // The run includes this block.
                *skip = (1 << run) + bits.take(run)?;
                break;
            }
            // The sign of the new coefficient. Each nonzero coefficient that is passed has one more bit.
            bits.skip(size)?;
            let mut zeros = run;
            while k <= self.end {
                if *nonzero >> k & 1 == 1 {
                    bits.skip(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            if size > 0 {
                if k > self.end {
                    return Err(ScanError::Damaged);
                }
                *nonzero |= 1 << k;
            }
            k += 1;
        }
        if *skip > 0 {
            if k <= self.end {
                let rest = *nonzero >> k & (u64::MAX >> (63 - (self.end - k)));
                bits.skip(rest.count_ones())?;
            }
            *skip -= 1;
        }
        Ok(())
    }
}
