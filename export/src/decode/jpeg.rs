//! The end of the first image of a JPEG file, and a check that its data are complete.
//!
//! Decoders silently fill missing data with gray, so this module walks through the entropy-coded data. It reads and counts Huffman
//! codes, and computes no coefficient. It ignores everything behind the first image, such as the video of a motion photo or the
//! further images of an MPO file.

use super::{MAX_PIXELS, bits::BitReader};

/// Maximum number of scans; images with more are left to the decoder, which refuses them.
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

/// The result of a walk through the data of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completeness {
    /// All data of all components are present; the number of blocks of 64 coefficients.
    Complete(u64),
    /// The data end before the last block.
    Cut,
    /// The data are damaged or of a kind that is not supported here, such as arithmetic coding.
    Unknown,
}

/// The segments of a file, and the data between them.
struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Segments<'a> {
    /// Returns the next marker and its segment; `None` at the end of the file. As other decoders do, it skips bytes that are no
    /// marker.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        loop {
            self.at += self.bytes.get(self.at..)?.iter().position(|&byte| byte == 0xff)?;
            self.at += self.bytes[self.at..].iter().position(|&byte| byte != 0xff)?;
            let marker = self.bytes[self.at];
            self.at += 1;
            match marker {
                0 => {}
                0x01 | 0xd0..=EOI => return Some((marker, &[])),
                _ => {
                    let length: [u8; 2] = self.bytes.get(self.at..self.at + 2)?.try_into().ok()?;
                    let length = usize::from(u16::from_be_bytes(length));
                    let segment = self.bytes.get(self.at + 2..self.at + length.max(2))?;
                    self.at += length.max(2);
                    return Some((marker, segment));
                }
            }
        }
    }
}

/// Finds the end of the first image of the file `bytes`, by its markers alone.
pub(super) fn extent(bytes: &[u8]) -> Extent {
    let mut segments = Segments { bytes, at: 0 };
    let mut scans = 0;
    while let Some((marker, _)) = segments.next() {
        match marker {
            SOS => scans += 1,
            EOI => return Extent { end: segments.at, has_end_marker: true },
            // Another image begins.
            SOI if scans > 0 => return Extent { end: segments.at - 2, has_end_marker: false },
            _ => {}
        }
    }
    Extent { end: bytes.len(), has_end_marker: false }
}

/// Checks that the data of the image `bytes` are complete. The time is proportional to the length of `bytes` and the number of
/// blocks. A progressive image needs 8 bytes of memory for each block.
pub(super) fn walk(bytes: &[u8]) -> Completeness {
    let mut walk = ScanChecker { frame: None, dc: Default::default(), ac: Default::default(), interval: 0 };
    let mut segments = Segments { bytes, at: 0 };
    let mut scans = 0;
    while let Some((marker, segment)) = segments.next() {
        let done = match marker {
            EOI => break,
            0xc0..=0xc2 if walk.frame.is_none() => walk.read_frame(marker == 0xc2, segment),
            DHT => walk.read_tables(segment),
            // Further frames, and those of lossless, hierarchical and arithmetic coding.
            0xc0..=0xcf => None,
            DRI => segment.first_chunk().map(|&interval| walk.interval = u16::from_be_bytes(interval)),
            SOS if scans == MAX_SCANS => None,
            SOS => {
                scans += 1;
                match walk.scan(segment, bytes, segments.at) {
                    Ok(at) => segments.at = at,
                    Err(ScanError::Ended) => return Completeness::Cut,
                    Err(ScanError::Damaged) => return Completeness::Unknown,
                }
                Some(())
            }
            _ => Some(()),
        };
        if done.is_none() {
            return Completeness::Unknown;
        }
    }
    match &walk.frame {
        Some(frame) if frame.components.iter().all(|component| component.missing == [0; 64]) => {
            Completeness::Complete(frame.components.iter().map(|c| (c.stride * c.rows) as u64).sum())
        }
        Some(_) => Completeness::Cut,
        None => Completeness::Unknown,
    }
}

/// The reason why the walk through the data of a scan stopped early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanError {
    /// A marker, or the end of the file, comes before the last block.
    Ended,
    /// The data are invalid.
    Damaged,
}

/// A Huffman table.
pub(super) struct Table {
    /// Length of the code in the upper byte and its value in the lower one, by the next bits; 0 for longer codes.
    pub short: Vec<u16>,
    /// For each length, the first code that is longer, in 16 bits, and the offset from a code to its index in the values.
    pub longer: [(u32, i32); 17],
    /// The values, in the order of their codes.
    pub values: Vec<u8>,
    /// Effect on the coefficients of a sequential image, by the next bits; filled when needed.
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
    /// Returns the effect of a value of a table, without the bits of its code.
    pub(super) fn of(value: u8) -> Self {
        let (run, size) = (value >> 4, value & 15);
        Self { bits: size, coefficients: run + 1, end: size == 0 && run < 15 }
    }
}

