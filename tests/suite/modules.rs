//! Modules do not depend on each other in cycles.
//!
//! A module depends on those that define the items it names, however many `use` and `pub use` lead there. Of two modules, the siblings that
//! contain them depend on each other: if `a::x` uses `b::y`, then `a` depends on `b`. No siblings, at any level, may form a cycle. A parent
//! and what it contains may use each other: a parent re-exports its children, and they share what its file defines.
//!
//! Dependencies are read from `use` declarations and paths, without comments and test modules. Methods that are called name no module.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

type Names = Vec<String>;

#[derive(Default)]
struct Module {
    file: String,
    /// The names that `use` declarations introduce, and their paths.
    imports: Vec<(String, Names)>,
    /// The paths in the file, with their lines.
    paths: Vec<(Names, usize)>,
}

type Modules = BTreeMap<Names, Module>;

#[test]
fn sibling_modules_form_no_cycles() {
    for sources in ["models/src", "export/src", "src"] {
        let mut modules = Modules::new();
        read_modules(Path::new(sources), &[], &mut modules);
        assert!(modules.len() > 30, "{sources}: found {} modules", modules.len());
        let cycles = cycles(&modules);
        assert!(cycles.is_empty(), "{sources}: expected no cycles, found\n{}", cycles.join("\n"));
    }
}

#[test]
fn cycles_are_found_behind_reexports_and_in_trees() {
    let module = |path: &str, text: &str| {
        (path.split_terminator("::").map(String::from).collect(), Module::parse(format!("{path}.rs"), text))
    };
    let root = "mod a;\nmod b;\npub use a::x::{self, Wide as Renamed};\nuse other::b::Thing;";
    let found = |b: &str| {
        let files =
            [("", root), ("a", "pub(crate) mod x;"), ("a::x", "use crate::{\n    b::Item,\n};"), ("b", b)];
        cycles(&files.into_iter().map(|(path, text)| module(path, text)).collect())
    };
    let cycle =
        |line: &str| vec![format!("  a uses b: a::x.rs:2: crate::b::Item\n  b uses a: b.rs:{line}\n")];
    assert_eq!(found("use super::Renamed;"), cycle("1: super::Renamed"));
    assert_eq!(found("fn f() {\n    crate::x::f();\n}"), cycle("2: crate::x::f"));
    assert_eq!(found("// crate::a\nuse crate::Thing;\nmod tests {\n    use crate::a;\n}"), [""; 0]);
}

/// Reads the files of `folder`, which belong to the module `parent`.
fn read_modules(folder: &Path, parent: &[String], modules: &mut Modules) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let module = if ["lib", "mod"].contains(&name) { parent.to_vec() } else { join(parent, name) };
        if path.is_dir() && !["bin", "tests"].contains(&name) {
            read_modules(&path, &module, modules);
        } else if path.extension().is_some_and(|e| e == "rs") && name != "tests" {
            let text = std::fs::read_to_string(&path).unwrap();
            modules.insert(module, Module::parse(path.display().to_string(), &text));
        }
    }
}

