use half::bf16;
use rayon::ThreadPoolBuilder;

use super::{super::Real, factor::Widened, tile::FUSED, *};
use crate::random::{Purpose, Stream, noise};

/// The instructions of this processor, each of which computes these numbers.
fn all<F: Factor>() -> Vec<Isa> {
    // Not twice under Miri, which is slow and told what the processor has.
    let mut all = if cfg!(all(miri, target_feature = "avx2")) { vec![] } else { vec![Isa::Portable] };
    #[cfg(target_arch = "x86_64")]
    {
        let has = [
            (Isa::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            (Isa::Avx512, is_x86_feature_detected!("avx512f")),
            (Isa::Avx512Bf16, F::EACH == 2 && is_x86_feature_detected!("avx512bf16")),
        ];
        all.extend(has.into_iter().filter_map(|(isa, there)| there.then_some(isa)));
    }
    if !all.contains(&F::isa()) {
        all.push(F::isa());
    }
    all
}

/// The sums that every element is, one by one; of the first, or of `c` and the first.
fn expected<F: Real>(
    fused: bool,
    c: Option<F>,
    k: usize,
    a: impl Fn(usize) -> F,
    b: impl Fn(usize) -> F,
) -> F {
    let add = |sum, p| {
        if fused {
            <F as Factor>::add::<true>(sum, a(p), b(p))
        } else {
            <F as Factor>::add::<false>(sum, a(p), b(p))
        }
    };
    let sums = Steps::new(0, k, F::DEPTH).map(|p| p.fold(F::of(0.0), add));
    c.into_iter().chain(sums).reduce(|c, sum| sum + c).expect("a sum of something")
}

/// Sizes and layout of a product, its factors, and what lies where it goes.
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
    /// For Miri, which is slow: of nothing, of one element, of more rows than a panel and parts of tiles, of more than what is transposed at
    /// once, of more than a sum, than the blocks of three threads, and than the rows of a thread's part.
    const SMALL: [[usize; 3]; 8] = [
        [0, 3, 2],
        [3, 0, 2],
        [1, 1, 1],
        [35, 31, 2],
        [17, 18, 17 * F::EACH],
        [2, 33, F::DEPTH + 3],
        [5, 3 * F::COLUMNS + 5, 2],
        [129, 1, 1],
    ];

    /// Now and then of more than a block or a thread's part, and of nothing.
    fn new(case: u64) -> Self {
        let mut stream = Stream::new(11, Purpose::Noise, case);
        let mut below = |n: usize| (stream.uniform() * n as f64) as usize;
        let [m, n] = [300, 4 * F::COLUMNS].map(|most| match below(16) {
            0 => 0,
            1 | 2 => 1 + below(most),
            _ => 1 + below(70),
        });
        let k = if below(8) == 0 { F::DEPTH - 3 + below(200) } else { 1 + below(80) };
        let [extra, turn_a, turn_b, accumulate, parallel] = [5, 2, 2, 2, 2].map(&mut below);
        let (mut sizes, mut choices) = ([m, n, k], [extra, turn_a, turn_b, accumulate, parallel]);
        if cfg!(miri) {
            // Each of the sizes as it lies and transposed.
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
                // Normal numbers take milliseconds each.
                return (0..n).map(|i| ((7 * i + 3 * stream as usize) % 19) as f32 / 16.0 - 0.5).collect();
            }
            noise(3, 3 * case + stream, n)
        };
        let factor = |stream, n| values(stream, n).into_iter().map(|x| F::Number::of(x.into())).collect();
        let width = n + extra;
        let before = values(2, Strides::rows(width).end(m, n));
        Self {
            sizes: [m, n, k],
            width,
            accumulate: accumulate == 1,
            parallel: parallel == 1,
            factors: [factor(0, strides[0].end(m, k)), factor(1, strides[1].end(k, n))],
            before: before.into_iter().map(|x| F::Number::of(x.into())).collect(),
            strides,
        }
    }

    fn a(&self, i: usize, p: usize) -> F::Number {
        self.factors[0][i * self.strides[0].row + p * self.strides[0].col]
    }

    fn b(&self, p: usize, j: usize) -> F::Number {
        self.factors[1][p * self.strides[1].row + j * self.strides[1].col]
    }

    /// Rows `from` to `to` of the product.
    fn rows(&self, isa: Isa, from: usize, to: usize) -> Vec<F::Number> {
        let [_, n, k] = self.sizes;
        let [a, b] = &self.factors;
        let a = &a[from * self.strides[0].row..];
        let there = from * self.width..Strides::rows(self.width).end(to, n);
        let mut c = self.before.get(there).unwrap_or_default().to_vec();
        let begin = if self.accumulate { Begin::There } else { Begin::Nothing };
        let target = Target::new(&mut c, self.width, to - from, n);
        let (a, b) = ((a, self.strides[0]), (&b[..], self.strides[1]));
        // SAFETY: the instructions are there, and the target holds numbers.
        unsafe { compute::<F>(isa, [to - from, n, k], target, begin, a, b, self.parallel) };
        c
    }

    /// All of it with a bias in each row, by a second factor that is laid out before or not.
    fn with_bias(&self, packed: bool) -> Vec<F::Number> {
        let [m, n, k] = self.sizes;
        let [a, b] = self.factors.each_ref().map(|factor| &factor[..]);
        let bias = &*self.bias();
        if packed {
            return product_packed(m, Some(bias), a, &Packed::<F>::new([n, k], (b, self.strides[1])));
        }
        product_with_bias::<F>([m, n, k], Some(bias), (a, self.strides[0]), (b, self.strides[1]))
    }

    fn bias(&self) -> Vec<F::Number> {
        (0..self.sizes[1]).map(|j| self.before.get(j).copied().unwrap_or_default()).collect()
    }

    fn what(&self, isa: Isa) -> String {
        let Self { sizes, strides, accumulate, parallel, .. } = self;
        format!("{sizes:?} {strides:?} accumulate {accumulate} parallel {parallel} {isa:?}")
    }
}

