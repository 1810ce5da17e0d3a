//! A client of the MLflow REST API 2.0 (MLflow documentation, "REST API").
//!
//! The client sends `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, to the server and nowhere else.
//! They appear in no message and no file. A resumed run continues the same MLflow run. MLflow cannot remove metrics, so repeated steps
//! have two entries with different times.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tiny_cats_export::write_atomically;
use ureq::{Agent, http::StatusCode};

use super::background::{
    BackgroundTracker, DeliveryPolicy, Failure, Message, MessageBody, Sink, seconds, to_plain_line,
};
use crate::train::folder::Status;

/// The experiment that contains the runs.
pub const EXPERIMENT: &str = "tiny-cats";

/// The file in a run's folder with the ID of its MLflow run.
const FILE: &str = "mlflow.json";
/// Maximum bytes of a response, as a protection against a faulty server.
const MAX_RESPONSE_BYTES: u64 = 4 << 20;
/// The limits of MLflow: of a request, of the value of a parameter, and of a name.
const MAX_METRICS: usize = 1000;
const MAX_PARAMS: usize = 100;
const MAX_VALUE_CHARS: usize = 500;
const MAX_NAME_CHARS: usize = 250;

/// Creates a tracker that records a run on the MLflow server at `uri`.
///
/// # Errors
/// Returns one line if `uri` is not the address of a server or contains credentials, or if the token is not printable ASCII.
pub fn mlflow(uri: &str, policy: DeliveryPolicy) -> Result<BackgroundTracker, String> {
    let expected = "expected the address of a server, such as http://127.0.0.1:5000";
    let rest = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://")).ok_or(expected)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        let variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD";
        return Err(format!("expected an address without credentials; set {variables}"));
    }
    if authority.is_empty() || uri.contains(['?', '#']) || uri.parse::<ureq::http::Uri>().is_err() {
        return Err(expected.into());
    }
    let uri = uri.trim_end_matches('/').to_owned();
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let authorization = match (
        variable("MLFLOW_TRACKING_TOKEN"),
        variable("MLFLOW_TRACKING_USERNAME"),
        variable("MLFLOW_TRACKING_PASSWORD"),
    ) {
        (_, Some(user), Some(password)) => {
            Some(format!("Basic {}", base64(format!("{user}:{password}").as_bytes())))
        }
        (Some(token), ..) => Some(format!("Bearer {token}")),
        _ => None,
    };
    if authorization.as_ref().is_some_and(|a| !a.bytes().all(|b| (b' '..=b'~').contains(&b))) {
        return Err("MLFLOW_TRACKING_TOKEN: expected printable ASCII".into());
    }
    let agent: Agent = Agent::config_builder()
        // A redirect must not send the credentials to another server.
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent(concat!("tiny-cats/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(policy.request))
        .build()
        .into();
    Ok(BackgroundTracker::new(format!("MLflow at {uri}"), policy, move |run| {
        Box::new(Client {
            agent: agent.clone(),
            uri: uri.clone(),
            authorization: authorization.clone(),
            file: run.folder.join(FILE),
            name: run.id.to_owned(),
            settings: run.settings.to_owned(),
            id: None,
            is_deleted: false,
            experiment: None,
            setup_requests: VecDeque::new(),
        })
    }))
}

/// The content of `mlflow.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StoredRun {
    uri: String,
    run_id: String,
}

/// A run on a server.
struct Client {
    agent: Agent,
    uri: String,
    authorization: Option<String>,
    file: PathBuf,
    name: String,
    settings: Vec<(String, String)>,
    /// The ID of the run on the server, if it is known.
    id: Option<String>,
    /// True if the run with the stored ID no longer exists.
    is_deleted: bool,
    /// The ID of the experiment, if it is known.
    experiment: Option<String>,
    /// Requests to send before the messages.
    setup_requests: VecDeque<(&'static str, Value)>,
}

/// Error codes in responses.
const NOT_FOUND_CODE: &str = "RESOURCE_DOES_NOT_EXIST";
const EXISTS_CODE: &str = "RESOURCE_ALREADY_EXISTS";

/// The error of a request.
enum RequestError {
    Failure(Failure),
    /// The server rejected the request, with this error code and reason.
    Rejected(String, String),
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Failure(failure) => failure,
            RequestError::Rejected(_, reason) => Self::Permanent(reason),
        }
    }
}

