use std::{
    io,
    path::{Path, PathBuf},
};

use tiny_cats_export::excerpt;

use super::printable;

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
    /// A folder has in it what was unpacked from the archives of the Oxford-IIIT Pet data set: all breeds in one folder.
    #[error("{0}: there are no class folders but `images` and `annotations` of the Oxford-IIIT Pet data set; make class folders of them with `tiny-cats data prepare {0} NEW_FOLDER --crop centre --size 160`", path.display())]
    Oxford {
        /// The folder in which `images` is.
        path: PathBuf,
    },
    /// An index can't be used or written.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why, in one line.
        reason: String,
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
    /// A folder to be written is not empty.
    #[error("{}: expected a new or an empty folder, found {} in it", folder.display(), stray.display())]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
        /// What is there.
        stray: PathBuf,
    },
    /// A folder would be written into the folder that it is made of.
    #[error("{}: is in {}, which it is made of; expected a folder elsewhere", folder.display(), from.display())]
    InSource {
        /// The folder.
        folder: PathBuf,
        /// What it is made of.
        from: PathBuf,
    },
    /// Head boxes are needed, or those that are there can't be used.
    #[error("{}: {reason}", path.display())]
    Boxes {
        /// The file or folder.
        path: PathBuf,
        /// Why, in one line.
        reason: String,
    },
    /// A picture's decoded pixels are damaged in the cache, and decoding it again does not give them.
    #[error("{}: its pixels in {} are damaged, and it can't be decoded again: {reason}", path.display(), cache.display())]
    Damaged {
        /// The picture.
        path: PathBuf,
        /// The file of the cache.
        cache: PathBuf,
        /// Why it can't be decoded.
        reason: String,
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
    /// Whether the same may well succeed later: a disk or a network that did not answer.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io { error, .. } if is_transient_io(error))
    }

    /// Makes an [`io::Error`] at `path` one of ours.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.to_path_buf(), error }
    }

    /// Of the data folder `path` nothing can be used; `skipped` is what there was.
    pub(crate) fn no_pictures(path: &Path, skipped: &[(PathBuf, String)]) -> Self {
        let first = match skipped.first() {
            Some((path, reason)) => format!("; {} is {}", printable(path).display(), excerpt(reason)),
            None => String::new(),
        };
        Self::NoPictures { path: path.to_path_buf(), first }
    }
}

/// Whether an error of the operating system may pass by itself.
pub(crate) fn is_transient_io(error: &io::Error) -> bool {
    use io::ErrorKind;
    // EIO and ESTALE, which have no kind of their own everywhere: a disk that failed, a network file system that went away.
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
