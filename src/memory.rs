//! Memory of this process: current, peak and available; and the memory of a GPU.

use candle_core::Device as CandleDevice;

/// The resident memory of this process, in bytes; `None` if the system does not report it.
pub fn process() -> Option<u64> {
    system::process()
}

/// The peak resident memory of this process, in bytes; `None` if the system does not report it.
pub fn peak() -> Option<u64> {
    system::peak()
}

/// The bytes that this process can still allocate. It is the smallest limit of the system, the container (cgroup) and the address space
/// (`ulimit -v`). `None` if the system does not report it.
pub fn available() -> Option<u64> {
    system::available()
}

/// The memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Bytes in use by tensors of this process.
    pub allocated: u64,
    /// Bytes reserved by this process, also for future tensors.
    pub reserved: u64,
    /// The GPU's total memory.
    pub total: u64,
}

/// The memory of `device`; `None` for a CPU, and for a GPU that does not report it.
#[cfg(feature = "cuda")]
pub fn device(device: &CandleDevice) -> Option<Device> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys::CUmemPool_attribute as Attribute};
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let context = stream.context();
    let (free, total) = context.mem_get_info().ok()?;
    if !context.has_async_alloc() {
        // Without a pool freed memory is returned at once, and only the sum over all processes is known.
        let used = total.saturating_sub(free) as u64;
        return Some(Device { allocated: used, reserved: used, total: total as u64 });
    }
    // SAFETY: the device is the context's.
    let pool = unsafe { result::device::get_mem_pool(context.cu_device()) }.ok()?;
    let read = |attribute: Attribute| {
        let mut bytes = 0u64;
        // SAFETY: the pool is the device's, and both attributes are of the type cuuint64_t.
        unsafe { result::mem_pool::get_attribute(pool, attribute, std::ptr::from_mut(&mut bytes).cast()) }
            .ok()?;
        Some(bytes)
    };
    Some(Device {
        allocated: read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
        reserved: read(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?,
        total: total as u64,
    })
}

/// The memory of `device`; `None` for a CPU, and for a GPU that does not report it.
#[cfg(not(feature = "cuda"))]
pub fn device(_device: &CandleDevice) -> Option<Device> {
    None
}

#[cfg(target_os = "linux")]
mod system {
    use std::{fs::File, io::Read, path::Path};

    pub fn process() -> Option<u64> {
        field_bytes(&read("/proc/self/status")?, "VmRSS:")
    }

    pub fn peak() -> Option<u64> {
        field_bytes(&read("/proc/self/status")?, "VmHWM:")
    }

    pub fn available() -> Option<u64> {
        let machine = field_bytes(&read("/proc/meminfo")?, "MemAvailable:");
        let cgroup = read("/proc/self/cgroup").and_then(|text| cgroups(&text, Path::new("/sys/fs/cgroup")));
        [machine, cgroup, address_space()].into_iter().flatten().min()
    }

    fn read(path: impl AsRef<Path>) -> Option<String> {
        let mut text = String::new();
        // The kernel's files are short; no other files are read.
        File::open(path).ok()?.take(1 << 20).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// The number in the line that starts with `name`, converted from KiB to bytes.
    fn field_bytes(text: &str, name: &str) -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// The remaining part of RLIMIT_AS, if it is set.
    fn address_space() -> Option<u64> {
        let limits = read("/proc/self/limits")?;
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
        let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
        Some(limit.saturating_sub(field_bytes(&read("/proc/self/status")?, "VmSize:")?))
    }

    /// The smallest remaining memory of the groups in `/proc/self/cgroup` and their parents; `None` if none has a limit.
    ///
    /// Version 2 has one hierarchy, with an empty name; version 1 has a separate one for memory. In a container only the innermost group
    /// may be visible, as the root.
    pub(super) fn cgroups(text: &str, root: &Path) -> Option<u64> {
        let mut available = None;
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let (base, files) = if controllers.is_empty() {
                (root.to_owned(), ["memory.max", "memory.current", "inactive_file"])
            } else if controllers.split(',').any(|c| c == "memory") {
                let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
                (root.join("memory"), files)
            } else {
                continue;
            };
            let mut group = Some(Path::new(path.trim_start_matches('/')));
            while let Some(path) = group {
                available = available.into_iter().chain(cgroup_available(&base.join(path), &files)).min();
                group = path.parent();
            }
        }
        available
    }

    /// The remaining memory of one group: its limit, minus the usage that cannot be freed at once.
    fn cgroup_available(group: &Path, [limit, usage, cache]: &[&str; 3]) -> Option<u64> {
        let number = |file: &str| read(group.join(file))?.trim().parse::<u64>().ok();
        let limit = number(limit)?;
        let stat = read(group.join("memory.stat")).unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(*cache)?.trim().parse().ok());
        Some(limit.saturating_sub(number(usage)?.saturating_sub(cache.unwrap_or(0))))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use sysinfo::{ProcessesToUpdate, System};

    pub fn process() -> Option<u64> {
        let id = sysinfo::get_current_pid().ok()?;
        let mut system = System::new();
        system.refresh_processes(ProcessesToUpdate::Some(&[id]), true);
        Some(system.process(id)?.memory())
    }

    pub fn peak() -> Option<u64> {
        None
    }

    pub fn available() -> Option<u64> {
        let mut system = System::new();
        system.refresh_memory();
        Some(system.available_memory())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_measured() {
        let size: u64 = 256 << 20;
        let initial = process().unwrap();
        let allocation = std::hint::black_box(vec![1u8; size as usize]);
        let current = process().unwrap();
        // Other tests of this process may allocate and free memory at the same time.
        assert!(current >= initial + size / 2, "{initial}, then {current}");
        drop(allocation);
        assert!(peak().is_none_or(|peak| peak >= initial + size / 2));
        assert!(available().unwrap() > 0);
        assert_eq!(device(&CandleDevice::Cpu), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_smallest_cgroup_limit_applies() {
        use std::fs::{create_dir_all, write};
        let dir = tempfile::tempdir().unwrap();
        let group = |path: &str, files: &[(&str, &str)]| {
            create_dir_all(dir.path().join(path)).unwrap();
            files.iter().for_each(|(name, text)| write(dir.path().join(path).join(name), text).unwrap());
        };
        let available = |text: &str| system::cgroups(text, dir.path());
        assert_eq!(available("0::/a/b\n5:memory:/c\nnonsense\n"), None);
        group("a/b", &[("memory.max", "max\n"), ("memory.current", "10\n")]);
        assert_eq!(available("0::/a/b\n"), None);
        let stat = ("memory.stat", "anon 5\ninactive_file 30\n");
        group("a", &[("memory.max", "1000\n"), ("memory.current", "400\n"), stat]);
        assert_eq!(available("0::/a/b\n"), Some(630));
        group("a/b", &[("memory.max", "500\n"), ("memory.current", "499\n")]);
        assert_eq!(available("0::/a/b\n"), Some(1));
        // Version 1, seen from inside a container: the path does not exist, and the root is the group.
        let stat = ("memory.stat", "total_inactive_file 100\n");
        group("memory", &[("memory.limit_in_bytes", "2000\n"), ("memory.usage_in_bytes", "3000\n"), stat]);
        assert_eq!(available("3:cpu:/\n4:memory:/elsewhere/x\n"), Some(0));
        assert_eq!(available("4:cpu,memory:/elsewhere/x\n0::/a\n"), Some(0));
    }
}
