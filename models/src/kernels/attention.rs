//! Attention on `[items, tokens, heads, d]` as it lies: no transposed copies.

use rayon::prelude::*;

use super::{
    Real,
    pointwise::{softmax_rows, softmax_rows_backward},
    product::{Factor, Strides, product},
};

/// Sizes of one item.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) d: usize,
}

impl Sizes {
    fn item(self) -> usize {
        self.tokens * self.heads * self.d
    }

    fn scores(self) -> usize {
        self.heads * self.tokens * self.tokens
    }

    fn head(self) -> Strides {
        Strides::rows(self.heads * self.d)
    }

    fn scale<F: Real>(self) -> F {
        F::of(1.0 / (self.d as f64).sqrt())
    }
}

/// The result and the probabilities `[items, heads, tokens, tokens]`.
pub(crate) fn forward<P: Factor>(
    q: &[P::Number],
    k: &[P::Number],
    v: &[P::Number],
    s: Sizes,
) -> (Vec<P::Number>, Vec<P::Number>) {
    let mut y = vec![P::Number::of(0.0); q.len()];
    let mut probabilities = vec![P::Number::of(0.0); q.len() / s.item() * s.scores()];
    let t = s.tokens;
    y.par_chunks_mut(s.item())
        .zip(probabilities.par_chunks_mut(s.scores()))
        .zip(q.par_chunks(s.item()).zip(k.par_chunks(s.item())).zip(v.par_chunks(s.item())))
        .for_each(|((y, p), ((q, k), v))| {
            for (head, p) in p.chunks_exact_mut(t * t).enumerate() {
                let o = head * s.d;
                product::<P>([t, t, s.d], (p, t), false, (&q[o..], s.head()), (&k[o..], s.head().t()), false);
                softmax_rows(p, t, s.scale());
                product::<P>(
                    [t, s.d, t],
                    (&mut y[o..], s.head().row),
                    false,
                    (p, Strides::rows(t)),
                    (&v[o..], s.head()),
                    false,
                );
            }
        });
    (y, probabilities)
}

/// Gradients of query, key and value.
pub(crate) fn backward<P: Factor>(
    q: &[P::Number],
    k: &[P::Number],
    v: &[P::Number],
    probabilities: &[P::Number],
    grad: &[P::Number],
    s: Sizes,
) -> [Vec<P::Number>; 3] {
    let [mut grad_q, mut grad_k, mut grad_v] = std::array::from_fn(|_| vec![P::Number::of(0.0); q.len()]);
    let t = s.tokens;
    grad_q
        .par_chunks_mut(s.item())
        .zip(grad_k.par_chunks_mut(s.item()).zip(grad_v.par_chunks_mut(s.item())))
        .zip(q.par_chunks(s.item()).zip(k.par_chunks(s.item()).zip(v.par_chunks(s.item()))))
        .zip(probabilities.par_chunks(s.scores()).zip(grad.par_chunks(s.item())))
        .for_each(|(((gq, (gk, gv)), (q, (k, v))), (p, grad))| {
            let mut gp = vec![P::Number::of(0.0); t * t];
            let square = Strides::rows(t);
            for (head, p) in p.chunks_exact(t * t).enumerate() {
                let o = head * s.d;
                product::<P>(
                    [t, s.d, t],
                    (&mut gv[o..], s.head().row),
                    false,
                    (p, square.t()),
                    (&grad[o..], s.head()),
                    false,
                );
                product::<P>(
                    [t, t, s.d],
                    (&mut gp, t),
                    false,
                    (&grad[o..], s.head()),
                    (&v[o..], s.head().t()),
                    false,
                );
                softmax_rows_backward(p, &mut gp, t, s.scale());
                product::<P>(
                    [t, s.d, t],
                    (&mut gq[o..], s.head().row),
                    false,
                    (&gp, square),
                    (&k[o..], s.head()),
                    false,
                );
                product::<P>(
                    [t, s.d, t],
                    (&mut gk[o..], s.head().row),
                    false,
                    (&gp, square.t()),
                    (&q[o..], s.head()),
                    false,
                );
            }
        });
    [grad_q, grad_k, grad_v]
}
