//! Compares every metric of an evaluation with published implementations. `fixtures/evaluate/reference.py` lists them, and contains the
//! formulas of the features, which both sides compute.

use std::{path::Path, process::Command};

use serde_json::Value;
use tiny_cats::evaluate::{
    ClassificationResults, DENSITY_NEIGHBORS, Features, PRECISION_NEIGHBORS, density_coverage,
    frechet_distance, kernel_distance, precision_recall,
};
use tiny_cats_export::{Candidate, Prediction};

/// Numbers from 0 to 1 in steps of 2⁻²⁴: SplitMix64, seeded with the FNV-1a hash of `name`.
fn uniform(name: &str, n: usize) -> Vec<f64> {
    let hash = |h: u64, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    let state = name.bytes().fold(0xCBF2_9CE4_8422_2325, hash);
    let number = |i: u64| {
        let z = state.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    };
    (1..=n as u64).map(number).collect()
}

fn features(name: &str, side: &str, rows: usize, dims: usize) -> Features {
    let [a, b] = ["a", "b"].map(|part| uniform(&format!("{name}.{side}.{part}"), rows * dims));
    let u: Vec<f64> = (0..rows * dims).map(|i| (a[i] + b[i] - 1.0) * (1 + i % dims % 4) as f64).collect();
    let value = |i: usize| {
        let x = if i.is_multiple_of(dims) { u[i] } else { u[i] + u[i - 1] / 2.0 };
        (if side == "real" { x } else { 1.25 * x + 0.25 }) as f32
    };
    Features::new(dims, (0..rows * dims).map(value).collect()).unwrap()
}

/// Checks that `value` matches the results of all reference implementations for `metric`.
#[track_caller]
fn check_metric(case: &Value, metric: &str, value: f64, tolerance: f64) {
    let name = &case["name"];
    let references: Vec<(&String, f64)> =
        case[metric].as_object().unwrap().iter().filter_map(|(by, v)| Some((by, v.as_f64()?))).collect();
    assert!(!references.is_empty(), "{name}: no reference for {metric}");
    for (by, expected) in references {
        assert!(
            (value - expected).abs() <= tolerance,
            "{name}: {metric}: {by}: expected {expected}, found {value}"
        );
    }
}

fn check(reference: &Value) {
    let cases = reference["features"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let number = |field: &str| case[field].as_u64().unwrap() as usize;
        let (name, dims) = (case["name"].as_str().unwrap(), number("dims"));
        let real = features(name, "real", number("real"), dims);
        let generated = features(name, "drawn", number("drawn"), dims);
        // For singular covariances, roots of eigenvalues near 0 amplify rounding errors; the reference implementations differ by as much.
        let singular = real.len().min(generated.len()) <= dims;
        let tolerance = if singular { 1e-5 } else { 1e-8 };
        check_metric(case, "fid", frechet_distance(&real, &generated).unwrap(), tolerance * dims as f64);
        let kid = kernel_distance(&real, &generated, (1, 2), 0, 0).unwrap();
        check_metric(case, "kid", kid.distance, 1e-9);
        // PyTorch computes these means in f32.
        let scores = precision_recall(&real, &generated, PRECISION_NEIGHBORS).unwrap();
        check_metric(case, "precision", scores.precision, 1e-6);
        check_metric(case, "recall", scores.recall, 1e-6);
        let scores = density_coverage(&real, &generated, DENSITY_NEIGHBORS).unwrap();
        check_metric(case, "density", scores.density, 1e-12);
        check_metric(case, "coverage", scores.coverage, 1e-12);
    }
    check_classified(&reference["classified"]);
}

fn check_classified(case: &Value) {
    let number = |field: &str| case[field].as_u64().unwrap() as usize;
    let (name, images, classes) = (case["name"].as_str().unwrap(), number("pictures"), number("classes"));
    let names: Vec<String> = (0..classes).map(|i| i.to_string()).collect();
    let logits = uniform(&format!("{name}.logits"), images * classes);
    let random = uniform(&format!("{name}.labels"), images);
    let mut result = ClassificationResults::new(&names);
    for (i, row) in logits.chunks(classes).enumerate() {
        let highest = 6.0 * row.iter().copied().fold(0.0, f64::max);
        let powers: Vec<f64> = row.iter().map(|logit| (6.0 * logit - highest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let candidate = |(label, power): (usize, &f64)| Candidate {
            label,
            class: names[label].clone(),
            probability: power / sum,
        };
        let mut candidates: Vec<Candidate> = powers.iter().enumerate().map(candidate).collect();
        candidates.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        let label = ((random[i] * classes as f64) as usize).min(classes - 1);
        let truth = if i % 2 == 0 { candidates[0].label } else { label };
        result.add(truth, &Prediction { candidates });
    }
    let report = result.report();
    let near = |found: &Value, expected: &Value| {
        let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
        assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
    };
    near(&report["top1"]["accuracy"], &case["top1"]);
    near(&report["top3"]["accuracy"], &case["top3"]);
    for field in ["mean_recall", "negative_log_likelihood", "expected_calibration_error"] {
        near(&report[field], &case[field]);
    }
    for (class, precision) in case["precision"].as_array().unwrap().iter().enumerate() {
        near(&report["per_class"][class]["precision"], precision);
    }
}

#[test]
fn metrics_match_published_implementations() {
    check(&serde_json::from_str(include_str!("../fixtures/evaluate/reference.json")).unwrap());
}

#[test]
#[ignore = "needs a Python with scipy, scikit-learn, torch-fidelity and prdc: TINY_CATS_PYTHON=python cargo test -- --ignored"]
fn metrics_of_larger_sets_match_published_implementations() {
    let python = std::env::var_os("TINY_CATS_PYTHON").expect("TINY_CATS_PYTHON names a Python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/evaluate/reference.py");
    for size in ["small", "large"] {
        let output = Command::new(&python).arg(&script).arg(size).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        check(&serde_json::from_slice(&output.stdout).unwrap());
    }
}
