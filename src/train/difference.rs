//! In what two settings differ.

use serde_json::Value;

/// The first field of `path` in which two settings differ, with both values.
pub(crate) fn difference(path: &str, old: &Value, new: &Value) -> Option<String> {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            keys.map(|key| (key, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null)))
                .find_map(|(key, a, b)| {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    difference(&path, a, b)
                })
        }
        _ if old == new => None,
        _ => {
            // What is on disk may be of anybody.
            let cut = |text: &str| text.escape_debug().take(60).collect::<String>();
            let [old, new] = [old, new].map(|value| cut(&value.to_string().replace('"', "")));
            Some(format!("{} was {old}, is {new}", cut(path)))
        }
    }
}
