//! A sweep to start at Modal.

use serde_json::{Map, Value};

use super::{
    AttemptLimits, CloudSettings, CostLimits, ExpectedCost, ModalApp, Result, choose_gpus, choose_retries,
    command::run_arguments, cost::limit_arguments, modal, running::check_idle, volume::check_data,
};
use crate::plan::{Estimate, Gpu, Prices, Workload};

/// The smallest share of the maximum cost that a job gets, in dollars.
const MIN_SHARE: f64 = 1e-4;

/// A sweep to start at Modal.
#[derive(Clone, Debug)]
pub struct CloudSweep {
    /// The name of the sweep.
    pub name: String,
    /// The path of its file, relative to the working directory.
    pub file: String,
    /// The path of the data in containers; see [`volume_path`](super::volume_path).
    pub data: String,
    /// Number of parallel jobs, at least 1.
    pub parallel: u64,
    /// True to run failed jobs again.
    pub retry_failed: bool,
    /// The limits of all jobs together.
    pub limits: CostLimits,
    /// The jobs, in their order.
    pub jobs: Vec<CloudJob>,
}

/// A job of a sweep.
#[derive(Clone, Debug)]
pub struct CloudJob {
    /// The name of the job.
    pub name: String,
    /// Estimates for the GPUs that may be used, the same for all jobs.
    pub estimates: Vec<Estimate>,
    /// The expected cost of the job.
    pub expected: ExpectedCost,
}

impl CloudSweep {
    /// Estimates a job on the requested GPUs, and adds it. All jobs use the same GPUs: without requested ones, those that are recommended
    /// for the first job.
    ///
    /// # Errors
    /// Those of [`choose_gpus`].
    pub fn add_job(
        &mut self,
        name: &str,
        requested: &[Gpu],
        workload: &Workload,
        settings: &CloudSettings,
        prices: &Prices,
    ) -> Result<()> {
        let first = self.jobs.first().map(|job| &job.estimates[..]).unwrap_or_default();
        let chosen: Vec<Gpu> = first.iter().map(|estimate| estimate.gpu.clone()).collect();
        let gpus = if chosen.is_empty() { requested } else { &chosen };
        let estimates = choose_gpus(gpus, workload, settings, prices)?;
        let expected = ExpectedCost::from_estimates(&estimates);
        self.jobs.push(CloudJob { name: name.to_owned(), estimates, expected });
        Ok(())
    }

    /// The expected cost of all jobs in dollars; `None` if a GPU has no price.
    pub fn dollars(&self) -> Option<f64> {
        self.jobs.iter().map(|job| job.expected.dollars).sum()
    }

    /// The billed hours of all jobs.
    pub fn container_hours(&self) -> f64 {
        self.jobs.iter().map(|job| job.expected.hours).sum()
    }

    /// The approximate hours from start to end.
    pub fn hours(&self) -> f64 {
        let longest_job = self.jobs.iter().map(|job| job.expected.hours).fold(0.0, f64::max);
        longest_job.max(self.container_hours() / self.parallel as f64)
    }

    /// The limits of the attempts of each job.
    ///
    /// # Errors
    /// If a job cannot finish within the limits of time.
    pub fn attempts(&self, settings: &CloudSettings) -> Result<AttemptLimits> {
        let timeout_s = self.jobs.iter().map(|job| job.expected.timeout_s).max().unwrap_or(0);
        let timeout_s = self.limits.timeout.map_or(timeout_s, |time| time.as_secs());
        let estimates = self.jobs.iter().flat_map(|job| &job.estimates);
        let retries = choose_retries(estimates, timeout_s, self.limits.max_retries, settings)?;
        Ok(AttemptLimits { timeout_s, retries })
    }

    /// The arguments of `modal` that start the sweep. If `detach` is true, it continues if this machine disconnects.
    pub fn arguments(&self, app: &ModalApp, attempts: AttemptLimits, detach: bool) -> Vec<String> {
        let first = self.jobs.first().map(|job| &job.estimates[..]).unwrap_or_default();
        let mut arguments = run_arguments(app, &self.app(), detach);
        arguments.extend(["sweep".to_owned(), self.file.clone()]);
        arguments.push(format!("--parallel={}", self.parallel));
        arguments.extend(limit_arguments(first, attempts, &self.limits));
        arguments.extend(self.retry_failed.then(|| "--retry-failed".to_owned()));
        arguments.extend(self.shares().map(|shares| format!("--shares={}", Value::Object(shares))));
        arguments
    }

    /// The share of the maximum cost of each job in dollars, in proportion to its expected cost.
    fn shares(&self) -> Option<Map<String, Value>> {
        let (max_cost, dollars) = self.limits.max_cost.zip(self.dollars())?;
        let share = |job: &CloudJob| {
            let share = job.expected.dollars.unwrap_or(0.0) * max_cost / dollars;
            (job.name.clone(), ((share * 1e4).floor() / 1e4).max(MIN_SHARE).into())
        };
        Some(self.jobs.iter().map(share).collect())
    }

    /// Checks the requirements at Modal: the client, the login, that no app works on the sweep, and the data.
    ///
    /// # Errors
    /// If a requirement is missing, or an app works on the sweep.
    pub fn check(&self, app: &ModalApp) -> Result<()> {
        modal::check_login()?;
        check_idle(&self.app())?;
        check_data(app, &self.data)
    }

    /// The name of the run that the app works on.
    fn app(&self) -> String {
        format!("sweep-{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sweep of jobs with these costs.
    fn sweep(dollars: &[Option<f64>], max_cost: Option<f64>) -> CloudSweep {
        let job = |(i, &dollars): (usize, &Option<f64>)| CloudJob {
            name: format!("job{i}"),
            estimates: Vec::new(),
            expected: ExpectedCost { hours: 1.0 + i as f64, dollars, hourly: dollars, timeout_s: 3600 },
        };
        CloudSweep {
            name: "rates".into(),
            file: "rates.toml".into(),
            data: "data/cats".into(),
            parallel: 2,
            retry_failed: false,
            limits: CostLimits { max_cost, ..CostLimits::default() },
            jobs: dollars.iter().enumerate().map(job).collect(),
        }
    }

    #[test]
    fn jobs_share_the_maximum_cost_in_proportion() {
        let shares = sweep(&[Some(1.0), Some(3.0)], Some(8.0)).shares().unwrap();
        assert_eq!(shares, *serde_json::json!({"job0": 2.0, "job1": 6.0}).as_object().unwrap());
        assert_eq!(sweep(&[Some(1.0)], None).shares(), None);
        let unpriced = sweep(&[Some(1.0), None], Some(8.0));
        assert_eq!((unpriced.dollars(), unpriced.shares()), (None, None));
    }

    #[test]
    fn the_duration_is_bounded_by_the_longest_job_and_by_the_parallel_jobs() {
        let hours = |count: usize| sweep(&vec![None; count], None).hours();
        assert_eq!((hours(2), hours(4)), (2.0, 5.0));
    }
}
