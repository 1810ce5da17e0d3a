//! Memory that kernels work in.

use std::{
    cell::Cell,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    thread::LocalKey,
};

use rayon::prelude::*;

/// Bytes of a line of the cache; a register that is read across two of them takes twice as long.
const LINE: usize = 64;

/// Values that begin at a line of the cache.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    values: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// None.
    pub(crate) const fn empty() -> Self {
        Self { values: Vec::new(), start: 0 }
    }

    /// `len` values.
    pub(crate) fn new(len: usize) -> Self {
        let mut values = vec![T::default(); len + LINE / size_of::<T>()];
        // The compiler may know no alignment, but then it gives a number that is too large.
        let start = values.as_ptr().align_offset(LINE).min(values.len() - len);
        values.truncate(start + len);
        Self { values, start }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.start..]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..]
    }
}

/// `len` values that `f` writes.
///
/// # Safety
/// `f` must write all of them.
pub(crate) unsafe fn written<T: Copy>(len: usize, f: impl FnOnce(*mut T)) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    f(values.as_mut_ptr());
    // SAFETY: they are there, as the caller says.
    unsafe { values.set_len(len) };
    values
}

/// `len` values in pieces that `f` fills, all threads together; it is told where a piece begins and given zeros.
pub(crate) fn in_pieces<T: Copy + Default + Send>(
    len: usize,
    piece: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    in_pieces_with(len, piece, &mut [(); 0], 1, |at, values, _| f(at, values))
}

/// [`in_pieces`], each piece with one of `others`, where there are any.
pub(crate) fn in_pieces_with<T: Copy + Default + Send, U: Send>(
    len: usize,
    piece: usize,
    others: &mut [U],
    other: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    let pieces = values.spare_capacity_mut()[..len].par_chunks_mut(piece).enumerate();
    let fill = |i: usize, values: &mut [MaybeUninit<T>], other: &mut [U]| {
        values.fill(MaybeUninit::new(T::default()));
        // SAFETY: they were just filled.
        f(i * piece, unsafe { &mut *(&raw mut *values as *mut [T]) }, other);
    };
    if others.is_empty() {
        pieces.for_each(|(i, values)| fill(i, values, &mut []));
    } else {
        assert!(others.len().div_ceil(other) == len.div_ceil(piece), "there is one for each piece");
        pieces.zip(others.par_chunks_mut(other)).for_each(|((i, values), other)| fill(i, values, other));
    }
    // SAFETY: all pieces were filled.
    unsafe { values.set_len(len) };
    values
}

/// A function that lends values of its thread's memory, which is kept for the next time.
macro_rules! lent {
    ($name:ident, $type:ty) => {
        fn $name<R>(len: usize, f: impl FnOnce(&mut [$type]) -> R) -> R {
            use $crate::kernels::memory::{Aligned, lend};
            thread_local! {
                static KEPT: std::cell::Cell<Aligned<$type>> = const { std::cell::Cell::new(Aligned::empty()) };
            }
            lend(&KEPT, len, f)
        }
    };
}
pub(super) use lent;

/// Lends `len` values of what `kept` keeps. It is taken while in use, so that another kernel that this thread is given while it waits
/// gets memory of its own.
pub(super) fn lend<T: Copy + Default, R>(
    kept: &'static LocalKey<Cell<Aligned<T>>>,
    len: usize,
    f: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut values = kept.replace(Aligned::empty());
    if values.len() < len {
        values = Aligned::new(len);
    }
    let result = f(&mut values[..len]);
    // The larger of what this and a kernel within it were lent.
    let other = kept.replace(Aligned::empty());
    kept.set(if other.len() > values.len() { other } else { values });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    lent!(scratch, u32);

    #[test]
    fn memory_begins_at_a_line_and_holds_zeros() {
        for len in [0, 1, 15, 16, 17, 100] {
            let values = Aligned::<u32>::new(len);
            assert_eq!(*values, vec![0; len]);
            // Where Miri leaves the alignment unknown, any start will do.
            assert!(cfg!(miri) || values.as_ptr().align_offset(LINE) == 0, "{len} values");
        }
    }

    /// A kernel that begins while another of this thread has memory gets its own; later ones are lent the larger again.
    #[test]
    fn what_is_lent_is_lent_once_at_a_time() {
        scratch(3, |outer| {
            outer.fill(1);
            scratch(40, |inner| inner.fill(2));
            scratch(0, |inner| assert!(inner.is_empty()));
            assert_eq!(outer, [1; 3]);
        });
        scratch(40, |again| assert_eq!(again, [2; 40]));
        let failed = std::panic::catch_unwind(|| scratch(5, |_| panic!("as a kernel may")));
        assert!(failed.is_err());
        scratch(5, |anew| assert_eq!(anew, [0; 5]));
    }

    #[test]
    fn pieces_are_filled_by_several_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            for len in [0, 1, 6, 7, 8, 23] {
                let pieces = in_pieces(len, 7, |at, piece: &mut [u64]| {
                    assert!(piece.len() == 7.min(len - at) && piece.iter().all(|&x| x == 0));
                    piece.iter_mut().zip(at..).for_each(|(x, at)| *x = at as u64);
                });
                assert!(pieces.iter().copied().eq(0..len as u64), "{len} values");
                let mut others = vec![0; 2 * len.div_ceil(7)];
                let pieces = in_pieces_with(len, 7, &mut others, 2, |at, piece: &mut [f32], other| {
                    other.copy_from_slice(&[at, piece.len()]);
                    piece.fill(at as f32);
                });
                assert!(pieces.iter().enumerate().all(|(i, &x)| x == (i / 7 * 7) as f32), "{len} values");
                let expected = (0..len).step_by(7).flat_map(|at| [at, 7.min(len - at)]);
                assert!(others.iter().copied().eq(expected), "{len} values");
            }
        });
    }

    /// What is thrown leaves nothing behind that was not written.
    #[test]
    fn a_piece_that_fails_fails_all() {
        let fails = |at, _: &mut [u8]| assert!(at < 4, "as a kernel may");
        assert!(std::panic::catch_unwind(|| in_pieces(9, 2, fails)).is_err());
        let missing =
            std::panic::catch_unwind(|| in_pieces_with(9, 2, &mut [(); 4], 1, |_, _: &mut [u8], _| {}));
        assert!(missing.is_err(), "others are too few");
    }
}
