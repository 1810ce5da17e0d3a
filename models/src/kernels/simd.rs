//! Functions that are compiled for several instruction sets.

/// The instruction sets that [`vectorized!`] compiles for.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
#[cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]
pub(crate) enum SimdLevel {
    /// The instructions that every CPU of the target has.
    #[cfg(test)]
    Baseline,
    Avx2,
    Avx512,
}

#[cfg(test)]
thread_local! {
    /// The largest instruction set that this thread may use.
    static MAX_LEVEL: std::cell::Cell<SimdLevel> = const { std::cell::Cell::new(SimdLevel::Avx512) };
}

/// True if this thread may use these instructions; only tests forbid some.
#[inline(always)]
#[cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]
pub(crate) fn is_allowed(_level: SimdLevel) -> bool {
    #[cfg(test)]
    return _level <= MAX_LEVEL.get();
    #[cfg(not(test))]
    true
}

/// Defines a function that is compiled for AVX-512, for AVX2 and for the target's baseline, and chooses the best of them for the CPU that
/// it runs on. The functions that it calls must be inlined into it. All three give the same results bit for bit, because Rust neither
/// contracts a product and a sum to a fused multiply-add nor reorders sums.
macro_rules! vectorized {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$($F:ident: $bound:path),+>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$($F: $bound),+>)? ($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn everywhere $(<$($F: $bound),+>)? ($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$($F: $bound),+>)? ($($arg: $type),*) $(-> $result)? {
                    everywhere $(::<$($F),+>)? ($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2 $(<$($F: $bound),+>)? ($($arg: $type),*) $(-> $result)? {
                    everywhere $(::<$($F),+>)? ($($arg),*)
                }
                use $crate::kernels::simd::{SimdLevel, is_allowed};
                if is_allowed(SimdLevel::Avx512)
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the CPU has these instructions.
                    return unsafe { avx512 $(::<$($F),+>)? ($($arg),*) };
                }
                if is_allowed(SimdLevel::Avx2) && is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2 $(::<$($F),+>)? ($($arg),*) };
                }
            }
            everywhere $(::<$($F),+>)? ($($arg),*)
        }
    };
}
pub(crate) use vectorized;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Conv2dOptions,
        kernels::{
            attention, batch_norm,
            conv::{self, Conv},
            elementwise::{self, UnaryFunction},
            norm::{self, NormKind},
            pointwise::{self, Activation},
            product::{Bf16, Factor, Strides, product_with_bias},
            reduce::{self, Axis},
            window::Window,
        },
        random::noise,
    };

    /// Returns the results of all kernels.
    fn kernel_outputs() -> Vec<Vec<f32>> {
        // There are more rows than one task takes. Under Miri, which is slow, tasks are smaller, too.
        let (width, rows, tokens, channels) = if cfg!(miri) { (9, 6, 6, 3) } else { (37, 70, 10, 7) };
        let (x, g) = (noise(1, 0, rows * 2 * width), noise(1, 1, rows * 2 * width));
        let mut outputs = Vec::new();
        for kind in [Activation::Gelu, Activation::Silu, Activation::Relu] {
            outputs.extend([pointwise::activation(kind, &x), pointwise::activation_backward(kind, &x, &g)]);
        }
        outputs.extend([pointwise::swiglu(&x, width), pointwise::swiglu_backward(&x, &g, width)]);
        outputs.extend([pointwise::softmax(&x, width), pointwise::softmax_backward(&x, &g, width)]);
        let items = 2 * rows / tokens * width;
        let item = (&x[..items], &g[..items]);
        outputs.push(pointwise::scale_shift(&x, item.0, item.1, tokens, width));
        outputs.extend(pointwise::scale_shift_backward(&x, item.0, &g, tokens, width));
        outputs.push(pointwise::gated_residual(&x, &g, item.0, tokens, width));
        outputs.extend(pointwise::gated_residual_backward(&x, item.0, &g, tokens, width));
        for kind in [NormKind::Layer, NormKind::Rms] {
            outputs.push(norm::forward(kind, &x, width, Some(&g[..width]), Some(&x[..width]), 1e-5));
            let (grad_x, params) = norm::backward(kind, &x, &g, width, Some(&g[..width]), 1e-5);
            let (weight, bias) = params.expect("the norm has a weight");
            outputs.extend([grad_x, weight, bias]);
        }
        let weight = &x[..channels];
        let (y, means, vars) = batch_norm::forward(&x, 2 * width, weight, weight, 1e-5);
        outputs.extend(batch_norm::backward(&x, 2 * width, weight, &means, &vars, 1e-5, &g));
        outputs.extend([y, means, vars]);
        // Large enough for Winograd's minimal filtering, except under Miri.
        let (channels, out, side) = if cfg!(miri) { (3, 4, 5) } else { (16, 16, 9) };
        let window = Window::new([side; 2], [3; 2], Conv2dOptions::square(1, 1)).unwrap();
        let conv = Conv { channels, out, groups: 1, window };
        let images = noise(1, 2, 4 * channels * side * side);
        let weight = noise(1, 3, out * channels * 9);
        let y = conv::forward::<f32>(conv, &images, &weight, None, true);
        let (grad_x, grad_weight) = conv::backward::<f32>(conv, &images, &weight, &y, true);
        outputs.extend([y, grad_weight]);
        outputs.extend(grad_x);
        let depthwise = Conv { out: channels, groups: channels, ..conv };
        let y = conv::forward::<f32>(depthwise, &images, &weight, None, true);
        let (grad_x, grad_weight) =
            conv::backward::<f32>(depthwise, &images, &weight[..channels * 9], &y, true);
        outputs.extend([y, grad_weight]);
        outputs.extend(grad_x);
        for function in [
            UnaryFunction::Exp,
            UnaryFunction::Sigmoid,
            UnaryFunction::Tanh,
            UnaryFunction::Softplus,
            UnaryFunction::Clamp { min: -0.5, max: 0.5 },
        ] {
            let y = elementwise::unary(function, &x);
            outputs.extend([elementwise::unary_backward(function, &y, &g), y]);
        }
        outputs.extend([elementwise::sub(&x, &g), elementwise::div(&x, &g)]);
        let axis = Axis { len: 2 * width, inner: 1 };
        outputs.extend([reduce::sum(axis, &x), reduce::max(axis, &x).0]);
        let sizes = attention::Sizes { tokens: tokens / 2, heads: 2, d: width };
        let [q, k, v] = [&x, &g, &x[sizes.tokens..]].map(|values| &values[..2 * (tokens / 2) * width]);
        let (y, probabilities) = attention::forward::<f32>(q, k, v, sizes);
        outputs.extend(attention::backward::<f32>(q, k, v, &probabilities, &y, sizes));
        outputs.extend([y, probabilities]);
        fn product<F: Factor<Number = f32>>(x: &[f32], g: &[f32], width: usize) -> Vec<f32> {
            let rows = Strides::rows(width);
            product_with_bias::<F>(
                [x.len() / width * 2 / 5, x.len() / width * 3 / 7, width],
                None,
                (x, rows),
                (g, rows.t()),
            )
        }
        outputs.extend([product::<f32>(&x, &g, width), product::<Bf16>(&x, &g, width)]);
        outputs
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        // A pool of one thread, because the level is set for each thread.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let at = |level| {
            pool.install(|| {
                MAX_LEVEL.set(level);
                kernel_outputs()
            })
        };
        let bits = |outputs: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
            outputs.into_iter().map(|values| values.into_iter().map(f32::to_bits).collect()).collect()
        };
        let expected = bits(at(SimdLevel::Baseline));
        assert!(expected.iter().all(|values| values.iter().any(|&bits| bits != 0)));
        for level in [SimdLevel::Avx2, SimdLevel::Avx512] {
            for (i, (found, expected)) in bits(at(level)).iter().zip(&expected).enumerate() {
                assert!(found == expected, "output {i} differs");
            }
        }
    }
}
