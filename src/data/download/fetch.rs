//! Downloads of files by HTTP: they resume after an interruption, retry transient errors, and are verified by checksum.

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use md5::{Digest, Md5};
use tiny_cats_export::{hex, write_atomically};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode},
};

use super::{Archive, Error, Event, Result, RetryPolicy, check_disk_space};

const MAX_REDIRECTS: u32 = 5;

/// An attempt that fetched this many bytes made progress, and its failure counts as the first.
const MIN_PROGRESS_BYTES: u64 = 1 << 20;

/// A client that fetches files from one address.
pub(super) struct Client<'a> {
    agent: Agent,
    url: &'a str,
    retry_policy: &'a RetryPolicy,
}

/// The reason why an attempt did not complete the file.
enum Failure {
    /// A transient error; a retry must wait at least as long as the server asks for.
    Transient { reason: String, wait: Option<Duration> },
    /// A permanent error.
    Permanent(Error),
}

impl<'a> Client<'a> {
    pub(super) fn new(url: &'a str, retry_policy: &'a RetryPolicy) -> Self {
        let idle_timeout = Some(retry_policy.idle_timeout);
        let agent = Agent::config_builder()
            // Plain http is only allowed if the user gives such an address.
            .https_only(!url.starts_with("http://"))
            .max_redirects(MAX_REDIRECTS)
            .http_status_as_error(false)
            .user_agent(concat!("tiny-cats/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(idle_timeout)
            .timeout_connect(idle_timeout)
            .timeout_recv_response(idle_timeout)
            .timeout_per_read(idle_timeout)
            .build()
            .into();
        Self { agent, url: url.trim_end_matches('/'), retry_policy }
    }

    /// Fetches `archive` to `path`, unless the file exists and is intact.
    pub(super) fn fetch(
        &self,
        archive: &Archive,
        path: &Path,
        progress: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if path.is_file() && checksum(path, archive.max_bytes)? == archive.md5 {
            return Ok(());
        }
        let url = format!("{}/{}", self.url, archive.file_name());
        let mut part = PartialFile::open(path, archive.max_bytes)?;
        match self.complete(&url, &mut part, archive, progress) {
            Ok(()) => part.finish(path),
            // There is nothing to resume from.
            Err(e) if part.bytes == 0 => part.remove().and(Err(e)),
            Err(e) => Err(e),
        }
    }

    /// Retries until `part` is complete, or an error is permanent.
    fn complete(
        &self,
        url: &str,
        part: &mut PartialFile,
        archive: &Archive,
        progress: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let (mut failures, mut restarted) = (0, false);
        while part.md5() != archive.md5 {
            let before = part.bytes;
            let (reason, server_wait) = match self.attempt(url, part, archive, progress) {
                Err(Failure::Permanent(e)) => return Err(e),
                // The content is correct, even if the server sent a wrong length.
                _ if part.md5() == archive.md5 => break,
                // The file is complete but its checksum differs: perhaps its pieces are of different versions.
                Ok(()) if part.pieces > 1 && !restarted => {
                    restarted = true;
                    part.clear()?;
                    progress(Event::Retry(
                        "the pieces are of different versions of the file".into(),
                        Duration::ZERO,
                    ));
                    continue;
                }
                Ok(()) => {
                    let (found, bytes) = (part.md5(), part.bytes);
                    part.clear()?;
                    return Err(Error::Checksum { url: url.into(), expected: archive.md5, found, bytes });
                }
                Err(Failure::Transient { reason, wait }) => (reason, wait),
            };
            failures = if part.bytes >= before.saturating_add(MIN_PROGRESS_BYTES) { 1 } else { failures + 1 };
            if failures >= self.retry_policy.attempts {
                let reason = format!("{reason}; gave up after {failures} attempts");
                return Err(Error::Http { url: url.into(), reason });
            }
            let wait = server_wait.unwrap_or_else(|| self.wait(failures)).min(self.retry_policy.max_backoff);
            progress(Event::Retry(reason, wait));
            thread::sleep(wait);
        }
        Ok(())
    }

    /// The wait after this many failures in a row. It doubles each time and is randomly reduced by up to half. So many clients that lost
    /// their connection at the same moment do not retry at the same moment.
    fn wait(&self, failures: u32) -> Duration {
        let doubled = self.retry_policy.initial_backoff.saturating_mul(1 << (failures - 1).min(16));
        let random = RandomState::new().hash_one(failures) as f64 / u64::MAX as f64;
        doubled.mul_f64(1.0 - random / 2.0)
    }

    /// Requests the missing bytes, and appends the response.
    fn attempt(
        &self,
        url: &str,
        part: &mut PartialFile,
        archive: &Archive,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(), Failure> {
        let rejected = |reason| Failure::Permanent(Error::Http { url: url.into(), reason });
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if part.bytes > 0 {
            request = request.header("Range", format!("bytes={}-", part.bytes));
            if let Some(validator) = part.validator() {
                request = request.header("If-Range", validator);
            }
        }
        let mut response = request.call().map_err(|e| classify_error(e, url))?;
        let total = match response.status() {
            StatusCode::OK => {
                part.begin(validator(response.headers()))?;
                response.body().content_length()
            }
            StatusCode::PARTIAL_CONTENT => {
                let range = header(response.headers(), "Content-Range");
                let Some((start, total)) = range.and_then(content_range).filter(|r| r.0 == part.bytes) else {
                    part.clear()?;
                    let reason = format!("expected the requested range, found {range:?}");
                    return Err(Failure::Transient { reason, wait: None });
                };
                part.pieces += 1;
                total.or_else(|| response.body().content_length().map(|rest| start.saturating_add(rest)))
            }
            StatusCode::RANGE_NOT_SATISFIABLE if part.bytes > 0 => {
                part.clear()?;
                let reason = "the server's file is shorter than the downloaded part".into();
                return Err(Failure::Transient { reason, wait: None });
            }
            status => {
                let reason = format!("the server responded with {status}");
                return Err(if is_transient_status(status) {
                    Failure::Transient { reason, wait: retry_after(&response) }
                } else {
                    rejected(reason)
                });
            }
        };
        let too_large =
            |bytes| rejected(format!("expected at most {} bytes, found {bytes}", archive.max_bytes));
        if let Some(total) = total {
            if total > archive.max_bytes {
                return Err(too_large(total));
            }
            // Room for the rest of the file, and for its unpacked content.
            let rest = total.saturating_sub(part.bytes);
            check_disk_space(part.folder(), rest.saturating_add(total)).map_err(Failure::Permanent)?;
        }
        progress(Event::Fetching(part.bytes, total));
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = body.read(&mut buffer).map_err(|e| classify_error(e.into(), url))?;
            if n == 0 {
                break;
            }
            part.append(&buffer[..n]).map_err(Failure::Permanent)?;
            if part.bytes > archive.max_bytes {
                return Err(too_large(part.bytes));
            }
            progress(Event::Fetching(part.bytes, total));
        }
        match total {
            Some(total) if part.bytes < total => {
                let reason = format!("the connection ended after {} bytes of {total}", part.bytes);
                Err(Failure::Transient { reason, wait: None })
            }
            _ => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Permanent(error)
    }
}

/// Classifies a network error as transient or permanent.
fn classify_error(error: ureq::Error, url: &str) -> Failure {
    let is_transient = match &error {
        // Invalid data, such as an invalid certificate, is permanent.
        ureq::Error::Io(e) => !matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput),
        ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_)
        | ureq::Error::BodyStalled => true,
        _ => false,
    };
    let reason = match error {
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::Timeout(_) => "timeout".into(),
        other => other.to_string(),
    };
    // The message must fit on one line, but a library's may have several.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    if is_transient {
        Failure::Transient { reason, wait: None }
    } else {
        Failure::Permanent(Error::Http { url: url.into(), reason })
    }
}

