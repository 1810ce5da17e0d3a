//! Which network a file's weights belong to.

use tiny_cats_export::Network;
use tiny_cats_models::{Layout, TinyDitConfig, Weights};

use super::Problem;

/// The predecessor's heads are 64 wide unless its configuration says otherwise; shapes alone cannot.
const HEAD: usize = 64;
const MAX_DEPTH: usize = 128;

/// Recognises a network of the Python project tiny-cats-model by the names and shapes of its weights, and by the configuration
/// beside them if there is one (keys `image_size`, `patch_size`, `embed_dim`, `depth`, `num_heads`).
///
/// # Errors
/// When the weights are of no network that is known, or the configuration contradicts them.
pub fn infer_network(weights: &Weights, config: Option<&serde_json::Value>) -> Result<Network, Problem> {
    let dims = |name: &str| {
        let array = weights.get(name).ok_or_else(|| {
            Problem::malformed(
                name,
                "missing: the file has no configuration, and these are not a TinyDiT's weights",
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
    Ok(Network::TinyDit(config))
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
    }
}
