//! Finds the dictionary of a file that holds the weights, and the prefix of their names.

use std::{cmp::Reverse, fmt};

use super::{
    error::printable,
    torch::{Tensor, Value},
};

/// Keys of dictionaries of weights, the most likely first.
const KEYS: [&str; 16] = [
    "model_state_dict",
    "ema_shadow_params",
    "model",
    "state_dict",
    "ema_params",
    "params_ema",
    "shadow_params",
    "ema",
    "net",
    "network",
    "module",
    "generator",
    "backbone",
    "encoder",
    "weights",
    "params",
];
/// Words in a key whose dictionary holds averaged weights.
const AVERAGES: [&str; 4] = ["ema", "shadow", "swa", "averaged"];
/// Prefixes of keys whose dictionaries hold no model.
const NON_MODEL_KEYS: [&str; 4] = ["opt", "sched", "lr_sched", "scaler"];
/// Prefixes that wrappers add to the names of a network's tensors.
const PREFIXES: [&str; 7] = ["module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.", "network."];
/// The tensors that identify a network: the first of a ResNet and of a TinyDiT.
pub(super) const SIGNATURE_TENSORS: [&str; 2] = ["conv1.weight", "patch_embed.proj.weight"];
const MAX_DEPTH: usize = 4;
/// The largest number of dictionaries that are considered; further ones are skipped.
const MAX_DICTIONARIES: usize = 64;
/// The largest number of names that a message lists.
pub(super) const MAX_LISTED: usize = 12;

/// The location of the weights in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightsLocation {
    /// The keys that lead to the dictionary of the weights, such as `model.state_dict`; empty if they are at the top level.
    pub path: String,
    /// The prefix of the network's tensor names in the file, such as `module.`; [`Checkpoint`](super::Checkpoint) has them without it.
    pub prefix: String,
    /// The keys that lead to the other dictionaries of tensors, which were not used.
    pub others: Vec<String>,
    /// The names of the tensors without the prefix, which were not used.
    pub left_out: Vec<String>,
}

/// A dictionary of tensors.
#[derive(Debug)]
pub(super) struct Dictionary<'v> {
    pub(super) path: String,
    /// True if its keys imply averaged weights.
    pub(super) averaged: bool,
    pub(super) prefix: &'v str,
    pub(super) left_out: Vec<&'v str>,
    pub(super) tensors: Vec<(&'v str, &'v Tensor)>,
    /// Entries that cannot be read: objects, and tensors of an unsupported type.
    pub(super) unsupported: Vec<(&'v str, &'v Value)>,
}

/// All dictionaries of tensors in a file, the most likely first.
///
/// Those with the first tensor of a known network come first. They are then sorted by their keys in the order of [`KEYS`], by less nesting,
/// by more tensors, and by the order in the file. Without `strip_prefixes`, names stay as they are.
pub(super) fn dictionaries(root: &Value, strip_prefixes: bool) -> Vec<Dictionary<'_>> {
    let mut found = Vec::new();
    collect(root, strip_prefixes, &mut Vec::new(), &mut found);
    found.sort_by_key(|(keys, dictionary): &(Vec<&str>, Dictionary)| {
        let rank = keys.iter().filter_map(|key| KEYS.iter().position(|k| k == key)).min();
        let names = || dictionary.names();
        let known = SIGNATURE_TENSORS.iter().any(|first| names().any(|name| name == *first));
        (!known, rank.unwrap_or(KEYS.len()), keys.len(), Reverse(names().count()))
    });
    found.into_iter().map(|(_, dictionary)| dictionary).collect()
}

fn collect<'v>(
    value: &'v Value,
    strip_prefixes: bool,
    keys: &mut Vec<&'v str>,
    found: &mut Vec<(Vec<&'v str>, Dictionary<'v>)>,
) {
    let Value::Dict(items) = value else { return };
    if found.len() >= MAX_DICTIONARIES {
        return;
    }
    let dictionary = Dictionary::new(items, strip_prefixes, keys);
    let is_tensor = |(_, value): &(&str, &Value)| matches!(value, Value::Unsupported { .. });
    if !dictionary.tensors.is_empty() || dictionary.unsupported.iter().any(is_tensor) {
        found.push((keys.clone(), dictionary));
    }
    if keys.len() == MAX_DEPTH {
        return;
    }
    for (key, value) in items {
        if let Value::Str(key) = key
            && !NON_MODEL_KEYS.iter().any(|other| key.starts_with(other))
        {
            keys.push(key);
            collect(value, strip_prefixes, keys, found);
            keys.pop();
        }
    }
}

