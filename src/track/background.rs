//! A tracker with a bounded queue and a thread that empties it.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use image::RgbImage;

use super::{RunInfo, Tracker};
use crate::train::folder::Status;

/// Maximum number of queued messages: at a line every hundred steps, they cover an outage of some hundred thousand steps.
const MAX_QUEUED: usize = 4096;
/// Maximum bytes of queued images.
const MAX_QUEUED_IMAGE_BYTES: usize = 64 << 20;
/// Messages that are delivered at once.
const BATCH: usize = 256;

/// Maximum time between two wake-ups of the thread.
const IDLE_WAKEUP: Duration = Duration::from_secs(3600);

/// A message to deliver.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The time at which the message was queued.
    pub time: SystemTime,
    /// Steps done.
    pub step: u64,
    /// The content.
    pub body: Body,
}

/// The content of a [`Message`].
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Names and numbers.
    Scalars(Vec<(String, f64)>),
    /// A name and an image.
    Picture(String, RgbImage),
}

impl Message {
    fn bytes(&self) -> usize {
        match &self.body {
            Body::Scalars(values) => values.iter().map(|(name, _)| name.len() + 32).sum(),
            Body::Picture(_, picture) => picture.as_raw().len(),
        }
    }
}

/// The error of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A transient error: a later attempt may succeed.
    Passing(String),
    /// The server refuses the first messages of the queue, of the given number, permanently.
    Refused(usize, String),
    /// A permanent error: no delivery will succeed.
    Lasting(String),
}

impl Failure {
    fn reason(&self) -> &str {
        match self {
            Self::Passing(reason) | Self::Refused(_, reason) | Self::Lasting(reason) => reason,
        }
    }
}

/// The destination of messages, with a thread of its own.
pub trait Sink: Send {
    /// Delivers messages in order and removes the delivered ones from the queue.
    ///
    /// It is called with an empty queue when the run starts.
    ///
    /// # Errors
    /// Returns an error if a message could not be delivered.
    fn deliver(&mut self, queue: &mut VecDeque<Message>) -> Result<(), Failure>;

    /// Ends the delivery with the run's status; no more messages follow.
    ///
    /// # Errors
    /// Returns an error if the status could not be delivered.
    fn close(&mut self, status: Status) -> Result<(), Failure>;
}

/// Timeouts and backoff of a tracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryPolicy {
    /// Timeout of a request.
    pub request: Duration,
    /// The backoff after a first failure. It doubles with each consecutive one.
    pub initial_backoff: Duration,
    /// Maximum backoff.
    pub max_backoff: Duration,
    /// Maximum time that the end of a run waits for queued messages.
    pub end: Duration,
}

impl Default for DeliveryPolicy {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
            end: Duration::from_secs(10),
        }
    }
}

/// Makes the sink of a run.
type SinkFactory = Box<dyn FnMut(&RunInfo) -> Box<dyn Sink> + Send>;

/// A [`Tracker`] that delivers to a [`Sink`] in the background.
pub struct BackgroundTracker {
    name: String,
    open: SinkFactory,
    policy: DeliveryPolicy,
    shared: Option<Arc<Shared>>,
}

