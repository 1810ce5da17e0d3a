//! The HTTP server: an API that generates and classifies images, and the web demo.
//!
//! Each model has a worker thread and a bounded queue (`model_queue`). The generator's worker batches continuously (`generate_worker`), the
//! classifier's batches simultaneous requests (`classify_worker`). Handlers validate the request, acquire permits of the queue, and wait. A
//! handler is dropped at a client disconnect or a timeout, which cancels its work. No model is served before it is verified on
//! the runtime that serves it.

mod classify_worker;
mod connections;
mod generate_worker;
mod guard;
mod metrics;
mod model_queue;
mod openapi;
mod problem;
mod routes;
mod site;

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderValue, Method, header},
    middleware,
    routing::{get, post},
};
use tiny_cats_export::{Classifier, Generator, LoadOptions, Model, runtime::RuntimeKind};
use tokio::{net::TcpListener, sync::Semaphore};
use tower_http::{catch_panic::CatchPanicLayer, cors::CorsLayer};

use metrics::Metrics;
use model_queue::{ModelQueue, ModelState};
use problem::Problem;

/// Maximum total bytes of the photographs that are being read.
const MAX_BODIES_BYTES: usize = 256 << 20;

/// The limits of requests, and the access to the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; port 0 picks a free one.
    pub address: SocketAddr,
    /// The runtime of the models; `None` for the first that was compiled in.
    pub runtime: Option<RuntimeKind>,
    /// Maximum images per batch.
    pub max_batch: usize,
    /// Maximum time that an image to classify waits for others to join its batch.
    pub max_wait: Duration,
    /// Maximum unfinished images per model; further requests are refused.
    pub queue: usize,
    /// Maximum images per request, at most [`queue`](Self::queue).
    pub max_count: usize,
    /// Maximum steps per request.
    pub max_steps: usize,
    /// Maximum time of a request, including its body.
    pub timeout: Duration,
    /// Maximum bytes of a request body.
    pub max_body: usize,
    /// Maximum pixels of a photograph; the photographs of one request may have four times as many in total.
    pub max_pixels: u64,
    /// Maximum open connections.
    pub max_connections: usize,
    /// The token that clients of the API must send, if any.
    pub token: Option<String>,
    /// Host names that requests may use while the server listens on a loopback address, besides `localhost` and IP addresses.
    pub hosts: Vec<String>,
    /// Origins whose pages may call the API.
    pub origins: Vec<HeaderValue>,
    /// The web demo.
    pub demo: WebDemo,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: ([127, 0, 0, 1], 8080).into(),
            runtime: None,
            max_batch: 16,
            max_wait: Duration::from_millis(5),
            queue: 256,
            max_count: 64,
            max_steps: 250,
            timeout: Duration::from_secs(60),
            max_body: 16 << 20,
            max_pixels: 24_000_000,
            max_connections: 1024,
            token: None,
            hosts: Vec::new(),
            origins: Vec::new(),
            demo: WebDemo::default(),
        }
    }
}

/// The source of the web demo.
#[derive(Clone, Debug, Default)]
pub enum WebDemo {
    /// In this program, if it was built with the feature `web-demo`.
    #[default]
    Embedded,
    /// In a folder such as `web-demo/dist`, which is read once.
    Folder(PathBuf),
    /// No web demo.
    None,
}

/// A model to serve, and its name.
pub type NamedModel = (String, Model);

/// The state that handlers share.
struct AppState {
    config: Config,
    generator: Option<ModelQueue<generate_worker::GenerateJob>>,
    classifier: Option<ModelQueue<classify_worker::ClassifyJob>>,
    metrics: Arc<Metrics>,
    site: site::Site,
    openapi: String,
    /// Permits to decode photographs, one per CPU.
    decoders: Arc<Semaphore>,
    /// The single permit to decode a large photograph.
    large_decoder: Arc<Semaphore>,
    /// Permits for photographs that are being read, one per KiB.
    body_memory: Arc<Semaphore>,
    stopping: AtomicBool,
}

impl AppState {
    fn states(&self) -> Vec<(&str, ModelState)> {
        let generator = self.generator.iter().map(|queue| (queue.name.as_str(), queue.state()));
        generator.chain(self.classifier.iter().map(|queue| (queue.name.as_str(), queue.state()))).collect()
    }

