//! The generator's worker thread: continuous batching.
//!
//! Images of all requests share each evaluation of the network, one of each request in turn while there is room. Their steps, samplers and
//! guidance may differ. So a new request joins at the next evaluation, however long the others take, and images of another request pause
//! meanwhile. The work of a client that disconnects, or whose time is over, is canceled.

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

/// Images that one client waits for.
pub struct GenerateJob {
    /// The settings of the images.
    pub request: Request,
    /// The labels of the images' classes.
    pub labels: Vec<usize>,
    /// The index of the first image.
    pub first: u64,
    /// The end of the request's time.
    pub deadline: Instant,
    /// The channel for the result. The job is canceled if its receiver is dropped.
    pub reply: oneshot::Sender<Result<Vec<GeneratedImage>, Problem>>,
    /// The channel for progress; an update that does not fit is dropped.
    pub steps: Option<mpsc::Sender<StepUpdate>>,
    /// The images' permits of the queue.
    pub room: OwnedSemaphorePermit,
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

/// A job, and its progress.
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
    /// The image's share of the time of the evaluations that it was part of.
    spent: Duration,
}

impl ActiveJob {
    fn new(job: GenerateJob) -> Self {
        Self { job, started: 0, active: Vec::new(), finished: Vec::new(), done: 0 }
    }

    /// The number of unfinished images.
    fn left(&self) -> usize {
        self.job.labels.len() - self.finished.len()
    }

    /// Starts images until `share` are active.
    fn begin(&mut self, share: usize, generator: &Generator) -> Result<(), Error> {
        while self.active.len() < share
            && let Some(&label) = self.job.labels.get(self.started)
        {
            let index = self.job.first.wrapping_add(self.started as u64);
            let trajectory = generator.start_trajectory(label, index, &self.job.request)?;
            self.active.push(ActiveImage { trajectory, spent: Duration::ZERO });
            self.started += 1;
        }
        Ok(())
    }

    fn answer(self, answer: Result<Vec<GeneratedImage>, Problem>) {
        // The permits are released before the result is sent, so that the client may send its next request at once.
        drop(self.job.room);
        let _ = self.job.reply.send(answer);
    }
}

struct GenerateWorker {
    generator: Generator,
    context: WorkerContext<GenerateJob>,
    /// Maximum images per evaluation.
    max_batch: usize,
    /// The unfinished jobs, in turn.
    open: VecDeque<ActiveJob>,
    /// Consecutive evaluations that failed.
    failures: usize,
}

/// Generates up to `max_batch` images at a time, until the queue is closed or the runtime fails `MAX_FAILURES` times in a row.
pub fn work(generator: Generator, context: WorkerContext<GenerateJob>, max_batch: usize) {
    let mut worker = GenerateWorker { generator, context, max_batch, open: VecDeque::new(), failures: 0 };
    while worker.failures < MAX_FAILURES && worker.take_jobs() {
        worker.drop_abandoned();
        worker.evaluate();
        worker.finish();
    }
}

impl GenerateWorker {
    /// Receives the new jobs, and waits for one if there is nothing to do. False if the queue is closed.
    fn take_jobs(&mut self) -> bool {
        if self.open.is_empty() {
            match self.context.jobs.recv() {
                Ok(job) => self.open.push_back(ActiveJob::new(job)),
                Err(_) => return false,
            }
        }
        while let Ok(job) = self.context.jobs.try_recv() {
            self.open.push_back(ActiveJob::new(job));
        }
        true
    }

