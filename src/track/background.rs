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

/// Maximum queued messages. With one message per hundred steps, they cover an outage of some hundred thousand steps.
const MAX_QUEUED: usize = 4096;
/// Maximum bytes of queued images.
const MAX_QUEUED_IMAGE_BYTES: usize = 64 << 20;
/// Maximum messages per delivery.
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
    pub body: MessageBody,
}

/// The content of a [`Message`].
#[derive(Clone, Debug, PartialEq)]
pub enum MessageBody {
    /// Names and values.
    Scalars(Vec<(String, f64)>),
    /// A name and an image.
    Image(String, RgbImage),
}

impl Message {
    fn bytes(&self) -> usize {
        match &self.body {
            MessageBody::Scalars(values) => values.iter().map(|(name, _)| name.len() + 32).sum(),
            MessageBody::Image(_, image) => image.as_raw().len(),
        }
    }
}

/// The error of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A transient error: a retry may succeed.
    Transient(String),
    /// The server permanently rejects the first messages of the queue; their number is given.
    Rejected(usize, String),
    /// A permanent error: no delivery can succeed.
    Permanent(String),
}

impl Failure {
    fn reason(&self) -> &str {
        match self {
            Self::Transient(reason) | Self::Rejected(_, reason) | Self::Permanent(reason) => reason,
        }
    }
}

/// The destination of messages, which runs in a separate thread.
pub trait Sink: Send {
    /// Delivers messages in order and removes the delivered ones from the queue.
    ///
    /// It is called with an empty queue when the run starts.
    ///
    /// # Errors
    /// Returns an error if a message could not be delivered.
    fn deliver(&mut self, queue: &mut VecDeque<Message>) -> Result<(), Failure>;

    /// Ends the delivery with the status of the run; no more messages follow.
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
    /// The backoff after a first failure. It doubles with each consecutive failure.
    pub initial_backoff: Duration,
    /// Maximum backoff.
    pub max_backoff: Duration,
    /// Maximum time at the end of a run to wait for queued messages.
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

/// Creates the sink of a run.
type SinkFactory = Box<dyn FnMut(&RunInfo) -> Box<dyn Sink> + Send>;

/// A [`Tracker`] that delivers to a [`Sink`] in the background.
pub struct BackgroundTracker {
    name: String,
    create_sink: SinkFactory,
    policy: DeliveryPolicy,
    shared: Option<Arc<Shared>>,
}

/// The state that the run and the thread share. The lock is never held during a delivery.
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
    /// The status of the run after its end.
    final_status: Option<Status>,
    /// True if the thread has ended.
    done: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `condition` returns true, for at most `timeout`.
    fn wait(&self, timeout: Duration, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let result = self.changed.wait_timeout_while(self.lock(), timeout, |state| !condition(state));
        result.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl BackgroundTracker {
    /// Creates a tracker, which warnings call `name`. `create_sink` creates its sink when the run starts, and must not block.
    pub fn new(
        name: String,
        policy: DeliveryPolicy,
        create_sink: impl FnMut(&RunInfo) -> Box<dyn Sink> + Send + 'static,
    ) -> Self {
        Self { name, create_sink: Box::new(create_sink), policy, shared: None }
    }

    fn push(&self, step: u64, body: MessageBody) {
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

    /// The number of messages lost so far.
    pub fn dropped(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.lock().dropped)
    }
}

impl Tracker for BackgroundTracker {
    fn begin(&mut self, run: &RunInfo) {
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            name: self.name.clone(),
            sink: (self.create_sink)(run),
            policy: self.policy.clone(),
            shared: shared.clone(),
            batch: VecDeque::new(),
            has_warned: false,
        };
        match thread::Builder::new().name("tracker".into()).spawn(move || worker.work()) {
            Ok(_) => self.shared = Some(shared),
            Err(e) => tracing::warn!("{}: {e}; this run is not tracked", self.name),
        }
    }

    fn scalars(&mut self, step: u64, values: &[(&str, f64)]) {
        self.push(
            step,
            MessageBody::Scalars(values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()),
        );
    }

    fn image(&mut self, step: u64, name: &str, image: &RgbImage) {
        self.push(step, MessageBody::Image(name.to_owned(), image.clone()));
    }

    fn end(&mut self, status: Status) {
        let Some(shared) = self.shared.take() else { return };
        shared.lock().final_status = Some(status);
        shared.changed.notify_all();
        let (dropped, done) = {
            let state = shared.wait(self.policy.end, |state| state.done);
            (state.dropped + if state.done { 0 } else { state.queue.len() as u64 }, state.done)
        };
        if !done {
            let seconds = self.policy.end.as_secs_f64();
            tracing::warn!("{}: still busy after {seconds:.0} s; the remaining messages are lost", self.name);
        } else if dropped > 0 {
            tracing::warn!("{}: {dropped} messages of this run were lost", self.name);
        }
    }
}

/// The state of the thread that delivers messages.
struct Worker {
    name: String,
    sink: Box<dyn Sink>,
    policy: DeliveryPolicy,
    shared: Arc<Shared>,
    /// The messages in delivery.
    batch: VecDeque<Message>,
    has_warned: bool,
}

/// Marks the thread as ended when it returns or panics, so that [`end`](Tracker::end) does not wait for it.
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
            let remaining = self.batch.len();
            match failure {
                None => failures = 0,
                Some(failure) => {
                    self.warn(&failure);
                    match failure {
                        Failure::Transient(_) if shared.lock().final_status.is_none() => {
                            let wait = self.policy.initial_backoff.saturating_mul(1 << failures.min(16));
                            failures += 1;
                            drop(
                                shared.wait(wait.min(self.policy.max_backoff), |s| s.final_status.is_some()),
                            );
                            continue;
                        }
                        Failure::Rejected(count, _) => {
                            self.batch.drain(..count.min(remaining));
                            shared.lock().dropped += count.min(remaining) as u64;
                            // The server rejected a request without messages, so a retry would be rejected, too.
                            if remaining > 0 {
                                continue;
                            }
                        }
                        Failure::Transient(_) | Failure::Permanent(_) => {}
                    }
                    shared.lock().dropped += self.batch.len() as u64;
                    return;
                }
            }
            let mut state = shared.wait(IDLE_WAKEUP, |s| s.final_status.is_some() || !s.queue.is_empty());
            let count = state.queue.len().min(BATCH);
            let messages: Vec<Message> = state.queue.drain(..count).collect();
            state.bytes -= messages.iter().map(Message::bytes).sum::<usize>();
            self.batch.extend(messages);
            if let (true, Some(status)) = (self.batch.is_empty(), state.final_status) {
                drop(state);
                if let Err(failure) = self.sink.close(status) {
                    self.warn(&failure);
                }
                return;
            }
        }
    }

    /// Logs the first failure of a run as a warning, and the others as debug messages.
    fn warn(&mut self, failure: &Failure) {
        let reason = to_plain_line(failure.reason());
        if std::mem::replace(&mut self.has_warned, true) {
            tracing::debug!("{}: {reason}", self.name);
        } else {
            let consequence = match failure {
                Failure::Transient(_) => "it is retried, and training continues",
                Failure::Rejected(..) => "the message is lost, and training continues",
                Failure::Permanent(_) => "this run is not tracked, and training continues",
            };
            tracing::warn!("{}: {reason}; {consequence}", self.name);
        }
    }
}

