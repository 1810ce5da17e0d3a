//! The HTTP server from its clients' side.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    http::{BREEDS, TestServer, classifier, generator, read_response, send_request, start_request},
    images::png_with_truncated_palette,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};
use tiny_cats::{
    data::synth,
    serve::{Config, Shutdown, WebDemo},
};
use tiny_cats_export::{
    Breed, Classifier, Generator, Integrity, LoadOptions, Request, Sampler, contact_sheet,
};

const JSON: &str = "application/json";

/// A server that tests share and never shut down.
static SERVER: LazyLock<TestServer> = LazyLock::new(|| {
    let config =
        Config { max_body: 1 << 20, max_pixels: 1_000_000, demo: WebDemo::Embedded, ..Config::default() };
    let (name, model) = classifier();
    let classifier = (name, model.with_integrity(Integrity::Verified));
    TestServer::new(config, Some(generator()), Some(classifier))
});

fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn decode(base64: &Value) -> RgbImage {
    let png = BASE64_STANDARD.decode(base64.as_str().expect("base64")).expect("base64");
    image::load_from_memory(&png).expect("a PNG file").into_rgb8()
}

/// A form with `files` in fields called `image`.
fn form(files: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, bytes) in files {
        let head =
            format!("--mark\r\ncontent-disposition: form-data; name=\"image\"; filename=\"{name}\"\r\n\r\n");
        body.extend([head.as_bytes(), bytes, b"\r\n"].concat());
    }
    body.extend(b"--mark--\r\n");
    ("multipart/form-data; boundary=mark".into(), body)
}

/// A request that takes the small model a while.
fn long_request() -> Value {
    json!({"seed": 1, "count": 2, "steps": 250})
}

