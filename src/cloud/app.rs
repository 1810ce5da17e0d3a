//! The location of the Modal app's files.

use std::{
    io,
    path::{Path, PathBuf},
};

use tiny_cats_export::write_atomically;

use crate::data::Cache;

/// The app's file in a clone of the repository.
const FILE: &str = "deploy/modal/app.py";

/// The app's files, for users without a clone of the repository.
const FILES: [(&str, &str); 4] = [
    ("app.py", include_str!("../../deploy/modal/app.py")),
    ("options.py", include_str!("../../deploy/modal/options.py")),
    ("run.py", include_str!("../../deploy/modal/run.py")),
    ("settings.toml", include_str!("../../deploy/modal/settings.toml")),
];

/// The environment variable with the path of the program for the container image.
pub const BINARY: &str = "TINY_CATS_BINARY";

/// The app's file and the program that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModalApp {
    /// The path of the app's file.
    pub file: PathBuf,
    /// The program for the container image; `None` if the image is built from the clone that contains the file.
    pub program: Option<PathBuf>,
}

impl ModalApp {
    /// Finds the app of the clone that contains `folder`, or writes the embedded files to the cache folder.
    ///
    /// The program for the container image is the one in [`BINARY`]. Without a clone to build it from, the default is this program, if it
    /// supports GPUs.
    ///
    /// # Errors
    /// Returns an error if the files cannot be written, or if there is no program that supports GPUs.
    pub fn find(folder: &Path) -> io::Result<Self> {
        let configured = std::env::var_os(BINARY).filter(|name| !name.is_empty()).map(PathBuf::from);
        let clones = folder.ancestors().filter(|folder| folder.join("Cargo.toml").is_file());
        if let Some(file) = clones.map(|clone| clone.join(FILE)).find(|file| file.is_file()) {
            return Ok(Self { file, program: configured });
        }
        let this_program = cfg!(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"));
        let this_program = this_program.then(std::env::current_exe).transpose()?;
        let Some(program) = configured.or(this_program) else {
            return Err(io::Error::other(format!(
                "expected a clone of tiny-cats to build the program for GPUs, found none; run this command in a clone, or set {BINARY} to a \
                 program that was built with --features cuda"
            )));
        };
        let cache = Cache::Default.folder().unwrap_or_else(std::env::temp_dir);
        let folder = cache.join(format!("modal-{}", env!("CARGO_PKG_VERSION")));
        std::fs::create_dir_all(&folder)?;
        for (name, text) in FILES {
            write_atomically(&folder.join(name), |w| io::Write::write_all(w, text.as_bytes()))?;
        }
        Ok(Self { file: folder.join("app.py"), program: Some(program) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_of_a_clone_is_found_from_any_folder_in_it() {
        let clone = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in [clone.to_owned(), clone.join("src/cloud")] {
            let app = ModalApp::find(&folder).unwrap();
            assert_eq!(app.file, clone.join(FILE));
        }
    }
}
