//! Downloads from a local server that interrupts responses, sends false lengths, returns errors, and sends malicious archives.
#![cfg(feature = "download")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use md5::{Digest, Md5};
use tempfile::TempDir;
use tiny_cats::data::download::{Archive, Error, Event, OXFORD_PETS, OXFORD_PETS_URL, RetryPolicy, download};

/// A request that the server received.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ReceivedRequest {
    path: String,
    /// The first byte of the range.
    from: Option<usize>,
    if_range: Option<String>,
}

/// A response of the server, which then closes the connection.
struct Response {
    head: String,
    body: Vec<u8>,
    /// True if the server stays silent after the body, until the client closes the connection.
    stall: bool,
}

fn response(status: &str, headers: &[String], body: &[u8]) -> Response {
    let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n");
    Response { head, body: body.to_vec(), stall: false }
}

/// The response of a correct server, with support for ranges.
fn serve(file: &[u8], tag: &str, request: &ReceivedRequest) -> Response {
    let length = |n: usize| format!("Content-Length: {n}");
    let tag_line = format!("ETag: \"{tag}\"");
    let same = request.if_range.as_ref().is_none_or(|t| *t == format!("\"{tag}\""));
    match request.from.filter(|_| same) {
        Some(from) if from >= file.len() => {
            response("416 Range Not Satisfiable", &[format!("Content-Range: bytes */{}", file.len())], b"")
        }
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}", file.len() - 1, file.len());
            response("206 Partial Content", &[length(file.len() - from), range, tag_line], &file[from..])
        }
        None => response("200 OK", &[length(file.len()), tag_line], file),
    }
}

/// `response`, interrupted after `n` bytes of its body.
fn interrupted(mut response: Response, n: usize) -> Response {
    response.body.truncate(n);
    response
}

/// A server for one test: `script` returns the response to each request, by the number of the request from 0.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Server {
    fn new(mut script: impl FnMut(usize, &ReceivedRequest) -> Response + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read_request(&stream) else { continue };
                let n = log.lock().unwrap().len();
                log.lock().unwrap().push(request.clone());
                let response = script(n, &request);
                // A client may close the connection early.
                let _ = stream
                    .write_all(response.head.as_bytes())
                    .and_then(|()| stream.write_all(&response.body));
                if response.stall {
                    let _ = stream.read(&mut [0]);
                }
            }
        });
        Self { url, requests }
    }

    /// A server of one file, which `script` receives.
    fn with_file(
        file: &[u8],
        mut script: impl FnMut(usize, &ReceivedRequest, &[u8]) -> Response + Send + 'static,
    ) -> Self {
        let file = file.to_vec();
        Self::new(move |n, request| script(n, request, &file))
    }

    fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }

    fn ranges(&self) -> Vec<Option<usize>> {
        self.requests().into_iter().map(|a| a.from).collect()
    }
}

fn read_request(stream: &TcpStream) -> Option<ReceivedRequest> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut request = ReceivedRequest { path, from: None, if_range: None };
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.from = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "if-range" => request.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(request)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Appends an entry with any name, including names that tar writers refuse.
fn append_entry(tar: &mut Vec<u8>, name: &str, kind: tar::EntryType, link: &str, size: u64, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o777);
    header.set_size(size);
    header.set_cksum();
    tar.extend(header.as_bytes());
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn append_file(tar: &mut Vec<u8>, name: &str, content: &[u8]) {
    append_entry(tar, name, tar::EntryType::Regular, "", content.len() as u64, content);
}

/// Ends a tar archive and compresses it.
fn finish_archive(mut tar: Vec<u8>) -> Vec<u8> {
    tar.resize(tar.len() + 1024, 0);
    gzip(&tar)
}

/// Bytes that do not compress.
fn noise(n: usize, seed: u32) -> Vec<u8> {
    let blocks = (0..n as u32).step_by(16).flat_map(|i| Md5::digest((i ^ (seed << 20)).to_le_bytes()));
    blocks.take(n).collect()
}

