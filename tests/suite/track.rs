//! Trackers against servers that are dead, slow, hostile or failing, and against the real MLflow and TensorBoard.
#![cfg(feature = "mlflow")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;
use tiny_cats::{
    track::{BackgroundTracker, DeliveryPolicy, RunInfo, Tracker, mlflow::mlflow, tensorboard},
    train::folder::Status,
};

const API: &str = "/api/2.0/mlflow/";

fn policy() -> DeliveryPolicy {
    let millis = Duration::from_millis;
    DeliveryPolicy {
        request: millis(500),
        initial_backoff: millis(5),
        max_backoff: millis(20),
        end: millis(1500),
    }
}

/// The requests to a server: the path after [`API`] without the query, and the body.
type ReceivedRequests = Arc<Mutex<Vec<(String, Value)>>>;

/// Starts a server that runs until the test program ends. `script` gets the number of a request, from 0, its path and its body, and returns
/// a status line and a body. For `None`, the connection stays open without a response.
fn serve(
    mut script: impl FnMut(usize, &str, &Value) -> Option<(&'static str, String)> + Send + 'static,
) -> (String, ReceivedRequests) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let requests = ReceivedRequests::default();
    let log = requests.clone();
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Some((path, body)) = read_request(&stream) else { continue };
            let n = log.lock().unwrap().len();
            let response = script(n, &path, &body);
            log.lock().unwrap().push((path, body));
            match response {
                Some((status, body)) => {
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ =
                        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
                }
                None => held.push(stream),
            }
        }
    });
    (uri, requests)
}

