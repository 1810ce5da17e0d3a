//! The apps that work on runs.

use serde_json::Value;

use super::{Error, Result, RunLocation, command::app_name, modal};

/// The ID of the app that works on a run, if there is one.
///
/// # Errors
/// If Modal cannot be reached.
pub fn running_app(run: &str) -> Result<Option<String>> {
    let output = modal::run_captured(&["app", "list", "--json"])?;
    let apps: Vec<Value> = serde_json::from_slice(&output)
        .map_err(|error| Error::state("modal app list", format!("expected JSON: {error}")))?;
    Ok(find_app(&apps, &app_name(run)))
}

fn find_app(apps: &[Value], name: &str) -> Option<String> {
    let is_running = |app: &&Value| {
        let state = app["state"].as_str().unwrap_or_default();
        app["description"] == name && !state.starts_with("stop")
    };
    apps.iter().find(is_running).and_then(|app| Some(app["app_id"].as_str()?.to_owned()))
}

/// Checks that no app works on a run, since two would conflict.
///
/// # Errors
/// If an app does, or Modal cannot be reached.
pub fn check_idle(run: &str) -> Result<()> {
    match running_app(run)? {
        None => Ok(()),
        Some(app) => {
            let message =
                format!("the app {app} already works on this run; stop it with modal app stop {app}");
            Err(Error::state(run, message))
        }
    }
}

/// Stops the app that works on a run. Saved states are kept, and the run can be resumed.
///
/// # Errors
/// [`Error::NotRunning`] if no app works on the run; other errors if Modal cannot be reached.
pub fn stop(run: &RunLocation) -> Result<()> {
    let Some(app) = running_app(&run.app)? else { return Err(Error::NotRunning { run: run.id.clone() }) };
    modal::run_captured(&["app", "stop", "--yes", &app])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stopped_app_does_not_count_as_running() {
        let app =
            |id: &str, name: &str, state: &str| json!({"app_id": id, "description": name, "state": state});
        let apps =
            [app("1", "a", "stopped"), app("2", "ab", "ephemeral"), app("3", "a", "ephemeral (detached)")];
        assert_eq!(find_app(&apps, "a").as_deref(), Some("3"));
        assert_eq!(find_app(&apps[..2], "a"), None);
    }
}
