//! The ONNX Runtime runtime, loaded from a shared library at first use.

use std::{
    env,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{Session as RawSession, SessionInputValue, builder::GraphOptimizationLevel},
    value::TensorRef,
};
use rayon::prelude::*;
use tiny_cats_models::Array;

use super::{
    InputTensor, RuntimeKind, Session,
    batch_split::{MAX_ITEMS_PER_PASS, items, split_batch},
    catch_panics, check_inputs, output_index, threads,
};
use crate::{
    Result,
    onnx::{OnnxFile, ValueInfo},
};

const KIND: RuntimeKind = RuntimeKind::Ort;

const INSTALL_HINT: &str = "no onnxruntime library found: `pip install onnxruntime`, or set ORT_DYLIB_PATH to the library \
                          of a release of ONNX Runtime 1.24 or newer";

/// Maximum number of sessions that share a batch: each holds the weights.
const WORKERS: usize = 4;

/// A graph that ONNX Runtime has optimized.
///
/// Several sessions with few threads, each with some items of a batch, are faster than one session with all threads, because the
/// threads of a session synchronize at every operation. Batches with fewer items than workers use one session with all threads.
pub struct OrtSession {
    file: OnnxFile,
    optimize: bool,
    names: Vec<String>,
    outputs: Vec<String>,
    workers: Vec<RawSession>,
    all_threads: Option<RawSession>,
}

impl OrtSession {
    pub fn load(file: &OnnxFile, optimize: bool) -> Result<Self> {
        let names = |ports: &[ValueInfo]| ports.iter().map(|port| port.name.clone()).collect();
        let (inputs, outputs) = (names(file.inputs()), names(file.outputs()));
        let any_batch = file.inputs().iter().all(|port| port.dims.first() == Some(&None));
        let mut session = Self {
            file: file.clone(),
            optimize,
            names: inputs,
            outputs,
            workers: Vec::new(),
            all_threads: None,
        };
        let workers = threads().min(WORKERS);
        if any_batch && workers > 1 {
            // The sum over the workers is the number of threads, even if it is not a multiple of the number of workers.
            let load_worker =
                |worker| catch_panics(KIND, || load_session(file, (threads() + worker) / workers, optimize));
            session.workers = (0..workers).into_par_iter().map(load_worker).collect::<Result<_>>()?;
        } else {
            session.all_threads = Some(load_session(file, threads(), optimize)?);
        }
        Ok(session)
    }
}

fn load_session(file: &OnnxFile, threads: usize, optimize: bool) -> Result<RawSession> {
    let environment = &library()?.environment;
    let level = if optimize { GraphOptimizationLevel::All } else { GraphOptimizationLevel::Disable };
    let session = || -> ort::Result<RawSession> {
        RawSession::builder(environment)?
            .with_log_level(LogLevel::Error)?
            .with_intra_threads(threads)?
            .with_optimization_level(level)?
            .commit_from_memory(file.bytes())
    };
    session().map_err(|e| KIND.error(e))
}

/// Computes output number `output` for the items `range` of `inputs` in `session`.
fn run_items(
    session: &mut RawSession,
    inputs: &[(&str, InputTensor)],
    output: usize,
    range: Range<usize>,
) -> Result<Array> {
    let mut run = || -> ort::Result<(Vec<usize>, Vec<f32>)> {
        let mut values: Vec<(String, SessionInputValue)> = Vec::with_capacity(inputs.len());
        for &(name, input) in inputs {
            let value = match input {
                InputTensor::Floats(array) => TensorRef::from_array_view(items(array, range.clone()))?.into(),
                InputTensor::Labels(labels) => {
                    TensorRef::from_array_view(([range.len()], &labels[range.clone()]))?.into()
                }
            };
            values.push((name.to_owned(), value));
        }
        let outputs = session.run(values)?;
        let (shape, data) = outputs[output].try_extract_tensor::<f32>()?;
        Ok((shape.iter().map(|&d| d as usize).collect(), data.to_vec()))
    };
    let (dims, data) = catch_panics(KIND, || run().map_err(|e| KIND.error(e)))?;
    Ok(Array::new(dims, data)?)
}

impl Session for OrtSession {
    fn kind(&self) -> RuntimeKind {
        KIND
    }

    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn run_output(&mut self, inputs: &[(&str, InputTensor)], output: &str) -> Result<Array> {
        let output = output_index(self, output)?;
        let batch = check_inputs(KIND, self.names.iter().map(String::as_str), inputs)?;
        if !self.workers.is_empty() && batch >= self.workers.len() {
            return split_batch(&mut self.workers, batch, MAX_ITEMS_PER_PASS, |session, range| {
                run_items(session, inputs, output, range)
            });
        }
        let session = match &mut self.all_threads {
            Some(session) => session,
            none => none.insert(load_session(&self.file, threads(), self.optimize)?),
        };
        run_items(session, inputs, output, 0..batch)
    }
}