fn read_request(stream: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.split('?').next()?.strip_prefix(API)?.to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

/// The response of a working MLflow server.
fn valid_response(path: &str) -> (&'static str, String) {
    let body = match path {
        "experiments/get-by-name" => json!({"experiment": {"experiment_id": "7"}}),
        "runs/create" => json!({"run": {"info": {"run_id": "abc123"}}}),
        "runs/get" => json!({"run": {"info": {"lifecycle_stage": "active"}, "data": {}}}),
        _ => json!({}),
    };
    ("200 OK", body.to_string())
}

fn bodies(requests: &ReceivedRequests, path: &str) -> Vec<Value> {
    requests.lock().unwrap().iter().filter(|(p, _)| p == path).map(|(_, body)| body.clone()).collect()
}

/// The steps of the received values of `loss`.
fn steps(requests: &ReceivedRequests) -> Vec<u64> {
    let batches = bodies(requests, "runs/log-batch");
    let metrics = batches.iter().flat_map(|batch| batch["metrics"].as_array().cloned().unwrap_or_default());
    metrics.filter(|m| m["key"] == "loss").map(|m| m["step"].as_u64().unwrap()).collect()
}

/// Sends a run of `steps` to `tracker` without pauses, and returns the time that the calls took.
fn track_run(
    tracker: &mut BackgroundTracker,
    folder: &Path,
    steps: std::ops::RangeInclusive<u64>,
) -> Duration {
    let settings = [("batch".to_owned(), "8".to_owned()), ("long".to_owned(), "x".repeat(2000))];
    let start = Instant::now();
    tracker.begin(&RunInfo { id: "run", folder, step: steps.start() - 1, settings: &settings });
    for step in steps {
        tracker.scalars(step, &[("loss", 1.0 / step as f64), ("lr", f64::NAN)]);
    }
    tracker.image(1, "samples", &RgbImage::from_pixel(4, 4, Rgb([9, 8, 7])));
    start.elapsed()
}

/// Waits up to 60 s until `condition` holds, which is long enough for a busy machine.
fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_that_fails_at_times_receives_everything() {
    let dir = TempDir::new().unwrap();
    let (uri, requests) = serve(|n, path, _| {
        Some(match n % 3 {
            0 => ("503 Service Unavailable", "{}".into()),
            1 => ("200 OK", "<html>not the JSON that was requested".into()),
            _ => valid_response(path),
        })
    });
    let mut tracker = mlflow(&uri, policy()).unwrap();
    track_run(&mut tracker, dir.path(), 1..=2500);
    wait_until(|| steps(&requests).contains(&2500));
    tracker.end(Status::Finished);
    let mut arrived = steps(&requests);
    arrived.dedup();
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!(arrived, (1..=2500).collect::<Vec<_>>());
    assert_eq!(tracker.dropped(), 0);
    for batch in bodies(&requests, "runs/log-batch") {
        assert!(batch["metrics"].as_array().is_none_or(|all| all.len() <= 1000));
        for param in batch["params"].as_array().into_iter().flatten() {
            assert!(param["value"].as_str().unwrap().len() <= 500);
        }
    }
    let nan = &bodies(&requests, "runs/log-batch").into_iter().find(|b| b["metrics"].is_array()).unwrap()["metrics"]
        [1];
    assert_eq!((&nan["key"], &nan["value"]), (&json!("lr"), &json!("NaN")));
}

/// No server delays training, or delays its end by more than the policy allows.
#[test]
fn no_server_stops_or_slows_a_run() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let (silent, _) = serve(|_, _, _| None);
    let (garbage, _) = serve(|n, _, _| Some(("200 OK", "\u{1b}[31m\n{".repeat(n * 1000))));
    let (broken, _) = serve(|_, _, _| Some(("500 Internal Server Error", String::new())));
    let (unauthorized, unauthorized_requests) =
        serve(|_, _, _| Some(("401 Unauthorized", "{\"message\":\"who are you\"}".into())));
    let (redirecting, redirected_requests) =
        serve(|_, _, _| Some(("302 Found\r\nLocation: http://127.0.0.1:9/", String::new())));
    let (huge, _) = serve(|_, _, _| Some(("200 OK", format!("{{\"x\":\"{}\"}}", "y".repeat(6 << 20)))));
    let hostile_body =
        json!({"experiment": {"experiment_id": "../../x"}, "run": {"info": {"run_id": "a/../b"}}})
            .to_string();
    let (hostile, _) = serve(move |_, _, _| Some(("200 OK", hostile_body.clone())));
    for uri in [closed, silent, garbage, broken, unauthorized, redirecting, huge, hostile] {
        let dir = TempDir::new().unwrap();
        let mut tracker = mlflow(&uri, policy()).unwrap();
        let elapsed = track_run(&mut tracker, dir.path(), 1..=10_000);
        assert!(elapsed < Duration::from_secs(5), "{uri}: {elapsed:?}");
        assert!(tracker.dropped() > 10_000 - 5000, "dropped events are counted");
        let start = Instant::now();
        tracker.end(Status::Failed);
        assert!(start.elapsed() < policy().end + Duration::from_secs(5), "{uri}");
        assert!(!dir.path().join("mlflow.json").exists());
    }
    // 401 and redirects are not retried.
    assert!(
        unauthorized_requests.lock().unwrap().len() == 1 && redirected_requests.lock().unwrap().len() == 1
    );
}

#[test]
fn a_resumed_run_continues_its_mlflow_run_or_replaces_a_deleted_one() {
    let dir = TempDir::new().unwrap();
    let (uri, requests) = serve(|_, path, _| Some(valid_response(path)));
    for (steps, status) in [(1..=3, Status::Stopped), (3..=6, Status::Finished)] {
        let mut tracker = mlflow(&uri, policy()).unwrap();
        track_run(&mut tracker, dir.path(), steps);
        tracker.end(status);
    }
    assert_eq!(bodies(&requests, "runs/create").len(), 1);
    let states: Vec<Value> =
        bodies(&requests, "runs/update").iter().map(|update| update["status"].clone()).collect();
    assert_eq!(states, ["KILLED", "RUNNING", "FINISHED"]);
    assert_eq!(steps(&requests), [1, 2, 3, 3, 4, 5, 6]);

    let (uri, requests) = serve(|_, path, _| {
        let missing = "{\"error_code\":\"RESOURCE_DOES_NOT_EXIST\"}";
        Some(if path == "runs/get" { ("404 Not Found", missing.into()) } else { valid_response(path) })
    });
    let stored = json!({"uri": uri, "run_id": "deleted"}).to_string();
    std::fs::write(dir.path().join("mlflow.json"), stored).unwrap();
    let mut tracker = mlflow(&uri, policy()).unwrap();
    track_run(&mut tracker, dir.path(), 1..=2);
    tracker.end(Status::Finished);
    assert_eq!(bodies(&requests, "runs/create").len(), 1);
    assert!(std::fs::read_to_string(dir.path().join("mlflow.json")).unwrap().contains("abc123"));
}

