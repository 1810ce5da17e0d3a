use tiny_cats_models::random::noise;

use super::*;

/// A denoiser with a known clean image, one color for each label. It records the calls.
struct Oracle {
    prediction: PredictionType,
    largest_batch: usize,
    times: Vec<f32>,
}

impl Oracle {
    fn new(prediction: PredictionType) -> Self {
        Self { prediction, largest_batch: 0, times: Vec::new() }
    }
}

/// Returns the color of a class.
fn color(label: i64) -> f32 {
    0.1 * label as f32
}

impl Denoiser for Oracle {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        self.largest_batch = self.largest_batch.max(label.len());
        self.times.push(t[0]);
        let len = x.data().len() / label.len();
        let value = |(i, x): (usize, &f32)| {
            let (clean, t) = (color(label[i / len]), t[i / len]);
            match self.prediction {
                PredictionType::X => clean,
                // On the straight path to `clean` the velocity is constant.
                PredictionType::Velocity => (clean - x) / (1.0 - t).max(1e-3),
            }
        };
        Ok(Array::new(x.dims(), x.data().iter().enumerate().map(value).collect())?)
    }
}

/// A denoiser whose velocity depends on x and t: x' = x·cos(t), so x(1) = x(0)·exp(sin 1).
struct Curve;

impl Denoiser for Curve {
    fn predict(&mut self, x: &Array, t: &[f32], _: &[i64]) -> Result<Array> {
        let len = x.data().len() / t.len();
        let values = x.data().iter().enumerate().map(|(i, x)| x * t[i / len].cos()).collect();
        Ok(Array::new(x.dims(), values)?)
    }
}

fn settings(prediction: PredictionType) -> SamplingSettings {
    SamplingSettings {
        sampler: Sampler::Heun,
        steps: 7,
        guidance: 1.0,
        guidance_interval: [0.1, 0.9],
        prediction,
        null_label: 5,
        seed: 3,
        batch: 4,
    }
}

const SAMPLERS: [Sampler; 3] = [Sampler::Euler, Sampler::Heun, Sampler::Midpoint];
const DIMS: [usize; 3] = [3, 2, 2];

fn specs(n: u64) -> Vec<SampleSpec> {
    (0..n).map(|index| SampleSpec { index, label: index as i64 % 3 }).collect()
}

