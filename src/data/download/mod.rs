//! Downloads of data sets from their official addresses: fetched, verified, unpacked.

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
    /// The largest size of the file, and of its unpacked content, in bytes.
    pub max_bytes: u64,
}

impl Archive {
    fn file_name(&self) -> String {
        format!("{}.tar.gz", self.name)
    }
}

/// The address of [`OXFORD_PETS`].
pub const OXFORD_PETS_URL: &str = "https://www.robots.ox.ac.uk/~vgg/data/pets/data";

/// The Oxford-IIIT Pet Dataset by Parkhi, Vedaldi, Zisserman and Jawahar (2012), CC BY-SA 4.0: 37 breeds of cats and dogs. The checksums
/// are those that torchvision pins.
pub const OXFORD_PETS: [Archive; 2] = [
    Archive { name: "images", md5: "5c4f3ee8e5d25df40f4fd59a7f44e54c", max_bytes: 4 << 30 },
    Archive { name: "annotations", md5: "95a8c909bbe2e81eed6a22bccdf3f68f", max_bytes: 4 << 30 },
];

/// The number and timing of retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The largest number of attempts in a row with almost no progress.
    pub attempts: u32,
    /// The wait after the first failure. It doubles with each, and is randomly reduced to between half and all of it.
    pub initial_backoff: Duration,
    /// The longest wait, also if the server asks for more.
    pub max_backoff: Duration,
    /// The timeout for a connection, for a response, and for the next bytes.
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

/// An event during [`download`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The number of bytes fetched, and the total if known.
    Fetching(u64, Option<u64>),
    /// A retry: the reason, and the wait before it.
    Retry(String, Duration),
    /// The number of bytes of the archive unpacked, and the total.
    Unpacking(u64, u64),
    /// The folder is complete.
    Ready {
        /// Number of files in it.
        files: u64,
        /// Their total size, in bytes.
        bytes: u64,
        /// True if it was complete before.
        was_complete: bool,
    },
}

/// Fetches `archives` from `url` (the address without the file's name) into `folder`, and unpacks each into the folder of its name.
///
/// Archives that were unpacked before are not fetched. An interrupted download resumes where it ended, also in another run. A file gets its
/// final name only if its checksum is correct, and a folder only if it is complete.
///
/// Redirects are followed, from https to https only.
///
/// # Errors
/// If the server rejects a request or is unreachable for too long, or a checksum differs. Also if an archive contains anything but plain
/// files in its folder, the disk is full, or another file or folder has the name. The fetched bytes of an unfinished file are kept as
/// `NAME.tar.gz.part`.
pub fn download(
    archives: &[Archive],
    url: &str,
    folder: &Path,
    retry_policy: &RetryPolicy,
    progress: &mut dyn FnMut(&Archive, Event),
) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let _lock = lock(folder)?;
    // Occupied folders are reported before anything is fetched.
    let existing: Vec<_> =
        archives.iter().map(|a| unpack::read_manifest(&folder.join(a.name), a)).collect::<Result<_>>()?;
    let client = fetch::Client::new(url, retry_policy);
    for (archive, existing) in archives.iter().zip(existing) {
        let was_complete = existing.is_some();
        let manifest = match existing {
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
        progress(archive, Event::Ready { files: manifest.files, bytes: manifest.bytes, was_complete });
    }
    Ok(())
}

/// Locks `folder` against other processes until the file is dropped.
fn lock(folder: &Path) -> Result<File> {
    // A folder itself can be locked, but not on Windows.
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

/// Returns an error if less than `needed` bytes are free, as far as the system reports it.
fn check_disk_space(folder: &Path, needed: u64) -> Result<()> {
    match fs4::available_space(folder) {
        Ok(free) if free < needed => Err(Error::Disk { folder: folder.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// The reason why a data set could not be downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system could not read or write a file or folder.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The server could not be reached, or refused.
    #[error("{url}: {reason}")]
    Http {
        /// The address.
        url: String,
        /// The reason.
        reason: String,
    },
    /// A file does not match its checksum.
    #[error("{url}: expected a file of MD5 {expected}, found {bytes} bytes of MD5 {found}")]
    Checksum {
        /// The address that it was fetched from.
        url: String,
        /// The expected checksum.
        expected: &'static str,
        /// The checksum of the fetched file.
        found: String,
        /// The size of the fetched file, in bytes.
        bytes: u64,
    },
    /// An archive is damaged, or has forbidden entries.
    #[error("{}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The output folder exists, and was not unpacked by this program.
    #[error("{}: expected a new folder, found {found}; move it away to unpack the archive again", folder.display())]
    Occupied {
        /// The folder.
        folder: PathBuf,
        /// The content that was found.
        found: String,
    },
    /// Another process is downloading to the folder.
    #[error("{}: another process is downloading to this folder", .0.display())]
    Busy(PathBuf),
    /// There is not enough disk space.
    #[error("{}: expected {:.2} GB of free disk space, found {:.2} GB", folder.display(), *needed as f64 / 1e9, *free as f64 / 1e9)]
    Disk {
        /// The folder on that disk.
        folder: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
}

/// The result of a download.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.to_path_buf(), error }
    }
}
