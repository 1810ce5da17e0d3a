//! The capabilities of this machine and this program: CPU, memory, runtimes, GPUs, released models.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use candle_core::{Device, Tensor};
use serde::Serialize;
use sysinfo::{CpuRefreshKind, System};
use tiny_cats_export::{Error, Generator, Integrity, LoadOptions, Model, Request, runtime::RuntimeKind};
use tiny_cats_models::pretrained;

/// The command that installs the program with CUDA.
pub const CUDA_INSTALL_COMMAND: &str = "cargo install --path . --features cuda";

/// The result of an inspection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DoctorReport {
    /// This program's version.
    pub version: &'static str,
    /// True if the embedded runtime generated an image.
    pub ok: bool,
    /// The CPU.
    #[serde(rename = "processor")]
    pub cpu: Cpu,
    /// Memory, in bytes.
    pub memory: Capacity,
    /// The disk of the working folder, in bytes.
    pub disk: Option<Capacity>,
    /// Every runtime, available or not.
    pub runtimes: Vec<Runtime>,
    /// NVIDIA GPUs.
    pub cuda: Cuda,
    /// The models in the program.
    pub models: Vec<ReleasedModel>,
}

/// The CPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cpu {
    /// The vendor's name of the CPU; empty if the system does not report it.
    pub name: String,
    /// The instruction set, such as `x86_64`.
    pub architecture: &'static str,
    /// Number of cores, if the system reports it.
    pub cores: Option<usize>,
    /// Number of threads that this program may run at once.
    pub threads: usize,
    /// Extensions for fast arithmetic; true if available.
    pub features: BTreeMap<&'static str, bool>,
}

/// The free and total space of memory or a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Free bytes.
    pub free: u64,
    /// Bytes in total.
    pub total: u64,
}

/// A runtime.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Runtime {
    /// The name that `--runtime` takes.
    pub name: &'static str,
    /// Its version, if it is available.
    pub version: Option<String>,
    /// The shared library that it was loaded from.
    pub library: Option<PathBuf>,
    /// The time of one step of the released generator for one image, after a warm-up step.
    pub milliseconds: Option<f64>,
    /// The reason why it cannot be used.
    pub error: Option<String>,
    /// The command that would fix it.
    pub fix: Option<String>,
}

/// The state of CUDA and NVIDIA GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cuda {
    /// True if this program was built with CUDA.
    pub built_in: bool,
    /// The driver's library.
    pub driver: Option<PathBuf>,
    /// The output of `nvidia-smi` for each GPU: name, memory, driver, compute capability.
    pub gpus: Vec<String>,
    /// The reason why the first GPU cannot be used.
    pub error: Option<String>,
    /// The command or change that would fix it.
    pub fix: Option<String>,
}

/// A model in the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReleasedModel {
    /// Its name.
    pub name: &'static str,
    /// Its size, in bytes.
    pub bytes: usize,
    /// Width and height of its images, in pixels.
    pub image_size: usize,
    /// Its classes.
    pub classes: Vec<String>,
    /// The result of comparing its content with its digest.
    pub integrity: Integrity,
}

/// Inspects the machine and the program. Each runtime generates the same image in one step of the released generator.
///
/// # Errors
/// If a released model in the program is damaged.
pub fn inspect() -> tiny_cats_export::Result<DoctorReport> {
    let mut system = System::new();
    system.refresh_memory();
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    let mut memory = Capacity { free: system.available_memory(), total: system.total_memory() };
    if let Some(limits) = system.cgroup_limits() {
        memory = Capacity {
            free: memory.free.min(limits.free_memory),
            total: memory.total.min(limits.total_memory),
        };
    }
    let stats = fs4::statvfs(".").ok();
    let disk = stats.map(|s| Capacity { free: s.available_space(), total: s.total_space() });
    let models =
        pretrained::ALL.iter().map(|&(name, bytes)| released(name, bytes)).collect::<Result<_, _>>()?;
    let runtimes = runtimes()?;
    Ok(DoctorReport {
        version: env!("CARGO_PKG_VERSION"),
        ok: runtimes.iter().any(|r| r.name == RuntimeKind::Native.name() && r.error.is_none()),
        cpu: cpu(&system),
        memory,
        disk,
        runtimes,
        cuda: cuda(),
        models,
    })
}

fn cpu(system: &System) -> Cpu {
    Cpu {
        name: system.cpus().first().map_or(String::new(), |cpu| cpu.brand().trim().to_owned()),
        architecture: env::consts::ARCH,
        cores: System::physical_core_count(),
        threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
        features: features(),
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn features() -> BTreeMap<&'static str, bool> {
    use std::arch::is_x86_feature_detected as has;
    // The standard library cannot detect AMX yet.
    let amx = raw_cpuid::CpuId::new().get_extended_feature_info().is_some_and(|f| f.has_amx_bf16());
    BTreeMap::from([
        ("AVX2", has!("avx2") && has!("fma")),
        ("AVX-512", has!("avx512f") && has!("avx512bw") && has!("avx512vl")),
        ("AVX512_BF16", has!("avx512bf16")),
        ("AMX-BF16", amx),
    ])
}

#[cfg(target_arch = "aarch64")]
fn features() -> BTreeMap<&'static str, bool> {
    use std::arch::is_aarch64_feature_detected as has;
    BTreeMap::from([
        ("NEON", has!("neon")),
        ("FP16", has!("fp16")),
        ("BF16", has!("bf16")),
        ("SVE", has!("sve")),
    ])
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> BTreeMap<&'static str, bool> {
    BTreeMap::new()
}