impl Client {
    /// Sends a POST request with `body`, or a GET request without it.
    fn send_request(&self, path: &str, body: Option<&Value>) -> Result<Value, RequestError> {
        let transient = |reason: String| RequestError::Failure(Failure::Transient(reason));
        let url = format!("{}/api/2.0/mlflow/{path}", self.uri);
        let response = match (body, &self.authorization) {
            (Some(body), Some(a)) => self
                .agent
                .post(&url)
                .header("Authorization", a)
                .content_type("application/json")
                .send(body.to_string()),
            (Some(body), None) => {
                self.agent.post(&url).content_type("application/json").send(body.to_string())
            }
            (None, Some(a)) => self.agent.get(&url).header("Authorization", a).call(),
            (None, None) => self.agent.get(&url).call(),
        };
        let mut response = response.map_err(|e| transient(to_plain_line(&e.to_string())))?;
        let status = response.status();
        let mut bytes = Vec::new();
        let body = response.body_mut().as_reader();
        body.take(MAX_RESPONSE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| transient(to_plain_line(&e.to_string())))?;
        if bytes.len() as u64 > MAX_RESPONSE_BYTES {
            return Err(transient(format!(
                "{path}: expected a response of at most {MAX_RESPONSE_BYTES} bytes"
            )));
        }
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        if status.is_success() {
            return json.ok_or_else(|| transient(format!("{path}: expected JSON in the response")));
        }
        let field_text =
            |field: &str| json.as_ref().and_then(|json| json[field].as_str()).unwrap_or_default();
        let reason = format!("{path}: status {status} {}", to_plain_line(field_text("message")));
        let reason = reason.trim_end().to_owned();
        let is_permanent = status.is_client_error() || status.is_redirection();
        if is_permanent && status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::REQUEST_TIMEOUT {
            return Err(RequestError::Rejected(field_text("error_code").to_owned(), reason));
        }
        Err(transient(reason))
    }

