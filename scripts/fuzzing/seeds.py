"""Makes the undamaged files: with the program if it writes the format, otherwise directly."""

import array
import hashlib
import json
import shutil

from . import formats, images, process

SAMPLES = ["-n", "1", "--steps", "1", "--sampler", "euler"]
# Fast settings: one step of the smallest networks, without samples.
TRAIN = [
    "--config",
    "smoke",
    "--device",
    "cpu",
    "--image-size",
    "32",
    "--batch-size",
    "2",
    "--max-retries",
    "0",
    "--num-workers",
    "0",
    "--runs-dir",
    "runs",
]
DIT = [*TRAIN, "--size", "nano", "--lr", "1e-2", "--ema-beta", "0", "--save-interval", "1", "--sample-interval", "0", "-o", "out"]
CLASSIFIER = [*TRAIN, "--width", "8", "-o", "out/classifier.pt"]

PRICES = """date = 2026-11-01
source = "a test price list"
cpu_core_hour = 0.05
memory_gib_hour = 0.01

[gpu]
A100 = 3
"H100!" = 4.5
T4 = 0.6
"""

CONFIG = """# A configuration by hand.
[dit]
size = "nano"
image-size = 32
batch-size = 2
lr = 1e-3
ema-beta = [0.9, 0.99]
lr-schedule = "cosine"
no-validation = true
augmentation-level = "full"
gradient-clip = 1.0

[classifier]
width = 8
image-size = 32
label-smoothing = 0.1
early-stopping-patience = 3
"""

SWEEP = """task = "dit"
data = "data/two"
config = "smoke"
method = "random"
jobs = 3
seed = 1
metric = "validation_loss"
goal = "min"

[fixed]
steps = 2
size = "nano"

[sweep]
lr = [1e-4, 3e-4, 1e-3]
weight-decay = { low = 1e-4, high = 1e-1, scale = "log" }
batch-size = { low = 2, high = 8 }
"""

CSV = """file,xmin,ymin,xmax,ymax,who
Bengal/Bengal_00000.png,4,4,28,28,me
Bengal_00001.png,2.5,2.5,20,30,me
Siamese_00000,0,0,32,32,"a, b"
"""

XML = """<?xml version="1.0"?>
<annotation>
  <filename>Bengal_00000.png</filename>
  <size><width>32</width><height>32</height><depth>3</depth></size>
  <object><name>cat</name><bndbox><xmin>4</xmin><ymin>4</ymin><xmax>28</xmax><ymax>28</ymax></bndbox></object>
</annotation>
"""

PETS = {"images": "5c4f3ee8e5d25df40f4fd59a7f44e54c", "annotations": "95a8c909bbe2e81eed6a22bccdf3f68f"}

CLOUD = {
    "provider": "modal", "call": "fc-1", "region": None, "status": "finished", "error": None, "gpu": "A100", "price_per_hour": 3.0,
    "max_cost": 10.0, "attempts": [{"begun": 1.0, "ended": 2.0, "gpu": "A100", "outcome": "finished"}], "preemptions": 1,
    "seconds": 100.0, "dollars": 1.5, "heartbeat": 1e9,
}  # fmt: skip


class Maker:
    def __init__(self, programs, folder):
        self.programs, self.folder = programs, folder

    def run(self, *command, program="tiny-cats"):
        result = process.run([self.programs[program], *command], self.folder, 1200)
        if result.code != 0:
            raise SystemExit(
                f"fuzz: making the undamaged files: {' '.join(command)}: exit code {result.code}\n{result.output.decode(errors='replace')[-2000:]}"
            )

    def write(self, name, contents):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())

    def read(self, name):
        return (self.folder / name).read_bytes()


def make(programs, folder):
    """Writes all undamaged files into an empty folder."""
    m = Maker(programs, folder)
    for name, contents in images.images().items():
        m.write(f"images/{name}", contents)
    m.write("valid.png", images.simple_png(32, 32))
    m.write("truncated.png", images.simple_png(32, 32)[:60])
    m.write("name", "Bengal_9.png")
    data(m)
    models(m)
    third_party(m)
    runs(m)
    m.write("prices.toml", PRICES)
    m.write("config.toml", CONFIG)
    m.write("sweep.toml", SWEEP)
    # Starting the jobs fails, but this writes sweep.json.
    process.run([programs["tiny-cats"], "sweep", "sweep.toml", "--program", "/nowhere", "--runs-dir", "."], folder, 60)
    m.write("heads.csv", CSV)
    m.write("xmls/Bengal_00000.xml", XML)
    # Markers of unpacked archives, so that nothing is downloaded.
    for name, md5 in PETS.items():
        marker = {"archive": f"{name}.tar.gz", "md5": md5, "files": 0, "bytes": 0}
        m.write(f"pets/{name}/.unpacked.json", json.dumps(marker))
    m.write("token.txt", "abcDEF123._-\n")
    m.write(
        "generate.json",
        json.dumps({"breed": "Bengal", "count": 1, "steps": 1, "seed": 3, "sampler": "euler", "guidance": 1.5, "format": "json"}),
    )


