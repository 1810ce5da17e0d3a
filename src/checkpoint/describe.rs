//! Model descriptions: from the file's metadata, else from its weights, else by assumption.

use std::fmt;

use serde_json::{Map, Value as Json};
use tiny_cats_export::{ModelMeta, NetworkConfig, image_sizes, is_class_name};
use tiny_cats_models::{
    Head, Layout, Network, ResNetConfig, Sizes, TinyDitConfig, Weights, tiny_dit::CHANNELS,
};

use super::{Checkpoint, ErrorKind, compat};

const MAX_DEPTH: usize = 128;
/// The first convolution of a ResNet.
const STEM: &str = "conv1.weight";
/// The first layer of a TinyDiT.
const PATCHES: &str = "patch_embed.proj.weight";
/// The class embedding of a TinyDiT, one row per class.
pub(super) const CLASSES: &str = "breed_embedder.embedding.weight";

/// The user's values for a model; they override those in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelOverrides {
    /// Side of the square images, in pixels.
    pub image_size: Option<usize>,
    /// Number of attention heads.
    pub heads: Option<usize>,
    /// Class names, in the order of their labels.
    pub classes: Option<Vec<String>>,
}

/// A value that neither the file nor its weights contain.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Assumption {
    /// The field of [`ModelOverrides`] that sets it.
    pub field: &'static str,
    /// The assumed value.
    pub value: String,
}

impl fmt::Display for Assumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field.replace('_', " "), self.value)
    }
}

/// A model's description, with the assumptions in it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDescription {
    /// The metadata that a program needs to use the model.
    pub meta: ModelMeta,
    /// The assumed values; empty for files of our trainer and of tiny-cats-model's trainers.
    pub assumed: Vec<Assumption>,
}

impl Checkpoint {
    /// Describes the model, so that a program can use it.
    ///
    /// Each value is from `overrides`, else from the file, else from the names and shapes of the weights. Otherwise it is the default of
    /// the Python project tiny-cats-model, and listed as assumed.
    ///
    /// # Errors
    /// If the weights are of an unknown network, or contradict the file or `overrides`.
    pub fn describe(&self, overrides: &ModelOverrides) -> Result<ModelDescription, ErrorKind> {
        let mut assumed = Vec::new();
        let foreign = ForeignConfig::new(self.config.as_ref());
        let mut meta = match &self.own_meta {
            Some(meta) => with_overrides(meta.clone(), overrides)?,
            None => self.infer(&foreign, overrides, &mut assumed)?,
        };
        let classes = meta.classes.len();
        if let Some(names) = &overrides.classes {
            if names.len() != classes {
                let message = format!("expected {classes} names, found {}", names.len());
                return Err(ErrorKind::malformed("classes", message));
            }
            meta.classes.clone_from(names);
        } else if self.own_meta.is_none() {
            // A network with as many classes as the Python project's has its class names. Other networks have numbers as names.
            if let Some(names) = foreign.class_names(classes) {
                meta.classes = names;
            } else if let Some(names) = compat::class_names(classes) {
                meta.classes = names;
                let is_generator = foreign.number(&[compat::EMBED_DIM]).is_some();
                if !(self.is_predecessor || is_generator) {
                    assume(
                        &mut assumed,
                        "classes",
                        format_args!("{} to {}", meta.classes[0], meta.classes[12]),
                    );
                }
            }
        }
        // Sizes and names from all sources are checked.
        let meta = super::released::parse_meta(&meta.to_json())?;
        Ok(ModelDescription { meta, assumed })
    }

    /// Recognizes a network by the names and shapes of its weights.
    fn infer(
        &self,
        foreign: &ForeignConfig,
        overrides: &ModelOverrides,
        assumed: &mut Vec<Assumption>,
    ) -> Result<ModelMeta, ErrorKind> {
        let invalid = |e: tiny_cats_export::Error| ErrorKind::malformed("network", e.to_string());
        if !self.weights.contains_key(STEM) {
            let config = tiny_dit(&self.weights, foreign, overrides, assumed)?;
            config.validate().map_err(|e| ErrorKind::malformed("config", e.to_string()))?;
            let classes = numbered(config.classes);
            return ModelMeta::for_network(config, Sizes::new(), classes).map_err(invalid);
        }
        if overrides.heads.is_some() {
            return Err(ErrorKind::malformed("heads", "a ResNet has no attention heads"));
        }
        let config = resnet(&self.weights)?;
        config.validate().map_err(|e| ErrorKind::malformed("network", e.to_string()))?;
        let size = overrides.image_size.or_else(|| foreign.image_size());
        let size = size.unwrap_or_else(|| {
            if !self.is_predecessor {
                assume(assumed, "image_size", compat::CLASSIFIER_IMAGE_SIZE);
            }
            compat::CLASSIFIER_IMAGE_SIZE
        });
        let classes = numbered(config.classes);
        ModelMeta::for_network(config, image_sizes(size), classes).map_err(invalid)
    }
}

