use half::{bf16, f16};
use rayon::ThreadPoolBuilder;

use super::{
    super::Real,
    factor::{RoundedToBf16, RoundedToF16},
    tile::FUSED,
    *,
};
use crate::random::{Purpose, Stream, noise};

/// Returns the instruction sets of this CPU that compute with `F`.
fn instruction_sets<F: Factor>() -> Vec<Isa> {
    // Miri is slow: one instruction set for each run.
    let mut sets = if cfg!(all(miri, target_feature = "avx2")) { vec![] } else { vec![Isa::Portable] };
    #[cfg(target_arch = "x86_64")]
    {
        let has = [
            (Isa::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            (Isa::Avx512, is_x86_feature_detected!("avx512f")),
            (Isa::Avx512Bf16, F::UNIT_LEN == 2 && is_x86_feature_detected!("avx512bf16")),
        ];
        sets.extend(has.into_iter().filter_map(|(isa, available)| available.then_some(isa)));
    }
    if !sets.contains(&F::isa()) {
        sets.push(F::isa());
    }
    sets
}

/// Computes an element of a product from its definition, in the kernels' order of sums, starting from `c` if there is one.
fn expected<F: PlainFactor>(
    fused: bool,
    c: Option<F>,
    k: usize,
    a: impl Fn(usize) -> F,
    b: impl Fn(usize) -> F,
) -> F {
    let add = |sum, p| {
        if fused {
            F::multiply_add::<true>(sum, a(p), b(p))
        } else {
            F::multiply_add::<false>(sum, a(p), b(p))
        }
    };
    let sums = Steps::new(0, k, F::DEPTH).map(|p| p.fold(F::from_f64(0.0), add));
    c.into_iter().chain(sums).reduce(|c, sum| sum + c).expect("at least one sum")
}

/// A random product: sizes, layouts, factors, and the contents of the result before.
#[derive(Debug)]
struct Case<F: Factor> {
    sizes: [usize; 3],
    strides: [Strides; 2],
    width: usize,
    accumulate: bool,
    parallel: bool,
    factors: [Vec<F::Number>; 2],
    before: Vec<F::Number>,
}

impl<F: Factor> Case<F> {
    /// The sizes `[m, n, k]` under Miri, which is slow: empty, one element, more rows than a panel, more than one transposed square, more
    /// than one block of the inner axis, more columns than the blocks of three threads, more rows than one thread takes.
    const SMALL: [[usize; 3]; 8] = [
        [0, 3, 2],
        [3, 0, 2],
        [1, 1, 1],
        [35, 31, 2],
        [17, 18, 17 * F::UNIT_LEN],
        [2, 33, F::DEPTH + 3],
        [5, 3 * F::COLUMNS + 5, 2],
        [129, 1, 1],
    ];

    /// Creates a case. Some are empty, and some exceed a block or a thread's share.
    fn new(case: u64) -> Self {
        let mut stream = Stream::new(11, Purpose::Noise, case);
        let mut uniform = |n: usize| (stream.uniform() * n as f64) as usize;
        let [m, n] = [300, 4 * F::COLUMNS].map(|max| match uniform(16) {
            0 => 0,
            1 | 2 => 1 + uniform(max),
            _ => 1 + uniform(70),
        });
        let k = if uniform(8) == 0 { F::DEPTH - 3 + uniform(200) } else { 1 + uniform(80) };
        let [extra, turn_a, turn_b, accumulate, parallel] = [5, 2, 2, 2, 2].map(&mut uniform);
        let (mut sizes, mut choices) = ([m, n, k], [extra, turn_a, turn_b, accumulate, parallel]);
        if cfg!(miri) {
            // Each size with and without transposed factors.
            let number = case as usize;
            let (size, turned) = (number % Self::SMALL.len(), number / Self::SMALL.len());
            sizes = Self::SMALL[size];
            let parallel = turned == 0 && size >= Self::SMALL.len() - 2;
            choices = [3 * turned, turned, turned, (size + turned) & 1, parallel.into()];
        }
        let ([m, n, k], [extra, turn_a, turn_b, accumulate, parallel]) = (sizes, choices);
        let strides = |rows: usize, cols: usize, turn| {
            if turn == 1 { Strides::rows(rows + extra).t() } else { Strides::rows(cols + extra) }
        };
        let strides = [strides(m, k, turn_a), strides(k, n, turn_b)];
        let values = |stream, n| {
            if cfg!(miri) {
                // Normal numbers take milliseconds each under Miri.
                return (0..n).map(|i| ((7 * i + 3 * stream as usize) % 19) as f32 / 16.0 - 0.5).collect();
            }
            noise(3, 3 * case + stream, n)
        };
        let factor =
            |stream, n| values(stream, n).into_iter().map(|x| F::Number::from_f64(x.into())).collect();
        let width = n + extra;
        let before = values(2, Strides::rows(width).end(m, n));
        Self {
            sizes: [m, n, k],
            width,
            accumulate: accumulate == 1,
            parallel: parallel == 1,
            factors: [factor(0, strides[0].end(m, k)), factor(1, strides[1].end(k, n))],
            before: before.into_iter().map(|x| F::Number::from_f64(x.into())).collect(),
            strides,
        }
    }

    fn a(&self, i: usize, p: usize) -> F::Number {
        self.factors[0][i * self.strides[0].row + p * self.strides[0].col]
    }

    fn b(&self, p: usize, j: usize) -> F::Number {
        self.factors[1][p * self.strides[1].row + j * self.strides[1].col]
    }

    /// Computes rows `from` to `to` of the product.
    fn rows(&self, isa: Isa, from: usize, to: usize) -> Vec<F::Number> {
        let [_, n, k] = self.sizes;
        let [a, b] = &self.factors;
        let a = &a[from * self.strides[0].row..];
        let there = from * self.width..Strides::rows(self.width).end(to, n);
        let mut c = self.before.get(there).unwrap_or_default().to_vec();
        let begin = if self.accumulate { InitialValue::Existing } else { InitialValue::Zero };
        let target = Target::new(&mut c, self.width, to - from, n);
        let (a, b) = ((a, self.strides[0]), (&b[..], self.strides[1]));
        // SAFETY: the CPU has these instructions, and the target is initialized.
        unsafe { compute::<F>(isa, [to - from, n, k], target, begin, a, b, self.parallel) };
        c
    }

    /// Computes the product with a bias in each row; if `packed`, from a second factor that was packed before.
    fn with_bias(&self, packed: bool) -> Vec<F::Number> {
        let [m, n, k] = self.sizes;
        let [a, b] = self.factors.each_ref().map(|factor| &factor[..]);
        let bias = &*self.bias();
        if packed {
            return product_packed(m, Some(bias), a, &PackedMatrix::<F>::new([n, k], (b, self.strides[1])));
        }
        product_with_bias::<F>([m, n, k], Some(bias), (a, self.strides[0]), (b, self.strides[1]))
    }

    fn bias(&self) -> Vec<F::Number> {
        (0..self.sizes[1]).map(|j| self.before.get(j).copied().unwrap_or_default()).collect()
    }

    fn describe(&self, isa: Isa) -> String {
        let Self { sizes, strides, accumulate, parallel, .. } = self;
        format!("{sizes:?} {strides:?} accumulate {accumulate} parallel {parallel} {isa:?}")
    }
}

fn pool() -> rayon::ThreadPool {
    ThreadPoolBuilder::new().num_threads(3).build().expect("threads")
}

/// Calls `f` in the pool. Under Miri, where idle threads cost seconds, only cases that use several threads run in it.
fn within<R: Send>(pool: &rayon::ThreadPool, parallel: bool, f: impl FnOnce() -> R + Send) -> R {
    if cfg!(miri) && !parallel { f() } else { pool.install(f) }
}

/// Returns the numbers of `count` cases; under Miri, those of the small cases.
fn cases<F: Factor>(count: u64) -> std::ops::Range<u64> {
    0..if cfg!(miri) { 2 * Case::<F>::SMALL.len() as u64 } else { count }
}

/// Checks that every element equals its definition bit for bit, for all sizes, strides, threads and instruction sets, packed or not.
fn check_product<F: PlainFactor + std::fmt::Debug>(count: u64) {
    let pool = pool();
    for case in cases::<F>(count) {
        let case = Case::<F>::new(case);
        let [m, n, k] = case.sizes;
        let (results, with_bias, packed) = within(&pool, case.parallel, || {
            let results: Vec<_> =
                instruction_sets::<F>().into_iter().map(|isa| (isa, case.rows(isa, 0, m))).collect();
            let packed = (case.strides[0] == Strides::rows(k)).then(|| case.with_bias(true));
            (results, case.with_bias(false), packed)
        });
        for (isa, c) in results {
            for (at, (&found, &before)) in c.iter().zip(&case.before).enumerate() {
                let (i, j) = (at / case.width, at % case.width);
                let fused = isa != Isa::Portable || FUSED;
                let begin = case.accumulate.then_some(before);
                let sums = || expected(fused, begin, k, |p| case.a(i, p), |p| case.b(p, j));
                let expected = if j < n { sums() } else { before };
                assert!(
                    found == expected,
                    "{}: ({i}, {j}) is {found:?}, not {expected:?}",
                    case.describe(isa)
                );
            }
        }
        let bias = case.bias();
        for (at, &found) in with_bias.iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let fused = F::isa() != Isa::Portable || FUSED;
            let expected = expected(fused, Some(bias[j]), k, |p| case.a(i, p), |p| case.b(p, j));
            assert!(
                found == expected,
                "{}: ({i}, {j}) is {found:?}, not {expected:?}",
                case.describe(F::isa())
            );
        }
        assert!(packed.is_none_or(|packed| packed == with_bias), "{}", case.describe(F::isa()));
    }
}

