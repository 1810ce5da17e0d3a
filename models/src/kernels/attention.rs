//! Attention on `[items, tokens, heads, d]` in place, without transposed copies.

use rayon::prelude::*;

use super::{
    Real,
    pointwise::{softmax_rows, softmax_rows_backward},
    product::{Factor, Strides, product},
};

/// The sizes of one item.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) d: usize,
}

impl Sizes {
    fn item_len(self) -> usize {
        self.tokens * self.heads * self.d
    }

    fn scores_len(self) -> usize {
        self.heads * self.tokens * self.tokens
    }

    fn head_strides(self) -> Strides {
        Strides::rows(self.heads * self.d)
    }

    fn scale<F: Real>(self) -> F {
        F::from_f64(1.0 / (self.d as f64).sqrt())
    }
}

/// Returns the result and the probabilities `[items, heads, tokens, tokens]`.
pub(crate) fn forward<P: Factor>(
    q: &[P::Number],
    k: &[P::Number],
    v: &[P::Number],
    s: Sizes,
) -> (Vec<P::Number>, Vec<P::Number>) {
    let mut y = vec![P::Number::from_f64(0.0); q.len()];
    let mut probabilities = vec![P::Number::from_f64(0.0); q.len() / s.item_len() * s.scores_len()];
    let t = s.tokens;
    y.par_chunks_mut(s.item_len())
        .zip(probabilities.par_chunks_mut(s.scores_len()))
        .zip(q.par_chunks(s.item_len()).zip(k.par_chunks(s.item_len())).zip(v.par_chunks(s.item_len())))
        .for_each(|((y, p), ((q, k), v))| {
            for (head, p) in p.chunks_exact_mut(t * t).enumerate() {
                let start = head * s.d;
                product::<P>(
                    [t, t, s.d],
                    (p, t),
                    false,
                    (&q[start..], s.head_strides()),
                    (&k[start..], s.head_strides().t()),
                    false,
                );
                softmax_rows(p, t, s.scale());
                product::<P>(
                    [t, s.d, t],
                    (&mut y[start..], s.head_strides().row),
                    false,
                    (p, Strides::rows(t)),
                    (&v[start..], s.head_strides()),
                    false,
                );
            }
        });
    (y, probabilities)
}

/// Returns the gradients of query, key and value.
pub(crate) fn backward<P: Factor>(
    q: &[P::Number],
    k: &[P::Number],
    v: &[P::Number],
    probabilities: &[P::Number],
    grad: &[P::Number],
    s: Sizes,
) -> [Vec<P::Number>; 3] {
    let [mut grad_q, mut grad_k, mut grad_v] =
        std::array::from_fn(|_| vec![P::Number::from_f64(0.0); q.len()]);
    let t = s.tokens;
    grad_q
        .par_chunks_mut(s.item_len())
        .zip(grad_k.par_chunks_mut(s.item_len()).zip(grad_v.par_chunks_mut(s.item_len())))
        .zip(q.par_chunks(s.item_len()).zip(k.par_chunks(s.item_len()).zip(v.par_chunks(s.item_len()))))
        .zip(probabilities.par_chunks(s.scores_len()).zip(grad.par_chunks(s.item_len())))
        .for_each(|(((gq, (gk, gv)), (q, (k, v))), (p, grad))| {
            let mut gp = vec![P::Number::from_f64(0.0); t * t];
            let square = Strides::rows(t);
            for (head, p) in p.chunks_exact(t * t).enumerate() {
                let start = head * s.d;
                product::<P>(
                    [t, s.d, t],
                    (&mut gv[start..], s.head_strides().row),
                    false,
                    (p, square.t()),
                    (&grad[start..], s.head_strides()),
                    false,
                );
                product::<P>(
                    [t, t, s.d],
                    (&mut gp, t),
                    false,
                    (&grad[start..], s.head_strides()),
                    (&v[start..], s.head_strides().t()),
                    false,
                );
                softmax_rows_backward(p, &mut gp, t, s.scale());
                product::<P>(
                    [t, s.d, t],
                    (&mut gq[start..], s.head_strides().row),
                    false,
                    (&gp, square),
                    (&k[start..], s.head_strides()),
                    false,
                );
                product::<P>(
                    [t, s.d, t],
                    (&mut gk[start..], s.head_strides().row),
                    false,
                    (&gp, square.t()),
                    (&q[start..], s.head_strides()),
                    false,
                );
            }
        });
    [grad_q, grad_k, grad_v]
}
