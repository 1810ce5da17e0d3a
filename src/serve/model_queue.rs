//! A bounded queue in front of the worker thread that owns a model.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use axum::http::StatusCode;
use tiny_cats_export::{
    Error, Integrity, Model, ModelMeta, VerificationReport, runtime::RuntimeKind, verify_on,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{Metrics, Problem};

/// The state of a served model.
#[derive(Clone, Debug)]
pub enum ModelState {
    /// Being verified and loaded.
    Loading,
    /// Verified, loaded and served.
    Ready(Arc<VerificationReport>),
    /// Not served, for this reason.
    Failed(String),
}

/// A worker's view of its queue.
pub struct WorkerContext<J> {
    pub jobs: mpsc::Receiver<J>,
    pub metrics: Arc<Metrics>,
    /// The model's name.
    pub name: String,
    time_per_item: Arc<AtomicU64>,
}

impl<J> WorkerContext<J> {
    /// Records that `n` images took `time` to compute, from which the `Retry-After` header is estimated.
    pub fn record_time(&self, time: Duration, n: usize) {
        let new = time.as_micros() as u64 / n.max(1) as u64;
        let old = self.time_per_item.load(Ordering::Relaxed);
        self.time_per_item.store(if old == 0 { new } else { (3 * old + new) / 4 }, Ordering::Relaxed);
        self.metrics.record_done(&self.name, n);
    }
}

/// A model that computes in a worker thread, and the queue of its jobs.
pub struct ModelQueue<J> {
    /// The model's name.
    pub name: String,
    /// The metadata in the model's file.
    pub meta: ModelMeta,
    /// The runtime that computes the model.
    pub runtime: RuntimeKind,
    /// The result of the check of the file's digest.
    pub integrity: Integrity,
    jobs: mpsc::Sender<J>,
    permits: Arc<Semaphore>,
    capacity: usize,
    /// Microseconds per image.
    time_per_item: Arc<AtomicU64>,
    state: watch::Receiver<ModelState>,
}

impl<J: Send + 'static> ModelQueue<J> {
    /// Starts the worker: it verifies `model`, prepares it with `load`, and calls `work`, which returns when the queue is closed.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start<L: 'static>(
        name: &str,
        model: Model,
        runtime: RuntimeKind,
        capacity: usize,
        metrics: &Arc<Metrics>,
        load: impl FnOnce(&Model) -> Result<L, Error> + Send + 'static,
        work: impl FnOnce(L, WorkerContext<J>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, receiver) = mpsc::channel();
        let (state, watched) = watch::channel(ModelState::Loading);
        let time_per_item = Arc::new(AtomicU64::new(0));
        let (meta, integrity) = (model.meta().clone(), model.integrity());
        let context = WorkerContext {
            jobs: receiver,
            metrics: metrics.clone(),
            name: name.to_owned(),
            time_per_item: time_per_item.clone(),
        };
        thread::Builder::new().name(format!("model {name}")).spawn(move || {
            let prepared = verify_model(&model, runtime).and_then(|report| Ok((report, load(&model)?)));
            let file = model.name().to_owned();
            drop(model);
            match prepared {
                Ok((report, loaded)) => {
                    tracing::info!(model = context.name, %integrity);
                    state.send_replace(ModelState::Ready(Arc::new(report)));
                    work(loaded, context);
                }
                Err(error) => {
                    state.send_replace(ModelState::Failed(if error.has_file_name() {
                        error.to_string()
                    } else {
                        format!("{file}: {error}")
                    }));
                }
            }
        })?;
        let permits = Arc::new(Semaphore::new(capacity));
        Ok(Self {
            name: name.to_owned(),
            meta,
            runtime,
            integrity,
            jobs,
            permits,
            capacity,
            time_per_item,
            state: watched,
        })
    }

    /// The state of the model. A worker that has ended counts as failed.
    pub fn state(&self) -> ModelState {
        let state = self.state.borrow().clone();
        match state {
            ModelState::Ready(_) | ModelState::Loading if self.state.has_changed().is_err() => {
                ModelState::Failed("its worker thread has ended".into())
            }
            state => state,
        }
    }

    /// Waits until the model is served; forever if it has failed.
    pub async fn wait_until_ready(&self) {
        let mut state = self.state.clone();
        if state.wait_for(|state| matches!(state, ModelState::Ready(_))).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the model has failed, and returns the reason; normally never returns.
    pub async fn wait_until_failed(&self) -> String {
        let mut state = self.state.clone();
        match state.wait_for(|state| matches!(state, ModelState::Failed(_))).await.as_deref() {
            Ok(ModelState::Failed(reason)) => reason.clone(),
            _ => "its worker thread has ended".into(),
        }
    }

    /// Checks that a job of one image would be admitted, to refuse a request before its body is read.
    ///
    /// # Errors
    /// 503 while the model is loading, 429 if the queue is full.
    pub fn check_accepting(&self) -> Result<(), Problem> {
        self.admit(1).map(drop)
    }

    /// Acquires permits for `n` images; dropping them makes room in the queue.
    ///
    /// # Errors
    /// 503 while the model is loading, 429 if the queue is full.
    pub fn admit(&self, n: usize) -> Result<OwnedSemaphorePermit, Problem> {
        if !matches!(self.state(), ModelState::Ready(_)) {
            let detail = format!("{} is not ready yet", self.name);
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).with_retry_after(1));
        }
        let permits = u32::try_from(n).unwrap_or(u32::MAX);
        self.permits.clone().try_acquire_many_owned(permits).map_err(|_| {
            let waiting = self.waiting() as u64;
            let seconds = (waiting * self.time_per_item.load(Ordering::Relaxed)).div_ceil(1_000_000);
            let detail = format!("the queue of {} is full: {waiting} images are waiting", self.name);
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).with_retry_after(seconds.clamp(1, 600))
        })
    }

    /// Sends a job to the worker.
    ///
    /// # Errors
    /// 503 if the worker has ended.
    pub fn send(&self, job: J) -> Result<(), Problem> {
        self.jobs.send(job).map_err(|_| worker_died(&self.name))
    }

    /// The number of images admitted and not finished.
    pub fn waiting(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }
}

/// The problem to report if a model's worker has dropped a job.
pub fn worker_died(name: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("the worker of {name} has ended"))
}

/// Verifies that the runtime's outputs match those of the candle backend within a tolerance. If the runtime is candle itself, the graph is
/// verified on the first other runtime that is available.
fn verify_model(model: &Model, runtime: RuntimeKind) -> Result<VerificationReport, Error> {
    let is_available = |kind: &RuntimeKind| kind.can_run_graphs() && kind.version().is_ok();
    let other_runtime = || RuntimeKind::ALL.into_iter().find(is_available).unwrap_or(RuntimeKind::Tract);
    let target = if runtime == RuntimeKind::Candle { other_runtime() } else { runtime };
    let report = verify_on(&[target], model.meta(), &model.weights()?, &*model.graph()?, false)?;
    if report.passed { Ok(report) } else { Err(Error::Verification(report.failures())) }
}
