"""Sampling with a Python loop and onnxruntime, for comparison with benches/sampling.rs.

    ort_sample.py FOLDER [--threads N]

FOLDER is the output of `benches/sampling.rs --write`: our ONNX file, the noise, and our images. The images must agree. Prints a line of
JSON.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import onnxruntime

STEPS = 20
GUIDANCE = 2.0
# Minimum of 1 − t as a divisor.
MIN_ONE_MINUS_T = 0.05
# Maximum difference of a value of the final images; black is −1 and white is 1.
TOLERANCE = 1e-3


class Sampler:
    """Heun's method on a uniform grid from noise (t = 0) to image (t = 1), with classifier-free guidance."""

    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.meta = json.loads(self.session.get_modelmeta().custom_metadata_map["tiny-cats"])
        self.predicts_x = self.meta["prediction"] == "x"
        self.interval = self.meta["sampler"]["guidance_interval"] if self.predicts_x else [0.0, 1.0]

    def run(self, x, t, label):
        times = np.full(len(x), t, np.float32)
        return self.session.run(None, {"x": x, "t": times, "label": label})[0]

    def predict(self, x, t, label):
        if not self.interval[0] <= t <= self.interval[1]:
            return self.run(x, t, label)
        null = np.full_like(label, self.meta["null_label"])
        both = self.run(np.concatenate([x, x]), t, np.concatenate([label, null]))
        conditional, unconditional = np.split(both, 2)
        return unconditional + np.float32(GUIDANCE) * (conditional - unconditional)

    def velocity(self, x, prediction, t):
        return (prediction - x) / max(np.float32(1) - t, np.float32(MIN_ONE_MINUS_T)) if self.predicts_x else prediction

    def sample(self, x, label, steps=STEPS):
        for step in range(steps):
            start, end = np.float32(step / steps), np.float32((step + 1) / steps)
            prediction = self.predict(x, start, label)
            if step + 1 == steps and self.predicts_x:
                return prediction
            slope = self.velocity(x, prediction, start)
            next_x = x + (end - start) * slope
            end_slope = self.velocity(next_x, self.predict(next_x, end, label), end)
            x = x + (end - start) / 2 * (slope + end_slope)
        return x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sampler = Sampler(args.folder / "model.onnx", args.threads)
    size = sampler.meta["image_size"]
    noise, ours = (
        np.fromfile(args.folder / name, "<f4").reshape(-1, 3, size, size) for name in ("noise.bin", "images.bin")
    )
    label = np.arange(len(noise), dtype=np.int64) % len(sampler.meta["classes"])
    sampler.sample(noise, label, steps=1)
    start = time.perf_counter()
    images = sampler.sample(noise, label)
    seconds = time.perf_counter() - start
    difference = float(np.abs(images - ours).max())
    if not difference < TOLERANCE:
        sys.exit(f"onnxruntime's images differ from ours by {difference:.2e}")
    print(json.dumps({"name": "onnxruntime", "images_per_second": len(noise) / seconds, "difference": difference}))


if __name__ == "__main__":
    main()
