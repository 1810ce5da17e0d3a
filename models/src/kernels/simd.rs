//! The same code for each instruction set.

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
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the instructions are there.
                    return unsafe { avx512 $(::<$($F),+>)? ($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2 $(::<$($F),+>)? ($($arg),*) };
                }
            }
            everywhere $(::<$($F),+>)? ($($arg),*)
        }
    };
}
pub(crate) use vectorised;
