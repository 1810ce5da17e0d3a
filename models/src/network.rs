//! The interface that every network implements: defined once, it is trained, exported, verified, planned and served.

use std::{collections::BTreeMap, fmt::Debug};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Error, Init, ParamSpec, Result, Scope, TapeOptions, Tensor, Weights,
    cost::{Cost, CostSummary, Counter},
};

/// The sizes of free axes, by name: see [`Axis::Free`].
pub type Sizes = BTreeMap<String, usize>;

/// An axis of an input, after the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    /// An axis of this size.
    Fixed(usize),
    /// An axis whose size the network does not depend on, such as an image's height. It is chosen when the network is exported or planned.
    /// Axes of the same name have the same size.
    Free(String),
}

impl Axis {
    /// Returns the free axis called `name`.
    pub fn free(name: impl Into<String>) -> Self {
        Self::Free(name.into())
    }
}

impl From<usize> for Axis {
    fn from(size: usize) -> Self {
        Self::Fixed(size)
    }
}

/// The values of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputValues {
    /// Floating-point numbers.
    Floats,
    /// Integers below this number, such as class labels.
    Labels(usize),
}

/// An input of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Name, which is also that of the exported graph's input.
    pub name: String,
    /// The axes after the batch.
    pub axes: Vec<Axis>,
    /// The values.
    pub values: InputValues,
}

impl Input {
    /// Returns an input of floating-point numbers, `[batch, axes..]`.
    pub fn floats(name: impl Into<String>, axes: impl IntoIterator<Item = impl Into<Axis>>) -> Self {
        let axes = axes.into_iter().map(Into::into).collect();
        Self { name: name.into(), axes, values: InputValues::Floats }
    }

    /// Returns an input of one integer below `count` for each item, `[batch]`.
    pub fn labels(name: impl Into<String>, count: usize) -> Self {
        Self { name: name.into(), axes: Vec::new(), values: InputValues::Labels(count) }
    }

    /// True if the values are labels.
    pub fn is_labels(&self) -> bool {
        matches!(self.values, InputValues::Labels(_))
    }

    /// Returns a description such as `x [batch, 3, height, width]`.
    pub fn describe(&self) -> String {
        let axes = self.axes.iter().map(|axis| match axis {
            Axis::Fixed(size) => format!(", {size}"),
            Axis::Free(name) => format!(", {name}"),
        });
        let values = if self.is_labels() { " of labels" } else { "" };
        format!("{} [batch{}]{values}", self.name, axes.collect::<String>())
    }

    /// Returns the sizes of the free axes for a value of the sizes `dims`, without the batch.
    ///
    /// # Errors
    /// [`Error::Shape`] if `dims` are not sizes of this input.
    pub fn sizes(&self, dims: &[usize]) -> Result<Sizes> {
        let mut sizes = Sizes::new();
        let matches = self.axes.len() == dims.len()
            && self.axes.iter().zip(dims).all(|(axis, &size)| match axis {
                Axis::Fixed(expected) => *expected == size,
                Axis::Free(name) => *sizes.entry(name.clone()).or_insert(size) == size,
            });
        if matches { Ok(sizes) } else { Err(Error::shape("network", self.describe(), dims)) }
    }

    /// Returns the sizes of the axes after the batch.
    ///
    /// # Errors
    /// [`Error::FreeAxis`] if `sizes` lacks a free axis.
    pub fn dims(&self, sizes: &Sizes) -> Result<Vec<usize>> {
        let size = |axis: &Axis| match axis {
            Axis::Fixed(size) => Ok(*size),
            Axis::Free(name) => sizes
                .get(name)
                .copied()
                .ok_or_else(|| Error::FreeAxis { input: self.name.clone(), axis: name.clone() }),
        };
        self.axes.iter().map(size).collect()
    }
}

/// The quantity that a generator predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PredictionType {
    /// The clean image x̂.
    X,
    /// The velocity x₁ − x₀ of the straight path from noise x₀ to image x₁.
    Velocity,
}

/// The role of a network: which of our tasks, samplers and programs can use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A class-conditional generator, trained by flow matching (arXiv 2210.02747). The inputs are the noisy value `x`, its time `t` `[]`
    /// from 0 (noise) to 1 (data), and a label `[]`. The main output has the shape of `x`.
    Generator {
        /// Number of classes, without a null class.
        classes: usize,
        /// Label of the null class for classifier-free guidance (arXiv 2207.12598), if the network has one.
        null_label: Option<usize>,
        /// The quantity that the main output is.
        prediction: PredictionType,
    },
    /// A classifier. It has one input, and its main output is one logit for each class.
    Classifier {
        /// Number of classes.
        classes: usize,
    },
    /// Any other network.
    #[default]
    Other,
}

impl Role {
    /// Returns the number of classes, if the network has classes.
    pub fn classes(self) -> Option<usize> {
        match self {
            Self::Generator { classes, .. } | Self::Classifier { classes } => Some(classes),
            Self::Other => None,
        }
    }
}

