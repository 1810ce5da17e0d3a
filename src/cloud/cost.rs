//! GPUs, expected cost and attempts of a training.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{CloudSettings, CostLimits, Error, Result};
use crate::plan::{Estimate, Feasibility, Gpu, Prices, Workload, attempts, choose, estimate, gpu_models};

/// Estimates the workload on the requested GPUs, in their order; without any, on the recommended one.
///
/// # Errors
/// If a GPU cannot train the workload, or the numbers of GPUs differ.
pub fn choose_gpus(
    requested: &[Gpu],
    workload: &Workload,
    settings: &CloudSettings,
    prices: &Prices,
) -> Result<Vec<Estimate>> {
    let estimate_all = |gpus: &[Gpu]| {
        gpus.iter().map(|gpu| estimate(workload, gpu, settings, prices)).collect::<Result<Vec<_>, _>>()
    };
    if requested.is_empty() {
        let all: Vec<Gpu> = gpu_models().iter().map(Gpu::single).collect();
        let mut estimates = estimate_all(&all)?;
        let [.., chosen] = choose(&estimates).ok_or(Error::NoGpu)?;
        return Ok(vec![estimates.swap_remove(chosen)]);
    }
    let estimates = estimate_all(requested)?;
    let gpu_error = |gpu: &Gpu, message: String| Error::Gpu { gpu: gpu.to_string(), message };
    for Estimate { gpu, verdict, largest_batch, .. } in &estimates {
        match verdict {
            Feasibility::Fits => {}
            Feasibility::TooLarge => {
                let message = format!("{} (largest batch: {largest_batch} images)", verdict.reason());
                return Err(gpu_error(gpu, message));
            }
            verdict => return Err(gpu_error(gpu, verdict.reason().to_owned())),
        }
    }
    if let Some(other) = estimates.iter().find(|e| e.gpu.count != estimates[0].gpu.count) {
        return Err(gpu_error(&other.gpu, "expected the same number of GPUs for all models".to_owned()));
    }
    Ok(estimates)
}

/// The names of the GPUs, separated by commas.
pub fn gpu_names(estimates: &[Estimate]) -> String {
    estimates.iter().map(|e| e.gpu.to_string()).collect::<Vec<_>>().join(",")
}

/// The number of retries: `max_retries` if the user set it, or the number that attempts of `timeout_s` seconds need plus the default.
///
/// # Errors
/// If the run cannot finish within them.
pub fn choose_retries<'a>(
    estimates: impl IntoIterator<Item = &'a Estimate>,
    timeout_s: u64,
    max_retries: Option<u64>,
    settings: &CloudSettings,
) -> Result<u64> {
    let needed = estimates.into_iter().map(|e| attempts(e.computing_s, timeout_s as f64, settings));
    let needed = needed.max().unwrap_or(1) - 1;
    let max = max_retries.unwrap_or(settings.retries.max);
    if needed > max {
        let timeout = humantime::format_duration(Duration::from_secs(timeout_s));
        let setting = if max_retries.is_some() { "max_retries" } else { "timeout" };
        let message = format!("expected at least {} attempts of {timeout}, found {}", needed + 1, max + 1);
        return Err(Error::setting(setting, message));
    }
    Ok(max_retries.unwrap_or((needed + settings.retries.default).min(max)))
}

/// The expected cost on any of several GPUs, as the maximum of each value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpectedCost {
    /// Billed hours.
    pub hours: f64,
    /// Total cost in dollars; `None` if a GPU has no price.
    pub dollars: Option<f64>,
    /// Price in dollars per hour; `None` if a GPU has no price.
    pub hourly: Option<f64>,
    /// Timeout of an attempt in seconds.
    pub timeout_s: u64,
}

impl ExpectedCost {
    /// Combines the estimates for several GPUs.
    pub fn from_estimates(estimates: &[Estimate]) -> Self {
        let max_of = |value: &dyn Fn(&Estimate) -> f64| estimates.iter().map(value).fold(0.0, f64::max);
        let priced = estimates.iter().all(|e| e.hourly.is_some());
        Self {
            hours: max_of(&|e| e.expected_hours),
            dollars: priced.then(|| max_of(&|e| e.expected_dollars().unwrap_or(0.0))),
            hourly: priced.then(|| max_of(&|e| e.hourly.unwrap_or(0.0))),
            timeout_s: estimates.iter().map(|e| e.timeout_s).max().unwrap_or(0),
        }
    }
}

/// The GPUs, cost and attempts of a training.
#[derive(Clone, Debug)]
pub struct TrainingCost {
    /// Estimates for the GPUs that may be used, the preferred one first.
    pub estimates: Vec<Estimate>,
    /// The expected cost of a new run.
    pub expected: ExpectedCost,
    /// The limits of the attempts.
    pub attempts: AttemptLimits,
}

/// The time and the number of attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptLimits {
    /// Timeout of an attempt in seconds.
    pub timeout_s: u64,
    /// Maximum number of retries after failed attempts.
    pub retries: u64,
}

impl TrainingCost {
    /// Estimates a training on the requested GPUs; without any, on the recommended one.
    ///
    /// # Errors
    /// Those of [`choose_gpus`] and [`choose_retries`].
    pub fn new(
        requested: &[Gpu],
        workload: &Workload,
        limits: &CostLimits,
        settings: &CloudSettings,
        prices: &Prices,
    ) -> Result<Self> {
        let estimates = choose_gpus(requested, workload, settings, prices)?;
        let expected = ExpectedCost::from_estimates(&estimates);
        let timeout_s = limits.timeout.map_or(expected.timeout_s, |time| time.as_secs());
        let retries = choose_retries(&estimates, timeout_s, limits.max_retries, settings)?;
        Ok(Self { estimates, expected, attempts: AttemptLimits { timeout_s, retries } })
    }
}

/// The arguments of the app for GPUs and limits.
pub(super) fn limit_arguments(
    estimates: &[Estimate],
    AttemptLimits { timeout_s, retries }: AttemptLimits,
    limits: &CostLimits,
) -> Vec<String> {
    let mut arguments = vec![
        format!("--gpu={}", gpu_names(estimates)),
        format!("--timeout={timeout_s}"),
        format!("--max-retries={retries}"),
    ];
    arguments.extend(limits.max_cost.map(|dollars| format!("--max-cost={dollars}")));
    let row = |e: &Estimate| {
        Some((
            e.gpu.to_string(),
            json!({"hour": (e.hourly? * 1e4).round() / 1e4, "device": e.gpu.model.device}),
        ))
    };
    let hourly: Map<String, Value> = estimates.iter().filter_map(row).collect();
    if !hourly.is_empty() {
        arguments.push(format!("--price-per-hour={}", Value::Object(hourly)));
    }
    arguments.extend(limits.region.as_ref().map(|region| format!("--region={region}")));
    arguments
}
