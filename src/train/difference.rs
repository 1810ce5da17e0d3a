//! The differences between the settings of two runs.

use serde_json::{Value, json};

use super::optimizer::rule_name;

/// Keys of a task's settings that describe its data.
const DATA_KEYS: [&str; 3] = ["data", "items", "validation"];

/// Describes why a run with the settings `old` cannot be resumed with `new`; `None` if it can.
///
/// Differences of the data are described by the number of images.
pub(crate) fn settings_mismatch(old: &Value, new: &Value) -> Option<String> {
    let without_data = |settings: &Value| {
        let mut settings = settings.clone();
        if let Some(task) = settings.get_mut("task").and_then(Value::as_object_mut) {
            task.retain(|key, _| !DATA_KEYS.contains(&key.as_str()));
        }
        settings
    };
    // Two rules have different keys, so the first difference would not say that the rule is another.
    let names = [old, new].map(|settings| json!({"name": rule_name(settings)}));
    if let Some(field) = difference("settings.optimizer", &names[0], &names[1]) {
        return Some(format!("was trained with different settings: {field}"));
    }
    if let Some(field) = difference("settings", &without_data(old), &without_data(new)) {
        return Some(format!("was trained with different settings: {field}"));
    }
    let [[hash, items, validation], [new_hash, new_items, new_validation]] =
        [old, new].map(|settings| DATA_KEYS.map(|key| settings["task"][key].clone()));
    let same_counts = (&items, &validation) == (&new_items, &new_validation);
    if hash == new_hash && same_counts {
        return None;
    }
    let count = |n: &Value| n.as_u64().map_or_else(|| "an unknown number".to_owned(), |n| n.to_string());
    let counts =
        |items, validation| format!("{} training and {} validation images", count(items), count(validation));
    let change = if same_counts {
        "the same number of images, but other contents, names or classes".to_owned()
    } else {
        format!("expected {}, found {}", counts(&items, &validation), counts(&new_items, &new_validation))
    };
    let reason = if hash == new_hash {
        "uses another part of the same data than before (--limit-files, --no-validation)"
    } else {
        "the data changed since the run started"
    };
    Some(format!("{reason}: {change}; start a new run to use this data"))
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
            Some(format!("{} changed from {old} to {new}", cut(path)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_differences_are_described() {
        let settings = |hash: &str, items: u64, batch: u64| json!({"task": {"data": hash, "items": items, "validation": 3}, "batch": batch});
        let mismatch = |new: &Value| settings_mismatch(&settings("5eb1", 26, 8), new);
        assert_eq!(mismatch(&settings("5eb1", 26, 8)), None);
        let more = mismatch(&settings("a7c4", 28, 8)).unwrap();
        assert!(
            more.starts_with("the data changed since the run started: expected 26 training and 3"),
            "{more}"
        );
        assert!(
            more.contains("found 28 training") && !more.contains("5eb1") && !more.contains("a7c4"),
            "{more}"
        );
        assert!(
            mismatch(&settings("a7c4", 26, 8))
                .unwrap()
                .contains("the same number of images, but other contents")
        );
        assert!(
            mismatch(&settings("5eb1", 20, 8)).unwrap().starts_with("uses another part of the same data")
        );
        // Of several differences, the setting is described.
        assert_eq!(
            mismatch(&settings("a7c4", 28, 9)).unwrap(),
            "was trained with different settings: settings.batch changed from 8 to 9"
        );
        let optimizer = |name: Option<&str>| {
            let mut settings = json!({"optimizer": {"betas": [0.9, 0.95]}});
            name.into_iter().for_each(|name| settings["optimizer"] = json!({"name": name, "momentum": 0.9}));
            settings
        };
        let [adamw, sgd] = [None, Some("sgd")].map(optimizer);
        for (old, new, change) in [(&adamw, &sgd, "from adamw to sgd"), (&sgd, &adamw, "from sgd to adamw")] {
            assert_eq!(
                settings_mismatch(old, new).unwrap(),
                format!("was trained with different settings: settings.optimizer.name changed {change}")
            );
        }
        for broken in
            [json!(null), json!([1]), json!({"task": 3, "batch": 8}), json!({"task": {}, "batch": 8})]
        {
            assert!(settings_mismatch(&broken, &settings("5eb1", 26, 8)).is_some(), "{broken}");
        }
    }
}