impl Table {
    /// Number of bits that are looked up at once.
    pub const SHORT: u32 = 10;

    /// Builds a table from the number of codes of each length, 1 to 16 bits, and the values.
    fn new(counts: &[u8; 16], values: &[u8]) -> Option<Self> {
        let (mut short, mut longer) = (vec![0; 1 << Self::SHORT], [(0, 0); 17]);
        let (mut code, mut place) = (0u32, 0usize);
        for (length, &count) in (1u32..).zip(counts) {
            longer[length as usize].1 = place as i32 - code as i32;
            for &value in values.get(place..place + usize::from(count))? {
                if code >> length != 0 {
                    return None;
                }
                if let Some(free) = Self::SHORT.checked_sub(length) {
                    short[(code << free) as usize..((code + 1) << free) as usize]
                        .fill((length as u16) << 8 | u16::from(value));
                }
                code += 1;
            }
            place += usize::from(count);
            longer[length as usize].0 = code << (16 - length);
            code <<= 1;
        }
        Some(Self { short, longer, values: values.to_vec(), steps: Vec::new() })
    }

    /// Fills both entries of [`steps`](Self::steps): that of one code, and that of all codes that fit.
    fn prepare(&mut self) {
        if !self.steps.is_empty() {
            return;
        }
        let code = |next: usize| {
            let short = self.short[next & ((1 << Self::SHORT) - 1)];
            let step = CodeStep::of(short as u8);
            if short == 0 {
                CodeStep::default()
            } else {
                CodeStep { bits: step.bits + (short >> 8) as u8, ..step }
            }
        };
        let both = |next: usize| {
            let one = code(next);
            let mut all = CodeStep::default();
            while !all.end {
                // The bits shifted in are unknown: a code that includes them does not fit.
                let more = code(next << all.bits);
                if more.bits == 0 || u32::from(all.bits + more.bits) > Self::SHORT {
                    break;
                }
                let (bits, coefficients) = (all.bits + more.bits, all.coefficients + more.coefficients);
                all = CodeStep { bits, coefficients, end: more.end };
            }
            [one, if all.bits == 0 { one } else { all }]
        };
        self.steps = (0..1 << Self::SHORT).map(both).collect();
    }
}

struct Component {
    id: u8,
    /// Blocks of an MCU across and down.
    sampling: [usize; 2],
    /// Blocks that are coded if the component is alone in a scan, across and down.
    blocks_alone: [usize; 2],
    /// Blocks across and down in whole MCUs.
    stride: usize,
    rows: usize,
    /// Number of missing bits for each coefficient, 255 for all.
    missing: [u8; 64],
    /// Coefficients that are known not to be 0, for each block of a progressive image.
    nonzero: Vec<u64>,
}

