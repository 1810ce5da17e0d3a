//! The HTTP server under load, and against schemathesis, which compares it with its OpenAPI document.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::common::http::{send_request, start_request, try_read_response};
use image::ImageFormat;
use tempfile::TempDir;
use tiny_cats::data::synth;
use tiny_cats_models::random::{Purpose, Stream};

const JSON: &str = "application/json";

/// The server in a process of its own, with small models and its log in a file.
struct Program {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Program {
    fn new(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, model) in [crate::common::http::generator(), crate::common::http::classifier()] {
            fs::write(folder.path().join(format!("{name}.onnx")), model.graph().unwrap().bytes()).unwrap();
        }
        let (out, log) = (folder.path().join("out"), folder.path().join("log"));
        let child = Command::new(crate::common::CATS)
            .args(["serve", "--port", "0", "--model", "small.onnx", "--classifier", "breeds.onnx"])
            .args(args)
            .current_dir(folder.path())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(log).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .expect("the program starts");
        let start = Instant::now();
        let address = loop {
            let stdout = fs::read_to_string(&out).unwrap();
            if let Some(line) = stdout.strip_suffix("/\n") {
                break line.trim_start_matches("listening at http://").parse().expect("an address");
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the server does not listen after 60 s");
            thread::sleep(Duration::from_millis(10));
        };
        let program = Self { child, address, folder };
        while program.get("/readyz").0 != 200 {
            assert!(start.elapsed() < Duration::from_secs(120), "the server is not ready after 120 s");
            thread::sleep(Duration::from_millis(10));
        }
        program
    }

