//! Loading of batches while the network computes.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{Error, Result};

/// A micro-batch in CPU memory: the tensors that its task's loss expects, in that order.
#[derive(Clone, Debug)]
pub struct Batch(pub Vec<Tensor>);

impl Batch {
    /// Copies the tensors to `device`.
    ///
    /// # Errors
    /// Returns errors of candle.
    ///
    /// # Panics
    /// Panics if their number is not `N`.
    pub fn to_device<const N: usize>(&self, device: &Device) -> Result<[Tensor; N]> {
        let tensors = self.0.iter().map(|tensor| tensor.to_device(device));
        let tensors: Vec<Tensor> = tensors.collect::<candle_core::Result<_>>()?;
        Ok(tensors.try_into().expect("a task's batch has the tensors that its loss expects"))
    }
}

/// A source of micro-batches.
///
/// A batch depends only on its position, not on the thread that makes it, the time, or earlier batches.
pub trait BatchSource: Send + Sync {
    /// Number of items in the training data.
    fn items(&self) -> usize;

    /// Makes the batch of `len` items that starts at `position`, the number of items drawn before.
    ///
    /// # Errors
    /// Returns an error if data cannot be read.
    fn batch(&self, position: u64, len: usize) -> Result<Batch>;

    /// Lists the files of these items, for error messages.
    fn files(&self, position: u64, len: usize) -> Vec<PathBuf>;
}

/// A loader of micro-batches of one size.
///
/// It makes them on request, or ahead of time on its own threads; their content is the same.
pub struct Loader {
    maker: BatchMaker,
    /// The index of this loader among the loaders that share the data, and their number.
    shard: (usize, usize),
    prefetch: Option<Prefetcher>,
    waited: Duration,
}

/// Makes micro-batches of one size.
#[derive(Clone)]
struct BatchMaker {
    batches: Arc<dyn BatchSource>,
    size: usize,
    /// Items from the start of one micro-batch to the start of the next one of this loader.
    stride: usize,
}

/// Threads that make micro-batches ahead of time, and the queue of these.
struct Prefetcher {
    pool: Option<ThreadPool>,
    threads: Vec<JoinHandle<()>>,
    /// Maximum number of micro-batches that are ready or in progress.
    max: usize,
    /// These micro-batches with their start positions, in this order.
    queue: VecDeque<(u64, Receiver<Result<Batch>>)>,
    /// True once the queue is no longer needed, so that workers skip what they have not started.
    dropped: Arc<AtomicBool>,
}

impl Loader {
    /// Makes a loader of micro-batches of `size` items, made on request by all cores.
    pub fn new(batches: Arc<dyn BatchSource>, size: usize) -> Self {
        Self {
            maker: BatchMaker { batches, size, stride: size },
            shard: (0, 1),
            prefetch: None,
            waited: Duration::ZERO,
        }
    }

    /// Makes a loader of micro-batches of `size` items, which `workers` threads make ahead of time.
    ///
    /// At most `prefetch` of them (at least one) are ready or in progress at any time. Without workers it is the same as [`Loader::new`].
    ///
    /// # Errors
    /// Returns an error if the threads cannot be started.
    pub fn with_workers(
        batches: Arc<dyn BatchSource>,
        size: usize,
        workers: usize,
        prefetch: usize,
    ) -> Result<Self> {
        let mut loader = Self::new(batches, size);
        if workers > 0 {
            loader.prefetch = Some(Prefetcher::new(workers, prefetch)?);
        }
        Ok(loader)
    }

    /// Makes this loader number `rank` of `processes` loaders in different processes that share the micro-batches.
    ///
    /// Of `processes` consecutive micro-batches, each loader gets one.
    pub fn sharded(mut self, rank: usize, processes: usize) -> Self {
        (self.shard, self.maker.stride) = ((rank, processes), processes * self.maker.size);
        self
    }

    /// The number of loaders that share the micro-batches.
    pub fn shards(&self) -> usize {
        self.shard.1
    }

    /// The start of this loader's micro-batch `index`, counted in items from the start of the step.
    pub fn offset(&self, index: usize) -> u64 {
        (index * self.maker.stride + self.shard.0 * self.maker.size) as u64
    }

    /// Number of items in a micro-batch.
    pub fn size(&self) -> usize {
        self.maker.size
    }

    /// Returns the micro-batch that starts at `position`.
    ///
    /// Workers continue with the micro-batches that follow it. If another position is requested, they drop their batches and restart there.
    ///
    /// # Errors
    /// Returns an error if data cannot be read, and [`Error::Loading`] if the source panics.
    pub fn load(&mut self, position: u64) -> Result<Batch> {
        let start = Instant::now();
        let batch = match &mut self.prefetch {
            Some(prefetch) => prefetch.load(&self.maker, position),
            None => self.maker.make(position),
        };
        self.waited += start.elapsed();
        batch
    }