fn assume(assumed: &mut Vec<Assumption>, field: &'static str, value: impl fmt::Display) {
    assumed.push(Assumption { field, value: value.to_string() });
}

fn numbered(classes: usize) -> Vec<String> {
    // The limit exceeds that of the caller's check, which reports the error.
    (0..classes.min(1 << 16)).map(|i| i.to_string()).collect()
}

/// Applies the user's overrides to our own file's metadata. For a TinyDiT, another image size changes the network.
fn with_overrides(mut meta: ModelMeta, overrides: &ModelOverrides) -> Result<ModelMeta, ErrorKind> {
    let config = |network: TinyDitConfig| {
        NetworkConfig::new(network).map_err(|e| ErrorKind::malformed("config", e.to_string()))
    };
    if let Some(size) = overrides.image_size {
        let network = meta.config.downcast::<TinyDitConfig>();
        if let Some(network) = network {
            let network = TinyDitConfig { image_size: size, ..network.clone() };
            meta = ModelMeta { config: config(network)?, image_size: size, ..meta };
        } else if meta.image_size == 0 {
            return Err(ErrorKind::malformed("image_size", "the network takes no images"));
        } else if meta.config.is_known() {
            let sizes = meta.sizes().into_iter().chain(image_sizes(size)).collect();
            let provenance = meta.provenance;
            meta = ModelMeta { provenance, ..ModelMeta::new(meta.config, sizes, meta.classes) };
            if meta.image_size != size {
                let message = format!("expected the network's {}, found {size}", meta.image_size);
                return Err(ErrorKind::malformed("image_size", message));
            }
        } else {
            meta.image_size = size;
        }
    }
    if let Some(heads) = overrides.heads {
        let Some(network) = meta.config.downcast::<TinyDitConfig>() else {
            let message = format!("a network of kind {} has no attention heads", meta.config.kind());
            return Err(ErrorKind::malformed("heads", message));
        };
        meta.config = config(TinyDitConfig { heads, ..network.clone() })?;
    }
    Ok(meta)
}

/// Infers a ResNet, torchvision's or the Python project's, from its blocks, first convolution and head.
///
/// Without a head, or with another kind of head, it has no classes. The configuration is not validated.
pub(super) fn resnet(weights: &Weights) -> Result<ResNetConfig, ErrorKind> {
    let has = |name: &str| weights.contains_key(name);
    let first_dim =
        |name: &str| weights.get(name).and_then(|array| array.dims().first()).copied().unwrap_or(0);
    let blocks =
        |stage| (0..=MAX_DEPTH).take_while(|i| has(&format!("layer{stage}.{i}.conv1.weight"))).count();
    let blocks = [1, 2, 3, 4].map(blocks);
    let has_bottlenecks = has("layer1.0.conv3.weight");
    if let Some(&[out, inputs, ..]) = weights.get("layer1.0.conv2.weight").map(|a| a.dims())
        && has_bottlenecks
        && (out != inputs || out != first_dim(STEM))
    {
        let message = match out.checked_div(inputs) {
            Some(groups) if groups > 1 => format!("a ResNeXt, whose convolutions have {groups} groups"),
            _ => format!("a wide ResNet, whose bottlenecks have {out} channels"),
        };
        return Err(ErrorKind::malformed(
            "network",
            format!("expected a ResNet-18, 34 or 50, found {message}"),
        ));
    }
    let depth = match (blocks, has_bottlenecks) {
        ([2, 2, 2, 2], false) => 18,
        ([3, 4, 6, 3], false) => 34,
        ([3, 4, 6, 3], true) => 50,
        _ => {
            let message = format!("expected the blocks of a ResNet-18, 34 or 50, found stages of {blocks:?}");
            return Err(ErrorKind::malformed("layers", message));
        }
    };
    let (head, classes) = match first_dim("fc.1.weight") {
        0 => (Head::Plain, first_dim("fc.weight")),
        classes => (Head::Dropout, classes),
    };
    Ok(ResNetConfig { depth, width: first_dim(STEM), classes, head, batch_norm: has("bn1.running_mean") })
}

