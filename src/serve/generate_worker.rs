//! The generator's thread: continuous batching.
//!
//! Each evaluation of the network is shared by pictures of all requests, whatever their steps, samplers and guidance, one of each in turn
//! while there are places. So a request that comes is served at the next evaluation, however long the others take: its pictures are set
//! going, and some of another's stand still meanwhile. What nobody waits for any more, or whose time is over, is left.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use image::RgbImage;
use tiny_cats_export::{Error, GeneratedImage, Generator, Request, sample::Trajectory};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{Problem, model_queue::WorkerContext};

/// Failures of the runtime in a row after which it is no use to go on.
const MAX_FAILURES: usize = 3;

/// Pictures that one client waits for.
pub struct GenerateJob {
    /// How to draw them.
    pub request: Request,
    /// Their classes.
    pub labels: Vec<usize>,
    /// The number of the first of them.
    pub first: u64,
    /// When nobody waits for them any more.
    pub deadline: Instant,
    /// Where they go. That nobody listens there any more ends the work.
    pub reply: oneshot::Sender<Result<Vec<GeneratedImage>, Problem>>,
    /// Where it is told how far they are; what does not fit is left out.
    pub steps: Option<mpsc::Sender<StepUpdate>>,
    /// Their place in the queue.
    pub room: OwnedSemaphorePermit,
}

/// How far a job is.
pub struct StepUpdate {
    /// Steps taken, of all pictures.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// The pictures that took one: number and preview.
    pub previews: Vec<(u64, RgbImage)>,
}

/// A job, and how far it is.
struct ActiveJob {
    job: GenerateJob,
    /// Pictures begun.
    started: usize,
    active: Vec<ActiveImage>,
    finished: Vec<GeneratedImage>,
    /// Steps taken.
    done: usize,
}

struct ActiveImage {
    trajectory: Trajectory,
    /// Its part of the time of the evaluations that it shared.
    spent: Duration,
}

impl ActiveJob {
    fn new(job: GenerateJob) -> Self {
        Self { job, started: 0, active: Vec::new(), finished: Vec::new(), done: 0 }
    }

    /// Pictures to be drawn.
    fn left(&self) -> usize {
        self.job.labels.len() - self.finished.len()
    }

    /// Begins pictures until `share` are under way.
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
        // The place is free before the answer is there, so that whoever reads it may ask again.
        drop(self.job.room);
        let _ = self.job.reply.send(answer);
    }
}

struct GenerateWorker {
    generator: Generator,
    context: WorkerContext<GenerateJob>,
    /// Pictures that share an evaluation.
    max_batch: usize,
    /// The jobs, by turns.
    open: VecDeque<ActiveJob>,
    /// Evaluations in a row that failed.
    failures: usize,
}

/// Draws up to `places` pictures at a time, until nobody can ask any more, or the runtime fails again and again.
pub fn work(generator: Generator, context: WorkerContext<GenerateJob>, max_batch: usize) {
    let mut studio = GenerateWorker { generator, context, max_batch, open: VecDeque::new(), failures: 0 };
    while studio.failures < MAX_FAILURES && studio.take_jobs() {
        studio.drop_abandoned();
        studio.evaluate();
        studio.finish();
    }
}

impl GenerateWorker {
    /// Takes the jobs that have come, and waits for one where there is nothing to do. False when there never will be one.
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

    /// Stops work that nobody waits for.
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

    /// Evaluates the network once, for one picture of each job in turn while there are places.
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
                // Where there are more jobs than places, others come first the next time.
                self.open.rotate_left(1);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Tells those who want to know which pictures have taken a step.
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

    /// An evaluation failed: of numbers that are none those are told whose they are, of another error all.
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

    /// Hands out what is finished.
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

/// How many places each gets who can use so many, when they get one each in turn while there are any.
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

/// The pictures that share an evaluation.
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
