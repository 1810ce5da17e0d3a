//! Estimates of duration and cost of training on a GPU.

use serde::Serialize;
use tiny_cats_models::{NetworkConfig, Precision};

use super::{Gpu, Prices, Result, SpeedSource, Workload, assumptions, gpu::launch_s};
use crate::cloud::CloudSettings;

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
    /// The reason, and what helps.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Fits => "",
            Self::NoBf16 => "has no bf16: --precision f16",
            Self::TooLarge => "too little memory: smaller --batch-size, more --gradient-accumulation-steps",
            Self::Indivisible => "--batch-size cannot be divided among them",
            Self::TooLong => "takes more attempts than there may be",
        }
    }
}

/// The bottleneck of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bottleneck {
    /// The GPU's arithmetic.
    Arithmetic,
    /// The launches of its kernels.
    Launches,
    /// The container's cores, which prepare images.
    Pictures,
}

/// An estimate of training on a GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// The GPU in Modal's notation.
    #[serde(serialize_with = "as_text")]
    pub gpu: Gpu,
    /// The feasibility there.
    pub verdict: Feasibility,
    /// The largest micro-batch that fits, on all GPUs together.
    pub largest_batch: usize,
    /// Floating-point operations per second.
    pub flops: f64,
    /// The source of that figure.
    pub source: SpeedSource,
    /// Steps per second.
    pub steps_per_second: f64,
    /// The bottleneck of a step.
    pub limit: Bottleneck,
    /// Seconds of computing, without container starts.
    pub computing_s: f64,
    /// Billed hours without preemptions.
    pub hours: f64,
    /// Billed hours with the expected number of preemptions.
    pub expected_hours: f64,
    /// Number of attempts without failures; Modal limits the length of each.
    pub attempts: u64,
    /// Timeout of an attempt in seconds.
    pub timeout_s: u64,
    /// Maximum number of attempts after the first.
    pub retries: u64,
    /// Price in dollars per hour; `None` if the GPU has no price.
    pub hourly: Option<f64>,
}

