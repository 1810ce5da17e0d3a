//! Commands of Modal's client that run the app.

use sha2::{Digest, Sha256};

use super::{CloudSettings, ModalApp};
use crate::data::hex;

/// Maximum characters of the name of an app.
const MAX_NAME: usize = 64;

/// The arguments of `modal` that run the app for a run. If `detach` is true, the run continues if this machine disconnects.
pub fn run_arguments(app: &ModalApp, run: &str, detach: bool) -> Vec<String> {
    let detach = detach.then(|| "--detach".to_owned());
    let arguments = [Some("run".to_owned()), detach, Some(format!("--name={}", app_name(run)))];
    arguments.into_iter().flatten().chain([app.file.to_string_lossy().into_owned()]).collect()
}

/// The name of the app while it works on a run. Modal allows at most 64 letters, digits, -, _ and dots. If the name of the run does not
/// comply, a hash keeps the name of the app unique.
pub fn app_name(run: &str) -> String {
    let sanitize = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let full_name = format!("{}-{run}", CloudSettings::default().app.name);
    let name: String = full_name.chars().map(sanitize).collect();
    if name == full_name && name.len() <= MAX_NAME {
        return name;
    }
    let hash = hex(&Sha256::digest(run)[..4]);
    name.chars().take(MAX_NAME - 1 - hash.len()).collect::<String>() + "-" + &hash
}

/// Formats a call of `modal` as a command for a shell.
pub fn shell_command(arguments: &[String]) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    let quote = |argument: &String| {
        if !argument.is_empty() && argument.chars().all(is_allowed) {
            argument.clone()
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    };
    std::iter::once("modal".to_owned()).chain(arguments.iter().map(quote)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_apps_are_valid_and_unique() {
        assert_eq!(app_name("mine"), "tiny-cats-mine");
        let names = ["lr=1e+4", "lr-1e-4", "lr=1e-4", &"x".repeat(100), &"x".repeat(101)].map(app_name);
        for (i, name) in names.iter().enumerate() {
            assert!(
                name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
                "{name}"
            );
            assert!(!names[..i].contains(name), "{name}");
        }
    }

    #[test]
    fn arguments_are_quoted_for_a_shell() {
        let arguments = ["run", "", "a b", "it's", r#"--x={"a":1}"#, "--gpu=A10:2"].map(str::to_owned);
        assert_eq!(shell_command(&arguments), r#"modal run '' 'a b' 'it'\''s' '--x={"a":1}' --gpu=A10:2"#);
    }
}
