"""Helpers of torch_dit.py and torch_resnet.py: arguments, devices, the training step, checks and timing."""

import argparse
import json
import math
import pathlib
import statistics
import sys
import threading
import time as clock

import torch
from torch import nn

WARM_UP = {"cpu": 2, "cuda": 10}
# Maximum difference from ours: absolute for elements of the prediction, whose scale is about 1; relative for loss and gradients.
PREDICTION_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3


def arguments(doc):
    """Parses the command line, sets the default device, and disables TF32."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tf32", action="store_true", help="use TF32 matrix products in the timed steps")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="autocast precision of the timed steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    torch.manual_seed(0)
    set_tf32(False)
    return args


def load(args):
    """Returns the metadata and the tensors of the file, on the device. Tensors are f32, except for integer batch counters."""
    data = bytearray(args.file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    meta = json.loads(header.pop("__metadata__")["tiny-cats"])

    def tensor(entry):
        first, last = entry["data_offsets"]
        dtype = {"F32": torch.float32, "I64": torch.int64}[entry["dtype"]]
        values = torch.frombuffer(data, dtype=dtype, offset=start + first, count=(last - first) // dtype.itemsize)
        return values.reshape(entry["shape"]).to(args.device)

    return meta, {name: tensor(entry) for name, entry in header.items()}


def relative(found, expected):
    """Returns the maximum relative difference of an element."""
    return ((found - expected).abs() / expected.abs().clamp(min=1e-6)).max().item()


def check(model, prediction, loss, ours, others):
    """Returns the maximum difference of the prediction. Exits if the prediction, the loss, a gradient or one of `others` (relative
    differences by name) exceeds its tolerance."""
    loss.backward()
    gradients = torch.stack([p.grad.norm() for _, p in sorted(model.named_parameters())])
    model.zero_grad()
    difference = (prediction - ours["check/prediction"]).abs().max().item()
    found = {"loss": relative(loss, ours["check/loss"]), "gradients": relative(gradients, ours["check/gradients"])}
    failures = [f"{name} by {value:.2e} (relative)" for name, value in (found | others).items() if not value < RELATIVE_TOLERANCE]
    if not difference < PREDICTION_TOLERANCE:
        failures.insert(0, f"prediction by {difference:.2e}")
    if failures:
        sys.exit(f"PyTorch differs from our results: {', '.join(failures)}")
    return difference


class Trainer:
    """Training steps: a batch from `next_batch`, its loss from `loss`, backward, clipping, AdamW, moving average."""

    def __init__(self, model, batch, betas, weight_decay, ema):
        self.model, self.batch, self.ema_decay = model, batch, ema
        self.step_count, self.use_bf16 = 0, False
        self.parameters = list(model.parameters())
        decays = [[p for p in self.parameters if (p.dim() >= 2) == decay] for decay in (True, False)]
        groups = [{"params": decays[0], "weight_decay": weight_decay}, {"params": decays[1], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=betas, eps=1e-8, fused=True)
        # The moving average covers parameters and running statistics.
        self.state = [v for v in model.state_dict().values() if v.is_floating_point()]
        self.ema = [v.clone() for v in self.state]

    def step(self):
        batch = self.next_batch()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.parameters[0].device.type, torch.bfloat16, enabled=self.use_bf16):
            loss = self.loss(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.step_count += 1
        decay = min(self.ema_decay, self.step_count / (self.step_count + 9))
        torch._foreach_lerp_(self.ema, self.state, 1 - decay)
        if not math.isfinite(loss.item()):
            sys.exit(f"the loss is {loss.item()}")


def set_tf32(enabled):
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled


class Memory(threading.Thread):
    """Samples the memory in use on the GPU."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self):
        while not self.done.wait(0.002):
            free, total = torch.cuda.mem_get_info()
            self.peak = max(self.peak, total - free)


def time(args, trainer, difference):
    """Times synchronized steps, and prints a line of JSON."""
    set_tf32(args.tf32)
    trainer.use_bf16 = args.precision == "bf16"
    memory = Memory()
    if args.device == "cuda":
        memory.start()
    times = []
    for number in range(WARM_UP[args.device] + args.steps):
        start = clock.perf_counter()
        trainer.step()
        if number >= WARM_UP[args.device]:
            times.append(clock.perf_counter() - start)
    memory.done.set()
    speed = trainer.batch / statistics.median(times)
    result = {"name": args.file.stem, "images_per_second": speed, "difference": difference}
    if memory.peak:
        result["peak_bytes"] = memory.peak
    print(json.dumps(result))
