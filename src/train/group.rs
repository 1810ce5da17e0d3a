//! Groups of parameters that are updated together: one pass over memory on a CPU, few launches on a GPU.

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Storage, Tensor};
use rayon::prelude::*;
use tiny_cats_models::{Array, ParamSpec, tape::Gradients};

use super::{
    Error, Result,
    rule::{MAX_MOMENTS, ParameterSlices, ParameterTensors, Update, UpdateRule},
};

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
/// two groups: the parameters with weight decay, and the others. A rule that is not elementwise has a group for each parameter there, too.
pub(super) struct Group {
    pub(super) members: Vec<Member>,
    pub(super) decays: bool,
    /// Number of moments.
    pub(super) moments: usize,
    /// `[parts, n]`: weights, the moments of the rule, moving averages.
    pub(super) packed: Tensor,
}

/// A part of what is stored for a parameter.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Weights,
    Moment(usize),
    /// A moving average of the weights.
    Average(usize),
}

/// Values that one parallel task processes: fixed, so that sums do not depend on the machine.
const CHUNK: usize = 1 << 14;

/// Groups of several parameters are padded with zeros to a multiple of this, so that rows of it are summed in parallel.
pub(super) const ROW: usize = 1 << 10;

impl Group {
    /// The index of a part in `packed`; without such an average, the number of parts.
    fn index(&self, part: Part) -> usize {
        match part {
            Part::Weights => 0,
            Part::Moment(i) => 1 + i,
            Part::Average(i) => 1 + self.moments + i,
        }
    }

    /// A part, as a view: it shows the changes of the next step.
    pub(super) fn part(&self, part: Part) -> candle_core::Result<Tensor> {
        self.packed.narrow(0, self.index(part), 1)?.squeeze(0)
    }

    fn set_part(&self, part: Part, value: &Tensor) -> candle_core::Result<()> {
        self.packed.slice_set(&value.unsqueeze(0)?, 0, self.index(part))
    }

    /// The shape of its only parameter.
    fn dims(&self) -> &[usize] {
        &self.members[0].dims
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

/// One update of a group: of its parameters and their moments by the rule, and of their moving averages.
pub(super) struct GroupUpdate<'a> {
    pub(super) rule: &'a dyn UpdateRule,
    pub(super) update: Update,
    /// Decays of the moving averages.
    pub(super) ema: &'a [f64],
    pub(super) group: &'a Group,
}

impl GroupUpdate<'_> {
    /// Applies the update with the CPU kernel of the rule, in one pass over memory.
    pub(super) fn apply_fused(&self, gradient: &Tensor) -> candle_core::Result<()> {
        self.group.packed.inplace_op2(gradient, self)
    }

    /// Applies the same update on any device with candle's own operations.
    pub(super) fn apply_with_candle_ops(&self, gradient: &Tensor) -> candle_core::Result<()> {
        let Self { rule, update, ema, group } = self;
        let n = group.packed.dim(1)?;
        let shaped =
            |flat: Tensor| if rule.is_elementwise() { Ok(flat) } else { group.members[0].view(&flat) };
        let padded = |tensor: Tensor| {
            let flat = tensor.flatten_all()?;
            flat.pad_with_zeros(0, 0, n - flat.elem_count())
        };
        let values = shaped(group.part(Part::Weights)?)?;
        let shape = values.shape().clone();
        let moments = (0..group.moments).map(|i| shaped(group.part(Part::Moment(i))?));
        let moments = moments.collect::<candle_core::Result<_>>()?;
        let parameter = ParameterTensors { values, moments, gradient: shaped(gradient.clone())? };
        let ParameterTensors { values, moments, .. } = rule.update_tensors(parameter, update)?;
        let has_shape = |tensor: &Tensor| *tensor.shape() == shape;
        if moments.len() != group.moments || !has_shape(&values) || !moments.iter().all(has_shape) {
            let (name, moments) = (rule.name(), group.moments);
            candle_core::bail!("{name}: expected new values and {moments} moments of shape {shape:?}")
        }
        let weight = padded(values)?;
        for (i, decay) in ema.iter().enumerate() {
            let part = Part::Average(i);
            let average = ((group.part(part)? * *decay)? + (&weight * (1.0 - decay))?)?;
            group.set_part(part, &average)?;
        }
        group.set_part(Part::Weights, &weight)?;
        moments.into_iter().enumerate().try_for_each(|(i, m)| group.set_part(Part::Moment(i), &padded(m)?))
    }
}

impl InplaceOp2 for GroupUpdate<'_> {
    fn name(&self) -> &'static str {
        "optimizer update"
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
        let Self { rule, update, ema, group } = self;
        let (packed, grad) = (&mut packed[p0..p1], &grad[g0..g1]);
        let n = grad.len();
        if packed.len() != group.index(Part::Average(ema.len())) * n {
            candle_core::bail!("expected a gradient as long as its parameter")
        }
        let (chunk, dims) = if rule.is_elementwise() { (CHUNK, &[][..]) } else { (n, group.dims()) };
        let (weight, rest) = packed.split_at_mut(n);
        let (moments, averages) = rest.split_at_mut(group.moments * n);
        let mut pieces: Vec<_> = (weight.chunks_mut(chunk).zip(grad.chunks(chunk)))
            .map(|(values, gradient)| {
                let moments: [&mut [f32]; MAX_MOMENTS] = Default::default();
                (ParameterSlices { dims, values, moments, gradient }, Vec::with_capacity(ema.len()))
            })
            .collect();
        for (i, moment) in moments.chunks_mut(n).enumerate() {
            pieces.iter_mut().zip(moment.chunks_mut(chunk)).for_each(|((p, _), m)| p.moments[i] = m);
        }
        for (average, decay) in averages.chunks_mut(n).zip(*ema) {
            let rest = (1.0 - decay) as f32;
            pieces.iter_mut().zip(average.chunks_mut(chunk)).for_each(|((_, list), e)| list.push((e, rest)));
        }
        pieces.into_par_iter().for_each(|(piece, averages)| {
            rule.update(ParameterSlices { values: &mut *piece.values, ..piece }, update);
            for (e, rest) in averages {
                e.iter_mut().zip(&*piece.values).for_each(|(e, w)| *e += rest * (w - *e));
            }
        });
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
