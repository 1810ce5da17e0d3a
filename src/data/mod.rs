//! Examples to train on: images in folders and arrays in memory, their order and augmentation, and synthetic images.

mod augment;
mod boxes;
pub mod cache;
mod cached;
mod color;
mod dataset;
#[cfg(feature = "download")]
pub mod download;
mod error;
mod examples;
mod file_names;
mod folder;
mod image_store;
mod index;
mod open;
mod order;
mod prepare;
mod scan;
mod split;
mod stats;
pub mod synth;
mod view;

pub(crate) use tiny_cats_export::hex;
use tiny_cats_export::{PREDECESSOR_CLASSES, decode};

pub use augment::AugmentLevel;
pub use cache::Cache;
pub use color::ColorJitter;
pub use dataset::{Dataset, ImageFile};
pub use error::{Error, Result};
pub(crate) use error::{is_transient_io, printable};
pub use examples::{ArrayExamples, Draw, Examples, ImageExamples, PhotoExamples, PhotoOptions};
pub use file_names::INDEX;
pub(crate) use image_store::evenly_spaced;
pub use image_store::{ImageStore, Images, Photos};
pub use order::Order;
pub use prepare::{Crop, Encoding, Prepare, Prepared};
pub(crate) use scan::{can_be_image, skipped_lines};
pub use split::{Shares, Split};
pub use stats::{ClassCount, Stats, ValueRange};
pub use view::View;
pub(crate) use view::mirrored;

/// The breeds of the synthetic images and the released weights, in the order of their labels: the classes of tiny-cats-model without the
/// last, which has no cats.
pub const BREEDS: [&str; 12] = *PREDECESSOR_CLASSES.first_chunk().unwrap();

/// The name of the class of images without a cat, in any case of letters; its label is always the last.
pub const OTHER: &str = "other";
