//! Shapes of results, for all backends. All shapes are without the batch.

use crate::{Conv1dOptions, Conv2dOptions, Error, Result};

pub(crate) fn same(op: &'static str, a: &[usize], b: &[usize]) -> Result<()> {
    if a == b { Ok(()) } else { Err(Error::shape(op, format!("{a:?}"), b)) }
}

fn last(op: &'static str, x: &[usize]) -> Result<usize> {
    x.last()
        .copied()
        .filter(|&n| n > 0)
        .ok_or_else(|| Error::shape(op, "at least one axis after the batch", x))
}

/// Returns the shape of [`Tensor::linear`](crate::Tensor::linear).
pub fn linear(x: &[usize], weight: &[usize], bias: Option<&[usize]>) -> Result<Vec<usize>> {
    let width = last("linear", x)?;
    let &[out, input] = weight else { return Err(Error::shape("linear", "a weight [out, in]", weight)) };
    if input != width {
        return Err(Error::shape("linear", format!("a last axis of {input}"), x));
    }
    if let Some(bias) = bias {
        same("linear", &[out], bias)?;
    }
    let mut dims = x.to_vec();
    *dims.last_mut().expect("checked by `last`") = out;
    Ok(dims)
}

/// Returns the number of windows along an axis of `size`; `None` if none fits.
pub fn windows(size: usize, kernel: usize, stride: usize, padding: usize) -> Option<usize> {
    (kernel > 0 && stride > 0).then_some(())?;
    Some((size + 2 * padding).checked_sub(kernel)? / stride + 1)
}

/// Returns the number of windows along height and width; `None` if none fits.
pub(crate) fn windows2d(size: [usize; 2], kernel: [usize; 2], options: Conv2dOptions) -> Option<[usize; 2]> {
    let Conv2dOptions { stride, padding, dilation, .. } = options;
    let count = |axis: usize| {
        let extent = kernel[axis].checked_sub(1)?.checked_mul(dilation[axis])?.checked_add(1)?;
        padding[axis].checked_mul(2)?.checked_add(size[axis])?;
        windows(size[axis], extent, stride[axis], padding[axis]).filter(|_| dilation[axis] > 0)
    };
    Some([count(0)?, count(1)?])
}

/// Returns the shape of [`Tensor::conv2d_with_options`](crate::Tensor::conv2d_with_options).
pub fn conv2d(
    x: &[usize],
    weight: &[usize],
    bias: Option<&[usize]>,
    options: Conv2dOptions,
) -> Result<Vec<usize>> {
    let (&[channels, height, width], &[out, input, kernel_height, kernel_width]) = (x, weight) else {
        return Err(Error::shape(
            "conv2d",
            "x [channels, height, width] and weight [out, in, height, width]",
            (x, weight),
        ));
    };
    let weight = [out, input, kernel_height, kernel_width];
    let [rows, cols] = convolution("conv2d", [channels, height, width], weight, bias, options)?
        .ok_or_else(|| Error::shape("conv2d", format!("an input that fits {weight:?}, {options:?}"), x))?;
    Ok(vec![out, rows, cols])
}

/// Returns the shape of [`Tensor::conv1d`](crate::Tensor::conv1d).
pub fn conv1d(
    x: &[usize],
    weight: &[usize],
    bias: Option<&[usize]>,
    options: Conv1dOptions,
) -> Result<Vec<usize>> {
    let (&[channels, length], &[out, input, kernel]) = (x, weight) else {
        let expected = "x [channels, length] and weight [out, in, kernel]";
        return Err(Error::shape("conv1d", expected, (x, weight)));
    };
    let dims = [out, input, 1, kernel];
    let [_, length] = convolution("conv1d", [channels, 1, length], dims, bias, options.into())?
        .ok_or_else(|| Error::shape("conv1d", format!("an input that fits {weight:?}, {options:?}"), x))?;
    Ok(vec![out, length])
}

/// Returns rows and columns of a convolution's result; `None` if input, weight and options do not fit together.
fn convolution(
    op: &'static str,
    [channels, height, width]: [usize; 3],
    [out, input, kernel_height, kernel_width]: [usize; 4],
    bias: Option<&[usize]>,
    options: Conv2dOptions,
) -> Result<Option<[usize; 2]>> {
    if let Some(bias) = bias {
        same(op, &[out], bias)?;
    }
    let groups = options.groups;
    let fits = match groups {
        1 => channels == input,
        _ => groups > 0 && out > 0 && out.is_multiple_of(groups) && input > 0 && channels == input * groups,
    };
    Ok(windows2d([height, width], [kernel_height, kernel_width], options).filter(|_| fits))
}

