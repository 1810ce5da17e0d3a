//! The HTTP server as its clients have it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    http::{BREEDS, TestServer, answer, ask, begin, classifier, generator},
    images::png_with_a_cut_palette,
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

/// A server that nobody stops.
static SERVED: LazyLock<TestServer> = LazyLock::new(|| {
    let config =
        Config { max_body: 1 << 20, max_pixels: 1_000_000, demo: WebDemo::Embedded, ..Config::default() };
    let (name, model) = classifier();
    let classifier = (name, model.with_integrity(Integrity::Verified));
    TestServer::new(config, Some(generator()), Some(classifier))
});

fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn decoded(base64: &Value) -> RgbImage {
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

/// What takes the small model a while.
fn long() -> Value {
    json!({"seed": 1, "count": 2, "steps": 250})
}

#[test]
fn pictures_drawn_at_the_same_time_for_many_are_those_of_the_library() {
    let (_, model) = generator();
    let mut library = Generator::from_model(&model, &LoadOptions::default()).unwrap();
    // Different in everything that may differ, and more than there are places.
    let asked: Vec<Request> = (0..12)
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
    let answers: Vec<Value> = thread::scope(|scope| {
        let ask = |request: &Request| {
            let breed = match &request.breed {
                Breed::All => "all",
                Breed::Named(name) => name,
            };
            let answer = SERVED.generate(&json!({
                "breed": breed, "count": request.count, "steps": request.steps, "guidance": request.guidance,
                "sampler": request.sampler.map(|sampler| sampler.to_string()), "seed": request.seed,
            }));
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()
        };
        let threads: Vec<_> = asked.iter().map(|request| scope.spawn(move || ask(request))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (request, answer) in asked.iter().zip(answers) {
        let expected = library.generate(request).unwrap();
        let found = answer["pictures"].as_array().unwrap();
        assert_eq!(found.len(), expected.len());
        assert_eq!((&answer["seed"], &answer["model"]), (&json!(request.seed), &json!("small")));
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found["breed"], expected.class);
            assert_eq!(found["index"], expected.index);
            assert!(decoded(&found["png"]) == expected.image, "{request:?}, picture {}", expected.index);
        }
    }
}

#[test]
fn a_picture_comes_alone_as_a_grid_or_as_the_part_of_a_series() {
    let (_, model) = generator();
    let mut library = Generator::from_model(&model, &LoadOptions::default()).unwrap();
    let request = Request { count: 5, steps: Some(3), seed: 9, ..Request::default() };
    let pictures = library.generate(&request).unwrap();

    let answer = SERVED.generate(&json!({"count": 5, "steps": 3, "seed": 9, "format": "grid"}));
    assert_eq!((answer.header("content-type"), answer.header("x-seed")), (Some("image/png"), Some("9")));
    assert!(image::load_from_memory(&answer.body).unwrap().into_rgb8() == contact_sheet(&pictures));

    let answer = SERVED.generate(&json!({"first": 4, "steps": 3, "seed": 9, "format": "png"}));
    assert!(image::load_from_memory(&answer.body).unwrap().into_rgb8() == pictures[4].image);

    // 2.0 is a whole number.
    let [whole, written] = [json!({"seed": 2, "steps": 2}), json!({"seed": 2.0, "steps": 2.0})];
    assert_eq!(SERVED.generate(&whole).json()["pictures"], SERVED.generate(&written).json()["pictures"]);

    // Without a seed any is taken, and said.
    let seeds: Vec<Value> =
        (0..2).map(|_| SERVED.generate(&json!({"steps": 1})).json()["seed"].clone()).collect();
    assert_ne!(seeds[0], seeds[1]);
    let again = SERVED.generate(&json!({"steps": 1, "seed": seeds[0]})).json();
    assert_eq!(again["seed"], seeds[0]);
}

#[test]
fn a_stream_tells_every_step_and_ends_with_the_answer() {
    let body = json!({"count": 3, "steps": 4, "seed": 5, "breed": "sphynx"});
    let plain = SERVED.generate(&body).json();
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let answer = SERVED.generate(&streamed);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let text = answer.text();
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
        assert_eq!(decoded(&preview["png"]).dimensions(), (32, 32));
    }
}

#[test]
fn photographs_are_classified_as_by_the_library_and_broken_ones_named() {
    let (_, model) = classifier();
    let mut library = Classifier::from_model(&model, &LoadOptions::default()).unwrap();
    let pictures: Vec<RgbImage> = (0..3).map(|i| synth::draw(i as usize, 1, i, 60)).collect();
    let files: Vec<Vec<u8>> = pictures.iter().map(|picture| encoded(picture, ImageFormat::Png)).collect();
    let expected = library.classify(&pictures).unwrap();
    let check = |result: &Value, i: usize, k: usize| {
        let top = result["top"].as_array().unwrap_or_else(|| panic!("{result}"));
        assert_eq!(top.len(), k);
        for (found, expected) in top.iter().zip(expected[i].top(k)) {
            assert_eq!(found["class"], expected.class);
            assert!((found["probability"].as_f64().unwrap() - expected.probability).abs() < 1e-6);
        }
    };
    for (i, file) in files.iter().enumerate() {
        // What it is is seen by its contents.
        for content_type in ["image/png", "image/jpeg"] {
            let answer = SERVED.post("/v1/classify?top_k=2", content_type, file);
            assert_eq!(answer.status, 200, "{}", answer.text());
            check(&answer.json()["results"][0], i, 2);
        }
    }
    let (content_type, body) = form(&[
        ("a.png", &files[0]),
        ("passwd", b"root:x:0:0"),
        ("b.png", &files[1]),
        ("half.png", &files[2][..files[2].len() / 2]),
        ("empty", b""),
        ("c.png", &files[2]),
        ("palette.png", &png_with_a_cut_palette()),
    ]);
    let answer = SERVED.post("/v1/classify", &content_type, body).json();
    let results = answer["results"].as_array().unwrap();
    for (at, i) in [(0, 0), (2, 1), (5, 2)] {
        check(&results[at], i, 3);
    }
    for (at, name, error) in [
        (1, "passwd", "not a picture"),
        (3, "half.png", "broken"),
        (4, "empty", "not a"),
        (6, "palette.png", "broken"),
    ] {
        assert_eq!(results[at]["name"], name);
        assert!(results[at]["error"].as_str().unwrap().contains(error), "{}", results[at]);
    }
}

#[test]
fn what_makes_no_sense_is_one_problem_with_its_field_and_harms_nobody() {
    let picture = encoded(&RgbImage::new(20, 20), ImageFormat::Png);
    let large = encoded(&RgbImage::new(1001, 1000), ImageFormat::Png);
    let generate = |body: &str| SERVED.post("/v1/generate", JSON, body);
    let (content_type, many) = form(&[("a", &picture[..]); 65]);
    let mut cases = vec![
        (400, "", generate("{")),
        (400, "", SERVED.post("/v1/classify", "multipart/form-data", "x")),
        (400, "", SERVED.post("/v1/classify", "multipart/form-data; boundary=mark", "--mark\r\n")),
        (404, "", SERVED.get("/v2/generate")),
        (404, "", SERVED.get("/../../etc/passwd")),
        (404, "", SERVED.get("/%2e%2e/Cargo.toml")),
        (405, "", SERVED.get("/v1/generate")),
        (405, "", SERVED.post("/healthz", JSON, "")),
        (405, "", SERVED.post("/models.json", JSON, "")),
        (413, "", SERVED.post("/v1/classify", "image/png", vec![0; 2 << 20])),
        (415, "", SERVED.post("/v1/generate", "text/plain", "{}")),
        (415, "", SERVED.post("/v1/classify", "image/gif", &picture)),
        (422, "", generate("[1, 2]")),
        (422, "body", SERVED.post("/v1/classify", "image/png", "GIF89a")),
        (422, "body", SERVED.post("/v1/classify", "image/png", large)),
        (422, "body", SERVED.post("/v1/classify", "image/png", png_with_a_cut_palette())),
        (
            422,
            "image",
            SERVED.post(
                "/v1/classify",
                "multipart/form-data; boundary=mark",
                "--mark\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\nx\r\n--mark--\r\n",
            ),
        ),
        (422, "top_k", SERVED.post("/v1/classify?top_k=0", "image/png", &picture)),
        (422, "top_k", SERVED.post("/v1/classify?top_k=4", "image/png", &picture)),
        (422, "", SERVED.post("/v1/classify?k=1", "image/png", &picture)),
        (422, "image", SERVED.post("/v1/classify", &content_type, many)),
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
    for (status, field, answer) in &cases {
        assert_eq!(answer.status, *status, "{answer:?} {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert!(answer.header("x-request-id").is_some());
        let problem = answer.json();
        assert_eq!(problem["status"], *status);
        assert_eq!(problem["field"].as_str().unwrap_or_default(), *field, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.is_empty() && !detail.contains('\n'), "{detail:?}");
        if *status == 405 {
            assert!(answer.header("allow").is_some());
        }
    }
    let nearest = generate(r#"{"breed": "Maine_Cone"}"#).json()["detail"].as_str().unwrap().to_owned();
    assert!(nearest.contains("did you mean Maine_Coon?"), "{nearest}");
    assert_eq!(SERVED.get("/readyz").status, 200);
}

#[test]
fn the_site_lists_the_models_that_are_served_and_sends_parts_of_them() {
    let answer = SERVED.get("/models.json").json();
    let models = answer["models"].as_array().unwrap();
    let (_, model) = generator();
    let graph = model.graph().unwrap();
    assert_eq!(models[0]["kind"], "generator");
    assert_eq!(models[0]["bytes"], graph.bytes().len());
    assert_eq!(models[1]["kind"], "classifier");
    let path = format!("/{}", models[0]["url"].as_str().unwrap());

    let whole = SERVED.get(&path);
    assert!(whole.body == graph.bytes());
    assert_eq!(whole.header("cross-origin-embedder-policy"), Some("require-corp"));
    let etag = whole.header("etag").unwrap().to_owned();
    assert_eq!(etag.trim_matches('"'), models[0]["sha256"]);
    let asked = |headers: &[(&str, &str)]| ask(SERVED.address, "GET", &path, headers, b"");
    assert_eq!(asked(&[("if-none-match", &etag)]).status, 304);
    let part = asked(&[("range", "bytes=1000-1009"), ("if-range", &etag)]);
    assert_eq!((part.status, &part.body[..]), (206, &graph.bytes()[1000..1010]));
    let about = format!("bytes 1000-1009/{}", graph.bytes().len());
    assert_eq!(part.header("content-range"), Some(&about[..]));
    // Of another file than the one that the client has a part of, all.
    assert_eq!(asked(&[("range", "bytes=1000-1009"), ("if-range", "\"other\"")]).status, 200);
    assert_eq!(asked(&[("range", "bytes=99999999-")]).status, 416);
    assert!(SERVED.get("/").text().contains("<!doctype html>"));
}

#[test]
fn a_full_queue_sends_clients_away_and_who_leaves_makes_room() {
    let config = Config { queue: 3, max_count: 3, demo: WebDemo::None, ..Config::default() };
    let served = TestServer::new(config, Some(generator()), None);
    let post = |body: &Value| {
        let body = body.to_string();
        begin(served.address, "POST", "/v1/generate", &[("content-type", JSON)], body.as_bytes())
    };
    let first = post(&long());
    served.until("tiny_cats_waiting_pictures{model=\"small\"}", 2);
    let refused = served.generate(&json!({"count": 2, "steps": 1}));
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    // There is room for one, who does not wait for the others' end.
    assert_eq!(served.generate(&json!({"count": 1, "steps": 1})).status, 200);
    drop(first);
    served.until("tiny_cats_cancelled_pictures_total{model=\"small\"}", 2);
    served.until("tiny_cats_waiting_pictures{model=\"small\"}", 0);
    assert_eq!(served.metric("tiny_cats_requests_total{path=\"/v1/generate\",status=\"499\"}"), 1);
    assert_eq!(served.generate(&json!({"count": 3, "steps": 1})).status, 200);

    // A reader of events leaves after the first.
    let mut body = long();
    body["stream"] = json!(true);
    let mut stream = post(&body);
    let mut some = [0; 100];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    served.until("tiny_cats_cancelled_pictures_total{model=\"small\"}", 4);
    served.until("tiny_cats_requests_total{path=\"/v1/generate\",status=\"499\"}", 2);
    served.until("tiny_cats_waiting_pictures{model=\"small\"}", 0);
    assert_eq!(served.end(), Shutdown::Finished);
}

#[test]
fn a_short_request_does_not_wait_for_the_end_of_a_long_one() {
    let served =
        TestServer::new(Config { demo: WebDemo::None, ..Config::default() }, Some(generator()), None);
    let body = json!({"count": 64, "steps": 250}).to_string();
    let long = begin(served.address, "POST", "/v1/generate", &[("content-type", JSON)], body.as_bytes());
    // All places are taken by it.
    served.until("tiny_cats_waiting_pictures{model=\"small\"}", 64);
    let evaluations = || served.metric("tiny_cats_batch_pictures_count{model=\"small\"}");
    let before = evaluations();
    assert_eq!(served.generate(&json!({"steps": 2, "count": 2})).status, 200);
    // Three evaluations of its own, and a few that pass while it comes and its answer goes.
    assert!(evaluations() - before < 30, "{} evaluations", evaluations() - before);
    assert_eq!(served.metric("tiny_cats_waiting_pictures{model=\"small\"}"), 64);
    drop(long);
}

#[test]
fn who_does_not_read_a_stream_is_not_drawn_for_beyond_its_time() {
    let config = Config { timeout: Duration::from_secs(2), demo: WebDemo::None, ..Config::default() };
    let served = TestServer::new(config, Some(generator()), None);
    let body = json!({"count": 64, "steps": 250, "stream": true}).to_string();
    let stalled = begin(served.address, "POST", "/v1/generate", &[("content-type", JSON)], body.as_bytes());
    served.until("tiny_cats_waiting_pictures{model=\"small\"}", 64);
    served.until("tiny_cats_waiting_pictures{model=\"small\"}", 0);
    assert_eq!(served.metric("tiny_cats_cancelled_pictures_total{model=\"small\"}"), 64);
    drop(stalled);
}

#[test]
fn what_a_foreign_page_has_a_browser_send_is_refused() {
    let post = |headers: &[(&str, &str)]| {
        let headers = [headers, &[("content-type", JSON)]].concat();
        ask(SERVED.address, "POST", "/v1/generate", &headers, br#"{"steps": 1}"#).status
    };
    let own = SERVED.address.to_string();
    let page = format!("http://{own}");
    assert_eq!(post(&[("host", &own), ("origin", &page)]), 200);
    assert_eq!(post(&[("host", "localhost")]), 200);
    assert_eq!(post(&[("host", &own), ("origin", "https://evil.example")]), 403);
    assert_eq!(post(&[("host", &own), ("origin", "null")]), 403);
    // A name of the page's own that leads here.
    assert_eq!(post(&[("host", "evil.example"), ("origin", "http://evil.example")]), 403);
    assert_eq!(ask(SERVED.address, "GET", "/", &[("host", "evil.example")], b"").status, 403);
}

#[test]
fn a_client_that_has_asked_for_nothing_does_not_hold_up_the_end() {
    let served =
        TestServer::new(Config { demo: WebDemo::None, ..Config::default() }, None, Some(classifier()));
    let mut half = TcpStream::connect(served.address).unwrap();
    half.write_all(b"GET /healthz HT").unwrap();
    served.until("tiny_cats_connections", 2);
    let start = Instant::now();
    assert_eq!(served.end(), Shutdown::Finished);
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_folder_is_served_with_the_servers_own_models_compressed_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let gzip = |bytes: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    };
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let (_, model) = generator();
    let hash = SERVED.get("/models.json").json()["models"][0]["sha256"].clone();
    let built = json!({"models": [
        {"name": "it", "sha256": hash, "card": "models/it.md"}, {"name": "other", "sha256": "00", "card": "models/other.md"},
    ]});
    put("index.html", b"<!doctype html>");
    put("models.json", built.to_string().as_bytes());
    put("models.json.gz", &gzip(built.to_string().as_bytes()));
    put("models/it.md", b"the card");
    put("models/other.md", b"another card");
    put("models/other.onnx", b"another model");
    put("ort-1/x.wasm.gz", &gzip(b"wasm"));
    put("assets/a.js", b"let a");
    put("assets/a.js.gz", &gzip(b"let a"));
    let config = Config { demo: WebDemo::Folder(folder.path().to_owned()), ..Config::default() };
    let served = TestServer::new(config, Some(generator()), None);
    let zipped = |path: &str| ask(served.address, "GET", path, &[("accept-encoding", "gzip")], b"");

    for answer in [served.get("/models.json"), zipped("/models.json")] {
        let models = answer.json();
        assert_eq!(models["models"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&models["models"][0]["name"], &models["models"][0]["card"]),
            (&json!("small"), &json!("models/small.md"))
        );
    }
    assert_eq!(served.get("/models/small.md").text(), "the card");
    assert!(served.get("/models/small.onnx").body == model.graph().unwrap().bytes());
    assert_eq!((served.get("/models/other.onnx").status, served.get("/models/other.md").status), (404, 404));
    let plain = served.get("/ort-1/x.wasm");
    assert_eq!((plain.text().as_str(), plain.header("content-encoding")), ("wasm", None));
    assert_eq!(plain.header("content-type"), Some("application/wasm"));
    for path in ["/ort-1/x.wasm", "/assets/a.js"] {
        let answer = zipped(path);
        assert_eq!(answer.header("content-encoding"), Some("gzip"), "{path}");
        assert!(answer.header("cache-control").unwrap().contains("immutable"));
        assert_ne!(answer.header("etag"), served.get(path).header("etag"));
    }
    assert_eq!(served.get("/").header("cache-control"), Some("no-cache"));
}

#[test]
fn a_request_whose_time_is_over_is_told_so_and_its_work_ends() {
    let config = Config { timeout: Duration::from_millis(300), demo: WebDemo::None, ..Config::default() };
    let served = TestServer::new(config, Some(generator()), None);
    let start = Instant::now();
    let late = served.generate(&json!({"count": 64, "steps": 250}));
    assert_eq!((late.status, late.json()["status"].as_u64()), (504, Some(504)));
    let mut body = long();
    body["count"] = json!(60);
    body["stream"] = json!(true);
    let text = served.generate(&body).text();
    assert!(text.contains("event: error") && text.contains("504"), "{}", &text[text.len().min(2000)..]);
    assert!(start.elapsed() < Duration::from_secs(20));
    served.until("tiny_cats_cancelled_pictures_total{model=\"small\"}", 124);
    // A body that never comes.
    let mut stream = TcpStream::connect(served.address).unwrap();
    let head = "POST /v1/generate HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(answer(stream).status, 504);
}

#[test]
fn all_that_was_accepted_is_answered_before_the_end() {
    let served = TestServer::new(Config::default(), Some(generator()), Some(classifier()));
    let body = json!({"steps": 12, "count": 2, "seed": 3}).to_string();
    let streams: Vec<TcpStream> = (0..8)
        .map(|_| begin(served.address, "POST", "/v1/generate", &[("content-type", JSON)], body.as_bytes()))
        .collect();
    served.until("tiny_cats_waiting_pictures{model=\"small\"}", 16);
    served.ask_to_stop();
    let first = answer(streams[0].try_clone().unwrap());
    assert_eq!(first.status, 200);
    for stream in streams.into_iter().skip(1) {
        let answer = answer(stream);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["pictures"], first.json()["pictures"]);
    }
    let address = served.address;
    assert_eq!(served.end(), Shutdown::Finished);
    assert!(TcpStream::connect(address).is_err(), "nobody listens there any more");
}

#[test]
fn a_token_is_asked_for_and_other_origins_only_where_allowed() {
    let origins = vec!["https://example.org".parse().unwrap()];
    let config = Config { token: Some("s3cret".into()), origins, demo: WebDemo::None, ..Config::default() };
    let served = TestServer::new(config, None, Some(classifier()));
    let models = |headers: &[(&str, &str)]| ask(served.address, "GET", "/v1/models", headers, b"");
    for headers in [&[][..], &[("authorization", "Bearer s3cre")], &[("authorization", "Basic s3cret")]] {
        let answer = models(headers);
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    assert_eq!(models(&[("authorization", "Bearer s3cret")]).status, 200);
    assert_eq!(models(&[("authorization", "bearer s3cret")]).status, 200);
    assert_eq!(served.get("/metrics").status, 401);
    assert_eq!((served.get("/healthz").status, served.get("/readyz").status), (200, 200));
    // There is no generator, and no demo.
    assert_eq!(served.get("/").status, 404);
    let generate = ask(
        served.address,
        "POST",
        "/v1/generate",
        &[("authorization", "Bearer s3cret"), ("content-type", JSON)],
        b"{}",
    );
    assert_eq!(generate.status, 404);

    let asked = |origin: &str| ask(served.address, "GET", "/healthz", &[("origin", origin)], b"");
    let allowed = |answer: &crate::common::http::Answer| {
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(allowed(&asked("https://example.org")).as_deref(), Some("https://example.org"));
    assert_eq!(allowed(&asked("https://example.com")), None);
    let own = ask(SERVED.address, "GET", "/healthz", &[("origin", "https://example.org")], b"");
    assert_eq!(allowed(&own), None);
}

#[test]
fn a_request_keeps_the_number_that_its_client_gave_it_if_that_can_stand_in_a_log() {
    let id = |id: &str| {
        let answer = ask(SERVED.address, "GET", "/healthz", &[("x-request-id", id)], b"");
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("abc-123"), "abc-123");
    let long = "x".repeat(129);
    for foreign in ["a b", &long, "\u{e4}"] {
        assert_ne!(id(foreign), foreign);
    }
    assert_ne!(id(""), id(""));
}

#[test]
fn the_document_lists_what_is_there_and_no_reference_leads_nowhere() {
    let document = SERVED.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let answer = ask(SERVED.address, &method.to_uppercase(), path, &[], b"");
            assert!(!matches!(answer.status, 404 | 405), "{method} {path}: {}", answer.status);
            let documented = &document["paths"][path][method]["responses"];
            assert!(documented[answer.status.to_string()].is_object(), "{method} {path}: {}", answer.status);
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
fn models_are_described_with_how_they_were_verified() {
    let answer = SERVED.get("/v1/models").json();
    let by_kind: BTreeMap<&str, &Value> =
        answer["models"].as_array().unwrap().iter().map(|m| (m["kind"].as_str().unwrap(), m)).collect();
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
