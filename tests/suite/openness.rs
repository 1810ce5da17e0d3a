//! Networks are known by their trait: few files may name those of this project.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

/// The names of this project's networks.
const NAMES: [&str; 4] = ["TinyDit", "ResNet", "tiny_dit", "resnet"];

/// The files that may name them. A file that no longer does must leave the list, and none may be added.
const ALLOWED: [&str; 10] = [
    // The definitions.
    "models/src/lib.rs",
    "models/src/resnet.rs",
    "models/src/tiny_dit.rs",
    // The registration.
    "export/src/registry.rs",
    // Files of the Python project and of other programs.
    "export/src/compat.rs",
    "src/checkpoint/describe.rs",
    "src/checkpoint/init.rs",
    // The recipes.
    "src/recipes/calibration.rs",
    "src/recipes/classifier.rs",
    "src/recipes/dit.rs",
];

/// Texts that may stand in any file: the path of a constant, and names of the released models.
const OTHER_TEXTS: [&str; 3] = ["resnet::NUM_BATCHES_TRACKED", "resnet18-breeds", "the pretrained ResNet-18"];

/// Returns the lines of code, without comments and the tests at the end.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn few_files_name_the_networks_of_this_project() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for folder in ["src", "export/src", "models/src"] {
        for entry in WalkDir::new(root.join(folder)).sort_by_file_name() {
            let path: PathBuf = entry.unwrap().into_path();
            // Files of tests alone.
            let is_test =
                path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
            if path.extension().is_none_or(|extension| extension != "rs") || is_test {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let file = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            for line in code_lines(&text) {
                let line = OTHER_TEXTS.iter().fold(line.to_owned(), |line, other| line.replace(other, ""));
                if let Some(name) = NAMES.iter().find(|name| line.contains(**name)) {
                    assert!(ALLOWED.contains(&&*file), "{file} names {name}: {line}");
                    found.insert(file.clone());
                }
            }
        }
    }
    let unused: Vec<&str> = ALLOWED.into_iter().filter(|file| !found.contains(*file)).collect();
    assert!(
        unused.is_empty(),
        "these files no longer name a network, so remove them from the list: {unused:?}"
    );
}
