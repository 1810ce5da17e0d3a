//! The web demo and its models: files in memory, looked up by exact path.
//!
//! `models.json` lists the models of this server, not those that the page was built with.

use std::{
    collections::{BTreeSet, HashMap},
    io::Read,
    path::Path,
    sync::{Arc, OnceLock},
};

use anyhow::{Context, bail};
use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tiny_cats_export::hex;
use walkdir::WalkDir;

use super::{AppState, NamedModel, Problem, WebDemo};

/// Maximum total bytes of the files.
const MAX_BYTES: u64 = 512 << 20;
/// Maximum number of files.
const MAX_FILES: usize = 2000;

/// The page at `/` if the demo is not built in.
const NO_DEMO: &str = include_str!("no-demo.html");

/// Headers that enable cross-origin isolation, which browsers require for threads.
const ISOLATION: [(&str, &str); 4] = [
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
];

/// The built web demo. Excludes the uncompressed runtime, since the compressed one is included, and the models, since the program contains
/// them.
#[cfg(feature = "web-demo")]
#[derive(rust_embed::Embed)]
#[folder = "web-demo/dist"]
#[exclude = "*.wasm"]
#[exclude = "models/*.onnx"]
struct Embedded;

/// A file.
pub struct Asset {
    content_type: &'static str,
    /// The uncompressed contents; `None` if only compressed contents exist.
    plain: Option<Bytes>,
    /// The contents compressed with gzip.
    gzip: Option<Bytes>,
    /// The decompressed contents, filled on demand if only compressed contents exist; `None` in the cell if they are damaged.
    decompressed: OnceLock<Option<Bytes>>,
    /// The SHA-256 of the contents, compressed if only those exist.
    hash: String,
    /// True if the name of the file changes with its contents.
    immutable: bool,
}

/// The files by path.
pub struct Site {
    assets: HashMap<String, Asset>,
}

impl Site {
    /// Reads the demo and adds `models`.
    ///
    /// # Errors
    /// If the folder is not a web demo or is too large.
    pub fn new<'a>(demo: &WebDemo, models: impl Iterator<Item = &'a NamedModel>) -> anyhow::Result<Self> {
        let mut files = match demo {
            WebDemo::Folder(folder) => read_folder(folder)?,
            WebDemo::Embedded => embedded(),
            WebDemo::None => HashMap::new(),
        };
        if let WebDemo::None = demo {
            return Ok(Self { assets: HashMap::new() });
        }
        let built_models: Value = files
            .remove("models.json")
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        files.remove("models.json.gz");
        let mut entries = Vec::new();
        let mut model_files = HashMap::new();
        for (name, model) in models {
            let graph = model.graph()?;
            let hash = sha256(graph.bytes());
            let kind = if model.meta().generator().is_some() { "generator" } else { "classifier" };
            let url = format!("models/{name}.onnx");
            let mut entry = json!({
                "name": name, "kind": kind, "url": url, "bytes": graph.bytes().len(), "sha256": hash,
            });
            // Cards and reports of the built demo apply to a served model only if its bytes are the same.
            let matching = built_models["models"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|m| m["sha256"] == hash.as_str());
            for (key, path) in
                matching.into_iter().flat_map(|m| [("card", &m["card"]), ("report", &m["report"])])
            {
                if let Some(text) = path.as_str().and_then(|path| files.remove(path)) {
                    let extension = if key == "card" { "md" } else { "report.json" };
                    entry[key] = json!(format!("models/{name}.{extension}"));
                    model_files.insert(format!("models/{name}.{extension}"), text);
                }
            }
            model_files.insert(url, Bytes::copy_from_slice(graph.bytes()));
            entries.push(entry);
        }
        files.retain(|path, _| !path.starts_with("models/"));
        files.extend(model_files);
        files.insert("models.json".into(), json!({ "models": entries }).to_string().into());
        files.entry("index.html".into()).or_insert(Bytes::from_static(NO_DEMO.as_bytes()));
        Ok(Self { assets: assets(files) })
    }

    /// The file at the path of a URL.
    pub fn get(&self, path: &str) -> Option<&Asset> {
        let path = path.strip_prefix('/')?;
        self.assets.get(if path.is_empty() { "index.html" } else { path })
    }
}

