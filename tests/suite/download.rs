//! Downloads from a server on this machine that breaks off, lies, refuses, and sends archives made to do harm.
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

/// What the server was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ReceivedRequest {
    path: String,
    /// The first byte of the range.
    from: Option<usize>,
    if_range: Option<String>,
}

/// What it answers; then it closes the connection.
struct Answer {
    head: String,
    body: Vec<u8>,
    /// Keep the connection open, in silence, until the other side gives up.
    hold: bool,
}

fn answer(status: &str, headers: &[String], body: &[u8]) -> Answer {
    let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n");
    Answer { head, body: body.to_vec(), hold: false }
}

/// As a good server answers.
fn serve(file: &[u8], tag: &str, asked: &ReceivedRequest) -> Answer {
    let length = |n: usize| format!("Content-Length: {n}");
    let tag_line = format!("ETag: \"{tag}\"");
    let same = asked.if_range.as_ref().is_none_or(|t| *t == format!("\"{tag}\""));
    match asked.from.filter(|_| same) {
        Some(from) if from >= file.len() => {
            answer("416 Range Not Satisfiable", &[format!("Content-Range: bytes */{}", file.len())], b"")
        }
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}", file.len() - 1, file.len());
            answer("206 Partial Content", &[length(file.len() - from), range, tag_line], &file[from..])
        }
        None => answer("200 OK", &[length(file.len()), tag_line], file),
    }
}

/// The answer as far as byte `n` of its body.
fn broken(mut answer: Answer, n: usize) -> Answer {
    answer.body.truncate(n);
    answer
}

/// A server for the time of a test: `script` answers the requests, which are counted from 0.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Server {
    fn new(mut script: impl FnMut(usize, &ReceivedRequest) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read_request(&stream) else { continue };
                let n = log.lock().unwrap().len();
                log.lock().unwrap().push(request.clone());
                let answer = script(n, &request);
                // Who has heard enough hangs up.
                let _ =
                    stream.write_all(answer.head.as_bytes()).and_then(|()| stream.write_all(&answer.body));
                if answer.hold {
                    let _ = stream.read(&mut [0]);
                }
            }
        });
        Self { url, asked }
    }

    /// A server of one file.
    fn of(
        file: &[u8],
        mut script: impl FnMut(usize, &ReceivedRequest, &[u8]) -> Answer + Send + 'static,
    ) -> Self {
        let file = file.to_vec();
        Self::new(move |n, asked| script(n, asked, &file))
    }

    fn asked(&self) -> Vec<ReceivedRequest> {
        self.asked.lock().unwrap().clone()
    }

    fn ranges(&self) -> Vec<Option<usize>> {
        self.asked().into_iter().map(|a| a.from).collect()
    }
}

