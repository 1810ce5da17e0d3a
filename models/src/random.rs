//! Random numbers: seeded, specified, and the same in every language.
//!
//! A [`Stream`] is ChaCha20 (RFC 8439's block function), read as little-endian 32-bit words. Words 12 and 13 of the state are a
//! 64-bit counter of blocks from 0. Words 14 and 15 are the 64-bit stream number. Both have the low word first, as in
//! `rand_chacha`. The 32-byte key is the seed (8 bytes, little-endian), the [`Purpose`] (8 bytes, little-endian), then zeros.
//!
//! A uniform number takes one word `w`: `((w >> 8) + 1) / 2²⁴`, in (0, 1]. Two uniforms `u₁`, `u₂` give two normal numbers by Box
//! and Muller in f64: `√(−2 ln u₁)·cos(2πu₂)`, then `√(−2 ln u₁)·sin(2πu₂)`. The noise of image `i` is stream `i` of
//! [`Purpose::Noise`], rounded to f32, in channel, row, column order. It does not depend on the batch in which the image is
//! generated.
//!
//! The mask of dropout `k` of a forward pass, for item `i` of optimizer step `s`, is stream `s·2³² + i·2¹² + k` of
//! [`Purpose::Dropout`], with all three counted from 0. A value is kept if its uniform number, in row-major order, is above the
//! probability of dropout.
//!
//! For other implementations, `noise-vectors.json` has words, uniform and normal numbers of a few streams, by `noise-vectors.py`.

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};

/// The purpose of a stream; streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The noise from which an image is generated.
    Noise = 0,
    /// Initial weights.
    Init = 1,
    /// The order of the training data.
    Order = 2,
    /// Random inputs of a training step: times, noise, dropped labels.
    Training = 3,
    /// Augmentation of training data.
    Augment = 4,
    /// Synthetic images.
    Synthetic = 5,
    /// Samples of an evaluation: bootstrap resamples, subsets, random splits.
    Evaluation = 6,
    /// Dropout masks.
    Dropout = 7,
}

/// A seeded stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream {
    rng: ChaCha20Rng,
    spare: Option<f64>,
}

impl Stream {
    /// Creates stream number `index` of `seed`.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
        let mut rng = ChaCha20Rng::from_seed(key);
        rng.set_stream(index);
        Self { rng, spare: None }
    }

    /// Returns a uniform number in (0, 1], with 24 bits.
    pub fn uniform(&mut self) -> f64 {
        f64::from((self.rng.next_u32() >> 8) + 1) / f64::from(1u32 << 24)
    }

    /// Returns a uniform integer in `0..n`, without bias.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn uniform_int(&mut self, n: u32) -> u32 {
        assert!(n > 0, "n must be positive");
        let max = u32::MAX - (u32::MAX - n + 1) % n;
        loop {
            let word = self.rng.next_u32();
            if word <= max {
                return word % n;
            }
        }
    }

    /// Returns a standard normal number.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// Returns `n` standard normal numbers, rounded to f32.
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal() as f32).collect()
    }

    /// Returns `0..n` in random order (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.uniform_int(i as u32 + 1) as usize);
        }
        order
    }
}

/// Returns the noise from which image `index` of `seed` is generated: `len` standard normal numbers in channel, row, column order.
pub fn noise(seed: u64, index: u64, len: usize) -> Vec<f32> {
    Stream::new(seed, Purpose::Noise, index).normals(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test vector from another implementation of the specification above.
    #[derive(serde::Deserialize)]
    struct Vector {
        seed: String,
        purpose: u64,
        index: String,
        skip: usize,
        words: Vec<u32>,
        // 24 bits are exact in f32.
        uniforms: Vec<f32>,
        normals: Vec<f32>,
    }

    #[test]
    fn streams_match_the_specification() {
        use Purpose::*;
        let vectors: Vec<Vector> = serde_json::from_str(include_str!("../noise-vectors.json")).unwrap();
        assert!(vectors.len() >= 8);
        for v in &vectors {
            let (seed, index) = (v.seed.parse().unwrap(), v.index.parse().unwrap());
            let purposes = [Noise, Init, Order, Training, Augment, Synthetic];
            let purpose = *purposes.iter().find(|p| **p as u64 == v.purpose).unwrap();
            let name = format!("seed {seed}, {purpose:?}, stream {index}, after {} words", v.skip);
            let mut stream = Stream::new(seed, purpose, index);
            for _ in 0..v.skip {
                stream.rng.next_u32();
            }

            let mut words = stream.clone();
            assert_eq!([0; 8].map(|_| words.rng.next_u32()), v.words[..], "{name}");
            let mut uniforms = stream.clone();
            assert_eq!([0; 8].map(|_| uniforms.uniform() as f32), v.uniforms[..], "{name}");
            // Math libraries differ in the last bit of a logarithm or sine, which may show after rounding.
            let normals = stream.normals(8);
            let near = |(a, b): (&f32, &f32)| a.to_bits().abs_diff(b.to_bits()) <= 1;
            assert_eq!(v.normals.len(), 8);
            assert!(normals.iter().zip(&v.normals).all(near), "{name}: {normals:?}");
            if purpose == Noise && v.skip == 0 {
                assert_eq!(noise(seed, index, 8), normals, "{name}");
            }
        }
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let x = noise(3, 1, 40_000);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.03, "mean {mean}, variance {var}");
    }

    #[test]
    fn noise_is_a_prefix_of_longer_noise_and_streams_differ() {
        assert_eq!(noise(1, 2, 7), noise(1, 2, 100)[..7]);
        assert_ne!(noise(1, 2, 7), noise(1, 3, 7));
        assert_ne!(noise(1, 2, 7), noise(2, 2, 7));
        assert_ne!(noise(1, 2, 7), Stream::new(1, Purpose::Training, 2).normals(7));
    }

    #[test]
    fn a_permutation_contains_every_index_once() {
        let mut order = Stream::new(0, Purpose::Order, 0).permutation(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }
}