    fn get(&self, path: &str) -> (u16, String) {
        let response = send_request(self.address, "GET", path, &[], b"");
        (response.status, response.text())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The resident memory in bytes.
    fn memory(&self) -> u64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find_map(|l| l.strip_prefix("tiny_cats_resident_memory_bytes "));
        line.expect("the metric").parse().expect("a number")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request: path, content type, body and accepted status codes.
type TestRequest = (&'static str, &'static str, Vec<u8>, &'static [u16]);

/// A random request, valid or invalid.
fn random_request(stream: &mut Stream, image: &[u8]) -> TestRequest {
    let seed = stream.uniform_int(1 << 20);
    let generate =
        |body: String, statuses: &'static [u16]| ("/v1/generate", JSON, body.into_bytes(), statuses);
    // Random bytes may be valid text by chance, but not an image.
    let noise: Vec<u8> = (0..300).map(|_| stream.uniform_int(256) as u8).collect();
    match stream.uniform_int(14) {
        0..=3 => generate(format!(r#"{{"seed": {seed}, "steps": {}}}"#, 1 + seed % 3), &[200, 429]),
        4 => {
            generate(format!(r#"{{"seed": {seed}, "steps": 1, "count": 5, "format": "grid"}}"#), &[200, 429])
        }
        5 => generate(format!(r#"{{"seed": {seed}, "steps": 2, "stream": true}}"#), &[200, 429]),
        6 => generate(format!(r#"{{"seed": {seed}, "breed": "Dog"}}"#), &[422]),
        7 => generate(format!(r#"{{"seed": {seed}"#), &[400]),
        8 => ("/v1/generate", JSON, noise, &[400, 422]),
        9 => ("/v1/classify", "image/png", image.to_vec(), &[200, 429]),
        10 => ("/v1/classify", "image/jpeg", image[..image.len() / 2].to_vec(), &[422]),
        11 => ("/v1/classify", "image/webp", noise, &[422]),
        12 => ("/v1/classify", "multipart/form-data; boundary=b", noise, &[400, 422]),
        _ => ("/nowhere", JSON, noise, &[404]),
    }
}

#[test]
#[ignore = "takes minutes; scripts/test-slow runs it"]
fn ten_thousand_requests_are_answered_without_a_memory_leak() {
    const TOTAL: usize = 10_000;
    const CLIENTS: u64 = 16;
    let program = Program::new(&["--queue", "24", "--max-count", "8", "--max-body", "1"]);
    let mut image = std::io::Cursor::new(Vec::new());
    synth::draw(1, 1, 1, 200).write_to(&mut image, ImageFormat::Png).unwrap();
    let image = image.into_inner();
    let (next, halfway_bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let statuses = thread::scope(|scope| {
        let client = |number: u64| {
            let (program, next, halfway_bytes, image) = (&program, &next, &halfway_bytes, &image);
            scope.spawn(move || {
                let mut stream = Stream::new(11, Purpose::Synthetic, number);
                let mut statuses = Vec::new();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= TOTAL {
                        return statuses;
                    }
                    if i == TOTAL / 2 {
                        halfway_bytes.store(program.memory() as usize, Ordering::Relaxed);
                    }
                    let (path, content_type, body, expected) = random_request(&mut stream, image);
                    let headers = [("content-type", content_type)];
                    if i % 20 == 0 {
                        // This client disconnects without reading the response.
                        drop(start_request(program.address, "POST", path, &headers, &body));
                        continue;
                    }
                    let response = send_request(program.address, "POST", path, &headers, &body);
                    assert!(expected.contains(&response.status), "{path} {content_type}: {response:?}");
                    if response.status == 429 {
                        assert!(response.header("retry-after").is_some());
                    }
                    statuses.push(response.status);
                }
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<u16>>()
    });
    assert_eq!(statuses.len(), TOTAL - TOTAL / 20);
    let count = |status| statuses.iter().filter(|s| **s == status).count();
    println!(
        "200: {}, 400: {}, 404: {}, 422: {}, 429: {}",
        count(200),
        count(400),
        count(404),
        count(422),
        count(429)
    );
    assert!(count(200) > TOTAL / 4 && count(429) > 0, "the queue was never full");
    let (before, after) = (halfway_bytes.into_inner(), program.memory() as usize);
    println!("resident: {:.1} MiB halfway, {:.1} MiB at the end", mib(before), mib(after));
    assert!(after < before + (8 << 20), "{before} to {after} bytes");
    // No request is left in a queue, including those of disconnected clients.
    let text = program.get("/metrics").1;
    for line in text.lines().filter(|line| line.starts_with("tiny_cats_waiting_pictures{")) {
        assert!(line.ends_with(" 0"), "{line}");
    }
    assert!(!program.log().contains("internal error"));
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(unix)]
#[test]
#[ignore = "keeps the machine busy; scripts/test-slow runs it"]
fn a_signal_under_load_loses_no_accepted_request() {
    let mut program = Program::new(&[]);
    let (answered, dropped, stopping) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for client in 0..16 {
            let (address, answered, dropped, stopping) = (program.address, &answered, &dropped, &stopping);
            scope.spawn(move || {
                let body = format!(r#"{{"seed": {client}, "steps": 2}}"#);
                // Until the server stops listening.
                while TcpStream::connect(address).is_ok() {
                    let Ok(stream) = crate::common::http::try_start_request(
                        address,
                        "POST",
                        "/v1/generate",
                        &[("content-type", JSON)],
                        body.as_bytes(),
                    ) else {
                        return;
                    };
                    match try_read_response(stream) {
                        Some(response) => {
                            assert_eq!(response.status, 200, "{}", response.text());
                            assert_eq!(response.json()["pictures"].as_array().unwrap().len(), 1);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        // The server had stopped listening and never accepted the request.
                        None => {
                            assert!(stopping.load(Ordering::Relaxed), "no response before the shutdown");
                            dropped.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        thread::sleep(Duration::from_secs(3));
        stopping.store(true, Ordering::Relaxed);
        crate::common::background_run::signal(program.child.id() as i32, libc::SIGTERM);
    });
    assert!(program.child.wait().unwrap().success(), "{}", program.log());
    let log = program.log();
    let served =
        log.lines().filter(|line| line.contains("/v1/generate") && line.contains("status=200")).count();
    let (answered, dropped) = (answered.into_inner(), dropped.into_inner());
    println!("{answered} answered, {dropped} connections were never accepted");
    assert!(answered > 16 && log.contains("all accepted requests were answered"));
    assert_eq!(served, answered, "the server's log and the clients disagree");
}

#[test]
#[ignore = "needs a Python with schemathesis: TINY_CATS_PYTHON=python cargo test --test suite -- --ignored schemathesis"]
fn schemathesis_finds_no_deviation_from_the_openapi_document() {
    let python =
        std::env::var("TINY_CATS_PYTHON").expect("TINY_CATS_PYTHON names a Python with schemathesis");
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "s3cret").unwrap();
    let token_flags = ["--token-file", token.path().to_str().unwrap()];
    for flags in [&[][..], &token_flags] {
        let program =
            Program::new(&[&["--max-steps", "3", "--max-count", "3", "--max-body", "1"], flags].concat());
        let mut command = Command::new(&python);
        command
            .args(["-m", "schemathesis.cli", "run", &format!("http://{}/openapi.json", program.address)])
            .args(["--checks", "all", "--continue-on-failure", "--no-color", "-n", "200"])
            .current_dir(program.folder.path());
        if !flags.is_empty() {
            command.args(["-H", "Authorization: Bearer s3cret"]);
        }
        let output = command.output().expect("Python starts");
        let report = crate::common::text(&output);
        assert!(output.status.success() && report.contains("No issues found"), "{report}");
        println!("{}", report.lines().rev().take(8).collect::<Vec<_>>().join("\n"));
    }
}
