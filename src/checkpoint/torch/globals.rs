//! The names in a pickle.

use crate::checkpoint::{error::printable, tensor_data::Dtype};

/// A known name. A call of any other name makes an object whose content is not read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Global {
    OrderedDict,
    DefaultDict,
    RebuildTensor,
    RebuildTensorV3,
    RebuildFromType,
    RebuildParameter,
    /// Any other function that makes a tensor.
    RebuildOther,
    TensorType,
    /// A storage class; the untyped one has no number type.
    Storage(Option<Dtype>),
    /// A number type as a value.
    Dtype(Dtype),
    Size,
    Device,
    NumpyScalar,
    NumpyType,
    Encode,
}

impl Global {
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        let storage = |dtype| Some(Global::Storage(Some(dtype)));
        let dtype = |dtype| Some(Global::Dtype(dtype));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("collections", "defaultdict") => Some(Global::DefaultDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensorV3),
            ("torch._tensor", "_rebuild_from_type_v2") => Some(Global::RebuildFromType),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Some(Global::RebuildParameter)
            }
            ("torch._utils" | "torch._tensor", _) if name.starts_with("_rebuild_") => {
                Some(Global::RebuildOther)
            }
            ("torch" | "torch._tensor", "Tensor") | ("torch.nn.parameter", "Parameter") => {
                Some(Global::TensorType)
            }
            ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Some(Global::Storage(None)),
            ("torch", "Size") => Some(Global::Size),
            ("torch", "device") => Some(Global::Device),
            ("torch", "DoubleStorage") => storage(Dtype::F64),
            ("torch", "FloatStorage") => storage(Dtype::F32),
            ("torch", "HalfStorage") => storage(Dtype::F16),
            ("torch", "BFloat16Storage") => storage(Dtype::BF16),
            ("torch", "LongStorage") => storage(Dtype::I64),
            ("torch", "IntStorage") => storage(Dtype::I32),
            ("torch", "ShortStorage") => storage(Dtype::I16),
            ("torch", "CharStorage") => storage(Dtype::I8),
            ("torch", "ByteStorage") => storage(Dtype::U8),
            ("torch", "BoolStorage") => storage(Dtype::Bool),
            ("torch", "float64") => dtype(Dtype::F64),
            ("torch", "float32") => dtype(Dtype::F32),
            ("torch", "float16") => dtype(Dtype::F16),
            ("torch", "bfloat16") => dtype(Dtype::BF16),
            ("torch", "int64") => dtype(Dtype::I64),
            ("torch", "int32") => dtype(Dtype::I32),
            ("torch", "int16") => dtype(Dtype::I16),
            ("torch", "int8") => dtype(Dtype::I8),
            ("torch", "uint8") => dtype(Dtype::U8),
            ("torch", "bool") => dtype(Dtype::Bool),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Some(Global::NumpyScalar),
            ("numpy", "dtype") => Some(Global::NumpyType),
            ("_codecs", "encode") => Some(Global::Encode),
            _ => None,
        }
    }
}

/// The full name of a class or function, for messages.
pub(super) fn full_name(module: &str, name: &str) -> String {
    printable(module, 60) + "." + &printable(name, 60)
}