    /// Resumes the run with the stored ID, or creates one, records the settings, and returns the ID.
    ///
    /// Successful requests are not repeated, so that retries eventually succeed on an unreliable server.
    fn connect(&mut self) -> Result<String, Failure> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => match read_stored_id(&self.file, &self.uri).filter(|_| !self.is_deleted) {
                Some(id) => match self.resume_run(&id) {
                    Err(RequestError::Rejected(code, _)) if code == NOT_FOUND_CODE => {
                        self.is_deleted = true;
                        self.create_run()?
                    }
                    other => other.map(|()| id)?,
                },
                None => self.create_run()?,
            },
        };
        self.id = Some(id.clone());
        while let Some((path, body)) = self.setup_requests.front() {
            match self.send_request(path, Some(body)) {
                Ok(_) => {}
                Err(RequestError::Failure(failure)) => return Err(failure),
                Err(RequestError::Rejected(_, reason)) => tracing::warn!("MLflow at {}: {reason}", self.uri),
            }
            self.setup_requests.pop_front();
        }
        Ok(id)
    }

    /// Creates a run.
    fn create_run(&mut self) -> Result<String, RequestError> {
        let experiment = match &self.experiment {
            Some(experiment) => experiment.clone(),
            None => {
                let experiment = self.find_or_create_experiment()?;
                self.experiment.insert(experiment).clone()
            }
        };
        let tags = [
            ("mlflow.runName", self.name.as_str()),
            ("mlflow.source.name", "tiny-cats"),
            ("mlflow.source.type", "LOCAL"),
            ("tiny-cats.version", env!("CARGO_PKG_VERSION")),
        ];
        let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let start = milliseconds(SystemTime::now());
        let run =
            json!({"experiment_id": experiment, "run_name": self.name, "start_time": start, "tags": tags});
        let response = self.send_request("runs/create", Some(&run))?;
        let id = read_id(&response["run"]["info"]["run_id"], "runs/create")?;
        let stored_run = StoredRun { uri: self.uri.clone(), run_id: id.clone() };
        let text = serde_json::to_vec_pretty(&stored_run).unwrap_or_default();
        if let Err(e) = write_atomically(&self.file, |w| w.write_all(&text)) {
            tracing::warn!(
                "{}: {e}; if it is resumed, this run will be a new one on MLflow",
                self.file.display()
            );
        }
        self.queue_settings(&id, &BTreeMap::new());
        Ok(id)
    }

    /// Checks that the run exists, and queues its new status and the settings.
    fn resume_run(&mut self, id: &str) -> Result<(), RequestError> {
        let run = self.send_request(&format!("runs/get?run_id={id}"), None)?["run"].take();
        if run["info"]["lifecycle_stage"] == "deleted" {
            return Err(RequestError::Rejected(NOT_FOUND_CODE.into(), "the run was deleted".into()));
        }
        self.setup_requests.push_back(("runs/update", json!({"run_id": id, "status": "RUNNING"})));
        let params = run["data"]["params"].as_array().into_iter().flatten();
        let known =
            params.filter_map(|p| Some((p["key"].as_str()?.to_owned(), p["value"].as_str()?.to_owned())));
        self.queue_settings(id, &known.collect());
        Ok(())
    }

    /// Queues the settings as parameters.
    ///
    /// MLflow cannot change a parameter. A setting that differs from its `known` value (an extended run, for example) becomes a tag.
    fn queue_settings(&mut self, id: &str, known: &BTreeMap<String, String>) {
        let settings: BTreeMap<String, String> =
            self.settings.iter().map(|(k, v)| (name(k), truncate(v, MAX_VALUE_CHARS))).collect();
        let pair = |(k, v): (&String, &String)| json!({"key": k, "value": v});
        let new: Vec<Value> = settings.iter().filter(|(k, _)| !known.contains_key(*k)).map(pair).collect();
        let changed: Vec<Value> =
            settings.iter().filter(|(k, v)| known.get(*k).is_some_and(|old| old != *v)).map(pair).collect();
        for (kind, pairs) in [("params", new), ("tags", changed)] {
            let batches = pairs.chunks(MAX_PARAMS).map(|chunk| json!({"run_id": id, kind: chunk}));
            self.setup_requests.extend(batches.map(|batch| ("runs/log-batch", batch)));
        }
    }

    /// Finds the experiment, or creates it if it does not exist, and returns its ID.
    fn find_or_create_experiment(&self) -> Result<String, RequestError> {
        let get_id = || -> Result<String, RequestError> {
            let path = format!("experiments/get-by-name?experiment_name={EXPERIMENT}");
            let response = self.send_request(&path, None)?;
            read_id(&response["experiment"]["experiment_id"], "experiments/get-by-name")
        };
        match get_id() {
            Err(RequestError::Rejected(code, _)) if code == NOT_FOUND_CODE => {}
            other => return other,
        }
        match self.send_request("experiments/create", Some(&json!({"name": EXPERIMENT}))) {
            Ok(response) => Ok(read_id(&response["experiment_id"], "experiments/create")?),
            // Another client created it meanwhile.
            Err(RequestError::Rejected(code, _)) if code == EXISTS_CODE => get_id(),
            Err(other) => Err(other),
        }
    }
}

