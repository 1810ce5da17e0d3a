//! The same code for each instruction set.

/// Instructions that every processor of the target has, and those that only some have.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
#[cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]
pub(crate) enum Level {
    #[cfg(test)]
    Every,
    Avx2,
    Avx512,
}

#[cfg(test)]
thread_local! {
    /// The most that this thread may use.
    static MOST: std::cell::Cell<Level> = const { std::cell::Cell::new(Level::Avx512) };
}

/// Whether this thread may use these instructions: always, but where a test looks at others.
#[inline(always)]
#[cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]
pub(crate) fn may_use(_level: Level) -> bool {
    #[cfg(test)]
    return _level <= MOST.get();
    #[cfg(not(test))]
    true
}

/// Defines a function that is compiled for AVX-512, for AVX2 and for what every processor of the target has, and does what the processor
/// that it runs on does best. What it calls has to be inlined into it. Numbers are the same to the last bit: no compiler of Rust puts a
/// product and a sum together, or sums in another order.
macro_rules! vectorised {
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
                use $crate::kernels::simd::{Level, may_use};
                if may_use(Level::Avx512)
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the instructions are there.
                    return unsafe { avx512 $(::<$($F),+>)? ($($arg),*) };
                }
                if may_use(Level::Avx2) && is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2 $(::<$($F),+>)? ($($arg),*) };
                }
            }
            everywhere $(::<$($F),+>)? ($($arg),*)
        }
    };
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernels::{
            attention, batch_norm,
            conv::{self, Conv},
            norm::{self, Kind},
            pointwise::{self, Activation},
            product::{Bf16, Factor, Strides, product_with_bias},
            window::Window,
        },
        random::noise,
    };

    fn everything() -> Vec<Vec<f32>> {
        // Rows are more than one task works through; under Miri, which is slow, tasks are smaller, too.
        let (width, rows, tokens, channels) = if cfg!(miri) { (9, 6, 6, 3) } else { (37, 70, 10, 7) };
        let (x, g) = (noise(1, 0, rows * 2 * width), noise(1, 1, rows * 2 * width));
        let mut made = Vec::new();
        for kind in [Activation::Gelu, Activation::Silu, Activation::Relu] {
            made.extend([pointwise::activation(kind, &x), pointwise::activation_backward(kind, &x, &g)]);
        }
        made.extend([pointwise::swiglu(&x, width), pointwise::swiglu_backward(&x, &g, width)]);
        made.extend([pointwise::softmax(&x, width), pointwise::softmax_backward(&x, &g, width)]);
        let items = 2 * rows / tokens * width;
        let item = (&x[..items], &g[..items]);
        made.push(pointwise::scale_shift(&x, item.0, item.1, tokens, width));
        made.extend(pointwise::scale_shift_backward(&x, item.0, &g, tokens, width));
        made.push(pointwise::gated_residual(&x, &g, item.0, tokens, width));
        made.extend(pointwise::gated_residual_backward(&x, item.0, &g, tokens, width));
        for kind in [Kind::Layer, Kind::Rms] {
            made.push(norm::forward(kind, &x, width, Some(&g[..width]), Some(&x[..width]), 1e-5));
            let (grad_x, params) = norm::backward(kind, &x, &g, width, Some(&g[..width]), 1e-5);
            let (weight, bias) = params.expect("there is a weight");
            made.extend([grad_x, weight, bias]);
        }
        let weight = &x[..channels];
        let (y, means, vars) = batch_norm::forward(&x, 2 * width, weight, weight, 1e-5);
        made.extend(batch_norm::backward(&x, 2 * width, weight, &means, &vars, 1e-5, &g));
        made.extend([y, means, vars]);
        // By Winograd's method, but under Miri.
        let (channels, out, side) = if cfg!(miri) { (3, 4, 5) } else { (16, 16, 9) };
        let window =
            Window { height: side, width: side, kernel: 3, stride: 1, padding: 1, rows: side, cols: side };
        let conv = Conv { channels, out, window };
        let pictures = noise(1, 2, 4 * channels * side * side);
        let weight = noise(1, 3, out * channels * 9);
        let y = conv::forward::<f32>(conv, &pictures, &weight, None, true);
        let (grad_x, grad_weight) = conv::backward::<f32>(conv, &pictures, &weight, &y, true);
        made.extend([y, grad_weight]);
        made.extend(grad_x);
        let sizes = attention::Sizes { tokens: tokens / 2, heads: 2, d: width };
        let [q, k, v] = [&x, &g, &x[sizes.tokens..]].map(|values| &values[..2 * (tokens / 2) * width]);
        let (y, probabilities) = attention::forward::<f32>(q, k, v, sizes);
        made.extend(attention::backward::<f32>(q, k, v, &probabilities, &y, sizes));
        made.extend([y, probabilities]);
        fn product<F: Factor<Number = f32>>(x: &[f32], g: &[f32], width: usize) -> Vec<f32> {
            let rows = Strides::rows(width);
            product_with_bias::<F>(
                [x.len() / width * 2 / 5, x.len() / width * 3 / 7, width],
                None,
                (x, rows),
                (g, rows.t()),
            )
        }
        made.extend([product::<f32>(&x, &g, width), product::<Bf16>(&x, &g, width)]);
        made
    }

    /// To the last bit.
    #[test]
    fn numbers_are_the_same_by_all_instructions() {
        // In a pool of one thread, whose level is set.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let at = |level| {
            pool.install(|| {
                MOST.set(level);
                everything()
            })
        };
        let bits = |made: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
            made.into_iter().map(|values| values.into_iter().map(f32::to_bits).collect()).collect()
        };
        let expected = bits(at(Level::Every));
        assert!(expected.iter().all(|values| values.iter().any(|&bits| bits != 0)));
        for level in [Level::Avx2, Level::Avx512] {
            for (i, (found, expected)) in bits(at(level)).iter().zip(&expected).enumerate() {
                assert!(found == expected, "number {i} is another");
            }
        }
    }
}
