//! End-to-end tests of the commands that train, export and run a generator, and of their errors.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use tempfile::TempDir;
use tiny_cats::checkpoint::TrainingState;
use tiny_cats_export::{Generator, Request};

use crate::common::{CATS, VERIFY, fails, run, succeeds, text, trained};

/// A folder with synthetic images in `synth` and a generator trained on them for six steps in `checkpoints`.
static TRAINED: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    trained::write_synthetic_images(dir.path());
    let output = succeeds(CATS, dir.path(), &trained::dit_args("checkpoints", &["--steps", "6"]));
    let state = trained::run_folder(dir.path(), &output).join("dit_step_00000006.safetensors");
    fs::rename(state, dir.path().join("checkpoints/state.safetensors")).unwrap();
    dir
});

/// The paths in `folder`, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn a_trained_generator_is_verified_exported_and_generates_the_same_images_on_every_runtime() {
    let dir = TRAINED.path();
    let output = succeeds(VERIFY, dir, &["checkpoints/tinydit_final.pt"]);
    assert!(output.contains("1960972 parameters"), "{output}");
    for path in ["checkpoints/tinydit_final.safetensors", "checkpoints/state.safetensors"] {
        succeeds(VERIFY, dir, &[path, "--json"]);
    }
    let output = succeeds(
        CATS,
        dir,
        &["export", "checkpoints/tinydit_final.pt", "-o", "cat.onnx", "--test", "--verify"],
    );
    assert!(output.contains("tract") && output.contains("trajectory"), "{output}");
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("cat.report.json")).unwrap()).unwrap();
    assert_eq!(report["passed"], true);
    succeeds(VERIFY, dir, &["--checkpoint", "checkpoints/tinydit_final.pt", "--onnx", "cat.onnx"]);

    let generate = |model: &str, runtime: &str, batch: &str, output: &str| {
        let args =
            ["generate", "--model", model, "--runtime", runtime, "--batch", batch, "-n", "3", "--steps", "3"];
        succeeds(CATS, dir, &[&args[..], &["--seed", "5", "-o", output]].concat());
        image::open(dir.join(output)).unwrap().to_rgb8()
    };
    let first = generate("cat.onnx", "tract", "16", "a.png");
    for (model, runtime, batch) in [
        ("cat.onnx", "native", "1"),
        ("cat.onnx", "native", "16"),
        ("checkpoints/tinydit_final.safetensors", "native", "2"),
        ("cat.onnx", "tract", "1"),
        ("cat.onnx", "candle", "2"),
        ("checkpoints/tinydit_final.safetensors", "tract", "16"),
        ("checkpoints/tinydit_final.safetensors", "candle", "16"),
    ] {
        let other = generate(model, runtime, batch, "b.png");
        let max = first.as_raw().iter().zip(other.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(max <= Some(1), "{model} on {runtime}, batch {batch}: images differ by {max:?} of 255");
    }
    succeeds(
        CATS,
        dir,
        &["generate", "--model", "cat.onnx", "-n", "2", "--steps", "1", "--breed", "siamese", "-o", "each/"],
    );
    let each = files(&dir.join("each"));
    assert_eq!(each.len(), 2);
    assert_eq!(image::open(&each[0]).unwrap().width(), 16);
}

