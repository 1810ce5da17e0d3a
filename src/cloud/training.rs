//! A training to start at Modal.

use super::{
    CloudRun, CostLimits, Error, ModalApp, Result, TrainingCost, command::run_arguments,
    cost::limit_arguments, modal, running::check_idle, volume::check_data,
};
use crate::train::folder::Status;

/// A training to start at Modal.
#[derive(Clone, Debug)]
pub struct CloudTraining {
    /// The task: `dit` or `classifier`.
    pub task: String,
    /// The name of the run.
    pub run: String,
    /// True if the run may exist, so that it is resumed.
    pub may_exist: bool,
    /// The path of the data in containers; see [`volume_path`](super::volume_path).
    pub data: String,
    /// The arguments of `train`, except those that the app sets.
    pub train_arguments: Vec<String>,
    /// Total steps of the run.
    pub steps: u64,
    /// The GPUs, cost and attempts.
    pub cost: TrainingCost,
    /// The limits.
    pub limits: CostLimits,
}

impl CloudTraining {
    /// The arguments of `modal` that start the training. If `detach` is true, it continues if this machine disconnects.
    pub fn arguments(&self, app: &ModalApp, detach: bool) -> Vec<String> {
        let Self { task, run, data, train_arguments, cost, limits, .. } = self;
        let mut arguments = run_arguments(app, run, detach);
        arguments.extend(["train".to_owned(), task.clone(), data.clone(), format!("--run-id={run}")]);
        arguments.extend(limit_arguments(&cost.estimates, cost.attempts, limits));
        arguments.extend_from_slice(train_arguments);
        arguments
    }

    /// Checks that the expected cost of a new run is within the limit.
    ///
    /// # Errors
    /// Those of [`CostLimits::check_cost`].
    pub fn check_cost(&self) -> Result<()> {
        self.limits.check_cost(self.cost.expected.dollars)
    }

    /// Checks the requirements at Modal: the client, the login, the run if it exists, its cost with that of its earlier attempts, and the
    /// data.
    ///
    /// # Errors
    /// If a requirement is missing, the run is finished or an app works on it, or the cost is too high.
    pub fn check(&self, app: &ModalApp) -> Result<()> {
        modal::check_login()?;
        let existing = if self.may_exist { CloudRun::find(&self.run)? } else { None };
        if let Some(record) = existing.as_ref().and_then(|existing| existing.record.as_ref())
            && record.status == Status::Finished
            && record.steps == self.steps
        {
            let message = format!("the run is finished; download it with tiny-cats cloud fetch {}", self.run);
            return Err(Error::state(&self.run, message));
        }
        let (spent, share) =
            existing.as_ref().map_or((0.0, 1.0), |existing| existing.spent_and_remaining(self.steps));
        self.limits.check_cost(self.cost.expected.dollars.map(|dollars| spent + share * dollars))?;
        if self.may_exist {
            check_idle(&self.run)?;
        }
        check_data(app, &self.data)
    }
}
