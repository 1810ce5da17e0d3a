//! The generator's thread: continuous batching.
//!
//! Pictures of all requests that are under way share each evaluation of the network, whatever their steps, samplers and guidance. A
//! picture joins at the next evaluation and leaves when it is finished or nobody waits for it any more, so a request waits for no other
//! one's end. Requests take turns at the places that come free.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use image::RgbImage;
use tiny_cats_export::{Error, Generator, Picture, Request, sample::Trajectory};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{Problem, lane::Desk};

/// Pictures that one client waits for.
pub struct Job {
    /// How to draw them.
    pub request: Request,
    /// Their classes.
    pub labels: Vec<usize>,
    /// The number of the first of them.
    pub first: u64,
    /// Where they go. That nobody listens there any more ends the work.
    pub reply: oneshot::Sender<Result<Vec<Picture>, Problem>>,
    /// Where it is told how far they are; what does not fit is left out.
    pub steps: Option<mpsc::Sender<Step>>,
    /// Their place in the queue.
    pub room: OwnedSemaphorePermit,
}

/// How far a job is.
pub struct Step {
    /// Steps taken, of all pictures.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// The pictures that took one: number and preview.
    pub previews: Vec<(u64, RgbImage)>,
}

/// A job on which work has begun.
struct Open {
    job: Job,
    /// Pictures begun.
    begun: usize,
    /// Steps taken.
    done: usize,
    finished: Vec<Picture>,
}

/// A picture under way.
struct Active {
    job: u64,
    trajectory: Trajectory,
}

struct Studio {
    generator: Generator,
    desk: Desk<Job>,
    /// Pictures that are drawn at once.
    places: usize,
    next: u64,
    open: HashMap<u64, Open>,
    /// Jobs with pictures not begun, by turns.
    turns: VecDeque<u64>,
    active: Vec<Active>,
    /// Time spent since a picture was last finished.
    spent: Duration,
}

/// Draws `places` pictures at a time, until nobody can ask any more.
pub fn work(generator: Generator, desk: Desk<Job>, places: usize) {
    let (open, turns, active) = (HashMap::new(), VecDeque::new(), Vec::new());
    let mut studio = Studio { generator, desk, places, next: 0, open, turns, active, spent: Duration::ZERO };
    while studio.take_jobs() {
        studio.forget_the_abandoned();
        studio.begin();
        studio.advance();
        studio.finish();
    }
}

impl Studio {
    /// Takes the jobs that have come, and waits for one where there is nothing to do. False when there never will be.
    fn take_jobs(&mut self) -> bool {
        if self.open.is_empty() {
            match self.desk.jobs.recv() {
                Ok(job) => self.take(job),
                Err(_) => return false,
            }
        }
        while let Ok(job) = self.desk.jobs.try_recv() {
            self.take(job);
        }
        true
    }

    fn take(&mut self, job: Job) {
        let id = self.next;
        self.next += 1;
        self.open.insert(id, Open { job, begun: 0, done: 0, finished: Vec::new() });
        self.turns.push_back(id);
    }

    /// Stops work that nobody waits for.
    fn forget_the_abandoned(&mut self) {
        let Self { open, desk, .. } = self;
        open.retain(|_, open| {
            let left = open.job.reply.is_closed();
            if left {
                desk.metrics.cancelled(&desk.name, open.job.labels.len() - open.finished.len());
            }
            !left
        });
        self.active.retain(|active| self.open.contains_key(&active.job));
        self.turns.retain(|id| self.open.contains_key(id));
    }

    /// Begins pictures while there are places, one of each job in turn.
    fn begin(&mut self) {
        while self.active.len() < self.places {
            let Some(id) = self.turns.pop_front() else { return };
            let Some(open) = self.open.get_mut(&id) else { continue };
            let Some(&label) = open.job.labels.get(open.begun) else { continue };
            let index = open.job.first.wrapping_add(open.begun as u64);
            match self.generator.begin(label, index, &open.job.request) {
                Ok(trajectory) => {
                    open.begun += 1;
                    self.active.push(Active { job: id, trajectory });
                    self.turns.push_back(id);
                }
                Err(error) => self.fail(id, error),
            }
        }
    }

    fn fail(&mut self, id: u64, error: Error) {
        self.active.retain(|active| active.job != id);
        if let Some(open) = self.open.remove(&id) {
            let _ = open.job.reply.send(Err(error.into()));
        }
    }

    /// Evaluates the network once for all that are under way, and tells those who want to know.
    fn advance(&mut self) {
        if self.active.is_empty() {
            return;
        }
        let before: Vec<usize> = self.active.iter().map(|active| active.trajectory.done()).collect();
        let start = Instant::now();
        let result = self.generator.advance(self.active.iter_mut().map(|active| &mut active.trajectory));
        self.spent += start.elapsed();
        self.desk.metrics.evaluated(&self.desk.name, self.active.len());
        if let Err(error) = result {
            // The network is no good: nobody can be served.
            tracing::error!("{}: {error}", self.desk.name);
            let message = error.to_string();
            self.active.clear();
            for (_, open) in self.open.drain() {
                let problem = Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, message.clone());
                let _ = open.job.reply.send(Err(problem));
            }
            return;
        }
        let mut stepped: HashMap<u64, Vec<&Trajectory>> = HashMap::new();
        for (active, before) in self.active.iter().zip(before) {
            if active.trajectory.done() > before {
                stepped.entry(active.job).or_default().push(&active.trajectory);
            }
        }
        for (id, trajectories) in stepped {
            let Some(open) = self.open.get_mut(&id) else { continue };
            open.done += trajectories.len();
            let Some(listener) = &open.job.steps else { continue };
            if let Ok(place) = listener.try_reserve() {
                let preview = |t: &&Trajectory| (t.index(), self.generator.preview(t));
                let previews = trajectories.iter().map(preview).collect();
                let total = open.job.labels.len() * open.job.request.steps;
                place.send(Step { done: open.done, total, previews });
            }
        }
    }

    /// Hands out what is finished.
    fn finish(&mut self) {
        let (finished, active): (Vec<_>, Vec<_>) =
            self.active.drain(..).partition(|active| active.trajectory.is_finished());
        self.active = active;
        if !finished.is_empty() {
            self.desk.took(std::mem::take(&mut self.spent), finished.len());
        }
        for Active { job: id, trajectory } in finished {
            let Some(open) = self.open.get_mut(&id) else { continue };
            match self.generator.finish(trajectory) {
                Ok(picture) => open.finished.push(picture),
                Err(error) => {
                    self.fail(id, error);
                    continue;
                }
            }
            if open.finished.len() == open.job.labels.len()
                && let Some(mut open) = self.open.remove(&id)
            {
                open.finished.sort_by_key(|picture| picture.index.wrapping_sub(open.job.first));
                // The place is free before the answer is there, so that whoever reads it may ask again.
                drop(open.job.room);
                let _ = open.job.reply.send(Ok(open.finished));
            }
        }
    }
}