def data(m):
    """A data set of two classes, with an index."""
    m.run("data", "synth", "all", "--per-class", "4", "--size", "32")
    for name in ("Bengal", "Siamese"):
        shutil.copytree(m.folder / "all" / name, m.folder / "two" / name)
    m.write("manifest.json", m.read("all/SYNTHETIC.json"))
    shutil.rmtree(m.folder / "all")
    m.run("data", "index", "two")
    m.write("index.json", m.read("two/index.json"))


def models(m):
    """A generator and a classifier in all their formats."""
    m.run("train", "dit", "two", *DIT, "--steps", "1", "--run-id", "dit")
    m.run("train", "classifier", "two", *CLASSIFIER, "--epochs", "2", "--run-id", "classifier", "--cache", "pixels")
    m.write("generator.pt", m.read("out/tinydit_final.pt"))
    m.write("nano.safetensors", m.read("out/tinydit_final.safetensors"))
    m.write("generator.safetensors", shrink(m.read("out/tinydit_final.safetensors")))
    m.write("classifier.pt", m.read("out/classifier.pt"))
    m.write("classifier.safetensors", m.read("out/classifier.safetensors"))
    for name in ("generator", "classifier"):
        m.run("export", f"{name}.safetensors", "-o", f"{name}.onnx")
        (m.folder / f"{name}.report.json").unlink()


def shrink(released):
    """Shrinks a released generator to a quarter of its width and one block."""
    header, tensor_data = formats.tensors(released)
    metadata = json.loads(header["__metadata__"]["tiny-cats"])
    sizes = metadata["config"]
    width = sizes["width"]
    assert width // sizes["heads"] == width // 4, "the smallest generator has four heads"
    sizes |= {"width": width // 4, "heads": 1, "depth": 1, "mlp_width": sizes["mlp_width"] // 4}
    new_header, parts, offset = {"__metadata__": {"sha256": "0" * 64, "tiny-cats": json.dumps(metadata, separators=(",", ":"))}}, [], 0
    for name, tensor in header.items():
        if name == "__metadata__" or (name.startswith("blocks.") and not name.startswith("blocks.0.")):
            continue
        begin, end = tensor["data_offsets"]
        values, shape = array.array("f", tensor_data[begin:end]), tensor["shape"]
        # Shrink sizes that depend on the width; the number of time frequencies does not.
        is_fixed = name == "t_embedder.mlp.0.weight"
        new_shape = [s // 4 if s % width == 0 and not (is_fixed and i == 1) else s for i, s in enumerate(shape)]
        columns = shape[1] if len(shape) == 2 else 1
        rows = [values[r * columns : r * columns + (new_shape[1] if len(new_shape) == 2 else 1)] for r in range(new_shape[0])]
        part = b"".join(row.tobytes() for row in rows)
        new_header[name] = {"data_offsets": [offset, offset + len(part)], "dtype": "F32", "shape": new_shape}
        parts.append(part)
        offset += len(part)
    data = formats.safetensors(new_header, b"".join(parts))
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def third_party(m):
    """Writes the same networks in the formats of other programs."""
    for name in ("generator", "classifier"):
        header, tensor_data = formats.tensors(m.read(f"{name}.safetensors"))
        header.pop("__metadata__")
        m.write(f"third-party/{name}.safetensors", formats.safetensors(header, tensor_data))
        metadata = {"format": "pt", "image_size": "32", "num_classes": "2", "config": json.dumps({"image_size": 32, "num_heads": 1.0})}
        m.write(f"third-party/{name}-hub.safetensors", formats.safetensors({"__metadata__": metadata, **header}, tensor_data))
        weights = {}
        for tensor, entry in header.items():
            begin, end = entry["data_offsets"]
            if entry["dtype"] == "F32":
                weights[tensor] = (entry["shape"], tensor_data[begin:end])
        for layout, value in formats.layouts().items():
            m.write(f"third-party/{name}-{layout}.pt", formats.torch(value, weights))
    m.write("third-party/generator.onnx", formats.third_party_generator(m.read("generator.onnx")))
    m.write("third-party/classifier.onnx", formats.third_party_classifier(m.read("classifier.onnx")))
    graph, weights = formats.external(m.read("third-party/classifier.onnx"), "model.onnx.data")
    m.write("third-party/external.onnx", graph)
    m.write("third-party/external.onnx.data", weights)


def runs(m):
    """Writes training states and the folder of a stopped run."""
    m.write("dit-state.safetensors", m.read("runs/dit/dit_step_00000001.safetensors"))
    states = sorted((m.folder / "runs/classifier").glob("*_step_*.safetensors"))
    m.write("classifier-state.safetensors", states[0].read_bytes())
    m.write(f"stopped/{states[0].name}", states[0].read_bytes())
    record = json.loads(m.read("runs/classifier/run.json"))
    record |= {"status": "stopped", "step": record["steps"] // 2, "error": None}
    record["command"] = ["tiny-cats", "train"]
    m.write("stopped/run.json", json.dumps(record, indent=2))
    for name in ("config.toml", "metrics.jsonl"):
        m.write(f"stopped/{name}", m.read(f"runs/classifier/{name}"))
    m.write("stopped/cloud.json", json.dumps(CLOUD))
    m.write("latest", "stopped\n")
    for folder in ("runs", "out", "cache"):
        shutil.rmtree(m.folder / folder)
