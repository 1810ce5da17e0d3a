//! Estimates of duration and cost of training on a GPU.

use serde::Serialize;
use tiny_cats_models::{Precision, Role};

use super::{CloudSettings, Gpu, Prices, Result, SpeedSource, Workload, assumptions, gpu::launch_s};

/// The feasibility of training on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feasibility {
    /// The training fits.
    Fits,
    /// The GPU does not compute in bf16.
    NoBf16,
    /// A micro-batch is too large for the GPU's memory.
    TooLarge,
    /// The micro-batch cannot be divided among the GPUs.
    Indivisible,
    /// The training takes more attempts than allowed.
    TooLong,
}

impl Feasibility {
    /// Returns the reason why training is not feasible, and how to fix it; empty for `Fits`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Fits => "",
            Self::NoBf16 => "has no bf16; pass --precision f16",
            Self::TooLarge => {
                "too little memory; reduce --batch-size and increase --gradient-accumulation-steps"
            }
            Self::Indivisible => "--batch-size is not a multiple of the number of GPUs",
            Self::TooLong => "takes more attempts than allowed",
        }
    }
}

/// The bottleneck of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bottleneck {
    /// The arithmetic of the GPU.
    Arithmetic,
    /// The launches of kernels.
    Launches,
    /// The preparation of images by the cores of the container.
    #[serde(rename = "pictures")]
    ImagePreparation,
}

/// An estimate of training on a GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// The GPU in Modal's notation.
    #[serde(serialize_with = "as_text")]
    pub gpu: Gpu,
    /// The feasibility of the training on this GPU.
    pub verdict: Feasibility,
    /// The largest micro-batch that fits into the memory of all GPUs.
    pub largest_batch: usize,
    /// Floating-point operations per second.
    pub flops: f64,
    /// The source of the speed.
    pub source: SpeedSource,
    /// Steps per second.
    pub steps_per_second: f64,
    /// The bottleneck of a step.
    pub limit: Bottleneck,
    /// Seconds of computation, without container starts.
    pub computing_s: f64,
    /// Billed hours without preemptions.
    pub hours: f64,
    /// Billed hours with the expected number of preemptions.
    pub expected_hours: f64,
    /// Number of attempts without failures; Modal limits the duration of each.
    pub attempts: u64,
    /// Timeout of an attempt in seconds.
    pub timeout_s: u64,
    /// Maximum number of attempts after the first.
    pub retries: u64,
    /// Price in dollars per hour; `None` if the GPU has no price.
    pub hourly: Option<f64>,
}

fn as_text<S: serde::Serializer>(gpu: &Gpu, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(gpu)
}

impl Estimate {
    /// Cost in dollars without preemptions.
    pub fn dollars(&self) -> Option<f64> {
        Some(self.hourly? * self.hours)
    }

    /// Cost in dollars with the expected preemptions.
    pub fn expected_dollars(&self) -> Option<f64> {
        Some(self.hourly? * self.expected_hours)
    }
}

/// Estimates `workload` on `gpu` in containers of `settings` with `prices`.
///
/// # Errors
/// Returns an error if the settings of the network are invalid.
pub fn estimate(
    workload: &Workload,
    gpu: &Gpu,
    settings: &CloudSettings,
    prices: &Prices,
) -> Result<Estimate> {
    let requirements = workload.requirements(true)?;
    let cost = workload.cost()?;
    let precision = workload.tape.precision;
    let prepare_ns = match workload.network.role() {
        Role::Generator { .. } => assumptions::PREPARE_NS[0],
        Role::Classifier { .. } | Role::Other => assumptions::PREPARE_NS[1],
    };
    let (single_flops, source) = gpu.model.speed(workload.network.kind(), precision);
    let count = gpu.count as f64;
    let flops = single_flops * if gpu.count == 1 { 1.0 } else { count * assumptions::MULTI_GPU_EFFICIENCY };
    // The CPU launches kernels and prepares images while the GPU computes, so the slowest of the three determines the time of a step.
    let values = workload.items() as f64 * workload.values() as f64;
    let times = [
        requirements.step_flops as f64 / flops,
        requirements.launches as f64 * launch_s(),
        values * prepare_ns * 1e-9 / settings.container.cpu,
    ];
    let step_s = times.into_iter().fold(0.0, f64::max);
    let limit = [Bottleneck::Arithmetic, Bottleneck::Launches, Bottleneck::ImagePreparation]
        .into_iter()
        .zip(times)
        .find_map(|(limit, time)| (time == step_s).then_some(limit))
        .unwrap_or(Bottleneck::Arithmetic);
    let computing_s = step_s * workload.steps as f64 + workload.eval_flops / single_flops;

    let max_attempt_s = settings.time.longest_attempt_s;
    let attempts = attempts(computing_s, max_attempt_s, settings) as f64;
    let seconds = computing_s + attempts * assumptions::START_S;
    let preemptions = seconds / 3600.0 * assumptions::PREEMPTIONS_PER_HOUR;
    let expected = seconds + preemptions * (assumptions::START_S + assumptions::PREEMPTION_S);
    let timeout_with_margin = expected * assumptions::TIMEOUT_MARGIN + settings.time.stop_before_s;
    let timeout_s = if attempts > 1.0 { max_attempt_s } else { (timeout_with_margin / 60.0).ceil() * 60.0 }
        .min(max_attempt_s);
    let retries = settings.retries.default + attempts as u64 - 1;

    let largest_batch = workload.largest_batch(&cost, gpu.model.bytes())? * gpu.count;
    let verdict = if precision == Precision::Bf16 && !gpu.model.bf16 {
        Feasibility::NoBf16
    } else if !workload.batch.is_multiple_of(gpu.count) {
        Feasibility::Indivisible
    } else if workload.batch > largest_batch {
        Feasibility::TooLarge
    } else if retries > settings.retries.max {
        Feasibility::TooLong
    } else {
        Feasibility::Fits
    };
    Ok(Estimate {
        gpu: gpu.clone(),
        verdict,
        largest_batch,
        flops,
        source,
        steps_per_second: 1.0 / step_s,
        limit,
        computing_s,
        hours: seconds / 3600.0,
        expected_hours: expected / 3600.0,
        attempts: attempts as u64,
        timeout_s: timeout_s as u64,
        retries,
        hourly: prices.hourly_price(gpu, &settings.container),
    })
}

