//! A server within the test process, and a client that can send invalid requests and disconnect early.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;
use tiny_cats::serve::{Config, NamedModel, Server, Shutdown};
use tiny_cats_export::{Model, ModelMeta, image_sizes};
use tiny_cats_models::{Init, Network as _, ResNetConfig, Sizes, TinyDitConfig, init};
use tokio::sync::Notify;

/// The classes of both models.
pub const BREEDS: [&str; 3] = ["Abyssinian", "Maine_Coon", "Sphynx"];

/// A small generator with random weights.
pub fn generator() -> NamedModel {
    let classes = BREEDS.map(String::from).to_vec();
    let config = TinyDitConfig { depth: 2, ..TinyDitConfig::named("nano", 32, classes.len()).unwrap() };
    let mut params = config.specs().unwrap();
    for spec in params.iter_mut().filter(|spec| spec.init == Init::Zeros) {
        spec.init = Init::Normal(0.05);
    }
    (
        "small".into(),
        Model::from_weights(
            ModelMeta::for_network(config.clone(), Sizes::new(), classes).unwrap(),
            init(&params, 1),
        ),
    )
}

/// A small classifier with random weights.
pub fn classifier() -> NamedModel {
    let classes = BREEDS.map(String::from).to_vec();
    let config = ResNetConfig { width: 8, ..ResNetConfig::named("resnet18", classes.len()).unwrap() };
    let weights = init(&config.specs().unwrap(), 2);
    (
        "breeds".into(),
        Model::from_weights(
            ModelMeta::for_network(config.clone(), image_sizes(32), classes).unwrap(),
            weights,
        ),
    )
}

/// A server that shuts down when this value is dropped.
pub struct TestServer {
    pub address: SocketAddr,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<anyhow::Result<Shutdown>>>,
}

impl TestServer {
    /// Starts the server on a free port and waits until it is ready.
    pub fn new(config: Config, generator: Option<NamedModel>, classifier: Option<NamedModel>) -> Self {
        let config = Config { address: ([127, 0, 0, 1], 0).into(), ..config };
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(async {
                let server = Server::start(config, generator, classifier).await?;
                let address = server.address()?;
                server.when_ready(move || sender.send(address).expect("the test waits for the address"));
                server.run(async move { stopped.notified().await }).await
            })
        });
        let address = receiver.recv_timeout(Duration::from_secs(120)).expect("the server is ready");
        Self { address, stop, thread: Some(thread) }
    }

    /// Requests a graceful shutdown, without waiting for it.
    pub fn request_shutdown(&self) {
        self.stop.notify_one();
    }

    /// Shuts the server down and returns how it ended.
    pub fn shut_down(mut self) -> Shutdown {
        self.request_shutdown();
        self.thread
            .take()
            .expect("the server runs")
            .join()
            .expect("the server does not panic")
            .expect("the server starts")
    }

    pub fn get(&self, path: &str) -> Response {
        send_request(self.address, "GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, content_type: &str, body: impl AsRef<[u8]>) -> Response {
        send_request(self.address, "POST", path, &[("content-type", content_type)], body.as_ref())
    }

    pub fn generate(&self, body: &Value) -> Response {
        self.post("/v1/generate", "application/json", body.to_string())
    }

    /// The value of the metric whose name and labels are `line`, or 0 if it is missing.
    pub fn metric(&self, line: &str) -> u64 {
        let text = self.get("/metrics").text();
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    /// Waits until the metric `line` has `value`.
    #[track_caller]
    pub fn wait_for_metric(&self, line: &str, value: u64) {
        let start = Instant::now();
        while self.metric(line) != value {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{line}: {}, expected {value}",
                self.metric(line)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.request_shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A response of the server.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}: {}", self.status, self.text()))
    }
}

/// Sends a request without reading its response.
pub fn start_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> TcpStream {
    try_start_request(address, method, path, headers, body).expect("the server listens")
}

/// Like [`start_request`], for a server that may not be listening.
pub fn try_start_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    // HTTP/1.0, so that the response ends when the connection closes.
    let mut head = format!("{method} {path} HTTP/1.0\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    // A server may respond and close before it has read the whole request, so that writing fails.
    let _ = stream.write_all(&[head.as_bytes(), b"\r\n", body].concat());
    Ok(stream)
}

/// Reads the response to a request of [`start_request`].
pub fn read_response(stream: TcpStream) -> Response {
    try_read_response(stream).expect("a response")
}

/// Reads a response, or returns `None` if the connection closes without one.
pub fn try_read_response(mut stream: TcpStream) -> Option<Response> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1 << 14];
    // A connection that is reset after a complete response is not an error.
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..n]);
    }
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let response = Response { status, head, body: bytes[end + 4..].to_vec() };
    let length = response.header("content-length").and_then(|length| length.parse().ok());
    assert!(length.is_none_or(|length: usize| length == response.body.len()), "the response is truncated");
    Some(response)
}

/// Sends a request and reads its response.
pub fn send_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    read_response(start_request(address, method, path, headers, body))
}
