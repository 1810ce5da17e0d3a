//! Which network a file's weights belong to, and whether they fit it.

use std::{collections::BTreeSet, path::Path};

use tiny_cats_export::Network;
use tiny_cats_models::{Array, Head, Layout, ResNetConfig, TinyDitConfig, Weights, resnet::BATCH_COUNT};

use super::{Loaded, Problem, Result, WhichWeights, open};

/// The predecessor's heads are 64 wide unless its configuration says otherwise; shapes alone cannot.
const HEAD: usize = 64;
const MAX_DEPTH: usize = 128;
/// A ResNet's first convolution.
const STEM: &str = "conv1.weight";

/// Recognises a network by the names and shapes of its weights: a ResNet of torchvision's or of the Python project tiny-cats-model,
/// or a TinyDiT of that project, for which there may be a configuration beside (keys `image_size`, `patch_size`, `embed_dim`, `depth`,
/// `num_heads`).
///
/// # Errors
/// When the weights are of no network that is known, or the configuration contradicts them.
pub fn infer_network(weights: &Weights, config: Option<&serde_json::Value>) -> Result<Network, Problem> {
    if weights.contains_key(STEM) {
        resnet(weights).map(Network::ResNet)
    } else {
        tiny_dit(weights, config).map(Network::TinyDit)
    }
}

/// A ResNet by its blocks, its first convolution and its head.
fn resnet(weights: &Weights) -> Result<ResNetConfig, Problem> {
    let has = |name: &str| weights.contains_key(name);
    let first = |name: &str| weights.get(name).and_then(|array| array.dims().first()).copied().unwrap_or(0);
    let blocks =
        |stage| (0..=MAX_DEPTH).take_while(|i| has(&format!("layer{stage}.{i}.conv1.weight"))).count();
    let blocks = [1, 2, 3, 4].map(blocks);
    let depth = match (blocks, has("layer1.0.conv3.weight")) {
        ([2, 2, 2, 2], false) => 18,
        ([3, 4, 6, 3], false) => 34,
        ([3, 4, 6, 3], true) => 50,
        _ => {
            let message = format!("expected the blocks of a ResNet-18, 34 or 50, found stages of {blocks:?}");
            return Err(Problem::malformed("layers", message));
        }
    };
    let (head, classes) = match first("fc.1.weight") {
        0 => (Head::Plain, first("fc.weight")),
        classes => (Head::Dropout, classes),
    };
    let config =
        ResNetConfig { depth, width: first(STEM), classes, head, batch_norm: has("bn1.running_mean") };
    config.validate().map_err(|e| Problem::malformed("network", e.to_string()))?;
    Ok(config)
}

/// The weights of a ResNet's file for a network like `config` to begin with: all but the head, which may be of other classes.
///
/// # Errors
/// When the file cannot be read, holds another network, or what it holds does not fit together; the first thing is named.
pub fn backbone(path: &Path, config: &ResNetConfig) -> Result<Weights> {
    let loaded = open(path, WhichWeights::Default)?;
    headless(loaded, config).map_err(|p| p.at(path))
}

fn headless(mut loaded: Loaded, config: &ResNetConfig) -> Result<Weights, Problem> {
    let other = |found: String| Problem::OtherNetwork { found, expected: config.to_string() };
    let found = match loaded.meta()?.config {
        Network::ResNet(found) => found,
        Network::TinyDit(_) => return Err(other("TinyDiT".into())),
    };
    if (found.depth, found.width) != (config.depth, config.width) {
        return Err(other(found.to_string()));
    }
    if found.batch_norm != config.batch_norm {
        let norms = |c: &ResNetConfig| {
            format!("{c} with{} batch normalisation", if c.batch_norm { "" } else { "out" })
        };
        return Err(Problem::OtherNetwork { found: norms(&found), expected: norms(config) });
    }
    let misfits = misfits(&loaded, &Network::ResNet(found))?.into_iter();
    let damaged = loaded.weights.iter().filter_map(|(name, array)| not_finite(name, array));
    if let Some(line) = misfits.chain(damaged).next() {
        return Err(Problem::Misfit(line));
    }
    loaded.weights.retain(|name, _| !name.starts_with("fc."));
    Ok(loaded.weights)
}