/// Reads all files in `folder`.
fn read_folder(folder: &Path) -> anyhow::Result<HashMap<String, Bytes>> {
    let folder_name = || folder.display().to_string();
    if !folder.join("index.html").is_file() {
        bail!(
            "{}: index.html: expected a built web demo (npm ci && npm run build in web-demo)",
            folder_name()
        );
    }
    let (mut files, mut bytes) = (HashMap::new(), 0);
    for entry in WalkDir::new(folder) {
        let entry = entry.with_context(folder_name)?;
        if !entry.file_type().is_file() {
            continue;
        }
        bytes += entry.metadata().with_context(folder_name)?.len();
        if bytes > MAX_BYTES || files.len() == MAX_FILES {
            bail!(
                "{}: expected a web demo, found more than {} MiB or {MAX_FILES} files",
                folder_name(),
                MAX_BYTES >> 20
            );
        }
        let path = entry.path().strip_prefix(folder)?;
        let path: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        let contents = std::fs::read(entry.path()).with_context(|| entry.path().display().to_string())?;
        files.insert(path.join("/"), contents.into());
    }
    Ok(files)
}

#[cfg(feature = "web-demo")]
fn embedded() -> HashMap<String, Bytes> {
    let bytes = |data: std::borrow::Cow<'static, [u8]>| match data {
        std::borrow::Cow::Borrowed(data) => Bytes::from_static(data),
        std::borrow::Cow::Owned(data) => data.into(),
    };
    Embedded::iter().filter_map(|path| Some((path.to_string(), bytes(Embedded::get(&path)?.data)))).collect()
}

#[cfg(not(feature = "web-demo"))]
fn embedded() -> HashMap<String, Bytes> {
    HashMap::new()
}

/// Joins each file with its compressed contents, `NAME.gz`.
fn assets(mut files: HashMap<String, Bytes>) -> HashMap<String, Asset> {
    let compressed: Vec<String> = files.keys().filter(|path| path.ends_with(".gz")).cloned().collect();
    let mut gzip: HashMap<String, Bytes> = HashMap::new();
    for path in compressed {
        if let (Some(bytes), Some(name)) = (files.remove(&path), path.strip_suffix(".gz")) {
            gzip.insert(name.to_owned(), bytes);
        }
    }
    let names: BTreeSet<String> = files.keys().chain(gzip.keys()).cloned().collect();
    let asset = |path: String| {
        let (plain, gzip) = (files.get(&path).cloned(), gzip.get(&path).cloned());
        let hash = sha256(plain.as_ref().or(gzip.as_ref()).map_or(&[], |bytes| &bytes[..]));
        // The bundler's file names contain a hash of the contents, the runtime's folder name its version.
        let immutable = path.starts_with("assets/") || path.starts_with("ort-");
        let content_type = content_type(&path);
        (path, Asset { content_type, plain, gzip, decompressed: OnceLock::new(), hash, immutable })
    };
    names.into_iter().map(asset).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// Serves a file, for paths that are not routes of the API.
pub async fn serve(State(app): State<Arc<AppState>>, request: Request) -> Response {
    let path = request.uri().path();
    let Some(asset) = app.site.get(path) else {
        return Problem::new(StatusCode::NOT_FOUND, "there is no file or route at this path").into_response();
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "expected GET or HEAD");
        return ([(header::ALLOW, "GET, HEAD")], problem).into_response();
    }
    let mut response = if asset.is_ready(request.headers()) {
        asset.respond(request.headers(), request.method())
    } else {
        // Decompression may take long.
        let (app, path, headers) = (app.clone(), path.to_owned(), request.headers().clone());
        let work = move || app.site.get(&path).map(|asset| asset.respond(&headers, request.method()));
        match tokio::task::spawn_blocking(work).await {
            Ok(Some(response)) => response,
            _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the file is damaged").into_response(),
        }
    };
    for (name, value) in ISOLATION {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Asset {
    /// True if the response needs no decompression.
    fn is_ready(&self, headers: &HeaderMap) -> bool {
        let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
        let compressed = accepted.is_some_and(accepts_gzip) && !headers.contains_key(header::RANGE);
        self.plain.is_some() || self.decompressed.get().is_some() || compressed
    }

    fn respond(&self, headers: &HeaderMap, method: &Method) -> Response {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let range = text(header::RANGE).filter(|_| *method == Method::GET);
        let accepts_gzip = text(header::ACCEPT_ENCODING).is_some_and(accepts_gzip);
        // A range refers to the uncompressed contents.
        let gzip = self.gzip.as_ref().filter(|_| accepts_gzip && range.is_none());
        let etag = format!("\"{}{}\"", self.hash, if gzip.is_some() { "-gzip" } else { "" });
        let mut response = Response::builder()
            .header(header::ETAG, &etag)
            .header(header::VARY, "accept-encoding")
            .header(header::ACCEPT_RANGES, "bytes")
            .header(
                header::CACHE_CONTROL,
                if self.immutable { "public, max-age=31536000, immutable" } else { "no-cache" },
            );
        let mut etags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        if etags.any(|etags| etags == "*" || etags.contains(&etag)) {
            return build_response(response.status(StatusCode::NOT_MODIFIED), Body::empty());
        }
        response = response.header(header::CONTENT_TYPE, self.content_type);
        if let Some(gzip) = gzip {
            return build_response(response.header(header::CONTENT_ENCODING, "gzip"), gzip.clone().into());
        }
        let Some(plain) =
            self.plain.clone().or_else(|| self.decompressed.get_or_init(|| self.decompress()).clone())
        else {
            return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the file is damaged").into_response();
        };
        let applies = text(header::IF_RANGE).is_none_or(|condition| condition == etag);
        match range.filter(|_| applies).and_then(|range| parse_range(range, plain.len())) {
            None => build_response(response, plain.into()),
            Some(Some((from, to))) => {
                let content_range = format!("bytes {from}-{}/{}", to - 1, plain.len());
                let response = response.status(StatusCode::PARTIAL_CONTENT);
                build_response(
                    response.header(header::CONTENT_RANGE, content_range),
                    plain.slice(from..to).into(),
                )
            }
            Some(None) => {
                let content_range = format!("bytes */{}", plain.len());
                let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE);
                build_response(response.header(header::CONTENT_RANGE, content_range), Body::empty())
            }
        }
    }

    fn decompress(&self) -> Option<Bytes> {
        let mut bytes = Vec::new();
        let decoder = flate2::read::GzDecoder::new(&self.gzip.as_ref()?[..]);
        decoder.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes.into())
    }
}