/// Returns the number of attempts of `timeout_s` seconds for a computation of `computing_s` seconds. Each attempt takes time to start, and
/// stops before its timeout.
pub fn attempts(computing_s: f64, timeout_s: f64, settings: &CloudSettings) -> u64 {
    let useful = (timeout_s - settings.time.stop_before_s - assumptions::START_S).max(1.0);
    (computing_s / useful).ceil().max(1.0) as u64
}

/// Returns the indices of the cheapest, the fastest and the recommended estimate.
///
/// The recommended one is the cheapest that finishes [overnight](assumptions::OVERNIGHT_H), or the fastest. Estimates that do not fit are
/// ignored. Estimates without a price can only be the fastest.
pub fn choose(estimates: &[Estimate]) -> Option<[usize; 3]> {
    let feasible = || (0..estimates.len()).filter(|&i| estimates[i].verdict == Feasibility::Fits);
    let hours = |i: &usize| estimates[*i].expected_hours;
    let dollars = |i: &usize| estimates[*i].expected_dollars().unwrap_or(f64::INFINITY);
    // The sum of both criteria resolves ties.
    let min_by = |candidates: &mut dyn Iterator<Item = usize>, criterion: &dyn Fn(&usize) -> f64| {
        let sum = |i: &usize| hours(i) + dollars(i);
        candidates.min_by(|a, b| criterion(a).total_cmp(&criterion(b)).then(sum(a).total_cmp(&sum(b))))
    };
    let fastest = min_by(&mut feasible(), &hours)?;
    let cheapest = min_by(&mut feasible(), &dollars)?;
    let overnight = min_by(&mut feasible().filter(|i| hours(i) <= assumptions::OVERNIGHT_H), &dollars);
    Some([cheapest, fastest, overnight.unwrap_or(fastest)])
}

#[cfg(test)]
mod tests {
    use tiny_cats_export::NetworkConfig;
    use tiny_cats_models::{ResNetConfig, TapeOptions, TinyDitConfig};

    use super::*;
    use crate::{data::AugmentLevel, plan::gpu_models};

    fn workload(size: &str, side: usize, batch: usize, steps: u64, precision: Precision) -> Workload {
        let network = NetworkConfig::new(TinyDitConfig::named(size, side, 12).unwrap()).unwrap();
        let tape = TapeOptions { precision, checkpoint: false };
        Workload {
            network,
            side,
            steps,
            batch,
            accumulation: 1,
            tape,
            moments: 2,
            averages: 2,
            augmentation: AugmentLevel::Full,
            eval_flops: 0.0,
        }
    }

    fn estimate_on(workload: &Workload, gpu: &str) -> Estimate {
        estimate(workload, &gpu.parse().unwrap(), &CloudSettings::default(), &Prices::embedded()).unwrap()
    }

