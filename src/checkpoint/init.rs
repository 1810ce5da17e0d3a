//! Initial weights for training, from another model's file.

use std::{collections::BTreeMap, path::Path};

use tiny_cats_export::{LoadableNetwork, NetworkConfig};
use tiny_cats_models::{
    Array, Layout, Network, ResNetConfig, TinyDitConfig, Weights, resnet::NUM_BATCHES_TRACKED,
};

use super::{
    Checkpoint, Error, ErrorKind, ModelOverrides, Result, WeightsSelection,
    describe::{self, CLASSES},
    network::{mismatches, not_finite},
    open,
};

/// A file whose weights can initialize a network.
#[derive(Clone, Debug)]
pub struct InitFile {
    path: std::path::PathBuf,
    loaded: Checkpoint,
}

/// The initial weights of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialWeights {
    /// Weights by name; parameters that are not among them are initialized as in a new network.
    pub weights: Weights,
    /// Notes for the user, one line each: the skipped tensors and the new classes.
    pub notes: Vec<String>,
}

impl InitFile {
    /// Opens a file: a released model, a training state, or a PyTorch or safetensors file.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), loaded: open(path, WeightsSelection::Default)? })
    }

    fn file_error(&self) -> impl Fn(ErrorKind) -> Error + '_ {
        |problem| problem.with_path(&self.path)
    }

    /// The names of the file's classes, if known.
    fn classes(&self) -> Option<Vec<String>> {
        let description = self.loaded.describe(&ModelOverrides::default()).ok()?;
        let assumed = description.assumed.iter().any(|assumed| assumed.field == "classes");
        let numbered = description.meta.classes.iter().enumerate().all(|(i, name)| *name == i.to_string());
        (!assumed && !numbered).then_some(description.meta.classes)
    }

    /// Side of the images that the file's network is for, in pixels; `None` if it would have to be assumed.
    pub fn image_size(&self) -> Option<usize> {
        let description = self.loaded.describe(&ModelOverrides::default()).ok()?;
        let assumed = description.assumed.iter().any(|assumed| assumed.field == "image_size");
        (!assumed && !self.loaded.is_predecessor).then_some(description.meta.image_size)
    }

    /// The configuration of the file's ResNet, as far as its body implies it: depth, width, and whether batch normalizations are folded.
    ///
    /// It may have no classes. Any head and any prefix of tensor names are accepted.
    ///
    /// # Errors
    /// If the file holds no ResNet-18, 34 or 50.
    pub fn resnet(&self) -> Result<ResNetConfig> {
        self.backbone().map(|body| body.config).map_err(self.file_error())
    }

    fn backbone(&self) -> Result<Backbone, ErrorKind> {
        // A tensor of the body's last stage; no other tensor has a name that ends in this.
        const LAST: &str = "layer4.0.conv1.weight";
        let mut prefixes: Vec<&str> =
            self.loaded.weights.keys().filter_map(|name| name.strip_suffix(LAST)).collect();
        prefixes.sort_unstable_by_key(|prefix| (prefix.len(), *prefix));
        let Some(&prefix) = prefixes.first() else {
            let found = match self.loaded.describe(&ModelOverrides::default()) {
                Ok(description) => description.meta.config.to_string(),
                Err(_) => format!("no tensor whose name ends in {LAST}"),
            };
            return Err(ErrorKind::malformed(
                "network",
                format!("expected a ResNet-18, 34 or 50, found {found}"),
            ));
        };
        let is_body = |name: &str| {
            ["conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4."].iter().any(|p| name.starts_with(p))
        };
        let (mut weights, mut head, mut skipped) = (Weights::new(), Weights::new(), Vec::new());
        for (name, array) in &self.loaded.weights {
            match name.strip_prefix(prefix) {
                Some(rest) if is_body(rest) => weights.insert(rest.to_owned(), array.clone()),
                Some(rest @ ("fc.weight" | "fc.bias" | "fc.1.weight" | "fc.1.bias")) => {
                    head.insert(rest.to_owned(), array.clone())
                }
                _ => {
                    skipped.push(name.clone());
                    None
                }
            };
        }
        skipped.extend(self.loaded.source.left_out.iter().chain(self.loaded.unsupported.keys()).cloned());
        let config = ResNetConfig { classes: 1, ..describe::resnet(&weights)? };
        config.validate().map_err(|e| ErrorKind::malformed("network", e.to_string()))?;
        let integers = BTreeMap::new();
        let loaded = Checkpoint { weights, integers, ..Checkpoint::new(self.loaded.format) };
        let is_head = |line: &String| line.starts_with("fc.");
        let mismatches = mismatches(&loaded, &network_config(&config)?)?;
        if let Some(line) = mismatches.into_iter().find(|line| !is_head(line)) {
            return Err(ErrorKind::TensorMismatch(line));
        }
        let weights = loaded.weights;
        if let Some(line) = weights.iter().find_map(|(name, array)| not_finite(name, array)) {
            return Err(ErrorKind::TensorMismatch(line));
        }
        Ok(Backbone { config, weights, head, skipped })
    }

    /// The initial weights of a ResNet `config` for `classes`.
    ///
    /// They are the body, and the rows of the head whose classes the file has by name. Rows of other classes are the mean of the file's
    /// rows. A head without any such class is skipped.
    ///
    /// # Errors
    /// If the file's body differs from that of `config`.
    pub fn classifier(&self, config: &ResNetConfig, classes: &[String]) -> Result<InitialWeights> {
        let Backbone { config: found, mut weights, head, mut skipped } =
            self.backbone().map_err(self.file_error())?;
        let kind = |c: &ResNetConfig| {
            let norms = if c.batch_norm { "" } else { " without batch normalization" };
            format!("{c}{norms}")
        };
        if (found.depth, found.width, found.batch_norm) != (config.depth, config.width, config.batch_norm) {
            let (found, expected) = (kind(&found), kind(config));
            return Err(self.file_error()(ErrorKind::OtherNetwork { found, expected }));
        }
        let mut notes = Vec::new();
        let file_classes = self.classes();
        let rows = file_classes.as_deref().and_then(|file_classes| {
            let matched = match_classes(file_classes, classes);
            let at =
                |kind: &str| head.get(&format!("fc.{kind}")).or_else(|| head.get(&format!("fc.1.{kind}")));
            let [weight, bias] = [at("weight")?, at("bias")?];
            let has_shape = weight.dims() == [file_classes.len(), config.features()]
                && bias.dims() == [file_classes.len()];
            let finite = [weight, bias].iter().all(|array| array.data().iter().all(|v| v.is_finite()));
            (has_shape && finite && matched.iter().any(Option::is_some)).then_some((matched, weight, bias))
        });
        match rows {
            Some((matched, weight, bias)) => {
                let name = |kind: &str| match config.head {
                    tiny_cats_models::Head::Plain => format!("fc.{kind}"),
                    tiny_cats_models::Head::Dropout => format!("fc.1.{kind}"),
                };
                weights.insert(name("weight"), map_rows(weight, &matched, 0));
                weights.insert(name("bias"), map_rows(bias, &matched, 0));
                notes.extend(new_classes(&matched, classes));
            }
            None => skipped.extend(head.into_keys()),
        }
        skipped.retain(|name| !name.ends_with(NUM_BATCHES_TRACKED));
        skipped.sort();
        notes.extend(skipped_line(&skipped));
        Ok(InitialWeights { weights, notes })
    }

    /// The configuration of the file's TinyDiT.
    ///
    /// # Errors
    /// If the file holds no TinyDiT.
    pub fn tiny_dit(&self) -> Result<TinyDitConfig> {
        let found = self.loaded.describe(&ModelOverrides::default()).map_err(self.file_error())?.meta.config;
        found.downcast().cloned().ok_or_else(|| {
            let (found, expected) = (found.to_string(), "TinyDiT".into());
            self.file_error()(ErrorKind::OtherNetwork { found, expected })
        })
    }

    /// The initial weights of a TinyDiT `config` for `classes`.
    ///
    /// Classes that the file has by name keep their rows of the embedding; rows of other classes are the mean of the file's rows.
    ///
    /// A network for smaller images with the same number of patches is enlarged. Each value of a patch becomes a square of equal values,
    /// and weights that read them are divided by their number. So the output for enlarged images is the enlarged output for the small
    /// images (as in Karras et al., arXiv 1710.10196).
    ///
    /// # Errors
    /// If the file holds another network, or its contents are inconsistent.
    pub fn generator(&self, config: &TinyDitConfig, classes: &[String]) -> Result<InitialWeights> {
        let found = self.tiny_dit()?;
        let TinyDitConfig { image_size, patch_size, classes: count, .. } = *config;
        let factor = image_size / found.image_size.max(1);
        let adapted = TinyDitConfig { image_size, patch_size, classes: count, ..found.clone() };
        if adapted != *config
            || factor * found.image_size != image_size
            || factor * found.patch_size != patch_size
            || factor > 1 && config.layout != Layout::Modern
        {
            let [found, expected] = [&found, config].map(TinyDitConfig::to_string);
            return Err(self.file_error()(ErrorKind::OtherNetwork { found, expected }));
        }
        let mismatches = network_config(&found)
            .and_then(|network| mismatches(&self.loaded, &network))
            .map_err(self.file_error())?
            .into_iter();
        let damaged = self.loaded.weights.iter().filter_map(|(name, array)| not_finite(name, array));
        if let Some(line) = mismatches.chain(damaged).next() {
            return Err(self.file_error()(ErrorKind::TensorMismatch(line)));
        }
        let mut weights = self.loaded.weights.clone();
        if factor > 1 {
            resize_patches(&mut weights, &found, config).map_err(self.file_error())?;
        }
        let mut notes = Vec::new();
        let file_classes = self.classes();
        // A file without class names is assumed to have the same classes if their number is equal.
        let matched = match &file_classes {
            Some(file_classes) => match_classes(file_classes, classes),
            None if found.classes == count => (0..count).map(Some).collect(),
            None => vec![None; count],
        };
        let is_unchanged =
            matched.iter().enumerate().all(|(i, row)| *row == Some(i)) && found.classes == count;
        if !is_unchanged && let Some(table) = weights.get(CLASSES) {
            // The null class must stay the last row.
            let table = map_rows(table, &matched, usize::from(found.null_label().is_some()));
            weights.insert(CLASSES.into(), table);
            notes.extend(new_classes(&matched, classes));
        }
        Ok(InitialWeights { weights, notes })
    }
}

