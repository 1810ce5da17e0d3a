//! The device of a benchmark, and its memory use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, bail};
use candle_core::Device;

/// Opens the device called `name`; returns it and its description.
pub fn open(name: &str) -> Result<(Device, String)> {
    match name {
        "cpu" => Ok((Device::Cpu, "CPU".into())),
        #[cfg(feature = "cuda")]
        "cuda" => {
            let device = Device::new_cuda(0)?;
            let name = device.as_cuda_device()?.cuda_stream().context().name()?;
            Ok((device, name))
        }
        #[cfg(not(feature = "cuda"))]
        "cuda" => bail!("--device cuda: build with the feature cuda"),
        other => bail!("--device: expected cpu or cuda, found {other}"),
    }
}

type UsedBytes = Box<dyn Fn() -> u64 + Send>;

/// Returns a function that reads the number of bytes in use on a GPU.
#[cfg(feature = "cuda")]
fn used_bytes(device: &Device) -> Option<UsedBytes> {
    let context = device.as_cuda_device().ok()?.cuda_stream().context().clone();
    Some(Box::new(move || context.mem_get_info().map_or(0, |(free, total)| (total - free) as u64)))
}

#[cfg(not(feature = "cuda"))]
fn used_bytes(_device: &Device) -> Option<UsedBytes> {
    None
}

/// A thread that samples the memory in use on a GPU, by all processes.
pub struct PeakMemory {
    done: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl PeakMemory {
    /// Starts sampling. `None` if `device` is not a GPU.
    pub fn start(device: &Device) -> Option<Self> {
        let used_bytes = used_bytes(device)?;
        let done = Arc::new(AtomicBool::new(false));
        let is_done = done.clone();
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while !is_done.load(Ordering::Relaxed) {
                peak = peak.max(used_bytes());
                std::thread::sleep(Duration::from_millis(2));
            }
            peak
        });
        Some(Self { done, thread })
    }

    /// Stops sampling; returns the maximum number of bytes in use.
    pub fn peak(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(0)
    }
}