    #[test]
    fn infeasible_estimates_have_a_reason_and_are_not_chosen() {
        let base = workload("base", 128, 256, 200_000, Precision::Bf16);
        let estimates: Vec<Estimate> =
            gpu_models().iter().map(|model| estimate_on(&base, &model.name)).collect();
        let verdict = |name: &str| estimates.iter().find(|e| e.gpu.model.name == name).unwrap().verdict;
        assert_eq!((verdict("T4"), verdict("A100-80GB")), (Feasibility::NoBf16, Feasibility::Fits));
        let [cheapest, fastest, chosen] = choose(&estimates).unwrap();
        for i in [cheapest, fastest, chosen] {
            assert_eq!(estimates[i].verdict, Feasibility::Fits);
        }
        for (i, e) in estimates.iter().enumerate().filter(|(_, e)| e.verdict == Feasibility::Fits) {
            assert!(e.expected_hours >= estimates[fastest].expected_hours);
            let dollars = |i: usize| estimates[i].expected_dollars().unwrap_or(f64::INFINITY);
            assert!(dollars(i) >= dollars(cheapest));
        }
        let huge = workload("base", 128, 1 << 16, 10, Precision::Bf16);
        assert_eq!(estimate_on(&huge, "L4").verdict, Feasibility::TooLarge);
        assert_eq!(
            estimate_on(&workload("nano", 32, 9, 10, Precision::F32), "L4:2").verdict,
            Feasibility::Indivisible
        );
        assert_eq!(
            estimate_on(&workload("base", 128, 256, u64::MAX >> 20, Precision::Bf16), "L4").verdict,
            Feasibility::TooLong
        );
        assert!(choose(&[estimate_on(&huge, "L4")]).is_none());
    }

    #[test]
    fn the_largest_batch_fits_and_larger_ones_do_not() {
        for (gpu, size) in [("T4", "tiny"), ("A100-80GB", "base"), ("L4:2", "nano")] {
            let mut w = workload(size, 64, 64, 10, Precision::F16);
            let e = estimate_on(&w, gpu);
            w.batch = e.largest_batch;
            assert_eq!(estimate_on(&w, gpu).verdict, Feasibility::Fits);
            w.batch += e.largest_batch / 32 * e.gpu.count;
            assert_eq!(estimate_on(&w, gpu).verdict, Feasibility::TooLarge);
        }
    }

    #[test]
    fn hours_cost_and_timeouts_follow_from_the_workload() {
        let settings = CloudSettings::default();
        let small = workload("base", 32, 256, 10_000, Precision::Bf16);
        let (single, double) =
            (estimate_on(&small, "A100"), estimate_on(&Workload { steps: 20_000, ..small.clone() }, "A100"));
        let start = assumptions::START_S / 3600.0;
        assert!(((double.hours - start) / (single.hours - start) - 2.0).abs() < 1e-9);
        assert!(
            single.expected_hours > single.hours
                && single.attempts == 1
                && single.retries == settings.retries.default
        );
        assert!(single.timeout_s as f64 >= single.expected_hours * 3600.0 * 1.2 && single.timeout_s < 86_400);
        // The price of a container includes the GPU and the other resources.
        let hour = 2.10 + settings.container.cpu * 0.0472 + settings.container.memory_mib / 1024.0 * 0.008;
        assert!((single.dollars().unwrap() - single.hours * hour).abs() < 1e-9);
        let long = estimate_on(&Workload { steps: 2_000_000, ..small.clone() }, "A100");
        assert!(long.attempts > 1 && long.timeout_s == 86_400 && long.retries > single.retries);
        let four = estimate_on(&small, "A100:4");
        assert!(
            four.steps_per_second > 3.0 * single.steps_per_second
                && four.steps_per_second < 4.0 * single.steps_per_second
        );
        assert_eq!(estimate_on(&small, "RTX-PRO-6000").dollars(), None);
        // Recomputing costs time and saves memory.
        let recomputed = estimate_on(
            &Workload { tape: TapeOptions { checkpoint: true, ..small.tape }, ..small.clone() },
            "A100",
        );
        assert!(recomputed.hours > 1.2 * single.hours && recomputed.hours < 1.4 * single.hours);
        assert!(recomputed.largest_batch > 2 * single.largest_batch);
        assert_eq!(
            (single.limit, attempts(single.computing_s, 86_400.0, &settings)),
            (Bottleneck::Arithmetic, 1)
        );
        let useful = 3600.0 - settings.time.stop_before_s - assumptions::START_S;
        assert_eq!(attempts(2.5 * useful, 3600.0, &settings), 3);
        // Large images, so that preparing them takes longer than computing.
        let [few, many] =
            [1, 2].map(|n| estimate_on(&workload("nano", 128, 256 * n, 10, Precision::Bf16), "H200"));
        assert_eq!(few.limit, Bottleneck::ImagePreparation);
        assert!((few.steps_per_second / many.steps_per_second - 2.0).abs() < 1e-9);
        // A small network, so that launching kernels takes longer than computing.
        let tiny = estimate_on(&workload("nano", 32, 1, 10, Precision::F16), "H200");
        assert_eq!(tiny.limit, Bottleneck::Launches);
        assert!(tiny.steps_per_second < 1000.0, "{}", tiny.steps_per_second);
        let resnet = NetworkConfig::new(ResNetConfig::named("resnet50", 13).unwrap()).unwrap();
        let resnet = estimate_on(&Workload { network: resnet, side: 224, batch: 128, ..small }, "A100-80GB");
        assert_eq!(resnet.verdict, Feasibility::Fits);
    }
}
