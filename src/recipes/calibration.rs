//! The networks of recipes, as `plan` describes and measures them.

use std::{path::Path, sync::Arc};

use candle_core::Device;
use tiny_cats_export::NetworkConfig;
use tiny_cats_models::{ResNetConfig, TinyDitConfig};

use crate::{
    data::{BREEDS, Cache, Dataset, ImageExamples, Images, PhotoExamples, PhotoOptions, Photos, synth},
    plan::Workload,
    train::{Classification, ClassificationOptions, Error, FlowMatching, FlowMatchingOptions, Result, Task},
};

/// Minimum number of synthetic images in the training data.
const MIN_IMAGES: usize = 100;

/// Returns a description of a network for the report, without the sizes that the report has elsewhere.
pub fn describe_network(config: &NetworkConfig) -> String {
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
/// If the data cannot be written, or the network is not that of a recipe.
pub fn calibration_task(workload: &Workload, folder: &Path, device: &Device) -> Result<Box<dyn Task>> {
    let (side, augmentation) = (workload.side as u32, workload.augmentation);
    let data = folder.join("cats");
    let per_class = workload.batch.max(MIN_IMAGES).div_ceil(BREEDS.len() + 1).min(u32::MAX as usize) as u32;
    synth::write(&data, &synth::SynthManifest::new(per_class, side, 0)?, |_| ())?;
    let data = Dataset::open(&data)?;
    let classes = data.classes.len();
    if let Some(network) = workload.network.downcast::<TinyDitConfig>() {
        let images = Images::load(&data, side, None, &Cache::Memory)?;
        let network = TinyDitConfig { classes, ..network.clone() };
        let train = Arc::new(ImageExamples::new(images, augmentation));
        return Ok(Box::new(FlowMatching::new(
            FlowMatchingOptions::new(network),
            train,
            None,
            device.clone(),
        )?));
    }
    let Some(network) = workload.network.downcast::<ResNetConfig>() else {
        let message = format!("expected the network of a recipe, found {}", workload.network);
        return Err(Error::Setting { setting: "network", message });
    };
    let network = ResNetConfig { classes, ..network.clone() };
    let options = PhotoOptions { image_size: workload.side, crop_size: workload.side, augmentation };
    let photos = Photos::load(&data, options.short_side(), None, &Cache::Memory)?;
    let train = Arc::new(PhotoExamples::new(photos, options)?);
    Ok(Box::new(Classification::new(ClassificationOptions::new(network), train, None, device.clone())?))
}
