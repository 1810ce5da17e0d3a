//! The order of the training data.

use std::sync::{Arc, Mutex, PoisonError};

use tiny_cats_models::random::{Purpose, Stream};

/// An endless order of `len` images: each epoch has each of them once, and is shuffled by its own random stream. The image at a position
/// depends only on the seed and the position. So a run can resume with the number of images drawn so far.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    len: u32,
    /// The two epochs that were used last, and their images. At the end of an epoch several threads make batches of both. With one entry,
    /// each thread would discard the other's epoch.
    shuffled: Mutex<[Option<Epoch>; 2]>,
}

/// The number of an epoch, and its images in order.
type Epoch = (u64, Arc<[u32]>);

impl Order {
    /// Creates the order of `len` images for `seed`.
    ///
    /// # Panics
    /// If `len` is 0.
    pub fn new(seed: u64, len: u32) -> Self {
        assert!(len > 0, "expected at least one image");
        Self { seed, len, shuffled: Mutex::default() }
    }

    /// The index of the image at `position`, the number of images before it. Fast while positions stay in one epoch.
    pub fn index_at(&self, position: u64) -> usize {
        let (epoch, offset) = (position / u64::from(self.len), position % u64::from(self.len));
        self.epoch(epoch)[offset as usize] as usize
    }

    /// The indices of the `len` images that start at `position`.
    pub fn range(&self, position: u64, len: usize) -> Vec<usize> {
        let mut range = Vec::with_capacity(len);
        while range.len() < len {
            let position = position + range.len() as u64;
            let (epoch, offset) = (position / u64::from(self.len), position % u64::from(self.len));
            let missing = len - range.len();
            range.extend(self.epoch(epoch)[offset as usize..].iter().take(missing).map(|&i| i as usize));
        }
        range
    }

    fn epoch(&self, epoch: u64) -> Arc<[u32]> {
        // After a panic of another thread, the permutations are still complete.
        let mut shuffled = self.shuffled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = shuffled.iter().flatten().find(|known| known.0 == epoch) {
            return order.clone();
        }
        let order: Arc<[u32]> =
            Stream::new(self.seed, Purpose::Order, epoch).permutation(self.len as usize).into();
        let [newest, oldest] = &mut *shuffled;
        *oldest = newest.replace((epoch, order.clone()));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_is_a_different_permutation() {
        for len in [1, 2, 7, 100] {
            let order = Order::new(3, len);
            let epochs: Vec<Vec<usize>> =
                (0..3).map(|e| (0..len).map(|i| order.index_at(u64::from(e * len + i))).collect()).collect();
            for epoch in &epochs {
                let mut sorted = epoch.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..len as usize).collect::<Vec<_>>());
            }
            assert!(len < 100 || epochs[0] != epochs[1]);
        }
    }

    #[test]
    fn the_order_depends_only_on_seed_and_position() {
        let sequential = Order::new(5, 13);
        let expected: Vec<usize> = (0..60).map(|p| sequential.index_at(p)).collect();
        let random_access = Order::new(5, 13);
        for step in 0..60u64 {
            let position = step * 37 % 60;
            assert_eq!(random_access.index_at(position), expected[position as usize]);
            assert_eq!(Order::new(5, 13).index_at(position), expected[position as usize]);
        }
        assert_ne!(expected[..13], (0..13).map(|p| Order::new(6, 13).index_at(p)).collect::<Vec<_>>());
        assert!(random_access.index_at(u64::MAX) < 13);
        for (position, len) in [(0, 60), (5, 8), (12, 2), (26, 1), (30, 0)] {
            assert_eq!(random_access.range(position, len), expected[position as usize..][..len]);
        }
    }
}
