//! Pictures: folders of them, in memory, in order, and drawn by rule.

mod augment;
mod boxes;
mod cache;
mod dataset;
#[cfg(feature = "download")]
pub mod download;
mod error;
mod folder;
mod index;
mod order;
mod photos;
mod prepare;
mod scan;
mod split;
mod stats;
pub mod synth;

use tiny_cats_export::decode;

pub use augment::{Augmentation, Colour, Level};
pub use cache::Images;
pub(crate) use cache::spread;
pub use dataset::{Dataset, Picture};
pub use error::{Error, Result};
pub use index::INDEX;
pub use order::Order;
pub use photos::{Photos, View};
pub use prepare::{Crop, Encoding, Prepare, Prepared};
pub(crate) use scan::printable;
pub use split::{Shares, Split};
pub use stats::{Count, Spread, Stats};

/// The breeds that there are synthetic pictures of and released weights for, in the order of their labels.
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

/// The class of what is not a cat, in any case of letters; its label is always the last.
pub const OTHER: &str = "other";
