//! Accepts connections up to a limit, closes those that time out, and ends them at shutdown.
//!
//! At the limit, the connection that has been idle longest is closed to accept a new one. So clients that open connections without sending
//! requests cannot block others.

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

/// The timeout for a client to send the head of a request, to reuse an idle connection, or to read a response.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// The timeout at shutdown for a client that has not sent a request yet.
const SHUTDOWN_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// The minimum time between two warnings about connections that cannot be accepted.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// The delay after a connection could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(20);

/// The idle connections, which wait for a request.
#[derive(Default)]
struct IdleConnections {
    /// The connections by number, in the order in which they became idle; and the next number.
    entries: Mutex<(BTreeMap<u64, Arc<Notify>>, u64)>,
    /// Notified when another connection becomes idle.
    added: Notify,
}

impl IdleConnections {
    fn entries(&self) -> MutexGuard<'_, (BTreeMap<u64, Arc<Notify>>, u64)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection that has been idle longest. Returns false if none is idle.
    fn close_oldest(&self) -> bool {
        let first = self.entries().0.pop_first();
        first.is_some_and(|(_, close)| {
            close.notify_one();
            true
        })
    }
}

/// The entry of an idle connection, which is removed when this is dropped.
struct IdleEntry {
    idle: Arc<IdleConnections>,
    number: u64,
    close: Arc<Notify>,
}

impl IdleEntry {
    fn new(idle: &Arc<IdleConnections>, close: &Arc<Notify>) -> Self {
        let number = {
            let mut entries = idle.entries();
            let number = entries.1;
            entries.1 += 1;
            entries.0.insert(number, close.clone());
            number
        };
        idle.added.notify_one();
        Self { idle: idle.clone(), number, close: close.clone() }
    }
}

impl Drop for IdleEntry {
    fn drop(&mut self) {
        self.idle.entries().0.remove(&self.number);
    }
}

/// Marks the connection of a request as active until this is dropped, after the response has been sent.
#[derive(Clone)]
pub struct ActiveRequest(#[expect(dead_code, reason = "its drop counts")] Arc<ResponseGuard>);

struct ResponseGuard {
    slot: Arc<Mutex<Option<IdleEntry>>>,
    idle: Arc<IdleConnections>,
    close: Arc<Notify>,
}

impl ResponseGuard {
    fn new(slot: &Arc<Mutex<Option<IdleEntry>>>) -> Option<Self> {
        let entry = slot.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Self { slot: slot.clone(), idle: entry.idle.clone(), close: entry.close.clone() })
    }
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        let entry = IdleEntry::new(&self.idle, &self.close);
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
    }
}

/// Serves until `stop` completes, then finishes active requests for at most `grace`. Returns the number of connections that were still open
/// after that.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    metrics: &Arc<Metrics>,
    max_connections: usize,
    stop: impl Future<Output = ()>,
    grace: Duration,
) -> usize {
    let permits = Arc::new(Semaphore::new(max_connections));
    let idle = Arc::new(IdleConnections::default());
    let graceful = GracefulShutdown::new();
    let (stopping, stopped) = watch::channel(false);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(CLIENT_TIMEOUT);
    let serve_connection = |stream: TcpStream, permit: OwnedSemaphorePermit| {
        // Responses are small and should not be delayed.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(CLIENT_TIMEOUT));
        let has_request = Arc::new(AtomicBool::new(false));
        let request_flag = has_request.clone();
        let close = Arc::new(Notify::new());
        let slot = Arc::new(Mutex::new(Some(IdleEntry::new(&idle, &close))));
        let request_slot = slot.clone();
        let service = router.clone().map_request(move |mut request: Request<Incoming>| {
            request_flag.store(true, Ordering::Relaxed);
            if let Some(guard) = ResponseGuard::new(&request_slot) {
                request.extensions_mut().insert(ActiveRequest(Arc::new(guard)));
            }
            request.map(Body::new)
        });
        let connection =
            http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        let (metrics, mut stopped) = (metrics.clone(), stopped.clone());
        metrics.add_connections(1);
        tokio::spawn(async move {
            let idle_timeout = async {
                let _ = stopped.wait_for(|stopped| *stopped).await;
                sleep(SHUTDOWN_IDLE_TIMEOUT).await;
                if has_request.load(Ordering::Relaxed) {
                    pending::<()>().await;
                }
            };
            // A client disconnect is not an error.
            tokio::select! {
                _ = connection => {}
                () = idle_timeout => {}
                () = close.notified() => {}
            }
            metrics.add_connections(-1);
            drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
            drop(permit);
        });
    };
    let accept_all = async {
        let mut last_warning: Option<Instant> = None;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(permit) = acquire_permit(&permits, &idle).await {
                        serve_connection(stream, permit);
                    }
                }
                Err(error) => {
                    // A transient error, such as too few file descriptors.
                    if !idle.close_oldest() && last_warning.is_none_or(|time| time.elapsed() > WARN_INTERVAL)
                    {
                        tracing::warn!("connections cannot be accepted: {error}");
                        last_warning = Some(Instant::now());
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
    // Connections in the backlog of the operating system count as accepted.
    while let Ok(permit) = permits.clone().try_acquire_owned()
        && let Ok(Ok((stream, _))) = timeout(Duration::ZERO, listener.accept()).await
    {
        serve_connection(stream, permit);
    }
    drop(listener);
    stopping.send_replace(true);
    match timeout(grace, graceful.shutdown()).await {
        Ok(()) => 0,
        Err(_) => max_connections - permits.available_permits(),
    }
}

/// Acquires the permit of a connection; if there is none, closes an idle connection and waits.
async fn acquire_permit(permits: &Arc<Semaphore>, idle: &IdleConnections) -> Option<OwnedSemaphorePermit> {
    loop {
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return Some(permit);
        }
        let closed = idle.close_oldest();
        tokio::select! {
            permit = permits.clone().acquire_owned() => return permit.ok(),
            () = idle.added.notified(), if !closed => {}
            () = sleep(Duration::from_secs(1)), if closed => {}
        }
    }
}
