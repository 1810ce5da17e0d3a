//! Samples of a network during training.

use std::{borrow::Cow, io};

use image::RgbImage;
use tiny_cats_export::png;

/// A sample of a task, which the run keeps as a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// An image, such as a grid of generated ones: a PNG file.
    Image(RgbImage),
    /// Text: a `.txt` file.
    Text(String),
    /// Any other file, such as sound or a table.
    File {
        /// The extension of its name, of letters and digits, such as `wav`.
        extension: String,
        /// The content.
        bytes: Vec<u8>,
    },
}

impl Sample {
    /// The extension of the file's name. Characters that are not letters or digits are left out; without any, it is `bin`.
    pub(super) fn extension(&self) -> String {
        match self {
            Self::Image(_) => "png".into(),
            Self::Text(_) => "txt".into(),
            Self::File { extension, .. } => {
                let name: String = extension.chars().filter(char::is_ascii_alphanumeric).collect();
                if name.is_empty() { "bin".into() } else { name }
            }
        }
    }

    /// The content of the file.
    pub(super) fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        Ok(match self {
            Self::Image(image) => png(image)?.into(),
            Self::Text(text) => text.as_bytes().into(),
            Self::File { bytes, .. } => bytes.into(),
        })
    }
}