fn python(script: &str, args: &[&Path]) -> Value {
    let python = std::env::var_os("TINY_CATS_PYTHON").expect("TINY_CATS_PYTHON is a Python with tensorboard");
    let output = Command::new(python).arg("-c").arg(script).args(args).output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

#[test]
#[ignore = "needs the Python package tensorboard: TINY_CATS_PYTHON=PYTHON cargo test --test suite -- --ignored tensorboard"]
fn tensorboard_reads_the_events_without_discarded_steps() {
    const SCRIPT: &str = r#"
import io, json, sys
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as Plugin
from tensorboard.util import tensor_util
e = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "images": 0, "tensors": 0}); e.Reload()
p = Plugin(sys.argv[1], size_guidance={"tensors": 0}); p.Reload()
image = Image.open(io.BytesIO(e.Images("samples")[-1].encoded_image_string))
print(json.dumps({
    "scalars": [[s.step, s.value] for s in e.Scalars("loss")],
    "plugin": [[t.step, float(tensor_util.make_ndarray(t.tensor_proto))] for t in p.Tensors("loss")],
    "images": [i.step for i in e.Images("samples")],
    "pixel": image.getpixel((3, 3)), "size": image.size,
    "settings": tensor_util.make_ndarray(p.Tensors("settings/text_summary")[-1].tensor_proto).item().decode(),
}))
"#;
    let dir = TempDir::new().unwrap();
    // Killed at step 20 and resumed from the state of step 10, with other values.
    for (steps, factor) in [(1..=20u64, 1.0), (11..=30, 2.0)] {
        let mut tracker = tensorboard(None);
        let settings = [("optimizer.lr".to_owned(), "0.001".to_owned())];
        tracker.begin(&RunInfo {
            id: "run",
            folder: dir.path(),
            step: steps.start() - 1,
            settings: &settings,
        });
        let shade = 100 + *steps.start() as u8;
        for step in steps {
            tracker.scalars(step, &[("loss", factor / step as f64)]);
            if step % 10 == 5 {
                tracker.image(step, "samples", &RgbImage::from_pixel(5, 4, Rgb([shade, 20, 30])));
            }
        }
        tracker.end(Status::Finished);
        assert_eq!(tracker.dropped(), 0);
    }
    let read = python(SCRIPT, &[&dir.path().join("tensorboard")]);
    let expected: Vec<(u64, f64)> = (1..=30)
        .map(|step| (step, f64::from((if step <= 10 { 1.0 } else { 2.0 } / step as f64) as f32)))
        .collect();
    assert_eq!(read["scalars"], json!(expected));
    assert_eq!(read["plugin"], json!(expected));
    assert_eq!(read["images"], json!([5, 15, 25]));
    assert_eq!((&read["pixel"], &read["size"]), (&json!([111, 20, 30]), &json!([5, 4])));
    assert!(read["settings"].as_str().unwrap().contains("| optimizer.lr | 0.001 |"));
}

/// An MLflow server that stops when this value is dropped.
struct Mlflow(Child);

