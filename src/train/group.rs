//! Groups of parameters that are updated together: one pass over memory on a CPU, few launches on a GPU.

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Storage, Tensor};
use rayon::prelude::*;
use tiny_cats_models::{Array, ParamSpec, tape::Gradients};

use super::{Error, Result};

/// A parameter or a running statistic, one of several that are stored one after the other in a tensor.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    /// The index of its first value.
    pub(super) start: usize,
}

impl Member {
    /// Lays out `specs` in their order; returns the members and their total length.
    pub(super) fn layout(specs: &[&ParamSpec]) -> (Vec<Self>, usize) {
        let mut end = 0;
        let member = |spec: &&ParamSpec| {
            let member = Self { name: spec.name.clone(), dims: spec.dims.clone(), start: end };
            end += member.len();
            member
        };
        (specs.iter().map(member).collect(), end)
    }

    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Its part of `flat`, as a view.
    pub(super) fn view(&self, flat: &Tensor) -> candle_core::Result<Tensor> {
        flat.narrow(0, self.start, self.len())?.reshape(self.dims.as_slice())
    }

    pub(super) fn array(&self, flat: &[f32]) -> Result<Array> {
        Ok(Array::new(self.dims.clone(), flat[self.start..self.start + self.len()].to_vec())?)
    }
}

/// Parameters that are updated together, with their moments and averages.
///
/// On a CPU each parameter is a group, and its gradient is read in place. On a GPU, where every operation is a launch, there are at most
/// two groups: the parameters with weight decay, and the others.
pub(super) struct Group {
    pub(super) members: Vec<Member>,
    pub(super) decays: bool,
    /// `[parts, n]`: weights, first moment, second moment, moving averages.
    pub(super) packed: Tensor,
}

/// Indices of the parts in [`Group::packed`]; from `EMA` on there is one for each moving average.
pub(super) const WEIGHT: usize = 0;
pub(super) const MOMENT1: usize = 1;
pub(super) const MOMENT2: usize = 2;
pub(super) const EMA: usize = 3;
/// Values that one parallel task processes: fixed, so that sums do not depend on the machine.
const CHUNK: usize = 1 << 14;

/// Groups of several parameters are padded with zeros to a multiple of this, so that rows of it are summed in parallel.
pub(super) const ROW: usize = 1 << 10;

impl Group {
    /// A part, as a view: it shows the changes of the next step.
    pub(super) fn part(&self, part: usize) -> candle_core::Result<Tensor> {
        self.packed.narrow(0, part, 1)?.squeeze(0)
    }

    /// Concatenates the gradients of the members in the layout of a part.
    pub(super) fn gradient(&self, gradients: &Gradients) -> Result<Tensor> {
        let flat = |member: &Member| match gradients.get(&member.name) {
            Some(gradient) => Ok(gradient.contiguous()?.flatten_all()?),
            None => Err(Error::setting("network", format!("parameter {} has no gradient", member.name))),
        };
        let mut parts: Vec<Tensor> = self.members.iter().map(flat).collect::<Result<_>>()?;
        let fill = self.packed.dim(1)? - parts.iter().map(Tensor::elem_count).sum::<usize>();
        if fill > 0 {
            parts.push(Tensor::zeros(fill, DType::F32, self.packed.device())?);
        }
        concat(parts)
    }
}

/// Concatenates `parts`; a single part is not copied.
pub(super) fn concat(mut parts: Vec<Tensor>) -> Result<Tensor> {
    Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0)? })
}

