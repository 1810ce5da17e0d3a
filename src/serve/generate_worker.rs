//! The generator's worker thread: continuous batching.
//!
//! Each batch holds images of all requests, whose steps, samplers and guidance may differ. Slots are assigned round-robin. A new request
//! joins at the next evaluation of the network; images of other requests pause if the batch is full. A client disconnect or a timeout
//! cancels the job.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use image::RgbImage;
use tiny_cats_export::{Error, GeneratedImage, Generator, Request, sample::Trajectory};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{Problem, model_queue::WorkerContext};

/// Consecutive failures of the runtime after which the worker ends.
const MAX_FAILURES: usize = 3;

/// A request for images.
pub struct GenerateJob {
    /// The settings that all images share.
    pub request: Request,
    /// The labels of the images' classes.
    pub labels: Vec<usize>,
    /// The index of the first image; with the seed it determines the noise.
    pub first_index: u64,
    /// The time at which the request times out.
    pub deadline: Instant,
    /// The channel for the result. The job is canceled if its receiver is dropped.
    pub reply: oneshot::Sender<Result<Vec<GeneratedImage>, Problem>>,
    /// The channel for progress; an update that does not fit is dropped.
    pub steps: Option<mpsc::Sender<StepUpdate>>,
    /// The permits of the queue, one per image.
    pub permits: OwnedSemaphorePermit,
}

/// The progress of a job.
pub struct StepUpdate {
    /// Steps done, summed over all images.
    pub done: usize,
    /// Total number of steps.
    pub total: usize,
    /// The images that advanced by a step: index and preview.
    pub previews: Vec<(u64, RgbImage)>,
}

/// A job and its progress.
struct ActiveJob {
    job: GenerateJob,
    /// Number of images started.
    started: usize,
    active: Vec<ActiveImage>,
    finished: Vec<GeneratedImage>,
    /// Steps done.
    done: usize,
}

struct ActiveImage {
    trajectory: Trajectory,
    /// The time of the image's evaluations, divided by the images per batch.
    spent: Duration,
}

impl ActiveJob {
    fn new(job: GenerateJob) -> Self {
        Self { job, started: 0, active: Vec::new(), finished: Vec::new(), done: 0 }
    }

    /// The number of unfinished images.
    fn remaining(&self) -> usize {
        self.job.labels.len() - self.finished.len()
    }

    /// Starts images until `share` of them are active.
    fn start_images(&mut self, share: usize, generator: &Generator) -> Result<(), Error> {
        while self.active.len() < share
            && let Some(&label) = self.job.labels.get(self.started)
        {
            let index = self.job.first_index.wrapping_add(self.started as u64);
            let trajectory = generator.start_trajectory(label, index, &self.job.request)?;
            self.active.push(ActiveImage { trajectory, spent: Duration::ZERO });
            self.started += 1;
        }
        Ok(())
    }

    fn send_result(self, result: Result<Vec<GeneratedImage>, Problem>) {
        // The permits are released before the result is sent, so that the client may send its next request at once.
        drop(self.job.permits);
        let _ = self.job.reply.send(result);
    }
}

struct GenerateWorker {
    generator: Generator,
    context: WorkerContext<GenerateJob>,
    /// Maximum images per evaluation.
    max_batch: usize,
    /// The unfinished jobs, in round-robin order.
    active_jobs: VecDeque<ActiveJob>,
    /// Consecutive failed evaluations.
    failures: usize,
}

/// Generates up to `max_batch` images at a time, until the queue is closed or the runtime fails `MAX_FAILURES` times in a row.
pub fn work(generator: Generator, context: WorkerContext<GenerateJob>, max_batch: usize) {
    let mut worker =
        GenerateWorker { generator, context, max_batch, active_jobs: VecDeque::new(), failures: 0 };
    while worker.failures < MAX_FAILURES && worker.take_jobs() {
        worker.cancel_jobs();
        worker.evaluate();
        worker.finish();
    }
}

impl GenerateWorker {
    /// Receives the new jobs, and waits for one if there are no active jobs. Returns false if the queue is closed.
    fn take_jobs(&mut self) -> bool {
        if self.active_jobs.is_empty() {
            match self.context.jobs.recv() {
                Ok(job) => self.active_jobs.push_back(ActiveJob::new(job)),
                Err(_) => return false,
            }
        }
        while let Ok(job) = self.context.jobs.try_recv() {
            self.active_jobs.push_back(ActiveJob::new(job));
        }
        true
    }

