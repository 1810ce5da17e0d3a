//! A JPEG encoder of coefficients. It writes files that the crates' encoders cannot: scans in any order, restart markers, any number
//! of components.

/// Sampling factors of a component, horizontal and vertical.
pub type Sampling = (usize, usize);

/// The coefficients of a file.
pub struct Image {
    pub width: usize,
    pub height: usize,
    components: Vec<Component>,
}

struct Component {
    sampling: Sampling,
    /// Blocks of all MCUs, horizontally.
    stride: usize,
    /// Blocks that a non-interleaved scan codes, horizontally and vertically.
    noninterleaved: [usize; 2],
    /// Coefficients of each block, in the order of the file.
    blocks: Vec<[i32; 64]>,
}

/// A scan of a file.
#[derive(Clone, Debug)]
pub struct Scan {
    pub components: Vec<usize>,
    /// First and last coefficient.
    pub band: (usize, usize),
    /// The successive approximation: the bit above the coded ones (0 in a first scan), and the lowest coded bit.
    pub bits: (u32, u32),
}

impl Scan {
    pub fn new(components: &[usize], band: (usize, usize), bits: (u32, u32)) -> Self {
        Self { components: components.to_vec(), band, bits }
    }

    /// Returns the scans of `count` components: one for all if `interleaved`, otherwise one for each.
    pub fn sequential(count: usize, interleaved: bool) -> Vec<Self> {
        let all: Vec<usize> = (0..count).collect();
        all.chunks(if interleaved { count } else { 1 }).map(|part| Self::new(part, (0, 63), (0, 0))).collect()
    }

    /// Returns the scans of `count` components, with the bands and bits that programs usually write.
    pub fn progressive(count: usize) -> Vec<Self> {
        let all: Vec<usize> = (0..count).collect();
        let mut scans = vec![Self::new(&all, (0, 0), (0, 1))];
        for (band, bits) in [((1, 5), (0, 2)), ((6, 63), (0, 2)), ((1, 63), (2, 1))] {
            scans.extend(all.iter().map(|&component| Self::new(&[component], band, bits)));
        }
        scans.push(Self::new(&all, (0, 0), (1, 0)));
        scans.extend(all.iter().map(|&component| Self::new(&[component], (1, 63), (1, 0))));
        scans
    }
}

/// The number of codes of each length: short ones, and some that are longer than the lookup of decoders.
const COUNTS: [u8; 16] = [0, 1, 1, 1, 1, 1, 1, 0, 200, 0, 0, 50, 0, 0, 0, 0];
/// Returns the values in the order of their codes, the frequent ones first.
fn values() -> Vec<u8> {
    let first = [0x00, 0x01, 0x11, 0x02, 0x21, 0x10];
    first.into_iter().chain((0..=255).filter(|value| !first.contains(value))).collect()
}

impl Image {
    /// Creates an image; `value` returns the coefficients of each block of each component, by their numbers.
    pub fn new(
        (width, height): (usize, usize),
        sampling: &[Sampling],
        mut value: impl FnMut(usize, usize) -> [i32; 64],
    ) -> Self {
        let max_h = sampling.iter().map(|s| s.0).max().unwrap();
        let max_v = sampling.iter().map(|s| s.1).max().unwrap();
        let component = |(index, &(h, v)): (usize, &Sampling)| {
            let stride = width.div_ceil(8 * max_h) * h;
            let blocks = stride * height.div_ceil(8 * max_v) * v;
            Component {
                sampling: (h, v),
                stride,
                noninterleaved: [(width * h).div_ceil(8 * max_h), (height * v).div_ceil(8 * max_v)],
                blocks: (0..blocks).map(|block| value(index, block)).collect(),
            }
        };
        Self { width, height, components: sampling.iter().enumerate().map(component).collect() }
    }