fn released(name: &'static str, bytes: &[u8]) -> tiny_cats_export::Result<ReleasedModel> {
    let model = Model::from_bytes(bytes.to_vec(), name)?;
    let meta = model.meta();
    Ok(ReleasedModel {
        name,
        bytes: bytes.len(),
        image_size: meta.image_size,
        classes: meta.classes.clone(),
        integrity: model.integrity(),
    })
}

fn runtimes() -> tiny_cats_export::Result<Vec<Runtime>> {
    let model = Model::from_bytes(pretrained::TINYDIT.to_vec(), "the pretrained TinyDiT")?;
    let mut first = None;
    Ok(RuntimeKind::ALL.into_iter().map(|kind| runtime(kind, &model, &mut first)).collect())
}

/// Generates an image on `kind`, which must equal `first`, that of the first runtime.
fn runtime(kind: RuntimeKind, model: &Model, first: &mut Option<Vec<f32>>) -> Runtime {
    let mut found = Runtime {
        name: kind.name(),
        version: None,
        library: kind.library().map(Path::to_owned),
        milliseconds: None,
        error: None,
        fix: None,
    };
    let generate = |found: &mut Runtime| -> tiny_cats_export::Result<Vec<f32>> {
        found.version = Some(kind.version()?);
        let options = LoadOptions { runtime: Some(kind), batch: 1 };
        let mut generator = Generator::from_model(model, &options)?;
        let request = Request { steps: Some(1), guidance: Some(1.0), ..Request::default() };
        // The first call also allocates memory and packs weights.
        generator.generate(&request)?;
        let start = Instant::now();
        let images = generator.generate(&request)?;
        found.milliseconds = Some(start.elapsed().as_secs_f64() * 1e3);
        Ok(images.into_iter().flat_map(|p| p.values.into_data()).collect())
    };
    found.error = match generate(&mut found) {
        Ok(image) => {
            let first = first.get_or_insert_with(|| image.clone());
            (!is_close(first, &image))
                .then(|| "it generates a different image than the runtimes above".into())
        }
        Err(Error::Runtime { message, .. }) => Some(message),
        Err(other) => Some(other.to_string()),
    };
    if found.error.is_some() {
        found.fix = Some(install_command(kind));
    }
    found
}

/// True if no value, most of which are between −1 and 1, has a visible difference.
fn is_close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.01)
}

fn install_command(kind: RuntimeKind) -> String {
    let built_in = match kind {
        RuntimeKind::Ort => cfg!(feature = "ort"),
        RuntimeKind::CandleOnnx => cfg!(feature = "candle-onnx"),
        RuntimeKind::Tract => cfg!(feature = "tract"),
        _ => true,
    };
    match kind {
        RuntimeKind::Ort if built_in && env::var_os("ORT_DYLIB_PATH").is_some() => {
            "unset ORT_DYLIB_PATH; pip install onnxruntime".into()
        }
        RuntimeKind::Ort if built_in => "pip install onnxruntime".into(),
        RuntimeKind::CandleOnnx if env::var_os("PROTOC").is_none() && on_path("protoc").is_none() => {
            "apt install protobuf-compiler && cargo install --path . --features candle-onnx".into()
        }
        _ => format!("cargo install --path . --features {kind}"),
    }
}

fn cuda() -> Cuda {
    let built_in = cfg!(feature = "cuda");
    let driver = cuda_driver();
    let (error, fix) = if !built_in {
        let toolkit = on_path("nvcc").map_or(", after installing NVIDIA's CUDA toolkit", |_| "");
        let error = "this program was built without CUDA".to_owned();
        (Some(error), Some(format!("{CUDA_INSTALL_COMMAND}{toolkit}")))
    } else {
        match use_gpu() {
            Ok(()) => (None, None),
            Err(e) if driver.is_none() => {
                (Some(first_line(&e)), Some("install NVIDIA's driver: its library was not found".into()))
            }
            Err(e) => {
                (Some(first_line(&e)), Some("run nvidia-smi to list the GPUs that the driver detects".into()))
            }
        }
    };
    Cuda { built_in, driver, gpus: gpus(), error, fix }
}

/// Computes a sum on the first GPU.
fn use_gpu() -> candle_core::Result<()> {
    let device = Device::new_cuda(0)?;
    let sum: f32 = Tensor::arange(0f32, 4.0, &device)?.sqr()?.sum_all()?.to_scalar()?;
    if sum != 14.0 {
        candle_core::bail!("the GPU computes 0 + 1 + 4 + 9 = {sum}");
    }
    Ok(())
}

fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Finds the driver's library in the usual folders of systems and containers. It is not loaded, because a default build does not use it.
fn cuda_driver() -> Option<PathBuf> {
    let (name, system): (_, &[&str]) = if cfg!(windows) {
        ("nvcuda.dll", &["C:\\Windows\\System32"])
    } else {
        let folders = &[
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/usr/lib/wsl/lib",
            "/usr/local/nvidia/lib64",
            "/run/opengl-driver/lib",
        ];
        ("libcuda.so.1", folders)
    };
    let search_path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let search_path: Vec<PathBuf> = env::split_paths(&search_path).filter(|p| p.is_absolute()).collect();
    let folders = search_path.into_iter().chain(system.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn gpus() -> Vec<String> {
    let query = ["--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"];
    match Command::new("nvidia-smi").args(query).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect()
        }
        _ => Vec::new(),
    }
}

/// The path of the program `name` that a shell would run.
fn on_path(name: &str) -> Option<PathBuf> {
    let name = format!("{name}{}", env::consts::EXE_SUFFIX);
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(&name)).find(|path| path.is_file())
}