    /// Cancels jobs whose client has disconnected or whose deadline has passed.
    fn cancel_jobs(&mut self) {
        let (now, jobs) = (Instant::now(), std::mem::take(&mut self.active_jobs));
        for active_job in jobs {
            let is_late = now > active_job.job.deadline;
            if !is_late && !active_job.job.reply.is_closed() {
                self.active_jobs.push_back(active_job);
                continue;
            }
            self.context.metrics.record_canceled(&self.context.name, active_job.remaining());
            active_job.send_result(Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "the request timed out")));
        }
    }

    /// Evaluates the network once, on a batch with images of the active jobs.
    fn evaluate(&mut self) {
        let shares = shares(self.active_jobs.iter().map(ActiveJob::remaining), self.max_batch);
        let mut i = 0;
        for share in &shares {
            match self.active_jobs[i].start_images(*share, &self.generator) {
                Ok(()) => i += 1,
                Err(error) => {
                    if let Some(active_job) = self.active_jobs.remove(i) {
                        active_job.send_result(Err(error.into()));
                    }
                    return;
                }
            }
        }
        let n: usize = shares.iter().sum();
        if n == 0 {
            return;
        }
        let steps_before: Vec<usize> =
            batch_images(&mut self.active_jobs, &shares).map(|image| image.trajectory.done()).collect();
        let start = Instant::now();
        let result = self
            .generator
            .advance(batch_images(&mut self.active_jobs, &shares).map(|image| &mut image.trajectory));
        let time_per_image = start.elapsed() / n as u32;
        batch_images(&mut self.active_jobs, &shares).for_each(|image| image.spent += time_per_image);
        self.context.metrics.record_batch(&self.context.name, n);
        match result {
            Ok(()) => {
                self.failures = 0;
                self.send_progress(&shares, &steps_before);
                // If not all jobs fit into a batch, others come first in the next.
                self.active_jobs.rotate_left(1);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Sends progress to the jobs that requested it.
    fn send_progress(&mut self, shares: &[usize], steps_before: &[usize]) {
        let mut steps_before = steps_before.iter();
        for (active_job, share) in self.active_jobs.iter_mut().zip(shares) {
            let stepped: Vec<&Trajectory> = active_job.active[..*share]
                .iter()
                .zip(&mut steps_before)
                .filter_map(|(image, steps_before)| {
                    (image.trajectory.done() > *steps_before).then_some(&image.trajectory)
                })
                .collect();
            active_job.done += stepped.len();
            let channel = active_job.job.steps.as_ref().filter(|_| !stepped.is_empty());
            if let Some(Ok(permit)) = channel.map(mpsc::Sender::try_reserve) {
                let preview = |t: &&Trajectory| (t.index(), self.generator.preview(t));
                let previews = stepped.iter().map(preview).collect();
                let total =
                    active_job.job.labels.len() * self.generator.settings(&active_job.job.request).steps;
                permit.send(StepUpdate { done: active_job.done, total, previews });
            }
        }
    }

    /// Handles a failed evaluation: non-finite values fail only the jobs that have them, any other error fails all jobs.
    fn fail(&mut self, error: &Error) {
        tracing::error!("{}: {error}", self.context.name);
        let is_non_finite = matches!(error, Error::NotFinite { .. });
        self.failures += usize::from(!is_non_finite);
        let has_non_finite = |active_job: &ActiveJob| {
            let mut values = active_job.active.iter().flat_map(|image| image.trajectory.values());
            values.any(|value| !value.is_finite())
        };
        for active_job in std::mem::take(&mut self.active_jobs) {
            if is_non_finite && !has_non_finite(&active_job) {
                self.active_jobs.push_back(active_job);
            } else {
                active_job
                    .send_result(Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())));
            }
        }
    }

    /// Sends the results of finished jobs.
    fn finish(&mut self) {
        for mut active_job in std::mem::take(&mut self.active_jobs) {
            let images = std::mem::take(&mut active_job.active);
            let (finished, active): (Vec<_>, Vec<_>) =
                images.into_iter().partition(|image| image.trajectory.is_finished());
            active_job.active = active;
            if !finished.is_empty() {
                self.context.record_time(finished.iter().map(|image| image.spent).sum(), finished.len());
            }
            let images = finished.into_iter().map(|image| self.generator.finish_trajectory(image.trajectory));
            match images.collect::<Result<Vec<GeneratedImage>, Error>>() {
                Ok(images) => active_job.finished.extend(images),
                Err(error) => {
                    active_job.send_result(Err(error.into()));
                    continue;
                }
            }
            if active_job.remaining() > 0 {
                self.active_jobs.push_back(active_job);
                continue;
            }
            let first_index = active_job.job.first_index;
            active_job.finished.sort_by_key(|image| image.index.wrapping_sub(first_index));
            let images = std::mem::take(&mut active_job.finished);
            active_job.send_result(Ok(images));
        }
    }
}

/// Assigns the `max_batch` slots to jobs round-robin, at most `requested` to each.
fn shares(requested: impl Iterator<Item = usize>, max_batch: usize) -> Vec<usize> {
    let requested: Vec<usize> = requested.collect();
    let mut shares = vec![0; requested.len()];
    let mut remaining = max_batch.min(requested.iter().sum());
    while remaining > 0 {
        for (share, _) in shares.iter_mut().zip(&requested).filter(|(share, requested)| **share < **requested)
        {
            if remaining > 0 {
                *share += 1;
                remaining -= 1;
            }
        }
    }
    shares
}

/// The images of the next batch: the first active ones of each job, by its share.
fn batch_images<'a>(
    active_jobs: &'a mut VecDeque<ActiveJob>,
    shares: &'a [usize],
) -> impl Iterator<Item = &'a mut ActiveImage> {
    active_jobs.iter_mut().zip(shares).flat_map(|(active_job, share)| active_job.active[..*share].iter_mut())
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn slots_are_assigned_round_robin_until_the_batch_is_full() {
        for (requested, max_batch, expected) in [
            (vec![64], 16, vec![16]),
            (vec![64, 1], 16, vec![15, 1]),
            (vec![64, 64, 3], 16, vec![7, 6, 3]),
            (vec![1, 1, 1], 2, vec![1, 1, 0]),
            (vec![2, 0, 5], 16, vec![2, 0, 5]),
            (vec![], 4, vec![]),
        ] {
            assert_eq!(shares(requested.clone().into_iter(), max_batch), expected, "{requested:?}");
        }
    }
}
