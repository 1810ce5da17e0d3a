//! Batches, made while the network computes.

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

/// A micro-batch in the processor's memory: what its task's loss expects, in its order.
#[derive(Clone, Debug)]
pub struct Batch(pub Vec<Tensor>);

impl Batch {
    /// Its tensors on `device`.
    ///
    /// # Errors
    /// Those of candle.
    ///
    /// # Panics
    /// When there are not `N` of them.
    pub fn on<const N: usize>(&self, device: &Device) -> Result<[Tensor; N]> {
        let tensors = self.0.iter().map(|tensor| tensor.to_device(device));
        let tensors: Vec<Tensor> = tensors.collect::<candle_core::Result<_>>()?;
        Ok(tensors.try_into().expect("a task's batch has the tensors that its loss expects"))
    }
}

/// Makes micro-batches. What is in one depends on its place alone: not on who makes it, when, or what was made before.
pub trait BatchSource: Send + Sync {
    /// Items in the training data.
    fn items(&self) -> usize;

    /// The `len` items from `position` on, the number of items drawn before.
    ///
    /// # Errors
    /// When data cannot be read.
    fn batch(&self, position: u64, len: usize) -> Result<Batch>;

    /// The files of these items, to be named when something is wrong with them.
    fn files(&self, position: u64, len: usize) -> Vec<PathBuf>;
}

/// Hands out micro-batches of one size: made when they are asked for, or ahead of that by threads of its own. What is in them is the same.
pub struct Loader {
    maker: BatchMaker,
    /// Which of the loaders that share the data this is, and how many there are.
    shard: (usize, usize),
    prefetch: Option<Prefetcher>,
    waited: Duration,
}

/// What makes micro-batches of one size.
#[derive(Clone)]
struct BatchMaker {
    batches: Arc<dyn BatchSource>,
    size: usize,
    /// From the beginning of one to that of the next that will be asked for.
    stride: usize,
}

/// Threads that make micro-batches ahead, and what they have made.
struct Prefetcher {
    pool: Option<ThreadPool>,
    threads: Vec<JoinHandle<()>>,
    /// How many micro-batches may be ready or in work.
    most: usize,
    /// Those, with the positions that they begin at, in this order.
    queue: VecDeque<(u64, Receiver<Result<Batch>>)>,
    /// Set when nobody will ask for what is in the queue any more.
    dropped: Arc<AtomicBool>,
}

impl Loader {
    /// Micro-batches of `size` items, made when they are asked for, with all cores.
    pub fn new(batches: Arc<dyn BatchSource>, size: usize) -> Self {
        Self {
            maker: BatchMaker { batches, size, stride: size },
            shard: (0, 1),
            prefetch: None,
            waited: Duration::ZERO,
        }
    }

    /// Micro-batches of `size` items, made by `workers` threads before they are asked for; at most `ahead` of them (at least one) are
    /// ready or in work at any time. With no workers they are made as by [`Loader::new`].
    ///
    /// # Errors
    /// When the threads can't be started.
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

    /// The same as one of `turns` loaders, in different processes, that share the micro-batches: of those that follow each other, each takes
    /// one.
    pub fn sharded(mut self, rank: usize, turns: usize) -> Self {
        (self.shard, self.maker.stride) = ((rank, turns), turns * self.maker.size);
        self
    }

    /// How many loaders share the micro-batches.
    pub fn shards(&self) -> usize {
        self.shard.1
    }

    /// Where this loader's micro-batch `index` begins, counted from where a step does.
    pub fn place(&self, index: usize) -> u64 {
        (index * self.maker.stride + self.shard.0 * self.maker.size) as u64
    }

    /// Items in a micro-batch.
    pub fn size(&self) -> usize {
        self.maker.size
    }

