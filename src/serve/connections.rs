//! Connections: accepted while there is room, cut when they are too slow, and brought to their end when the server stops.

use std::{
    future::{Future, pending},
    sync::{
        Arc,
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
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use super::Metrics;

/// How long a client may take for a request's head, leave a connection idle, or not read what it is sent.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client that has asked for nothing yet may take when the server stops.
const LAST_CALL: Duration = Duration::from_secs(2);
/// How often it is said that connections cannot be accepted.
const REMINDER: Duration = Duration::from_secs(60);

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
    let graceful = GracefulShutdown::new();
    let (stopping, stopped) = watch::channel(false);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let begin = |stream: TcpStream, place| {
        // Answers are small, and wait for nothing.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(PATIENCE));
        let asked = Arc::new(AtomicBool::new(false));
        let seen = asked.clone();
        let service = router.clone().map_request(move |request: Request<Incoming>| {
            seen.store(true, Ordering::Relaxed);
            request.map(Body::new)
        });
        let connection =
            http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        let (metrics, mut stopped) = (metrics.clone(), stopped.clone());
        metrics.connection(1);
        tokio::spawn(async move {
            let silent = async {
                let _ = stopped.wait_for(|stopped| *stopped).await;
                sleep(LAST_CALL).await;
                if asked.load(Ordering::Relaxed) {
                    pending::<()>().await;
                }
            };
            // A client that breaks off is no news.
            tokio::select! {
                _ = connection => {}
                () = silent => {}
            }
            metrics.connection(-1);
            drop(place);
        });
    };
    let accept_all = async {
        let mut said: Option<Instant> = None;
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => begin(stream, place),
                Err(error) => {
                    // Out of file descriptors, for instance; that may pass.
                    if said.is_none_or(|said| said.elapsed() > REMINDER) {
                        tracing::warn!("connections cannot be accepted: {error}");
                        said = Some(Instant::now());
                    }
                    sleep(Duration::from_millis(100)).await;
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