impl Drop for Mlflow {
    fn drop(&mut self) {
        // SIGTERM also stops the server's workers.
        #[cfg(unix)]
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        #[cfg(not(unix))]
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs MLflow: TINY_CATS_MLFLOW=path/of/mlflow cargo test --test suite -- --ignored mlflow"]
fn mlflow_stores_all_values() {
    let program =
        PathBuf::from(std::env::var_os("TINY_CATS_MLFLOW").expect("TINY_CATS_MLFLOW is the program mlflow"));
    let dir = TempDir::new().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Command::new(&program)
        .args(["server", "--workers", "1", "--host", "127.0.0.1", "--port", &port.to_string()])
        .args(["--backend-store-uri", &format!("sqlite:///{}/mlflow.db", dir.path().display())])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mlflow starts");
    let _server = Mlflow(server);
    let uri = format!("http://127.0.0.1:{port}");
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30))).build().into();
    let get = |path: &str| -> Value {
        let text = agent.get(format!("{uri}{path}")).call().unwrap().body_mut().read_to_string().unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let start = Instant::now();
    while agent.get(format!("{uri}/health")).call().is_err() {
        assert!(start.elapsed() < Duration::from_secs(180), "the server does not start within 180 s");
        thread::sleep(Duration::from_millis(200));
    }
    let folder = dir.path().join("20261123-224501-dit-7f3a");
    std::fs::create_dir(&folder).unwrap();
    let policy = DeliveryPolicy { end: Duration::from_secs(120), ..DeliveryPolicy::default() };
    let settings = |steps: u64| -> Vec<(String, String)> {
        let options = (0..250).map(|i| (format!("task.option {i}"), i.to_string()));
        let named = [("steps", steps.to_string()), ("long", "ü".repeat(700)), ("odd:=%name", "1".into())];
        options.chain(named.map(|(k, v)| (k.to_owned(), v))).collect()
    };
    for (steps, status) in [(1..=1200u64, Status::Stopped), (1201..=1500, Status::Failed)] {
        let mut tracker = mlflow(&uri, policy.clone()).unwrap();
        let (id, settings) = ("20261123-224501-dit-7f3a", settings(*steps.end()));
        tracker.begin(&RunInfo { id, folder: &folder, step: steps.start() - 1, settings: &settings });
        for step in steps {
            tracker.scalars(step, &[("loss", 1.0 / step as f64), ("gradient_norm", f64::INFINITY)]);
        }
        tracker.end(status);
        assert_eq!(tracker.dropped(), 0);
    }
    let stored: Value = serde_json::from_slice(&std::fs::read(folder.join("mlflow.json")).unwrap()).unwrap();
    let id = stored["run_id"].as_str().unwrap();
    let run = get(&format!("{API}runs/get?run_id={id}"))["run"].take();
    assert_eq!(run["info"]["status"], "FAILED");
    assert_eq!(run["info"]["run_name"], "20261123-224501-dit-7f3a");
    let pairs = |list: &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut pairs: Vec<_> =
            list.as_array().unwrap().iter().map(|pair| (text(&pair["key"]), text(&pair["value"]))).collect();
        pairs.sort();
        pairs
    };
    let mut expected = settings(1200);
    expected.iter_mut().for_each(|(name, value)| {
        *name = name.replace([':', '=', '%'], "_");
        *value = value.chars().take(500).collect();
    });
    expected.sort();
    assert_eq!(pairs(&run["data"]["params"]), expected);
    // MLflow parameters cannot change, so a changed setting is stored as a tag.
    assert!(pairs(&run["data"]["tags"]).contains(&("steps".into(), "1500".into())));
    for (name, value) in [("loss", None), ("gradient_norm", Some(1e300))] {
        let history =
            get(&format!("{API}metrics/get-history?run_id={id}&metric_key={name}&max_results=5000"));
        let mut points: Vec<(u64, f64)> = history["metrics"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| (m["step"].as_u64().unwrap(), m["value"].as_f64().unwrap_or(f64::INFINITY)))
            .collect();
        points.sort_by_key(|point| point.0);
        assert_eq!(points.len(), 1500, "{name}");
        for (i, (step, found)) in (1u32..).zip(points) {
            // The server and this test both parse decimal numbers, which may differ in the last bit.
            let expected = value.unwrap_or(1.0 / f64::from(i));
            assert_eq!(step, u64::from(i));
            assert!(
                (found / expected - 1.0).abs() < 1e-15 || (value.is_some() && found > expected),
                "{name} {i}: {found}"
            );
        }
    }
}
