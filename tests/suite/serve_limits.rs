//! Limits of the HTTP server: body sizes, the Host header and idle connections.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::json;
use tiny_cats::serve::{Config, Shutdown, WebDemo};

use crate::common::http::{Response, TestServer, classifier, generator, read_response, start_request};

fn start_server(config: Config) -> TestServer {
    TestServer::new(Config { demo: WebDemo::None, ..config }, Some(generator()), Some(classifier()))
}

/// Sends `bytes` and reads the response, without closing the connection for writing.
fn send_bytes(server: &TestServer, bytes: &[u8]) -> Response {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(bytes).unwrap();
    read_response(stream)
}

#[test]
fn an_oversized_body_is_rejected_before_it_is_read() {
    let server = start_server(Config { max_body: 1 << 20, ..Config::default() });
    let form = "multipart/form-data; boundary=mark";
    for (path, content_type, length) in [
        ("/v1/generate", "application/json", (1u64 << 16) + 1),
        ("/v1/generate", "application/json", 1 << 62),
        ("/v1/classify", "image/png", (1 << 20) + 1),
        ("/v1/classify", "image/png", 1 << 40),
        ("/v1/classify", form, (1 << 20) + 1),
        ("/healthz", "text/plain", 1 << 40),
    ] {
        // The body is never sent.
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {content_type}\r\n\
             content-length: {length}\r\n\r\n"
        );
        let rejected = send_bytes(&server, head.as_bytes());
        assert_eq!(rejected.status, 413, "{path} {length}: {}", rejected.text());
        assert!(rejected.text().contains(&length.to_string()), "{}", rejected.text());
    }
    // A chunked body is rejected as soon as it exceeds the limit, before its end.
    let chunk = [b"20000\r\n" as &[u8], &vec![b'x'; 0x20000], b"\r\n"].concat();
    let field = b"--mark\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n";
    let field = [format!("{:x}\r\n", field.len()).as_bytes(), field, b"\r\n"].concat();
    for (path, content_type, first_chunk) in [
        ("/v1/generate", "application/json", &b""[..]),
        ("/v1/classify", "image/png", b""),
        ("/v1/classify", form, &field[..]),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        );
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(&[head.as_bytes(), first_chunk].concat()).unwrap();
        // Writing fails if the server closes the connection early.
        let _ = (0..10).try_for_each(|_| stream.write_all(&chunk));
        let rejected = read_response(stream);
        assert_eq!(rejected.status, 413, "{path} {content_type}: {}", rejected.text());
    }
}

#[test]
fn a_request_has_exactly_one_valid_host() {
    let server = start_server(Config::default());
    let status = |version: &str, hosts: &[&[u8]]| {
        let mut bytes = format!("GET /healthz HTTP/{version}\r\nconnection: close\r\n").into_bytes();
        hosts.iter().for_each(|host| bytes.extend([b"host: ", *host, b"\r\n"].concat()));
        bytes.extend(b"\r\n");
        let response = send_bytes(&server, &bytes);
        (response.status, response.text())
    };
    for host in [&b"localhost"[..], b"127.0.0.1:8080", b"[::1]:1", b"LOCALHOST:80"] {
        assert_eq!(status("1.1", &[host]).0, 200);
    }
    // HTTP/1.0 requests need no Host header.
    assert_eq!(status("1.0", &[]).0, 200);
    let invalid: [&[&[u8]]; 9] = [
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
    for hosts in invalid {
        let (status, text) = status("1.1", hosts);
        assert!(status == 400 && text.contains("Host"), "{hosts:?}: {status} {text}");
    }
    assert_eq!(status("1.1", &[b"evil.example"]).0, 403);
}

#[test]
fn idle_connections_do_not_block_others() {
    let max_connections = 16;
    let server = start_server(Config { max_connections, ..Config::default() });
    let idle = || {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // An incomplete request.
        stream.write_all(b"GET /healthz HT").unwrap();
        stream
    };
    // An active request is never closed to make room.
    let body = json!({"seed": 1, "count": 1, "steps": 250, "stream": true}).to_string();
    let kind = [("content-type", "application/json")];
    let mut long = start_request(server.address, "POST", "/v1/generate", &kind, body.as_bytes());
    let mut buffer = [0; 20];
    long.read_exact(&mut buffer).unwrap();
    let mut waiting: Vec<TcpStream> = Vec::new();
    for _ in 0..4 * max_connections {
        waiting.extend([TcpStream::connect(server.address).unwrap(), idle()]);
        assert_eq!(server.get("/healthz").status, 200);
    }
    // The oldest idle connections were closed; the newest one gets its response.
    let mut oldest = waiting.swap_remove(0);
    oldest.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(oldest.read(&mut buffer).unwrap_or_default(), 0);
    let mut last = idle();
    last.write_all(b"TP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    assert_eq!(read_response(last).status, 200);
    assert!(server.metric("tiny_cats_connections") <= max_connections as u64);
    drop(waiting);
    let mut rest = String::new();
    long.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("event: done"), "{rest}");
    assert_eq!(server.shut_down(), Shutdown::Graceful);
}