#[test]
fn an_f16_export_halves_the_file_and_generates_similar_images() {
    let dir = TRAINED.path();
    let checkpoint = "checkpoints/tinydit_final.pt";
    succeeds(CATS, dir, &["export", checkpoint, "-o", "full.onnx"]);
    let output = succeeds(CATS, dir, &["export", checkpoint, "--f16", "-o", "half.onnx"]);
    assert!(output.contains("rounding weights to half precision changes outputs by up to"), "{output}");
    let report = crate::common::check_f16_export(dir, "full.onnx", "half.onnx");
    assert!(report["rounding"]["trajectory_psnr"].as_f64().unwrap() >= 40.0, "{report}");
    let output = succeeds(VERIFY, dir, &["--checkpoint", checkpoint, "--onnx", "half.onnx"]);
    assert!(output.contains("rounding weights to half precision"), "{output}");
    let generate = |model: &str, runtime: &str, output: &str| {
        let args =
            ["generate", "--model", model, "--runtime", runtime, "-n", "2", "--steps", "3", "-o", output];
        succeeds(CATS, dir, &args);
        image::open(dir.join(output)).unwrap().to_rgb8()
    };
    let full = generate("full.onnx", "native", "full.png");
    for runtime in ["native", "tract", "candle"] {
        let other = generate("half.onnx", runtime, "half.png");
        let max = full.as_raw().iter().zip(other.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(max <= Some(8), "{runtime}: images differ by {max:?} of 255");
    }
}

#[test]
fn frames_start_with_noise_and_end_with_the_image() {
    let dir = TRAINED.path();
    let generate_args = |more: &[&str]| {
        let model = "checkpoints/tinydit_final.safetensors";
        let args = ["generate", "--model", model, "-n", "2", "--steps", "4", "--breed", "siamese"];
        [&args[..], more].concat().iter().map(|arg| arg.to_string()).collect::<Vec<_>>()
    };
    let generate = |more: &[&str]| {
        let args = generate_args(more);
        succeeds(CATS, dir, &args.iter().map(String::as_str).collect::<Vec<_>>());
    };
    generate(&["--frames", "3", "-o", "frames.png"]);
    generate(&["-o", "finished/"]);
    let frames = image::open(dir.join("frames.png")).unwrap().to_rgb8();
    // The last frame of each row is the generated image.
    for (row, path) in files(&dir.join("finished")).iter().enumerate() {
        let cell = tiny_cats_export::grid(&[image::open(path).unwrap().to_rgb8()], 1, None);
        let margin = (cell.width() - 128) / 2;
        let step = 128 + margin;
        assert_eq!([frames.width(), frames.height()], [margin + 3 * step, margin + 2 * step]);
        for (x, y) in [(margin, margin), (margin + 64, margin + 100), (margin + 127, margin + 127)] {
            let found = frames.get_pixel(2 * step + x, row as u32 * step + y);
            assert_eq!(found, cell.get_pixel(x, y), "row {row}, {x}, {y}");
            assert_ne!(found, frames.get_pixel(x, row as u32 * step + y), "the first frame is noise");
        }
    }
    for (count, expected) in [("1", "expected 2 to 5"), ("6", "expected 2 to 5")] {
        let args = generate_args(&["--frames", count, "-o", "refused.png"]);
        let error = fails(CATS, dir, &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains(expected), "{error}");
    }
    assert!(!dir.join("refused.png").exists());
}

#[test]
fn guidance_applies_only_within_its_interval() {
    let dir = TRAINED.path();
    let generate = |more: &[&str]| {
        let model = "checkpoints/tinydit_final.safetensors";
        let args = ["generate", "--model", model, "-n", "1", "--steps", "3", "-o", "guided.png"];
        succeeds(CATS, dir, &[&args, more].concat());
        std::fs::read(dir.join("guided.png")).unwrap()
    };
    let unguided = generate(&["--cfg", "1"]);
    assert!(generate(&["--cfg", "3", "--cfg-interval", "0.9,0.95"]) == unguided, "no step is at these times");
    assert!(generate(&["--cfg", "3", "--cfg-interval", "0,1"]) != unguided);
}

#[test]
fn both_released_files_generate_the_same_image() {
    let dir = TRAINED.path();
    let generate = |extension: &str| {
        let model = format!("checkpoints/tinydit_final.{extension}");
        let args = ["generate", "--model", &model, "-n", "1", "--steps", "2", "-o", "either.png"];
        succeeds(CATS, dir, &args);
        std::fs::read(dir.join("either.png")).unwrap()
    };
    assert!(generate("pt") == generate("safetensors"));
}

#[test]
fn invalid_generate_arguments_give_one_line_errors() {
    let dir = TRAINED.path();
    let model = "checkpoints/tinydit_final.safetensors";
    let error =
        |more: &[&str]| fails(CATS, dir, &[&["generate", "--model", model, "-o", "no.png"], more].concat());
    assert!(error(&["--breed", "Siamees"]).contains("did you mean Siamese"));
    assert!(error(&["--steps", "0"]).contains("steps: expected 1"));
    assert!(error(&["-n", "0"]).contains("count"));
    assert!(error(&["--cfg", "nan"]).contains("guidance"));
    for interval in ["0.1", "0.9,0.1", "0,1.5", "nan,1", "a,b"] {
        assert!(error(&["--cfg-interval", interval]).contains("two times from 0 to 1 in ascending order"));
    }
    assert!(error(&["--sampler", "rk4"]).contains("sampler"));
    for (output, folder) in [("cat.jpg", "cat.jpg/"), ("bs", "bs/")] {
        let error = fails(CATS, dir, &["generate", "-o", output]);
        let expected = format!("--output {output}: expected a name that ends in .png, or a folder: {folder}");
        assert!(error.contains(&expected), "{error}");
    }
    assert!(
        fails(
            CATS,
            dir,
            &["generate", "--model", model, "-n", "1", "--steps", "1", "-o", "no/where/cat.png"]
        )
        .contains("no/where/cat.png")
    );
    assert!(fails(CATS, dir, &["generate", "--model", "missing.onnx"]).contains("missing.onnx"));
    assert!(!dir.join("no.png").exists());
}

#[test]
fn images_are_written_one_by_one_and_bad_outputs_fail_early() {
    let dir = TRAINED.path();
    let model = "checkpoints/tinydit_final.safetensors";
    let args =
        ["generate", "--model", model, "-n", "100000", "--batch", "1", "--steps", "1", "-o", "one_by_one/"];
    let mut child = Command::new(CATS).args(args).current_dir(dir).spawn().unwrap();
    let images = || -> Vec<PathBuf> {
        let files = fs::read_dir(dir.join("one_by_one")).into_iter().flatten();
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().unwrap() == "png").collect()
    };
    while images().len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "the program ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for path in images() {
        image::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    // Generating this many images would take forever, so the error must come first.
    fs::write(dir.join("file"), "").unwrap();
    for output in ["file/", "file/folder/", "file/cat.png", "nowhere/cat.png"] {
        let error = fails(CATS, dir, &["generate", "-n", "1000000", "--steps", "9999", "-o", output]);
        assert!(error.contains("--output") && error.contains(output), "{error}");
    }
}