/// An archive like the official one: two images, a folder, and metadata files of macOS.
fn pets_archive(seed: u32) -> Vec<u8> {
    let mut tar = Vec::new();
    append_entry(&mut tar, "images/", tar::EntryType::Directory, "", 0, b"");
    append_file(&mut tar, "./images/Abyssinian_1.jpg", &noise(40_000, seed));
    append_file(&mut tar, "._images", b"macOS");
    append_file(&mut tar, "images/more/._Bengal_2.jpg", b"macOS");
    append_file(&mut tar, "images/more/Bengal_2.jpg", &noise(20_000, seed + 1));
    finish_archive(tar)
}

fn archive(bytes: &[u8]) -> Archive {
    let md5 = tiny_cats_export::hex(&Md5::digest(bytes));
    Archive { name: "images", md5: md5.leak(), max_bytes: 1 << 20 }
}

const QUICK: RetryPolicy = RetryPolicy {
    attempts: 4,
    initial_backoff: Duration::from_millis(4),
    max_backoff: Duration::from_millis(20),
    idle_timeout: Duration::from_secs(5),
};

fn get(archive: &Archive, url: &str, dir: &Path) -> Result<Vec<Event>, Error> {
    get_with(archive, url, dir, &QUICK)
}

fn get_with(
    archive: &Archive,
    url: &str,
    dir: &Path,
    retry_policy: &RetryPolicy,
) -> Result<Vec<Event>, Error> {
    let mut events = Vec::new();
    download(&[*archive], url, dir, retry_policy, &mut |_, event| events.push(event))?;
    Ok(events)
}

/// Every file in `dir`, except the lock file that some systems use.
fn files(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, all: &mut Vec<PathBuf>) {
        for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() { walk(&path, all) } else { all.push(path) }
        }
    }
    let mut all = Vec::new();
    walk(dir, &mut all);
    all.retain(|path| !path.ends_with(".download.lock"));
    let mut names: Vec<String> =
        all.iter().map(|p| p.strip_prefix(dir).unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[track_caller]
fn assert_complete(dir: &Path, seed: u32) {
    assert_eq!(
        files(dir),
        ["images.tar.gz", "images/.unpacked.json", "images/Abyssinian_1.jpg", "images/more/Bengal_2.jpg"]
    );
    assert!(fs::read(dir.join("images/Abyssinian_1.jpg")).unwrap() == noise(40_000, seed));
    assert!(fs::read(dir.join("images/more/Bengal_2.jpg")).unwrap() == noise(20_000, seed + 1));
}

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_complete_download_is_not_repeated() {
    let (bytes, dir) = (pets_archive(1), temp());
    let server = Server::with_file(&bytes, |_, request, file| serve(file, "a", request));
    let events = get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 1);
    let total = bytes.len() as u64;
    assert!(events.contains(&Event::Fetching(total, Some(total))));
    assert!(events.iter().any(|e| matches!(e, Event::Unpacking(_, t) if *t == total)));
    assert_eq!(events.last(), Some(&Event::Ready { files: 2, bytes: 60_000, was_complete: false }));
    assert_eq!(server.requests()[0].path, "/images.tar.gz");

    let events = get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_eq!(events, [Event::Ready { files: 2, bytes: 60_000, was_complete: true }]);
    // Either the archive or the folder is enough.
    fs::remove_dir_all(dir.path().join("images")).unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 1);
    fs::remove_file(dir.path().join("images.tar.gz")).unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_eq!(server.requests().len(), 1);
    // A damaged archive is downloaded again.
    fs::remove_dir_all(dir.path().join("images")).unwrap();
    fs::write(dir.path().join("images.tar.gz"), &bytes[..1000]).unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 1);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn an_interrupted_download_resumes() {
    let (bytes, dir) = (pets_archive(1), temp());
    let server = Server::with_file(&bytes, |n, request, file| match n {
        0 | 1 => interrupted(serve(file, "a", request), 10_000),
        _ => serve(file, "a", request),
    });
    let events = get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 1);
    assert_eq!(server.ranges(), [None, Some(10_000), Some(20_000)]);
    assert!(server.requests()[1..].iter().all(|a| a.if_range.as_deref() == Some("\"a\"")));
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Retry(..))).count(), 2);
}

