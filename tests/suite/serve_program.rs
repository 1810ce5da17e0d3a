//! `tiny-cats serve`.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::common::http::{generator, send_request};

const JSON: &str = "application/json";

/// Starts the program and waits for the line with its address.
#[cfg(unix)]
fn spawn(folder: &Path, args: &[&str]) -> (std::process::Child, std::net::SocketAddr) {
    use std::{io::BufRead, process::Stdio};
    let mut child = std::process::Command::new(crate::common::CATS)
        .args([&["serve", "--port", "0"], args].concat())
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening at http://").and_then(|rest| rest.strip_suffix('/'));
    let address = address.and_then(|address| address.parse().ok());
    (child, address.unwrap_or_else(|| panic!("{line:?}")))
}

#[cfg(unix)]
#[test]
fn the_program_serves_the_released_models_until_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let (child, address) = spawn(folder.path(), &["--max-batch", "4"]);
    // Models are not served before they are verified.
    let early = send_request(address, "GET", "/readyz", &[], b"").status;
    let start = Instant::now();
    while send_request(address, "GET", "/readyz", &[], b"").status != 200 {
        assert!(start.elapsed() < Duration::from_secs(120), "the server is not ready after 120 s");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(early == 503 || start.elapsed() < Duration::from_millis(100), "{early}");
    let body = br#"{"breed": "Siamese", "seed": 7, "steps": 2, "format": "png"}"#;
    let response = send_request(address, "POST", "/v1/generate", &[("content-type", JSON)], body);
    assert_eq!(response.status, 200);
    crate::common::succeeds(
        crate::common::CATS,
        folder.path(),
        &["generate", "--breed", "Siamese", "--seed", "7", "--steps", "2", "-n", "1", "-o", "cats/"],
    );
    let expected = image::open(folder.path().join("cats/Siamese_seed7_0000.png")).unwrap().into_rgb8();
    assert!(image::load_from_memory(&response.body).unwrap().into_rgb8() == expected);
    crate::common::background_run::signal(child.id() as i32, libc::SIGTERM);
    let output = child.wait_with_output().unwrap();
    let log = crate::common::text(&output);
    assert!(output.status.success() && log.contains("all accepted requests were answered"), "{log}");
    assert!(log.contains("path=\"/v1/generate\" status=200"), "{log}");
    assert!(log.contains("model=\"tinydit\" integrity="), "{log}");
}

#[test]
fn invalid_models_and_arguments_give_one_line_errors() {
    let folder = tempfile::tempdir().unwrap();
    let (_, model) = generator();
    let mut bytes = model.graph().unwrap().bytes().to_vec();
    // One weight becomes a NaN.
    let value = model.weights().unwrap()["blocks.1.attn.qkv.weight"].data()[5].to_le_bytes();
    let at = bytes.windows(4).position(|four| four == value).expect("the weight");
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(folder.path().join("altered.onnx"), &bytes).unwrap();
    // Without the digest, as another program might write it.
    let key = tiny_cats_export::DIGEST_KEY.as_bytes();
    let at = bytes.windows(key.len()).position(|w| w == key).expect("a digest");
    bytes[at..at + key.len()].fill(b'-');
    std::fs::write(folder.path().join("bad.onnx"), bytes).unwrap();
    std::fs::write(folder.path().join("token"), "two words\n").unwrap();
    let fails = |args: &[&str]| {
        crate::common::fails(crate::common::CATS, folder.path(), &[&["serve", "--port", "0"], args].concat())
    };
    let message = fails(&["--model", "bad.onnx", "--no-classifier"]);
    assert!(message.contains("blocks.1.attn.qkv.weight") && message.contains("not finite"), "{message}");
    for (args, expected) in [
        (&["--model", "none.onnx"][..], "none.onnx: "),
        (&["--model", "altered.onnx"], "altered.onnx: tiny-cats.sha256: the checksum does not match"),
        (&["--classifier", "bad.onnx"], "bad.onnx: task: expected a classifier"),
        (&["--web", "."], "index.html: expected a built web demo"),
        (&["--token-file", "token"], "token: expected a token"),
        (&["--cors-origin", "example.org"], "--cors-origin example.org: expected"),
        (&["--cors-origin", "https://a/b"], "--cors-origin https://a/b: expected"),
        (&["--queue", "8", "--max-count", "9"], "--max-count 9: expected at most --queue, 8"),
        (&["--no-generator", "--no-classifier", "--no-web"], "nothing is left to serve"),
    ] {
        let message = fails(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (host, port) = address.rsplit_once(':').unwrap();
    let message =
        crate::common::fails(crate::common::CATS, folder.path(), &["serve", "--host", host, "--port", port]);
    assert!(message.contains(&format!("{address}: cannot listen: ")), "{message}");
}
