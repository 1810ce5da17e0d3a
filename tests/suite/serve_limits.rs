//! What the HTTP server takes from its clients: lengths, names of itself, connections that wait.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::json;
use tiny_cats::serve::{Config, Shutdown, WebDemo};

use crate::common::http::{Answer, TestServer, answer, begin, classifier, generator};

fn served(config: Config) -> TestServer {
    TestServer::new(Config { demo: WebDemo::None, ..config }, Some(generator()), Some(classifier()))
}

/// Sends these bytes, and waits for the answer while the connection stays open for more.
fn raw(served: &TestServer, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(bytes).unwrap();
    answer(stream)
}

#[test]
fn a_body_that_is_declared_to_be_too_long_is_refused_before_it_is_sent() {
    let served = served(Config { max_body: 1 << 20, ..Config::default() });
    let form = "multipart/form-data; boundary=mark";
    for (path, content_type, length) in [
        ("/v1/generate", "application/json", (1u64 << 16) + 1),
        ("/v1/generate", "application/json", 1 << 62),
        ("/v1/classify", "image/png", (1 << 20) + 1),
        ("/v1/classify", "image/png", 1 << 40),
        ("/v1/classify", form, (1 << 20) + 1),
        ("/healthz", "text/plain", 1 << 40),
    ] {
        // None of the body comes.
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {content_type}\r\n\
             content-length: {length}\r\n\r\n"
        );
        let refused = raw(&served, head.as_bytes());
        assert_eq!(refused.status, 413, "{path} {length}: {}", refused.text());
        assert!(refused.text().contains(&length.to_string()), "{}", refused.text());
    }
    // Of undeclared length: as soon as more has come, and before its end.
    let part = [b"20000\r\n" as &[u8], &vec![b'x'; 0x20000], b"\r\n"].concat();
    let field = b"--mark\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n";
    let field = [format!("{:x}\r\n", field.len()).as_bytes(), field, b"\r\n"].concat();
    for (path, content_type, before) in [
        ("/v1/generate", "application/json", &b""[..]),
        ("/v1/classify", "image/png", b""),
        ("/v1/classify", form, &field[..]),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        );
        let mut stream = TcpStream::connect(served.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(&[head.as_bytes(), before].concat()).unwrap();
        // The server may close the connection before it has got all of this.
        let _ = (0..10).try_for_each(|_| stream.write_all(&part));
        let refused = answer(stream);
        assert_eq!(refused.status, 413, "{path} {content_type}: {}", refused.text());
    }
}

#[test]
fn a_request_names_one_host_that_can_be_read() {
    let served = served(Config::default());
    let status = |version: &str, hosts: &[&[u8]]| {
        let mut bytes = format!("GET /healthz HTTP/{version}\r\nconnection: close\r\n").into_bytes();
        hosts.iter().for_each(|host| bytes.extend([b"host: ", *host, b"\r\n"].concat()));
        bytes.extend(b"\r\n");
        let answer = raw(&served, &bytes);
        (answer.status, answer.text())
    };
    for host in [&b"localhost"[..], b"127.0.0.1:8080", b"[::1]:1", b"LOCALHOST:80"] {
        assert_eq!(status("1.1", &[host]).0, 200);
    }
    // Only HTTP/1.0 knows requests without one.
    assert_eq!(status("1.0", &[]).0, 200);
    let wrong: [&[&[u8]]; 9] = [
        &[],
        &[b""],
        &[b"  "],
        &[b"localhost", b"localhost"],
        &[b"localhost", b"evil.example"],
        &[b"\xff\xfe"],
        &[b"loc\xc3\xa4lhost"],
        &[b"me@localhost"],
        &[b"local host"],
    ];
    for hosts in wrong {
        let (status, text) = status("1.1", hosts);
        assert!(status == 400 && text.contains("Host"), "{hosts:?}: {status} {text}");
    }
    assert_eq!(status("1.1", &[b"evil.example"]).0, 403);
}

#[test]
fn connections_that_ask_for_nothing_keep_nobody_out() {
    let most = 16;
    let served = served(Config { max_connections: most, ..Config::default() });
    let idle = || {
        let mut stream = TcpStream::connect(served.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // Half of them have begun to ask for something.
        stream.write_all(b"GET /healthz HT").unwrap();
        stream
    };
    // A request that is being answered is not closed for others.
    let body = json!({"seed": 1, "count": 1, "steps": 250, "stream": true}).to_string();
    let kind = [("content-type", "application/json")];
    let mut long = begin(served.address, "POST", "/v1/generate", &kind, body.as_bytes());
    let mut some = [0; 20];
    long.read_exact(&mut some).unwrap();
    let mut waiting: Vec<TcpStream> = Vec::new();
    for _ in 0..4 * most {
        waiting.extend([TcpStream::connect(served.address).unwrap(), idle()]);
        assert_eq!(served.get("/healthz").status, 200);
    }
    // Those that have waited longest were closed, the last is answered.
    let mut oldest = waiting.swap_remove(0);
    oldest.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(oldest.read(&mut some).unwrap_or_default(), 0);
    let mut last = idle();
    last.write_all(b"TP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    assert_eq!(answer(last).status, 200);
    assert!(served.metric("tiny_cats_connections") <= most as u64);
    drop(waiting);
    let mut rest = String::new();
    long.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("event: done"), "{rest}");
    assert_eq!(served.end(), Shutdown::Finished);
}