    /// Cancels jobs whose client has disconnected or whose time is over.
    fn drop_abandoned(&mut self) {
        let (now, all) = (Instant::now(), std::mem::take(&mut self.open));
        for open in all {
            let late = now > open.job.deadline;
            if !late && !open.job.reply.is_closed() {
                self.open.push_back(open);
                continue;
            }
            self.context.metrics.record_canceled(&self.context.name, open.left());
            open.answer(Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "not done in time")));
        }
    }

    /// Evaluates the network once, for one image of each job in turn while there is room.
    fn evaluate(&mut self) {
        let shares = shares(self.open.iter().map(ActiveJob::left), self.max_batch);
        let mut i = 0;
        for share in &shares {
            match self.open[i].begin(*share, &self.generator) {
                Ok(()) => i += 1,
                Err(error) => {
                    if let Some(open) = self.open.remove(i) {
                        open.answer(Err(error.into()));
                    }
                    return;
                }
            }
        }
        let n: usize = shares.iter().sum();
        if n == 0 {
            return;
        }
        let before: Vec<usize> = batch_images(&mut self.open, &shares).map(|u| u.trajectory.done()).collect();
        let start = Instant::now();
        let result = self.generator.advance(batch_images(&mut self.open, &shares).map(|u| &mut u.trajectory));
        let each = start.elapsed() / n as u32;
        batch_images(&mut self.open, &shares).for_each(|active| active.spent += each);
        self.context.metrics.record_batch(&self.context.name, n);
        match result {
            Ok(()) => {
                self.failures = 0;
                self.send_progress(&shares, &before);
                // If there are more jobs than room, others come first the next time.
                self.open.rotate_left(1);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Sends progress to the jobs that requested it.
    fn send_progress(&mut self, shares: &[usize], before: &[usize]) {
        let mut before = before.iter();
        for (open, share) in self.open.iter_mut().zip(shares) {
            let stepped: Vec<&Trajectory> = open.active[..*share]
                .iter()
                .zip(&mut before)
                .filter_map(|(u, before)| (u.trajectory.done() > *before).then_some(&u.trajectory))
                .collect();
            open.done += stepped.len();
            let listener = open.job.steps.as_ref().filter(|_| !stepped.is_empty());
            if let Some(Ok(place)) = listener.map(mpsc::Sender::try_reserve) {
                let preview = |t: &&Trajectory| (t.index(), self.generator.preview(t));
                let previews = stepped.iter().map(preview).collect();
                let total = open.job.labels.len() * self.generator.settings(&open.job.request).steps;
                place.send(StepUpdate { done: open.done, total, previews });
            }
        }
    }

    /// Handles a failed evaluation: non-finite values fail only the jobs that have them, any other error fails all.
    fn fail(&mut self, error: &Error) {
        tracing::error!("{}: {error}", self.context.name);
        let one = matches!(error, Error::NotFinite { .. });
        self.failures += usize::from(!one);
        let broken = |open: &ActiveJob| {
            let mut values = open.active.iter().flat_map(|u| u.trajectory.values());
            values.any(|value| !value.is_finite())
        };
        for open in std::mem::take(&mut self.open) {
            if one && !broken(&open) {
                self.open.push_back(open);
            } else {
                open.answer(Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())));
            }
        }
    }

    /// Sends the results of finished jobs.
    fn finish(&mut self) {
        for mut open in std::mem::take(&mut self.open) {
            let all = std::mem::take(&mut open.active);
            let (finished, active): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|active| active.trajectory.is_finished());
            open.active = active;
            if !finished.is_empty() {
                self.context.record_time(finished.iter().map(|u| u.spent).sum(), finished.len());
            }
            let pictures = finished.into_iter().map(|u| self.generator.finish_trajectory(u.trajectory));
            match pictures.collect::<Result<Vec<GeneratedImage>, Error>>() {
                Ok(pictures) => open.finished.extend(pictures),
                Err(error) => {
                    open.answer(Err(error.into()));
                    continue;
                }
            }
            if open.left() > 0 {
                self.open.push_back(open);
                continue;
            }
            let first = open.job.first;
            open.finished.sort_by_key(|picture| picture.index.wrapping_sub(first));
            let pictures = std::mem::take(&mut open.finished);
            open.answer(Ok(pictures));
        }
    }
}

/// Divides `max_batch` among jobs that can use the `wanted` numbers, one each in turn.
fn shares(wanted: impl Iterator<Item = usize>, max_batch: usize) -> Vec<usize> {
    let wanted: Vec<usize> = wanted.collect();
    let mut shares = vec![0; wanted.len()];
    let mut left = max_batch.min(wanted.iter().sum());
    while left > 0 {
        for (share, _) in shares.iter_mut().zip(&wanted).filter(|(share, wanted)| **share < **wanted) {
            if left > 0 {
                *share += 1;
                left -= 1;
            }
        }
    }
    shares
}

/// The images that share an evaluation.
fn batch_images<'a>(
    open: &'a mut VecDeque<ActiveJob>,
    shares: &'a [usize],
) -> impl Iterator<Item = &'a mut ActiveImage> {
    open.iter_mut().zip(shares).flat_map(|(open, share)| open.active[..*share].iter_mut())
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn places_are_shared_out_in_turn_and_none_is_left_while_somebody_wants_it() {
        for (wanted, max_batch, expected) in [
            (vec![64], 16, vec![16]),
            (vec![64, 1], 16, vec![15, 1]),
            (vec![64, 64, 3], 16, vec![7, 6, 3]),
            (vec![1, 1, 1], 2, vec![1, 1, 0]),
            (vec![2, 0, 5], 16, vec![2, 0, 5]),
            (vec![], 4, vec![]),
        ] {
            assert_eq!(shares(wanted.clone().into_iter(), max_batch), expected, "{wanted:?}");
        }
    }
}
