"""What the training peers share: their arguments, where they compute, and how they are timed."""

import argparse
import json
import pathlib
import statistics
import threading
import time as clock

import torch

WARM_UP = {"cpu": 2, "cuda": 10}


def arguments(doc):
    """The command line. New tensors are on the device from here on, and arithmetic is that of f32: nothing is rounded to TF32."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tf32", action="store_true", help="round the factors of products to TF32 while being timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    torch.manual_seed(0)
    tf32(False)
    return args


def load(args):
    """What the file says about the model, and its tensors, all f32, on the device."""
    data = bytearray(args.file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    meta = json.loads(header.pop("__metadata__")["tiny-cats"])

    def tensor(entry):
        begin, end = entry["data_offsets"]
        values = torch.frombuffer(data, dtype=torch.float32, offset=start + begin, count=(end - begin) // 4)
        return values.reshape(entry["shape"]).to(args.device)

    return meta, {name: tensor(entry) for name, entry in header.items()}


def tf32(on):
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


class Memory(threading.Thread):
    """Watches how much memory is in use on the card."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self):
        while not self.done.wait(0.002):
            free, total = torch.cuda.mem_get_info()
            self.peak = max(self.peak, total - free)


def time(args, step, batch, difference):
    """Times `step`, which waits for its own end, and prints a line of JSON."""
    tf32(args.tf32)
    memory = Memory()
    if args.device == "cuda":
        memory.start()
    times = []
    for number in range(WARM_UP[args.device] + args.steps):
        start = clock.perf_counter()
        step()
        if number >= WARM_UP[args.device]:
            times.append(clock.perf_counter() - start)
    memory.done.set()
    speed = batch / statistics.median(times)
    result = {"name": args.file.stem, "images_per_second": speed, "difference": difference}
    if memory.peak:
        result["peak_bytes"] = memory.peak
    print(json.dumps(result))