/// Returns the version of the library.
pub fn version() -> Result<String> {
    let library = library()?;
    // libonnxruntime.so.1.31.1
    let name = library.path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let numbers: Vec<&str> = name.split('.').filter(|part| part.parse::<u32>().is_ok()).collect();
    if numbers.len() > 1 {
        return Ok(numbers.join("."));
    }
    // "ORT Build Info: git-branch=rel-1.24.1, git-commit-id=..., .."
    let field = |key: &str| ort::info().split_once(key).and_then(|(_, rest)| rest.split([',', ' ']).next());
    let release = field("git-branch=rel-").map(str::to_owned);
    Ok(release
        .or_else(|| Some(format!("commit {}", field("git-commit-id=")?)))
        .unwrap_or_else(|| "unknown".into()))
}

/// Returns the path of the library.
pub fn path() -> Option<&'static Path> {
    Some(&library().ok()?.path)
}

/// A loaded library.
struct Library {
    environment: Environment,
    path: PathBuf,
}

fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(find).as_ref().map_err(|message| KIND.error(message))
}

fn find() -> Result<Library, String> {
    let load = |path: &Path| {
        let builder = ort::init_from(path).map_err(|e| e.to_string())?;
        let environment = builder.with_telemetry(false).build().map_err(|e| e.to_string())?;
        Ok(Library { environment, path: path.canonicalize().unwrap_or_else(|_| path.into()) })
    };
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        return load(Path::new(&path)).map_err(|e: String| format!("ORT_DYLIB_PATH: {e}"));
    }
    let mut last_error = None;
    for path in folders().into_iter().chain(python_package()).filter_map(|folder| library_in(&folder)) {
        match load(&path) {
            Ok(library) => return Ok(library),
            Err(e) => last_error = Some(e),
        }
    }
    Err(last_error.unwrap_or_else(|| INSTALL_HINT.into()))
}

/// Returns the folders to search for the library: the program's folder and the system's library folders.
fn folders() -> Vec<PathBuf> {
    let program_dir = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
    let system: &[&str] = if cfg!(target_os = "macos") {
        &["/opt/homebrew/lib", "/usr/local/lib"]
    } else if cfg!(unix) {
        &[
            "/usr/local/lib",
            "/usr/lib",
            "/usr/lib64",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
        ]
    } else {
        &[]
    };
    program_dir.into_iter().chain(system.iter().map(PathBuf::from)).collect()
}

/// Returns the folder of the library in the Python package `onnxruntime`, for the first Python in `PATH`.
fn python_package() -> Option<PathBuf> {
    let program = if cfg!(windows) { "python" } else { "python3" };
    // Not from the working directory, which may contain modules of others.
    let script = "import sys, importlib.util as u; sys.path = [p for p in sys.path if p]; s = u.find_spec('onnxruntime'); \
                print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new(program).args(["-c", script]).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    let folder = folder.trim();
    (!folder.is_empty()).then(|| Path::new(folder).join("capi"))
}

/// Returns the library in `folder`; of several, the last by name.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(is_library))
        .collect();
    found.sort();
    found.pop()
}

/// True if a file is called `libonnxruntime.so`, with or without a version, or the equivalent of another system.
fn is_library(name: &str) -> bool {
    let (stem, ending) = match () {
        () if cfg!(windows) => ("onnxruntime.", "dll"),
        () if cfg!(target_os = "macos") => ("libonnxruntime.", "dylib"),
        () => ("libonnxruntime.", "so"),
    };
    let Some(rest) = name.strip_prefix(stem) else { return false };
    let endings = rest.split('.').filter(|part| *part == ending).count();
    endings == 1 && rest.split('.').all(|part| part == ending || part.parse::<u32>().is_ok())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_recognized_with_and_without_a_version() {
        for name in ["libonnxruntime.so", "libonnxruntime.so.1", "libonnxruntime.so.1.31.1"] {
            assert!(is_library(name), "{name}");
        }
        for name in [
            "libonnxruntime_providers_shared.so",
            "libonnxruntime.so.txt",
            "libonnxruntime.1",
            "onnxruntime.so",
        ] {
            assert!(!is_library(name), "{name}");
        }
    }
}
