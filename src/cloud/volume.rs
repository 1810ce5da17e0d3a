//! The volumes at Modal: one with images, mounted as `data` in containers, and one with runs.

use std::path::Path;

use serde_json::Value;

use super::{CloudSettings, Error, ModalApp, Result, modal};

/// The environment variable with the name of a bucket that containers read images from, instead of the volume.
pub const BUCKET: &str = "TINY_CATS_S3_BUCKET";

/// Lists a folder of a volume: each name, and true if it is a folder.
///
/// # Errors
/// [`modal::Error::NotFound`] if the volume or the folder does not exist; other errors if Modal cannot be reached.
pub fn list_volume(volume: &str, folder: &str) -> modal::Result<Vec<(String, bool)>> {
    let output = modal::run_captured(&["volume", "ls", "--json", volume, folder])?;
    let entries: Vec<Value> = serde_json::from_slice(&output).map_err(|_| modal::Error::Failed {
        command: "volume ls".into(),
        message: format!("expected a list of {folder} in {volume} as JSON"),
    })?;
    let entry = |entry: &Value| {
        let name = Path::new(entry["filename"].as_str()?).file_name()?.to_str()?.to_owned();
        Some((name, entry["type"] == "dir"))
    };
    Ok(entries.iter().filter_map(entry).collect())
}

/// Reads the file `runs/RUN/NAME` from the volume with runs, if it exists.
///
/// # Errors
/// If Modal cannot be reached.
pub fn read_run_file(run: &str, name: &str) -> modal::Result<Option<Vec<u8>>> {
    let volume = CloudSettings::default().app.output_volume;
    match modal::run_captured(&["volume", "get", &volume, &format!("runs/{run}/{name}"), "-"]) {
        Err(modal::Error::NotFound(_)) => Ok(None),
        output => output.map(Some),
    }
}

/// Checks and returns the path of a data folder in a container, where the volume with images is mounted as `data`.
///
/// # Errors
/// If the path is not in `data`.
pub fn volume_path(data: &Path) -> Result<String> {
    let text = data.to_str().unwrap_or_default().trim_end_matches('/');
    let is_inside = text.strip_prefix("data/").is_some_and(|rest| {
        !rest.is_empty() && rest.split('/').all(|part| !part.is_empty() && part != ".." && part != ".")
    });
    if !is_inside {
        let message = "expected data/NAME, such as data/cats, since images are in a volume in the cloud";
        return Err(Error::state(data.display().to_string(), message));
    }
    Ok(text.to_owned())
}

/// Checks that the folder `data` in containers has class folders to train on. Data in a [bucket](BUCKET) is not checked.
///
/// # Errors
/// If the volume or the folder does not exist or has no folders; the error says how to upload images.
pub fn check_data(app: &ModalApp, data: &str) -> Result<()> {
    if std::env::var_os(BUCKET).is_some() {
        return Ok(());
    }
    let volume = CloudSettings::default().app.data_volume;
    let folder = data.trim_start_matches("data").trim_start_matches('/');
    let found = match list_volume(&volume, &format!("/{folder}")) {
        Err(modal::Error::NotFound(_)) => list_volume(&volume, "/").map(|_| Vec::new()),
        found => found,
    };
    let upload_command = format!("modal volume put {volume} FOLDER /{folder}");
    let message = match found {
        Ok(entries) if entries.iter().any(|(_, is_folder)| *is_folder) => return Ok(()),
        Ok(_) => format!(
            "no class folders found in the volume {volume}; run {upload_command}, or modal run {} download-data",
            app.file.display()
        ),
        Err(modal::Error::NotFound(_)) => {
            format!(
                "the volume {volume} does not exist; run modal volume create {volume} && {upload_command}"
            )
        }
        Err(error) => return Err(error.into()),
    };
    Err(Error::state(data, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_in_data_are_accepted() {
        assert_eq!(volume_path(Path::new("data/cats/")).unwrap(), "data/cats");
        assert_eq!(volume_path(Path::new("data/a/b")).unwrap(), "data/a/b");
        for path in ["data", "data/", "cats", "/data/cats", "data/../cats", "data/./cats", "data//cats"] {
            let error = volume_path(Path::new(path)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{path}: expected data/NAME")), "{error}");
        }
    }
}