/// True if the status may change later: the server is overloaded or temporarily broken.
fn is_transient_status(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// The wait that the server asks for.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    Some(Duration::from_secs(header(response.headers(), "Retry-After")?.trim().parse().ok()?))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The start and, if known, the total size in `bytes START-END/SIZE`.
fn content_range(range: &str) -> Option<(u64, Option<u64>)> {
    let (span, size) = range.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (start, _) = span.split_once('-')?;
    Some((start.trim().parse().ok()?, size.trim().parse().ok()))
}

/// The validator that identifies this version of the file: a strong entity tag, else the date.
fn validator(headers: &HeaderMap) -> Option<&str> {
    header(headers, "ETag").filter(|tag| tag.starts_with('"')).or_else(|| header(headers, "Last-Modified"))
}

/// The fetched part of a file, `NAME.part`, and in `NAME.part.validator` the version of that file.
struct PartialFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    digest: Md5,
    /// Number of requests that the content came from; earlier runs count as one.
    pieces: u32,
}

impl PartialFile {
    /// Opens the fetched part of the file `path`.
    fn open(path: &Path, max_bytes: u64) -> Result<Self> {
        let path = with_ending(path, ".part");
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let mut file = options.open(&path).map_err(Error::io(&path))?;
        let (digest, bytes) = hash(&mut file, max_bytes).map_err(Error::io(&path))?;
        let mut part = Self { path, file, bytes, digest, pieces: u32::from(bytes > 0) };
        if bytes > max_bytes {
            part.clear()?;
        }
        Ok(part)
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn validator_path(&self) -> PathBuf {
        with_ending(&self.path, ".validator")
    }

    fn validator(&self) -> Option<String> {
        let path = self.validator_path();
        let small = fs::metadata(&path).is_ok_and(|m| m.len() <= 1024);
        let text = small.then(|| fs::read_to_string(path).ok()).flatten()?;
        let plain = !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        plain.then_some(text)
    }

    fn md5(&self) -> String {
        hex(&self.digest.clone().finalize())
    }

    /// Empties the part.
    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::io(&self.path))?;
        (self.bytes, self.digest, self.pieces) = (0, Md5::new(), 0);
        Ok(())
    }

    /// Empties the part for the version of the file that `validator` identifies.
    fn begin(&mut self, validator: Option<&str>) -> Result<()> {
        self.clear()?;
        self.pieces = 1;
        let path = self.validator_path();
        write_atomically(&path, |w| w.write_all(validator.unwrap_or_default().as_bytes()))
            .map_err(Error::io(&path))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))?;
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn remove(self) -> Result<()> {
        let _ = fs::remove_file(self.validator_path());
        fs::remove_file(&self.path).map_err(Error::io(&self.path))
    }

    /// Moves the part to its final name.
    fn finish(self, path: &Path) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        fs::rename(&self.path, path).map_err(Error::io(path))?;
        let _ = fs::remove_file(self.validator_path());
        Ok(())
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

fn checksum(path: &Path, max_bytes: u64) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let (digest, _) = hash(&mut file, max_bytes).map_err(Error::io(path))?;
    Ok(hex(&digest.finalize()))
}

/// The digest and size of the file, or of its first bytes if there are more than `max_bytes`.
fn hash(file: &mut File, max_bytes: u64) -> io::Result<(Md5, u64)> {
    let mut digest = Md5::new();
    let bytes = io::copy(&mut file.take(max_bytes.saturating_add(1)), &mut digest)?;
    Ok((digest, bytes))
}
