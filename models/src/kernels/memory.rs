//! Memory for the results and temporaries of kernels.

use std::{
    cell::Cell,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    thread::LocalKey,
};

use rayon::prelude::*;

/// Bytes of a cache line. A vector load that crosses a line boundary takes twice as long.
const CACHE_LINE: usize = 64;

/// A vector of values that is aligned to a cache line.
#[derive(Debug)]
pub(crate) struct AlignedVec<T> {
    values: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> AlignedVec<T> {
    /// Creates an empty vector.
    pub(crate) const fn empty() -> Self {
        Self { values: Vec::new(), start: 0 }
    }

    /// Creates a vector of `len` default values.
    pub(crate) fn new(len: usize) -> Self {
        let mut values = vec![T::default(); len + CACHE_LINE / size_of::<T>()];
        // `align_offset` may fail, and then returns a number that is too large.
        let start = values.as_ptr().align_offset(CACHE_LINE).min(values.len() - len);
        values.truncate(start + len);
        Self { values, start }
    }
}

impl<T> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.start..]
    }
}

impl<T> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..]
    }
}

/// Creates a vector of `len` values that `f` writes.
///
/// # Safety
/// `f` must write all of them.
pub(crate) unsafe fn build_vec<T: Copy>(len: usize, f: impl FnOnce(*mut T)) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    f(values.as_mut_ptr());
    // SAFETY: the caller guarantees that `f` has written them.
    unsafe { values.set_len(len) };
    values
}

/// Creates a vector of `len` values in chunks of `chunk_len`, which `f` fills in parallel. `f` receives the index of the first value
/// and a chunk of zeros.
pub(crate) fn build_in_chunks<T: Copy + Default + Send>(
    len: usize,
    chunk_len: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    build_in_chunks_with(len, chunk_len, &mut [(); 0], 1, |at, values, _| f(at, values))
}

/// [`build_in_chunks`], with a second slice for each chunk: `f` also receives the matching chunk of `other_len` values of `others`, or
/// an empty slice if `others` is empty.
///
/// # Panics
/// If `others` is not empty and has another number of chunks.
pub(crate) fn build_in_chunks_with<T: Copy + Default + Send, U: Send>(
    len: usize,
    chunk_len: usize,
    others: &mut [U],
    other_len: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    let chunks = values.spare_capacity_mut()[..len].par_chunks_mut(chunk_len).enumerate();
    let fill = |i: usize, values: &mut [MaybeUninit<T>], other: &mut [U]| {
        values.fill(MaybeUninit::new(T::default()));
        // SAFETY: the values were just filled.
        f(i * chunk_len, unsafe { &mut *(&raw mut *values as *mut [T]) }, other);
    };
    if others.is_empty() {
        chunks.for_each(|(i, values)| fill(i, values, &mut []));
    } else {
        assert!(others.len().div_ceil(other_len) == len.div_ceil(chunk_len), "one slice for each chunk");
        chunks.zip(others.par_chunks_mut(other_len)).for_each(|((i, values), other)| fill(i, values, other));
    }
    // SAFETY: all chunks were filled.
    unsafe { values.set_len(len) };
    values
}

/// Defines a function that calls another with scratch memory, which each thread keeps for later calls.
macro_rules! thread_scratch {
    ($name:ident, $type:ty) => {
        fn $name<R>(len: usize, f: impl FnOnce(&mut [$type]) -> R) -> R {
            use $crate::kernels::memory::{AlignedVec, with_cached};
            thread_local! {
                static CACHE: std::cell::Cell<AlignedVec<$type>> =
                    const { std::cell::Cell::new(AlignedVec::empty()) };
            }
            with_cached(&CACHE, len, f)
        }
    };
}
pub(super) use thread_scratch;

/// Calls `f` with `len` values of the vector in `cache`. The vector is taken out while in use, so that another kernel that rayon runs
/// on this thread meanwhile gets memory of its own.
pub(super) fn with_cached<T: Copy + Default, R>(
    cache: &'static LocalKey<Cell<AlignedVec<T>>>,
    len: usize,
    f: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut values = cache.replace(AlignedVec::empty());
    if values.len() < len {
        values = AlignedVec::new(len);
    }
    let result = f(&mut values[..len]);
    // A nested kernel may have left a vector, too; the larger of the two is kept.
    let other = cache.replace(AlignedVec::empty());
    cache.set(if other.len() > values.len() { other } else { values });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_scratch!(with_scratch, u32);

    #[test]
    fn aligned_vec_is_aligned_and_zeroed() {
        for len in [0, 1, 15, 16, 17, 100] {
            let values = AlignedVec::<u32>::new(len);
            assert_eq!(*values, vec![0; len]);
            // Under Miri the alignment may be unknown, and then every start is valid.
            assert!(cfg!(miri) || values.as_ptr().align_offset(CACHE_LINE) == 0, "{len} values");
        }
    }

    /// A nested call gets memory of its own; later calls get the larger of the two again.
    #[test]
    fn nested_calls_get_separate_scratch_memory() {
        with_scratch(3, |outer| {
            outer.fill(1);
            with_scratch(40, |inner| inner.fill(2));
            with_scratch(0, |inner| assert!(inner.is_empty()));
            assert_eq!(outer, [1; 3]);
        });
        with_scratch(40, |values| assert_eq!(values, [2; 40]));
        let result = std::panic::catch_unwind(|| with_scratch(5, |_| panic!("simulated failure")));
        assert!(result.is_err());
        with_scratch(5, |values| assert_eq!(values, [0; 5]));
    }

    #[test]
    fn chunks_are_filled_by_several_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            for len in [0, 1, 6, 7, 8, 23] {
                let values = build_in_chunks(len, 7, |at, chunk: &mut [u64]| {
                    assert!(chunk.len() == 7.min(len - at) && chunk.iter().all(|&x| x == 0));
                    chunk.iter_mut().zip(at..).for_each(|(x, at)| *x = at as u64);
                });
                assert!(values.iter().copied().eq(0..len as u64), "{len} values");
                let mut others = vec![0; 2 * len.div_ceil(7)];
                let values = build_in_chunks_with(len, 7, &mut others, 2, |at, chunk: &mut [f32], other| {
                    other.copy_from_slice(&[at, chunk.len()]);
                    chunk.fill(at as f32);
                });
                assert!(values.iter().enumerate().all(|(i, &x)| x == (i / 7 * 7) as f32), "{len} values");
                let expected = (0..len).step_by(7).flat_map(|at| [at, 7.min(len - at)]);
                assert!(others.iter().copied().eq(expected), "{len} values");
            }
        });
    }

    /// No value that was not written is ever visible.
    #[test]
    fn a_panic_in_a_chunk_propagates() {
        let fail = |at, _: &mut [u8]| assert!(at < 4, "simulated failure");
        assert!(std::panic::catch_unwind(|| build_in_chunks(9, 2, fail)).is_err());
        let result =
            std::panic::catch_unwind(|| build_in_chunks_with(9, 2, &mut [(); 4], 1, |_, _: &mut [u8], _| {}));
        assert!(result.is_err(), "too few slices");
    }
}