#[test]
fn concurrent_requests_give_the_same_images_as_the_library() {
    let (_, model) = generator();
    let mut library = Generator::from_model(&model, &LoadOptions::default()).unwrap();
    // The requests differ in every parameter, and exceed a batch.
    let requests: Vec<Request> = (0..12)
        .map(|i| Request {
            breed: if i % 4 == 0 { Breed::All } else { Breed::Named(BREEDS[i % 3].into()) },
            count: 1 + i % 5,
            seed: 100 + i as u64,
            steps: Some(1 + i % 7),
            sampler: Some([Sampler::Heun, Sampler::Euler, Sampler::Midpoint][i % 3]),
            guidance: Some([1.0, 2.0, 4.5][i / 3 % 3]),
            guidance_interval: None,
        })
        .collect();
    let responses: Vec<Value> = thread::scope(|scope| {
        let send = |request: &Request| {
            let breed = match &request.breed {
                Breed::All => "all",
                Breed::Named(name) => name,
            };
            let response = SERVER.generate(&json!({
                "breed": breed, "count": request.count, "steps": request.steps, "guidance": request.guidance,
                "sampler": request.sampler.map(|sampler| sampler.to_string()), "seed": request.seed,
            }));
            assert_eq!(response.status, 200, "{}", response.text());
            response.json()
        };
        let threads: Vec<_> = requests.iter().map(|request| scope.spawn(move || send(request))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (request, response) in requests.iter().zip(responses) {
        let expected = library.generate(request).unwrap();
        let found = response["pictures"].as_array().unwrap();
        assert_eq!(found.len(), expected.len());
        assert_eq!((&response["seed"], &response["model"]), (&json!(request.seed), &json!("small")));
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found["breed"], expected.class);
            assert_eq!(found["index"], expected.index);
            assert!(decode(&found["png"]) == expected.image, "{request:?}, image {}", expected.index);
        }
    }
}

#[test]
fn images_are_sent_alone_as_a_grid_or_as_part_of_a_series() {
    let (_, model) = generator();
    let mut library = Generator::from_model(&model, &LoadOptions::default()).unwrap();
    let request = Request { count: 5, steps: Some(3), seed: 9, ..Request::default() };
    let images = library.generate(&request).unwrap();

    let response = SERVER.generate(&json!({"count": 5, "steps": 3, "seed": 9, "format": "grid"}));
    assert_eq!((response.header("content-type"), response.header("x-seed")), (Some("image/png"), Some("9")));
    assert!(image::load_from_memory(&response.body).unwrap().into_rgb8() == contact_sheet(&images));

    let response = SERVER.generate(&json!({"first": 4, "steps": 3, "seed": 9, "format": "png"}));
    assert!(image::load_from_memory(&response.body).unwrap().into_rgb8() == images[4].image);

    // 2.0 is accepted as an integer.
    let [integer, float] = [json!({"seed": 2, "steps": 2}), json!({"seed": 2.0, "steps": 2.0})];
    assert_eq!(SERVER.generate(&integer).json()["pictures"], SERVER.generate(&float).json()["pictures"]);

    // Without a seed, a random one is used and reported.
    let seeds: Vec<Value> =
        (0..2).map(|_| SERVER.generate(&json!({"steps": 1})).json()["seed"].clone()).collect();
    assert_ne!(seeds[0], seeds[1]);
    let again = SERVER.generate(&json!({"steps": 1, "seed": seeds[0]})).json();
    assert_eq!(again["seed"], seeds[0]);
}

#[test]
fn a_stream_reports_every_step_and_ends_with_the_result() {
    let body = json!({"count": 3, "steps": 4, "seed": 5, "breed": "sphynx"});
    let plain = SERVER.generate(&body).json();
    let mut stream_body = body;
    stream_body["stream"] = json!(true);
    let response = SERVER.generate(&stream_body);
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    let text = response.text();
    let events: Vec<(&str, Value)> = text
        .split("\n\n")
        .filter(|event| event.starts_with("event"))
        .map(|event| {
            let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
            (name, serde_json::from_str(data).unwrap())
        })
        .collect();
    let (last, steps) = events.split_last().unwrap();
    assert_eq!(last.0, "done");
    assert_eq!(last.1["pictures"], plain["pictures"]);
    assert!(!steps.is_empty() && steps.iter().all(|(name, step)| *name == "step" && step["total"] == 12));
    let done: Vec<u64> = steps.iter().map(|(_, step)| step["done"].as_u64().unwrap()).collect();
    assert!(done.is_sorted() && done.iter().all(|done| (1..=12).contains(done)), "{done:?}");
    for preview in steps.iter().flat_map(|(_, step)| step["previews"].as_array().unwrap()) {
        assert_eq!(decode(&preview["png"]).dimensions(), (32, 32));
    }
}

#[test]
fn images_are_classified_as_by_the_library_and_broken_ones_reported() {
    let (_, model) = classifier();
    let mut library = Classifier::from_model(&model, &LoadOptions::default()).unwrap();
    let images: Vec<RgbImage> = (0..3).map(|i| synth::draw(i as usize, 1, i, 60)).collect();
    let files: Vec<Vec<u8>> = images.iter().map(|image| encode(image, ImageFormat::Png)).collect();
    let expected = library.classify(&images).unwrap();
    let check = |result: &Value, i: usize, k: usize| {
        let top = result["top"].as_array().unwrap_or_else(|| panic!("{result}"));
        assert_eq!(top.len(), k);
        for (found, expected) in top.iter().zip(expected[i].top(k)) {
            assert_eq!(found["class"], expected.class);
            assert!((found["probability"].as_f64().unwrap() - expected.probability).abs() < 1e-6);
        }
    };
    for (i, file) in files.iter().enumerate() {
        // The format is detected from the contents, not from the content type.
        for content_type in ["image/png", "image/jpeg"] {
            let response = SERVER.post("/v1/classify?top_k=2", content_type, file);
            assert_eq!(response.status, 200, "{}", response.text());
            check(&response.json()["results"][0], i, 2);
        }
    }
    let (content_type, body) = form(&[
        ("a.png", &files[0]),
        ("passwd", b"root:x:0:0"),
        ("b.png", &files[1]),
        ("half.png", &files[2][..files[2].len() / 2]),
        ("empty", b""),
        ("c.png", &files[2]),
        ("palette.png", &png_with_truncated_palette()),
    ]);
    let response = SERVER.post("/v1/classify", &content_type, body).json();
    let results = response["results"].as_array().unwrap();
    for (at, i) in [(0, 0), (2, 1), (5, 2)] {
        check(&results[at], i, 3);
    }
    for (at, name, error) in [
        (1, "passwd", "not an image"),
        (3, "half.png", "broken"),
        (4, "empty", "not a"),
        (6, "palette.png", "broken"),
    ] {
        assert_eq!(results[at]["name"], name);
        assert!(results[at]["error"].as_str().unwrap().contains(error), "{}", results[at]);
    }
}

#[test]
fn invalid_requests_give_a_problem_document_with_the_field() {
    let image = encode(&RgbImage::new(20, 20), ImageFormat::Png);
    let large = encode(&RgbImage::new(1001, 1000), ImageFormat::Png);
    let generate = |body: &str| SERVER.post("/v1/generate", JSON, body);
    let (content_type, oversized_form) = form(&[("a", &image[..]); 65]);
    let mut cases = vec![
        (400, "", generate("{")),
        (400, "", SERVER.post("/v1/classify", "multipart/form-data", "x")),
        (400, "", SERVER.post("/v1/classify", "multipart/form-data; boundary=mark", "--mark\r\n")),
        (404, "", SERVER.get("/v2/generate")),
        (404, "", SERVER.get("/../../etc/passwd")),
        (404, "", SERVER.get("/%2e%2e/Cargo.toml")),
        (405, "", SERVER.get("/v1/generate")),
        (405, "", SERVER.post("/healthz", JSON, "")),
        (405, "", SERVER.post("/models.json", JSON, "")),
        (413, "", SERVER.post("/v1/classify", "image/png", vec![0; 2 << 20])),
        (415, "", SERVER.post("/v1/generate", "text/plain", "{}")),
        (415, "", SERVER.post("/v1/classify", "image/gif", &image)),
        (422, "", generate("[1, 2]")),
        (422, "body", SERVER.post("/v1/classify", "image/png", "GIF89a")),
        (422, "body", SERVER.post("/v1/classify", "image/png", large)),
        (422, "body", SERVER.post("/v1/classify", "image/png", png_with_truncated_palette())),
        (
            422,
            "image",
            SERVER.post(
                "/v1/classify",
                "multipart/form-data; boundary=mark",
                "--mark\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\nx\r\n--mark--\r\n",
            ),
        ),
        (422, "top_k", SERVER.post("/v1/classify?top_k=0", "image/png", &image)),
        (422, "top_k", SERVER.post("/v1/classify?top_k=4", "image/png", &image)),
        (422, "", SERVER.post("/v1/classify?k=1", "image/png", &image)),
        (422, "image", SERVER.post("/v1/classify", &content_type, oversized_form)),
    ];
    for (field, body) in [
        ("breed", r#"{"breed": "Maine_Cone"}"#),
        ("breed", r#"{"breed": null}"#),
        ("count", r#"{"count": 0}"#),
        ("count", r#"{"count": 65}"#),
        ("steps", r#"{"steps": 251}"#),
        ("seed", r#"{"seed": 9007199254740992}"#),
        ("first", r#"{"first": 9007199254740992}"#),
        ("guidance", r#"{"guidance": 1e9}"#),
        ("format", r#"{"format": "png", "count": 2}"#),
        ("format", r#"{"format": "grid", "stream": true}"#),
        ("", r#"{"seed": -1}"#),
        ("", r#"{"sampler": "rk4"}"#),
        ("", r#"{"size": 64}"#),
        ("", r#"{"guidance": "2"}"#),
    ] {
        cases.push((422, field, generate(body)));
    }
    for (status, field, response) in &cases {
        assert_eq!(response.status, *status, "{response:?} {}", response.text());
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        assert!(response.header("x-request-id").is_some());
        let problem = response.json();
        assert_eq!(problem["status"], *status);
        assert_eq!(problem["field"].as_str().unwrap_or_default(), *field, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.is_empty() && !detail.contains('\n'), "{detail:?}");
        if *status == 405 {
            assert!(response.header("allow").is_some());
        }
    }
    let nearest = generate(r#"{"breed": "Maine_Cone"}"#).json()["detail"].as_str().unwrap().to_owned();
    assert!(nearest.contains("did you mean Maine_Coon?"), "{nearest}");
    assert_eq!(SERVER.get("/readyz").status, 200);
}

#[test]
fn the_site_lists_the_served_models_and_sends_ranges_of_them() {
    let response = SERVER.get("/models.json").json();
    let models = response["models"].as_array().unwrap();
    let (_, model) = generator();
    let graph = model.graph().unwrap();
    assert_eq!(models[0]["kind"], "generator");
    assert_eq!(models[0]["bytes"], graph.bytes().len());
    assert_eq!(models[1]["kind"], "classifier");
    let path = format!("/{}", models[0]["url"].as_str().unwrap());

    let full = SERVER.get(&path);
    assert!(full.body == graph.bytes());
    assert_eq!(full.header("cross-origin-embedder-policy"), Some("require-corp"));
    let etag = full.header("etag").unwrap().to_owned();
    assert_eq!(etag.trim_matches('"'), models[0]["sha256"]);
    let get = |headers: &[(&str, &str)]| send_request(SERVER.address, "GET", &path, headers, b"");
    assert_eq!(get(&[("if-none-match", &etag)]).status, 304);
    let part = get(&[("range", "bytes=1000-1009"), ("if-range", &etag)]);
    assert_eq!((part.status, &part.body[..]), (206, &graph.bytes()[1000..1010]));
    let content_range = format!("bytes 1000-1009/{}", graph.bytes().len());
    assert_eq!(part.header("content-range"), Some(&content_range[..]));
    // If the client's part is of another file, the whole file is sent.
    assert_eq!(get(&[("range", "bytes=1000-1009"), ("if-range", "\"other\"")]).status, 200);
    assert_eq!(get(&[("range", "bytes=99999999-")]).status, 416);
    assert!(SERVER.get("/").text().contains("<!doctype html>"));
}

#[test]
fn a_full_queue_rejects_requests_until_clients_disconnect() {
    let config = Config { queue: 3, max_count: 3, demo: WebDemo::None, ..Config::default() };
    let server = TestServer::new(config, Some(generator()), None);
    let post = |body: &Value| {
        let body = body.to_string();
        start_request(server.address, "POST", "/v1/generate", &[("content-type", JSON)], body.as_bytes())
    };
    let first = post(&long_request());
    server.wait_for_metric("tiny_cats_waiting_pictures{model=\"small\"}", 2);
    let rejected = server.generate(&json!({"count": 2, "steps": 1}));
    assert_eq!(rejected.status, 429, "{}", rejected.text());
    assert!(rejected.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    // One image fits, and is generated before the others finish.
    assert_eq!(server.generate(&json!({"count": 1, "steps": 1})).status, 200);
    drop(first);
    server.wait_for_metric("tiny_cats_cancelled_pictures_total{model=\"small\"}", 2);
    server.wait_for_metric("tiny_cats_waiting_pictures{model=\"small\"}", 0);
    assert_eq!(server.metric("tiny_cats_requests_total{path=\"/v1/generate\",status=\"499\"}"), 1);
    assert_eq!(server.generate(&json!({"count": 3, "steps": 1})).status, 200);

    // A client disconnects after the first event of a stream.
    let mut body = long_request();
    body["stream"] = json!(true);
    let mut stream = post(&body);
    let mut buffer = [0; 100];
    stream.read_exact(&mut buffer).unwrap();
    drop(stream);
    server.wait_for_metric("tiny_cats_cancelled_pictures_total{model=\"small\"}", 4);
    server.wait_for_metric("tiny_cats_requests_total{path=\"/v1/generate\",status=\"499\"}", 2);
    server.wait_for_metric("tiny_cats_waiting_pictures{model=\"small\"}", 0);
    assert_eq!(server.shut_down(), Shutdown::Graceful);
}

#[test]
fn a_short_request_does_not_wait_for_a_long_one() {
    let server =
        TestServer::new(Config { demo: WebDemo::None, ..Config::default() }, Some(generator()), None);
    let body = json!({"count": 64, "steps": 250}).to_string();
    let long =
        start_request(server.address, "POST", "/v1/generate", &[("content-type", JSON)], body.as_bytes());
    // It fills every batch.
    server.wait_for_metric("tiny_cats_waiting_pictures{model=\"small\"}", 64);
    let evaluations = || server.metric("tiny_cats_batch_pictures_count{model=\"small\"}");
    let before = evaluations();
    assert_eq!(server.generate(&json!({"steps": 2, "count": 2})).status, 200);
    // Three evaluations of its own, and a few more while its request and response are in transit.
    assert!(evaluations() - before < 30, "{} evaluations", evaluations() - before);
    assert_eq!(server.metric("tiny_cats_waiting_pictures{model=\"small\"}"), 64);
    drop(long);
}

#[test]
fn an_unread_stream_is_canceled_at_its_timeout() {
    let config = Config { timeout: Duration::from_secs(2), demo: WebDemo::None, ..Config::default() };
    let server = TestServer::new(config, Some(generator()), None);
    let body = json!({"count": 64, "steps": 250, "stream": true}).to_string();
    let stalled =
        start_request(server.address, "POST", "/v1/generate", &[("content-type", JSON)], body.as_bytes());
    server.wait_for_metric("tiny_cats_waiting_pictures{model=\"small\"}", 64);
    server.wait_for_metric("tiny_cats_waiting_pictures{model=\"small\"}", 0);
    assert_eq!(server.metric("tiny_cats_cancelled_pictures_total{model=\"small\"}"), 64);
    drop(stalled);
}

#[test]
fn cross_origin_requests_of_browsers_are_rejected() {
    let post = |headers: &[(&str, &str)]| {
        let headers = [headers, &[("content-type", JSON)]].concat();
        send_request(SERVER.address, "POST", "/v1/generate", &headers, br#"{"steps": 1}"#).status
    };
    let own = SERVER.address.to_string();
    let page = format!("http://{own}");
    assert_eq!(post(&[("host", &own), ("origin", &page)]), 200);
    assert_eq!(post(&[("host", "localhost")]), 200);
    assert_eq!(post(&[("host", &own), ("origin", "https://evil.example")]), 403);
    assert_eq!(post(&[("host", &own), ("origin", "null")]), 403);
    // DNS rebinding: the page's own name resolves to this server.
    assert_eq!(post(&[("host", "evil.example"), ("origin", "http://evil.example")]), 403);
    assert_eq!(send_request(SERVER.address, "GET", "/", &[("host", "evil.example")], b"").status, 403);
}

#[test]
fn an_incomplete_request_does_not_delay_shutdown() {
    let server =
        TestServer::new(Config { demo: WebDemo::None, ..Config::default() }, None, Some(classifier()));
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"GET /healthz HT").unwrap();
    server.wait_for_metric("tiny_cats_connections", 2);
    let start = Instant::now();
    assert_eq!(server.shut_down(), Shutdown::Graceful);
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_folder_is_served_with_the_loaded_models_compressed_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let gzip = |bytes: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let (_, model) = generator();
    let hash = SERVER.get("/models.json").json()["models"][0]["sha256"].clone();
    let index = json!({"models": [
        {"name": "it", "sha256": hash, "card": "models/it.md"}, {"name": "other", "sha256": "00", "card": "models/other.md"},
    ]});
    write("index.html", b"<!doctype html>");
    write("models.json", index.to_string().as_bytes());
    write("models.json.gz", &gzip(index.to_string().as_bytes()));
    write("models/it.md", b"the card");
    write("models/other.md", b"another card");
    write("models/other.onnx", b"another model");
    write("ort-1/x.wasm.gz", &gzip(b"wasm"));
    write("assets/a.js", b"let a");
    write("assets/a.js.gz", &gzip(b"let a"));
    let config = Config { demo: WebDemo::Folder(folder.path().to_owned()), ..Config::default() };
    let server = TestServer::new(config, Some(generator()), None);
    let get_gzip =
        |path: &str| send_request(server.address, "GET", path, &[("accept-encoding", "gzip")], b"");

    for response in [server.get("/models.json"), get_gzip("/models.json")] {
        let models = response.json();
        assert_eq!(models["models"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&models["models"][0]["name"], &models["models"][0]["card"]),
            (&json!("small"), &json!("models/small.md"))
        );
    }
    assert_eq!(server.get("/models/small.md").text(), "the card");
    assert!(server.get("/models/small.onnx").body == model.graph().unwrap().bytes());
    assert_eq!((server.get("/models/other.onnx").status, server.get("/models/other.md").status), (404, 404));
    let plain = server.get("/ort-1/x.wasm");
    assert_eq!((plain.text().as_str(), plain.header("content-encoding")), ("wasm", None));
    assert_eq!(plain.header("content-type"), Some("application/wasm"));
    for path in ["/ort-1/x.wasm", "/assets/a.js"] {
        let response = get_gzip(path);
        assert_eq!(response.header("content-encoding"), Some("gzip"), "{path}");
        assert!(response.header("cache-control").unwrap().contains("immutable"));
        assert_ne!(response.header("etag"), server.get(path).header("etag"));
    }
    assert_eq!(server.get("/").header("cache-control"), Some("no-cache"));
}

#[test]
fn a_timed_out_request_gets_504_and_is_canceled() {
    let config = Config { timeout: Duration::from_millis(300), demo: WebDemo::None, ..Config::default() };
    let server = TestServer::new(config, Some(generator()), None);
    let start = Instant::now();
    let timed_out = server.generate(&json!({"count": 64, "steps": 250}));
    assert_eq!((timed_out.status, timed_out.json()["status"].as_u64()), (504, Some(504)));
    let mut body = long_request();
    body["count"] = json!(60);
    body["stream"] = json!(true);
    let text = server.generate(&body).text();
    assert!(text.contains("event: error") && text.contains("504"), "{}", &text[text.len().min(2000)..]);
    assert!(start.elapsed() < Duration::from_secs(20));
    server.wait_for_metric("tiny_cats_cancelled_pictures_total{model=\"small\"}", 124);
    // A body that never arrives.
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = "POST /v1/generate HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_response(stream).status, 504);
}

#[test]
fn accepted_requests_are_answered_before_shutdown() {
    let server = TestServer::new(Config::default(), Some(generator()), Some(classifier()));
    let body = json!({"steps": 12, "count": 2, "seed": 3}).to_string();
    let streams: Vec<TcpStream> = (0..8)
        .map(|_| {
            start_request(server.address, "POST", "/v1/generate", &[("content-type", JSON)], body.as_bytes())
        })
        .collect();
    server.wait_for_metric("tiny_cats_waiting_pictures{model=\"small\"}", 16);
    server.request_shutdown();
    let first = read_response(streams[0].try_clone().unwrap());
    assert_eq!(first.status, 200);
    for stream in streams.into_iter().skip(1) {
        let response = read_response(stream);
        assert_eq!(response.status, 200);
        assert_eq!(response.json()["pictures"], first.json()["pictures"]);
    }
    let address = server.address;
    assert_eq!(server.shut_down(), Shutdown::Graceful);
    assert!(TcpStream::connect(address).is_err(), "the server still listens");
}

#[test]
fn tokens_are_required_and_only_configured_origins_are_allowed() {
    let origins = vec!["https://example.org".parse().unwrap()];
    let config = Config { token: Some("s3cret".into()), origins, demo: WebDemo::None, ..Config::default() };
    let server = TestServer::new(config, None, Some(classifier()));
    let models = |headers: &[(&str, &str)]| send_request(server.address, "GET", "/v1/models", headers, b"");
    for headers in [&[][..], &[("authorization", "Bearer s3cre")], &[("authorization", "Basic s3cret")]] {
        let response = models(headers);
        assert_eq!((response.status, response.header("www-authenticate")), (401, Some("Bearer")));
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
    }
    assert_eq!(models(&[("authorization", "Bearer s3cret")]).status, 200);
    assert_eq!(models(&[("authorization", "bearer s3cret")]).status, 200);
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!((server.get("/healthz").status, server.get("/readyz").status), (200, 200));
    // Without a generator and the demo, their paths are not found.
    assert_eq!(server.get("/").status, 404);
    let generate = send_request(
        server.address,
        "POST",
        "/v1/generate",
        &[("authorization", "Bearer s3cret"), ("content-type", JSON)],
        b"{}",
    );
    assert_eq!(generate.status, 404);

    let get = |origin: &str| send_request(server.address, "GET", "/healthz", &[("origin", origin)], b"");
    let allowed_origin = |response: &crate::common::http::Response| {
        response.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(allowed_origin(&get("https://example.org")).as_deref(), Some("https://example.org"));
    assert_eq!(allowed_origin(&get("https://example.com")), None);
    let default = send_request(SERVER.address, "GET", "/healthz", &[("origin", "https://example.org")], b"");
    assert_eq!(allowed_origin(&default), None);
}

#[test]
fn valid_request_ids_of_clients_are_kept() {
    let id = |id: &str| {
        let response = send_request(SERVER.address, "GET", "/healthz", &[("x-request-id", id)], b"");
        response.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("abc-123"), "abc-123");
    let long = "x".repeat(129);
    for invalid in ["a b", &long, "\u{e4}"] {
        assert_ne!(id(invalid), invalid);
    }
    assert_ne!(id(""), id(""));
}

#[test]
fn the_openapi_document_lists_existing_paths_and_valid_references() {
    let document = SERVER.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let response = send_request(SERVER.address, &method.to_uppercase(), path, &[], b"");
            assert!(!matches!(response.status, 404 | 405), "{method} {path}: {}", response.status);
            let documented = &document["paths"][path][method]["responses"];
            assert!(
                documented[response.status.to_string()].is_object(),
                "{method} {path}: {}",
                response.status
            );
        }
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let path = reference.split('"').next().unwrap();
        assert!(document.pointer(path).is_some(), "{path}");
    }
    let breeds = &document["paths"]["/v1/generate"]["post"]["requestBody"]["content"][JSON]["schema"]["properties"]
        ["breed"]["enum"];
    assert_eq!(*breeds, json!(["Abyssinian", "Maine_Coon", "Sphynx", "all"]));
}

#[test]
fn models_are_described_with_their_verification() {
    let response = SERVER.get("/v1/models").json();
    let by_kind: BTreeMap<&str, &Value> =
        response["models"].as_array().unwrap().iter().map(|m| (m["kind"].as_str().unwrap(), m)).collect();
    for (kind, name) in [("generator", "small"), ("classifier", "breeds")] {
        let model = by_kind[kind];
        assert_eq!((&model["name"], &model["ready"]), (&json!(name), &json!(true)));
        assert_eq!(model["classes"], json!(BREEDS));
        assert_eq!(model["verification"]["passed"], true);
        assert_eq!(model["verification"]["runtimes"][0]["runtime"], model["runtime"]);
    }
    assert_eq!(by_kind["generator"]["integrity"], "unchecked");
    assert_eq!(by_kind["classifier"]["integrity"], "verified");
    assert_eq!(by_kind["generator"]["sampler"]["guidance_interval"], json!([0.1, 0.9]));
}
