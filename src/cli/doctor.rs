//! `tiny-cats doctor`: reports what this machine and this program can do.

use std::{fmt::Write as _, io::Write as _};

use anyhow::bail;

use crate::doctor::{Capacity, Cuda, DoctorReport, Runtime, inspect};

/// The arguments of `tiny-cats doctor`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the report.
///
/// # Errors
/// If the native runtime cannot generate an image.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let report = inspect()?;
    let output =
        if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { format_report(&report)? };
    // `print!` would panic if the pipe is closed, as by `head`.
    std::io::stdout().write_all(output.as_bytes())?;
    if !report.ok {
        bail!("the embedded runtime does not work");
    }
    Ok(())
}

fn format_report(report: &DoctorReport) -> Result<String, std::fmt::Error> {
    let mut output = String::new();
    let processor = &report.cpu;
    let cores = processor.cores.map_or(String::new(), |n| format!("{n} cores, "));
    let name = if processor.name.is_empty() { "unknown" } else { &processor.name };
    let threads = processor.threads;
    writeln!(output, "{:<12}{name}, {}, {cores}{threads} threads", "CPU", processor.architecture)?;
    for (is_supported, verb) in [(true, "has"), (false, "lacks")] {
        let features: Vec<&str> =
            processor.features.iter().filter(|f| *f.1 == is_supported).map(|f| *f.0).collect();
        if !features.is_empty() {
            writeln!(output, "{:<12}{verb} {}", "", features.join(", "))?;
        }
    }
    writeln!(output, "{:<12}{}", "memory", format_capacity(report.memory))?;
    if let Some(disk) = report.disk {
        writeln!(output, "{:<12}{}", "disk", format_capacity(disk))?;
    }
    writeln!(output, "runtimes")?;
    for runtime in &report.runtimes {
        let version = runtime.version.as_deref().unwrap_or("");
        row(
            &mut output,
            runtime.error.is_none(),
            &format!("{} {version}", runtime.name),
            &runtime_details(runtime),
        )?;
    }
    writeln!(output, "NVIDIA GPU")?;
    let Cuda { built_in, driver, gpus, error, fix } = &report.cuda;
    let problem = error.as_ref().map_or(String::new(), |e| with_fix(e, fix.as_deref()));
    row(&mut output, error.is_none(), "CUDA", &problem)?;
    let location =
        driver.as_ref().map_or("its library was not found".into(), |path| path.display().to_string());
    row(&mut output, driver.is_some(), "driver", &location)?;
    for gpu in gpus {
        row(&mut output, *built_in && error.is_none(), "GPU", gpu)?;
    }
    writeln!(output, "models")?;
    for model in &report.models {
        let (bytes, size, classes) = (model.bytes as f64 / 1e6, model.image_size, model.classes.len());
        let details = format!("{classes} classes, {size} px, {bytes:.1} MB, {}", model.integrity);
        row(&mut output, true, model.name, &details)?;
    }
    Ok(output)
}

fn row(output: &mut String, ok: bool, name: &str, details: &str) -> std::fmt::Result {
    let line = format!("  {:<10}{name:<20}{details}", if ok { "ok" } else { "missing" });
    writeln!(output, "{}", line.trim_end())
}

fn runtime_details(runtime: &Runtime) -> String {
    let time = runtime.milliseconds.map(|ms| format!("a step of the released generator in {ms:.0} ms"));
    let location = runtime.library.as_ref().map(|path| path.display().to_string());
    let problem = runtime.error.as_ref().map(|e| with_fix(e, runtime.fix.as_deref()));
    [problem, time, location].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn with_fix(error: &str, fix: Option<&str>) -> String {
    // Some errors contain the fix.
    match fix.filter(|fix| !error.contains(fix)) {
        Some(fix) => format!("{error}; to fix it: {fix}"),
        None => error.to_owned(),
    }
}

fn format_capacity(capacity: Capacity) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    format!("{:.1} GiB free of {:.1} GiB", gib(capacity.free), gib(capacity.total))
}
