//! Splitting of a batch among threads.

use std::{
    ops::Range,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tiny_cats_models::Array;

use crate::Result;

/// Maximum number of items that a thread computes at once. Weights are read once for all of them, and their activations stay in its
/// cache.
#[cfg(any(feature = "native", feature = "ort"))]
pub(super) const MAX_ITEMS_PER_PASS: usize = 4;

/// Computes `part` for the `n` items of a batch, at most `most` at a time, on a thread for each of `workers`. Threads wait for each
/// other once, not at every operation. `part` returns an array of the items in its range, in their order.
///
/// # Errors
/// The first error of `part`.
pub(super) fn split_batch<W: Send>(
    workers: &mut [W],
    n: usize,
    most: usize,
    part: impl Fn(&mut W, Range<usize>) -> Result<Array> + Sync,
) -> Result<Array> {
    let group = (n / workers.len().max(1)).clamp(1, most);
    let next = AtomicUsize::new(0);
    // A thread takes the next group when it is free, so that none waits long for a slower one.
    let some = |worker: &mut W| {
        let starts =
            std::iter::from_fn(|| Some(next.fetch_add(group, Ordering::Relaxed)).filter(|&at| at < n));
        starts.map(|at| Ok((at, part(worker, at..n.min(at + group))?))).collect::<Result<Vec<_>>>()
    };
    // Not rayon's threads: one that waits for another pool steals work, here that of the next worker, and returns late.
    let parts = thread::scope(|scope| {
        let some = &some;
        let mut workers = workers.iter_mut();
        let first = workers.next();
        let others: Vec<_> = workers.map(|worker| scope.spawn(move || some(worker))).collect();
        let first = first.into_iter().map(some);
        let join = |other: thread::ScopedJoinHandle<_>| other.join().unwrap_or_else(|e| resume_unwind(e));
        first.chain(others.into_iter().map(join)).collect::<Result<Vec<_>>>()
    })?;
    let mut parts: Vec<(usize, Array)> = parts.into_iter().flatten().collect();
    parts.sort_by_key(|&(at, _)| at);
    let mut dims = parts.first().map(|(_, array)| array.dims().to_vec()).unwrap_or_default();
    if let Some(batch) = dims.first_mut() {
        *batch = n;
    }
    Ok(Array::new(dims, parts.into_iter().flat_map(|(_, array)| array.into_data()).collect())?)
}

/// Returns the sizes and values of the items `range` of `x`.
pub(super) fn items(x: &Array, range: Range<usize>) -> (Vec<usize>, &[f32]) {
    let mut dims = x.dims().to_vec();
    let len: usize = dims.iter().skip(1).product();
    if let Some(batch) = dims.first_mut() {
        *batch = range.len();
    }
    (dims, x.data().get(range.start * len..range.end * len).unwrap_or(&[]))
}
