//! The classifier's worker thread: images of simultaneous requests are classified in one batch.

use std::{
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use tiny_cats_export::{Classifier, Prediction};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Problem, model_queue::WorkerContext};

/// Images that one client waits for.
pub struct ClassifyJob {
    /// The images, each preprocessed for the classifier.
    pub inputs: Vec<Vec<f32>>,
    /// The channel for the result. The job is canceled if its receiver is dropped.
    pub reply: oneshot::Sender<Result<Vec<Prediction>, Problem>>,
    /// The images' permits of the queue.
    pub room: OwnedSemaphorePermit,
}

/// A job, and its predictions so far.
struct ActiveJob {
    job: ClassifyJob,
    found: Vec<Prediction>,
}

/// Classifies up to `most` images at a time until the queue is closed. The first image of a batch waits for others for at most `wait`.
pub fn work(mut classifier: Classifier, context: WorkerContext<ClassifyJob>, most: usize, wait: Duration) {
    while let Some(mut open) = collect_batch(&context, most, wait) {
        while !open.is_empty() {
            evaluate(&mut classifier, &context, &mut open, most);
        }
    }
}

/// Collects the next jobs, whole: the first to arrive, and those that follow while there is room and time. `None` if the queue is closed.
fn collect_batch(
    context: &WorkerContext<ClassifyJob>,
    most: usize,
    wait: Duration,
) -> Option<Vec<ActiveJob>> {
    let open = |job| ActiveJob { job, found: Vec::new() };
    let mut jobs = vec![open(context.jobs.recv().ok()?)];
    let until = Instant::now() + wait;
    while jobs.iter().map(|open| open.job.inputs.len()).sum::<usize>() < most {
        let left = until.saturating_duration_since(Instant::now());
        match context.jobs.recv_timeout(left) {
            Ok(job) => jobs.push(open(job)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(jobs)
}

/// Evaluates the network once, for the next images of jobs that are not canceled, and sends the results of complete jobs.
fn evaluate(
    classifier: &mut Classifier,
    context: &WorkerContext<ClassifyJob>,
    open: &mut Vec<ActiveJob>,
    most: usize,
) {
    open.retain(|open| {
        let left = open.job.reply.is_closed();
        if left {
            context.metrics.record_canceled(&context.name, open.job.inputs.len());
        }
        !left
    });
    let mut room = most;
    let (mut inputs, mut shares) = (Vec::new(), Vec::new());
    for open in open.iter_mut() {
        let share = room.min(open.job.inputs.len());
        inputs.extend(open.job.inputs.drain(..share));
        shares.push(share);
        room -= share;
    }
    let n = inputs.len();
    if n == 0 {
        return;
    }
    context.metrics.record_batch(&context.name, n);
    let start = Instant::now();
    match classifier.predict(inputs) {
        Ok(predictions) => {
            let mut predictions = predictions.into_iter();
            for (open, share) in open.iter_mut().zip(shares) {
                open.found.extend(predictions.by_ref().take(share));
            }
        }
        Err(error) => {
            tracing::error!("{}: {error}", context.name);
            let problem = Problem::from(error);
            for ActiveJob { job, .. } in open.drain(..) {
                drop(job.room);
                let _ = job.reply.send(Err(problem.clone()));
            }
        }
    }
    context.record_time(start.elapsed(), n);
    let (complete, others): (Vec<_>, Vec<_>) =
        std::mem::take(open).into_iter().partition(|open| open.job.inputs.is_empty());
    *open = others;
    for ActiveJob { job, found } in complete {
        // The permits are released before the result is sent, so that the client may send its next request at once.
        drop(job.room);
        let _ = job.reply.send(Ok(found));
    }
}