#[test]
fn products_equal_their_definition() {
    check_product::<f32>(300);
    check_product::<f64>(100);
}

/// Products of rounded numbers equal the product of the rounded numbers in f64 but for the rounding of sums. A row does not depend on the
/// rows around it, bit for bit.
#[test]
fn products_of_rounded_numbers_agree_with_f64() {
    check_rounded_product::<Bf16>(250, |x| bf16::from_f32(x).to_f64());
    check_rounded_product::<RoundedToBf16>(100, |x| bf16::from_f32(x).to_f64());
    // The other conversion uses instructions that Miri does not know.
    check_rounded_product::<RoundedToF16>(100, |x| f16::from_f32_const(x).to_f64_const());
}

fn check_rounded_product<F: Factor<Number = f32>>(count: u64, number: fn(f32) -> f64) {
    let pool = pool();
    for case_number in cases::<F>(count) {
        let case = Case::<F>::new(case_number);
        let [m, n, k] = case.sizes;
        let exact: Vec<f64> = (0..case.before.len())
            .map(|at| {
                let (i, j) = (at / case.width, at % case.width);
                let before = f64::from(case.before[at]);
                let sum = || (0..k).map(|p| number(case.a(i, p)) * number(case.b(p, j))).sum::<f64>();
                let initial = if case.accumulate || j >= n { before } else { 0.0 };
                if j < n { initial + sum() } else { initial }
            })
            .collect();
        // A NaN fails this comparison.
        let near = |(&found, &exact): (&f32, &f64)| {
            let allowed = 3e-6 * (1.0 + (k as f64).sqrt()) * (k as f64).sqrt();
            (f64::from(found) - exact).abs() <= allowed
        };
        for isa in instruction_sets::<F>() {
            let c = within(&pool, case.parallel, || case.rows(isa, 0, m));
            assert!(c.iter().zip(&exact).all(near), "{}", case.describe(isa));
            let Some(row) = (case_number as usize).checked_rem(m) else { continue };
            let alone = case.rows(isa, row, row + 1);
            let among = c.get(row * case.width..).map_or(&[][..], |c| &c[..n]);
            assert!(alone == among, "{}: row {row}", case.describe(isa));
        }
        if case.strides[0] == Strides::rows(k) {
            assert!(case.with_bias(true) == case.with_bias(false), "{}", case.describe(F::isa()));
        }
    }
}
