//! The requirements of training at Modal.

use std::path::Path;

use super::{CloudSettings, ModalApp, modal, volume::list_volume};

/// The result of checking a requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequirementCheck {
    /// The name: `modal`, `app`, `token`, `data` or `outputs`.
    pub name: &'static str,
    /// The details, or the problem and the command that fixes it, in one line.
    pub result: Result<String, String>,
}

/// Checks the requirements of training at Modal one after the other, and passes each result to `observe`. Requirements that depend on a
/// missing one are not checked. `folder` is where the app is [searched for](ModalApp::find). Returns true if nothing is missing.
pub fn check_requirements(folder: &Path, observe: &mut dyn FnMut(RequirementCheck)) -> bool {
    let settings = CloudSettings::default();
    let mut ok = true;
    let mut report = |name, result: Result<String, String>| {
        let is_ok = result.is_ok();
        ok &= is_ok;
        observe(RequirementCheck { name, result });
        is_ok
    };
    let text = |error: modal::Error| error.to_string();
    if report("modal", modal::version().map_err(text)) {
        report("app", check_app(folder));
        let token = modal::run_captured(&["token", "info"]).map(|_| "logged in".to_owned());
        if report("token", token.map_err(text)) {
            report("data", check_data_volume(&settings.app.data_volume));
            report("outputs", check_output_volume(&settings.app.output_volume));
        }
    }
    ok
}

/// Checks that Modal's client can load the app, including the program for its image.
fn check_app(folder: &Path) -> Result<String, String> {
    let app = ModalApp::find(folder).map_err(|error| error.to_string())?;
    modal::run_app_captured(&app, &["check"]).map_err(|error| error.to_string())?;
    let program = app.program.as_ref().map_or_else(
        || "program built from this clone".to_owned(),
        |path| format!("program {}", path.display()),
    );
    Ok(format!("{}, {program}", app.file.display()))
}

fn check_data_volume(volume: &str) -> Result<String, String> {
    let upload_command = format!("modal volume put {volume} data/cats /cats");
    match list_volume(volume, "/") {
        Ok(entries) if entries.is_empty() => {
            Err(format!("the volume {volume} is empty; run {upload_command}"))
        }
        Ok(entries) => {
            let folders: Vec<String> = entries
                .iter()
                .filter(|entry| entry.1)
                .map(|entry| format!("data/{}", entry.0.escape_debug()))
                .collect();
            Ok(format!("volume {volume}: {}", folders.join(", ")))
        }
        Err(modal::Error::NotFound(_)) => Err(format!(
            "the volume {volume} does not exist; run modal volume create {volume} && {upload_command}"
        )),
        Err(error) => Err(error.to_string()),
    }
}

fn check_output_volume(volume: &str) -> Result<String, String> {
    match list_volume(volume, "/") {
        Err(modal::Error::NotFound(_)) => Ok(format!("the first run creates the volume {volume}")),
        Err(error) => Err(error.to_string()),
        Ok(_) => Ok(format!("volume {volume}")),
    }
}