struct Frame {
    progressive: bool,
    /// MCUs across and down.
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

/// The part of a block that a scan codes.
#[derive(Clone, Copy)]
enum Kind {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

impl ScanChecker {
    /// Reads a frame header. Here and below, `None` means that the frame is not supported.
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
                blocks_alone: [0; 2],
                stride: 0,
                rows: 0,
                missing: [255; 64],
                nonzero: Vec::new(),
            })
            .collect();
        if components.iter().flat_map(|c| c.sampling).any(|n| !(1..=4).contains(&n)) {
            return None;
        }
        let most = |axis: usize| components.iter().map(|c| c.sampling[axis]).max();
        let (across, down) = (most(0)?, most(1)?);
        let mcus = [width.div_ceil(8 * across), height.div_ceil(8 * down)];
        for component in &mut components {
            let [h, v] = component.sampling;
            component.blocks_alone = [(width * h).div_ceil(8 * across), (height * v).div_ceil(8 * down)];
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
            let (&place, rest) = segment.split_first()?;
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let (values, rest) = rest.split_at_checked(counts.iter().map(|&n| usize::from(n)).sum())?;
            let tables = if place >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(place & 15))? = Some(Table::new(counts, values)?);
            segment = rest;
        }
        Some(())
    }

    /// Walks through the scan with the header `header` and data that begin at `at`. Returns the end of the data.
    fn scan(&mut self, header: &[u8], bytes: &[u8], at: usize) -> Result<usize, ScanError> {
        let frame = self.frame.as_mut().ok_or(ScanError::Damaged)?;
        let (&count, rest) = header.split_first().ok_or(ScanError::Damaged)?;
        let (chosen, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or(ScanError::Damaged)?;
        let (&[start, end, bits], _) = rest.split_first_chunk().ok_or(ScanError::Damaged)?;
        let (high, low) = (bits >> 4, bits & 15);
        let (start, end, low, kind) = match (frame.progressive, start, high) {
            // Some programs write other values for sequential images.
            (false, ..) => (0, 63, 0, Kind::Sequential),
            (true, 0, 0) => (0, 0, low, Kind::DcFirst),
            (true, 0, _) => (0, 0, low, Kind::DcRefine),
            (true, _, 0) => (start, end, low, Kind::AcFirst),
            (true, _, _) => (start, end, low, Kind::AcRefine),
        };
        if end < start || end > 63 || count == 0 || (start > 0 && count > 1) {
            return Err(ScanError::Damaged);
        }
        if !frame.progressive {
            self.ac.iter_mut().flatten().for_each(Table::prepare);
        }
        let mut parts: Vec<ScanComponent> = Vec::new();
        for pair in chosen.chunks_exact(2) {
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
            if count == 1 { frame.components[parts[0].index].blocks_alone } else { frame.mcus };
        let mut bits = BitReader::new(bytes, at);
        let band = Band { kind, start: start.into(), end: end.into() };
        let walked = band.walk(&mut bits, &mut parts, [columns, rows], self.interval.into());
        for part in parts {
            frame.components[part.index].nonzero = part.nonzero;
        }
        walked.map(|()| bits.byte_position())
    }
}

/// A component in a scan.
struct ScanComponent<'a> {
    dc: Option<&'a Table>,
    ac: Option<&'a Table>,
    /// Blocks of an MCU across and down.
    blocks: [usize; 2],
    /// Blocks of the component across.
    stride: usize,
    nonzero: Vec<u64>,
    /// Index of the component.
    index: usize,
}

/// The coefficients of a scan.
struct Band {
    kind: Kind,
    start: u32,
    end: u32,
}

impl Band {
    fn walk(
        &self,
        bits: &mut BitReader,
        parts: &mut [ScanComponent],
        [columns, rows]: [usize; 2],
        interval: usize,
    ) -> Result<(), ScanError> {
        let mut left = interval;
        // `skip` counts blocks for which nothing is coded; `lost` is true if the rest of an interval is lost.
        let (mut skip, mut lost) = (0, false);
        for row in 0..rows {
            for column in 0..columns {
                if interval > 0 {
                    if left == 0 {
                        bits.restart()?;
                        (left, skip, lost) = (interval, 0, false);
                    }
                    left -= 1;
                }
                if lost {
                    continue;
                }
                match self.mcu(bits, parts, [column, row], &mut skip) {
                    // Damage within an interval is not a missing end.
                    Err(ScanError::Ended) if interval > 0 && bits.at_restart() => lost = true,
                    walked => walked?,
                }
            }
        }
        Ok(())
    }

    fn mcu(
        &self,
        bits: &mut BitReader,
        parts: &mut [ScanComponent],
        [column, row]: [usize; 2],
        skip: &mut u32,
    ) -> Result<(), ScanError> {
        for part in parts {
            let [across, down] = part.blocks;
            for y in 0..down {
                for x in 0..across {
                    match (self.kind, part.dc, part.ac) {
                        (Kind::Sequential, Some(dc), Some(ac)) => {
                            let size = bits.symbol(dc)?;
                            bits.skip(u32::from(size & 15))?;
                            bits.skip_block(ac)?;
                        }
                        (Kind::DcFirst, Some(dc), _) => {
                            let size = bits.symbol(dc)?;
                            bits.skip(u32::from(size & 15))?;
                        }
                        (Kind::DcRefine, ..) => bits.skip(1)?,
                        (kind @ (Kind::AcFirst | Kind::AcRefine), _, Some(ac)) => {
                            let block = (row * down + y) * part.stride + column * across + x;
                            let nonzero = part.nonzero.get_mut(block).ok_or(ScanError::Damaged)?;
                            match kind {
                                Kind::AcFirst => self.first(bits, ac, nonzero, skip)?,
                                _ => self.refine(bits, ac, nonzero, skip)?,
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

    /// Reads a block of the first scan of coefficients of a progressive image.
    fn first(
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

    /// Reads a block of a scan that adds a bit to coefficients of a progressive image.
    fn refine(
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
            // The sign of the new coefficient; each coefficient passed that is not 0 has one more bit.
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