fn read_request(stream: &TcpStream) -> Option<ReceivedRequest> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut asked = ReceivedRequest { path, from: None, if_range: None };
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.from = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "if-range" => asked.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(asked)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An entry under whatever name, which a tar writer would refuse.
fn entry(tar: &mut Vec<u8>, name: &str, kind: tar::EntryType, link: &str, size: u64, content: &[u8]) {
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

fn file(tar: &mut Vec<u8>, name: &str, content: &[u8]) {
    entry(tar, name, tar::EntryType::Regular, "", content.len() as u64, content);
}

fn packed(mut tar: Vec<u8>) -> Vec<u8> {
    tar.resize(tar.len() + 1024, 0);
    gzip(&tar)
}

/// Bytes that do not compress.
fn noise(n: usize, seed: u32) -> Vec<u8> {
    let blocks = (0..n as u32).step_by(16).flat_map(|i| Md5::digest((i ^ (seed << 20)).to_le_bytes()));
    blocks.take(n).collect()
}

/// An archive as the official one: two pictures, a folder, and what macOS leaves.
fn pets(seed: u32) -> Vec<u8> {
    let mut tar = Vec::new();
    entry(&mut tar, "images/", tar::EntryType::Directory, "", 0, b"");
    file(&mut tar, "./images/Abyssinian_1.jpg", &noise(40_000, seed));
    file(&mut tar, "._images", b"macOS");
    file(&mut tar, "images/more/._Bengal_2.jpg", b"macOS");
    file(&mut tar, "images/more/Bengal_2.jpg", &noise(20_000, seed + 1));
    packed(tar)
}

fn archive(bytes: &[u8]) -> Archive {
    let md5: String = Md5::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
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

/// Every file below `dir`, but for the lock of some systems.
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
fn assert_whole(dir: &Path, seed: u32) {
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
fn what_is_there_whole_is_not_fetched_again() {
    let (bytes, dir) = (pets(1), temp());
    let server = Server::of(&bytes, |_, asked, file| serve(file, "a", asked));
    let events = get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 1);
    let total = bytes.len() as u64;
    assert!(events.contains(&Event::Fetching(total, Some(total))));
    assert!(events.iter().any(|e| matches!(e, Event::Unpacking(_, t) if *t == total)));
    assert_eq!(events.last(), Some(&Event::Ready { files: 2, bytes: 60_000, before: false }));
    assert_eq!(server.asked()[0].path, "/images.tar.gz");

    let events = get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_eq!(events, [Event::Ready { files: 2, bytes: 60_000, before: true }]);
    // The archive alone is enough, and the folder alone too.
    fs::remove_dir_all(dir.path().join("images")).unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 1);
    fs::remove_file(dir.path().join("images.tar.gz")).unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_eq!(server.asked().len(), 1);
    // A damaged archive is not.
    fs::remove_dir_all(dir.path().join("images")).unwrap();
    fs::write(dir.path().join("images.tar.gz"), &bytes[..1000]).unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 1);
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn what_broke_off_goes_on_where_it_ended() {
    let (bytes, dir) = (pets(1), temp());
    let server = Server::of(&bytes, |n, asked, file| match n {
        0 | 1 => broken(serve(file, "a", asked), 10_000),
        _ => serve(file, "a", asked),
    });
    let events = get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 1);
    assert_eq!(server.ranges(), [None, Some(10_000), Some(20_000)]);
    assert!(server.asked()[1..].iter().all(|a| a.if_range.as_deref() == Some("\"a\"")));
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Retry(..))).count(), 2);
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let (bytes, dir) = (pets(1), temp());
    let server = Server::of(&bytes, |n, asked, file| match n {
        0 => Answer { hold: true, ..broken(serve(file, "a", asked), 10_000) },
        _ => serve(file, "a", asked),
    });
    let retry_policy = RetryPolicy { idle_timeout: Duration::from_millis(300), ..QUICK };
    get_with(&archive(&bytes), &server.url, dir.path(), &retry_policy).unwrap();
    assert_whole(dir.path(), 1);
    assert_eq!(server.ranges(), [None, Some(10_000)]);
}

#[test]
fn the_checksum_decides_what_a_false_length_does_not() {
    // All came, and more was announced.
    let (bytes, dir) = (pets(1), temp());
    let longer = |_: usize, _: &ReceivedRequest, file: &[u8]| {
        answer("200 OK", &[format!("Content-Length: {}", file.len() + 5000)], file)
    };
    let server = Server::of(&bytes, longer);
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 1);
    assert_eq!(server.asked().len(), 1);

    // Another file came, and more was announced: each attempt fails as the first.
    let dir = temp();
    let server = Server::of(&pets(2), longer);
    let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err().to_string();
    assert!(error.contains("images.tar.gz: ") && error.contains("gave up after 4 attempts"), "{error}");
    assert_eq!(files(dir.path()), ["images.tar.gz.part", "images.tar.gz.part.validator"]);

    // Less was announced than came.
    let dir = temp();
    let server = Server::of(&bytes, |_, _, file| answer("200 OK", &["Content-Length: 9000".into()], file));
    let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err();
    assert!(matches!(error, Error::Checksum { bytes: 9000, .. }), "{error}");
    assert_eq!(files(dir.path()), [""; 0]);
}

#[test]
fn a_server_that_ignores_ranges_sends_all_again() {
    let (bytes, dir) = (pets(1), temp());
    let server = Server::of(&bytes, |n, asked, file| {
        let whole = serve(file, "a", &ReceivedRequest { from: None, ..asked.clone() });
        if n == 0 { broken(whole, 10_000) } else { whole }
    });
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 1);
    assert_eq!(server.ranges(), [None, Some(10_000)]);
}

