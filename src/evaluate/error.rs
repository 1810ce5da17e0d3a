//! Errors of evaluation.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::data::printable;

/// An error of evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A feature is not a finite number.
    #[error("features: expected finite numbers, found others in image {row}")]
    NotFinite {
        /// The first image with such a feature.
        row: usize,
    },
    /// Features have another shape than expected.
    #[error("features: expected {expected}, found {found}")]
    Shape {
        /// The expected shape.
        expected: String,
        /// The shape that was found.
        found: String,
    },
    /// There are too few images for a metric.
    #[error("{measure}: expected at least {expected} images on each side, found {found}")]
    TooFew {
        /// The metric.
        measure: &'static str,
        /// The smallest number of images that it is defined for.
        expected: usize,
        /// The number of images.
        found: usize,
    },
    /// A setting is invalid.
    #[error("{setting}: {message}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The expected and the found value.
        message: String,
    },
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// An image cannot be encoded as PNG.
    #[error(transparent)]
    Png(io::Error),
    /// A data set cannot be read.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// A model cannot be opened.
    #[error(transparent)]
    OpenModel(#[from] crate::checkpoint::OpenError),
    /// A model cannot be used.
    #[error("{}{error}", file.as_ref().map_or_else(String::new, |file| format!("{}: ", printable(file).display())))]
    Model {
        /// The file, if `error` does not name it; `None` for a bundled model.
        file: Option<PathBuf>,
        /// The error.
        error: tiny_cats_export::Error,
    },
    /// A part of a data set has no images.
    #[error("{}: no {split} images found", path.display())]
    EmptySplit {
        /// The data set.
        path: PathBuf,
        /// The part: `test`, `validation`, `train` or `all`.
        split: &'static str,
    },
    /// Data cannot be evaluated with these models.
    #[error("{}: {message}", path.display())]
    Images {
        /// The data set, an image, or the file of a model.
        path: PathBuf,
        /// The expected and the found value.
        message: String,
    },
    /// A folder of generated images cannot be read.
    #[error("{}: {message}", path.display())]
    GeneratedImages {
        /// The folder.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// Too many images to keep in memory.
    #[error("{count} generated images of {size} px do not fit into {max_gib} GiB")]
    Memory {
        /// The number of images.
        count: usize,
        /// Their width and height, in pixels.
        size: usize,
        /// The maximum size of all images, in GiB.
        max_gib: usize,
    },
}

/// The result of an evaluation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn shape(expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Shape { expected: expected.into(), found: found.to_string() }
    }

    pub(super) fn setting(setting: &'static str, message: String) -> Self {
        Self::Setting { setting, message }
    }

    pub(super) fn images(path: &Path, message: String) -> Self {
        Self::Images { path: path.to_owned(), message }
    }

    /// Converts an [`io::Error`] at `path`.
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.to_owned(), error }
    }

    /// Adds the file of a model to an error that names no file. `None` stands for the bundled model.
    pub(super) fn with_model_file(self, path: Option<&Path>) -> Self {
        match self {
            Self::Model { file: None, error } if !error.has_file_name() => {
                Self::Model { file: path.map(Path::to_owned), error }
            }
            other => other,
        }
    }
}

impl From<tiny_cats_export::Error> for Error {
    fn from(error: tiny_cats_export::Error) -> Self {
        Self::Model { file: None, error }
    }
}