/// Infers a TinyDiT of either layout. The configuration is not validated.
fn tiny_dit(
    weights: &Weights,
    foreign: &ForeignConfig,
    overrides: &ModelOverrides,
    assumed: &mut Vec<Assumption>,
) -> Result<TinyDitConfig, ErrorKind> {
    let dims = |name: &str| {
        let array = weights.get(name).ok_or_else(|| {
            ErrorKind::malformed(
                name,
                "missing: the file has no configuration, and the weights are of neither a TinyDiT nor a ResNet",
            )
        })?;
        Ok::<_, ErrorKind>(array.dims())
    };
    let first_dim = |name: &str| Ok::<_, ErrorKind>(dims(name)?.first().copied().unwrap_or(0));
    let (layout, width, patch_size) = match dims(PATCHES)? {
        &[width, CHANNELS, height, patch_width] if height == patch_width => (Layout::Legacy, width, height),
        &[width, values] if (values / CHANNELS).isqrt().pow(2) * CHANNELS == values => {
            (Layout::Modern, width, (values / CHANNELS).isqrt())
        }
        found => {
            let message = format!(
                "expected square patches, [width, 3, patch, patch] or [width, 3·patch²], found {found:?}"
            );
            return Err(ErrorKind::malformed(PATCHES, message));
        }
    };
    let depth =
        (0..=MAX_DEPTH).take_while(|i| weights.contains_key(&format!("blocks.{i}.attn.qkv.weight"))).count();
    let rows = first_dim(CLASSES)?;
    let (mlp_width, classes) = match layout {
        Layout::Modern => (first_dim("blocks.0.mlp.w12.weight")? / 2, rows.saturating_sub(1)),
        Layout::Legacy => (first_dim("blocks.0.mlp.fc1.weight")?, rows),
    };
    for (key, found) in [(compat::EMBED_DIM, width), ("patch_size", patch_size), ("depth", depth)] {
        if let Some(configured) = foreign.number(&[key])
            && configured != found
        {
            return Err(ErrorKind::malformed(
                format!("config.{key}"),
                format!("expected {found} as in the weights, found {configured}"),
            ));
        }
    }
    // No weight depends on the image size.
    let image_size = overrides.image_size.or_else(|| foreign.image_size()).unwrap_or_else(|| {
        let size = if layout == Layout::Modern { 8 * patch_size } else { compat::GENERATOR_IMAGE_SIZE };
        assume(assumed, "image_size", size);
        size
    });
    let configured_heads =
        overrides.heads.or_else(|| foreign.number(&["num_heads", "heads", "n_heads", "n_head"]));
    let heads = match (configured_heads, layout) {
        (Some(heads), _) => heads,
        // The weights of the query and key normalization have the width of a head.
        (None, Layout::Modern) => width.checked_div(first_dim("blocks.0.attn.q_norm.weight")?).unwrap_or(0),
        (None, Layout::Legacy) => {
            let heads = compat::heads(width);
            assume(assumed, "heads", heads);
            heads
        }
    };
    Ok(TinyDitConfig { image_size, patch_size, width, depth, heads, mlp_width, classes, layout })
}

/// A network's configuration as other programs write it next to the weights: nested dictionaries, with numbers as numbers or text.
struct ForeignConfig<'a> {
    /// The dictionaries, outer ones first.
    dictionaries: Vec<&'a Map<String, Json>>,
}

impl<'a> ForeignConfig<'a> {
    const MAX_DICTIONARIES: usize = 256;

    fn new(root: Option<&'a Json>) -> Self {
        let mut dictionaries: Vec<&Map<String, Json>> = root.and_then(Json::as_object).into_iter().collect();
        let mut next = 0;
        while let Some(&dictionary) = dictionaries.get(next) {
            dictionaries.extend(dictionary.values().filter_map(Json::as_object).take(Self::MAX_DICTIONARIES));
            dictionaries.truncate(Self::MAX_DICTIONARIES);
            next += 1;
        }
        Self { dictionaries }
    }

    fn find<T>(&self, names: &[&str], read: impl Fn(&Json) -> Option<T>) -> Option<T> {
        let mut found = self.dictionaries.iter().flat_map(|d| names.iter().filter_map(|&name| d.get(name)));
        found.find_map(read)
    }