/// The weights of a generator's file for a network like `config` to begin with. One of smaller pictures, in as many patches, is enlarged:
/// each value of a patch becomes a square of equal ones, and weights that read them are divided by how many there are. So what it makes of
/// enlarged pictures is what it made of the small ones, enlarged (Karras et al., arXiv 1710.10196, grow networks so).
///
/// # Errors
/// As [`backbone`].
pub fn generator(path: &Path, config: &TinyDitConfig) -> Result<Weights> {
    let loaded = open(path, WhichWeights::Default)?;
    grown(loaded, config).map_err(|p| p.at(path))
}

fn grown(loaded: Loaded, config: &TinyDitConfig) -> Result<Weights, Problem> {
    let named = |c: &TinyDitConfig| {
        format!(
            "TinyDiT of {} px in patches of {} px, width {}, depth {}, {} heads, {} classes",
            c.image_size, c.patch_size, c.width, c.depth, c.heads, c.classes
        )
    };
    let other = |found: String| Problem::OtherNetwork { found, expected: named(config) };
    let found = match loaded.meta()?.config {
        Network::TinyDit(found) => found,
        Network::ResNet(found) => return Err(other(found.to_string())),
    };
    let TinyDitConfig { image_size, patch_size, .. } = *config;
    let factor = image_size / found.image_size.max(1);
    let as_large = TinyDitConfig { image_size, patch_size, ..found.clone() };
    if as_large != *config
        || factor * found.image_size != image_size
        || factor * found.patch_size != patch_size
        || factor > 1 && config.layout != Layout::Modern
    {
        return Err(other(named(&found)));
    }
    let misfits = misfits(&loaded, &Network::TinyDit(found.clone()))?.into_iter();
    let damaged = loaded.weights.iter().filter_map(|(name, array)| not_finite(name, array));
    if let Some(line) = misfits.chain(damaged).next() {
        return Err(Problem::Misfit(line));
    }
    let mut weights = loaded.weights;
    if factor > 1 {
        let side = found.patch_size;
        // Where each value of a large patch, [3, height, width], is in the small one.
        let from: Vec<usize> = (0..3 * patch_size * patch_size)
            .map(|i| {
                let (plane, row, column) =
                    (i / (patch_size * patch_size), i / patch_size % patch_size, i % patch_size);
                (plane * side + row / factor) * side + column / factor
            })
            .collect();
        let share = 1.0 / (factor * factor) as f32;
        for (name, columns, scale) in [
            ("patch_embed.proj.weight", true, share),
            ("final_layer.linear.weight", false, 1.0),
            ("final_layer.linear.bias", false, 1.0),
        ] {
            let small = weights.get(name).expect("it fits");
            let mut dims = small.dims().to_vec();
            let values: Vec<f32> = if columns {
                dims[1] = from.len();
                small
                    .data()
                    .chunks_exact(3 * side * side)
                    .flat_map(|row| from.iter().map(|&i| scale * row[i]))
                    .collect()
            } else {
                let width = small.data().len() / dims[0];
                dims[0] = from.len();
                from.iter().flat_map(|&i| &small.data()[i * width..(i + 1) * width]).copied().collect()
            };
            let large = Array::new(dims, values).map_err(|e| Problem::malformed(name, e.to_string()))?;
            weights.insert(name.into(), large);
        }
    }
    Ok(weights)
}