    /// Returns the bytes of the file. If `interval` is not 0, a restart marker follows each `interval` MCUs.
    pub fn file(&self, progressive: bool, scans: &[Scan], interval: usize) -> Vec<u8> {
        let mut output = vec![0xff, 0xd8];
        let segment = |output: &mut Vec<u8>, marker: u8, bytes: &[u8]| {
            output.extend([0xff, marker]);
            output.extend((bytes.len() as u16 + 2).to_be_bytes());
            output.extend(bytes);
        };
        segment(&mut output, 0xdb, &[&[0][..], &[8; 64]].concat());
        let size = [self.height as u16, self.width as u16].map(u16::to_be_bytes).concat();
        let mut frame = [&[8], &size[..], &[self.components.len() as u8]].concat();
        for (id, component) in (1..).zip(&self.components) {
            frame.extend([id, (component.sampling.0 << 4 | component.sampling.1) as u8, 0]);
        }
        segment(&mut output, if progressive { 0xc2 } else { 0xc0 }, &frame);
        let small = [0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        segment(&mut output, 0xc4, &[&[0], &small[..], &(0..16).collect::<Vec<u8>>()].concat());
        segment(&mut output, 0xc4, &[&[0x10], &COUNTS[..], &values()].concat());
        if interval > 0 {
            segment(&mut output, 0xdd, &(interval as u16).to_be_bytes());
        }
        for scan in scans {
            let mut header = vec![scan.components.len() as u8];
            header.extend(scan.components.iter().flat_map(|&index| [index as u8 + 1, 0]));
            header.extend([scan.band.0 as u8, scan.band.1 as u8, (scan.bits.0 << 4 | scan.bits.1) as u8]);
            segment(&mut output, 0xda, &header);
            output.extend(self.data(progressive, scan, interval));
        }
        output.extend([0xff, 0xd9]);
        output
    }

    fn data(&self, progressive: bool, scan: &Scan, interval: usize) -> Vec<u8> {
        let mut encoder = Encoder::new(scan.clone());
        let first = &self.components[scan.components[0]];
        let is_single = scan.components.len() == 1;
        let (columns, rows) = match is_single {
            true => (first.noninterleaved[0], first.noninterleaved[1]),
            false => {
                let (h, v) = first.sampling;
                (first.stride / h, first.blocks.len() / first.stride / v)
            }
        };
        let (mut count, mut restarts) = (0, 0);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            if interval > 0 && count == interval {
                encoder.finish();
                encoder.output.extend([0xff, 0xd0 + restarts % 8]);
                (encoder.predicted, count, restarts) = ([0; 4], 0, restarts + 1);
            }
            count += 1;
            for &index in &scan.components {
                let component = &self.components[index];
                let (h, v) = if is_single { (1, 1) } else { component.sampling };
                for (y, x) in (0..v).flat_map(|y| (0..h).map(move |x| (y, x))) {
                    let block = &component.blocks[(row * v + y) * component.stride + column * h + x];
                    encoder.write_block(progressive, index, block);
                }
            }
        }
        encoder.finish();
        encoder.output
    }
}

struct Encoder {
    scan: Scan,
    output: Vec<u8>,
    bits: u32,
    count: u32,
    predicted: [i32; 4],
    /// Length of the current run of ended blocks (EOBRUN).
    eob_run: u32,
    /// Refinement bits of that run, to be written after it.
    corrections: Vec<u32>,
    codes: Vec<(u32, u32)>,
}

impl Encoder {
    fn new(scan: Scan) -> Self {
        let mut codes = vec![(0, 0); 256];
        let (mut code, mut values) = (0, values().into_iter());
        for (length, &count) in (1..).zip(&COUNTS) {
            for value in values.by_ref().take(count.into()) {
                codes[usize::from(value)] = (code, length);
                code += 1;
            }
            code <<= 1;
        }
        let (output, corrections) = (Vec::new(), Vec::new());
        Self { scan, output, bits: 0, count: 0, predicted: [0; 4], eob_run: 0, corrections, codes }
    }

