//! A client of an MLflow server, by its REST API 2.0 (MLflow's documentation, "REST API").
//!
//! The client sends `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, to the server and nowhere else.
//! They appear in no message and no file. A resumed run continues the same MLflow run. MLflow cannot remove metrics, so steps that are
//! repeated are there twice, with their times.

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

use super::background::{BackgroundTracker, Body, DeliveryPolicy, Failure, Message, Sink, plain, seconds};
use crate::train::folder::Status;

/// The experiment that contains the runs.
pub const EXPERIMENT: &str = "tiny-cats";

/// The file in a run's folder that holds the id of its MLflow run.
const FILE: &str = "mlflow.json";
/// Maximum bytes of a response, which protects from a faulty server.
const MAX_RESPONSE_BYTES: u64 = 4 << 20;
/// MLflow's limits: of one request, of a parameter, of a name.
const MAX_METRICS: usize = 1000;
const MAX_PARAMS: usize = 100;
const MAX_VALUE_CHARS: usize = 500;
const MAX_NAME_CHARS: usize = 250;

/// Makes a tracker that records a run on the MLflow server at `uri`.
///
/// # Errors
/// Returns one line if `uri` is not the address of a server or contains credentials, or if the token is not printable ASCII.
pub fn mlflow(uri: &str, policy: DeliveryPolicy) -> Result<BackgroundTracker, String> {
    let expected = "--mlflow: expected the address of a server, as http://127.0.0.1:5000";
    let rest = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://")).ok_or(expected)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        let variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD";
        return Err(format!("--mlflow: credentials are not taken from the address: set {variables}"));
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

/// One run on one server.
struct Client {
    agent: Agent,
    uri: String,
    authorization: Option<String>,
    file: PathBuf,
    name: String,
    settings: Vec<(String, String)>,
    /// The server's id of the run, once known.
    id: Option<String>,
    /// True if the run that the folder names no longer exists.
    is_deleted: bool,
    /// The experiment's id.
    experiment: Option<String>,
    /// Requests that come before all others.
    setup_requests: VecDeque<(&'static str, Value)>,
}

/// Error codes in the server's responses.
const NOT_FOUND_CODE: &str = "RESOURCE_DOES_NOT_EXIST";
const EXISTS_CODE: &str = "RESOURCE_ALREADY_EXISTS";

/// The error of a request.
enum RequestError {
    Failure(Failure),
    /// The server's refusal, with its code and its reason.
    Answer(String, String),
}

impl From<RequestError> for Failure {
    fn from(refusal: RequestError) -> Self {
        match refusal {
            RequestError::Failure(failure) => failure,
            RequestError::Answer(_, reason) => Self::Lasting(reason),
        }
    }
}

impl Client {
    /// Posts `body` to `path`, or gets `path` if there is none.
    fn ask(&self, path: &str, body: Option<&Value>) -> Result<Value, RequestError> {
        let passing = |reason: String| RequestError::Failure(Failure::Passing(reason));
        let url = format!("{}/api/2.0/mlflow/{path}", self.uri);
        let answer = match (body, &self.authorization) {
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
        let mut answer = answer.map_err(|e| passing(plain(&e.to_string())))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        let body = answer.body_mut().as_reader();
        body.take(MAX_RESPONSE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| passing(plain(&e.to_string())))?;
        if bytes.len() as u64 > MAX_RESPONSE_BYTES {
            return Err(passing(format!("{path}: it answers with more than {MAX_RESPONSE_BYTES} bytes")));
        }
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        if status.is_success() {
            return json.ok_or_else(|| passing(format!("{path}: it answers with what is no JSON")));
        }
        let said = |field: &str| json.as_ref().and_then(|json| json[field].as_str()).unwrap_or_default();
        let reason = format!("{path}: it answers {status} {}", plain(said("message")));
        let reason = reason.trim_end().to_owned();
        let lasting = status.is_client_error() || status.is_redirection();
        if lasting && status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::REQUEST_TIMEOUT {
            return Err(RequestError::Answer(said("error_code").to_owned(), reason));
        }
        Err(passing(reason))
    }

    /// Resumes the run that the folder names, or creates one, records the settings, and returns the run's id.
    ///
    /// Completed requests are not repeated, so this succeeds in the end on an unreliable server.
    fn begin(&mut self) -> Result<String, Failure> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => match stored(&self.file, &self.uri).filter(|_| !self.is_deleted) {
                Some(id) => match self.resume_run(&id) {
                    Err(RequestError::Answer(code, _)) if code == NOT_FOUND_CODE => {
                        self.is_deleted = true;
                        self.create()?
                    }
                    other => other.map(|()| id)?,
                },
                None => self.create()?,
            },
        };
        self.id = Some(id.clone());
        while let Some((path, body)) = self.setup_requests.front() {
            match self.ask(path, Some(body)) {
                Ok(_) => {}
                Err(RequestError::Failure(failure)) => return Err(failure),
                Err(RequestError::Answer(_, reason)) => tracing::warn!("MLflow at {}: {reason}", self.uri),
            }
            self.setup_requests.pop_front();
        }
        Ok(id)
    }

    /// Creates a run.
    fn create(&mut self) -> Result<String, RequestError> {
        let experiment = match &self.experiment {
            Some(experiment) => experiment.clone(),
            None => {
                let experiment = self.experiment()?;
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
        let answer = self.ask("runs/create", Some(&run))?;
        let id = read_id(&answer["run"]["info"]["run_id"], "runs/create")?;
        let stored = StoredRun { uri: self.uri.clone(), run_id: id.clone() };
        let text = serde_json::to_vec_pretty(&stored).unwrap_or_default();
        if let Err(e) = write_atomically(&self.file, |w| w.write_all(&text)) {
            tracing::warn!("{}: {e}: resumed, this run will be another one on MLflow", self.file.display());
        }
        self.settings(&id, &BTreeMap::new());
        Ok(id)
    }

    /// Checks that the run exists, and queues its new status.
    fn resume_run(&mut self, id: &str) -> Result<(), RequestError> {
        let run = self.ask(&format!("runs/get?run_id={id}"), None)?["run"].take();
        if run["info"]["lifecycle_stage"] == "deleted" {
            return Err(RequestError::Answer(NOT_FOUND_CODE.into(), "the run was deleted".into()));
        }
        self.setup_requests.push_back(("runs/update", json!({"run_id": id, "status": "RUNNING"})));
        let params = run["data"]["params"].as_array().into_iter().flatten();
        let known =
            params.filter_map(|p| Some((p["key"].as_str()?.to_owned(), p["value"].as_str()?.to_owned())));
        self.settings(id, &known.collect());
        Ok(())
    }

    /// Queues the settings as parameters.
    ///
    /// MLflow cannot change a parameter that is `known`. A changed setting, such as the length of an extended run, becomes a tag.
    fn settings(&mut self, id: &str, known: &BTreeMap<String, String>) {
        let settings: BTreeMap<String, String> =
            self.settings.iter().map(|(k, v)| (name(k), truncate(v, MAX_VALUE_CHARS))).collect();
        let pair = |(k, v): (&String, &String)| json!({"key": k, "value": v});
        let new: Vec<Value> = settings.iter().filter(|(k, _)| !known.contains_key(*k)).map(pair).collect();
        let changed: Vec<Value> =
            settings.iter().filter(|(k, v)| known.get(*k).is_some_and(|old| old != *v)).map(pair).collect();
        for (kind, all) in [("params", new), ("tags", changed)] {
            let batches = all.chunks(MAX_PARAMS).map(|some| json!({"run_id": id, kind: some}));
            self.setup_requests.extend(batches.map(|batch| ("runs/log-batch", batch)));
        }
    }

    /// Returns the experiment's id and creates the experiment if there is none.
    fn experiment(&self) -> Result<String, RequestError> {
        let get = || -> Result<String, RequestError> {
            let path = format!("experiments/get-by-name?experiment_name={EXPERIMENT}");
            let answer = self.ask(&path, None)?;
            read_id(&answer["experiment"]["experiment_id"], "experiments/get-by-name")
        };
        match get() {
            Err(RequestError::Answer(code, _)) if code == NOT_FOUND_CODE => {}
            other => return other,
        }
        match self.ask("experiments/create", Some(&json!({"name": EXPERIMENT}))) {
            Ok(answer) => Ok(read_id(&answer["experiment_id"], "experiments/create")?),
            // Another client created it meanwhile.
            Err(RequestError::Answer(code, _)) if code == EXISTS_CODE => get(),
            Err(other) => Err(other),
        }
    }
}

impl Sink for Client {
    fn deliver(&mut self, queue: &mut VecDeque<Message>) -> Result<(), Failure> {
        let id = self.begin()?;
        while !queue.is_empty() {
            let (mut metrics, mut count) = (Vec::new(), 0);
            for message in queue.iter() {
                // MLflow stores images as artifacts, elsewhere.
                let values = if let Body::Scalars(values) = &message.body { &values[..] } else { &[] };
                if count > 0 && metrics.len() + values.len() > MAX_METRICS {
                    break;
                }
                metrics.extend(values.iter().take(MAX_METRICS).map(|value| metric(message, value)));
                count += 1;
            }
            if !metrics.is_empty() {
                let answer = self.ask("runs/log-batch", Some(&json!({"run_id": id, "metrics": metrics})));
                answer.map_err(|refusal| match refusal {
                    RequestError::Failure(failure) => failure,
                    RequestError::Answer(_, reason) => Failure::Refused(count, reason),
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
        let end = json!({"run_id": id, "status": status, "end_time": milliseconds(SystemTime::now())});
        self.ask("runs/update", Some(&end))?;
        Ok(())
    }
}

/// Formats a metric for MLflow. JSON has no number for a value that is not finite, but the JSON of protocol buffers has names.
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

/// Reads the id of the run on the server at `uri` from the file.
fn stored(path: &Path, uri: &str) -> Option<String> {
    let small = fs::metadata(path).is_ok_and(|file| file.len() <= 1 << 16);
    let text = small.then(|| fs::read(path).ok()).flatten()?;
    let stored: StoredRun = serde_json::from_slice(&text).ok()?;
    (stored.uri == uri && is_id(&stored.run_id)).then_some(stored.run_id)
}

/// Reads the id in a server's response.
fn read_id(answer: &Value, path: &str) -> Result<String, RequestError> {
    let id = answer.as_str().filter(|id| is_id(id));
    let failure = || Failure::Passing(format!("{path}: it answers without an id"));
    id.map(str::to_owned).ok_or_else(|| RequestError::Failure(failure()))
}

/// True if an id is safe in a URL.
fn is_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Replaces the characters of `name` that MLflow does not accept.
fn name(name: &str) -> String {
    let taken = |c: char| c.is_ascii_alphanumeric() || "_-. /".contains(c);
    truncate(&name.chars().map(|c| if taken(c) { c } else { '_' }).collect::<String>(), MAX_NAME_CHARS)
}

fn truncate(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// Encodes `bytes` as base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let letter = char::from(LETTERS[(bits >> (18 - 6 * i) & 63) as usize]);
            text.push(if i <= three.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_encoded_as_the_standard_has_it_and_never_taken_from_an_address() {
        // RFC 4648, section 10.
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        let refused = |uri| mlflow(uri, DeliveryPolicy::default()).err().unwrap();
        let said = refused("http://me:secret@127.0.0.1:5000");
        assert!(said.contains("MLFLOW_TRACKING_PASSWORD") && !said.contains("secret"), "{said}");
        for uri in ["", "mlruns", "http://", "ftp://a", "http://a b", "http://a?b=c", "databricks"] {
            assert!(refused(uri).starts_with("--mlflow: expected the address"), "{uri}");
        }
    }

    #[test]
    fn names_and_values_are_cut_to_what_mlflow_takes() {
        assert_eq!(name("a.b/c d-e_f:g\u{e4}%"), "a.b/c d-e_f_g__");
        assert_eq!(truncate(&"\u{e4}".repeat(600), MAX_VALUE_CHARS).chars().count(), 500);
    }
}
