//! A file by HTTP: it goes on where it broke off, is asked for again where that may help, and is whole by its checksum.

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use md5::{Digest, Md5};
use tiny_cats_export::write_atomically;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode},
};

use super::{Archive, Error, Event, Result, RetryPolicy, check_disk_space};

const MAX_REDIRECTS: u32 = 5;

/// An attempt that brought so many bytes was worth it: the next failure counts as the first.
const MIN_PROGRESS_BYTES: u64 = 1 << 20;

/// Fetches files from one address.
pub(super) struct Client<'a> {
    agent: Agent,
    url: &'a str,
    retry_policy: &'a RetryPolicy,
}

/// Why an attempt did not bring the rest of the file.
enum Failure {
    /// It may go on in another attempt, not before the wait that the server asks for.
    Passing { reason: String, wait: Option<Duration> },
    /// It will not.
    Lasting(Error),
}

impl<'a> Client<'a> {
    pub(super) fn new(url: &'a str, retry_policy: &'a RetryPolicy) -> Self {
        let idle_timeout = Some(retry_policy.idle_timeout);
        let agent = Agent::config_builder()
            // Only who asks for a mirror without https gets one.
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

    /// Fetches `archive` to `path`, unless it is there.
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
            // Nothing to go on from.
            Err(e) if part.bytes == 0 => part.remove().and(Err(e)),
            Err(e) => Err(e),
        }
    }

    /// Attempts until `part` is the file, or there is no hope.
    fn complete(
        &self,
        url: &str,
        part: &mut PartialFile,
        archive: &Archive,
        progress: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let (mut failures, mut anew) = (0, false);
        while part.md5() != archive.md5 {
            let before = part.bytes;
            let (reason, asked) = match self.attempt(url, part, archive, progress) {
                Err(Failure::Lasting(e)) => return Err(e),
                // A length that the server has made up changes nothing.
                _ if part.md5() == archive.md5 => break,
                // All is here, and it is not the file: perhaps its pieces are of different files.
                Ok(()) if part.pieces > 1 && !anew => {
                    anew = true;
                    part.clear()?;
                    progress(Event::RecomputeFn("the pieces do not fit together".into(), Duration::ZERO));
                    continue;
                }
                Ok(()) => {
                    let (found, bytes) = (part.md5(), part.bytes);
                    part.clear()?;
                    return Err(Error::Checksum { url: url.into(), expected: archive.md5, found, bytes });
                }
                Err(Failure::Passing { reason, wait }) => (reason, wait),
            };
            failures = if part.bytes >= before.saturating_add(MIN_PROGRESS_BYTES) { 1 } else { failures + 1 };
            if failures >= self.retry_policy.attempts {
                let reason = format!("{reason}; gave up after {failures} attempts");
                return Err(Error::Http { url: url.into(), reason });
            }
            let wait = asked.unwrap_or_else(|| self.wait(failures)).min(self.retry_policy.max_backoff);
            progress(Event::RecomputeFn(reason, wait));
            thread::sleep(wait);
        }
        Ok(())
    }

    /// The wait after so many failures in a row: twice as long each time, and up to a half less by chance, so that many who lost their
    /// connection at one moment do not come back at one moment.
    fn wait(&self, failures: u32) -> Duration {
        let doubled = self.retry_policy.initial_backoff.saturating_mul(1 << (failures - 1).min(16));
        let chance = RandomState::new().hash_one(failures) as f64 / u64::MAX as f64;
        doubled.mul_f64(1.0 - chance / 2.0)
    }

    /// Asks for what is missing, and appends what comes.
    fn attempt(
        &self,
        url: &str,
        part: &mut PartialFile,
        archive: &Archive,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(), Failure> {
        let refused = |reason| Failure::Lasting(Error::Http { url: url.into(), reason });
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if part.bytes > 0 {
            request = request.header("Range", format!("bytes={}-", part.bytes));
            if let Some(validator) = part.validator() {
                request = request.header("If-Range", validator);
            }
        }
        let mut response = request.call().map_err(|e| failed(e, url))?;
        let total = match response.status() {
            StatusCode::OK => {
                part.begin(validator(response.headers()))?;
                response.body().content_length()
            }
            StatusCode::PARTIAL_CONTENT => {
                let range = header(response.headers(), "Content-Range");
                let Some((start, total)) = range.and_then(content_range).filter(|r| r.0 == part.bytes) else {
                    part.clear()?;
                    let reason = format!("the server sent another piece than asked for, {range:?}");
                    return Err(Failure::Passing { reason, wait: None });
                };
                part.pieces += 1;
                total.or_else(|| response.body().content_length().map(|rest| start.saturating_add(rest)))
            }
            StatusCode::RANGE_NOT_SATISFIABLE if part.bytes > 0 => {
                part.clear()?;
                let reason = "the server's file is shorter than what is here of it".into();
                return Err(Failure::Passing { reason, wait: None });
            }
            status => {
                let reason = format!("the server answers {status}");
                return Err(if is_transient_status(status) {
                    Failure::Passing { reason, wait: retry_after(&response) }
                } else {
                    refused(reason)
                });
            }
        };
        let too_large =
            |bytes| refused(format!("expected at most {} bytes, found {bytes}", archive.max_bytes));
        if let Some(total) = total {
            if total > archive.max_bytes {
                return Err(too_large(total));
            }
            // The rest of the file, and what is in it.
            let rest = total.saturating_sub(part.bytes);
            check_disk_space(part.folder(), rest.saturating_add(total)).map_err(Failure::Lasting)?;
        }
        progress(Event::Fetching(part.bytes, total));
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = body.read(&mut buffer).map_err(|e| failed(e.into(), url))?;
            if n == 0 {
                break;
            }
            part.append(&buffer[..n]).map_err(Failure::Lasting)?;
            if part.bytes > archive.max_bytes {
                return Err(too_large(part.bytes));
            }
            progress(Event::Fetching(part.bytes, total));
        }
        match total {
            Some(total) if part.bytes < total => {
                let reason = format!("the connection ended after {} bytes of {total}", part.bytes);
                Err(Failure::Passing { reason, wait: None })
            }
            _ => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Lasting(error)
    }
}

