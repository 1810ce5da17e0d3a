//! `tiny-cats serve`: the HTTP server.

use std::{
    env::VarError,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use axum::http::HeaderValue;
use signal_hook::iterator::Signals;
use tiny_cats_export::Model;
use tiny_cats_models::pretrained;

use super::{
    common::{Runtime, open_model},
    logging::{eprint_and_log, print_and_log},
};
use crate::{
    serve::{Config, NamedModel, Server, Shutdown, WebDemo},
    signals,
};

/// The arguments of `tiny-cats serve`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The generator, .onnx or .safetensors [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The classifier, .onnx or .safetensors [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Serve no generator
    #[arg(long, conflicts_with = "model")]
    no_generator: bool,
    /// Serve no classifier
    #[arg(long, conflicts_with = "classifier")]
    no_classifier: bool,
    /// Runtime of the models [default: native; tract for the file of another program]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// IP address to listen on; 0.0.0.0 or :: also accepts connections from other machines
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    host: IpAddr,
    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Folder of the built web demo, such as web-demo/dist [default: the one compiled into this program, if any]
    #[arg(long, value_name = "DIR")]
    web: Option<PathBuf>,
    /// Serve only the API
    #[arg(long, conflicts_with = "web")]
    no_web: bool,
    /// File with the token that clients of the API must send; alternatively, set TINY_CATS_TOKEN. The web demo needs none: it computes in
    /// the browser
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Host name, such as that of a proxy, that requests may use besides localhost while the server listens on a loopback address; may be
    /// repeated. Other names are refused, as a protection against DNS rebinding
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Origin whose pages may call the API, such as `https://example.org`; may be repeated [default: none]
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Maximum images per batch
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_batch: u16,
    /// Maximum milliseconds that an image to classify waits for others to join its batch. Images to generate join the next batch without
    /// waiting
    #[arg(long, default_value_t = 5, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=10_000))]
    max_wait: u64,
    /// Maximum unfinished images per model; further requests get status 429
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    queue: u32,
    /// Maximum images per request [default: 64, or --queue if that is less]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_count: Option<u32>,
    /// Maximum steps per request
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_steps: u32,
    /// Maximum seconds of a request, and of the shutdown after a signal, which waits for unfinished requests
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Maximum MiB of a request body
    #[arg(long, default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
    max_body: u64,
    /// Maximum megapixels of a photograph; the photographs of one request may have four times as many in total
    #[arg(long, default_value_t = 24, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=210))]
    max_megapixels: u64,
    /// Maximum open connections
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_connections: u32,
}

/// Serves until a signal stops the server.
///
/// # Errors
/// If an argument is invalid, the address is in use, a model cannot be used, or its outputs differ from those of its definition.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    if args.no_generator && args.no_classifier && args.no_web {
        bail!("--no-generator --no-classifier --no-web: nothing is left to serve");
    }
    if let Some(count) = args.max_count.filter(|count| *count > args.queue) {
        bail!("--max-count {count}: expected at most --queue, {}", args.queue);
    }
    let config = config(args)?;
    let generator = match args.no_generator {
        true => None,
        false => Some(open_named(args.model.as_deref(), "tinydit", pretrained::TINYDIT)?),
    };
    let classifier = match args.no_classifier {
        true => None,
        false => Some(open_named(args.classifier.as_deref(), "resnet18-breeds", pretrained::CLASSIFIER)?),
    };
    // Names are part of URLs and metrics, so the two must differ.
    let classifier = classifier.map(|(name, model)| match &generator {
        Some((generator_name, _)) if *generator_name == name => (format!("{name}-classifier"), model),
        _ => (name, model),
    });
    let stop = Arc::new(tokio::sync::Notify::new());
    listen_for_signals(&stop)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("tokio")?;
    let shutdown = runtime.block_on(async {
        let has_token = config.token.is_some();
        let server = Server::start(config, generator, classifier).await?;
        let address = server.address()?;
        if !address.ip().is_loopback() && !has_token {
            eprint_and_log(
                "anyone who can reach this address can use the API; pass --token-file to require a token",
            );
        }
        // Printed before the models are ready, so that the parent process learns the port. API requests get status 503 until then.
        print_and_log(&format!("listening at http://{address}/"));
        server.when_ready(move || {
            eprint_and_log(&format!("ready after {:.2} s", start.elapsed().as_secs_f64()))
        });
        server.run(async move { stop.notified().await }).await
    })?;
    Ok(match shutdown {
        Shutdown::Graceful => {
            eprint_and_log("stopped: all accepted requests were answered");
            ExitCode::SUCCESS
        }
        Shutdown::TimedOut(n) => {
            eprint_and_log(&format!("stopped: {n} connections were closed at the timeout"));
            ExitCode::FAILURE
        }
    })
}

