//! Values of settings that serde does not read or write as they are.

/// The value of `tensorboard` for the run's own folder.
pub(super) const DEFAULT_TENSORBOARD: &str = "true";

/// Seeds as numbers, or as text beyond TOML's largest integer.
pub(super) mod seed {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(seed: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        match i64::try_from(*seed) {
            Ok(seed) => serializer.serialize_i64(seed),
            Err(_) => serializer.serialize_str(&seed.to_string()),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        u64::deserialize(deserializer)
    }
}

/// Durations as text, such as `1h 30m`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in super::super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|e| D::Error::custom(format!("expected a duration such as 90m, found {text:?}: {e}")))
    }
}

/// Durations as text, if there are any.
pub(super) mod optional_duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::duration::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::duration::deserialize(deserializer).map(Some)
    }
}

/// A folder, `true` for that of the run, or `false` for none.
pub(super) mod tensorboard {
    use std::path::{Path, PathBuf};

    use serde::{
        Deserializer, Serialize, Serializer,
        de::{Error, SeqAccess, Visitor},
    };

    pub(in super::super) fn serialize<S: Serializer>(
        folder: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match folder {
            Some(folder) if folder == Path::new(super::DEFAULT_TENSORBOARD) => {
                serializer.serialize_bool(true)
            }
            folder => folder.serialize(serializer),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        struct Folder;
        impl<'de> Visitor<'de> for Folder {
            type Value = Option<PathBuf>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a folder, true or false")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
                Ok(value.then(|| super::DEFAULT_TENSORBOARD.into()))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
                Ok(Some(value.into()))
            }

            // The format of earlier versions for the run's own folder: an empty list.
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                Ok(Some(
                    items.next_element::<PathBuf>()?.unwrap_or_else(|| super::DEFAULT_TENSORBOARD.into()),
                ))
            }
        }
        deserializer.deserialize_any(Folder)
    }
}
