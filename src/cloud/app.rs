//! The app at Modal: where its files are.

use std::{
    io,
    path::{Path, PathBuf},
};

use tiny_cats_export::write_atomically;

use crate::data::Cache;

/// Where the app's file is in a clone.
const FILE: &str = "deploy/modal/app.py";

/// The app's files, for who has the program alone.
const FILES: [(&str, &str); 4] = [
    ("app.py", include_str!("../../deploy/modal/app.py")),
    ("options.py", include_str!("../../deploy/modal/options.py")),
    ("run.py", include_str!("../../deploy/modal/run.py")),
    ("settings.toml", include_str!("../../deploy/modal/settings.toml")),
];

/// The environment variable that names the program to take into the image.
pub const BINARY: &str = "TINY_CATS_BINARY";

/// The app's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModalApp {
    /// Where it is.
    pub file: PathBuf,
    /// The program that is taken into the image; none where it is built there, from the clone that the file is in.
    pub program: Option<PathBuf>,
}

impl ModalApp {
    /// That of the clone that `folder` is in, or else the one that this program brings, written where caches are. The program for the image
    /// is the one that [`BINARY`] names, or where there is no clone to build it from this one.
    ///
    /// # Errors
    /// When it cannot be written, or there is no program that computes on GPUs.
    pub fn find(folder: &Path) -> io::Result<Self> {
        let named = std::env::var_os(BINARY).filter(|name| !name.is_empty()).map(PathBuf::from);
        let clones = folder.ancestors().filter(|folder| folder.join("Cargo.toml").is_file());
        if let Some(file) = clones.map(|clone| clone.join(FILE)).find(|file| file.is_file()) {
            return Ok(Self { file, program: named });
        }
        let own = cfg!(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"));
        let own = own.then(std::env::current_exe).transpose()?;
        let Some(program) = named.or(own) else {
            return Err(io::Error::other(format!(
                "no clone of tiny-cats is here to build the program for GPUs from: call this in one, or have {BINARY} name a program that was \
                 built with --features cuda"
            )));
        };
        let cache = Cache::Default.folder().unwrap_or_else(std::env::temp_dir);
        let own = cache.join(format!("modal-{}", env!("CARGO_PKG_VERSION")));
        std::fs::create_dir_all(&own)?;
        for (name, text) in FILES {
            write_atomically(&own.join(name), |w| io::Write::write_all(w, text.as_bytes()))?;
        }
        Ok(Self { file: own.join("app.py"), program: Some(program) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_of_a_clone_is_taken_from_anywhere_in_it() {
        let clone = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in [clone.to_owned(), clone.join("src/cloud")] {
            let app = ModalApp::find(&folder).unwrap();
            assert_eq!(app.file, clone.join(FILE));
        }
    }
}
