use std::{
    io,
    path::{Path, PathBuf},
};

use tiny_cats_export::{escape, excerpt};

/// An error of reading or writing data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// A data folder has no folder that could be a class.
    #[error("{}: expected one folder of images per class, found no class folders", path.display())]
    NoClasses {
        /// The data folder.
        path: PathBuf,
    },
    /// A folder holds the unpacked archives of the Oxford-IIIT Pet data set: all breeds in one folder.
    #[error("{0}: expected class folders, found `images` and `annotations` of the Oxford-IIIT Pet data set; make class folders of them with `tiny-cats data prepare {0} NEW_FOLDER --crop center --size 160`", path.display())]
    Oxford {
        /// The folder that contains `images`.
        path: PathBuf,
    },
    /// An index cannot be used or written.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// The reason, in one line.
        reason: String,
    },
    /// There are class folders, but no usable image.
    #[error("{}: expected PNG, JPEG or WebP files in class folders, found no usable image{first}", path.display())]
    NoImages {
        /// The data folder.
        path: PathBuf,
        /// An example of a skipped file, ready to be appended; may be empty.
        first: String,
    },
    /// There are more images than labels and positions can count.
    #[error("{}: expected at most {max} images, found {count}", path.display())]
    TooMany {
        /// The data folder.
        path: PathBuf,
        /// The number of images.
        count: usize,
        /// The largest number of images.
        max: usize,
    },
    /// A number is out of its range.
    #[error("{name}: expected {low} to {high}, found {value}")]
    OutOfRange {
        /// The name of the number.
        name: &'static str,
        /// The number that was found.
        value: u64,
        /// The smallest valid number.
        low: u64,
        /// The largest valid number.
        high: u64,
    },
    /// The images do not fit into memory.
    #[error("{count} images of {size} x {size} px do not fit into memory")]
    Memory {
        /// The number of images.
        count: usize,
        /// Their width and height, in pixels.
        size: u32,
    },
    /// An output folder holds other files.
    #[error("{}: expected an empty folder or one of synthetic images, found {}, which would be lost", folder.display(), stray.display())]
    Occupied {
        /// The folder.
        folder: PathBuf,
        /// One of the other files.
        stray: PathBuf,
    },
    /// An output folder is not empty.
    #[error("{}: expected a new or an empty folder, found {} in it", folder.display(), stray.display())]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
        /// One of the files in it.
        stray: PathBuf,
    },
    /// An output folder is inside the input folder.
    #[error("{}: expected a folder outside of {}, the input folder", folder.display(), from.display())]
    InSource {
        /// The folder.
        folder: PathBuf,
        /// The input folder.
        from: PathBuf,
    },
    /// Head boxes are missing or cannot be used.
    #[error("{}: {reason}", path.display())]
    Boxes {
        /// The file or folder.
        path: PathBuf,
        /// The reason, in one line.
        reason: String,
    },
    /// An image's pixels are damaged in the cache, and decoding it again does not restore them.
    #[error("{}: the pixels in {} are damaged, and the image cannot be decoded again: {reason}", path.display(), cache.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// The cache file.
        cache: PathBuf,
        /// The reason why it cannot be decoded.
        reason: String,
    },
    /// Examples are invalid, or one cannot be made.
    #[error("{0}")]
    Example(String),
    /// An image could not be written.
    #[error("{}: cannot write an image: {reason}", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// The result of reading or writing data.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// True if a retry may succeed: a disk or a network did not respond.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io { error, .. } if is_transient_io(error))
    }

    /// Converts an [`io::Error`] at `path`.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.to_path_buf(), error }
    }

    /// The error for a data folder `path` without usable images; `skipped` are its files.
    pub(crate) fn no_images(path: &Path, skipped: &[(PathBuf, String)]) -> Self {
        let first = match skipped.first() {
            Some((path, reason)) => format!("; {}: {}", printable(path).display(), excerpt(reason)),
            None => String::new(),
        };
        Self::NoImages { path: path.to_path_buf(), first }
    }
}

/// Escapes a name so that it can be printed.
pub(crate) fn printable(name: &Path) -> PathBuf {
    escape(&name.to_string_lossy(), usize::MAX).into_owned().into()
}

/// True if an error of the operating system may be transient.
pub(crate) fn is_transient_io(error: &io::Error) -> bool {
    use io::ErrorKind;
    // EIO and ESTALE do not have an `ErrorKind` everywhere: a failed disk, and a network file system that disconnected.
    let (eio, estale) = (5, 116);
    matches!(
        error.kind(),
        ErrorKind::Interrupted
            | ErrorKind::TimedOut
            | ErrorKind::WouldBlock
            | ErrorKind::ResourceBusy
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::NotConnected
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    ) || cfg!(unix)
        && error
            .raw_os_error()
            .is_some_and(|code| code == eio || (cfg!(target_os = "linux") && code == estale))
}
