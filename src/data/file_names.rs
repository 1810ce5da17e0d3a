//! The names of the files that this program writes next to images.

/// The name of an index in its data folder.
pub const INDEX: &str = "index.json";
/// The file with the manifest of a folder.
pub const MANIFEST: &str = "SYNTHETIC.json";
/// The file that lists the output images of a folder and their sources.
pub(crate) const PREPARED: &str = "PREPARED.json";
/// The file with the source and license of the images; it is copied along with them.
pub(crate) const SOURCE: &str = "SOURCE.md";
