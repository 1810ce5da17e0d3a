//! A network of one's own, trained, exported, verified and planned with tiny-cats.
//!
//!   digits train FOLDER STEPS    trains, or resumes the run in FOLDER
//!   digits export FOLDER         writes FOLDER/digits.onnx, and verifies it on every available runtime
//!   digits check FOLDER          verifies the released checkpoint, and compares the runtimes on new digits
//!   digits plan                  prints parameters, operations and memory

mod data;
mod network;
mod task;

use std::{error::Error, path::Path};

use tiny_cats::{
    checkpoint::verify,
    train::{Event, TrainOptions, train},
};
use tiny_cats_export::{
    ExportOptions, Model, export,
    runtime::{InputTensor, available},
};
use tiny_cats_models::{Array, Network, Sizes, TapeOptions};

use network::{Digits, SIDE};

const NETWORK: Digits = Digits { channels: 16 };
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    // From now on, files that name this kind of network are loaded by its definition.
    tiny_cats_export::register::<Digits>()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["train", folder, steps] => run_training(folder, steps.parse()?),
        ["export", folder] => run_export(Path::new(folder)),
        ["check", folder] => check(Path::new(folder)),
        ["plan"] => plan(),
        _ => Err("expected train FOLDER STEPS, export FOLDER, check FOLDER or plan".into()),
    }
}

fn run_training(folder: &str, steps: u64) -> Result<(), Box<dyn Error>> {
    let mut options = TrainOptions::new(folder, steps, BATCH)?;
    options.schedule.peak = 5e-3;
    let mut task = task::Training { network: NETWORK };
    let released = train(&mut task, &options, &mut |event| match event {
        Event::Begin { step, steps, parameters, .. } => {
            println!("{parameters} parameters, steps {step} to {steps}");
        }
        Event::Evaluated { step, scores, .. } => {
            println!("step {step}: {} {:.1} %", scores[0].name, 100.0 * scores[0].value);
        }
        _ => {}
    })?;
    released.iter().for_each(|path| println!("wrote {}", path.display()));
    Ok(())
}

fn run_export(folder: &Path) -> Result<(), Box<dyn Error>> {
    let model = Model::open(&folder.join("digits.safetensors"))?;
    let path = folder.join("digits.onnx");
    let report = export(model.meta(), &model.weights()?, &path, &ExportOptions::default())?;
    for runtime in &report.runtimes {
        let used = 100.0 * runtime.tolerance_used;
        println!("{} {}: verified, {used:.0} % of the tolerance", runtime.runtime, runtime.version);
    }
    println!("wrote {}", path.display());
    Ok(())
}

fn check(folder: &Path) -> Result<(), Box<dyn Error>> {
    let report = verify::verify(&folder.join("digits.pt"), &verify::VerifyOptions::default());
    println!("{report}");
    let model = Model::open(&folder.join("digits.onnx"))?;
    let mut images = vec![0.0; 20 * SIDE * SIDE];
    let digits: Vec<usize> =
        images.chunks_mut(SIDE * SIDE).enumerate().map(|(i, image)| data::draw(3, i as u64, image)).collect();
    let images = Array::new([20, 1, SIDE, SIDE], images)?;
    for (kind, version) in available() {
        if version.is_err() {
            continue;
        }
        let logits = model.load(kind)?.run(&[("image", InputTensor::Floats(&images))])?;
        let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        let correct = logits.data().chunks(10).zip(&digits).filter(|(row, digit)| best(row) == Some(**digit));
        println!("{kind}: {} of 20 digits are recognized", correct.count());
    }
    Ok(())
}

fn plan() -> Result<(), Box<dyn Error>> {
    let cost = NETWORK.cost(&Sizes::new())?;
    let bytes = NETWORK.training_bytes(&Sizes::new(), BATCH, TapeOptions::default())?;
    println!("{} parameters, {} kFLOP for an image", cost.parameters(), cost.flops() / 1000);
    println!("{} KiB for activations and gradients of a step of {BATCH}", bytes / 1024);
    Ok(())
}