    /// The first integer whose key is one of `names`.
    fn number(&self, names: &[&str]) -> Option<usize> {
        self.find(names, integer)
    }

    fn image_size(&self) -> Option<usize> {
        let side = |value: &Json| match value.as_array().map(Vec::as_slice) {
            Some([height, width]) if height == width => integer(height),
            Some(_) => None,
            None => integer(value),
        };
        self.find(&["image_size", "img_size", "input_size", "resolution"], side)
    }

    /// The names of the `count` classes.
    fn class_names(&self, count: usize) -> Option<Vec<String>> {
        let text = |value: &Json| value.as_str().filter(|name| is_class_name(name)).map(str::to_owned);
        let names = |value: &Json| -> Option<Vec<String>> {
            let names: Vec<String> = match value {
                Json::Array(names) => names.iter().map(text).collect::<Option<_>>()?,
                // torchvision's ImageFolder maps the class name to the label.
                Json::Object(labels) => {
                    let mut labels: Vec<(usize, &String)> = labels
                        .iter()
                        .map(|(name, label)| Some((integer(label)?, name)))
                        .collect::<Option<_>>()?;
                    labels.sort_unstable();
                    let is_contiguous = labels.iter().enumerate().all(|(i, (label, _))| i == *label);
                    let are_valid = labels.iter().all(|(_, name)| is_class_name(name));
                    (is_contiguous && are_valid)
                        .then(|| labels.into_iter().map(|(_, name)| name.clone()).collect())?
                }
                _ => return None,
            };
            (names.len() == count).then_some(names)
        };
        self.find(&["classes", "class_names", "breeds", "class_to_idx"], names)
    }
}

