//! Every measure of an evaluation, held against published programs: `fixtures/evaluate/reference.py` says which, and has the formulas of
//! the features that both sides compute.

use std::{path::Path, process::Command};

use serde_json::Value;
use tiny_cats::evaluate::{
    Classification, DENSITY_NEIGHBORS, Features, PRECISION_NEIGHBORS, density_coverage, frechet_distance,
    kernel_distance, precision_recall,
};
use tiny_cats_export::{Candidate, Prediction};

/// Numbers from 0 to 1 in steps of 2⁻²⁴: SplitMix64 from the name's FNV-1a hash on.
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

/// That `value` is what every program says that `measure` is.
#[track_caller]
fn agrees(case: &Value, measure: &str, value: f64, tolerance: f64) {
    let name = &case["name"];
    let said: Vec<(&String, f64)> =
        case[measure].as_object().unwrap().iter().filter_map(|(by, v)| Some((by, v.as_f64()?))).collect();
    assert!(!said.is_empty(), "{name}: nobody says {measure}");
    for (by, said) in said {
        assert!((value - said).abs() <= tolerance, "{name}: {measure} is {value}, by {by} {said}");
    }
}

fn check(reference: &Value) {
    let cases = reference["features"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let number = |field: &str| case[field].as_u64().unwrap() as usize;
        let (name, dims) = (case["name"].as_str().unwrap(), number("dims"));
        let real = features(name, "real", number("real"), dims);
        let drawn = features(name, "drawn", number("drawn"), dims);
        // Roots of eigenvalues that are 0 but for rounding: the other programs agree among themselves no better where there are such.
        let singular = real.len().min(drawn.len()) <= dims;
        let tolerance = if singular { 1e-5 } else { 1e-8 };
        agrees(case, "fid", frechet_distance(&real, &drawn).unwrap(), tolerance * dims as f64);
        let kid = kernel_distance(&real, &drawn, (1, 2), 0, 0).unwrap();
        agrees(case, "kid", kid.distance, 1e-9);
        // PyTorch's means are f32.
        let both = precision_recall(&real, &drawn, PRECISION_NEIGHBORS).unwrap();
        agrees(case, "precision", both.precision, 1e-6);
        agrees(case, "recall", both.recall, 1e-6);
        let both = density_coverage(&real, &drawn, DENSITY_NEIGHBORS).unwrap();
        agrees(case, "density", both.density, 1e-12);
        agrees(case, "coverage", both.coverage, 1e-12);
    }
    check_classified(&reference["classified"]);
}

fn check_classified(case: &Value) {
    let number = |field: &str| case[field].as_u64().unwrap() as usize;
    let (name, pictures, classes) = (case["name"].as_str().unwrap(), number("pictures"), number("classes"));
    let names: Vec<String> = (0..classes).map(|i| i.to_string()).collect();
    let logits = uniform(&format!("{name}.logits"), pictures * classes);
    let anything = uniform(&format!("{name}.labels"), pictures);
    let mut result = Classification::new(&names);
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
        let any = ((anything[i] * classes as f64) as usize).min(classes - 1);
        let truth = if i % 2 == 0 { candidates[0].label } else { any };
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
fn measures_are_those_of_published_programs() {
    check(&serde_json::from_str(include_str!("../fixtures/evaluate/reference.json")).unwrap());
}

#[test]
#[ignore = "wants a Python with scipy, scikit-learn, torch-fidelity and prdc: TINY_CATS_PYTHON=python cargo test -- --ignored"]
fn measures_of_larger_sets_are_those_of_published_programs() {
    let python = std::env::var_os("TINY_CATS_PYTHON").expect("TINY_CATS_PYTHON names a Python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/evaluate/reference.py");
    for size in ["small", "large"] {
        let output = Command::new(&python).arg(&script).arg(size).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        check(&serde_json::from_slice(&output.stdout).unwrap());
    }
}