    fn write_bits(&mut self, value: u32, length: u32) {
        for bit in (0..length).rev() {
            self.bits = self.bits << 1 | (value >> bit & 1);
            self.count += 1;
            if self.count == 8 {
                self.output.push(self.bits as u8);
                if self.bits == 0xff {
                    self.output.push(0);
                }
                (self.bits, self.count) = (0, 0);
            }
        }
    }

    fn write_symbol(&mut self, value: u32) {
        let (code, length) = self.codes[value as usize];
        self.write_bits(code, length);
    }

    /// Writes the bits of a coefficient of `size` bits.
    fn write_value(&mut self, value: i32, size: u32) {
        let bits = if value < 0 { value - 1 } else { value } as u32;
        self.write_bits(bits & ((1 << size) - 1), size);
    }

    fn write_difference(&mut self, component: usize, value: i32) {
        let difference = value - std::mem::replace(&mut self.predicted[component], value);
        let size = 32 - difference.unsigned_abs().leading_zeros();
        self.write_bits(size, 5);
        self.write_value(difference, size);
    }

    fn write_eob_run(&mut self) {
        if self.eob_run > 0 {
            let size = self.eob_run.ilog2();
            self.write_symbol(size << 4);
            self.write_bits(self.eob_run & ((1 << size) - 1), size);
            self.eob_run = 0;
            self.write_corrections();
        }
    }

    fn write_corrections(&mut self) {
        for bit in std::mem::take(&mut self.corrections) {
            self.write_bits(bit, 1);
        }
    }

    fn finish(&mut self) {
        self.write_eob_run();
        while self.count > 0 {
            self.write_bits(1, 1);
        }
    }

    fn write_block(&mut self, progressive: bool, component: usize, block: &[i32; 64]) {
        let (first, last) = self.scan.band;
        let (high, low) = self.scan.bits;
        if first == 0 && high > 0 {
            return self.write_bits((block[0] >> low) as u32 & 1, 1);
        }
        if first == 0 {
            self.write_difference(component, block[0] >> low);
        }
        let band = first.max(1)..=last;
        if high > 0 {
            return self.write_refinement(&block[band], low);
        }
        let mut zeros = 0;
        for &coefficient in &block[band.clone()] {
            let value = coefficient.signum() * (coefficient.abs() >> low);
            if value == 0 {
                zeros += 1;
                continue;
            }
            self.write_eob_run();
            while zeros > 15 {
                self.write_symbol(0xf0);
                zeros -= 16;
            }
            let size = 32 - value.unsigned_abs().leading_zeros();
            self.write_symbol(zeros << 4 | size);
            self.write_value(value, size);
            zeros = 0;
        }
        if zeros > 0 {
            self.eob_run += 1;
            if !progressive || self.eob_run == 0x7fff {
                self.write_eob_run();
            }
        }
    }

    fn write_refinement(&mut self, band: &[i32], low: u32) {
        let value = |coefficient: &i32| coefficient.unsigned_abs() >> low;
        let last_new = band.iter().rposition(|coefficient| value(coefficient) == 1);
        let (mut zeros, mut corrections) = (0, Vec::new());
        for (k, coefficient) in band.iter().enumerate() {
            if value(coefficient) == 0 {
                zeros += 1;
                continue;
            }
            while zeros > 15 && last_new.is_some_and(|last| k <= last) {
                self.write_eob_run();
                self.write_symbol(0xf0);
                self.corrections = std::mem::take(&mut corrections);
                self.write_corrections();
                zeros -= 16;
            }
            if value(coefficient) > 1 {
                corrections.push(value(coefficient) & 1);
                continue;
            }
            self.write_eob_run();
            self.write_symbol(zeros << 4 | 1);
            self.write_bits(u32::from(*coefficient > 0), 1);
            self.corrections = std::mem::take(&mut corrections);
            self.write_corrections();
            zeros = 0;
        }
        if zeros > 0 || !corrections.is_empty() {
            self.eob_run += 1;
            self.corrections.extend(corrections);
            if self.eob_run == 0x7fff {
                self.write_eob_run();
            }
        }
    }
}