#[test]
fn the_library_and_the_command_generate_the_same_images() {
    let dir = TRAINED.path();
    let model = dir.join("checkpoints/tinydit_final.safetensors");
    succeeds(CATS, dir, &["generate", "--model", model.to_str().unwrap(), "-n", "2", "-o", "two/"]);
    let request = Request { count: 2, ..Request::default() };
    let images = Generator::open(&model).unwrap().generate(&request).unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir.join("two")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort_by_key(|path| path.to_string_lossy().rsplit('_').next().map(str::to_owned));
    assert_eq!(files.len(), images.len());
    for (file, generated) in files.iter().zip(&images) {
        assert!(image::open(file).unwrap().into_rgb8() == generated.image, "{}", file.display());
    }
}

#[test]
fn a_missing_onnx_runtime_gives_a_one_line_error() {
    let dir = TRAINED.path();
    let output = Command::new(CATS)
        .args([
            "generate",
            "--model",
            "checkpoints/tinydit_final.safetensors",
            "--runtime",
            "ort",
            "-o",
            "no.png",
        ])
        .env("ORT_DYLIB_PATH", "/nonexistent/libonnxruntime.so")
        .current_dir(dir)
        .output()
        .unwrap();
    let message = text(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("ORT_DYLIB_PATH") && message.lines().count() == 1, "{message}");
}

/// Checks that every command that reads weights refuses the file `bytes` without writing output, and that `verify-checkpoint` prints
/// `expected`.
fn check_refused(name: &str, bytes: &[u8], expected: &str) {
    let dir = TRAINED.path();
    fs::write(dir.join(name), bytes).unwrap();
    for args in
        [&["export", name, "-o", "refused.onnx"][..], &["generate", "--model", name, "-o", "refused.png"][..]]
    {
        let error = fails(CATS, dir, args);
        assert!(error.contains(name) || error.contains("network"), "{args:?}: {error}");
    }
    let output = run(VERIFY, dir, &[name]);
    assert_eq!(output.status.code(), Some(1), "{name}: {}", text(&output));
    assert!(text(&output).to_lowercase().contains(expected), "{name}: {}", text(&output));
    for file in ["refused.onnx", "refused.report.json", "refused.png"] {
        assert!(!dir.join(file).exists(), "{name}: {file} exists");
    }
}

#[test]
fn damaged_files_are_refused_without_output_files() {
    let dir = TRAINED.path();
    let good = fs::read(dir.join("checkpoints/tinydit_final.safetensors")).unwrap();
    check_refused("short.safetensors", &good[..good.len() / 2], "expected");
    let mut altered = good.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    check_refused("altered.safetensors", &altered, "checksum");
    succeeds(CATS, dir, &["export", "checkpoints/tinydit_final.safetensors", "-o", "good.onnx"]);
    let mut altered = fs::read(dir.join("good.onnx")).unwrap();
    let middle = altered.len() / 2;
    altered[middle..middle + 4096].fill(0);
    fs::write(dir.join("altered.onnx"), &altered).unwrap();
    for args in [
        &["generate", "--model", "altered.onnx", "-o", "refused.png"][..],
        &["generate", "--model", "altered.safetensors", "-o", "refused.png"],
        &["eval", "dit", "synth", "--model", "altered.onnx"],
        &["eval", "dit", "synth", "--model", "altered.safetensors"],
    ] {
        let error = fails(CATS, dir, args);
        assert!(
            error.starts_with("error: altered.") && error.contains("the file was altered"),
            "{args:?}: {error}"
        );
    }
    let torch = fs::read(dir.join("checkpoints/tinydit_final.pt")).unwrap();
    check_refused("short.pt", &torch[..torch.len() - 1000], "truncated");
    check_refused("text.safetensors", b"not a model at all", "");
    check_refused("empty.safetensors", b"", "empty");
    let mut header_too_long = u64::MAX.to_le_bytes().to_vec();
    header_too_long.extend(b"{}");
    check_refused("header_too_long.safetensors", &header_too_long, "");
    let header =
        br#"{"blocks.0.weight":{"dtype":"F32","shape":[4294967295,4294967295],"data_offsets":[0,16]}}"#;
    let mut dims_too_large = (header.len() as u64).to_le_bytes().to_vec();
    dims_too_large.extend(header);
    dims_too_large.extend([0; 16]);
    check_refused("dims_too_large.safetensors", &dims_too_large, "");
}