#[test]
fn a_stalled_download_is_retried() {
    let (bytes, dir) = (pets_archive(1), temp());
    let server = Server::with_file(&bytes, |n, request, file| match n {
        0 => Response { stall: true, ..interrupted(serve(file, "a", request), 10_000) },
        _ => serve(file, "a", request),
    });
    let retry_policy = RetryPolicy { idle_timeout: Duration::from_millis(300), ..QUICK };
    get_with(&archive(&bytes), &server.url, dir.path(), &retry_policy).unwrap();
    assert_complete(dir.path(), 1);
    assert_eq!(server.ranges(), [None, Some(10_000)]);
}

#[test]
fn the_checksum_decides_when_the_length_is_false() {
    // The whole file arrives, but Content-Length is larger.
    let (bytes, dir) = (pets_archive(1), temp());
    let longer = |_: usize, _: &ReceivedRequest, file: &[u8]| {
        response("200 OK", &[format!("Content-Length: {}", file.len() + 5000)], file)
    };
    let server = Server::with_file(&bytes, longer);
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 1);
    assert_eq!(server.requests().len(), 1);

    // A different file arrives, and Content-Length is larger: every attempt fails.
    let dir = temp();
    let server = Server::with_file(&pets_archive(2), longer);
    let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err().to_string();
    assert!(error.contains("images.tar.gz: ") && error.contains("gave up after 4 attempts"), "{error}");
    assert_eq!(files(dir.path()), ["images.tar.gz.part", "images.tar.gz.part.validator"]);

    // Content-Length is smaller than the file.
    let dir = temp();
    let server =
        Server::with_file(&bytes, |_, _, file| response("200 OK", &["Content-Length: 9000".into()], file));
    let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err();
    assert!(matches!(error, Error::Checksum { bytes: 9000, .. }), "{error}");
    assert_eq!(files(dir.path()), [""; 0]);
}

#[test]
fn a_server_that_ignores_ranges_restarts_the_download() {
    let (bytes, dir) = (pets_archive(1), temp());
    let server = Server::with_file(&bytes, |n, request, file| {
        let complete = serve(file, "a", &ReceivedRequest { from: None, ..request.clone() });
        if n == 0 { interrupted(complete, 10_000) } else { complete }
    });
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 1);
    assert_eq!(server.ranges(), [None, Some(10_000)]);
}

#[test]
fn parts_of_different_files_are_not_joined() {
    let (old, new) = (pets_archive(1), pets_archive(2));
    // The server honors If-Range.
    let dir = temp();
    let (a, b) = (old.clone(), new.clone());
    let server = Server::new(move |n, request| match n {
        0 => interrupted(serve(&a, "a", request), 10_000),
        _ => serve(&b, "b", request),
    });
    get(&archive(&new), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 2);
    assert_eq!(server.ranges(), [None, Some(10_000)]);

    // The server ignores If-Range, or sends a different range: the download restarts.
    for shift in [0, 7] {
        let dir = temp();
        let (a, b) = (old.clone(), new.clone());
        let server = Server::new(move |n, request| match n {
            0 => interrupted(serve(&a, "a", request), 10_000),
            1 => serve(
                &b,
                "b",
                &ReceivedRequest { from: Some(10_000 + shift), if_range: None, ..request.clone() },
            ),
            _ => serve(&b, "b", request),
        });
        get(&archive(&new), &server.url, dir.path()).unwrap();
        assert_complete(dir.path(), 2);
        assert_eq!(server.ranges(), [None, Some(10_000), None]);
    }

    // The partial file is longer than the server's file.
    let dir = temp();
    fs::write(dir.path().join("images.tar.gz.part"), noise(200_000, 0)).unwrap();
    let server = Server::with_file(&new, |_, request, file| serve(file, "b", request));
    get(&archive(&new), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 2);
    assert_eq!(server.ranges(), [Some(200_000), None]);
}

