//! Grouped 2-D convolution: group by group as matrix products, or directly if each group has one input channel (depthwise convolution).

use rayon::prelude::*;

use super::{
    Real,
    im2col::{self, Conv},
    norm::sum_of_products,
    product::Factor,
    simd::vectorized,
    window::Window,
};

impl Conv {
    /// Returns the convolution of one group.
    fn group(self) -> Self {
        Self { channels: self.channels / self.groups, out: self.out / self.groups, groups: 1, ..self }
    }
}

/// Copies the `len` values from `start` of each item of `item_len` values.
fn gather_group<F: Real>(values: &[F], item_len: usize, start: usize, len: usize) -> Vec<F> {
    let items = values.chunks_exact(item_len);
    items.flat_map(|item| &item[start..start + len]).copied().collect()
}

/// Copies `part` back into `values`: the reverse of [`gather_group`].
fn scatter_group<F: Real>(part: &[F], values: &mut [F], item_len: usize, start: usize, len: usize) {
    for (item, part) in values.chunks_exact_mut(item_len).zip(part.chunks_exact(len)) {
        item[start..start + len].copy_from_slice(part);
    }
}

/// See [`conv::forward`](super::conv::forward). A depthwise convolution multiplies the numbers unrounded, whatever `P` is.
pub(super) fn forward<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    bias: Option<&[P::Number]>,
) -> Vec<P::Number> {
    let group = conv.group();
    if group.channels == 1 {
        return depthwise(conv, x, weight, bias);
    }
    let mut y = vec![P::Number::from_f64(0.0); x.len() / conv.input_len() * conv.output_len()];
    for (i, weight) in weight.chunks_exact(weight.len() / conv.groups).enumerate() {
        let x = gather_group(x, conv.input_len(), i * group.input_len(), group.input_len());
        let bias = bias.map(|bias| &bias[i * group.out..(i + 1) * group.out]);
        let part = im2col::forward::<P>(group, &x, weight, bias);
        scatter_group(&part, &mut y, conv.output_len(), i * group.output_len(), group.output_len());
    }
    y
}

/// See [`conv::backward`](super::conv::backward).
pub(super) fn backward<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    grad: &[P::Number],
    need_x: bool,
) -> (Option<Vec<P::Number>>, Vec<P::Number>) {
    let group = conv.group();
    if group.channels == 1 {
        return depthwise_backward(conv, x, weight, grad, need_x);
    }
    let mut grad_x = vec![P::Number::from_f64(0.0); if need_x { x.len() } else { 0 }];
    let mut grad_weight = Vec::with_capacity(weight.len());
    for (i, weight) in weight.chunks_exact(weight.len() / conv.groups).enumerate() {
        let x = gather_group(x, conv.input_len(), i * group.input_len(), group.input_len());
        let grad = gather_group(grad, conv.output_len(), i * group.output_len(), group.output_len());
        let (part, weights) = im2col::backward::<P>(group, &x, weight, &grad, need_x);
        grad_weight.extend(weights);
        if let Some(part) = part {
            scatter_group(&part, &mut grad_x, conv.input_len(), i * group.input_len(), group.input_len());
        }
    }
    (need_x.then_some(grad_x), grad_weight)
}

/// Calls `f(k, output, input, len)` for each output row and each kernel position `k`. There, the `len` outputs from index `output` depend
/// on inputs from index `input`, which are a stride apart.
#[inline(always)]
fn for_each_segment(w: Window, mut f: impl FnMut(usize, usize, usize, usize)) {
    for y in 0..w.rows {
        for (k, (ky, kx)) in (0..w.kernel[0] * w.kernel[1]).map(|k| (k, (k / w.kernel[1], k % w.kernel[1]))) {
            let (columns, first) = w.valid_columns(kx);
            if let Some(row) = w.input_row(y, ky).filter(|_| !columns.is_empty()) {
                f(k, y * w.cols + columns.start, row * w.width + first, columns.len());
            }
        }
    }
}

vectorized! {
    /// Adds the convolution of a plane `x` to the plane `y`.
    fn add_convolution<F: Real>(w: Window, x: &[F], weight: &[F], y: &mut [F]) {
        for_each_segment(w, |k, output, input, len| {
            let (y, weight) = (&mut y[output..output + len], weight[k]);
            if w.stride[1] == 1 {
                y.iter_mut().zip(&x[input..input + len]).for_each(|(y, &x)| *y += weight * x);
            } else {
                y.iter_mut().zip(x[input..].iter().step_by(w.stride[1])).for_each(|(y, &x)| *y += weight * x);
            }
        });
    }
}

vectorized! {
    /// Adds the gradient of the plane `x` to `grad_x`.
    fn add_input_gradient<F: Real>(w: Window, grad: &[F], weight: &[F], grad_x: &mut [F]) {
        for_each_segment(w, |k, output, input, len| {
            let (grad, weight) = (&grad[output..output + len], weight[k]);
            if w.stride[1] == 1 {
                let target = &mut grad_x[input..input + len];
                target.iter_mut().zip(grad).for_each(|(x, &grad)| *x += weight * grad);
            } else {
                let target = grad_x[input..].iter_mut().step_by(w.stride[1]);
                target.zip(grad).for_each(|(x, &grad)| *x += weight * grad);
            }
        });
    }
}

