//! What is looked at before the first step, so that a run does not fail in the night for what could be seen in the evening.

use super::{Error, Event, Plan, Result, Task, run::KEPT};

/// Looks whether there is room for what the run will write.
///
/// # Errors
/// [`Error::Preflight`] saying what there is too little of.
pub(super) fn check(task: &dyn Task, plan: &Plan, observe: &mut dyn FnMut(Event)) -> Result<()> {
    let ledger = task.cost()?;
    let weights = 4 * ledger.parameters();
    // Weights, two moments, and the moving averages.
    let state = weights * (3 + plan.optimizer.ema.len() as u64);
    // The best apart from the newest, one that is being written, and the two released files.
    let needed = state * (KEPT as u64 + 2) + 2 * weights;
    let free = fs4::available_space(&plan.folder)
        .map_err(|source| Error::File { path: plan.folder.clone(), source })?;
    if free < needed {
        let (folder, needed, free) = (plan.folder.display(), megabytes(needed), megabytes(free));
        let message = format!("{folder}: training states need {needed}, {free} are free");
        return Err(Error::Preflight(message));
    }
    let _ = observe;
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}
