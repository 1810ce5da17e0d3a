//! The classifier's worker thread: images of simultaneous requests are classified in one batch.

use std::{
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use tiny_cats_export::{Classifier, Prediction};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Problem, model_queue::WorkerContext};

/// A request to classify images.
pub struct ClassifyJob {
    /// The images, each preprocessed for the classifier.
    pub inputs: Vec<Vec<f32>>,
    /// The channel for the result. The job is canceled if its receiver is dropped.
    pub reply: oneshot::Sender<Result<Vec<Prediction>, Problem>>,
    /// The permits of the queue, one per image.
    pub permits: OwnedSemaphorePermit,
}

/// A job and its predictions so far.
struct ActiveJob {
    job: ClassifyJob,
    predictions: Vec<Prediction>,
}

/// Classifies up to `max_batch` images at a time until the queue is closed. The first image of a batch waits for others for at most `wait`.
pub fn work(
    mut classifier: Classifier,
    context: WorkerContext<ClassifyJob>,
    max_batch: usize,
    wait: Duration,
) {
    while let Some(mut jobs) = collect_batch(&context, max_batch, wait) {
        while !jobs.is_empty() {
            evaluate(&mut classifier, &context, &mut jobs, max_batch);
        }
    }
}

/// Collects jobs until they hold at least `max_batch` images or `wait` has passed since the first. Returns `None` if the queue is closed.
fn collect_batch(
    context: &WorkerContext<ClassifyJob>,
    max_batch: usize,
    wait: Duration,
) -> Option<Vec<ActiveJob>> {
    let start = |job| ActiveJob { job, predictions: Vec::new() };
    let mut jobs = vec![start(context.jobs.recv().ok()?)];
    let deadline = Instant::now() + wait;
    while jobs.iter().map(|active| active.job.inputs.len()).sum::<usize>() < max_batch {
        let remaining = deadline.saturating_duration_since(Instant::now());
        match context.jobs.recv_timeout(remaining) {
            Ok(job) => jobs.push(start(job)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(jobs)
}

/// Evaluates the network once, on the next images of jobs that are not canceled, and sends the results of complete jobs.
fn evaluate(
    classifier: &mut Classifier,
    context: &WorkerContext<ClassifyJob>,
    jobs: &mut Vec<ActiveJob>,
    max_batch: usize,
) {
    jobs.retain(|active| {
        let is_canceled = active.job.reply.is_closed();
        if is_canceled {
            context.metrics.record_canceled(&context.name, active.job.inputs.len());
        }
        !is_canceled
    });
    let mut free = max_batch;
    let (mut inputs, mut shares) = (Vec::new(), Vec::new());
    for active in jobs.iter_mut() {
        let share = free.min(active.job.inputs.len());
        inputs.extend(active.job.inputs.drain(..share));
        shares.push(share);
        free -= share;
    }
    let n = inputs.len();
    if n == 0 {
        return;
    }
    context.metrics.record_batch(&context.name, n);
    let start = Instant::now();
    match classifier.predict(inputs) {
        Ok(predictions) => {
            let mut outputs = predictions.into_iter();
            for (active, share) in jobs.iter_mut().zip(shares) {
                active.predictions.extend(outputs.by_ref().take(share));
            }
        }
        Err(error) => {
            tracing::error!("{}: {error}", context.name);
            let problem = Problem::from(error);
            for ActiveJob { job, .. } in jobs.drain(..) {
                drop(job.permits);
                let _ = job.reply.send(Err(problem.clone()));
            }
        }
    }
    context.record_time(start.elapsed(), n);
    let (complete, others): (Vec<_>, Vec<_>) =
        std::mem::take(jobs).into_iter().partition(|active| active.job.inputs.is_empty());
    *jobs = others;
    for ActiveJob { job, predictions } in complete {
        // The permits are released before the result is sent, so that the client may send its next request at once.
        drop(job.permits);
        let _ = job.reply.send(Ok(predictions));
    }
}