/// The state that the run and the thread share. The lock is held only briefly, never during a delivery.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    bytes: usize,
    /// Number of messages that did not fit or were refused.
    dropped: u64,
    /// The status with which the run ended.
    ended: Option<Status>,
    /// True once the thread has ended.
    done: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `until` holds, for at most `longest`.
    fn wait(&self, longest: Duration, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_timeout_while(self.lock(), longest, |state| !until(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl BackgroundTracker {
    /// Makes a tracker that is called `name` in warnings. `open` makes its sink when the run starts, and must not block.
    pub fn new(
        name: String,
        policy: DeliveryPolicy,
        open: impl FnMut(&RunInfo) -> Box<dyn Sink> + Send + 'static,
    ) -> Self {
        Self { name, open: Box::new(open), policy, shared: None }
    }

    fn push(&self, step: u64, body: Body) {
        let Some(shared) = &self.shared else { return };
        let message = Message { time: SystemTime::now(), step, body };
        let bytes = message.bytes();
        let mut state = shared.lock();
        if state.done || state.queue.len() >= MAX_QUEUED || state.bytes + bytes > MAX_QUEUED_IMAGE_BYTES {
            state.dropped += 1;
        } else {
            state.bytes += bytes;
            state.queue.push_back(message);
            shared.changed.notify_all();
        }
    }

    /// Number of messages that were lost so far.
    pub fn dropped(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.lock().dropped)
    }
}

impl Tracker for BackgroundTracker {
    fn begin(&mut self, run: &RunInfo) {
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            name: self.name.clone(),
            sink: (self.open)(run),
            policy: self.policy.clone(),
            shared: shared.clone(),
            batch: VecDeque::new(),
            warned: false,
        };
        match thread::Builder::new().name("tracker".into()).spawn(move || worker.work()) {
            Ok(_) => self.shared = Some(shared),
            Err(e) => tracing::warn!("{}: {e}: it is not told of this run", self.name),
        }
    }

    fn scalars(&mut self, step: u64, values: &[(&str, f64)]) {
        self.push(
            step,
            Body::Scalars(values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()),
        );
    }

    fn picture(&mut self, step: u64, name: &str, picture: &RgbImage) {
        self.push(step, Body::Picture(name.to_owned(), picture.clone()));
    }

    fn end(&mut self, status: Status) {
        let Some(shared) = self.shared.take() else { return };
        shared.lock().ended = Some(status);
        shared.changed.notify_all();
        let (dropped, done) = {
            let state = shared.wait(self.policy.end, |state| state.done);
            (state.dropped + if state.done { 0 } else { state.queue.len() as u64 }, state.done)
        };
        if !done {
            let waited = self.policy.end.as_secs_f64();
            tracing::warn!("{}: still busy after {waited:.0} s: the rest is lost to it", self.name);
        } else if dropped > 0 {
            tracing::warn!("{}: {dropped} messages of this run are lost to it", self.name);
        }
    }
}

/// The state of the delivering thread.
struct Worker {
    name: String,
    sink: Box<dyn Sink>,
    policy: DeliveryPolicy,
    shared: Arc<Shared>,
    /// The messages in delivery.
    batch: VecDeque<Message>,
    warned: bool,
}

/// Marks the thread as ended when it returns or panics, so that nothing waits for it in vain.
struct DoneGuard<'a>(&'a Shared);

impl Drop for DoneGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.done = true;
        state.dropped += state.queue.len() as u64;
        state.queue.clear();
        self.0.changed.notify_all();
    }
}

impl Worker {
    fn work(&mut self) {
        let shared = self.shared.clone();
        let _done = DoneGuard(&shared);
        let mut failures = 0;
        loop {
            let failure = self.sink.deliver(&mut self.batch).err();
            let left = self.batch.len();
            match failure {
                None => failures = 0,
                Some(failure) => {
                    self.warn(&failure);
                    match failure {
                        Failure::Passing(_) if shared.lock().ended.is_none() => {
                            let wait = self.policy.initial_backoff.saturating_mul(1 << failures.min(16));
                            failures += 1;
                            drop(shared.wait(wait.min(self.policy.max_backoff), |s| s.ended.is_some()));
                            continue;
                        }
                        Failure::Refused(count, _) => {
                            self.batch.drain(..count.min(left));
                            shared.lock().dropped += count.min(left) as u64;
                            // The server refused the request that has no messages, so it will refuse it again.
                            if left > 0 {
                                continue;
                            }
                        }
                        Failure::Passing(_) | Failure::Lasting(_) => {}
                    }
                    shared.lock().dropped += self.batch.len() as u64;
                    return;
                }
            }
            let mut state = shared.wait(IDLE_WAKEUP, |s| s.ended.is_some() || !s.queue.is_empty());
            let take = state.queue.len().min(BATCH);
            let taken: Vec<Message> = state.queue.drain(..take).collect();
            state.bytes -= taken.iter().map(Message::bytes).sum::<usize>();
            self.batch.extend(taken);
            if let (true, Some(status)) = (self.batch.is_empty(), state.ended) {
                drop(state);
                if let Err(failure) = self.sink.close(status) {
                    self.warn(&failure);
                }
                return;
            }
        }
    }

    /// Logs the first failure of a run as a warning and the others for debugging only.
    fn warn(&mut self, failure: &Failure) {
        let reason = plain(failure.reason());
        if std::mem::replace(&mut self.warned, true) {
            tracing::debug!("{}: {reason}", self.name);
        } else {
            let outlook = match failure {
                Failure::Passing(_) => "it is tried again, and training goes on",
                Failure::Refused(..) => "that is lost to it, and training goes on",
                Failure::Lasting(_) => "it is not told of this run, and training goes on",
            };
            tracing::warn!("{}: {reason}: {outlook}", self.name);
        }
    }
}

