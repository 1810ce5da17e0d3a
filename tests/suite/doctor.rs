//! End-to-end tests of `tiny-cats doctor`, and of the error for `--device cuda` in a build without GPU support.

use std::{
    process::{Command, Output},
    sync::LazyLock,
};

use serde_json::Value;
use tiny_cats::doctor::CUDA_INSTALL_COMMAND;
use tiny_cats_export::Model;
use tiny_cats_models::pretrained;

const CATS: &str = env!("CARGO_BIN_EXE_tiny-cats");

fn doctor(args: &[&str], ort: Option<&str>) -> Output {
    let mut command = Command::new(CATS);
    command.arg("doctor").args(args);
    if let Some(path) = ort {
        command.env("ORT_DYLIB_PATH", path);
    }
    command.output().expect("the program starts")
}

fn json(ort: Option<&str>) -> Value {
    let output = doctor(&["--json"], ort);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn runtime<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["runtimes"].as_array().unwrap().iter().find(|r| r["name"] == name).expect("every runtime")
}

static REPORT: LazyLock<Value> = LazyLock::new(|| json(None));

#[test]
fn every_runtime_is_tried_and_missing_ones_have_a_fix() {
    let report = &*REPORT;
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["ok"], true);
    for name in ["native", "tract", "candle"] {
        let runtime = runtime(report, name);
        assert!(runtime["version"].is_string() && runtime["error"].is_null(), "{runtime}");
        assert!(runtime["milliseconds"].as_f64().is_some_and(|ms| ms > 0.0), "{runtime}");
    }
    for (name, built_in) in [("ort", cfg!(feature = "ort")), ("candle-onnx", cfg!(feature = "candle-onnx"))] {
        let runtime = runtime(report, name);
        assert_eq!(runtime["error"].is_null(), runtime["milliseconds"].is_number(), "{runtime}");
        assert_eq!(runtime["error"].is_null(), runtime["fix"].is_null(), "{runtime}");
        assert!(
            built_in || runtime["fix"].as_str().is_some_and(|f| f.contains("cargo install")),
            "{runtime}"
        );
        // A runtime that is loaded from a library reports its path.
        assert_eq!(
            runtime["library"].is_string(),
            name == "ort" && runtime["version"].is_string(),
            "{runtime}"
        );
    }
    // If this variable is set, as by scripts/test, ONNX Runtime must be found.
    if std::env::var_os("ORT_DYLIB_PATH").is_some() {
        let ort = runtime(report, "ort");
        assert!(ort["error"].is_null() && ort["library"].as_str().unwrap().contains("onnxruntime"), "{ort}");
    }
}

#[test]
fn the_machine_and_the_released_models_are_described() {
    let report = &*REPORT;
    let cpu = &report["processor"];
    assert_eq!(cpu["architecture"], std::env::consts::ARCH);
    assert!(cpu["threads"].as_u64().is_some_and(|n| n > 0));
    #[cfg(target_arch = "x86_64")]
    assert_eq!(cpu["features"]["AVX2"], is_x86_feature_detected!("avx2"));
    for space in ["memory", "disk"] {
        let [free, total] = ["free", "total"].map(|key| report[space][key].as_u64().unwrap());
        assert!(0 < free && free <= total, "{space}: {free} of {total}");
    }
    let model = &report["models"][0];
    assert_eq!((&model["name"], &model["image_size"]), (&"tinydit".into(), &64.into()));
    assert!(model["classes"].as_array().unwrap().contains(&"Siamese".into()));
    let released = [pretrained::TINYDIT, pretrained::CLASSIFIER];
    for (model, bytes) in report["models"].as_array().unwrap().iter().zip(released) {
        let released = Model::from_bytes(bytes.to_vec(), "released").unwrap();
        assert_eq!(model["integrity"], released.integrity().to_string());
    }
}

#[test]
fn text_output_matches_json() {
    let output = doctor(&[], None);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |start: &str| {
        text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("no {start:?} in\n{text}"))
    };
    assert!(line("  ok        native").ends_with(" ms"));
    assert!(line("memory").contains("GiB free of"));
    assert!(line("  ok        tinydit").contains("64 px"));
    let integrity = REPORT["models"][0]["integrity"].as_str().unwrap();
    assert!(line("  ok        tinydit").ends_with(&format!(", {integrity}")));
    assert!(cfg!(feature = "cuda") || line("  missing   CUDA").contains(CUDA_INSTALL_COMMAND));
}

#[test]
#[cfg(feature = "ort")]
fn an_invalid_onnx_runtime_is_reported_and_the_embedded_runtimes_work() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("libonnxruntime.so");
    std::fs::write(&text, "not a library").unwrap();
    for path in ["/nonexistent/libonnxruntime.so", text.to_str().unwrap()] {
        let report = json(Some(path));
        let ort = runtime(&report, "ort");
        assert!(ort["version"].is_null() && ort["library"].is_null(), "{ort}");
        let error = ort["error"].as_str().unwrap();
        assert!(error.contains("ORT_DYLIB_PATH") && !error.contains('\n'), "{error}");
        assert!(ort["fix"].as_str().unwrap().contains("unset ORT_DYLIB_PATH"), "{ort}");
        assert_eq!(report["ok"], true);
    }
}

#[test]
#[cfg(not(feature = "cuda"))]
fn an_unavailable_gpu_gives_an_error_with_instructions() {
    let args = ["train", "dit", "nowhere", "--device", "cuda"];
    let output = Command::new(CATS).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("--device: ") && error.contains(CUDA_INSTALL_COMMAND) && error.lines().count() == 1,
        "{error}"
    );
}
