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
    /// The generator, .onnx or .safetensors [default: the one that comes with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The classifier, .onnx or .safetensors [default: the one that comes with this program]
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Serve no generator
    #[arg(long, conflicts_with = "model")]
    no_generator: bool,
    /// Serve no classifier
    #[arg(long, conflicts_with = "classifier")]
    no_classifier: bool,
    /// Runtime that computes the models [default: native; tract for another program's file]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// IP address to listen on; 0.0.0.0 or :: also accepts connections from other machines
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    host: IpAddr,
    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Folder of the web demo, as `npm run build` writes it to web-demo/dist [default: the one in this program, if it was built with it]
    #[arg(long, value_name = "DIR")]
    web: Option<PathBuf>,
    /// Serve only the API
    #[arg(long, conflicts_with = "web")]
    no_web: bool,
    /// File with the token that clients of the API must send; TINY_CATS_TOKEN does the same. The web demo needs none: it computes in the
    /// browser
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Host name that requests may use besides localhost while the server listens on this machine only, such as a proxy's; may be repeated.
    /// Other names are refused, so that no web page reaches the server through a name of its own
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Origin whose pages may use the API, such as `https://example.org`; may be repeated [default: none]
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Maximum images that share an evaluation of a network
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_batch: u16,
    /// Milliseconds that an image to classify may wait for others to share its evaluation. Images to generate join the next evaluation
    /// without waiting
    #[arg(long, default_value_t = 5, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=10_000))]
    max_wait: u64,
    /// Maximum images admitted and not finished, for each model; further requests are answered with 429
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    queue: u32,
    /// Maximum images per request [default: 64, or --queue where that is less]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_count: Option<u32>,
    /// Maximum steps per request
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_steps: u32,
    /// Seconds that a request may take; after a signal the server waits that long for unfinished requests
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Maximum MiB of a request's body
    #[arg(long, default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
    max_body: u64,
    /// Maximum pixels of a photograph, in millions; all photographs of one request may have four times as many
    #[arg(long, default_value_t = 24, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=210))]
    max_megapixels: u64,
    /// Maximum open connections
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_connections: u32,
}

/// Serves until a signal stops the server.
///
/// # Errors
/// If an argument is invalid, the address is in use, a model cannot be used, or its outputs differ from its definition's.
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
        false => Some(open(args.model.as_deref(), "tinydit", pretrained::TINYDIT)?),
    };
    let classifier = match args.no_classifier {
        true => None,
        false => Some(open(args.classifier.as_deref(), "resnet18-breeds", pretrained::CLASSIFIER)?),
    };
    // Names are part of URLs and metrics, so the two must differ.
    let classifier = classifier.map(|(name, model)| match &generator {
        Some((other, _)) if *other == name => (format!("{name}-classifier"), model),
        _ => (name, model),
    });
    let stop = Arc::new(tokio::sync::Notify::new());
    listen_for_signals(&stop)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("tokio")?;
    let end = runtime.block_on(async {
        let guarded = config.token.is_some();
        let server = Server::start(config, generator, classifier).await?;
        let address = server.address()?;
        if !address.ip().is_loopback() && !guarded {
            eprint_and_log(
                "anybody who reaches this address can use the API: --token-file asks them for a token",
            );
        }
        // Printed at once, so that the parent process learns the port; API requests before the server is ready are answered with 503.
        print_and_log(&format!("listening at http://{address}/"));
        server.when_ready(move || {
            eprint_and_log(&format!("ready after {:.2} s", start.elapsed().as_secs_f64()))
        });
        server.run(async move { stop.notified().await }).await
    })?;
    Ok(match end {
        Shutdown::Finished => {
            eprint_and_log("stopped: all that was accepted was answered");
            ExitCode::SUCCESS
        }
        Shutdown::Cut(n) => {
            eprint_and_log(&format!("stopped: {n} connections were cut, their time being over"));
            ExitCode::FAILURE
        }
    })
}

fn config(args: &Args) -> anyhow::Result<Config> {
    let origin = |text: &String| {
        let known = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let origin = known.filter(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', '*', ' ']));
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

/// Reads the token that clients must send, if there is one. It is never an argument, since every user of the machine can see those.
fn token(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let (token, place) = match (file, std::env::var("TINY_CATS_TOKEN")) {
        (Some(path), _) => (
            fs::read_to_string(path).with_context(|| path.display().to_string())?,
            path.display().to_string(),
        ),
        (None, Ok(token)) => (token, "TINY_CATS_TOKEN".to_owned()),
        (None, Err(VarError::NotPresent)) => return Ok(None),
        // Ignoring the variable would open a server that was meant to be protected.
        (None, Err(VarError::NotUnicode(_))) => bail!("TINY_CATS_TOKEN: expected text"),
    };
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{place}: expected a token of printable characters, without spaces");
    }
    Ok(Some(token.to_owned()))
}

/// Opens the model in a file, or the one that comes with this program, and names it.
fn open(path: Option<&Path>, name: &str, bytes: &'static [u8]) -> anyhow::Result<NamedModel> {
    let Some(path) = path else {
        return Ok((name.to_owned(), Model::from_bytes(bytes.to_vec(), &format!("the pretrained {name}"))?));
    };
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    // The name becomes part of a URL and of metrics.
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    Ok((stem.chars().map(plain).collect(), open_model(path)?))
}

/// Stops the server at the first signal, and ends the process at the second.
fn listen_for_signals(stop: &Arc<tokio::sync::Notify>) -> anyhow::Result<()> {
    let mut signals = Signals::new(signals::stop_signals()).context("signals")?;
    let stop = stop.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut asked = false;
        for signal in signals.forever() {
            if asked {
                std::process::exit(128 + signal);
            }
            asked = true;
            eprint_and_log("stopping: what was accepted is finished; a second signal ends it at once");
            stop.notify_one();
        }
    })?;
    Ok(())
}
