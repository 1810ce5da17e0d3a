//! The classifier's thread: pictures of requests that come together are computed together.

use std::{
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use tiny_cats_export::{Classifier, Prediction};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Problem, model_queue::WorkerContext};

/// Pictures that one client waits for.
pub struct ClassifyJob {
    /// The pictures, each made by the classifier's preprocessing.
    pub inputs: Vec<Vec<f32>>,
    /// Where the answer goes. That nobody listens there any more ends the work.
    pub reply: oneshot::Sender<Result<Vec<Prediction>, Problem>>,
    /// Their place in the queue.
    pub room: OwnedSemaphorePermit,
}

/// A job, and what has been found.
struct ActiveJob {
    job: ClassifyJob,
    found: Vec<Prediction>,
}

/// Classifies up to `most` pictures at a time, for which the first waits no longer than `wait`, until nobody can ask any more.
pub fn work(mut classifier: Classifier, context: WorkerContext<ClassifyJob>, most: usize, wait: Duration) {
    while let Some(mut open) = collect_batch(&context, most, wait) {
        while !open.is_empty() {
            evaluate(&mut classifier, &context, &mut open, most);
        }
    }
}

/// The next jobs, whole: the first that comes, and those that come while there is room and time. `None` when there never will be one.
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

/// Evaluates the network once, for the next pictures that somebody waits for, and hands out what is complete.
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
        // The place is free before the answer is there, so that whoever reads it may ask again.
        drop(job.room);
        let _ = job.reply.send(Ok(found));
    }
}
