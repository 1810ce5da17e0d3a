"""Classification of files with Pillow and onnxruntime, for comparison with benches/classifying.rs.

    ort_classify.py FOLDER [--threads N]

FOLDER is the output of `benches/classifying.rs --write`: our ONNX file, a list of files, and our predictions. The probabilities must agree,
except for differences of decoders and rounding. Prints a line of JSON.
"""

import argparse
import json
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

BATCH = 16
# Maximum difference of a probability from ours.
TOLERANCE = 0.05


class Classifier:
    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.meta = json.loads(self.session.get_modelmeta().custom_metadata_map["tiny-cats"])
        self.mean, self.std = (np.float32(self.meta["preprocessing"][key]) for key in ("mean", "std"))
        # Pillow releases the GIL when it decodes and resizes.
        self.pool = ThreadPoolExecutor(threads)

    def prepare(self, path):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        short, size = self.meta["preprocessing"]["resize"], self.meta["image_size"]
        side = min(image.size)
        width, height = ((2 * n * short + side) // (2 * side) for n in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
        return ((pixels - self.mean) / self.std).transpose(2, 0, 1)

    def classify(self, paths):
        rows = []
        for start in range(0, len(paths), BATCH):
            batch = np.stack(list(self.pool.map(self.prepare, paths[start:start + BATCH])))
            logits = self.session.run(None, {"input": batch})[0].astype(np.float64)
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            rows.append(exponentials / exponentials.sum(axis=1, keepdims=True))
        return np.concatenate(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    classifier = Classifier(args.folder / "model.onnx", args.threads)
    files, ours = (json.loads((args.folder / name).read_text()) for name in ("files.json", "predictions.json"))
    classifier.classify(files[:BATCH])
    start = time.perf_counter()
    theirs = classifier.classify(files)
    seconds = time.perf_counter() - start
    difference = float(np.abs(theirs - ours).max())
    if not difference < TOLERANCE:
        sys.exit(f"onnxruntime's probabilities differ from ours by {difference:.2e}")
    same = int((theirs.argmax(axis=1) == np.argmax(ours, axis=1)).sum())
    print(json.dumps({"name": "onnxruntime + Pillow", "images_per_second": len(files) / seconds, "difference": difference,
                      "same_top_class": same, "files": len(files)}))


if __name__ == "__main__":
    main()