#[test]
fn a_wrong_checksum_gives_a_one_line_error_and_leaves_no_files() {
    let (wanted, sent) = (archive(&pets_archive(1)), pets_archive(2));
    let expected = format!(
        "expected a file of MD5 {}, found {} bytes of MD5 {}",
        wanted.md5,
        sent.len(),
        archive(&sent).md5
    );
    // In one response; in two parts, then again from the start in two parts.
    for (parts, ranges) in [(1, vec![None]), (2, vec![None, Some(10_000), None, Some(10_000)])] {
        let dir = temp();
        let server = Server::with_file(&sent, move |n, request, file| {
            let complete = serve(file, "a", request);
            if parts == 2 && n % 2 == 0 { interrupted(complete, 10_000) } else { complete }
        });
        let error = get(&wanted, &server.url, dir.path()).unwrap_err().to_string();
        assert!(error.ends_with(&expected) && error.contains("/images.tar.gz: "), "{error}");
        assert_eq!(server.ranges(), ranges);
        assert_eq!(files(dir.path()), [""; 0]);
    }
}

#[test]
fn permanent_errors_are_not_retried_and_transient_errors_are() {
    let (bytes, dir) = (pets_archive(1), temp());
    for status in ["404 Not Found", "403 Forbidden", "501 Not Implemented"] {
        let server = Server::new(move |_, _| response(status, &[], b"no"));
        let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err().to_string();
        assert_eq!(error, format!("{}/images.tar.gz: the server responded with {status}", server.url));
        assert_eq!(server.requests().len(), 1);
        assert_eq!(files(dir.path()), [""; 0]);
    }
    let server = Server::with_file(&bytes, |n, request, file| match n {
        0 => response("503 Service Unavailable", &[], b"later"),
        1 => response("429 Too Many Requests", &["Retry-After: 1".into()], b""),
        2 => response("502 Bad Gateway", &["Retry-After: 1000000".into()], b""),
        _ => serve(file, "a", request),
    });
    let retry_policy = RetryPolicy { max_backoff: Duration::from_secs(1), ..QUICK };
    let start = Instant::now();
    let events = get_with(&archive(&bytes), &server.url, dir.path(), &retry_policy).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_complete(dir.path(), 1);
    let waits: Vec<Duration> = events
        .iter()
        .filter_map(|e| if let Event::Retry(_, wait) = e { Some(*wait) } else { None })
        .collect();
    assert!((QUICK.initial_backoff / 2..=QUICK.initial_backoff).contains(&waits[0]), "{waits:?}");
    assert_eq!(waits[1..], [Duration::from_secs(1); 2]);

    // A port on which nothing listens.
    let url = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let error = get(&archive(&bytes), &url, temp().path()).unwrap_err().to_string();
    assert!(error.ends_with("gave up after 4 attempts"), "{error}");
}

#[test]
fn redirects_are_followed_up_to_a_limit() {
    let (bytes, dir) = (pets_archive(1), temp());
    let server = Server::with_file(&bytes, |n, request, file| match request.path.as_str() {
        "/images.tar.gz" => response("302 Found", &["Location: /moved".into()], b""),
        _ if n < 2 => interrupted(serve(file, "a", request), 10_000),
        _ => serve(file, "a", request),
    });
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 1);
    assert_eq!(server.ranges(), [None, None, Some(10_000), Some(10_000)]);

    let server = Server::new(|_, _| response("301 Moved Permanently", &["Location: /again".into()], b""));
    let error = get(&archive(&bytes), &server.url, temp().path()).unwrap_err().to_string();
    assert!(error.contains("too many redirects"), "{error}");
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn too_large_downloads_are_refused() {
    let bytes = pets_archive(1);
    let small = Archive { max_bytes: 1000, ..archive(&bytes) };
    // With and without Content-Length.
    let with_length = Server::with_file(&bytes, |_, request, file| serve(file, "a", request));
    let without_length = Server::with_file(&pets_archive(2), |_, _, file| response("200 OK", &[], file));
    for server in [with_length, without_length] {
        let error = get(&small, &server.url, temp().path()).unwrap_err().to_string();
        assert!(error.contains("expected at most 1000 bytes"), "{error}");
    }
    // Larger than any disk.
    let large = Archive { max_bytes: u64::MAX, ..archive(&bytes) };
    let server = Server::new(|_, _| response("200 OK", &[format!("Content-Length: {}", 1u64 << 60)], b""));
    let error = get(&large, &server.url, temp().path()).unwrap_err();
    assert!(matches!(error, Error::Disk { .. }), "{error}");
}