    /// The micro-batch that begins at `position`. Workers go on with those that follow it; asked for another one, they leave what they have
    /// and begin anew there.
    ///
    /// # Errors
    /// When data cannot be read; [`Error::Loading`] when what makes the batch panics.
    pub fn load(&mut self, position: u64) -> Result<Batch> {
        let start = Instant::now();
        let batch = match &mut self.prefetch {
            Some(prefetch) => prefetch.load(&self.maker, position),
            None => self.maker.make(position),
        };
        self.waited += start.elapsed();
        batch
    }

    /// How long [`Loader::load`] has taken since this was last asked: the time that the network waited for its data.
    pub fn waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl BatchMaker {
    /// Makes a micro-batch; a panic on the way is an error.
    fn make(&self, position: u64) -> Result<Batch> {
        // What is made is given up after a panic, and nothing that makes it is left half-changed: it is the same for all.
        let made = catch_unwind(AssertUnwindSafe(|| self.batches.batch(position, self.size)));
        made.unwrap_or_else(|panic| {
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
    fn new(workers: usize, most: usize) -> Result<Self> {
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
            .map_err(|error| Error::setting("--num-workers", error.to_string()))?;
        let dropped = Arc::default();
        Ok(Self { pool: Some(pool), threads, most: most.max(1), queue: VecDeque::new(), dropped })
    }

    fn load(&mut self, maker: &BatchMaker, position: u64) -> Result<Batch> {
        if self.queue.front().is_some_and(|(first, _)| *first != position) {
            self.drain();
        }
        self.fill(maker, position);
        let Some((_, made)) = self.queue.pop_front() else {
            return Err(maker.failed(position, "there is no worker".to_string()));
        };
        let batch =
            made.recv().unwrap_or_else(|_| Err(maker.failed(position, "its worker is gone".to_string())));
        if let Some(next) = position.checked_add(maker.stride as u64) {
            self.fill(maker, next);
        }
        batch
    }

    /// Has micro-batches made, the first of them at `position`, until there are as many as may be.
    fn fill(&mut self, maker: &BatchMaker, mut position: u64) {
        while self.queue.len() < self.most {
            if let Some((last, _)) = self.queue.back() {
                let Some(next) = last.checked_add(maker.stride as u64) else { return };
                position = next;
            }
            let (give, made) = sync_channel(1);
            let (maker, dropped) = (maker.clone(), self.dropped.clone());
            let Some(pool) = &self.pool else { return };
            pool.spawn_fifo(move || {
                if !dropped.load(Ordering::Relaxed) {
                    // Nobody may be there to take it any more.
                    let _ = give.send(maker.make(position));
                }
            });
            self.queue.push_back((position, made));
        }
    }

    /// Empties the queue; when it returns, no worker is at work.
    fn drain(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
        for (_, made) in self.queue.drain(..) {
            // What has begun is waited for, so that there never is more in work than there may be.
            let _ = made.recv();
        }
        self.dropped = Arc::default();
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.drain();
        // Its threads end when the pool is gone.
        self.pool = None;
        for thread in self.threads.drain(..) {
            // Whatever a thread panicked with, there is nothing left to be said about it.
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

    /// Batches of their positions, made slowly and by several threads; where `fails` says so, not at all.
    #[derive(Default)]
    struct Numbers {
        fails: Option<fn(u64)>,
        working: AtomicUsize,
        most: AtomicUsize,
        made: Mutex<Vec<u64>>,
    }

    impl BatchSource for Numbers {
        fn items(&self) -> usize {
            100
        }

        fn batch(&self, position: u64, len: usize) -> Result<Batch> {
            let working = self.working.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(working, Ordering::SeqCst);
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
    fn what_is_in_a_batch_does_not_depend_on_who_makes_it_or_when() {
        // Runs of batches that follow each other, between jumps.
        let mut stream = Stream::new(2, Purpose::Order, 0);
        let mut positions = Vec::new();
        for _ in 0..12 {
            let start = u64::from(stream.below(1000));
            positions.extend((0..u64::from(1 + stream.below(5))).map(|i| start + i * 8));
        }
        let all = |mut loader: Loader| -> Vec<Vec<f32>> {
            positions.iter().map(|&position| values(&loader.load(position).unwrap())).collect()
        };
        let expected = all(Loader::new(Arc::new(Numbers::default()), 8));
        for workers in [0, 1, 3] {
            for prefetch in [0, 1, 2, 5] {
                let numbers = Arc::new(Numbers::default());
                assert!(
                    all(Loader::with_workers(numbers.clone(), 8, workers, prefetch).unwrap()) == expected
                );
                assert!(
                    numbers.most.load(Ordering::SeqCst) <= prefetch.max(1),
                    "{workers} workers, {prefetch} ahead"
                );
            }
        }
    }

    #[test]
    fn workers_are_ahead_but_no_further_than_they_may_be() {
        let numbers = Arc::new(Numbers::default());
        let mut loader = Loader::with_workers(numbers.clone(), 8, 2, 2).unwrap();
        loader.load(0).unwrap();
        let asked = Instant::now();
        while numbers.made.lock().unwrap().len() < 3 {
            assert!(asked.elapsed() < Duration::from_secs(30), "nothing is made ahead");
            std::thread::sleep(Duration::from_millis(1));
        }
        // However long the network takes, there is no fourth.
        std::thread::sleep(Duration::from_millis(50));
        let mut made = numbers.made.lock().unwrap().clone();
        made.sort_unstable();
        assert_eq!(made, [0, 8, 16]);
        assert!(loader.waited() > Duration::ZERO && loader.waited() == Duration::ZERO);
        loader.load(8).unwrap();
        assert!(loader.waited() > Duration::ZERO);
    }

    #[test]
    fn loaders_that_take_turns_share_the_micro_batches_and_are_ahead_with_their_own() {
        for workers in [0, 2] {
            let mut all = Vec::new();
            for rank in 0..3 {
                let numbers = Arc::new(Numbers::default());
                let loader = Loader::with_workers(numbers.clone(), 4, workers, 2).unwrap();
                let mut loader = loader.sharded(rank, 3);
                // Two steps of two micro-batches of each.
                for (step, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let position = step * 24 + loader.place(index);
                    all.push((position, values(&loader.load(position).unwrap())));
                }
                drop(loader);
                let made = numbers.made.lock().unwrap();
                assert!(made.iter().all(|position| position % 12 == 4 * rank as u64), "{made:?}");
            }
            all.sort_by_key(|(position, _)| *position);
            let mut alone = Loader::new(Arc::new(Numbers::default()), 4);
            let expected = (0..12).map(|i| (4 * i, values(&alone.load(4 * i).unwrap())));
            assert!(all.into_iter().eq(expected));
        }
    }

    #[test]
    fn a_panic_or_an_error_of_a_worker_is_an_error_and_the_loader_goes_on() {
        for workers in [0, 2] {
            let fails = Some((|position| assert!(position != 16, "no batch at {position}")) as fn(u64));
            let numbers = Arc::new(Numbers { fails, ..Numbers::default() });
            let mut loader = Loader::with_workers(numbers, 8, workers, 3).unwrap();
            assert!(loader.load(8).is_ok());
            let error = loader.load(16).unwrap_err().to_string();
            assert_eq!(error, "the batch of 8 items from item 16 on: no batch at 16");
            assert!(loader.load(24).is_ok() && loader.load(16).is_err() && loader.load(8).is_ok());
            assert_eq!(loader.load(77_000).unwrap_err().to_string(), "data: gone");
            assert!(loader.load(u64::MAX - 9).is_ok());
        }
    }

    #[test]
    fn no_worker_outlives_its_loader() {
        let numbers = Arc::new(Numbers::default());
        for loads in [0, 1, 3] {
            let mut loader = Loader::with_workers(numbers.clone(), 8, 3, 4).unwrap();
            (0..loads).for_each(|i| drop(loader.load(i * 8).unwrap()));
            drop(loader);
            // Whoever is still at work has a share of it.
            assert_eq!((Arc::strong_count(&numbers), numbers.working.load(Ordering::SeqCst)), (1, 0));
        }
    }
}