/// A network, defined once over all backends. The type that implements it is its configuration: what it takes to build the definition.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tiny_cats_models::{Input, Network, Result, Scope, Sizes, Tensor, layers::Linear};
///
/// #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
/// struct TwoLayers {
///     hidden: usize,
/// }
///
/// impl Network for TwoLayers {
///     const KIND: &'static str = "two-layers";
///     type Built<T: Tensor> = [Linear<T>; 2];
///
///     fn inputs(&self) -> Vec<Input> {
///         vec![Input::floats("x", [4])]
///     }
///
///     fn outputs(&self) -> Vec<String> {
///         vec!["y".into()]
///     }
///
///     fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<[Linear<T>; 2]> {
///         Ok([
///             Linear::new(scope.sub("fc1"), 4, self.hidden)?,
///             Linear::new(scope.sub("fc2"), self.hidden, 1)?,
///         ])
///     }
///
///     fn forward<T: Tensor>([fc1, fc2]: &[Linear<T>; 2], inputs: &[T]) -> Result<Vec<T>> {
///         Ok(vec![fc2.forward(&fc1.forward(&inputs[0])?.relu()?)?])
///     }
/// }
///
/// let network = TwoLayers { hidden: 8 };
/// assert_eq!(network.cost(&Sizes::new())?.parameters(), 4 * 8 + 8 + 8 + 1);
/// # Ok::<(), tiny_cats_models::Error>(())
/// ```
pub trait Network: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name of this kind of network in files. It must be unique, and stay the same.
    const KIND: &'static str;

    /// The network in a backend: its layers.
    type Built<T: Tensor>;

    /// Checks that the configuration describes a network. Configurations come from files, so sizes must be bounded.
    ///
    /// # Errors
    /// [`Error::Config`] with the first invalid field.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the inputs, in the order of [`forward`](Self::forward).
    fn inputs(&self) -> Vec<Input>;

    /// Returns the names of the outputs, in the order of [`forward`](Self::forward). The first is the main output: it is trained, exported
    /// and verified. Others, such as features, exist in backends of the definition only.
    fn outputs(&self) -> Vec<String>;

    /// Returns the role of the network.
    fn role(&self) -> Role {
        Role::Other
    }

    /// Builds the network from the parameters of `scope`, always in the same order.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<Self::Built<T>>;

    /// Computes one forward pass: values in the order of [`inputs`](Self::inputs) → values in the order of [`outputs`](Self::outputs).
    ///
    /// # Errors
    /// [`Error::Shape`] for inputs of other sizes.
    fn forward<T: Tensor>(network: &Self::Built<T>, inputs: &[T]) -> Result<Vec<T>>;

    /// Returns the network and weights for inference. By default they are unchanged; a network may fold batch normalizations.
    ///
    /// # Errors
    /// If weights are missing or have another shape.
    fn for_inference(&self, weights: &Weights) -> Result<(Self, Weights)> {
        Ok((self.clone(), weights.clone()))
    }

    /// Returns a description in one line, such as its name and sizes.
    fn describe(&self) -> String {
        Self::KIND.into()
    }

    /// Returns a longer description, line by line.
    fn details(&self) -> Vec<String> {
        vec![self.describe()]
    }

    /// True if `weights` are as initialized. By default, that is the case if all parameters that start as zeros or ones still are.
    fn is_untrained(&self, weights: &Weights) -> bool {
        let Ok(specs) = self.specs() else { return false };
        let constants = specs.iter().filter_map(|spec| match spec.init {
            Init::Zeros => Some((&spec.name, 0.0)),
            Init::Ones => Some((&spec.name, 1.0)),
            _ => None,
        });
        let mut found = constants.filter_map(|(name, value)| Some((weights.get(name)?, value))).peekable();
        found.peek().is_some() && found.all(|(array, value)| array.data().iter().all(|&v| v == value))
    }

    /// Returns every parameter and running statistic, in the order of the definition.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration describes no network.
    fn specs(&self) -> Result<Vec<ParamSpec>> {
        let mut counter = Counter::default();
        self.validate()?;
        self.build(&mut Scope::root(&mut counter))?;
        Ok(counter.summary().params)
    }

    /// Returns the parameters and the operations of one forward pass, from the cost backend.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration describes no network, [`Error::FreeAxis`] if `sizes` lacks a free axis, and [`Error::Shape`]
    /// for sizes out of bounds.
    fn cost(&self, sizes: &Sizes) -> Result<CostSummary> {
        let counter = Counter::default();
        forward_cost(self, &counter, sizes)?;
        Ok(counter.summary())
    }

    /// Returns the peak memory of one training step of `batch` items, in bytes, without weights and batch: see [`Counter::training_bytes`].
    ///
    /// # Errors
    /// As [`cost`](Self::cost).
    fn training_bytes(&self, sizes: &Sizes, batch: usize, options: TapeOptions) -> Result<u64> {
        let counter = Counter::training(batch, options);
        let output = forward_cost(self, &counter, sizes)?;
        counter.training_bytes(output)
    }
}

/// Evaluates a network in the cost backend, and returns its main output.
fn forward_cost<N: Network>(network: &N, counter: &Counter, sizes: &Sizes) -> Result<Cost> {
    network.validate()?;
    let built = network.build(&mut Scope::root(&mut counter.clone()))?;
    let input = |input: &Input| Ok(counter.input(&input.dims(sizes)?));
    let inputs = network.inputs().iter().map(input).collect::<Result<Vec<_>>>()?;
    let outputs = N::forward(&built, &inputs)?;
    let names = network.outputs();
    if outputs.len() != names.len() {
        return Err(Error::shape("forward", format!("the outputs {}", names.join(", ")), outputs.len()));
    }
    main_output(outputs)
}

/// Returns the main output of a forward pass.
///
/// # Errors
/// [`Error::Shape`] if there is none.
pub fn main_output<T: Tensor>(outputs: Vec<T>) -> Result<T> {
    outputs.into_iter().next().ok_or_else(|| Error::shape("forward", "at least one output", 0))
}