fn config(args: &Args) -> anyhow::Result<Config> {
    let origin = |text: &String| {
        let host = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let origin = host.filter(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', '*', ' ']));
        match (origin, HeaderValue::from_str(text)) {
            (Some(_), Ok(value)) => Ok(value),
            _ => bail!("--cors-origin {text}: expected scheme, host and port, such as https://example.org"),
        }
    };
    Ok(Config {
        address: SocketAddr::new(args.host, args.port),
        runtime: args.runtime.map(Into::into),
        max_batch: args.max_batch.into(),
        max_wait: Duration::from_millis(args.max_wait),
        queue: args.queue as usize,
        max_count: args.max_count.unwrap_or(64.min(args.queue)) as usize,
        max_steps: args.max_steps as usize,
        timeout: Duration::from_secs(args.timeout),
        max_body: (args.max_body << 20) as usize,
        max_pixels: args.max_megapixels * 1_000_000,
        max_connections: args.max_connections as usize,
        token: token(args.token_file.as_deref())?,
        hosts: args.allow_host.clone(),
        origins: args.cors_origin.iter().map(origin).collect::<anyhow::Result<_>>()?,
        demo: match &args.web {
            _ if args.no_web => WebDemo::None,
            Some(folder) => WebDemo::Folder(folder.clone()),
            None => WebDemo::Embedded,
        },
    })
}

/// Reads the token that clients must send, if any. It is never an argument, since all users of the machine can see arguments.
fn token(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let (token, source) = match (file, std::env::var("TINY_CATS_TOKEN")) {
        (Some(path), _) => (
            fs::read_to_string(path).with_context(|| path.display().to_string())?,
            path.display().to_string(),
        ),
        (None, Ok(token)) => (token, "TINY_CATS_TOKEN".to_owned()),
        (None, Err(VarError::NotPresent)) => return Ok(None),
        // Ignoring the variable would leave a server unprotected that should require a token.
        (None, Err(VarError::NotUnicode(_))) => bail!("TINY_CATS_TOKEN: expected text"),
    };
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{source}: expected a token of printable characters, without spaces");
    }
    Ok(Some(token.to_owned()))
}

/// Opens the model in a file, or the bundled one, with its name.
fn open_named(path: Option<&Path>, name: &str, bytes: &'static [u8]) -> anyhow::Result<NamedModel> {
    let Some(path) = path else {
        return Ok((name.to_owned(), Model::from_bytes(bytes.to_vec(), &format!("the pretrained {name}"))?));
    };
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    // The name becomes part of URLs and metrics.
    let url_safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    Ok((stem.chars().map(url_safe).collect(), open_model(path)?))
}

/// Stops the server at the first signal, and ends the process at the second.
fn listen_for_signals(stop: &Arc<tokio::sync::Notify>) -> anyhow::Result<()> {
    let mut signals = Signals::new(signals::stop_signals()).context("signals")?;
    let stop = stop.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut is_stopping = false;
        for signal in signals.forever() {
            if is_stopping {
                std::process::exit(128 + signal);
            }
            is_stopping = true;
            eprint_and_log(
                "shutting down: finishing accepted requests; a second signal ends the server at once",
            );
            stop.notify_one();
        }
    })?;
    Ok(())
}
