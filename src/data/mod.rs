//! Examples to train on: images in folders and arrays in memory, their order and augmentation, and synthetic images.

mod augment;
mod boxes;
pub mod cache;
mod cached;
mod dataset;
#[cfg(feature = "download")]
pub mod download;
mod error;
mod examples;
mod folder;
mod image_store;
mod index;
mod order;
mod prepare;
mod scan;
mod split;
mod stats;
pub mod synth;
mod view;

use tiny_cats_export::decode;

pub use augment::{AugmentLevel, ColorJitter};
pub use cache::Cache;
pub use dataset::{Dataset, ImageFile};
pub(crate) use error::is_transient_io;
pub use error::{Error, Result};
pub use examples::{ArrayExamples, Draw, Examples, ImageExamples, PhotoExamples, PhotoOptions};
pub(crate) use image_store::evenly_spaced;
pub use image_store::{ImageStore, Images, Photos};
pub use index::INDEX;
pub(crate) use index::hex;
pub use order::Order;
pub use prepare::{Crop, Encoding, Prepare, Prepared};
pub(crate) use scan::{can_be_image, printable, skipped_lines};
pub use split::{Shares, Split};
pub use stats::{ClassCount, Stats, ValueRange};
pub use view::View;
pub(crate) use view::mirrored;

/// The breeds of the synthetic images and the released weights, in the order of their labels.
pub const BREEDS: [&str; 12] = [
    "Abyssinian",
    "Bengal",
    "Birman",
    "Bombay",
    "British_Shorthair",
    "Egyptian_Mau",
    "Maine_Coon",
    "Persian",
    "Ragdoll",
    "Russian_Blue",
    "Siamese",
    "Sphynx",
];

/// The name of the class of images without a cat, in any case of letters; its label is always the last.
pub const OTHER: &str = "other";