#[test]
fn pieces_of_different_files_are_not_joined() {
    let (old, new) = (pets(1), pets(2));
    // The server heeds If-Range.
    let dir = temp();
    let (a, b) = (old.clone(), new.clone());
    let server = Server::new(move |n, asked| match n {
        0 => broken(serve(&a, "a", asked), 10_000),
        _ => serve(&b, "b", asked),
    });
    get(&archive(&new), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 2);
    assert_eq!(server.ranges(), [None, Some(10_000)]);

    // It does not, or sends another piece than asked for: all anew.
    for shift in [0, 7] {
        let dir = temp();
        let (a, b) = (old.clone(), new.clone());
        let server = Server::new(move |n, asked| match n {
            0 => broken(serve(&a, "a", asked), 10_000),
            1 => serve(
                &b,
                "b",
                &ReceivedRequest { from: Some(10_000 + shift), if_range: None, ..asked.clone() },
            ),
            _ => serve(&b, "b", asked),
        });
        get(&archive(&new), &server.url, dir.path()).unwrap();
        assert_whole(dir.path(), 2);
        assert_eq!(server.ranges(), [None, Some(10_000), None]);
    }

    // What is here is longer than the server's file.
    let dir = temp();
    fs::write(dir.path().join("images.tar.gz.part"), noise(200_000, 0)).unwrap();
    let server = Server::of(&new, |_, asked, file| serve(file, "b", asked));
    get(&archive(&new), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 2);
    assert_eq!(server.ranges(), [Some(200_000), None]);
}

#[test]
fn a_wrong_checksum_is_one_line_and_leaves_nothing() {
    let (wanted, sent) = (archive(&pets(1)), pets(2));
    let expected = format!(
        "expected a file of MD5 {}, found {} bytes of MD5 {}",
        wanted.md5,
        sent.len(),
        archive(&sent).md5
    );
    // At once; in two pieces, then once more from the beginning, in two pieces again.
    for (pieces, ranges) in [(1, vec![None]), (2, vec![None, Some(10_000), None, Some(10_000)])] {
        let dir = temp();
        let server = Server::of(&sent, move |n, asked, file| {
            let whole = serve(file, "a", asked);
            if pieces == 2 && n % 2 == 0 { broken(whole, 10_000) } else { whole }
        });
        let error = get(&wanted, &server.url, dir.path()).unwrap_err().to_string();
        assert!(error.ends_with(&expected) && error.contains("/images.tar.gz: "), "{error}");
        assert_eq!(server.ranges(), ranges);
        assert_eq!(files(dir.path()), [""; 0]);
    }
}

#[test]
fn what_is_not_there_is_asked_for_once_and_what_is_busy_again() {
    let (bytes, dir) = (pets(1), temp());
    for status in ["404 Not Found", "403 Forbidden", "501 Not Implemented"] {
        let server = Server::new(move |_, _| answer(status, &[], b"no"));
        let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err().to_string();
        assert_eq!(error, format!("{}/images.tar.gz: the server answers {status}", server.url));
        assert_eq!(server.asked().len(), 1);
        assert_eq!(files(dir.path()), [""; 0]);
    }
    let server = Server::of(&bytes, |n, asked, file| match n {
        0 => answer("503 Service Unavailable", &[], b"later"),
        1 => answer("429 Too Many Requests", &["Retry-After: 1".into()], b""),
        2 => answer("502 Bad Gateway", &["Retry-After: 1000000".into()], b""),
        _ => serve(file, "a", asked),
    });
    let retry_policy = RetryPolicy { max_backoff: Duration::from_secs(1), ..QUICK };
    let start = Instant::now();
    let events = get_with(&archive(&bytes), &server.url, dir.path(), &retry_policy).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_whole(dir.path(), 1);
    let waits: Vec<Duration> = events
        .iter()
        .filter_map(|e| if let Event::Retry(_, wait) = e { Some(*wait) } else { None })
        .collect();
    assert!((QUICK.initial_backoff / 2..=QUICK.initial_backoff).contains(&waits[0]), "{waits:?}");
    assert_eq!(waits[1..], [Duration::from_secs(1); 2]);

    // Never there at all: a port that nothing listens on.
    let url = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let error = get(&archive(&bytes), &url, temp().path()).unwrap_err().to_string();
    assert!(error.ends_with("gave up after 4 attempts"), "{error}");
}

#[test]
fn redirections_are_followed_but_not_in_circles() {
    let (bytes, dir) = (pets(1), temp());
    let server = Server::of(&bytes, |n, asked, file| match asked.path.as_str() {
        "/images.tar.gz" => answer("302 Found", &["Location: /moved".into()], b""),
        _ if n < 2 => broken(serve(file, "a", asked), 10_000),
        _ => serve(file, "a", asked),
    });
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 1);
    assert_eq!(server.ranges(), [None, None, Some(10_000), Some(10_000)]);

    let server = Server::new(|_, _| answer("301 Moved Permanently", &["Location: /again".into()], b""));
    let error = get(&archive(&bytes), &server.url, temp().path()).unwrap_err().to_string();
    assert!(error.contains("too many redirects"), "{error}");
    assert_eq!(server.asked().len(), 6);
}

