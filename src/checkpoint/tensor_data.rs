//! Number types of tensors in files, and conversion of their bytes.

use half::{bf16, f16};

/// The type of a stored number; all are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper 16 bits of a binary32.
    BF16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

/// The values of a tensor in row-major order. Real values are rounded to `f32`; integers are exact.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Real values, from f64, f32, f16 or bf16.
    Floats(Vec<f32>),
    /// Integers, also from booleans.
    Integers(Vec<i64>),
}

impl Dtype {
    const ALL: [Dtype; 10] = [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
        Dtype::Bool,
    ];

    /// The size of one number, in bytes.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    /// The type's name in safetensors files.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "F64",
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::I16 => "I16",
            Dtype::I8 => "I8",
            Dtype::U8 => "U8",
            Dtype::Bool => "BOOL",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Creates an empty list with the capacity for `n` numbers of this type.
    pub(super) fn empty_data(self, n: usize) -> TensorData {
        match self {
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => TensorData::Floats(Vec::with_capacity(n)),
            _ => TensorData::Integers(Vec::with_capacity(n)),
        }
    }

    /// Appends the numbers in `bytes` to `out`, from [`empty_data`](Self::empty_data). An incomplete last number is ignored.
    pub(super) fn decode(self, bytes: &[u8], out: &mut TensorData) {
        fn extend<const N: usize, T>(out: &mut Vec<T>, bytes: &[u8], number: impl Fn([u8; N]) -> T) {
            out.extend(bytes.as_chunks::<N>().0.iter().map(|&b| number(b)));
        }
        match (out, self) {
            (TensorData::Floats(out), Dtype::F64) => extend(out, bytes, |b| f64::from_le_bytes(b) as f32),
            (TensorData::Floats(out), Dtype::F32) => extend(out, bytes, f32::from_le_bytes),
            (TensorData::Floats(out), Dtype::F16) => extend(out, bytes, |b| f16::from_le_bytes(b).to_f32()),
            (TensorData::Floats(out), Dtype::BF16) => extend(out, bytes, |b| bf16::from_le_bytes(b).to_f32()),
            (TensorData::Integers(out), Dtype::I64) => extend(out, bytes, i64::from_le_bytes),
            (TensorData::Integers(out), Dtype::I32) => extend(out, bytes, |b| i32::from_le_bytes(b).into()),
            (TensorData::Integers(out), Dtype::I16) => extend(out, bytes, |b| i16::from_le_bytes(b).into()),
            (TensorData::Integers(out), Dtype::I8) => extend(out, bytes, |b| i8::from_le_bytes(b).into()),
            (TensorData::Integers(out), _) => extend(out, bytes, |[b]| b.into()),
            (TensorData::Floats(_), _) => {}
        }
    }
}

/// Passes the little-endian bytes of `values` to `write` in chunks, so that a large tensor is not copied as a whole.
pub(super) fn for_each_chunk<E>(
    values: &[f32],
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut bytes = vec![0; 4 * values.len().min(1 << 16)];
    for piece in values.chunks(1 << 16) {
        let bytes = &mut bytes[..4 * piece.len()];
        for (to, from) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(piece) {
            *to = from.to_le_bytes();
        }
        write(bytes)?;
    }
    Ok(())
}

/// The number of values in a tensor of these sizes; `None` if it overflows.
pub(super) fn elements(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dtype_is_decoded() {
        let decode = |dtype: Dtype, bytes: &[u8]| {
            let mut out = dtype.empty_data(0);
            dtype.decode(bytes, &mut out);
            out
        };
        for x in [0.0, -1.5, 1e-3, 6e4] {
            let floats = |v: f32| TensorData::Floats(vec![v]);
            assert_eq!(decode(Dtype::F64, &f64::to_le_bytes(x)), floats(x as f32));
            assert_eq!(decode(Dtype::F32, &(x as f32).to_le_bytes()), floats(x as f32));
            assert_eq!(
                decode(Dtype::F16, &f16::from_f64(x).to_le_bytes()),
                floats(f16::from_f64(x).to_f32())
            );
            assert_eq!(
                decode(Dtype::BF16, &bf16::from_f64(x).to_le_bytes()),
                floats(bf16::from_f64(x).to_f32())
            );
        }
        let integers = |v: i64| TensorData::Integers(vec![v]);
        assert_eq!(decode(Dtype::I64, &((1i64 << 53) + 1).to_le_bytes()), integers((1 << 53) + 1));
        assert_eq!(decode(Dtype::I32, &i32::MIN.to_le_bytes()), integers(i32::MIN.into()));
        assert_eq!(decode(Dtype::I16, &(-7i16).to_le_bytes()), integers(-7));
        assert_eq!(decode(Dtype::I8, &[0xff]), integers(-1));
        assert_eq!(decode(Dtype::U8, &[0xff]), integers(255));
        assert_eq!(decode(Dtype::Bool, &[1]), integers(1));
    }

    #[test]
    fn chunks_are_the_bytes_in_order() {
        let values: Vec<f32> = (0..150_000).map(|i| i as f32).collect();
        let mut bytes = Vec::new();
        for_each_chunk(&values, |b| {
            bytes.extend_from_slice(b);
            Ok::<_, ()>(())
        })
        .unwrap();
        let mut back = Dtype::F32.empty_data(values.len());
        Dtype::F32.decode(&bytes, &mut back);
        assert_eq!(back, TensorData::Floats(values));
    }
}