    /// The time that [`Loader::load`] took since the last call of this function, in which the network waited for data.
    pub fn waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl BatchMaker {
    /// Makes a micro-batch; a panic becomes an error.
    fn make(&self, position: u64) -> Result<Batch> {
        // After a panic the batch is dropped, and the source is shared and immutable, so no state is inconsistent.
        let result = catch_unwind(AssertUnwindSafe(|| self.batches.batch(position, self.size)));
        result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Err(self.failed(position, text.unwrap_or("a panic").to_string()))
        })
    }

    fn failed(&self, position: u64, message: String) -> Error {
        Error::Loading { position, size: self.size, message }
    }
}

impl Prefetcher {
    fn new(workers: usize, max: usize) -> Result<Self> {
        let mut threads = Vec::with_capacity(workers);
        let pool = ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|i| format!("loader-{i}"))
            .spawn_handler(|thread| {
                let builder = std::thread::Builder::new().name(thread.name().unwrap_or_default().to_owned());
                threads.push(builder.spawn(|| thread.run())?);
                Ok(())
            })
            .build()
            .map_err(|error| Error::setting("num-workers", error.to_string()))?;
        let dropped = Arc::default();
        Ok(Self { pool: Some(pool), threads, max: max.max(1), queue: VecDeque::new(), dropped })
    }

    fn load(&mut self, maker: &BatchMaker, position: u64) -> Result<Batch> {
        if self.queue.front().is_some_and(|(first, _)| *first != position) {
            self.drain();
        }
        self.fill(maker, position);
        let Some((_, receiver)) = self.queue.pop_front() else {
            return Err(maker.failed(position, "no worker".to_string()));
        };
        let batch =
            receiver.recv().unwrap_or_else(|_| Err(maker.failed(position, "the worker ended".to_string())));
        if let Some(next) = position.checked_add(maker.stride as u64) {
            self.fill(maker, next);
        }
        batch
    }

    /// Queues micro-batches, the first of them at `position`, up to the limit.
    fn fill(&mut self, maker: &BatchMaker, mut position: u64) {
        while self.queue.len() < self.max {
            if let Some((last, _)) = self.queue.back() {
                let Some(next) = last.checked_add(maker.stride as u64) else { return };
                position = next;
            }
            let (sender, receiver) = sync_channel(1);
            let (maker, dropped) = (maker.clone(), self.dropped.clone());
            let Some(pool) = &self.pool else { return };
            pool.spawn_fifo(move || {
                if !dropped.load(Ordering::Relaxed) {
                    // The receiver may be gone.
                    let _ = sender.send(maker.make(position));
                }
            });
            self.queue.push_back((position, receiver));
        }
    }

    /// Empties the queue; when it returns, no worker is busy.
    fn drain(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
        for (_, receiver) in self.queue.drain(..) {
            // Waiting for batches in progress keeps their number within the limit.
            let _ = receiver.recv();
        }
        self.dropped = Arc::default();
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.drain();
        // The threads end when the pool is dropped.
        self.pool = None;
        for thread in self.threads.drain(..) {
            // A panic of a thread changes nothing at this point.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, atomic::AtomicUsize};

    use rayon::prelude::*;
    use tiny_cats_models::random::{Purpose, Stream};

    use super::*;

    /// Batches that hold their positions, made slowly and by several threads; `fails` panics for some.
    #[derive(Default)]
    struct Numbers {
        fails: Option<fn(u64)>,
        working: AtomicUsize,
        max_working: AtomicUsize,
        made: Mutex<Vec<u64>>,
    }

    impl BatchSource for Numbers {
        fn items(&self) -> usize {
            100
        }

        fn batch(&self, position: u64, len: usize) -> Result<Batch> {
            let working = self.working.fetch_add(1, Ordering::SeqCst) + 1;
            self.max_working.fetch_max(working, Ordering::SeqCst);
            let values: Vec<f32> = (0..len as u64)
                .into_par_iter()
                .map(|i| Stream::new(1, Purpose::Training, position + i).normal() as f32)
                .collect();
            std::thread::sleep(Duration::from_millis(1 + position % 3));
            self.working.fetch_sub(1, Ordering::SeqCst);
            self.made.lock().unwrap().push(position);
            if let Some(fails) = self.fails {
                fails(position);
            }
            if position == 77_000 {
                return Err(Error::setting("data", "gone"));
            }
            Ok(Batch(vec![Tensor::from_vec(values, len, &Device::Cpu)?]))
        }

        fn files(&self, _: u64, _: usize) -> Vec<PathBuf> {
            Vec::new()
        }
    }

    fn values(batch: &Batch) -> Vec<f32> {
        batch.0[0].to_vec1().unwrap()
    }

    #[test]
    fn batches_do_not_depend_on_workers_or_timing() {
        // Runs of consecutive batches, between jumps.
        let mut stream = Stream::new(2, Purpose::Order, 0);
        let mut positions = Vec::new();
        for _ in 0..12 {
            let start = u64::from(stream.uniform_int(1000));
            positions.extend((0..u64::from(1 + stream.uniform_int(5))).map(|i| start + i * 8));
        }
        let batches = |mut loader: Loader| -> Vec<Vec<f32>> {
            positions.iter().map(|&position| values(&loader.load(position).unwrap())).collect()
        };
        let expected = batches(Loader::new(Arc::new(Numbers::default()), 8));
        for workers in [0, 1, 3] {
            for prefetch in [0, 1, 2, 5] {
                let numbers = Arc::new(Numbers::default());
                assert!(
                    batches(Loader::with_workers(numbers.clone(), 8, workers, prefetch).unwrap()) == expected
                );
                assert!(
                    numbers.max_working.load(Ordering::SeqCst) <= prefetch.max(1),
                    "{workers} workers, {prefetch} ahead"
                );
            }
        }
    }

    #[test]
    fn workers_prefetch_up_to_the_limit() {
        let numbers = Arc::new(Numbers::default());
        let mut loader = Loader::with_workers(numbers.clone(), 8, 2, 2).unwrap();
        loader.load(0).unwrap();
        let start = Instant::now();
        while numbers.made.lock().unwrap().len() < 3 {
            assert!(start.elapsed() < Duration::from_secs(30), "nothing was prefetched");
            std::thread::sleep(Duration::from_millis(1));
        }
        // There is no fourth batch, however long the network takes.
        std::thread::sleep(Duration::from_millis(50));
        let mut made = numbers.made.lock().unwrap().clone();
        made.sort_unstable();
        assert_eq!(made, [0, 8, 16]);
        assert!(loader.waited() > Duration::ZERO && loader.waited() == Duration::ZERO);
        loader.load(8).unwrap();
        assert!(loader.waited() > Duration::ZERO);
    }

    #[test]
    fn sharded_loaders_split_the_micro_batches() {
        for workers in [0, 2] {
            let mut batches = Vec::new();
            for rank in 0..3 {
                let numbers = Arc::new(Numbers::default());
                let loader = Loader::with_workers(numbers.clone(), 4, workers, 2).unwrap();
                let mut loader = loader.sharded(rank, 3);
                // Two steps of two micro-batches of each.
                for (step, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let position = step * 24 + loader.offset(index);
                    batches.push((position, values(&loader.load(position).unwrap())));
                }
                drop(loader);
                let made = numbers.made.lock().unwrap();
                assert!(made.iter().all(|position| position % 12 == 4 * rank as u64), "{made:?}");
            }
            batches.sort_by_key(|(position, _)| *position);
            let mut single = Loader::new(Arc::new(Numbers::default()), 4);
            let expected = (0..12).map(|i| (4 * i, values(&single.load(4 * i).unwrap())));
            assert!(batches.into_iter().eq(expected));
        }
    }

    #[test]
    fn worker_panics_and_errors_are_returned_and_the_loader_stays_usable() {
        for workers in [0, 2] {
            let fails = Some((|position| assert!(position != 16, "no batch at {position}")) as fn(u64));
            let numbers = Arc::new(Numbers { fails, ..Numbers::default() });
            let mut loader = Loader::with_workers(numbers, 8, workers, 3).unwrap();
            assert!(loader.load(8).is_ok());
            let error = loader.load(16).unwrap_err().to_string();
            assert_eq!(error, "batch of 8 items at position 16: no batch at 16");
            assert!(loader.load(24).is_ok() && loader.load(16).is_err() && loader.load(8).is_ok());
            assert_eq!(loader.load(77_000).unwrap_err().to_string(), "data: gone");
            assert!(loader.load(u64::MAX - 9).is_ok());
        }
    }

    #[test]
    fn workers_end_with_their_loader() {
        let numbers = Arc::new(Numbers::default());
        for loads in [0, 1, 3] {
            let mut loader = Loader::with_workers(numbers.clone(), 8, 3, 4).unwrap();
            (0..loads).for_each(|i| drop(loader.load(i * 8).unwrap()));
            drop(loader);
            // A busy worker would hold a reference to it.
            assert_eq!((Arc::strong_count(&numbers), numbers.working.load(Ordering::SeqCst)), (1, 0));
        }
    }
}