fn as_text<S: serde::Serializer>(gpu: &Gpu, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_str(gpu)
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
/// Returns an error if the network's settings are not valid.
pub fn estimate(
    workload: &Workload,
    gpu: &Gpu,
    settings: &CloudSettings,
    prices: &Prices,
) -> Result<Estimate> {
    let demand = workload.requirements(true)?;
    let ledger = workload.network.cost(workload.side)?;
    let precision = workload.tape.precision;
    let (kind, prepare_ns) = match workload.network {
        NetworkConfig::TinyDit(_) => ("tiny-dit", assumptions::PREPARE_NS[0]),
        NetworkConfig::ResNet(_) => ("resnet", assumptions::PREPARE_NS[1]),
    };
    let (one, source) = gpu.model.speed(kind, precision);
    let count = gpu.count as f64;
    let flops = one * if gpu.count == 1 { 1.0 } else { count * assumptions::MULTI_GPU_EFFICIENCY };
    // The CPU launches kernels and prepares images while the GPU computes: the slowest of the three sets the pace.
    let values = workload.items() as f64 * workload.values() as f64;
    let paces = [
        demand.step_flops as f64 / flops,
        demand.launches as f64 * launch_s(),
        values * prepare_ns * 1e-9 / settings.container.cpu,
    ];
    let step_s = paces.into_iter().fold(0.0, f64::max);
    let limit = [Bottleneck::Arithmetic, Bottleneck::Launches, Bottleneck::Pictures]
        .into_iter()
        .zip(paces)
        .find_map(|(limit, pace)| (pace == step_s).then_some(limit))
        .unwrap_or(Bottleneck::Arithmetic);
    let computing_s = step_s * workload.steps as f64 + workload.eval_flops / one;

    let longest = settings.time.longest_attempt_s;
    let attempts = attempts(computing_s, longest, settings) as f64;
    let seconds = computing_s + attempts * assumptions::START_S;
    let preemptions = seconds / 3600.0 * assumptions::PREEMPTIONS_AN_HOUR;
    let expected = seconds + preemptions * (assumptions::START_S + assumptions::PREEMPTED_S);
    let wanted = expected * assumptions::TIMEOUT_MARGIN + settings.time.stop_before_s;
    let timeout_s = if attempts > 1.0 { longest } else { (wanted / 60.0).ceil() * 60.0 }.min(longest);
    let retries = settings.retries.default + attempts as u64 - 1;

    let largest_batch = workload.largest_batch(&ledger, gpu.model.bytes())? * gpu.count;
    let verdict = if precision == Precision::Bf16 && !gpu.model.bf16 {
        Feasibility::NoBf16
    } else if !workload.batch.is_multiple_of(gpu.count) {
        Feasibility::Indivisible
    } else if workload.batch > largest_batch {
        Feasibility::TooLarge
    } else if retries > settings.retries.most {
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

/// Number of attempts of `timeout_s` seconds that compute for `computing_s` seconds: each starts up, and stops before its timeout.
pub fn attempts(computing_s: f64, timeout_s: f64, settings: &CloudSettings) -> u64 {
    let useful = (timeout_s - settings.time.stop_before_s - assumptions::START_S).max(1.0);
    (computing_s / useful).ceil().max(1.0) as u64
}

/// Returns the indices of the cheapest, the fastest and the recommended estimate.
///
/// The recommended one is the cheapest that is done [overnight](assumptions::OVERNIGHT_H), or else the fastest. Estimates that do not fit
/// are ignored. Those without a price can only be the fastest.
pub fn choose(estimates: &[Estimate]) -> Option<[usize; 3]> {
    let fitting = || (0..estimates.len()).filter(|&i| estimates[i].verdict == Feasibility::Fits);
    let hours = |i: &usize| estimates[*i].expected_hours;
    let dollars = |i: &usize| estimates[*i].expected_dollars().unwrap_or(f64::INFINITY);
    // Ties by one criterion are resolved by the other.
    let least = |among: &mut dyn Iterator<Item = usize>, by: &dyn Fn(&usize) -> f64| {
        let other = |i: &usize| hours(i) + dollars(i);
        among.min_by(|a, b| by(a).total_cmp(&by(b)).then(other(a).total_cmp(&other(b))))
    };
    let fastest = least(&mut fitting(), &hours)?;
    let cheapest = least(&mut fitting(), &dollars)?;
    let overnight = least(&mut fitting().filter(|i| hours(i) <= assumptions::OVERNIGHT_H), &dollars);
    Some([cheapest, fastest, overnight.unwrap_or(fastest)])
}

#[cfg(test)]
mod tests {
    use tiny_cats_models::{ResNetConfig, TapeOptions, TinyDitConfig};

    use super::*;
    use crate::{data::AugmentLevel, plan::gpu_models};

    fn workload(size: &str, side: usize, batch: usize, steps: u64, precision: Precision) -> Workload {
        let network = NetworkConfig::TinyDit(TinyDitConfig::named(size, side, 12).unwrap());
        let tape = TapeOptions { precision, checkpoint: false };
        Workload {
            network,
            side,
            steps,
            batch,
            accumulation: 1,
            tape,
            averages: 2,
            augmentation: AugmentLevel::Full,
            eval_flops: 0.0,
        }
    }

    fn on(workload: &Workload, gpu: &str) -> Estimate {
        estimate(workload, &gpu.parse().unwrap(), &CloudSettings::default(), &Prices::listed()).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_said_and_not_chosen() {
        let base = workload("base", 128, 256, 200_000, Precision::Bf16);
        let all: Vec<Estimate> = gpu_models().iter().map(|model| on(&base, &model.name)).collect();
        let verdict = |name: &str| all.iter().find(|e| e.gpu.model.name == name).unwrap().verdict;
        assert_eq!((verdict("T4"), verdict("A100-80GB")), (Feasibility::NoBf16, Feasibility::Fits));
        let [cheapest, fastest, chosen] = choose(&all).unwrap();
        for i in [cheapest, fastest, chosen] {
            assert_eq!(all[i].verdict, Feasibility::Fits);
        }
        for (i, e) in all.iter().enumerate().filter(|(_, e)| e.verdict == Feasibility::Fits) {
            assert!(e.expected_hours >= all[fastest].expected_hours);
            let dollars = |i: usize| all[i].expected_dollars().unwrap_or(f64::INFINITY);
            assert!(dollars(i) >= dollars(cheapest));
        }
        let huge = workload("base", 128, 1 << 16, 10, Precision::Bf16);
        assert_eq!(on(&huge, "L4").verdict, Feasibility::TooLarge);
        assert_eq!(
            on(&workload("nano", 32, 9, 10, Precision::F32), "L4:2").verdict,
            Feasibility::Indivisible
        );
        assert_eq!(
            on(&workload("base", 128, 256, u64::MAX >> 20, Precision::Bf16), "L4").verdict,
            Feasibility::TooLong
        );
        assert!(choose(&[on(&huge, "L4")]).is_none());
    }

    #[test]
    fn the_largest_batch_is_the_largest() {
        for (gpu, size) in [("T4", "tiny"), ("A100-80GB", "base"), ("L4:2", "nano")] {
            let mut w = workload(size, 64, 64, 10, Precision::F16);
            let e = on(&w, gpu);
            w.batch = e.largest_batch;
            assert_eq!(on(&w, gpu).verdict, Feasibility::Fits);
            w.batch += e.largest_batch / 32 * e.gpu.count;
            assert_eq!(on(&w, gpu).verdict, Feasibility::TooLarge);
        }
    }

    #[test]
    fn time_money_and_timeouts_follow_from_the_work() {
        let settings = CloudSettings::default();
        let small = workload("base", 32, 256, 10_000, Precision::Bf16);
        let (one, two) = (on(&small, "A100"), on(&Workload { steps: 20_000, ..small.clone() }, "A100"));
        let start = assumptions::START_S / 3600.0;
        assert!(((two.hours - start) / (one.hours - start) - 2.0).abs() < 1e-9);
        assert!(
            one.expected_hours > one.hours && one.attempts == 1 && one.retries == settings.retries.default
        );
        assert!(one.timeout_s as f64 >= one.expected_hours * 3600.0 * 1.2 && one.timeout_s < 86_400);
        // The price of a container is that of the GPU and of the other resources.
        let hour = 2.10 + settings.container.cpu * 0.0472 + settings.container.memory_mib / 1024.0 * 0.008;
        assert!((one.dollars().unwrap() - one.hours * hour).abs() < 1e-9);
        let long = on(&Workload { steps: 2_000_000, ..small.clone() }, "A100");
        assert!(long.attempts > 1 && long.timeout_s == 86_400 && long.retries > one.retries);
        let four = on(&small, "A100:4");
        assert!(
            four.steps_per_second > 3.0 * one.steps_per_second
                && four.steps_per_second < 4.0 * one.steps_per_second
        );
        assert_eq!(on(&small, "RTX-PRO-6000").dollars(), None);
        // Recomputing costs time and saves memory.
        let again =
            on(&Workload { tape: TapeOptions { checkpoint: true, ..small.tape }, ..small.clone() }, "A100");
        assert!(again.hours > 1.2 * one.hours && again.hours < 1.4 * one.hours);
        assert!(again.largest_batch > 2 * one.largest_batch);
        assert_eq!((one.limit, attempts(one.computing_s, 86_400.0, &settings)), (Bottleneck::Arithmetic, 1));
        let useful = 3600.0 - settings.time.stop_before_s - assumptions::START_S;
        assert_eq!(attempts(2.5 * useful, 3600.0, &settings), 3);
        // Images so large that the container's cores are slower than its GPU.
        let [few, many] = [1, 2].map(|n| on(&workload("nano", 128, 256 * n, 10, Precision::Bf16), "H200"));
        assert_eq!(few.limit, Bottleneck::Pictures);
        assert!((few.steps_per_second / many.steps_per_second - 2.0).abs() < 1e-9);
        // A network so small that launching its kernels takes longer than computing them.
        let tiny = on(&workload("nano", 32, 1, 10, Precision::F16), "H200");
        assert_eq!(tiny.limit, Bottleneck::Launches);
        assert!(tiny.steps_per_second < 1000.0, "{}", tiny.steps_per_second);
        let resnet = NetworkConfig::ResNet(ResNetConfig::named("resnet50", 13).unwrap());
        let resnet = on(&Workload { network: resnet, side: 224, batch: 128, ..small }, "A100-80GB");
        assert_eq!(resnet.verdict, Feasibility::Fits);
    }
}