/// Shortens text from a server to one line of at most 300 characters.
pub fn plain(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The time in seconds since 1970.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Receiver, Sender, channel},
        time::Instant,
    };

    use super::*;

    /// A sink that records deliveries and follows a script of failures.
    struct Script(Sender<Vec<Message>>, Box<dyn FnMut() -> Option<Failure> + Send>);

    impl Sink for Script {
        fn deliver(&mut self, queue: &mut VecDeque<Message>) -> Result<(), Failure> {
            if let Some(failure) = self.1() {
                return Err(failure);
            }
            let _ = self.0.send(queue.drain(..).collect());
            Ok(())
        }

        fn close(&mut self, status: Status) -> Result<(), Failure> {
            assert_eq!(status, Status::Finished);
            Ok(())
        }
    }

    fn tracker(
        script: impl Fn() -> Box<dyn FnMut() -> Option<Failure> + Send> + Send + 'static,
    ) -> (BackgroundTracker, Receiver<Vec<Message>>) {
        let (send, receive) = channel();
        let millis = Duration::from_millis;
        let policy = DeliveryPolicy {
            request: millis(50),
            initial_backoff: millis(1),
            max_backoff: millis(4),
            end: millis(300),
        };
        let mut tracker =
            BackgroundTracker::new("test".into(), policy, move |_| Box::new(Script(send.clone(), script())));
        let folder = std::path::Path::new(".");
        tracker.begin(&RunInfo { id: "a", folder, step: 0, settings: &[] });
        (tracker, receive)
    }

    /// The steps of the next `count` messages.
    fn steps(received: &Receiver<Vec<Message>>, count: usize) -> Vec<u64> {
        let mut steps = Vec::new();
        while steps.len() < count {
            let messages = received.recv_timeout(Duration::from_secs(20)).expect("more is delivered");
            steps.extend(messages.iter().map(|message| message.step));
        }
        steps
    }

    fn until(holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_fails_for_a_while_is_delivered_all_the_same_and_in_order() {
        let (mut tracker, received) = tracker(|| {
            let mut n = 0;
            Box::new(move || {
                n += 1;
                (n % 3 != 0).then(|| Failure::Passing("no".into()))
            })
        });
        for step in 0..50 {
            tracker.scalars(step, &[("loss", 1.0)]);
            thread::sleep(Duration::from_micros(100));
        }
        assert_eq!(steps(&received, 50), (0..50).collect::<Vec<_>>());
        tracker.end(Status::Finished);
    }

    #[test]
    fn what_is_refused_is_lost_alone() {
        let (mut tracker, received) = tracker(|| {
            let mut n = 0;
            Box::new(move || {
                n += 1;
                (n == 2).then(|| Failure::Refused(1, "no".into()))
            })
        });
        (0..3).for_each(|step| tracker.scalars(step, &[]));
        assert_eq!(steps(&received, 2), [1, 2]);
        assert_eq!(tracker.dropped(), 1);
        tracker.end(Status::Finished);
    }

    #[test]
    fn a_tracker_that_never_answers_holds_up_nothing_and_bounded_memory() {
        let (mut tracker, _received) = tracker(|| {
            Box::new(|| {
                thread::sleep(Duration::from_secs(3600));
                None
            })
        });
        let start = Instant::now();
        (0..1_000_000).for_each(|step| tracker.scalars(step, &[("loss", 1.0), ("lr", 1e-3)]));
        let picture = RgbImage::new(1000, 1000);
        (0..100).for_each(|step| tracker.picture(step, "samples", &picture));
        let dropped = tracker.dropped();
        assert!(dropped > 990_000, "{dropped}");
        let state = tracker.shared.as_ref().unwrap().lock();
        assert!(state.queue.len() <= MAX_QUEUED && state.bytes <= MAX_QUEUED_IMAGE_BYTES);
        drop(state);
        tracker.end(Status::Finished);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn one_that_is_off_or_dies_is_left_alone() {
        let (mut off, _received) = tracker(|| Box::new(|| Some(Failure::Lasting("no".into()))));
        let (mut dead, _received) =
            tracker(|| Box::new(|| std::panic::resume_unwind(Box::new("as a panic does"))));
        for tracker in [&mut off, &mut dead] {
            until(|| tracker.shared.as_ref().unwrap().lock().done);
            tracker.scalars(1, &[]);
            assert_eq!(tracker.dropped(), 1);
            let start = Instant::now();
            tracker.end(Status::Finished);
            assert!(start.elapsed() < Duration::from_millis(200));
        }
    }
}
