//! Connections: accepted while there is room, closed if they are too slow, and ended at shutdown.
//!
//! If there is no more room, the connection that has been idle longest is closed for the new one. So clients that open connections without
//! sending requests keep nobody out.

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

/// The time in which a client must send a request's head, use an idle connection again, or read what it is sent.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// The time that a client that has not sent a request yet gets at shutdown.
const SHUTDOWN_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// The minimum time between two warnings that connections cannot be accepted.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// The wait before the next attempt after a connection could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(20);

/// The connections that wait for a request.
#[derive(Default)]
struct IdleConnections {
    /// The connections in the order in which they became idle, and the number of the next.
    waiting: Mutex<(BTreeMap<u64, Arc<Notify>>, u64)>,
    /// Notified when another connection becomes idle.
    more: Notify,
}

impl IdleConnections {
    fn waiting(&self) -> MutexGuard<'_, (BTreeMap<u64, Arc<Notify>>, u64)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection that has been idle longest; false if none is idle.
    fn close_one(&self) -> bool {
        let first = self.waiting().0.pop_first();
        first.is_some_and(|(_, close)| {
            close.notify_one();
            true
        })
    }
}

/// A connection's entry among the idle ones; it is removed when dropped.
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

/// Keeps a request's connection out of the idle ones until its response has been sent and this is dropped.
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

/// Serves until `stop`, then finishes active requests for at most `grace`. Returns the number of connections that were cut after that.
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
        // Responses are small and should not be delayed.
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
            // A client that disconnects is no error.
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
                    // Such as too few file descriptors, which may be transient.
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
    // Connections in the system's backlog count as accepted.
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

/// Waits for a connection's permit, and closes an idle connection if there is none.
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