/// Returns the shape of [`Tensor::max_pool2d`](crate::Tensor::max_pool2d) and [`Tensor::avg_pool2d`](crate::Tensor::avg_pool2d).
pub fn pool2d(x: &[usize], kernel: usize, stride: usize, padding: usize) -> Result<Vec<usize>> {
    let error =
        || Error::shape("pool2d", format!("[channels, height, width] that a window of {kernel} fits"), x);
    let &[channels, height, width] = x else { return Err(error()) };
    let count = |n| windows(n, kernel, stride, padding).ok_or_else(error);
    if 2 * padding > kernel {
        return Err(Error::shape("pool2d", "padding of at most half the window", padding));
    }
    Ok(vec![channels, count(height)?, count(width)?])
}

/// Checks the channel parameters of [`Tensor::batch_norm`](crate::Tensor::batch_norm), and returns the shape.
pub fn batch_norm(x: &[usize], params: [&[usize]; 4]) -> Result<Vec<usize>> {
    let &[channels, _, _] = x else { return Err(Error::shape("batch_norm", "[channels, height, width]", x)) };
    params.iter().try_for_each(|p| same("batch_norm", &[channels], p))?;
    Ok(x.to_vec())
}

/// Checks the parameters of a normalization over the last axis, and returns the shape.
pub fn norm(op: &'static str, x: &[usize], params: &[&[usize]]) -> Result<Vec<usize>> {
    let width = last(op, x)?;
    params.iter().try_for_each(|p| same(op, &[width], p))?;
    Ok(x.to_vec())
}

/// Checks `x` `[tokens, width]` against vectors `[width]`, one for each item, and returns the shape.
pub fn modulation(op: &'static str, x: &[usize], vectors: [&[usize]; 2]) -> Result<Vec<usize>> {
    let &[tokens, width] = x else { return Err(Error::shape(op, "[tokens, width]", x)) };
    if tokens == 0 || width == 0 {
        return Err(Error::shape(op, "at least one token and one channel", x));
    }
    vectors.iter().try_for_each(|v| same(op, &[width], v))?;
    Ok(x.to_vec())
}

/// Returns the shape of [`Tensor::attention`](crate::Tensor::attention).
pub fn attention(query: &[usize], key: &[usize], value: &[usize]) -> Result<Vec<usize>> {
    if query.len() != 3 || query.contains(&0) {
        return Err(Error::shape("attention", "[tokens, heads, d], none of them 0", query));
    }
    same("attention", query, key)?;
    same("attention", query, value)?;
    Ok(query.to_vec())
}

/// Returns the shape of [`Tensor::embedding`](crate::Tensor::embedding).
pub fn embedding(x: &[usize], table: &[usize]) -> Result<Vec<usize>> {
    match (x, table) {
        (&[], &[_, width]) => Ok(vec![width]),
        _ => Err(Error::shape("embedding", "one number for each item and a table [rows, width]", (x, table))),
    }
}

/// Returns the shape of [`Tensor::sinusoids`](crate::Tensor::sinusoids).
pub fn sinusoids(x: &[usize], width: usize) -> Result<Vec<usize>> {
    match x {
        [] if width > 0 && width.is_multiple_of(2) => Ok(vec![width]),
        _ => Err(Error::shape("sinusoids", "one number for each item and an even width", (x, width))),
    }
}

/// Returns the shape of [`Tensor::swiglu`](crate::Tensor::swiglu).
pub fn swiglu(x: &[usize]) -> Result<Vec<usize>> {
    let width = last("swiglu", x)?;
    if !width.is_multiple_of(2) {
        return Err(Error::shape("swiglu", "an even last axis", x));
    }
    let mut dims = x.to_vec();
    *dims.last_mut().expect("checked by `last`") = width / 2;
    Ok(dims)
}

/// Returns the shape of [`Tensor::softmax`](crate::Tensor::softmax).
pub fn softmax(x: &[usize]) -> Result<Vec<usize>> {
    last("softmax", x).map(|_| x.to_vec())
}

/// Returns the shape of [`Tensor::reshape`](crate::Tensor::reshape).
pub fn reshape(x: &[usize], dims: &[usize]) -> Result<Vec<usize>> {
    let count = |d: &[usize]| d.iter().try_fold(1usize, |n, &k| n.checked_mul(k));
    match (count(x), count(dims)) {
        (Some(a), Some(b)) if a == b => Ok(dims.to_vec()),
        _ => Err(Error::shape("reshape", format!("as many values as {dims:?}"), x)),
    }
}

/// Returns the shape of [`Tensor::permute`](crate::Tensor::permute).
pub fn permute(x: &[usize], order: &[usize]) -> Result<Vec<usize>> {
    let mut seen = order.to_vec();
    seen.sort_unstable();
    if seen.iter().copied().ne(0..x.len()) {
        return Err(Error::shape("permute", format!("each of {} axes once", x.len()), order));
    }
    Ok(order.iter().map(|&i| x[i]).collect())
}

