//! The differences between the settings of two runs.

use serde_json::Value;

/// Keys of a task's settings that describe its data.
const DATA_KEYS: [&str; 3] = ["data", "items", "validation"];

/// Describes why a run with the settings `old` cannot be resumed with `new`; `None` if it can.
///
/// Differences of the data are put into words.
pub(crate) fn settings_mismatch(old: &Value, new: &Value) -> Option<String> {
    let without_data = |settings: &Value| {
        let mut settings = settings.clone();
        if let Some(task) = settings.get_mut("task").and_then(Value::as_object_mut) {
            task.retain(|key, _| !DATA_KEYS.contains(&key.as_str()));
        }
        settings
    };
    if let Some(field) = difference("settings", &without_data(old), &without_data(new)) {
        return Some(format!("was trained with other settings: {field}"));
    }
    let [[hash, items, validation], [now, items_now, validation_now]] =
        [old, new].map(|settings| DATA_KEYS.map(|key| settings["task"][key].clone()));
    let as_many = (&items, &validation) == (&items_now, &validation_now);
    if hash == now && as_many {
        return None;
    }
    let count = |n: &Value| n.as_u64().map_or_else(|| "an unknown number".to_owned(), |n| n.to_string());
    let counts =
        |items, validation| format!("{} to train on and {} for validation", count(items), count(validation));
    let numbers = if as_many {
        "as many pictures as before, but other contents, names or classes".to_owned()
    } else {
        format!("pictures were {}, are {}", counts(&items, &validation), counts(&items_now, &validation_now))
    };
    let why = if hash == now {
        "uses another part of the same data than when the run began (--limit-files, --no-validation)"
    } else {
        "the data changed since the run began"
    };
    Some(format!("{why}: {numbers}; a new run can use them"))
}

/// Describes the first field of `path` that differs, with both values.
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
            // The content of a file is untrusted, so it is escaped and cut.
            let cut = |text: &str| text.escape_debug().take(60).collect::<String>();
            let [old, new] = [old, new].map(|value| cut(&value.to_string().replace('"', "")));
            Some(format!("{} was {old}, is {new}", cut(path)))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_of_other_data_is_told_in_words() {
        let of = |hash: &str, items: u64, batch: u64| json!({"task": {"data": hash, "items": items, "validation": 3}, "batch": batch});
        let said = |now: &Value| settings_mismatch(&of("5eb1", 26, 8), now);
        assert_eq!(said(&of("5eb1", 26, 8)), None);
        let more = said(&of("a7c4", 28, 8)).unwrap();
        assert!(
            more.starts_with("the data changed since the run began: pictures were 26 to train on and 3"),
            "{more}"
        );
        assert!(
            more.contains("are 28 to train on") && !more.contains("5eb1") && !more.contains("a7c4"),
            "{more}"
        );
        assert!(said(&of("a7c4", 26, 8)).unwrap().contains("as many pictures as before, but other contents"));
        assert!(said(&of("5eb1", 20, 8)).unwrap().starts_with("uses another part of the same data"));
        // Of several differences, the setting.
        assert_eq!(
            said(&of("a7c4", 28, 9)).unwrap(),
            "was trained with other settings: settings.batch was 8, is 9"
        );
        for broken in
            [json!(null), json!([1]), json!({"task": 3, "batch": 8}), json!({"task": {}, "batch": 8})]
        {
            assert!(settings_mismatch(&broken, &of("5eb1", 26, 8)).is_some(), "{broken}");
        }
    }
}