#[test]
fn weights_with_nan_are_not_exported() {
    let dir = TRAINED.path();
    let mut state = TrainingState::load(&dir.join("checkpoints/state.safetensors")).unwrap();
    state.ema.values_mut().next().unwrap().data_mut()[0] = f32::NAN;
    state.save(&dir.join("nan.safetensors")).unwrap();
    let output = text(&run(VERIFY, dir, &["nan.safetensors"]));
    assert!(output.contains("NaN") || output.contains("finite"), "{output}");
    fails(CATS, dir, &["export", "nan.safetensors", "-o", "nan.onnx"]);
    assert!(!dir.join("nan.onnx").exists() && !dir.join("nan.report.json").exists());
}

/// Simulates a full disk with a limit on file sizes, which `ulimit` sets in blocks of 512 bytes.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_partial_files() {
    let dir = TRAINED.path();
    fs::create_dir_all(dir.join("full")).unwrap();
    for command in [
        "export checkpoints/tinydit_final.pt -o full/cat.onnx",
        "generate --model checkpoints/tinydit_final.safetensors -n 1 --steps 1 -o full/cat.png",
    ] {
        let limit = if command.starts_with("export") { 100 } else { 0 };
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec {CATS} {command}");
        let output = Command::new("sh").args(["-c", &script]).current_dir(dir).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert_eq!(
            text(&output).lines().filter(|l| l.starts_with("error: ") && l.contains("full/cat")).count(),
            1,
            "{}",
            text(&output)
        );
        assert_eq!(files(&dir.join("full")), Vec::<PathBuf>::new());
    }
}

#[test]
fn weights_that_do_not_match_the_network_are_named() {
    let dir = TRAINED.path();
    let mut state = TrainingState::load(&dir.join("checkpoints/state.safetensors")).unwrap();
    state.meta["model"]["config"]["depth"] = 5.into();
    state.save(&dir.join("other.safetensors")).unwrap();
    let output = run(VERIFY, dir, &["other.safetensors"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("blocks.5."), "{}", text(&output));
    let error = fails(CATS, dir, &["export", "other.safetensors", "-o", "other.onnx"]);
    assert!(error.contains("blocks.5."), "{error}");
}

/// Standard output is a closed pipe, as after `| head`, or a full device.
#[cfg(target_os = "linux")]
#[test]
fn a_closed_pipe_ends_silently_and_a_full_device_gives_a_one_line_error() {
    let dir = TRAINED.path();
    let checkpoint = "checkpoints/tinydit_final.safetensors";
    let commands: [(&str, &[&str]); 7] = [
        (CATS, &["doctor"]),
        (CATS, &["runs"]),
        (CATS, &["data", "cache", "--cache", "no-cache"]),
        (CATS, &["generate", "--model", checkpoint, "-n", "1", "--steps", "1", "-o", "unread.png"]),
        (CATS, &["export", checkpoint, "-o", "unread.onnx"]),
        (VERIFY, &[checkpoint, "--skip-onnx"]),
        (VERIFY, &[checkpoint, "--skip-onnx", "--json"]),
    ];
    for (program, args) in commands {
        let run = |stdout: std::process::Stdio| {
            let mut command = std::process::Command::new(program);
            command.args(args).current_dir(dir).stdout(stdout).stderr(std::process::Stdio::piped());
            let output = command.spawn().unwrap().wait_with_output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(writer.into()), (Some(0), String::new()), "{args:?}");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (code, stderr) = run(full.into());
        assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{args:?}: {stderr}");
        assert!(stderr.contains("No space left on device"), "{args:?}: {stderr}");
    }
}