/// A TinyDiT of the predecessor's.
fn tiny_dit(weights: &Weights, config: Option<&serde_json::Value>) -> Result<TinyDitConfig, Problem> {
    let dims = |name: &str| {
        let array = weights.get(name).ok_or_else(|| {
            Problem::malformed(
                name,
                "missing: the file has no configuration, and these are neither a TinyDiT's nor a ResNet's weights",
            )
        })?;
        Ok::<_, Problem>(array.dims())
    };
    const PATCHES: &str = "patch_embed.proj.weight";
    let &[width, 3, patch_size, across] = dims(PATCHES)? else {
        let message = format!("expected shape [width, 3, patch, patch], found {:?}", dims(PATCHES)?);
        return Err(Problem::malformed(PATCHES, message));
    };
    if across != patch_size {
        return Err(Problem::malformed(
            PATCHES,
            format!("expected square patches, found {patch_size} by {across}"),
        ));
    }
    const CLASSES: &str = "breed_embedder.embedding.weight";
    let classes = dims(CLASSES)?.first().copied().unwrap_or(0);
    let mlp_width = dims("blocks.0.mlp.fc1.weight")?.first().copied().unwrap_or(0);
    let depth =
        (0..=MAX_DEPTH).take_while(|i| weights.contains_key(&format!("blocks.{i}.attn.qkv.weight"))).count();

    let given = |key: &str| config.and_then(|c| c.get(key)).and_then(|v| v.as_u64()).map(|v| v as usize);
    for (key, found) in [("embed_dim", width), ("patch_size", patch_size), ("depth", depth)] {
        if given(key).is_some_and(|said| said != found) {
            let message = format!("{}, but the weights have {found}", given(key).unwrap_or(0));
            return Err(Problem::malformed(format!("config.{key}"), message));
        }
    }
    let config = TinyDitConfig {
        // No weight depends on the picture's size.
        image_size: given("image_size").unwrap_or(128),
        patch_size,
        width,
        depth,
        heads: given("num_heads").unwrap_or(if width.is_multiple_of(HEAD) { width / HEAD } else { 6 }),
        mlp_width,
        classes,
        layout: Layout::Legacy,
    };
    config.validate().map_err(|e| Problem::malformed("config", e.to_string()))?;
    Ok(config)
}

/// How the tensors differ from those that the network has.
pub(super) fn misfits(loaded: &Loaded, network: &Network) -> Result<Vec<String>, Problem> {
    let specs = network.specs().map_err(|e| Problem::malformed("network", e.to_string()))?;
    let mut lines = Vec::new();
    for spec in &specs {
        match loaded.weights.get(&spec.name) {
            None => lines.push(format!("{}: missing", spec.name)),
            Some(array) if array.dims() != spec.dims => {
                lines.push(format!("{}: shape {:?}, expected {:?}", spec.name, array.dims(), spec.dims));
            }
            Some(_) => {}
        }
    }
    let names: BTreeSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    let integers = loaded.integers.keys().filter(|name| !name.ends_with(BATCH_COUNT));
    let unexpected = loaded.weights.keys().chain(integers).filter(|name| !names.contains(name.as_str()));
    lines.extend(unexpected.map(|name| format!("{name}: unexpected")));
    Ok(lines)
}

/// Says how many of a tensor's numbers are not finite, if any.
pub(super) fn not_finite(name: &str, array: &Array) -> Option<String> {
    let bad = array.data().iter().filter(|x| !x.is_finite()).count();
    (bad > 0).then(|| format!("{name}: {bad} of {} numbers are not finite", array.data().len()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tiny_cats_models::init;

    use super::*;

    #[test]
    fn a_network_of_the_predecessor_is_known_by_its_weights() {
        let config = TinyDitConfig {
            depth: 3,
            width: 128,
            heads: 2,
            mlp_width: 200,
            classes: 5,
            ..TinyDitConfig::legacy()
        };
        let network = Network::TinyDit(config.clone());
        let weights = init(&network.specs().unwrap(), 0);
        assert_eq!(infer_network(&weights, None).unwrap(), network);
        let said = json!({"image_size": 64, "patch_size": 16, "embed_dim": 128, "depth": 3, "num_heads": 8});
        let told = Network::TinyDit(TinyDitConfig { image_size: 64, heads: 8, ..config });
        assert_eq!(infer_network(&weights, Some(&said)).unwrap(), told);

        for (key, value) in [("depth", 12), ("embed_dim", 384), ("num_heads", 7), ("image_size", 1u64 << 40)]
        {
            let mut wrong = said.clone();
            wrong[key] = value.into();
            assert!(infer_network(&weights, Some(&wrong)).is_err(), "{key}: {value}");
        }
        assert!(infer_network(&Weights::new(), None).is_err());
        // A first convolution of nothing, and no blocks.
        let empty = Array::new([0, 3, 7, 7], Vec::new()).unwrap();
        assert!(infer_network(&Weights::from([(STEM.into(), empty)]), None).is_err());
    }
}
