use tiny_cats_models::random::noise;

use super::*;

/// A denoiser that knows the image, which has one color for each label, and records the calls.
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

/// A velocity that depends on x and t: x' = x·cos(t), so x(1) = x(0)·exp(sin 1).
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

fn draws(n: u64) -> Vec<SampleSpec> {
    (0..n).map(|index| SampleSpec { index, label: index as i64 % 3 }).collect()
}

fn draw(
    denoiser: &mut dyn Denoiser,
    settings: &SamplingSettings,
    draws: &[SampleSpec],
) -> Result<Vec<Array>> {
    sample(denoiser, settings, DIMS, draws, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn the_last_step_returns_the_predicted_picture_itself() {
    for sampler in SAMPLERS {
        for steps in [1, 2, 20] {
            let settings = SamplingSettings { sampler, steps, ..settings(PredictionType::X) };
            let mut oracle = Oracle::new(PredictionType::X);
            let pictures = draw(&mut oracle, &settings, &draws(5)).unwrap();
            for (picture, draw) in pictures.iter().zip(draws(5)) {
                assert!(picture.data().iter().all(|&v| v == color(draw.label)));
            }
            assert!(oracle.times.iter().all(|&t| t < 1.0), "t = 1 is never asked for");
        }
    }
}

#[test]
fn the_methods_converge_with_their_order() {
    for (sampler, order) in [(Sampler::Euler, 1), (Sampler::Heun, 2), (Sampler::Midpoint, 2)] {
        let error = |steps| {
            let settings = SamplingSettings { sampler, steps, ..settings(PredictionType::Velocity) };
            let picture = &draw(&mut Curve, &settings, &draws(1)).unwrap()[0];
            let start = noise(settings.seed, 0, 12);
            let exact = |x: f32| x * 1f32.sin().exp();
            picture.data().iter().zip(start).map(|(y, x)| (y - exact(x)).abs()).fold(0f32, f32::max)
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
fn a_picture_does_not_depend_on_those_it_is_drawn_with() {
    for sampler in SAMPLERS {
        let all = SamplingSettings { sampler, guidance: 2.0, ..settings(PredictionType::Velocity) };
        let together = draw(&mut Curve, &all, &draws(9)).unwrap();
        for batch in [1, 2, 9] {
            let settings = SamplingSettings { batch, ..all.clone() };
            assert_eq!(draw(&mut Curve, &settings, &draws(9)).unwrap(), together);
        }
        assert_eq!(draw(&mut Curve, &all, &draws(9)[4..5]).unwrap()[0], together[4]);
    }
}

#[test]
fn guidance_moves_away_from_the_null_class_and_only_in_its_interval() {
    let guided =
        SamplingSettings { guidance: 3.0, guidance_interval: [0.0, 1.0], ..settings(PredictionType::X) };
    let mut oracle = Oracle::new(PredictionType::X);
    let picture = &draw(&mut oracle, &guided, &[SampleSpec { index: 0, label: 1 }]).unwrap()[0];
    let expected = color(5) + 3.0 * (color(1) - color(5));
    assert!(picture.data().iter().all(|v| (v - expected).abs() < 1e-6));
    assert_eq!(oracle.largest_batch, 2);

    let never = SamplingSettings { guidance_interval: [2.0, 3.0], ..guided };
    let mut oracle = Oracle::new(PredictionType::X);
    draw(&mut oracle, &never, &draws(1)).unwrap();
    assert_eq!(oracle.largest_batch, 1);
}

#[test]
fn batches_are_bounded_and_sampling_can_be_stopped() {
    let mut oracle = Oracle::new(PredictionType::X);
    draw(&mut oracle, &settings(PredictionType::X), &draws(11)).unwrap();
    assert_eq!(oracle.largest_batch, 4);
    let mut seen = Vec::new();
    let mut stop = |p: Progress| {
        seen.push(p.done);
        if p.done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = sample(&mut oracle, &settings(PredictionType::X), DIMS, &draws(11), &mut stop);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(seen, [1, 2]);
}

#[test]
fn settings_that_make_no_sense_and_numbers_that_are_none_are_errors() {
    let good = settings(PredictionType::X);
    let wrong = [
        ("steps", SamplingSettings { steps: 0, ..good.clone() }),
        ("steps", SamplingSettings { steps: usize::MAX, ..good.clone() }),
        ("guidance", SamplingSettings { guidance: f32::NAN, ..good.clone() }),
        ("guidance_interval", SamplingSettings { guidance_interval: [f32::NAN, 1.0], ..good.clone() }),
        ("batch", SamplingSettings { batch: 0, ..good.clone() }),
    ];
    for (field, settings) in wrong {
        let error = draw(&mut Curve, &settings, &draws(1)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field}: ")), "{error}");
    }
    struct Nan;
    impl Denoiser for Nan {
        fn predict(&mut self, x: &Array, _: &[f32], _: &[i64]) -> Result<Array> {
            Ok(Array::new(x.dims(), vec![f32::NAN; x.data().len()])?)
        }
    }
    assert!(matches!(draw(&mut Nan, &good, &draws(1)), Err(Error::NotFinite { step: 0 })));
}

#[test]
fn pictures_of_different_settings_advance_together_as_they_do_alone() {
    let mut all = Vec::new();
    for (i, sampler) in (0u64..).zip(SAMPLERS.into_iter().cycle().take(9)) {
        let (steps, guidance) = (1 + i as usize % 4, [1.0, 2.0, 3.5][i as usize % 3]);
        let settings =
            SamplingSettings { sampler, steps, guidance, seed: i, ..settings(PredictionType::Velocity) };
        all.push((settings, SampleSpec { index: 40 + i, label: i as i64 % 5 }));
    }
    let mut curve = Curve;
    let begin =
        |(settings, draw): &(SamplingSettings, SampleSpec)| Trajectory::new(settings, DIMS, *draw).unwrap();
    // Some start later than others, and each leaves when it is finished.
    let (mut waiting, mut under_way) = (all.iter().map(begin).collect::<Vec<_>>(), Vec::new());
    let mut finished = Vec::new();
    while finished.len() < all.len() {
        under_way.extend(waiting.pop());
        advance(&mut curve, &mut under_way).unwrap();
        let (done, others) = under_way.into_iter().partition(Trajectory::is_finished);
        under_way = others;
        finished.extend::<Vec<Trajectory>>(done);
    }
    for (settings, one) in &all {
        let alone = &draw(&mut curve, settings, &[*one]).unwrap()[0];
        let together = finished.iter().find(|t| t.index() == one.index).unwrap();
        assert_eq!(together.values(), alone.data());
    }
}

#[test]
fn a_preview_is_the_clean_picture_that_the_network_sees() {
    for prediction in [PredictionType::X, PredictionType::Velocity] {
        let settings = SamplingSettings { steps: 4, ..settings(prediction) };
        let mut oracle = Oracle::new(prediction);
        let mut picture = [Trajectory::new(&settings, DIMS, SampleSpec { index: 1, label: 2 }).unwrap()];
        while !picture[0].is_finished() {
            advance(&mut oracle, &mut picture).unwrap();
            assert!(picture[0].preview().iter().all(|v| (v - color(2)).abs() < 1e-5));
        }
    }
}