/// Converts a JSON integer, a real number without a fraction, or such a number as text.
fn integer(value: &Json) -> Option<usize> {
    let real = |x: f64| ((0.0..=1e9).contains(&x) && x.fract() == 0.0).then_some(x as usize);
    match value {
        Json::Number(number) => number.as_f64().and_then(real),
        Json::String(text) => text.trim().parse().ok().and_then(real),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tiny_cats_models::{Array, init};

    use super::*;
    use crate::checkpoint::Format;

    fn loaded(network: &NetworkConfig, config: Option<Json>) -> Checkpoint {
        let weights = init(&network.specs().unwrap(), 0);
        Checkpoint { weights, config, ..Checkpoint::new(Format::TorchBare) }
    }

    fn assumed_fields(described: &ModelDescription) -> Vec<&str> {
        described.assumed.iter().map(|assumed| assumed.field).collect()
    }

    fn legacy() -> TinyDitConfig {
        TinyDitConfig {
            depth: 3,
            width: 128,
            heads: 2,
            mlp_width: 200,
            classes: 5,
            ..TinyDitConfig::legacy()
        }
    }

    #[test]
    fn unknown_values_are_assumed_unless_configured() {
        let overrides = ModelOverrides::default();
        let network = NetworkConfig::new(legacy()).unwrap();
        let found = loaded(&network, None).describe(&overrides).unwrap();
        assert_eq!((&found.meta.config, assumed_fields(&found)), (&network, vec!["image_size", "heads"]));
        assert_eq!(found.assumed[1].to_string(), "heads 2");
        assert_eq!(found.meta.classes, ["0", "1", "2", "3", "4"]);

        let expected = NetworkConfig::new(TinyDitConfig { image_size: 64, heads: 8, ..legacy() }).unwrap();
        for config in [
            json!({"image_size": 64, "patch_size": 16, "embed_dim": 128, "depth": 3, "num_heads": 8}),
            // Flat as in safetensors metadata, nested, and with integers that were converted to floats.
            json!({"image_size": "64", "num_heads": "8", "format": "pt"}),
            json!({"lr": 1e-4, "model": {"name": "dit", "sizes": {"img_size": [64.0, 64.0], "heads": 8.0}}}),
        ] {
            let found = loaded(&network, Some(config.clone())).describe(&overrides).unwrap();
            assert_eq!((&found.meta.config, assumed_fields(&found)), (&expected, vec![]), "{config}");
        }
        let partial = loaded(&network, Some(json!({"image_size": 64}))).describe(&overrides).unwrap();
        assert_eq!(assumed_fields(&partial), ["heads"]);
        let names: Vec<String> = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
        let overrides = ModelOverrides { image_size: Some(64), heads: Some(8), classes: Some(names.clone()) };
        let found = loaded(&network, Some(json!({"num_heads": 4}))).describe(&overrides).unwrap();
        assert_eq!(
            (&found.meta.config, assumed_fields(&found), &found.meta.classes),
            (&expected, vec![], &names)
        );

        for (key, value) in [("depth", json!(12)), ("embed_dim", json!("384")), ("num_heads", json!(7))] {
            let wrong = json!({"image_size": 64, key: value});
            assert!(
                loaded(&network, Some(wrong.clone())).describe(&ModelOverrides::default()).is_err(),
                "{wrong}"
            );
        }
        for overrides in [
            ModelOverrides { heads: Some(7), ..ModelOverrides::default() },
            ModelOverrides { image_size: Some(1 << 40), ..ModelOverrides::default() },
            ModelOverrides { classes: Some(names[1..].to_vec()), ..ModelOverrides::default() },
        ] {
            assert!(loaded(&network, None).describe(&overrides).is_err(), "{overrides:?}");
        }
    }

    #[test]
    fn modern_networks_are_recognized_without_metadata() {
        let config = TinyDitConfig { heads: 8, ..TinyDitConfig::named("nano", 48, 4).unwrap() };
        let network = NetworkConfig::new(config).unwrap();
        let found = loaded(&network, None).describe(&ModelOverrides::default()).unwrap();
        assert_eq!((&found.meta.config, assumed_fields(&found)), (&network, vec!["image_size"]));
    }

    #[test]
    fn classifier_size_and_classes_are_assumed() {
        let config = ResNetConfig { width: 4, ..ResNetConfig::named("resnet18", 13).unwrap() };
        let network = NetworkConfig::new(config.clone()).unwrap();
        let found = loaded(&network, None).describe(&ModelOverrides::default()).unwrap();
        assert_eq!((found.meta.image_size, assumed_fields(&found)), (224, vec!["image_size", "classes"]));
        let trained = Checkpoint { is_predecessor: true, ..loaded(&network, None) };
        let found = trained.describe(&ModelOverrides::default()).unwrap();
        assert_eq!((found.meta.classes[6].as_str(), assumed_fields(&found)), ("Maine_Coon", vec![]));
        let labels: Map<String, Json> =
            (0..13).map(|i| (format!("cat {}", 12 - i), (12 - i).into())).collect();
        let config = json!({"resolution": 96, "class_to_idx": labels});
        let found = loaded(&network, Some(config)).describe(&ModelOverrides::default()).unwrap();
        assert_eq!((found.meta.image_size, found.meta.classes[3].as_str()), (96, "cat 3"));
        assert!(found.assumed.is_empty());
        let heads = ModelOverrides { heads: Some(2), ..ModelOverrides::default() };
        assert!(loaded(&network, None).describe(&heads).is_err());
    }

    #[test]
    fn unknown_networks_give_one_line_errors() {
        let describe = |weights: Weights| {
            Checkpoint { weights, ..Checkpoint::new(Format::TorchBare) }
                .describe(&ModelOverrides::default())
                .unwrap_err()
                .to_string()
        };
        let deep = ResNetConfig { width: 4, ..ResNetConfig::named("resnet50", 3).unwrap() };
        let mut weights = init(&deep.specs().unwrap(), 0);
        let conv =
            |out: usize, inputs: usize| Array::new([out, inputs, 1, 1], vec![0.0; out * inputs]).unwrap();
        weights.insert("layer1.0.conv2.weight".into(), conv(4, 1));
        assert!(describe(weights.clone()).contains("a ResNeXt, whose convolutions have 4 groups"));
        weights.insert("layer1.0.conv2.weight".into(), conv(8, 8));
        assert!(describe(weights).contains("a wide ResNet"));
        assert!(describe(Weights::new()).contains("neither a TinyDiT nor a ResNet"));
        // A first convolution with zero filters, and no blocks.
        let empty = |across| Array::new([0, 3, 7, across], Vec::new()).unwrap();
        assert!(describe(Weights::from([(STEM.into(), empty(7))])).contains("stages of [0, 0, 0, 0]"));
        assert!(describe(Weights::from([(PATCHES.into(), empty(7))])).contains("breed_embedder"));
        assert!(describe(Weights::from([(PATCHES.into(), empty(5))])).contains("square patches"));
    }
}