/// The constants of one optimizer step.
pub(super) struct Update {
    pub(super) rate: f64,
    pub(super) scale: f64,
    pub(super) decay: f64,
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    pub(super) corrections: [f64; 2],
    pub(super) ema: Vec<f64>,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        packed: &mut CpuStorage,
        lp: &Layout,
        grad: &CpuStorage,
        lg: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(packed), CpuStorage::F32(grad)) = (packed, grad) else {
            candle_core::bail!("expected f32 parameters and gradients")
        };
        let (Some((p0, p1)), Some((g0, g1))) = (lp.contiguous_offsets(), lg.contiguous_offsets()) else {
            candle_core::bail!("expected contiguous parameters and gradients")
        };
        let (packed, grad) = (&mut packed[p0..p1], &grad[g0..g1]);
        if packed.len() != (EMA + self.ema.len()) * grad.len() {
            candle_core::bail!("expected a gradient as long as its parameter")
        }
        let (weight, rest) = packed.split_at_mut(grad.len());
        let (moment1, rest) = rest.split_at_mut(grad.len());
        let (moment2, averages) = rest.split_at_mut(grad.len());
        let [b1, b2] = self.betas.map(|b| b as f32);
        let (scale, eps) = (self.scale as f32, self.eps as f32);
        let step = (self.rate / self.corrections[0]) as f32;
        let root = (1.0 / self.corrections[1].sqrt()) as f32;
        let keep = (1.0 - self.rate * self.decay) as f32;
        let mut pieces: Vec<_> = (weight.chunks_mut(CHUNK).zip(grad.chunks(CHUNK)))
            .zip(moment1.chunks_mut(CHUNK).zip(moment2.chunks_mut(CHUNK)))
            .map(|piece| (piece, Vec::with_capacity(self.ema.len())))
            .collect();
        for (average, decay) in averages.chunks_mut(grad.len()).zip(&self.ema) {
            let rest = (1.0 - decay) as f32;
            pieces.iter_mut().zip(average.chunks_mut(CHUNK)).for_each(|((_, list), e)| list.push((e, rest)));
        }
        pieces.into_par_iter().for_each(|(((w, g), (m, v)), averages)| {
            for i in 0..g.len() {
                let g = g[i] * scale;
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                w[i] = keep * w[i] - step * m[i] / (v[i].sqrt() * root + eps);
            }
            for (e, rest) in averages {
                e.iter_mut().zip(&*w).for_each(|(e, w)| *e += rest * (w - *e));
            }
        });
        Ok(())
    }
}

impl Update {
    /// Applies the same update on any device with candle's own operations.
    pub(super) fn apply_with_candle_ops(&self, group: &Group, grad: &Tensor) -> candle_core::Result<()> {
        let grad = (grad * self.scale)?;
        let [b1, b2] = self.betas;
        let [weight, m, v] = [group.part(WEIGHT)?, group.part(MOMENT1)?, group.part(MOMENT2)?];
        let m = ((m * b1)? + (&grad * (1.0 - b1))?)?;
        let v = ((v * b2)? + (grad.sqr()? * (1.0 - b2))?)?;
        let root = ((&v / self.corrections[1])?.sqrt()? + self.eps)?;
        let change = ((&m / root)? * (self.rate / self.corrections[0]))?;
        let weight = ((weight * (1.0 - self.rate * self.decay))? - change)?;
        for (i, decay) in self.ema.iter().enumerate() {
            let average = ((group.part(EMA + i)? * *decay)? + (&weight * (1.0 - decay))?)?;
            group.packed.slice_set(&average.unsqueeze(0)?, 0, EMA + i)?;
        }
        for (part, value) in [(WEIGHT, weight), (MOMENT1, m), (MOMENT2, v)] {
            group.packed.slice_set(&value.unsqueeze(0)?, 0, part)?;
        }
        Ok(())
    }
}

/// Computes `Σ x²` in f64 over fixed pieces.
pub(super) fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(candle_core::Error::msg("expected f32 gradients on the CPU").into());
    };
    let values = &values[layout.start_offset()..][..x.elem_count()];
    let piece = |x: &[f32]| x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    Ok(values.par_chunks(CHUNK).map(piece).collect::<Vec<_>>().into_iter().sum())
}

/// Computes `Σ x²` over all of `xs` with candle's own operations, so that the device returns one number.
///
/// Their lengths are multiples of [`ROW`].
pub(super) fn sum_of_squares_composed(xs: &[Tensor]) -> Result<f64> {
    let rows = |x: &Tensor| x.sqr()?.reshape((x.elem_count() / ROW, ROW))?.sum(1);
    let sums: Vec<Tensor> = xs.iter().map(rows).collect::<candle_core::Result<_>>()?;
    if sums.is_empty() {
        return Ok(0.0);
    }
    Ok(f64::from(concat(sums)?.sum_all()?.to_scalar::<f32>()?))
}