fn network_config<N: LoadableNetwork>(network: &N) -> Result<NetworkConfig, ErrorKind> {
    NetworkConfig::new(network.clone()).map_err(|e| ErrorKind::malformed("network", e.to_string()))
}

/// A ResNet without its head.
struct Backbone {
    /// The configuration, whose classes have no meaning.
    config: ResNetConfig,
    weights: Weights,
    /// The tensors of a head that is one linear layer, for any number of classes.
    head: Weights,
    /// The names of the file's other tensors.
    skipped: Vec<String>,
}

/// For each of `classes`, the index of its name in `file_classes`. Case, spaces, `_` and `-` are ignored.
fn match_classes(file_classes: &[String], classes: &[String]) -> Vec<Option<usize>> {
    let normalize = |name: &String| name.to_lowercase().replace([' ', '-'], "_");
    let rows: BTreeMap<String, usize> =
        file_classes.iter().enumerate().map(|(i, name)| (normalize(name), i)).collect();
    classes.iter().map(|name| rows.get(&normalize(name)).copied()).collect()
}

/// Selects the rows of `table` in `matched`, with the mean of all rows for `None`, and appends the last `extra_rows` rows.
fn map_rows(table: &Array, matched: &[Option<usize>], extra_rows: usize) -> Array {
    let rows = table.dims()[0];
    let width = table.data().len() / rows.max(1);
    let row = |i: usize| &table.data()[i * width..(i + 1) * width];
    let classes = rows - extra_rows;
    let mut mean = vec![0.0f64; width];
    for i in 0..classes {
        mean.iter_mut().zip(row(i)).for_each(|(sum, v)| *sum += f64::from(*v) / classes as f64);
    }
    let mean: Vec<f32> = mean.into_iter().map(|v| v as f32).collect();
    let selected_rows = matched.iter().map(|i| i.map_or(&mean[..], row)).chain((classes..rows).map(row));
    let data: Vec<f32> = selected_rows.flatten().copied().collect();
    let dims = [&[matched.len() + extra_rows], &table.dims()[1..]].concat();
    Array::new(dims, data).expect("rows have equal width")
}

