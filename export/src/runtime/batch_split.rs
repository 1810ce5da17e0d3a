//! Splitting of a batch among threads.

use std::{
    ops::Range,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tiny_cats_models::Array;

use crate::Result;

/// Maximum number of items that a thread computes at once: the weights are read once for all of them, and the activations fit in its
/// cache.
#[cfg(any(feature = "native", feature = "ort"))]
pub(super) const MAX_ITEMS_PER_PASS: usize = 4;

/// Computes `part` for the `n` items of a batch, at most `max_items` at a time, on one thread per worker. Threads synchronize once, not
/// at every operation. `part` returns an array of the items in its range, in order.
///
/// # Errors
/// The first error of `part`.
pub(super) fn split_batch<W: Send>(
    workers: &mut [W],
    n: usize,
    max_items: usize,
    part: impl Fn(&mut W, Range<usize>) -> Result<Array> + Sync,
) -> Result<Array> {
    let group = (n / workers.len().max(1)).clamp(1, max_items);
    let next = AtomicUsize::new(0);
    // Dynamic scheduling: a free thread takes the next group, so none waits long for a slower one.
    let run_groups = |worker: &mut W| {
        let starts =
            std::iter::from_fn(|| Some(next.fetch_add(group, Ordering::Relaxed)).filter(|&start| start < n));
        starts
            .map(|start| Ok((start, part(worker, start..n.min(start + group))?)))
            .collect::<Result<Vec<_>>>()
    };
    // Not rayon's threads: a thread that waits for another pool would steal the work of the next worker and return late.
    let parts = thread::scope(|scope| {
        let run_groups = &run_groups;
        let mut workers = workers.iter_mut();
        let first = workers.next();
        let others: Vec<_> = workers.map(|worker| scope.spawn(move || run_groups(worker))).collect();
        let first = first.into_iter().map(run_groups);
        let join = |other: thread::ScopedJoinHandle<_>| other.join().unwrap_or_else(|e| resume_unwind(e));
        first.chain(others.into_iter().map(join)).collect::<Result<Vec<_>>>()
    })?;
    let mut parts: Vec<(usize, Array)> = parts.into_iter().flatten().collect();
    parts.sort_by_key(|&(start, _)| start);
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
