//! A server in this process, and a client that can behave badly.
#![allow(dead_code, reason = "each test uses some of it")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;
use tiny_cats::serve::{Config, NamedModel, Server, Shutdown};
use tiny_cats_export::{Model, ModelMeta};
use tiny_cats_models::{Init, ResNetConfig, TinyDitConfig, init};
use tokio::sync::Notify;

/// Its classes.
pub const BREEDS: [&str; 3] = ["Abyssinian", "Maine_Coon", "Sphynx"];

/// A small generator; that its pictures are of nothing matters to nobody here.
pub fn generator() -> NamedModel {
    let classes = BREEDS.map(String::from).to_vec();
    let config = TinyDitConfig { depth: 2, ..TinyDitConfig::named("nano", 32, classes.len()).unwrap() };
    let mut params = config.cost().unwrap().params;
    for spec in params.iter_mut().filter(|spec| spec.init == Init::Zeros) {
        spec.init = Init::Normal(0.05);
    }
    ("small".into(), Model::from_weights(ModelMeta::tiny_dit(&config, classes), init(&params, 1)))
}

/// A small classifier.
pub fn classifier() -> NamedModel {
    let classes = BREEDS.map(String::from).to_vec();
    let config = ResNetConfig { width: 8, ..ResNetConfig::named("resnet18", classes.len()).unwrap() };
    let weights = init(&config.cost(32).unwrap().params, 2);
    ("breeds".into(), Model::from_weights(ModelMeta::resnet(&config, 32, classes), weights))
}

/// A server that ends with this value.
pub struct TestServer {
    pub address: SocketAddr,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<anyhow::Result<Shutdown>>>,
}

impl TestServer {
    /// Starts it at any free port, and waits until it is ready.
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
                server.when_ready(move || sender.send(address).expect("somebody waits"));
                server.run(async move { stopped.notified().await }).await
            })
        });
        let address = receiver.recv_timeout(Duration::from_secs(120)).expect("the server is ready");
        Self { address, stop, thread: Some(thread) }
    }

    /// Asks it to stop, without waiting.
    pub fn ask_to_stop(&self) {
        self.stop.notify_one();
    }

    /// Stops it, and says how it ended.
    pub fn end(mut self) -> Shutdown {
        self.ask_to_stop();
        self.thread.take().expect("it runs").join().expect("no panic").expect("the models are good")
    }

    pub fn get(&self, path: &str) -> Answer {
        ask(self.address, "GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, content_type: &str, body: impl AsRef<[u8]>) -> Answer {
        ask(self.address, "POST", path, &[("content-type", content_type)], body.as_ref())
    }

    pub fn generate(&self, body: &Value) -> Answer {
        self.post("/v1/generate", "application/json", body.to_string())
    }

    /// The value of a line of the metrics; 0 where there is none.
    pub fn metric(&self, line: &str) -> u64 {
        let text = self.get("/metrics").text();
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    /// Waits until `line` of the metrics is `value`.
    #[track_caller]
    pub fn until(&self, line: &str, value: u64) {
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
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
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

/// Sends a request whose answer is not read yet.
pub fn begin(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> TcpStream {
    try_begin(address, method, path, headers, body).expect("it listens")
}

/// The same, where nobody may listen.
pub fn try_begin(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    // Of 1.0: the answer ends with the connection.
    let mut head = format!("{method} {path} HTTP/1.0\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    // A server may answer and close before it has read everything.
    let _ = stream.write_all(&[head.as_bytes(), b"\r\n", body].concat());
    Ok(stream)
}

pub fn answer(stream: TcpStream) -> Answer {
    try_answer(stream).expect("an answer")
}

/// The answer, if one comes.
pub fn try_answer(mut stream: TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let mut part = [0; 1 << 14];
    // What came before the connection was reset has come.
    while let Ok(n @ 1..) = stream.read(&mut part) {
        bytes.extend_from_slice(&part[..n]);
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let answer = Answer { status, head, body: bytes[end + 4..].to_vec() };
    let length = answer.header("content-length").and_then(|length| length.parse().ok());
    assert!(length.is_none_or(|length: usize| length == answer.body.len()), "an answer that breaks off");
    Some(answer)
}

pub fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    answer(begin(address, method, path, headers, body))
}
