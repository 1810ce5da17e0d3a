//! The runtimes that compute an ONNX file.
// Without any of them, what they share is left over.
#![cfg_attr(
    not(any(feature = "tract", feature = "ort", feature = "candle-onnx")),
    allow(dead_code, unused_variables)
)]

#[cfg(any(feature = "native", feature = "tract", feature = "ort"))]
mod batch_split;
#[cfg(feature = "candle")]
pub(crate) mod candle;
#[cfg(feature = "candle-onnx")]
mod candle_onnx;
#[cfg(feature = "native")]
pub(crate) mod native;
#[cfg(feature = "ort")]
mod ort;
#[cfg(feature = "tract")]
mod tract;

use std::{fmt, path::Path, str::FromStr, thread::available_parallelism};

use tiny_cats_models::Array;

use crate::{Error, Result, excerpt, guard::catch, onnx::OnnxFile};

/// What can compute a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RuntimeKind {
    /// The definition itself, computed by our own kernels: embedded.
    Native,
    /// tract, embedded: pure Rust.
    Tract,
    /// ONNX Runtime, found when first used.
    Ort,
    /// The definition itself, read by candle, with the weights of the file.
    Candle,
    /// candle's interpreter of ONNX, for verification.
    CandleOnnx,
}

impl RuntimeKind {
    /// All of them, whether built in or not.
    pub const ALL: [Self; 5] = [Self::Native, Self::Tract, Self::Ort, Self::Candle, Self::CandleOnnx];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tract => "tract",
            Self::Ort => "ort",
            Self::Candle => "candle",
            Self::CandleOnnx => "candle-onnx",
        }
    }

    /// Its version.
    ///
    /// # Errors
    /// [`Error::Runtime`] saying why it is not there, and how to get it.
    pub fn version(self) -> Result<String> {
        match self {
            #[cfg(feature = "native")]
            Self::Native => Ok(native::VERSION.into()),
            #[cfg(feature = "tract")]
            Self::Tract => Ok(tract::VERSION.into()),
            #[cfg(feature = "ort")]
            Self::Ort => ort::version(),
            #[cfg(feature = "candle")]
            Self::Candle => Ok(candle::VERSION.into()),
            #[cfg(feature = "candle-onnx")]
            Self::CandleOnnx => Ok(candle::VERSION.into()),
            #[allow(unreachable_patterns)]
            _ => Err(self.not_available()),
        }
    }

    /// The shared library that it is in; `None` when it is part of the program, or not there.
    pub fn library(self) -> Option<&'static Path> {
        match self {
            #[cfg(feature = "ort")]
            Self::Ort => ort::path(),
            _ => None,
        }
    }

    /// Loads a graph into this runtime.
    ///
    /// # Errors
    /// [`Error::Runtime`] when it is not there, or refuses the graph. [`Native`](Self::Native) and
    /// [`Candle`](Self::Candle) compute definitions, no graphs.
    pub fn load(self, file: &OnnxFile) -> Result<Box<dyn Session>> {
        catch_panics(self, || match self {
            #[cfg(feature = "tract")]
            Self::Tract => Ok(Box::new(tract::TractSession::load(file)?) as Box<dyn Session>),
            #[cfg(feature = "ort")]
            Self::Ort => Ok(Box::new(ort::OrtSession::load(file)?) as Box<dyn Session>),
            #[cfg(feature = "candle-onnx")]
            Self::CandleOnnx => Ok(Box::new(candle_onnx::CandleOnnxSession::load(file)?) as Box<dyn Session>),
            Self::Native | Self::Candle if self.version().is_ok() => {
                Err(self.error("it computes definitions, not graphs"))
            }
            #[allow(unreachable_patterns)]
            _ => Err(self.not_available()),
        })
    }

    /// Whether it computes any graph, rather than the definition.
    pub fn runs_graphs(self) -> bool {
        !matches!(self, Self::Native | Self::Candle)
    }

    /// The newest operator set in which it computes all that we write. candle-onnx ignores the axes of a reduction from 18 on, without
    /// an error.
    pub fn max_opset(self) -> u32 {
        if self == Self::CandleOnnx { 17 } else { *crate::onnx::OPSETS.end() }
    }

    pub(crate) fn not_available(self) -> Error {
        self.error(format!("not built in; build with the feature {}", self.name()))
    }

    pub(crate) fn error(self, message: impl fmt::Display) -> Error {
        // Runtimes explain themselves over many lines; ours is one.
        let line = message.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Error::Runtime { runtime: self.name(), message: excerpt(&line).into_owned() }
    }
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for RuntimeKind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|k| k.name() == s);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::request("runtime", format!("expected one of {names}, found {s:?}"))
        })
    }
}