/// Whether what the network said may be another thing the next time.
fn failed(error: ureq::Error, url: &str) -> Failure {
    let passing = match &error {
        // A certificate that is no good, and other nonsense.
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
        ureq::Error::Timeout(_) => "nothing came for too long".into(),
        other => other.to_string(),
    };
    // One line, whatever a library has to say.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    if passing {
        Failure::Passing { reason, wait: None }
    } else {
        Failure::Lasting(Error::Http { url: url.into(), reason })
    }
}

/// Whether the status is of the moment: too busy, or broken for now.
fn is_transient_status(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// The seconds that the server asks to wait.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    Some(Duration::from_secs(header(response.headers(), "Retry-After")?.trim().parse().ok()?))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Start and, if known, size of the whole from `bytes START-END/SIZE`.
fn content_range(range: &str) -> Option<(u64, Option<u64>)> {
    let (span, size) = range.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (start, _) = span.split_once('-')?;
    Some((start.trim().parse().ok()?, size.trim().parse().ok()))
}

/// What tells this state of the file from any other: a strong entity tag, else the date.
fn validator(headers: &HeaderMap) -> Option<&str> {
    header(headers, "ETag").filter(|tag| tag.starts_with('"')).or_else(|| header(headers, "Last-Modified"))
}

/// What is here of a file, `NAME.part`, and in `NAME.part.validator` which state of the file it is of.
struct PartialFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    digest: Md5,
    /// Requests that it came by, earlier runs being one.
    pieces: u32,
}

impl PartialFile {
    /// Opens what is here of the file that is to be at `path`.
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
        self.digest.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Empties it.
    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::io(&self.path))?;
        (self.bytes, self.digest, self.pieces) = (0, Md5::new(), 0);
        Ok(())
    }

    /// Empties it for a state of the file that `validator` stands for.
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

    /// Puts it at its place.
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
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The digest of the file and its size, or of the first bytes when there are more than `max_bytes`.
fn hash(file: &mut File, max_bytes: u64) -> io::Result<(Md5, u64)> {
    let mut digest = Md5::new();
    let bytes = io::copy(&mut file.take(max_bytes.saturating_add(1)), &mut digest)?;
    Ok((digest, bytes))
}