/// Converts text from a server to one line of at most 300 characters, without control characters.
pub fn to_plain_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Converts a time to seconds since 1970.
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

    /// A sink that records deliveries, and fails as its script specifies.
    struct ScriptedSink(Sender<Vec<Message>>, Box<dyn FnMut() -> Option<Failure> + Send>);

    impl Sink for ScriptedSink {
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
        let (sender, receiver) = channel();
        let millis = Duration::from_millis;
        let policy = DeliveryPolicy {
            request: millis(50),
            initial_backoff: millis(1),
            max_backoff: millis(4),
            end: millis(300),
        };
        let mut tracker = BackgroundTracker::new("test".into(), policy, move |_| {
            Box::new(ScriptedSink(sender.clone(), script()))
        });
        let folder = std::path::Path::new(".");
        tracker.begin(&RunInfo { id: "a", folder, step: 0, settings: &[] });
        (tracker, receiver)
    }

    /// The steps of the next `count` messages.
    fn steps(received: &Receiver<Vec<Message>>, count: usize) -> Vec<u64> {
        let mut steps = Vec::new();
        while steps.len() < count {
            let messages = received.recv_timeout(Duration::from_secs(20)).expect("more deliveries");
            steps.extend(messages.iter().map(|message| message.step));
        }
        steps
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn messages_are_retried_after_transient_errors_in_order() {
        let (mut tracker, received) = tracker(|| {
            let mut n = 0;
            Box::new(move || {
                n += 1;
                (n % 3 != 0).then(|| Failure::Transient("no".into()))
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
    fn only_rejected_messages_are_lost() {
        let (mut tracker, received) = tracker(|| {
            let mut n = 0;
            Box::new(move || {
                n += 1;
                (n == 2).then(|| Failure::Rejected(1, "no".into()))
            })
        });
        (0..3).for_each(|step| tracker.scalars(step, &[]));
        assert_eq!(steps(&received, 2), [1, 2]);
        assert_eq!(tracker.dropped(), 1);
        tracker.end(Status::Finished);
    }

    #[test]
    fn a_blocked_sink_does_not_block_the_run_and_uses_bounded_memory() {
        let (mut tracker, _received) = tracker(|| {
            Box::new(|| {
                thread::sleep(Duration::from_secs(3600));
                None
            })
        });
        let start = Instant::now();
        (0..1_000_000).for_each(|step| tracker.scalars(step, &[("loss", 1.0), ("lr", 1e-3)]));
        let image = RgbImage::new(1000, 1000);
        (0..100).for_each(|step| tracker.image(step, "samples", &image));
        let dropped = tracker.dropped();
        assert!(dropped > 990_000, "{dropped}");
        let state = tracker.shared.as_ref().unwrap().lock();
        assert!(state.queue.len() <= MAX_QUEUED && state.bytes <= MAX_QUEUED_IMAGE_BYTES);
        drop(state);
        tracker.end(Status::Finished);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn a_sink_that_fails_permanently_or_panics_ends_its_thread() {
        let (mut failing, _received) = tracker(|| Box::new(|| Some(Failure::Permanent("no".into()))));
        let (mut panicking, _received) =
            tracker(|| Box::new(|| std::panic::resume_unwind(Box::new("panic"))));
        for tracker in [&mut failing, &mut panicking] {
            wait_until(|| tracker.shared.as_ref().unwrap().lock().done);
            tracker.scalars(1, &[]);
            assert_eq!(tracker.dropped(), 1);
            let start = Instant::now();
            tracker.end(Status::Finished);
            assert!(start.elapsed() < Duration::from_millis(200));
        }
    }
}