fn join(path: &[String], name: &str) -> Names {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the words and other characters of `text`, with their lines, without strings and comments. A `::` is one token.
fn tokens(text: &str) -> Vec<(&str, usize)> {
    let (mut tokens, mut rest, mut line) = (Vec::new(), text, 1);
    while let Some(first) = rest.chars().next() {
        let to =
            |end: &str, start: usize| rest[start..].find(end).map_or(rest.len(), |at| start + at + end.len());
        let (length, is_token) = match first {
            '/' if rest.starts_with("//") => (to("\n", 0), false),
            'r' if rest.starts_with("r#\"") => (to("\"#", 3), false),
            '\'' if rest.starts_with("'\"'") => (3, false),
            '"' => {
                let mut escaped = false;
                let is_end = |c: char| {
                    let is_end = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    is_end
                };
                (rest[1..].find(is_end).map_or(rest.len(), |at| at + 2), false)
            }
            _ if is_word(first) => (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), true),
            _ if rest.starts_with("::") => (2, true),
            _ => (first.len_utf8(), !first.is_whitespace()),
        };
        tokens.extend(is_token.then_some((&rest[..length], line)));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

impl Module {
    fn parse(file: String, text: &str) -> Self {
        let tokens = tokens(text.split("\nmod tests {").next().unwrap());
        let mut module = Self { file, ..Self::default() };
        let (mut tokens, mut path) = (&tokens[..], Names::new());
        while let [(token, line), rest @ ..] = tokens {
            tokens = rest;
            if *token == "use" && tokens[0].0 != "<" {
                tokens = module.parse_use(tokens, &[]);
            } else if token.starts_with(is_word) {
                path.push((*token).to_owned());
                match tokens {
                    [("::", _), (next, _), ..] if next.starts_with(is_word) => tokens = &tokens[1..],
                    _ => module.paths.push((std::mem::take(&mut path), *line)),
                }
            }
        }
        module
    }

    /// Parses a tree such as `a::{b as c, d::*}` behind `prefix`, and returns the tokens after it.
    fn parse_use<'t>(
        &mut self,
        mut tokens: &'t [(&'t str, usize)],
        prefix: &[String],
    ) -> &'t [(&'t str, usize)] {
        let (mut path, mut name) = (prefix.to_vec(), None);
        while let [(token, line), rest @ ..] = tokens {
            match *token {
                "," | "}" | ";" => {
                    path.pop_if(|last| last == "self");
                    self.imports.extend(name.or(path.last().cloned()).map(|name| (name, path.clone())));
                    self.paths.push((path, *line));
                    return tokens;
                }
                "{" => {
                    tokens = rest;
                    while tokens[0].0 != "}" {
                        tokens = self.parse_use(tokens, &path);
                        tokens = if tokens[0].0 == "," { &tokens[1..] } else { tokens };
                    }
                    return &tokens[1..];
                }
                "as" => name = Some(rest[0].0.to_owned()),
                word if name.is_none() && word != "::" => path.push(word.to_owned()),
                _ => {}
            }
            tokens = rest;
        }
        tokens
    }
}

/// Returns the module that defines what `path` names in `module`; `None` if it is not of this crate.
fn defining_module(modules: &Modules, module: &[String], path: &[String], depth: usize) -> Option<Names> {
    let mut at = module.to_vec();
    for (i, name) in path.iter().enumerate() {
        match name.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => _ = at.pop(),
            name if modules.contains_key(&join(&at, name)) => at = join(&at, name),
            name => {
                let mut imports = modules[&at].imports.iter();
                return match imports.find(|(imported, target)| imported == name && target != path) {
                    Some((_, to)) if depth < 9 => {
                        defining_module(modules, &at, &[to, &path[i + 1..]].concat(), depth + 1)
                    }
                    _ => (i > 0).then_some(at),
                };
            }
        }
    }
    Some(at)
}

/// Returns the shortest cycle through each module, as lines with the dependencies and their places.
fn cycles(modules: &Modules) -> Vec<String> {
    let mut uses = BTreeMap::<Names, BTreeMap<Names, String>>::new();
    for (name, module) in modules {
        for (path, line) in &module.paths {
            let Some(target) = defining_module(modules, name, path, 0) else { continue };
            let shared = name.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if shared < name.len().min(target.len()) {
                let place = format!("{}:{line}: {}", module.file, path.join("::"));
                let used = uses.entry(name[..=shared].to_vec()).or_default();
                used.entry(target[..=shared].to_vec()).or_insert(place);
            }
        }
    }
    let mut cycles = BTreeSet::new();
    for start in uses.keys() {
        let (mut queue, mut seen) = (VecDeque::from([vec![start]]), BTreeSet::new());
        while let Some(way) = queue.pop_front() {
            for next in uses.get(way[way.len() - 1]).into_iter().flat_map(BTreeMap::keys) {
                if next == start {
                    let first = (0..way.len()).min_by_key(|&i| way[i]).unwrap_or(0);
                    cycles.insert([&way[first..], &way[..first]].concat());
                    queue.clear();
                    break;
                } else if seen.insert(next) {
                    queue.push_back([&way[..], &[next]].concat());
                }
            }
        }
    }
    let line = |a: &Names, b: &Names| format!("  {} uses {}: {}\n", a.join("::"), b.join("::"), uses[a][b]);
    let describe = |c: &Vec<&Names>| (0..c.len()).map(|i| line(c[i], c[(i + 1) % c.len()])).collect();
    cycles.iter().map(describe).collect()
}