#[test]
fn malicious_archives_are_refused_and_leave_no_files() {
    use tar::EntryType::{Block, Fifo, GNULongName, Link, Regular, Symlink};
    let archive_with = |name: &str, kind, link: &str, size: u64, content: &[u8]| {
        let mut tar = Vec::new();
        append_file(&mut tar, "images/good.jpg", b"good");
        append_entry(&mut tar, name, kind, link, size, content);
        finish_archive(tar)
    };
    let zeros = vec![0; 4 << 20];
    let duplicate = archive_with("images/good.jpg", Regular, "", 4, b"evil");
    let through_link = {
        let mut tar = Vec::new();
        append_entry(&mut tar, "images/link", Symlink, "..", 0, b"");
        append_file(&mut tar, "images/link/evil", b"evil");
        finish_archive(tar)
    };
    let empty = {
        let mut tar = Vec::new();
        append_entry(&mut tar, "images/", tar::EntryType::Directory, "", 0, b"");
        finish_archive(tar)
    };
    for (bytes, expected) in [
        (archive_with("images/../../evil", Regular, "", 4, b"evil"), "is outside of"),
        (archive_with("../evil", Regular, "", 4, b"evil"), "is outside of"),
        (archive_with("/tmp/evil", Regular, "", 4, b"evil"), "is outside of"),
        (archive_with("elsewhere/evil", Regular, "", 4, b"evil"), "is not in images/"),
        (archive_with("images/a\\..\\evil", Regular, "", 4, b"evil"), "is not a valid file name"),
        (archive_with("images/.unpacked.json", Regular, "", 2, b"{}"), "reserved name"),
        (archive_with("images/link", Symlink, "/etc/passwd", 0, b""), "Symlink"),
        (archive_with("images/link", Link, "images/good.jpg", 0, b""), "Link"),
        (archive_with("images/fifo", Fifo, "", 0, b""), "Fifo"),
        (archive_with("images/disk", Block, "", 0, b""), "Block"),
        (through_link, "Symlink"),
        (duplicate, "twice"),
        // Decompression bombs: in a file, in a skipped entry, in a long name, and in a size without content.
        (archive_with("images/bomb", Regular, "", zeros.len() as u64, &zeros), "unpacks to more than"),
        (archive_with("._bomb", Regular, "", zeros.len() as u64, &zeros), "unpacks to more than"),
        (archive_with("bomb", GNULongName, "", zeros.len() as u64, &zeros), "a header is too long"),
        (archive_with("images/liar", Regular, "", u64::from(u32::MAX), b""), "unpacks to more than"),
        (archive_with("images/short", Regular, "", 100_000, b"short"), "images/short"),
        (empty, "expected files in images/, found none"),
        (gzip(b"not an archive, but longer than a tar header, ".repeat(20).as_slice()), "images.tar.gz: "),
        (b"not a gzip file".to_vec(), "images.tar.gz: "),
        (pets_archive(1)[..20_000].to_vec(), "images.tar.gz: "),
    ] {
        let outer = temp();
        let dir = outer.path().join("pets");
        let server = Server::with_file(&bytes, |_, request, file| serve(file, "a", request));
        let error = get(&archive(&bytes), &server.url, &dir).unwrap_err();
        assert!(matches!(error, Error::Archive { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{expected}: {error}");
        assert_eq!(files(outer.path()), ["pets/images.tar.gz"], "{expected}");
        assert!(!Path::new("/tmp/evil").exists());
    }
}

#[test]
fn existing_files_are_not_replaced() {
    let (bytes, dir) = (pets_archive(1), temp());
    let server = Server::with_file(&bytes, |_, request, file| serve(file, "a", request));
    let check_refused = |expected: &str| {
        let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("images: expected a new folder, found ") && error.contains(expected),
            "{error}"
        );
    };
    let mine = dir.path().join("images/mine.jpg");
    fs::create_dir(dir.path().join("images")).unwrap();
    fs::write(&mine, "precious").unwrap();
    check_refused("other files");
    assert_eq!(files(dir.path()), ["images/mine.jpg"]);
    assert_eq!(server.requests().len(), 0);
    fs::remove_dir_all(dir.path().join("images")).unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    // A missing file, an additional file, another archive.
    let cat = dir.path().join("images/Abyssinian_1.jpg");
    let moved = dir.path().join("moved");
    fs::rename(&cat, &moved).unwrap();
    check_refused("1 files of");
    fs::rename(&moved, &cat).unwrap();
    fs::write(&mine, "precious").unwrap();
    check_refused("3 files of");
    fs::remove_file(&mine).unwrap();
    // A record with the maximum number of files.
    let record = dir.path().join("images/.unpacked.json");
    let original = fs::read_to_string(&record).unwrap();
    let altered = original.replace("\"files\": 2", &format!("\"files\": {}", u64::MAX));
    assert_ne!(altered, original);
    fs::write(&record, altered).unwrap();
    check_refused("2 files of");
    fs::write(&record, original).unwrap();
    let error = get(&archive(&pets_archive(2)), &server.url, dir.path()).unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
    assert_complete(dir.path(), 1);
    assert_eq!(server.requests().len(), 1);

    let lock = if cfg!(unix) { dir.path().to_owned() } else { dir.path().join(".download.lock") };
    let lock = fs::File::open(lock).unwrap();
    lock.lock().unwrap();
    let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err();
    assert!(matches!(error, Error::Busy(_)), "{error}");
}

/// The command `tiny-cats data download`.
fn download_command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tiny-cats"));
    command.args(["data", "download"]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_killed_download_resumes_in_the_next_run() {
    let (bytes, dir) = (pets_archive(1), temp());
    let half = bytes.len() / 2;
    let server = Server::with_file(&bytes, move |n, request, file| match n {
        0 => Response { stall: true, ..interrupted(serve(file, "a", request), half) },
        _ => serve(file, "a", request),
    });
    let path = dir.path().to_str().unwrap();
    let mut child = download_command(&[path, "--from", &server.url]).spawn().unwrap();
    let part = dir.path().join("images.tar.gz.part");
    while fs::metadata(&part).map_or(0, |m| m.len()) < half as u64 && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    // Sends SIGKILL on Unix.
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::metadata(&part).unwrap().len(), half as u64);
    // The folder of a program that was killed while it unpacked.
    fs::create_dir(dir.path().join(".unpacking-images")).unwrap();
    fs::write(dir.path().join(".unpacking-images/Abyssinian_1.jpg"), "half").unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_complete(dir.path(), 1);
    assert_eq!(server.ranges(), [None, Some(half)]);
    assert_eq!(server.requests()[1].if_range.as_deref(), Some("\"a\""));
}

#[test]
fn the_command_accepts_only_the_official_files_and_prints_their_license() {
    let dir = temp();
    let path = dir.path().to_str().unwrap();
    let run = |url: &str| {
        let output = download_command(&[path, "--from", url]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("CC BY-SA 4.0") && stderr.contains("Parkhi"), "{stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && stderr.ends_with(&format!("{}\n", errors[0])), "{stderr}");
        errors[0].to_owned()
    };
    let server = Server::new(|_, _| response("404 Not Found", &[], b""));
    assert!(run(&server.url).ends_with("/images.tar.gz: the server responded with 404 Not Found"));
    let server = Server::with_file(&pets_archive(1), |_, request, file| serve(file, "a", request));
    let error = run(&server.url);
    assert!(error.contains("5c4f3ee8e5d25df40f4fd59a7f44e54c"), "{error}");
    assert_eq!(files(dir.path()), [""; 0]);
    assert!(OXFORD_PETS_URL.starts_with("https://"));
    assert_eq!(OXFORD_PETS.map(|a| a.name), ["images", "annotations"]);
}
