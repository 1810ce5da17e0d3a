//! The networks that `plan` describes and trains for a measurement.

use std::path::Path;

use candle_core::Device;
use tiny_cats_export::NetworkConfig;
use tiny_cats_models::{ResNetConfig, TinyDitConfig};

use crate::{
    data::{BREEDS, Cache, Dataset, Images, Photos, synth},
    plan::Workload,
    train::{
        Classification, ClassificationOptions, Error, Flow, FlowMatching, FlowMatchingOptions, Result, Task,
    },
};

/// Minimum number of synthetic images in the training data.
const MIN_IMAGES: usize = 100;

/// Returns a description of a network for the report, without the sizes that the report has elsewhere.
pub(super) fn describe(config: &NetworkConfig) -> String {
    match config.downcast() {
        Some(TinyDitConfig { width, depth, patch_size, .. }) => {
            format!("TinyDiT of width {width}, depth {depth}, patches of {patch_size} px")
        }
        None => config.to_string(),
    }
}

/// Creates the task of `workload`, with synthetic cats in `folder`.
///
/// # Errors
/// If the data cannot be written, or the network is not one of the command line.
pub fn calibration_task(workload: &Workload, folder: &Path, device: &Device) -> Result<Box<dyn Task>> {
    let (side, augmentation, seed) = (workload.side as u32, workload.augmentation, 0);
    let data = folder.join("cats");
    let per_class = workload.batch.max(MIN_IMAGES).div_ceil(BREEDS.len() + 1).min(u32::MAX as usize) as u32;
    synth::write(&data, &synth::SynthManifest::new(per_class, side, seed)?, |_| ())?;
    let data = Dataset::open(&data)?;
    let (classes, name) = (data.classes.len(), "calibration".to_owned());
    if let Some(network) = workload.network.downcast::<TinyDitConfig>() {
        let images = Images::load(&data, side, None, &Cache::Memory)?;
        let options = FlowMatchingOptions {
            network: TinyDitConfig { classes, ..network.clone() },
            flow: Flow::default(),
            augmentation,
            guidance: 1.0,
            guidance_interval: [0.0, 1.0],
            best: false,
            seed,
            kind: "dit",
            name,
            init: None,
        };
        return Ok(Box::new(FlowMatching::new(options, images, None, device.clone())?));
    }
    let Some(network) = workload.network.downcast::<ResNetConfig>() else {
        let message = format!("expected a network of the command line, found {}", workload.network);
        return Err(Error::Setting { setting: "network", message });
    };
    let options = ClassificationOptions {
        network: ResNetConfig { classes, ..network.clone() },
        image_size: workload.side,
        crop_size: workload.side,
        augmentation,
        mixup: 0.0,
        label_smoothing: 0.1,
        seed,
        name,
        init: None,
    };
    let photos = Photos::load(&data, options.short_side(), None, &Cache::Memory)?;
    Ok(Box::new(Classification::new(options, photos, None, device.clone())?))
}
