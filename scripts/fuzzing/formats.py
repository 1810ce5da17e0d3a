"""Minimal parsers and writers of each format, to change files and to write files like those of other programs."""

import collections
import io
import json
import pickle
import struct
import sys
import types
import zipfile

# --- Protocol buffers (ONNX)


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def read_varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return number, at


# The fields of ONNX messages that are messages.
MESSAGES = {
    "model": {7: "graph", 8: "opset", 14: "entry"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor"},
    "tensor": {13: "entry"},
    "value": {2: "type"},
    "type": {1: "tensor_type"},
    "tensor_type": {2: "shape"},
    "shape": {1: "dimension"},
}


def parse(data, kind="model"):
    """Parses a message into fields `[number, wire type, value]`; the value of a nested message is a list of fields."""
    fields, at = [], 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = read_varint(data, at)
        elif wire == 2:
            length, at = read_varint(data, at)
            value, at = data[at : at + length], at + length
            inner = MESSAGES.get(kind, {}).get(number)
            if inner:
                value = parse(value, inner)
        else:
            length = {1: 8, 5: 4}[wire]
            value, at = data[at : at + length], at + length
        fields.append([number, wire, value])
    return fields


def serialize(fields):
    out = []
    for number, wire, value in fields:
        out.append(varint(number << 3 | wire))
        if wire == 0:
            out.append(varint(value))
        else:
            value = serialize(value) if isinstance(value, list) else value
            if wire == 2:
                out.append(varint(len(value)))
            out.append(value)
    return b"".join(out)


def messages(fields, path=()):
    """Yields a message and all messages in it."""
    yield fields
    for _, _, value in fields:
        if isinstance(value, list):
            yield from messages(value)


def weight_ranges(data):
    """Returns the byte ranges of the initializers' values in an ONNX file, as pairs of start and end."""
    ranges = []

    def walk(at, end, steps):
        while at < end:
            tag, at = read_varint(data, at)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                _, at = read_varint(data, at)
            elif wire == 2:
                length, at = read_varint(data, at)
                if steps and number == steps[0]:
                    if len(steps) == 1:
                        ranges.append((at, at + length))
                    else:
                        walk(at, at + length, steps[1:])
                at += length
            else:
                at += {1: 8, 5: 4}[wire]

    # Field numbers: the graph, its initializers, their raw data.
    walk(0, len(data), (7, 5, 9))
    return ranges


def third_party_generator(data):
    """A generator's ONNX file as the Python project wrote it: without metadata, with other input names."""
    names = {b"x": b"noise", b"t": b"timestep", b"label": b"breed"}
    model = [field for field in parse(data) if field[0] != 14]
    for number, _, graph in model:
        if number != 7:
            continue
        for number, _, part in graph:
            # The inputs of nodes, and the names of inputs.
            for field in part if number in (1, 11) else []:
                if field[0] == 1 and field[2] in names:
                    field[2] = names[field[2]]
    return serialize(model)


def third_party_classifier(data):
    """A classifier's ONNX file without metadata."""
    return serialize([field for field in parse(data) if field[0] != 14])


def external(data, name):
    """Moves the initializers' values to another file, as PyTorch does; returns both files."""
    model, weights = parse(data), bytearray()
    for number, _, graph in model:
        for number, _, tensor in graph if number == 7 else []:
            raw = next((field for field in tensor if field[0] == 9), None) if number == 5 else None
            if raw:
                location = {"location": name, "offset": str(len(weights)), "length": str(len(raw[2]))}
                weights += raw[2]
                tensor.remove(raw)
                tensor.extend([13, 2, [[1, 2, key.encode()], [2, 2, value.encode()]]] for key, value in location.items())
                tensor.append([14, 0, 1])
    return serialize(model), bytes(weights)


# --- safetensors


def tensors(data):
    """Returns the header of a safetensors file and the bytes of its tensors."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def safetensors(header, tensor_data):
    text = json.dumps(header, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + tensor_data


# --- zip archives (PyTorch)


def entries(data):
    """Returns the entries of a zip archive: the name, and the offsets of the directory entry, the local header, and the start and end of the
    contents."""
    end = data.rfind(b"PK\5\6")
    count, _, at = struct.unpack_from("<HII", data, end + 10)
    entries = []
    for _ in range(count):
        size, _, name, extra, comment = struct.unpack_from("<IIHHH", data, at + 20)
        (local,) = struct.unpack_from("<I", data, at + 42)
        local_name, local_extra = struct.unpack_from("<HH", data, local + 26)
        begin = local + 30 + local_name + local_extra
        entries.append((bytes(data[at + 46 : at + 46 + name]).decode(), at, local, begin, begin + size))
        at += 46 + name + extra + comment
    return entries


def has_checksums(data):
    """True if the directory of the archive is valid and has a CRC of every entry."""
    try:
        return all(data[at + 16 : at + 20] != b"\0\0\0\0" for _, at, *_ in entries(data))
    except (struct.error, UnicodeDecodeError, IndexError):
        return True


def archive(files):
    """Returns an uncompressed zip archive of files by name."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name, contents in files.items():
            archive.writestr(zipfile.ZipInfo(name), contents)
    return output.getvalue()


def unpack(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class ForeignObject:
    """An object of a missing Python module, which is pickled as a call of `module.name(*arguments)`."""

    def __init__(self, name, arguments=(), state=None):
        self.name, self.arguments, self.state = name, arguments, state

    def __reduce__(self):
        return (fake_function(self.name), self.arguments) + (() if self.state is None else (self.state,))


def fake_function(path):
    """A function that pickle writes as `path`; creates a module of that name if necessary."""
    module, name = path.rsplit(".", 1)
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(parts[i]))
    if not hasattr(sys.modules[module], name):
        function = type(name, (), {})
        function.__module__, function.__qualname__ = module, name
        setattr(sys.modules[module], name, function)
    return getattr(sys.modules[module], name)


class Storage:
    def __init__(self, key, count):
        self.key, self.count = key, count


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", fake_function("torch.FloatStorage"), obj.key, "cpu", obj.count)
        return None


def torch(value, weights):
    """A file like those of `torch.save`. `value` makes the saved object from a state dict; `weights` maps names to shapes and f32 bytes."""
    state, files = collections.OrderedDict(), {}
    for i, (name, (shape, values)) in enumerate(weights.items()):
        strides, step = [], 1
        for size in reversed(shape):
            strides.insert(0, step)
            step *= size
        storage = Storage(str(i), len(values) // 4)
        hooks = collections.OrderedDict()
        arguments = (storage, 0, tuple(shape), tuple(strides), False, hooks)
        state[name] = ForeignObject("torch._utils._rebuild_tensor_v2", arguments)
        files[f"archive/data/{i}"] = values
    out = io.BytesIO()
    Pickler(out, 2).dump(value(state))
    return archive({"archive/data.pkl": out.getvalue(), "archive/byteorder": b"little", **files, "archive/version": b"3\n"})


def layouts():
    """The ways in which other programs nest a state dict in a file."""
    args = {"lr": 1e-4, "data_path": ForeignObject("pathlib.PosixPath", ("data", "cats"))}
    namespace = ForeignObject("argparse.Namespace", (), args)
    date = ForeignObject("datetime.datetime", (b"\x07\xe9\x01\x02\x03\x04\x05\0\0\0",))
    config = {"image_size": 32.0, "num_classes": 13, "num_heads": 1}
    dtype = ForeignObject("numpy.dtype", ("f8", False, True), (3, "<", None, None, None, -1, -1, 0))
    scalar = ForeignObject("numpy.core.multiarray.scalar", (dtype, b"\0\0\0\0\0\0\xf0?"))
    prefixed = lambda state, prefix: collections.OrderedDict((prefix + name, value) for name, value in state.items())
    return {
        "bare": lambda state: state,
        "state-dict": lambda state: {"state_dict": state, "epoch": 3},
        "training": lambda state: {"model_state_dict": state, "ema_shadow_params": dict(state), "config": config, "step": 7},
        "namespace": lambda state: {"model": state, "ema": dict(state), "args": namespace, "opt": {"state": {}, "param_groups": [args]}},
        "objects": lambda state: {"net": state, "seen": {1, 2, 3}, "at": date, "best": scalar, "raw": b"\0\xff", "z": complex(1, 2)},
        "nested": lambda state: {"model": {"state_dict": prefixed(state, "module.")}, "hyper_parameters": config},
    }