impl Sink for Client {
    fn deliver(&mut self, queue: &mut VecDeque<Message>) -> Result<(), Failure> {
        let id = self.connect()?;
        while !queue.is_empty() {
            let (mut metrics, mut count) = (Vec::new(), 0);
            for message in queue.iter() {
                // Images are skipped, since MLflow stores them separately, as artifacts.
                let values = if let MessageBody::Scalars(values) = &message.body { &values[..] } else { &[] };
                if count > 0 && metrics.len() + values.len() > MAX_METRICS {
                    break;
                }
                metrics.extend(values.iter().take(MAX_METRICS).map(|value| metric(message, value)));
                count += 1;
            }
            if !metrics.is_empty() {
                let response =
                    self.send_request("runs/log-batch", Some(&json!({"run_id": id, "metrics": metrics})));
                response.map_err(|error| match error {
                    RequestError::Failure(failure) => failure,
                    RequestError::Rejected(_, reason) => Failure::Rejected(count, reason),
                })?;
            }
            queue.drain(..count);
        }
        Ok(())
    }

    fn close(&mut self, status: Status) -> Result<(), Failure> {
        let Some(id) = &self.id else { return Ok(()) };
        let status = match status {
            Status::Running => "RUNNING",
            Status::Stopped => "KILLED",
            Status::Failed => "FAILED",
            Status::Finished => "FINISHED",
        };
        let update = json!({"run_id": id, "status": status, "end_time": milliseconds(SystemTime::now())});
        self.send_request("runs/update", Some(&update))?;
        Ok(())
    }
}

/// Formats a metric for MLflow. Values that are not finite have names, as in the JSON mapping of protocol buffers.
fn metric(message: &Message, (key, value): &(String, f64)) -> Value {
    let number = match value {
        v if v.is_nan() => json!("NaN"),
        v if v.is_infinite() => json!(if *v > 0.0 { "Infinity" } else { "-Infinity" }),
        v => json!(v),
    };
    json!({"key": name(key), "value": number, "timestamp": milliseconds(message.time), "step": message.step})
}

fn milliseconds(time: SystemTime) -> u64 {
    (seconds(time) * 1e3) as u64
}

/// Reads the ID of the run on the server at `uri` from the file.
fn read_stored_id(path: &Path, uri: &str) -> Option<String> {
    let is_small = fs::metadata(path).is_ok_and(|file| file.len() <= 1 << 16);
    let text = is_small.then(|| fs::read(path).ok()).flatten()?;
    let run: StoredRun = serde_json::from_slice(&text).ok()?;
    (run.uri == uri && is_id(&run.run_id)).then_some(run.run_id)
}

/// Reads the ID in a response.
fn read_id(response: &Value, path: &str) -> Result<String, RequestError> {
    let id = response.as_str().filter(|id| is_id(id));
    let failure = || Failure::Transient(format!("{path}: expected an ID in the response"));
    id.map(str::to_owned).ok_or_else(|| RequestError::Failure(failure()))
}

/// True if an ID is safe in a URL.
fn is_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Replaces the characters of `name` that MLflow does not accept.
fn name(name: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-. /".contains(c);
    truncate(&name.chars().map(|c| if is_allowed(c) { c } else { '_' }).collect::<String>(), MAX_NAME_CHARS)
}

fn truncate(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
}

/// Encodes `bytes` as base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let symbol = char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize]);
            text.push(if i <= chunk.len() { symbol } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_base64_encoded_and_rejected_in_addresses() {
        // RFC 4648, section 10.
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        let error_of = |uri| mlflow(uri, DeliveryPolicy::default()).err().unwrap();
        let message = error_of("http://me:secret@127.0.0.1:5000");
        assert!(message.contains("MLFLOW_TRACKING_PASSWORD") && !message.contains("secret"), "{message}");
        for uri in ["", "mlruns", "http://", "ftp://a", "http://a b", "http://a?b=c", "databricks"] {
            assert!(error_of(uri).starts_with("expected the address"), "{uri}");
        }
    }

    #[test]
    fn names_and_values_are_limited_to_those_that_mlflow_accepts() {
        assert_eq!(name("a.b/c d-e_f:g\u{e4}%"), "a.b/c d-e_f_g__");
        assert_eq!(truncate(&"\u{e4}".repeat(600), MAX_VALUE_CHARS).chars().count(), 500);
    }
}
