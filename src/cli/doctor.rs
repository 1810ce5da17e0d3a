//! `tiny-cats doctor`: reports what this machine and this program can do.

use std::{fmt::Write as _, io::Write as _};

use anyhow::bail;

use crate::doctor::{Capacity, Cuda, DoctorReport, Runtime, inspect};

/// The arguments of `tiny-cats doctor`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the report.
///
/// # Errors
/// If the embedded runtime cannot generate an image.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let report = inspect()?;
    let said = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { text(&report)? };
    // `print!` panics when a reader such as head closes the pipe.
    std::io::stdout().write_all(said.as_bytes())?;
    if !report.ok {
        bail!("the embedded runtime does not work");
    }
    Ok(())
}

fn text(report: &DoctorReport) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let processor = &report.processor;
    let cores = processor.cores.map_or(String::new(), |n| format!("{n} cores, "));
    let name = if processor.name.is_empty() { "unknown" } else { &processor.name };
    let threads = processor.threads;
    writeln!(out, "{:<12}{name}, {}, {cores}{threads} threads", "processor", processor.architecture)?;
    for (there, word) in [(true, "has"), (false, "lacks")] {
        let features: Vec<&str> = processor.features.iter().filter(|f| *f.1 == there).map(|f| *f.0).collect();
        if !features.is_empty() {
            writeln!(out, "{:<12}{word} {}", "", features.join(", "))?;
        }
    }
    writeln!(out, "{:<12}{}", "memory", space(report.memory))?;
    if let Some(disk) = report.disk {
        writeln!(out, "{:<12}{}", "disk", space(disk))?;
    }
    writeln!(out, "runtimes")?;
    for runtime in &report.runtimes {
        let version = runtime.version.as_deref().unwrap_or("");
        row(&mut out, runtime.error.is_none(), &format!("{} {version}", runtime.name), &about(runtime))?;
    }
    writeln!(out, "NVIDIA GPU")?;
    let Cuda { built_in, driver, gpus, error, fix } = &report.cuda;
    let trouble = error.as_ref().map_or(String::new(), |e| advice(e, fix.as_deref()));
    row(&mut out, error.is_none(), "CUDA", &trouble)?;
    let place = driver.as_ref().map_or("its library is not found".into(), |path| path.display().to_string());
    row(&mut out, driver.is_some(), "driver", &place)?;
    for gpu in gpus {
        row(&mut out, *built_in && error.is_none(), "GPU", gpu)?;
    }
    writeln!(out, "models")?;
    for model in &report.models {
        let (bytes, size, classes) = (model.bytes as f64 / 1e6, model.image_size, model.classes.len());
        let about = format!("{classes} classes, {size} px, {bytes:.1} MB, {}", model.integrity);
        row(&mut out, true, model.name, &about)?;
    }
    Ok(out)
}

fn row(out: &mut String, ok: bool, name: &str, about: &str) -> std::fmt::Result {
    let line = format!("  {:<10}{name:<20}{about}", if ok { "ok" } else { "missing" });
    writeln!(out, "{}", line.trim_end())
}

fn about(runtime: &Runtime) -> String {
    let time = runtime.milliseconds.map(|ms| format!("a step of the released generator in {ms:.0} ms"));
    let place = runtime.library.as_ref().map(|path| path.display().to_string());
    let trouble = runtime.error.as_ref().map(|e| advice(e, runtime.fix.as_deref()));
    [trouble, time, place].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn advice(error: &str, fix: Option<&str>) -> String {
    // Some errors contain the fix already.
    match fix.filter(|fix| !error.contains(fix)) {
        Some(fix) => format!("{error}; to get it: {fix}"),
        None => error.to_owned(),
    }
}

fn space(space: Capacity) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    format!("{:.1} GiB free of {:.1}", gib(space.free), gib(space.total))
}