fn pool() -> rayon::ThreadPool {
    ThreadPoolBuilder::new().num_threads(3).build().expect("threads")
}

/// Calls `f` in the pool; under Miri, where every look for work of a thread takes seconds, only for what is to use its threads.
fn within<R: Send>(pool: &rayon::ThreadPool, parallel: bool, f: impl FnOnce() -> R + Send) -> R {
    if cfg!(miri) && !parallel { f() } else { pool.install(f) }
}

/// So many cases; under Miri, each small one as it lies and transposed.
fn cases<F: Factor>(many: u64) -> std::ops::Range<u64> {
    0..if cfg!(miri) { 2 * Case::<F>::SMALL.len() as u64 } else { many }
}

/// Every element of every product is its sums, to the last bit: whatever the sizes, strides, threads and instructions, packed or not.
fn is_its_sums<F: Real + std::fmt::Debug>(many: u64) {
    let pool = pool();
    for case in cases::<F>(many) {
        let case = Case::<F>::new(case);
        let [m, n, k] = case.sizes;
        let (results, with_bias, packed) = within(&pool, case.parallel, || {
            let results: Vec<_> = all::<F>().into_iter().map(|isa| (isa, case.rows(isa, 0, m))).collect();
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
                assert!(found == expected, "{}: ({i}, {j}) is {found:?}, not {expected:?}", case.what(isa));
            }
        }
        let bias = case.bias();
        for (at, &found) in with_bias.iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let fused = F::isa() != Isa::Portable || FUSED;
            let expected = expected(fused, Some(bias[j]), k, |p| case.a(i, p), |p| case.b(p, j));
            assert!(found == expected, "{}: ({i}, {j}) is {found:?}, not {expected:?}", case.what(F::isa()));
        }
        assert!(packed.is_none_or(|packed| packed == with_bias), "{}", case.what(F::isa()));
    }
}

#[test]
fn products_are_their_sums() {
    is_its_sums::<f32>(300);
    is_its_sums::<f64>(100);
}

/// A product of bf16 is that of the same numbers in f64 but for the rounding of sums, and a row is the same alone as among others, to the
/// last bit.
#[test]
fn products_of_bf16_are_those_of_their_numbers() {
    is_product_of_bf16::<Bf16>(250);
    is_product_of_bf16::<Widened>(100);
}

fn is_product_of_bf16<F: Factor<Number = f32>>(many: u64) {
    let pool = pool();
    for case_number in cases::<F>(many) {
        let case = Case::<F>::new(case_number);
        let [m, n, k] = case.sizes;
        let number = |x: f32| bf16::from_f32(x).to_f64();
        let exact: Vec<f64> = (0..case.before.len())
            .map(|at| {
                let (i, j) = (at / case.width, at % case.width);
                let before = f64::from(case.before[at]);
                let sum = || (0..k).map(|p| number(case.a(i, p)) * number(case.b(p, j))).sum::<f64>();
                let begin = if case.accumulate || j >= n { before } else { 0.0 };
                if j < n { begin + sum() } else { begin }
            })
            .collect();
        // What is no number is not near.
        let near = |(&found, &exact): (&f32, &f64)| {
            let allowed = 3e-6 * (1.0 + (k as f64).sqrt()) * (k as f64).sqrt();
            (f64::from(found) - exact).abs() <= allowed
        };
        for isa in all::<F>() {
            let c = within(&pool, case.parallel, || case.rows(isa, 0, m));
            assert!(c.iter().zip(&exact).all(near), "{}", case.what(isa));
            let Some(row) = (case_number as usize).checked_rem(m) else { continue };
            let alone = case.rows(isa, row, row + 1);
            let among = c.get(row * case.width..).map_or(&[][..], |c| &c[..n]);
            assert!(alone == among, "{}: row {row}", case.what(isa));
        }
        if case.strides[0] == Strides::rows(k) {
            assert!(case.with_bias(true) == case.with_bias(false), "{}", case.what(F::isa()));
        }
    }
}
