//! The command line as a user has it: from synthetic pictures to drawn ones, and everything that can be wrong on the way.

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

/// A folder with synthetic pictures in `synth` and a model trained on them for a few steps in `checkpoints`.
static TRAINED: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    trained::synthetic(dir.path());
    let said = succeeds(CATS, dir.path(), &trained::dit("checkpoints", &["--steps", "6"]));
    let state = trained::run_folder(dir.path(), &said).join("dit_step_00000006.safetensors");
    fs::rename(state, dir.path().join("checkpoints/state.safetensors")).unwrap();
    dir
});

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn what_was_trained_is_verified_exported_and_draws_the_same_cats_on_every_runtime() {
    let dir = TRAINED.path();
    let said = succeeds(VERIFY, dir, &["checkpoints/tinydit_final.pt"]);
    assert!(said.contains("1960972 parameters"), "{said}");
    for path in ["checkpoints/tinydit_final.safetensors", "checkpoints/state.safetensors"] {
        succeeds(VERIFY, dir, &[path, "--json"]);
    }
    let said = succeeds(
        CATS,
        dir,
        &["export", "checkpoints/tinydit_final.pt", "-o", "cat.onnx", "--test", "--verify"],
    );
    assert!(said.contains("tract") && said.contains("trajectory"), "{said}");
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("cat.report.json")).unwrap()).unwrap();
    assert_eq!(report["passed"], true);
    succeeds(VERIFY, dir, &["--checkpoint", "checkpoints/tinydit_final.pt", "--onnx", "cat.onnx"]);

    let draw = |model: &str, runtime: &str, batch: &str, output: &str| {
        let args =
            ["generate", "--model", model, "--runtime", runtime, "--batch", batch, "-n", "3", "--steps", "3"];
        succeeds(CATS, dir, &[&args[..], &["--seed", "5", "-o", output]].concat());
        image::open(dir.join(output)).unwrap().to_rgb8()
    };
    let first = draw("cat.onnx", "tract", "16", "a.png");
    for (model, runtime, batch) in [
        ("cat.onnx", "native", "1"),
        ("cat.onnx", "native", "16"),
        ("checkpoints/tinydit_final.safetensors", "native", "2"),
        ("cat.onnx", "tract", "1"),
        ("cat.onnx", "candle", "2"),
        ("checkpoints/tinydit_final.safetensors", "tract", "16"),
        ("checkpoints/tinydit_final.safetensors", "candle", "16"),
    ] {
        let other = draw(model, runtime, batch, "b.png");
        let most = first.as_raw().iter().zip(other.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(1), "{model} on {runtime}, batch {batch}: pictures differ by {most:?} of 255");
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
fn halves_are_half_the_file_and_the_same_cats() {
    let dir = TRAINED.path();
    let checkpoint = "checkpoints/tinydit_final.pt";
    succeeds(CATS, dir, &["export", checkpoint, "-o", "full.onnx"]);
    let said = succeeds(CATS, dir, &["export", checkpoint, "--f16", "-o", "halves.onnx"]);
    assert!(said.contains("rounding weights to halves changes outputs by up to"), "{said}");
    let report = crate::common::halves(dir, "full.onnx", "halves.onnx");
    assert!(report["rounding"]["trajectory_psnr"].as_f64().unwrap() >= 40.0, "{report}");
    let said = succeeds(VERIFY, dir, &["--checkpoint", checkpoint, "--onnx", "halves.onnx"]);
    assert!(said.contains("rounding weights to halves"), "{said}");
    let draw = |model: &str, runtime: &str, output: &str| {
        let args =
            ["generate", "--model", model, "--runtime", runtime, "-n", "2", "--steps", "3", "-o", output];
        succeeds(CATS, dir, &args);
        image::open(dir.join(output)).unwrap().to_rgb8()
    };
    let full = draw("full.onnx", "native", "full.png");
    for runtime in ["native", "tract", "candle"] {
        let other = draw("halves.onnx", runtime, "halves.png");
        let most = full.as_raw().iter().zip(other.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(8), "{runtime}: pictures differ by {most:?} of 255");
    }
}

#[test]
fn pictures_come_out_of_noise_frame_by_frame() {
    let dir = TRAINED.path();
    let generate = |more: &[&str]| {
        let model = "checkpoints/tinydit_final.safetensors";
        let args = ["generate", "--model", model, "-n", "2", "--steps", "4", "--breed", "siamese"];
        [&args[..], more].concat().iter().map(|arg| arg.to_string()).collect::<Vec<_>>()
    };
    let draw = |more: &[&str]| {
        let args = generate(more);
        succeeds(CATS, dir, &args.iter().map(String::as_str).collect::<Vec<_>>());
    };
    draw(&["--frames", "3", "-o", "frames.png"]);
    draw(&["-o", "finished/"]);
    let frames = image::open(dir.join("frames.png")).unwrap().to_rgb8();
    // The last frame of each row is the picture itself.
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
    for (given, said) in [("1", "expected 2 to 5"), ("6", "expected 2 to 5")] {
        let args = generate(&["--frames", given, "-o", "refused.png"]);
        let found = fails(CATS, dir, &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(found.contains(said), "{found}");
    }
    assert!(!dir.join("refused.png").exists());
}

#[test]
fn guidance_holds_for_the_times_that_are_asked_for() {
    let dir = TRAINED.path();
    let draw = |more: &[&str]| {
        let model = "checkpoints/tinydit_final.safetensors";
        let args = ["generate", "--model", model, "-n", "1", "--steps", "3", "-o", "guided.png"];
        succeeds(CATS, dir, &[&args, more].concat());
        std::fs::read(dir.join("guided.png")).unwrap()
    };
    let unguided = draw(&["--cfg", "1"]);
    assert!(draw(&["--cfg", "3", "--cfg-interval", "0.9,0.95"]) == unguided, "no step is at these times");
    assert!(draw(&["--cfg", "3", "--cfg-interval", "0,1"]) != unguided);
}

#[test]
fn both_released_files_draw_the_same() {
    let dir = TRAINED.path();
    let draw = |extension: &str| {
        let model = format!("checkpoints/tinydit_final.{extension}");
        let args = ["generate", "--model", &model, "-n", "1", "--steps", "2", "-o", "either.png"];
        succeeds(CATS, dir, &args);
        std::fs::read(dir.join("either.png")).unwrap()
    };
    assert!(draw("pt") == draw("safetensors"));
}

#[test]
fn generating_refuses_what_makes_no_sense_in_one_line() {
    let dir = TRAINED.path();
    let model = "checkpoints/tinydit_final.safetensors";
    let with =
        |more: &[&str]| fails(CATS, dir, &[&["generate", "--model", model, "-o", "no.png"], more].concat());
    assert!(with(&["--breed", "Siamees"]).contains("did you mean Siamese"));
    assert!(with(&["--steps", "0"]).contains("steps: expected 1"));
    assert!(with(&["-n", "0"]).contains("count"));
    assert!(with(&["--cfg", "nan"]).contains("guidance"));
    for interval in ["0.1", "0.9,0.1", "0,1.5", "nan,1", "a,b"] {
        assert!(with(&["--cfg-interval", interval]).contains("two times from 0 to 1, the earlier first"));
    }
    assert!(with(&["--sampler", "rk4"]).contains("sampler"));
    assert!(fails(CATS, dir, &["generate", "-o", "cat.jpg"]).contains(".png"));
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
fn each_picture_is_written_when_it_is_done_and_nothing_is_drawn_that_cannot_be() {
    let dir = TRAINED.path();
    let model = "checkpoints/tinydit_final.safetensors";
    let args =
        ["generate", "--model", model, "-n", "100000", "--batch", "1", "--steps", "1", "-o", "one_by_one/"];
    let mut child = Command::new(CATS).args(args).current_dir(dir).spawn().unwrap();
    let pictures = || -> Vec<PathBuf> {
        let files = fs::read_dir(dir.join("one_by_one")).into_iter().flatten();
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().unwrap() == "png").collect()
    };
    while pictures().len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "it is not done yet");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for path in pictures() {
        image::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    // So many that they would never be done.
    fs::write(dir.join("file"), "").unwrap();
    for output in ["file/", "file/below/", "file/cat.png", "nowhere/cat.png"] {
        let said = fails(CATS, dir, &["generate", "-n", "1000000", "--steps", "9999", "-o", output]);
        assert!(said.contains("--output") && said.contains(output), "{said}");
    }
}

#[test]
fn the_library_draws_what_the_command_does() {
    let dir = TRAINED.path();
    let model = dir.join("checkpoints/tinydit_final.safetensors");
    succeeds(CATS, dir, &["generate", "--model", model.to_str().unwrap(), "-n", "2", "-o", "two/"]);
    let request = Request { count: 2, ..Request::default() };
    let pictures = Generator::open(&model).unwrap().generate(&request).unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir.join("two")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort_by_key(|path| path.to_string_lossy().rsplit('_').next().map(str::to_owned));
    assert_eq!(files.len(), pictures.len());
    for (file, picture) in files.iter().zip(&pictures) {
        assert!(image::open(file).unwrap().into_rgb8() == picture.image, "{}", file.display());
    }
}

#[test]
fn no_onnx_runtime_is_one_line_that_says_where_to_get_it() {
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
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ORT_DYLIB_PATH") && said.lines().count() == 1, "{said}");
}

/// What must be refused by everything that reads weights, leaving nothing behind.
fn refused(name: &str, bytes: &[u8], says: &str) {
    let dir = TRAINED.path();
    fs::write(dir.join(name), bytes).unwrap();
    for args in
        [&["export", name, "-o", "refused.onnx"][..], &["generate", "--model", name, "-o", "refused.png"][..]]
    {
        let said = fails(CATS, dir, args);
        assert!(said.contains(name) || said.contains("network"), "{args:?}: {said}");
    }
    let output = run(VERIFY, dir, &[name]);
    assert_eq!(output.status.code(), Some(1), "{name}: {}", text(&output));
    assert!(text(&output).to_lowercase().contains(says), "{name}: {}", text(&output));
    for left in ["refused.onnx", "refused.report.json", "refused.png"] {
        assert!(!dir.join(left).exists(), "{name} left {left}");
    }
}

#[test]
fn files_that_are_damaged_or_lie_are_refused_and_nothing_is_left_behind() {
    let dir = TRAINED.path();
    let good = fs::read(dir.join("checkpoints/tinydit_final.safetensors")).unwrap();
    refused("short.safetensors", &good[..good.len() / 2], "expected");
    let mut altered = good.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    refused("altered.safetensors", &altered, "checksum");
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
        let said = fails(CATS, dir, args);
        assert!(
            said.starts_with("error: altered.") && said.contains("the file was altered"),
            "{args:?}: {said}"
        );
    }
    let torch = fs::read(dir.join("checkpoints/tinydit_final.pt")).unwrap();
    refused("short.pt", &torch[..torch.len() - 1000], "truncated");
    refused("text.safetensors", b"not a model at all", "");
    refused("empty.safetensors", b"", "empty");
    let mut absurd = u64::MAX.to_le_bytes().to_vec();
    absurd.extend(b"{}");
    refused("absurd.safetensors", &absurd, "");
    let header =
        br#"{"blocks.0.weight":{"dtype":"F32","shape":[4294967295,4294967295],"data_offsets":[0,16]}}"#;
    let mut lies = (header.len() as u64).to_le_bytes().to_vec();
    lies.extend(header);
    lies.extend([0; 16]);
    refused("lies.safetensors", &lies, "");
}

#[test]
fn weights_that_are_no_numbers_are_never_exported() {
    let dir = TRAINED.path();
    let mut state = TrainingState::load(&dir.join("checkpoints/state.safetensors")).unwrap();
    state.ema.values_mut().next().unwrap().data_mut()[0] = f32::NAN;
    state.save(&dir.join("nan.safetensors")).unwrap();
    let said = text(&run(VERIFY, dir, &["nan.safetensors"]));
    assert!(said.contains("NaN") || said.contains("finite"), "{said}");
    fails(CATS, dir, &["export", "nan.safetensors", "-o", "nan.onnx"]);
    assert!(!dir.join("nan.onnx").exists() && !dir.join("nan.report.json").exists());
}

/// A file may not grow beyond this many blocks of 512 bytes: what a full disk does, without a disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
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
fn a_network_of_other_sizes_than_its_weights_is_refused_by_name() {
    let dir = TRAINED.path();
    let mut state = TrainingState::load(&dir.join("checkpoints/state.safetensors")).unwrap();
    state.meta["model"]["config"]["depth"] = 5.into();
    state.save(&dir.join("other.safetensors")).unwrap();
    let output = run(VERIFY, dir, &["other.safetensors"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("blocks.5."), "{}", text(&output));
    let said = fails(CATS, dir, &["export", "other.safetensors", "-o", "other.onnx"]);
    assert!(said.contains("blocks.5."), "{said}");
}

/// Behind `| head`, and on a device that is full.
#[cfg(target_os = "linux")]
#[test]
fn output_that_nobody_reads_ends_a_program_quietly_and_a_full_device_with_one_line() {
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
        let (code, said) = run(full.into());
        assert_eq!((code, said.lines().count()), (Some(1), 1), "{args:?}: {said}");
        assert!(said.contains("No space left on device"), "{args:?}: {said}");
    }
}
