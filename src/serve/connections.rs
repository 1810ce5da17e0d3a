//! Connections: accepted while there is room, cut when they send too slowly, and brought to their end when the server stops.

use std::{future::Future, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::Metrics;

/// How long a client may take for a request's head, or leave a connection idle.
const HEAD: Duration = Duration::from_secs(60);

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
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let begin = |stream: TcpStream, place| {
        // Answers are small, and wait for nothing.
        let _ = stream.set_nodelay(true);
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
        let metrics = metrics.clone();
        metrics.connection(1);
        tokio::spawn(async move {
            // A client that breaks off is no news.
            let _ = connection.await;
            metrics.connection(-1);
            drop(place);
        });
    };
    let accept_all = async {
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => begin(stream, place),
                Err(error) => {
                    // Out of file descriptors, for instance; that may pass.
                    tracing::warn!("a connection could not be accepted: {error}");
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
    match timeout(grace, graceful.shutdown()).await {
        Ok(()) => 0,
        Err(_) => most - room.available_permits(),
    }
}
