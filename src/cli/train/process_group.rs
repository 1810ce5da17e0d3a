//! Training on several GPUs: the processes that a training process begins, and being one of them.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
    sync::Arc,
};

use anyhow::Context;

use super::{common::CommonArgs, is_transient};
use crate::{
    cli::{logging, one_line},
    signals,
    train::{Error, ProcessGroup, parallel},
};

/// The variable that says how many threads share a computation.
const THREADS: &str = "RAYON_NUM_THREADS";

/// The processes that train together, this one being the first. The others are called as this one is, and told their rank.
///
/// # Errors
/// When this program cannot be found.
pub fn create(common: &CommonArgs) -> anyhow::Result<ProcessGroup> {
    if common.gpus == 1 {
        return Ok(ProcessGroup::single());
    }
    let program = std::env::current_exe().context("finding this program")?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let own = |argument: &OsString| argument.to_string_lossy().starts_with("--worker=");
    let place = arguments.iter().position(own).unwrap_or(arguments.len());
    Ok(ProcessGroup::leader(common.gpus, move |rank| {
        let mut command = Command::new(&program);
        command.args(&arguments[..place]).arg(format!("--rank={rank}")).args(&arguments[place..]);
        // It has nothing to save.
        #[cfg(unix)]
        signals::signal_on_parent_exit(&mut command, libc::SIGKILL);
        command
    }))
}

/// How many threads each process is to have, as a variable of its environment: they share the cores, unless the user has said how.
pub fn threads(common: &CommonArgs) -> Option<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let unsaid = common.gpus > 1 && std::env::var_os(THREADS).is_none();
    unsaid.then(|| (THREADS, (cores / common.gpus).max(1).to_string()))
}

/// Makes this process one that follows another: what it says is for that one, and signals are, too.
pub fn become_follower() {
    logging::set_quiet();
    for signal in signals::stop_signals() {
        // Where it cannot be caught, this process ends by it, and the first one notices.
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
}

/// Tells the first process how this one ended.
pub fn report_exit(ended: anyhow::Result<()>) -> ExitCode {
    let Err(error) = ended else { return ExitCode::SUCCESS };
    let message = match error.downcast_ref() {
        // The first process says itself whose error it is.
        Some(Error::Process { message, .. }) => message.clone(),
        _ => one_line(&error),
    };
    parallel::failed(&message, is_transient(&error));
    ExitCode::FAILURE
}