vectorized! {
    /// Adds the gradient of the weights of one plane to `sums`.
    fn add_weight_gradient<F: Real>(w: Window, x: &[F], grad: &[F], sums: &mut [f64]) {
        for_each_segment(w, |k, output, input, len| {
            let grad = &grad[output..output + len];
            let sum: F = if w.stride[1] == 1 {
                sum_of_products(&x[input..input + len], grad, |x| x)
            } else {
                x[input..].iter().step_by(w.stride[1]).zip(grad).map(|(&x, &grad)| x * grad).sum()
            };
            sums[k] += sum.into();
        });
    }
}

fn depthwise<F: Real>(conv: Conv, x: &[F], weight: &[F], bias: Option<&[F]>) -> Vec<F> {
    let (w, multiplier) = (conv.window, conv.out / conv.channels);
    let kernel = w.kernel[0] * w.kernel[1];
    let mut y = vec![F::from_f64(0.0); x.len() / w.input_len() * multiplier * w.output_len()];
    y.par_chunks_mut(w.output_len()).enumerate().for_each(|(i, y)| {
        let out = i % conv.out;
        if let Some(bias) = bias {
            y.fill(bias[out]);
        }
        let x = &x[i / multiplier * w.input_len()..][..w.input_len()];
        add_convolution(w, x, &weight[out * kernel..][..kernel], y);
    });
    y
}

fn depthwise_backward<F: Real>(
    conv: Conv,
    x: &[F],
    weight: &[F],
    grad: &[F],
    need_x: bool,
) -> (Option<Vec<F>>, Vec<F>) {
    let (w, multiplier) = (conv.window, conv.out / conv.channels);
    let kernel = w.kernel[0] * w.kernel[1];
    let grad_x = need_x.then(|| {
        let mut grad_x = vec![F::from_f64(0.0); x.len()];
        grad_x.par_chunks_mut(w.input_len()).enumerate().for_each(|(i, grad_x)| {
            let weights = weight[i % conv.channels * multiplier * kernel..].chunks_exact(kernel);
            let grads = grad[i * multiplier * w.output_len()..].chunks_exact(w.output_len());
            for (weight, grad) in weights.zip(grads).take(multiplier) {
                add_input_gradient(w, grad, weight, grad_x);
            }
        });
        grad_x
    });
    let mut grad_weight = vec![F::from_f64(0.0); weight.len()];
    grad_weight.par_chunks_mut(kernel).enumerate().for_each(|(out, grad_weight)| {
        let mut sums = vec![0.0; kernel];
        let planes = x.chunks_exact(w.input_len()).skip(out / multiplier).step_by(conv.channels);
        let grads = grad.chunks_exact(w.output_len()).skip(out).step_by(conv.out);
        planes.zip(grads).for_each(|(x, grad)| add_weight_gradient(w, x, grad, &mut sums));
        grad_weight.iter_mut().zip(sums).for_each(|(to, sum)| *to = F::from_f64(sum));
    });
    (grad_x, grad_weight)
}

#[cfg(test)]
mod tests {
    use super::{super::conv, *};
    use crate::{Conv2dOptions, random::noise};

    fn values(stream: u64, n: usize) -> Vec<f64> {
        noise(3, stream, n).into_iter().map(f64::from).collect()
    }

    fn assert_close(name: &str, found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{name}");
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "{name}, value {i}: {a} and {b}");
        }
    }

    /// A grouped convolution equals a dense one whose weights between groups are zero.
    #[test]
    fn a_grouped_convolution_matches_a_dense_one_with_zeros() {
        let options = [
            Conv2dOptions::square(1, 1),
            Conv2dOptions { stride: [2, 1], padding: [0, 2], dilation: [1, 2], groups: 1 },
            Conv2dOptions { stride: [3, 2], padding: [2, 1], dilation: [2, 1], groups: 1 },
        ];
        let sizes = [(4, 4, 4), (3, 6, 3), (4, 6, 2), (6, 3, 3)];
        let sizes = if cfg!(miri) { &sizes[..2] } else { &sizes[..] };
        for (options, &(channels, out, groups)) in
            options.iter().flat_map(|o| sizes.iter().map(move |s| (o, s)))
        {
            let window = Window::new([7, 9], [3, 2], *options).unwrap();
            let conv = Conv { channels, out, groups, window };
            let dense = Conv { groups: 1, ..conv };
            let (x, grad) = (values(0, 2 * conv.input_len()), values(1, 2 * conv.output_len()));
            let (inputs, outputs) = (channels / groups, out / groups);
            let (weight, bias) = (values(2, out * inputs * 6), values(3, out));
            let mut dense_weight = vec![0.0; out * channels * 6];
            // The index of a grouped weight in the dense weight.
            let index = |i: usize| {
                let (o, c) = (i / (inputs * 6), i / 6 % inputs);
                (o * channels + o / outputs * inputs + c) * 6 + i % 6
            };
            (0..weight.len()).for_each(|i| dense_weight[index(i)] = weight[i]);
            let name = format!("{conv:?}");
            let y = conv::forward::<f64>(conv, &x, &weight, Some(&bias), true);
            assert_close(&name, &y, &im2col::forward::<f64>(dense, &x, &dense_weight, Some(&bias)));
            let (grad_x, grad_weight) = conv::backward::<f64>(conv, &x, &weight, &grad, true);
            let (expected_x, expected) = im2col::backward::<f64>(dense, &x, &dense_weight, &grad, true);
            assert_close(&name, &grad_x.unwrap(), &expected_x.unwrap());
            let expected: Vec<f64> = (0..weight.len()).map(|i| expected[index(i)]).collect();
            assert_close(&name, &grad_weight, &expected);
            assert!(conv::backward::<f64>(conv, &x, &weight, &grad, false) == (None, grad_weight), "{name}");
        }
    }
}