/// Every runtime with its version, or why it is not there.
pub fn available() -> Vec<(RuntimeKind, Result<String>)> {
    RuntimeKind::ALL.into_iter().map(|kind| (kind, kind.version())).collect()
}

/// What a graph is given under one name; the first axis is the batch.
#[derive(Clone, Copy, Debug)]
pub enum InputTensor<'a> {
    /// Numbers, `[batch, ..]`.
    Floats(&'a Array),
    /// One whole number for each item.
    Labels(&'a [i64]),
}

impl InputTensor<'_> {
    fn batch(&self) -> Option<usize> {
        match self {
            Self::Floats(array) => array.dims().first().copied(),
            Self::Labels(labels) => Some(labels.len()),
        }
    }
}

/// A graph loaded into a runtime.
pub trait Session: Send {
    /// Which runtime it is.
    fn kind(&self) -> RuntimeKind;

    /// Computes the graph's first output. Inputs go by name and have one batch size, which may differ from call to call.
    ///
    /// # Errors
    /// [`Error::Runtime`] when inputs are missing, unknown or of wrong sizes, or the runtime fails.
    fn run(&mut self, inputs: &[(&str, InputTensor)]) -> Result<Array>;
}

/// Computes `file` on every runtime that is present and can read its operator set: the runtime, and its result.
pub fn run_on_all(file: &OnnxFile, inputs: &[(&str, InputTensor)]) -> Vec<(RuntimeKind, Result<Array>)> {
    let present =
        |kind: &RuntimeKind| kind.runs_graphs() && file.opset() <= kind.max_opset() && kind.version().is_ok();
    let run = |kind: RuntimeKind| (kind, kind.load(file).and_then(|mut session| session.run(inputs)));
    RuntimeKind::ALL.into_iter().filter(present).map(run).collect()
}

/// Whether all `weights` have the names of parameters.
///
/// # Errors
/// Naming one that has not.
#[cfg(feature = "native")]
fn check_weights(specs: &[tiny_cats_models::ParamSpec], weights: &tiny_cats_models::Weights) -> Result<()> {
    match weights.keys().find(|name| specs.iter().all(|spec| spec.name != **name)) {
        Some(other) => {
            Err(Error::file(crate::error::WEIGHTS, other, "the network has no parameter of this name"))
        }
        None => Ok(()),
    }
}

/// Runs `f`, and makes an error of a panic: the runtimes index what a file gives them.
fn catch_panics<T>(kind: RuntimeKind, f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch(f).unwrap_or_else(|message| Err(panicked(kind, &message)))
}

fn panicked(kind: RuntimeKind, message: &str) -> Error {
    kind.error(format!("it panicked over this file: {message}"))
}

/// The common batch size of `inputs`, which must be those that `names` lists.
fn check_inputs<'a>(
    kind: RuntimeKind,
    names: impl ExactSizeIterator<Item = &'a str>,
    inputs: &[(&str, InputTensor)],
) -> Result<usize> {
    let expected = names.len();
    for name in names {
        if !inputs.iter().any(|(n, _)| *n == name) {
            return Err(kind.error(format!("the graph takes {name}, which is not given")));
        }
    }
    if inputs.len() != expected {
        return Err(kind.error(format!("the graph takes {expected} inputs, {} are given", inputs.len())));
    }
    let batch = inputs.first().and_then(|(_, input)| input.batch()).unwrap_or(0);
    if batch == 0 || inputs.iter().any(|(_, input)| input.batch() != Some(batch)) {
        return Err(kind.error("expected inputs of one batch size, at least 1"));
    }
    Ok(batch)
}

/// Threads to compute with.
fn threads() -> usize {
    available_parallelism().map_or(1, |n| n.get())
}
