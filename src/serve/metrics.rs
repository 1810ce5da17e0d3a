//! Metrics for Prometheus.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    path: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabel {
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

/// The metrics of the server.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    duration: Family<PathLabel, Histogram>,
    images: Family<ModelLabel, Counter>,
    canceled: Family<ModelLabel, Counter>,
    batch_size: Family<ModelLabel, Histogram>,
    waiting: Family<ModelLabel, Gauge>,
    connections: Gauge,
    resident_memory: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tiny_cats");
        let requests = Family::default();
        registry.register(
            "requests",
            "Requests by route and status; 499 is a client disconnect",
            requests.clone(),
        );
        let duration = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.001, 2.0, 17))) as fn() -> _,
        );
        registry.register_with_unit(
            "request",
            "Time from the head of a request to the end of its response",
            Unit::Seconds,
            duration.clone(),
        );
        let images = Family::default();
        registry.register("pictures", "Images generated or classified", images.clone());
        let canceled = Family::default();
        registry.register(
            "cancelled_pictures",
            "Images canceled by a client disconnect or a timeout",
            canceled.clone(),
        );
        let batch_size =
            Family::new_with_constructor((|| Histogram::new(exponential_buckets(1.0, 2.0, 8))) as fn() -> _);
        registry.register("batch_pictures", "Images per batch", batch_size.clone());
        let waiting = Family::default();
        registry.register("waiting_pictures", "Images admitted and not finished", waiting.clone());
        let connections = Gauge::default();
        registry.register("connections", "Open connections", connections.clone());
        let resident_memory = Gauge::default();
        registry.register_with_unit(
            "resident_memory",
            "Resident memory of the process",
            Unit::Bytes,
            resident_memory.clone(),
        );
        Self {
            registry,
            requests,
            duration,
            images,
            canceled,
            batch_size,
            waiting,
            connections,
            resident_memory,
        }
    }
}

impl Metrics {
    /// Records a request of the route `path`.
    pub fn record_request(&self, path: &str, status: u16, time: Duration) {
        self.requests.get_or_create(&RequestLabels { path: path.to_owned(), status }).inc();
        self.duration.get_or_create(&PathLabel { path: path.to_owned() }).observe(time.as_secs_f64());
    }

    /// Records an evaluation of the network for `n` images.
    pub fn record_batch(&self, model: &str, n: usize) {
        self.batch_size.get_or_create(&ModelLabel { model: model.to_owned() }).observe(n as f64);
    }

    /// Records `n` finished images.
    pub fn record_done(&self, model: &str, n: usize) {
        self.images.get_or_create(&ModelLabel { model: model.to_owned() }).inc_by(n as u64);
    }

    /// Records `n` canceled images.
    pub fn record_canceled(&self, model: &str, n: usize) {
        self.canceled.get_or_create(&ModelLabel { model: model.to_owned() }).inc_by(n as u64);
    }

    /// Adds `change` to the number of open connections.
    pub fn add_connections(&self, change: i64) {
        self.connections.inc_by(change);
    }

    /// All metrics in OpenMetrics' text format, with the number of `waiting` images of each model.
    pub fn text(&self, waiting: &[(&str, usize)]) -> String {
        for (model, n) in waiting {
            self.waiting.get_or_create(&ModelLabel { model: (*model).to_owned() }).set(*n as i64);
        }
        self.resident_memory.set(crate::memory::process().map_or(0, |bytes| bytes as i64));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
