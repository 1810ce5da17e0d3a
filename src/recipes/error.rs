use tiny_cats_export::escape;

/// An error of a recipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is invalid.
    #[error("{setting}: {message}")]
    Setting {
        /// The key of the setting.
        setting: String,
        /// The expected and the found value.
        message: String,
    },
    /// A configuration cannot be read, or has an unknown key or an invalid value.
    #[error("{name}: {message}")]
    Configuration {
        /// The profile or file.
        name: String,
        /// The place in it, with the expected and the found value.
        message: String,
    },
    /// An error of training.
    #[error(transparent)]
    Train(#[from] crate::train::Error),
    /// An error of the training data.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// An error of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// An error of a network.
    #[error(transparent)]
    Model(#[from] tiny_cats_export::Error),
}

/// The result of a recipe.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns the error of an invalid setting.
    pub fn setting(setting: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Setting { setting: setting.into(), message: message.into() }
    }

    pub(super) fn configuration(name: &str, message: impl std::fmt::Display) -> Self {
        // Keys and values from an untrusted file are shortened.
        Self::Configuration { name: name.into(), message: escape(&message.to_string(), 400).into_owned() }
    }
}

impl From<tiny_cats_models::Error> for Error {
    fn from(error: tiny_cats_models::Error) -> Self {
        match error {
            tiny_cats_models::Error::Config { field, message } => {
                Self::setting(field.replace('_', "-"), message)
            }
            error => Self::Train(error.into()),
        }
    }
}
