//! Every layer: the names and shapes of its parameters, and the same result natively and with candle's operations.

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use tiny_cats_models::{
    Array, Init, Input, Network, Result, Scope, Sizes, Tensor,
    candle::{CandleValue, Params, to_device, to_host, with_candle_ops},
    init,
    layers::{
        Attention, AttentionOptions, Conv1d, Conv2d, ConvBn, ConvOptions, Embedding, GroupNorm, LayerNorm,
        Linear, LinearOptions, Mlp, RmsNorm, SwiGlu,
    },
    main_output, native,
    random::noise,
};

/// Checks the parameters of a network, and compares its outputs for two items.
fn check<N: Network>(network: &N, parameters: &[(&str, &[usize])], output: &[usize]) {
    let specs = network.specs().unwrap();
    let found: Vec<(&str, &[usize])> = specs.iter().map(|spec| (&spec.name[..], &spec.dims[..])).collect();
    assert_eq!(found, parameters);
    // Values that differ from zero and one, and positive variances.
    let mut weights = init(&specs, 3);
    for (stream, (name, array)) in weights.iter_mut().enumerate() {
        let numbers = noise(5, stream as u64, array.data().len());
        let values = array.data_mut().iter_mut().zip(numbers);
        values.for_each(|(value, number)| *value = 0.3 * number + 1.0);
        if name.ends_with("running_var") {
            array.data_mut().iter_mut().for_each(|value| *value = value.abs() + 0.5);
        }
    }
    let input = &network.inputs()[0];
    let dims: Vec<usize> = std::iter::once(2).chain(input.dims(&Sizes::new()).unwrap()).collect();
    let values = match input.is_labels() {
        true => vec![2.0, 0.0],
        false => noise(7, 0, dims.iter().product()),
    };
    let x = Array::new(dims, values).unwrap();

    let built = network.build(&mut Scope::root(&mut native::Params::new(weights.clone()))).unwrap();
    let values = [native::Value::new(x.clone()).unwrap()];
    let native = main_output(N::forward(&built, &values).unwrap()).unwrap().into_array();
    let candle = with_candle_ops(|| -> Result<Array> {
        let dtype = if input.is_labels() { DType::U32 } else { DType::F32 };
        let mut params = Params::new(&weights, DType::F32, &Device::Cpu)?;
        let built = network.build(&mut Scope::root(&mut params))?;
        let value = CandleValue::new(to_device(&x, dtype, &Device::Cpu)?);
        to_host(&main_output(N::forward(&built, &[value])?)?.into_inner())
    });
    let candle = candle.unwrap();
    assert_eq!(native.dims(), [&[2], output].concat());
    assert_eq!(candle.dims(), native.dims());
    for (a, b) in native.data().iter().zip(candle.data()) {
        assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{a} and {b}");
    }
}

/// Defines a network of one layer, and checks it: input, built type, builder, forward pass, parameters and output.
macro_rules! layer {
    (
        $name:ident, $input:expr, $built:ident, |$scope:ident| $build:expr, $output:expr,
        [$($parameter:literal: $dims:expr),* $(,)?]
    ) => {
        #[test]
        fn $name() {
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            struct OneLayer {}

            impl Network for OneLayer {
                const KIND: &'static str = stringify!($name);
                type Built<T: Tensor> = $built<T>;

                fn inputs(&self) -> Vec<Input> {
                    vec![$input]
                }

                fn outputs(&self) -> Vec<String> {
                    vec!["y".into()]
                }

                fn build<T: Tensor>(&self, $scope: &mut Scope<T>) -> Result<$built<T>> {
                    $build
                }

                fn forward<T: Tensor>(layer: &$built<T>, inputs: &[T]) -> Result<Vec<T>> {
                    Ok(vec![layer.forward(&inputs[0])?])
                }
            }

            check(&OneLayer {}, &[$(($parameter, &$dims)),*], &$output);
        }
    };
}

