//! Where benchmarks compute, and how much memory they take there.

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

/// The device called `name`, and what it calls itself.
pub fn open(name: &str) -> Result<(Device, String)> {
    match name {
        "cpu" => Ok((Device::Cpu, "the processor".into())),
        #[cfg(feature = "cuda")]
        "cuda" => {
            let device = Device::new_cuda(0)?;
            let name = device.as_cuda_device()?.cuda_stream().context().name()?;
            Ok((device, name))
        }
        #[cfg(not(feature = "cuda"))]
        "cuda" => bail!("--device cuda: this program was built without the feature cuda"),
        other => bail!("--device: expected cpu or cuda, found {other}"),
    }
}

type InUse = Box<dyn Fn() -> u64 + Send>;

/// How many bytes are in use on a GPU.
#[cfg(feature = "cuda")]
fn in_use(device: &Device) -> Option<InUse> {
    let context = device.as_cuda_device().ok()?.cuda_stream().context().clone();
    Some(Box::new(move || context.mem_get_info().map_or(0, |(free, total)| (total - free) as u64)))
}

#[cfg(not(feature = "cuda"))]
fn in_use(_device: &Device) -> Option<InUse> {
    None
}

/// Watches how much memory is in use on a GPU, by whomever.
pub struct Memory {
    done: Arc<AtomicBool>,
    watch: JoinHandle<u64>,
}

impl Memory {
    /// `None` where `device` is no GPU.
    pub fn watch(device: &Device) -> Option<Self> {
        let in_use = in_use(device)?;
        let done = Arc::new(AtomicBool::new(false));
        let until = done.clone();
        let watch = std::thread::spawn(move || {
            let mut peak = 0;
            while !until.load(Ordering::Relaxed) {
                peak = peak.max(in_use());
                std::thread::sleep(Duration::from_millis(2));
            }
            peak
        });
        Some(Self { done, watch })
    }

    /// The most bytes that were seen in use.
    pub fn peak(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.watch.join().unwrap_or(0)
    }
}
