use std::{
    io,
    path::{Path, PathBuf},
};

/// What can go wrong with data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A data folder has no folder in it that could be a class.
    #[error("{}: there are no class folders; expected one folder a class, with pictures in it", path.display())]
    NoClasses {
        /// The data folder.
        path: PathBuf,
    },
    /// There are class folders, but not one picture that can be used.
    #[error("{}: there is no usable picture; expected PNG, JPEG or WebP files in class folders{first}", path.display())]
    NoPictures {
        /// The data folder.
        path: PathBuf,
        /// An example of what is there instead, ready to be appended; may be empty.
        first: String,
    },
    /// More pictures than labels and positions can count.
    #[error("{}: there are {count} pictures; at most {most} can be used", path.display())]
    TooMany {
        /// The data folder.
        path: PathBuf,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// A number that makes no sense.
    #[error("{name} is {value}; expected {low} to {high}")]
    OutOfRange {
        /// What the number is.
        name: &'static str,
        /// The number.
        value: u64,
        /// The smallest that is allowed.
        low: u64,
        /// The largest that is allowed.
        high: u64,
    },
    /// The pictures do not fit into memory.
    #[error("{count} pictures of {size} x {size} do not fit into memory")]
    Memory {
        /// How many pictures.
        count: usize,
        /// Their width and height.
        size: u32,
    },
    /// A folder to be written is in use for something else.
    #[error("{}: there is something in it that would be lost, {}; expected an empty folder or one of synthetic pictures", folder.display(), stray.display())]
    Occupied {
        /// The folder.
        folder: PathBuf,
        /// What is there.
        stray: PathBuf,
    },
    /// A picture could not be written.
    #[error("{}: can't write a picture: {reason}", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The result of what can fail with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an [`io::Error`] at `path` one of ours.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.to_path_buf(), error }
    }
}