#[test]
fn more_than_there_can_be_is_refused() {
    let bytes = pets(1);
    let small = Archive { max_bytes: 1000, ..archive(&bytes) };
    // Announced, and not announced.
    let announced = Server::of(&bytes, |_, asked, file| serve(file, "a", asked));
    let endless = Server::of(&pets(2), |_, _, file| answer("200 OK", &[], file));
    for server in [announced, endless] {
        let error = get(&small, &server.url, temp().path()).unwrap_err().to_string();
        assert!(error.contains("expected at most 1000 bytes"), "{error}");
    }
    // More than any disk.
    let large = Archive { max_bytes: u64::MAX, ..archive(&bytes) };
    let server = Server::new(|_, _| answer("200 OK", &[format!("Content-Length: {}", 1u64 << 60)], b""));
    let error = get(&large, &server.url, temp().path()).unwrap_err();
    assert!(matches!(error, Error::Disk { .. }), "{error}");
}

#[test]
fn archives_that_mean_harm_are_refused_and_leave_nothing() {
    use tar::EntryType::{Block, Fifo, GNULongName, Link, Regular, Symlink};
    let with = |name: &str, kind, link: &str, size: u64, content: &[u8]| {
        let mut tar = Vec::new();
        file(&mut tar, "images/good.jpg", b"good");
        entry(&mut tar, name, kind, link, size, content);
        packed(tar)
    };
    let zeros = vec![0; 4 << 20];
    let twice = with("images/good.jpg", Regular, "", 4, b"evil");
    let through = {
        let mut tar = Vec::new();
        entry(&mut tar, "images/link", Symlink, "..", 0, b"");
        file(&mut tar, "images/link/evil", b"evil");
        packed(tar)
    };
    let empty = {
        let mut tar = Vec::new();
        entry(&mut tar, "images/", tar::EntryType::Directory, "", 0, b"");
        packed(tar)
    };
    for (bytes, says) in [
        (with("images/../../evil", Regular, "", 4, b"evil"), "points outside"),
        (with("../evil", Regular, "", 4, b"evil"), "points outside"),
        (with("/tmp/evil", Regular, "", 4, b"evil"), "points outside"),
        (with("elsewhere/evil", Regular, "", 4, b"evil"), "is not in images/"),
        (with("images/a\\..\\evil", Regular, "", 4, b"evil"), "is no name for a file"),
        (with("images/.unpacked.json", Regular, "", 2, b"{}"), "in use"),
        (with("images/link", Symlink, "/etc/passwd", 0, b""), "Symlink"),
        (with("images/link", Link, "images/good.jpg", 0, b""), "Link"),
        (with("images/fifo", Fifo, "", 0, b""), "Fifo"),
        (with("images/disk", Block, "", 0, b""), "Block"),
        (through, "Symlink"),
        (twice, "twice"),
        // Bombs: in a file, in what no file is made of, in a name that is kept in memory, and one that only says that it is one.
        (with("images/bomb", Regular, "", zeros.len() as u64, &zeros), "unpacks to more than"),
        (with("._bomb", Regular, "", zeros.len() as u64, &zeros), "unpacks to more than"),
        (with("bomb", GNULongName, "", zeros.len() as u64, &zeros), "longer than any that is needed"),
        (with("images/liar", Regular, "", u64::from(u32::MAX), b""), "unpacks to more than"),
        (with("images/short", Regular, "", 100_000, b"short"), "images/short"),
        (empty, "there is no file in it"),
        (gzip(b"this is no archive, but longer than a header, ".repeat(20).as_slice()), "images.tar.gz: "),
        (b"this is nothing at all".to_vec(), "images.tar.gz: "),
        (pets(1)[..20_000].to_vec(), "images.tar.gz: "),
    ] {
        let outer = temp();
        let dir = outer.path().join("pets");
        let server = Server::of(&bytes, |_, asked, file| serve(file, "a", asked));
        let error = get(&archive(&bytes), &server.url, &dir).unwrap_err();
        assert!(matches!(error, Error::Archive { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{says}: {error}");
        assert_eq!(files(outer.path()), ["pets/images.tar.gz"], "{says}");
        assert!(!Path::new("/tmp/evil").exists());
    }
}

#[test]
fn what_is_in_the_way_is_left_alone_and_nothing_is_fetched() {
    let (bytes, dir) = (pets(1), temp());
    let server = Server::of(&bytes, |_, asked, file| serve(file, "a", asked));
    let refused = |says: &str| {
        let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err().to_string();
        assert!(error.contains("images: there is ") && error.contains(says), "{error}");
    };
    let mine = dir.path().join("images/mine.jpg");
    fs::create_dir(dir.path().join("images")).unwrap();
    fs::write(&mine, "precious").unwrap();
    refused("something else");
    assert_eq!(files(dir.path()), ["images/mine.jpg"]);
    assert_eq!(server.asked().len(), 0);
    fs::remove_dir_all(dir.path().join("images")).unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    // A file less, a file more, another archive.
    let cat = dir.path().join("images/Abyssinian_1.jpg");
    let away = dir.path().join("away");
    fs::rename(&cat, &away).unwrap();
    refused("1 files of");
    fs::rename(&away, &cat).unwrap();
    fs::write(&mine, "precious").unwrap();
    refused("3 files of");
    fs::remove_file(&mine).unwrap();
    // A record of as many files as there are numbers for.
    let record = dir.path().join("images/.unpacked.json");
    let true_record = fs::read_to_string(&record).unwrap();
    let altered = true_record.replace("\"files\": 2", &format!("\"files\": {}", u64::MAX));
    assert_ne!(altered, true_record);
    fs::write(&record, altered).unwrap();
    refused("2 files of");
    fs::write(&record, true_record).unwrap();
    let error = get(&archive(&pets(2)), &server.url, dir.path()).unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
    assert_whole(dir.path(), 1);
    assert_eq!(server.asked().len(), 1);

    let lock = if cfg!(unix) { dir.path().to_owned() } else { dir.path().join(".download.lock") };
    let lock = fs::File::open(lock).unwrap();
    lock.lock().unwrap();
    let error = get(&archive(&bytes), &server.url, dir.path()).unwrap_err();
    assert!(matches!(error, Error::Busy(_)), "{error}");
}

fn cats(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tiny-cats"));
    command.args(["data", "download"]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_killed_download_goes_on_in_the_next_run() {
    let (bytes, dir) = (pets(1), temp());
    let half = bytes.len() / 2;
    let server = Server::of(&bytes, move |n, asked, file| match n {
        0 => Answer { hold: true, ..broken(serve(file, "a", asked), half) },
        _ => serve(file, "a", asked),
    });
    let path = dir.path().to_str().unwrap();
    let mut child = cats(&[path, "--from", &server.url]).spawn().unwrap();
    let part = dir.path().join("images.tar.gz.part");
    while fs::metadata(&part).map_or(0, |m| m.len()) < half as u64 && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    // SIGKILL, where there are signals.
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::metadata(&part).unwrap().len(), half as u64);
    // What a run killed while unpacking would have left.
    fs::create_dir(dir.path().join(".unpacking-images")).unwrap();
    fs::write(dir.path().join(".unpacking-images/Abyssinian_1.jpg"), "half").unwrap();
    get(&archive(&bytes), &server.url, dir.path()).unwrap();
    assert_whole(dir.path(), 1);
    assert_eq!(server.ranges(), [None, Some(half)]);
    assert_eq!(server.asked()[1].if_range.as_deref(), Some("\"a\""));
}

#[test]
fn the_command_takes_the_official_files_only_and_says_whose_they_are() {
    let dir = temp();
    let path = dir.path().to_str().unwrap();
    let run = |url: &str| {
        let output = cats(&[path, "--from", url]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("CC BY-SA 4.0") && said.contains("Parkhi"), "{said}");
        let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && said.ends_with(&format!("{}\n", errors[0])), "{said}");
        errors[0].to_owned()
    };
    let server = Server::new(|_, _| answer("404 Not Found", &[], b""));
    assert!(run(&server.url).ends_with("/images.tar.gz: the server answers 404 Not Found"));
    let server = Server::of(&pets(1), |_, asked, file| serve(file, "a", asked));
    let error = run(&server.url);
    assert!(error.contains("5c4f3ee8e5d25df40f4fd59a7f44e54c"), "{error}");
    assert_eq!(files(dir.path()), [""; 0]);
    assert!(OXFORD_PETS_URL.starts_with("https://"));
    assert_eq!(OXFORD_PETS.map(|a| a.name), ["images", "annotations"]);
}
