//! The classifier's thread: pictures of requests that come together are computed together.

use std::{
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use tiny_cats_export::{Classifier, Prediction};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Problem, lane::Desk};

/// Pictures that one client waits for.
pub struct Job {
    /// The pictures, each made by the classifier's preprocessing.
    pub inputs: Vec<Vec<f32>>,
    /// Where the answer goes. That nobody listens there any more ends the work.
    pub reply: oneshot::Sender<Result<Vec<Prediction>, Problem>>,
    /// Their place in the queue.
    pub room: OwnedSemaphorePermit,
}

/// Classifies up to `most` pictures at a time, for which the first waits no longer than `wait`, until nobody can ask any more.
pub fn work(mut classifier: Classifier, desk: Desk<Job>, most: usize, wait: Duration) {
    while let Some(mut jobs) = gather(&desk, most, wait) {
        jobs.retain(|job| {
            let left = job.reply.is_closed();
            if left {
                desk.metrics.cancelled(&desk.name, job.inputs.len());
            }
            !left
        });
        let counts: Vec<usize> = jobs.iter().map(|job| job.inputs.len()).collect();
        let inputs: Vec<Vec<f32>> = jobs.iter_mut().flat_map(|job| std::mem::take(&mut job.inputs)).collect();
        let n = inputs.len();
        let start = Instant::now();
        let result = in_batches(&mut classifier, &desk, inputs, most);
        desk.took(start.elapsed(), n);
        let mut predictions = match &result {
            Ok(predictions) => predictions.iter(),
            Err(_) => [].iter(),
        };
        for (job, count) in jobs.into_iter().zip(counts) {
            let own: Vec<Prediction> = predictions.by_ref().take(count).cloned().collect();
            drop(job.room);
            let _ = job.reply.send(result.as_ref().map(|_| own).map_err(Problem::clone));
        }
    }
}

/// The next jobs, whole: the first that comes, and those that come while there is room and time. `None` when there never will be one.
fn gather(desk: &Desk<Job>, most: usize, wait: Duration) -> Option<Vec<Job>> {
    let mut jobs = vec![desk.jobs.recv().ok()?];
    let until = Instant::now() + wait;
    while jobs.iter().map(|job| job.inputs.len()).sum::<usize>() < most {
        let left = until.saturating_duration_since(Instant::now());
        match desk.jobs.recv_timeout(left) {
            Ok(job) => jobs.push(job),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(jobs)
}

fn in_batches(
    classifier: &mut Classifier,
    desk: &Desk<Job>,
    mut inputs: Vec<Vec<f32>>,
    most: usize,
) -> Result<Vec<Prediction>, Problem> {
    let mut predictions = Vec::with_capacity(inputs.len());
    while !inputs.is_empty() {
        let rest = inputs.split_off(most.min(inputs.len()));
        desk.metrics.evaluated(&desk.name, inputs.len());
        predictions.extend(classifier.predict(inputs)?);
        inputs = rest;
    }
    Ok(predictions)
}