impl<'v> Dictionary<'v> {
    fn new(items: &'v [(Value, Value)], strip_prefixes: bool, keys: &[&str]) -> Self {
        let (mut tensors, mut unsupported) = (Vec::new(), Vec::new());
        for (key, value) in items {
            match (key, value) {
                (Value::Str(key), Value::Tensor(tensor)) => tensors.push((key.as_str(), tensor)),
                (Value::Str(key), Value::Unsupported { .. } | Value::Object { .. }) => {
                    unsupported.push((key.as_str(), value));
                }
                _ => {}
            }
        }
        let names = tensors.iter().map(|t| t.0).chain(unsupported.iter().map(|u| u.0));
        let prefix = strip_prefixes.then(|| network_prefix(names));
        let mut left_out = Vec::new();
        tensors.retain_mut(|(name, _)| strip(name, prefix).map_err(|name| left_out.push(name)).is_ok());
        unsupported.retain_mut(|(name, _)| strip(name, prefix).is_ok());
        let prefix = prefix.unwrap_or_default();
        let has_average_word = |key: &&str| {
            let key = key.to_lowercase();
            key.split(['_', '-', '.']).any(|word| AVERAGES.contains(&word))
        };
        let averaged = keys.iter().any(has_average_word);
        let path = keys.iter().map(|key| printable(key, 60)).collect::<Vec<_>>().join(".");
        Self { path, averaged, prefix, left_out, tensors, unsupported }
    }

    fn names(&self) -> impl Iterator<Item = &'v str> {
        self.tensors.iter().map(|t| t.0).chain(self.unsupported.iter().map(|u| u.0))
    }
}

/// The prefix that wrappers add to the names of a network's tensors: the shortest that the first tensor of a known network has. Empty if
/// there is none.
pub(super) fn network_prefix<'a>(names: impl Iterator<Item = &'a str>) -> &'a str {
    let prefixes =
        names.flat_map(|name| SIGNATURE_TENSORS.iter().filter_map(move |first| name.strip_suffix(first)));
    let rank = |prefix: &str| PREFIXES.iter().position(|p| prefix.starts_with(p));
    prefixes
        .filter(|prefix| is_wrapped(prefix))
        .min_by_key(|prefix| (prefix.len(), rank(prefix)))
        .unwrap_or("")
}

fn is_wrapped(mut prefix: &str) -> bool {
    while let Some(rest) = PREFIXES.iter().find_map(|p| prefix.strip_prefix(p)) {
        prefix = rest;
    }
    prefix.is_empty()
}

/// Strips the prefix from a name, and then the prefixes of `DataParallel` and `torch.compile`. With `None`, the name stays as it is.
///
/// # Errors
/// The name, if it does not begin with the prefix.
pub(super) fn strip<'a>(name: &mut &'a str, prefix: Option<&str>) -> Result<(), &'a str> {
    let Some(prefix) = prefix else { return Ok(()) };
    *name = name.strip_prefix(prefix).ok_or(*name)?;
    while let Some(rest) = name.strip_prefix("module.").or_else(|| name.strip_prefix("_orig_mod.")) {
        *name = rest;
    }
    Ok(())
}

impl fmt::Display for WeightsLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |names: &[String]| {
            let rest = names.len().saturating_sub(MAX_LISTED);
            let rest = (rest > 0).then(|| format!("{rest} more"));
            let names = names.iter().take(MAX_LISTED).map(|name| match name.as_str() {
                "" => "the top level".to_owned(),
                name => printable(name, 60),
            });
            names.chain(rest).collect::<Vec<_>>().join(", ")
        };
        let mut parts = Vec::new();
        if !self.path.is_empty() {
            parts.push(self.path.clone());
        }
        if !self.prefix.is_empty() {
            parts.push(format!("prefix {}", self.prefix));
        }
        let others: Vec<String> = self.others.iter().chain(&self.left_out).cloned().collect();
        if !others.is_empty() {
            parts.push(format!("not used: {}", listed(&others)));
        }
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapper_prefixes_are_found() {
        for (names, expected) in [
            (&["conv1.weight", "model.conv1.weight"][..], ""),
            (&["layer1.0.conv1.weight", "fc.weight"], ""),
            (&["fc.bias", "model.conv1.weight"], "model."),
            (&["net.patch_embed.proj.weight", "net.x"], "net."),
            (&["module._orig_mod.encoder.conv1.weight"], "module._orig_mod.encoder."),
            (&["network.conv1.weight", "backbone.conv1.weight", "encoder.conv1.weight"], "encoder."),
            (&["network.conv1.weight", "module.net.conv1.weight"], "network."),
            (&["teacher.conv1.weight"], ""),
            (&["model.other"], ""),
            (&[], ""),
        ] {
            assert_eq!(network_prefix(names.iter().copied()), expected, "{names:?}");
        }
    }
}
