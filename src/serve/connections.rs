//! Connections: accepted while there is room, closed when they are too slow, and brought to their end when the server stops.
//!
//! Where there is no more room, the connection that has waited longest for a request is closed for the new one, so that clients that
//! open connections and ask for nothing keep nobody out.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use super::Metrics;

/// How long a client may take for a request's head, leave a connection idle, or not read what it is sent.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client that has asked for nothing yet may take when the server stops.
const SHUTDOWN_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is said that connections cannot be accepted.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// How long to wait before a connection is accepted again after that failed.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(20);

/// The connections that wait for a request.
#[derive(Default)]
struct IdleConnections {
    /// By the order in which they began to wait; with the number of the next.
    waiting: Mutex<(BTreeMap<u64, Arc<Notify>>, u64)>,
    /// One more waits.
    more: Notify,
}

impl IdleConnections {
    fn waiting(&self) -> MutexGuard<'_, (BTreeMap<u64, Arc<Notify>>, u64)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection that has waited longest, if one waits.
    fn close_one(&self) -> bool {
        let first = self.waiting().0.pop_first();
        first.is_some_and(|(_, close)| {
            close.notify_one();
            true
        })
    }
}

/// A connection's place among those that wait for a request; it leaves when dropped.
struct IdleEntry {
    idle: Arc<IdleConnections>,
    number: u64,
    close: Arc<Notify>,
}

impl IdleEntry {
    fn new(idle: &Arc<IdleConnections>, close: &Arc<Notify>) -> Self {
        let number = {
            let mut waiting = idle.waiting();
            let number = waiting.1;
            waiting.1 += 1;
            waiting.0.insert(number, close.clone());
            number
        };
        idle.more.notify_one();
        Self { idle: idle.clone(), number, close: close.clone() }
    }
}

impl Drop for IdleEntry {
    fn drop(&mut self) {
        self.idle.waiting().0.remove(&self.number);
    }
}

/// Keeps a request's connection from being closed as one that waits, until its answer has been sent and this is dropped.
#[derive(Clone)]
pub struct ActiveRequest(#[expect(dead_code, reason = "its drop counts")] Arc<ResponseGuard>);

struct ResponseGuard {
    place: Arc<Mutex<Option<IdleEntry>>>,
    idle: Arc<IdleConnections>,
    close: Arc<Notify>,
}

impl ResponseGuard {
    fn new(place: &Arc<Mutex<Option<IdleEntry>>>) -> Option<Self> {
        let waiting = place.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Self { place: place.clone(), idle: waiting.idle.clone(), close: waiting.close.clone() })
    }
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        let waiting = IdleEntry::new(&self.idle, &self.close);
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
    }
}

/// Serves until `stop`, then finishes what is under way for at most `grace`. Returns how many connections were cut after that.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    metrics: &Arc<Metrics>,
    most: usize,
    stop: impl Future<Output = ()>,
    grace: Duration,
) -> usize {
    let room = Arc::new(Semaphore::new(most));
    let idle = Arc::new(IdleConnections::default());
    let graceful = GracefulShutdown::new();
    let (stopping, stopped) = watch::channel(false);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(CLIENT_TIMEOUT);
    let begin = |stream: TcpStream, room: OwnedSemaphorePermit| {
        // Answers are small, and wait for nothing.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(CLIENT_TIMEOUT));
        let asked = Arc::new(AtomicBool::new(false));
        let seen = asked.clone();
        let close = Arc::new(Notify::new());
        let place = Arc::new(Mutex::new(Some(IdleEntry::new(&idle, &close))));
        let places = place.clone();
        let service = router.clone().map_request(move |mut request: Request<Incoming>| {
            seen.store(true, Ordering::Relaxed);
            if let Some(answering) = ResponseGuard::new(&places) {
                request.extensions_mut().insert(ActiveRequest(Arc::new(answering)));
            }
            request.map(Body::new)
        });
        let connection =
            http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        let (metrics, mut stopped) = (metrics.clone(), stopped.clone());
        metrics.add_connections(1);
        tokio::spawn(async move {
            let silent = async {
                let _ = stopped.wait_for(|stopped| *stopped).await;
                sleep(SHUTDOWN_IDLE_TIMEOUT).await;
                if asked.load(Ordering::Relaxed) {
                    pending::<()>().await;
                }
            };
            // A client that breaks off is no news.
            tokio::select! {
                _ = connection => {}
                () = silent => {}
                () = close.notified() => {}
            }
            metrics.add_connections(-1);
            drop(place.lock().unwrap_or_else(PoisonError::into_inner).take());
            drop(room);
        });
    };
    let accept_all = async {
        let mut said: Option<Instant> = None;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(place) = place(&room, &idle).await {
                        begin(stream, place);
                    }
                }
                Err(error) => {
                    // Out of file descriptors, for instance; that may pass.
                    if !idle.close_one() && said.is_none_or(|said| said.elapsed() > WARN_INTERVAL) {
                        tracing::warn!("connections cannot be accepted: {error}");
                        said = Some(Instant::now());
                    }
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept_all => {}
        () = stop => {}
    }
    // What the system has accepted for us has been accepted.
    while let Ok(place) = room.clone().try_acquire_owned()
        && let Ok(Ok((stream, _))) = timeout(Duration::ZERO, listener.accept()).await
    {
        begin(stream, place);
    }
    drop(listener);
    stopping.send_replace(true);
    match timeout(grace, graceful.shutdown()).await {
        Ok(()) => 0,
        Err(_) => most - room.available_permits(),
    }
}

/// Room for a connection, for which one that waits is closed where there is none.
async fn place(room: &Arc<Semaphore>, idle: &IdleConnections) -> Option<OwnedSemaphorePermit> {
    loop {
        if let Ok(place) = room.clone().try_acquire_owned() {
            return Some(place);
        }
        let closed = idle.close_one();
        tokio::select! {
            place = room.clone().acquire_owned() => return place.ok(),
            () = idle.more.notified(), if !closed => {}
            () = sleep(Duration::from_secs(1)), if closed => {}
        }
    }
}