fn new_classes(matched: &[Option<usize>], classes: &[String]) -> Option<String> {
    let new: Vec<&str> =
        matched.iter().zip(classes).filter(|(row, _)| row.is_none()).map(|(_, name)| name.as_str()).collect();
    let known = matched.len() - new.len();
    (!new.is_empty())
        .then(|| format!("{known} of {} classes are in the file; new: {}", matched.len(), listed(&new)))
}

fn skipped_line(skipped: &[String]) -> Option<String> {
    (!skipped.is_empty()).then(|| {
        format!("skipped {} that are not in the network: {}", tensors(skipped.len()), listed(skipped))
    })
}

fn tensors(count: usize) -> String {
    if count == 1 { "1 tensor".into() } else { format!("{count} tensors") }
}

/// Formats the first few of many names.
fn listed<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &more
}

/// Converts the weights of `small` to those of `large`, which has the same number of larger patches.
fn resize_patches(
    weights: &mut Weights,
    small: &TinyDitConfig,
    large: &TinyDitConfig,
) -> Result<(), ErrorKind> {
    let (side, patch_size) = (small.patch_size, large.patch_size);
    let factor = patch_size / side;
    // For each value of a large patch, [3, height, width], the index of its source in the small patch.
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
        let array = weights.get(name).ok_or_else(|| ErrorKind::malformed(name, "missing"))?;
        let mut dims = array.dims().to_vec();
        let values: Vec<f32> = if columns {
            dims[1] = from.len();
            let rows = array.data().chunks_exact(3 * side * side);
            rows.flat_map(|row| from.iter().map(|&i| scale * row[i])).collect()
        } else {
            let width = array.data().len() / dims[0];
            dims[0] = from.len();
            from.iter().flat_map(|&i| &array.data()[i * width..(i + 1) * width]).copied().collect()
        };
        let array = Array::new(dims, values).map_err(|e| ErrorKind::malformed(name, e.to_string()))?;
        weights.insert(name.into(), array);
    }
    Ok(())
}