fn run(denoiser: &mut dyn Denoiser, settings: &SamplingSettings, specs: &[SampleSpec]) -> Result<Vec<Array>> {
    sample(denoiser, settings, DIMS, specs, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn the_last_step_returns_the_predicted_image() {
    for sampler in SAMPLERS {
        for steps in [1, 2, 20] {
            let settings = SamplingSettings { sampler, steps, ..settings(PredictionType::X) };
            let mut oracle = Oracle::new(PredictionType::X);
            let images = run(&mut oracle, &settings, &specs(5)).unwrap();
            for (image, spec) in images.iter().zip(specs(5)) {
                assert!(image.data().iter().all(|&v| v == color(spec.label)));
            }
            assert!(oracle.times.iter().all(|&t| t < 1.0), "t = 1 is never evaluated");
        }
    }
}

#[test]
fn samplers_converge_with_their_order() {
    for (sampler, order) in [(Sampler::Euler, 1), (Sampler::Heun, 2), (Sampler::Midpoint, 2)] {
        let error = |steps| {
            let settings = SamplingSettings { sampler, steps, ..settings(PredictionType::Velocity) };
            let image = &run(&mut Curve, &settings, &specs(1)).unwrap()[0];
            let start = noise(settings.seed, 0, 12);
            let exact = |x: f32| x * 1f32.sin().exp();
            image.data().iter().zip(start).map(|(y, x)| (y - exact(x)).abs()).fold(0f32, f32::max)
        };
        let ratio = error(8) / error(16);
        let expected = 2f32.powi(order);
        assert!(
            (ratio / expected - 1.0).abs() < 0.2,
            "{sampler}: halving the step divides the error by {ratio}"
        );
    }
}

#[test]
fn images_are_independent_of_the_batch() {
    for sampler in SAMPLERS {
        let all = SamplingSettings { sampler, guidance: 2.0, ..settings(PredictionType::Velocity) };
        let expected = run(&mut Curve, &all, &specs(9)).unwrap();
        for batch in [1, 2, 9] {
            let settings = SamplingSettings { batch, ..all.clone() };
            assert_eq!(run(&mut Curve, &settings, &specs(9)).unwrap(), expected);
        }
        assert_eq!(run(&mut Curve, &all, &specs(9)[4..5]).unwrap()[0], expected[4]);
    }
}

#[test]
fn guidance_is_applied_only_in_its_interval() {
    let guided =
        SamplingSettings { guidance: 3.0, guidance_interval: [0.0, 1.0], ..settings(PredictionType::X) };
    let mut oracle = Oracle::new(PredictionType::X);
    let image = &run(&mut oracle, &guided, &[SampleSpec { index: 0, label: 1 }]).unwrap()[0];
    let expected = color(5) + 3.0 * (color(1) - color(5));
    assert!(image.data().iter().all(|v| (v - expected).abs() < 1e-6));
    assert_eq!(oracle.largest_batch, 2);

    let unguided = SamplingSettings { guidance_interval: [2.0, 3.0], ..guided };
    let mut oracle = Oracle::new(PredictionType::X);
    run(&mut oracle, &unguided, &specs(1)).unwrap();
    assert_eq!(oracle.largest_batch, 1);
}

#[test]
fn batches_are_bounded_and_sampling_can_be_canceled() {
    let mut oracle = Oracle::new(PredictionType::X);
    run(&mut oracle, &settings(PredictionType::X), &specs(11)).unwrap();
    assert_eq!(oracle.largest_batch, 4);
    let mut steps = Vec::new();
    let mut cancel = |p: Progress| {
        steps.push(p.done);
        if p.done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = sample(&mut oracle, &settings(PredictionType::X), DIMS, &specs(11), &mut cancel);
    assert!(matches!(result, Err(Error::Canceled)));
    assert_eq!(steps, [1, 2]);
}

#[test]
fn invalid_settings_and_nan_are_errors() {
    let valid = settings(PredictionType::X);
    let invalid = [
        ("steps", SamplingSettings { steps: 0, ..valid.clone() }),
        ("steps", SamplingSettings { steps: usize::MAX, ..valid.clone() }),
        ("guidance", SamplingSettings { guidance: f32::NAN, ..valid.clone() }),
        ("guidance_interval", SamplingSettings { guidance_interval: [f32::NAN, 1.0], ..valid.clone() }),
        ("batch", SamplingSettings { batch: 0, ..valid.clone() }),
    ];
    for (field, settings) in invalid {
        let error = run(&mut Curve, &settings, &specs(1)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field}: ")), "{error}");
    }
    struct NanDenoiser;
    impl Denoiser for NanDenoiser {
        fn predict(&mut self, x: &Array, _: &[f32], _: &[i64]) -> Result<Array> {
            Ok(Array::new(x.dims(), vec![f32::NAN; x.data().len()])?)
        }
    }
    assert!(matches!(run(&mut NanDenoiser, &valid, &specs(1)), Err(Error::NotFinite { step: 0 })));
}

#[test]
fn trajectories_with_different_settings_can_share_batches() {
    let mut all = Vec::new();
    for (i, sampler) in (0u64..).zip(SAMPLERS.into_iter().cycle().take(9)) {
        let (steps, guidance) = (1 + i as usize % 4, [1.0, 2.0, 3.5][i as usize % 3]);
        let settings =
            SamplingSettings { sampler, steps, guidance, seed: i, ..settings(PredictionType::Velocity) };
        all.push((settings, SampleSpec { index: 40 + i, label: i as i64 % 5 }));
    }
    let mut curve = Curve;
    let start =
        |(settings, spec): &(SamplingSettings, SampleSpec)| Trajectory::new(settings, DIMS, *spec).unwrap();
    // One trajectory starts in each round, and leaves the batch when it is finished.
    let (mut waiting, mut active) = (all.iter().map(start).collect::<Vec<_>>(), Vec::new());
    let mut finished = Vec::new();
    while finished.len() < all.len() {
        active.extend(waiting.pop());
        advance(&mut curve, &mut active).unwrap();
        let (done, others) = active.into_iter().partition(Trajectory::is_finished);
        active = others;
        finished.extend::<Vec<Trajectory>>(done);
    }
    for (settings, spec) in &all {
        let expected = &run(&mut curve, settings, &[*spec]).unwrap()[0];
        let found = finished.iter().find(|t| t.index() == spec.index).unwrap();
        assert_eq!(found.values(), expected.data());
    }
}

#[test]
fn the_preview_is_the_predicted_clean_image() {
    for prediction in [PredictionType::X, PredictionType::Velocity] {
        let settings = SamplingSettings { steps: 4, ..settings(prediction) };
        let mut oracle = Oracle::new(prediction);
        let mut trajectories = [Trajectory::new(&settings, DIMS, SampleSpec { index: 1, label: 2 }).unwrap()];
        while !trajectories[0].is_finished() {
            advance(&mut oracle, &mut trajectories).unwrap();
            assert!(trajectories[0].preview().iter().all(|v| (v - color(2)).abs() < 1e-5));
        }
    }
}
