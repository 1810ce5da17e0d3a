//! Data sets from their official addresses: fetched, checked, unpacked.

mod fetch;
mod unpack;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// A gzipped tar file, `NAME.tar.gz`, whose files are all in a folder `NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The file's name without `.tar.gz`, and the folder's.
    pub name: &'static str,
    /// The file's MD5 in lower-case hexadecimal digits.
    pub md5: &'static str,
    /// Neither the file nor what it unpacks to is larger.
    pub max_bytes: u64,
}

impl Archive {
    fn file_name(&self) -> String {
        format!("{}.tar.gz", self.name)
    }
}

/// Where [`OXFORD_PETS`] is.
pub const OXFORD_PETS_URL: &str = "https://www.robots.ox.ac.uk/~vgg/data/pets/data";

/// The Oxford-IIIT Pet Dataset by Parkhi, Vedaldi, Zisserman and Jawahar (2012), CC BY-SA 4.0: 37 breeds of cats and dogs.
/// The checksums are those that torchvision pins.
pub const OXFORD_PETS: [Archive; 2] = [
    Archive { name: "images", md5: "5c4f3ee8e5d25df40f4fd59a7f44e54c", max_bytes: 4 << 30 },
    Archive { name: "annotations", md5: "95a8c909bbe2e81eed6a22bccdf3f68f", max_bytes: 4 << 30 },
];

/// How long to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in a row that may bring next to nothing.
    pub attempts: u32,
    /// The wait after the first failure; it doubles with each, and is cut by chance to between a half and the whole.
    pub initial_backoff: Duration,
    /// The longest wait, also when the server asks for more.
    pub max_backoff: Duration,
    /// How long to wait for a connection, an answer, or the next bytes.
    pub idle_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// What happens during [`download`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// So many bytes of the file are here, of so many if the server has said so.
    Fetching(u64, Option<u64>),
    /// Why the file is asked for once more, and after which wait.
    RecomputeFn(String, Duration),
    /// So many bytes of the archive are unpacked, of so many.
    Unpacking(u64, u64),
    /// The folder is whole.
    Ready {
        /// Files in it.
        files: u64,
        /// Their bytes.
        bytes: u64,
        /// Whether it was there already.
        before: bool,
    },
}

/// Fetches `archives` from `url` (the address without the file's name) into `folder`, unless they are there, and unpacks each into the
/// folder of its name. What broke off goes on where it ended, also in another run. A file that is there under its final name has the
/// right checksum, and a folder is whole; only then is anything at its place.
///
/// Redirections are followed, from https to https only.
///
/// # Errors
/// When the server refuses or can't be reached for too long, a checksum is wrong, an archive holds anything but plain files in its
/// folder, the disk is full, or something else is in the way. What was fetched of an unfinished file stays, as `NAME.tar.gz.part`.
pub fn download(
    archives: &[Archive],
    url: &str,
    folder: &Path,
    retry_policy: &RetryPolicy,
    progress: &mut dyn FnMut(&Archive, Event),
) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let _lock = lock(folder)?;
    // What is in the way is told before anything is fetched.
    let there: Vec<_> =
        archives.iter().map(|a| unpack::read_manifest(&folder.join(a.name), a)).collect::<Result<_>>()?;
    let client = fetch::Client::new(url, retry_policy);
    for (archive, there) in archives.iter().zip(there) {
        let before = there.is_some();
        let manifest = match there {
            Some(manifest) => manifest,
            None => {
                let path = folder.join(archive.file_name());
                client.fetch(archive, &path, &mut |event| progress(archive, event))?;
                let total = fs::metadata(&path).map_err(Error::io(&path))?.len();
                check_disk_space(folder, total)?;
                let mut unpacking = |read| progress(archive, Event::Unpacking(read, total));
                unpack::unpack(&path, &folder.join(archive.name), archive, &mut unpacking)?
            }
        };
        progress(archive, Event::Ready { files: manifest.files, bytes: manifest.bytes, before });
    }
    Ok(())
}

/// Keeps other processes away from `folder` until it is dropped.
fn lock(folder: &Path) -> Result<File> {
    // A folder can be locked itself, but not on Windows.
    let path = if cfg!(unix) { folder.to_owned() } else { folder.join(".download.lock") };
    let file = if cfg!(unix) { File::open(&path) } else { File::create(&path) };
    let file = file.map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy(folder.to_owned())),
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(e)) => Err(Error::io(&path)(e)),
    }
}

/// An error when there is less room than `needed` bytes, as far as the system says.
fn check_disk_space(folder: &Path, needed: u64) -> Result<()> {
    match fs4::available_space(folder) {
        Ok(free) if free < needed => Err(Error::Disk { folder: folder.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// Why a data set is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read or write a file or folder.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The server could not be reached, or refused.
    #[error("{url}: {reason}")]
    Http {
        /// The address.
        url: String,
        /// What happened.
        reason: String,
    },
    /// A file is not the one that is meant.
    #[error("{url}: expected a file of MD5 {expected}, found {bytes} bytes of MD5 {found}")]
    Checksum {
        /// Where it was fetched.
        url: String,
        /// The checksum of the file that is meant.
        expected: &'static str,
        /// The checksum of what came.
        found: String,
        /// The size of what came.
        bytes: u64,
    },
    /// An archive is damaged, or holds what it should not.
    #[error("{}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A folder to be written is there, and is not what this wrote.
    #[error("{}: there is {found}; move it away to have it unpacked anew", folder.display())]
    Occupied {
        /// The folder.
        folder: PathBuf,
        /// What is there.
        found: String,
    },
    /// Another process is downloading to the folder.
    #[error("{}: another download into this folder is running", .0.display())]
    Busy(PathBuf),
    /// There is not enough room.
    #[error("{}: {:.2} GB of disk are needed, {:.2} GB are free", folder.display(), *needed as f64 / 1e9, *free as f64 / 1e9)]
    Disk {
        /// Where.
        folder: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
}

/// The result of what can fail with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.to_path_buf(), error }
    }
}