/// Returns the shape of [`Tensor::concat`](crate::Tensor::concat).
pub fn concat(parts: &[&[usize]], axis: usize) -> Result<Vec<usize>> {
    let first = parts.first().ok_or_else(|| Error::shape("concat", "at least one part", 0))?;
    if axis >= first.len() {
        return Err(Error::shape("concat", format!("an axis {axis}"), first));
    }
    let mut dims = first.to_vec();
    dims[axis] = 0;
    for part in parts {
        let mut expected = dims.clone();
        expected[axis] = part.get(axis).copied().unwrap_or(0);
        same("concat", &expected, part)?;
        dims[axis] += part[axis];
    }
    Ok(dims)
}

/// Returns the shape of [`Tensor::slice`](crate::Tensor::slice).
pub fn slice(x: &[usize], axis: usize, start: usize, len: usize) -> Result<Vec<usize>> {
    let fits = |&n: &usize| len > 0 && start.checked_add(len).is_some_and(|end| end <= n);
    if !x.get(axis).is_some_and(fits) {
        return Err(Error::shape("slice", format!("positions {start} to {start}+{len} on axis {axis}"), x));
    }
    let mut dims = x.to_vec();
    dims[axis] = len;
    Ok(dims)
}

/// Returns the shape of each part of [`Tensor::chunk`](crate::Tensor::chunk).
pub fn chunk(x: &[usize], n: usize, axis: usize) -> Result<Vec<usize>> {
    match x.get(axis) {
        Some(&size) if n > 0 && size > 0 && size.is_multiple_of(n) => slice(x, axis, 0, size / n),
        _ => Err(Error::shape("chunk", format!("an axis {axis} that {n} divides"), x)),
    }
}

/// Checks the limits of [`Tensor::clamp`](crate::Tensor::clamp).
///
/// # Errors
/// [`Error::Shape`] if `min` is above `max`, or one of them is NaN.
pub fn check_clamp(min: f64, max: f64) -> Result<()> {
    if min <= max { Ok(()) } else { Err(Error::shape("clamp", "a minimum up to the maximum", (min, max))) }
}

/// Checks the probability of [`Tensor::dropout`](crate::Tensor::dropout).
///
/// # Errors
/// [`Error::Shape`] unless it is from 0 to below 1.
pub fn check_dropout(p: f64) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        Ok(())
    } else {
        Err(Error::shape("dropout", "a probability from 0 to below 1", p))
    }
}

/// Returns the shape of [`Tensor::pad`](crate::Tensor::pad).
pub fn pad(x: &[usize], axis: usize, before: usize, after: usize) -> Result<Vec<usize>> {
    let size = x.get(axis).and_then(|n| n.checked_add(before)?.checked_add(after));
    let size = size.ok_or_else(|| Error::shape("pad", format!("an axis {axis}"), x))?;
    let mut dims = x.to_vec();
    dims[axis] = size;
    Ok(dims)
}

/// Returns the shape of [`Tensor::upsample_nearest2d`](crate::Tensor::upsample_nearest2d).
pub fn upsample_nearest2d(x: &[usize], factor: usize) -> Result<Vec<usize>> {
    let scaled = |n: usize| n.checked_mul(factor).filter(|&n| n > 0);
    match *x {
        [channels, height, width] => match (scaled(height), scaled(width)) {
            (Some(height), Some(width)) => Ok(vec![channels, height, width]),
            _ => Err(Error::shape("upsample_nearest2d", "a positive factor and pixels", (x, factor))),
        },
        _ => Err(Error::shape("upsample_nearest2d", "[channels, height, width]", x)),
    }
}

/// Checks the channel parameters of [`Tensor::group_norm`](crate::Tensor::group_norm), and returns the shape.
pub fn group_norm(x: &[usize], groups: usize, params: &[&[usize]]) -> Result<Vec<usize>> {
    let channels = match x.first() {
        Some(&channels) if groups > 0 && channels.is_multiple_of(groups) && !x.contains(&0) => channels,
        _ => {
            let expected = format!("[channels, ..] with channels that {groups} divides, none of the sizes 0");
            return Err(Error::shape("group_norm", expected, x));
        }
    };
    params.iter().try_for_each(|p| same("group_norm", &[channels], p))?;
    Ok(x.to_vec())
}

/// Returns the shape of [`Tensor::mean`](crate::Tensor::mean).
pub fn mean(x: &[usize], axis: usize) -> Result<Vec<usize>> {
    reduction("mean", x, axis)
}

/// Returns the shape of [`Tensor::sum`](crate::Tensor::sum).
pub fn sum(x: &[usize], axis: usize) -> Result<Vec<usize>> {
    reduction("sum", x, axis)
}

/// Returns the shape of [`Tensor::max`](crate::Tensor::max).
pub fn max(x: &[usize], axis: usize) -> Result<Vec<usize>> {
    reduction("max", x, axis)
}

fn reduction(op: &'static str, x: &[usize], axis: usize) -> Result<Vec<usize>> {
    if x.get(axis).is_none_or(|&n| n == 0) {
        return Err(Error::shape(op, format!("an axis {axis}"), x));
    }
    let mut dims = x.to_vec();
    dims.remove(axis);
    Ok(dims)
}