    /// Waits until a model has failed, and returns the reason; normally never returns.
    async fn wait_until_failed(&self) -> String {
        let generator = async {
            match &self.generator {
                Some(queue) => queue.wait_until_failed().await,
                None => std::future::pending().await,
            }
        };
        let classifier = async {
            match &self.classifier {
                Some(queue) => queue.wait_until_failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { reason = generator => reason, reason = classifier => reason }
    }
}

/// A server that listens but does not answer yet.
pub struct Server {
    listener: TcpListener,
    app: Arc<AppState>,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Every accepted request was answered.
    Graceful,
    /// The grace period expired, and this number of connections was closed.
    TimedOut(usize),
}

impl Server {
    /// Listens, and starts to verify and load the models. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the server cannot listen on the address, the web demo cannot be read, or a model has the wrong task.
    pub async fn start(
        config: Config,
        generator: Option<NamedModel>,
        classifier: Option<NamedModel>,
    ) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let site = site::Site::new(&config.demo, generator.iter().chain(&classifier))?;
        let listener = TcpListener::bind(config.address)
            .await
            .map_err(|e| anyhow::anyhow!("{}: cannot listen: {e}", config.address))?;
        let (batch, wait, queue) = (config.max_batch, config.max_wait, config.queue);
        let options = LoadOptions { runtime: config.runtime, batch };
        let generator = match generator {
            Some((name, model)) => {
                model.generator()?;
                let runtime = options.runtime(&model);
                let load = move |model: &Model| Generator::from_model(model, &options);
                let work = move |generator, context| generate_worker::work(generator, context, batch);
                Some(ModelQueue::start(&name, model, runtime, queue, &metrics, load, work)?)
            }
            None => None,
        };
        let classifier = match classifier {
            Some((name, model)) => {
                model.classifier()?;
                let options = LoadOptions { runtime: config.runtime, batch };
                let runtime = options.runtime(&model);
                let load = move |model: &Model| Classifier::from_model(model, &options);
                let work = move |classifier, context| classify_worker::work(classifier, context, batch, wait);
                Some(ModelQueue::start(&name, model, runtime, queue, &metrics, load, work)?)
            }
            None => None,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (decoders, large_decoder) = (Arc::new(Semaphore::new(cores)), Arc::new(Semaphore::new(1)));
        let body_memory = Arc::new(Semaphore::new(config.max_body.max(MAX_BODIES_BYTES) / 1024));
        let openapi = openapi::document(
            &config,
            generator.as_ref().map(|queue| &queue.meta),
            classifier.as_ref().map(|queue| &queue.meta),
        )
        .to_string();
        let stopping = AtomicBool::new(false);
        let app = AppState {
            config,
            generator,
            classifier,
            metrics,
            site,
            openapi,
            decoders,
            large_decoder,
            body_memory,
            stopping,
        };
        Ok(Self { listener, app: Arc::new(app) })
    }

    /// The address that the server listens on.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Calls `callback` when all models are verified and loaded; never if one fails.
    pub fn when_ready(&self, callback: impl FnOnce() + Send + 'static) {
        let app = self.app.clone();
        tokio::spawn(async move {
            if let Some(queue) = &app.generator {
                queue.wait_until_ready().await;
            }
            if let Some(queue) = &app.classifier {
                queue.wait_until_ready().await;
            }
            callback();
        });
    }

    /// Answers requests until `stop` completes, then finishes the accepted ones within a grace period of the request timeout plus 5 s.
    ///
    /// # Errors
    /// If a model fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<Shutdown> {
        let Self { listener, app } = self;
        let router = router(&app);
        let stopped = async {
            tokio::select! {
                () = stop => Ok(()),
                reason = app.wait_until_failed() => Err(anyhow::anyhow!(reason)),
            }
        };
        let mut result = Ok(());
        let wait_for_stop = async {
            result = stopped.await;
            app.stopping.store(true, Ordering::Relaxed);
        };
        let grace = app.config.timeout + Duration::from_secs(5);
        let closed = connections::serve(
            listener,
            router,
            &app.metrics,
            app.config.max_connections,
            wait_for_stop,
            grace,
        )
        .await;
        result?;
        Ok(if closed == 0 { Shutdown::Graceful } else { Shutdown::TimedOut(closed) })
    }
}

fn router(app: &Arc<AppState>) -> Router {
    let max_body = app.config.max_body;
    let max_generate_body = max_body.min(routes::MAX_BODY_BYTES);
    let limit_declared = |max: usize| middleware::from_fn_with_state(max, guard::limit_declared_length);
    let generate = post(routes::generate)
        .layer(DefaultBodyLimit::max(max_generate_body))
        .layer(limit_declared(max_generate_body));
    let api = Router::new()
        .route("/v1/generate", generate)
        .route("/v1/classify", post(routes::classify))
        .route("/v1/models", get(routes::models))
        .route("/metrics", get(routes::metrics))
        .method_not_allowed_fallback(guard::method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), guard::authenticate));
    let mut router = Router::new()
        .merge(api)
        .route("/openapi.json", get(routes::openapi))
        .route("/healthz", get(routes::healthz))
        .route("/readyz", get(routes::readyz))
        .method_not_allowed_fallback(guard::method_not_allowed)
        .fallback(site::serve)
        .layer(DefaultBodyLimit::max(max_body))
        .layer(limit_declared(max_body))
        .layer(middleware::from_fn_with_state(app.clone(), guard::reject_cross_origin))
        .layer(middleware::from_fn_with_state(app.clone(), guard::enforce_timeout))
        .layer(CatchPanicLayer::custom(guard::panic_response));
    if !app.config.origins.is_empty() {
        let cors = CorsLayer::new()
            .allow_origin(app.config.origins.clone())
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION, guard::REQUEST_ID])
            .expose_headers([header::RETRY_AFTER, guard::REQUEST_ID, routes::SEED]);
        router = router.layer(cors);
    }
    router.layer(middleware::from_fn_with_state(app.clone(), guard::log_request)).with_state(app.clone())
}