fn build_response(response: axum::http::response::Builder, body: Body) -> Response {
    // The headers are valid, since this module writes them.
    response.body(body).unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

fn accepts_gzip(accepted: &str) -> bool {
    let weight = |wanted: &str| {
        accepted.split(',').find_map(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let is_wanted = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(wanted));
            let weight =
                parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
            is_wanted.then_some(weight)
        })
    };
    weight("gzip").or_else(|| weight("*")).is_some_and(|weight: f32| weight > 0.0)
}

/// Parses a `Range` header for a file of `len` bytes (RFC 9110, section 14). Returns `Some(None)` if the range cannot be satisfied, and
/// `None` for other units or several ranges, which are ignored.
fn parse_range(range: &str, len: usize) -> Option<Option<(usize, usize)>> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| text.trim().parse::<usize>();
    let (from, to) = match (from.trim(), to.trim()) {
        ("", last) => (len.saturating_sub(number(last).ok()?), len),
        (from, "") => (number(from).ok()?, len),
        (from, to) => (number(from).ok()?, number(to).ok()?.saturating_add(1).min(len)),
    };
    Some((from < to).then_some((from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_as_in_rfc_9110() {
        for (range, expected) in [
            ("bytes=0-", Some(Some((0, 10)))),
            ("bytes=3-4", Some(Some((3, 5)))),
            ("bytes=3-400", Some(Some((3, 10)))),
            ("bytes=-4", Some(Some((6, 10)))),
            ("bytes=-40", Some(Some((0, 10)))),
            ("bytes=10-", Some(None)),
            ("bytes=5-4", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=0-1,4-5", None),
            ("bytes=a-b", None),
            ("bytes=99999999999999999999-", None),
            ("lines=1-2", None),
        ] {
            assert_eq!(parse_range(range, 10), expected, "{range}");
        }
    }

    #[test]
    fn accept_encoding_decides_whether_gzip_is_accepted() {
        for (accepted, expected) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, gzip;q=0.8", true),
            ("*", true),
            ("gzip;q=0", false),
            ("gzip;q=0, *;q=0.5", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(accepted), expected, "{accepted}");
        }
    }

    #[test]
    fn a_compressed_file_is_also_served_uncompressed() {
        use std::io::Write;
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"meow").unwrap();
        let files = HashMap::from([("a.wasm.gz".to_owned(), Bytes::from(gz.finish().unwrap()))]);
        let site = Site { assets: assets(files) };
        let asset = site.get("/a.wasm").unwrap();
        assert_eq!(asset.content_type, "application/wasm");
        assert_eq!(asset.decompress().unwrap(), "meow");
        assert!(site.get("/a.wasm.gz").is_none() && site.get("a.wasm").is_none());
    }
}