layer!(linear, Input::floats("x", [3, 4]), Linear, |scope| Linear::new(scope.sub("fc"), 4, 5), [3, 5], [
    "fc.weight": [5, 4], "fc.bias": [5],
]);
layer!(
    linear_without_a_bias, Input::floats("x", [4]), Linear,
    |scope| Linear::with_options(scope.sub("fc"), 4, 2, LinearOptions { bias: false, ..LinearOptions::default() }),
    [2], ["fc.weight": [2, 4]]
);
layer!(
    conv2d_with_stride_and_padding, Input::floats("x", [2, 7, 6]), Conv2d,
    |scope| {
        let options = ConvOptions { stride: 2, padding: 1, ..ConvOptions::default() };
        Conv2d::with_options(scope.sub("conv"), 2, 3, 3, options)
    },
    [3, 4, 3], ["conv.weight": [3, 2, 3, 3], "conv.bias": [3]]
);
layer!(
    conv2d_with_groups_and_dilation, Input::floats("x", [4, 8, 8]), Conv2d,
    |scope| {
        let options = ConvOptions { padding: 2, dilation: 2, groups: 2, ..ConvOptions::default() };
        Conv2d::with_options(scope.sub("conv"), 4, 6, 3, options)
    },
    [6, 8, 8], ["conv.weight": [6, 2, 3, 3], "conv.bias": [6]]
);
layer!(
    conv_bn, Input::floats("x", [2, 6, 6]), ConvBn,
    |scope| ConvBn::new(scope, ["conv", "bn"], [2, 4, 3], ConvOptions::default(), Init::Ones, false),
    [4, 4, 4],
    [
        "conv.weight": [4, 2, 3, 3], "bn.weight": [4], "bn.bias": [4], "bn.running_mean": [4],
        "bn.running_var": [4],
    ]
);
layer!(
    folded_conv_bn, Input::floats("x", [2, 6, 6]), ConvBn,
    |scope| ConvBn::new(scope, ["conv", "bn"], [2, 4, 3], ConvOptions::default(), Init::Ones, true),
    [4, 4, 4], ["conv.weight": [4, 2, 3, 3], "conv.bias": [4]]
);
layer!(
    conv1d, Input::floats("x", [2, 9]), Conv1d,
    |scope| Conv1d::with_options(scope.sub("conv"), 2, 3, 3, ConvOptions { padding: 1, ..ConvOptions::default() }),
    [3, 9], ["conv.weight": [3, 2, 3], "conv.bias": [3]]
);
layer!(layer_norm, Input::floats("x", [3, 8]), LayerNorm, |scope| LayerNorm::new(scope.sub("n"), 8, 1e-5), [3, 8], [
    "n.weight": [8], "n.bias": [8],
]);
layer!(rms_norm, Input::floats("x", [3, 8]), RmsNorm, |scope| RmsNorm::new(scope.sub("n"), 8, 1e-6), [3, 8], [
    "n.weight": [8],
]);
layer!(
    group_norm, Input::floats("x", [4, 3, 3]), GroupNorm,
    |scope| GroupNorm::new(scope.sub("n"), 2, 4, 1e-5), [4, 3, 3], ["n.weight": [4], "n.bias": [4]]
);
layer!(mlp, Input::floats("x", [3, 4]), Mlp, |scope| Mlp::new(scope.sub("mlp"), 4, 6), [3, 4], [
    "mlp.fc1.weight": [6, 4], "mlp.fc1.bias": [6], "mlp.fc2.weight": [4, 6], "mlp.fc2.bias": [4],
]);
layer!(swiglu, Input::floats("x", [3, 4]), SwiGlu, |scope| SwiGlu::new(scope.sub("mlp"), 4, 6), [3, 4], [
    "mlp.w12.weight": [12, 4], "mlp.w3.weight": [4, 6],
]);
layer!(
    attention_with_qk_norm, Input::floats("x", [5, 8]), Attention,
    |scope| {
        let options = AttentionOptions { qkv_bias: true, qk_norm: Some(1e-6) };
        Attention::new(scope.sub("attn"), 8, 2, options)
    },
    [5, 8],
    [
        "attn.qkv.weight": [24, 8], "attn.qkv.bias": [24], "attn.q_norm.weight": [4],
        "attn.k_norm.weight": [4], "attn.proj.weight": [8, 8], "attn.proj.bias": [8],
    ]
);
layer!(embedding, Input::labels("label", 3), Embedding, |scope| Embedding::new(scope.sub("e"), 3, 5), [5], [
    "e.weight": [3, 5],
]);
