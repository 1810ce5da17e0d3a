"""Loading of photographs with torchvision's transforms and PyTorch's DataLoader, for comparison with benches/loading.rs.

    torch_loading.py DIR [--size N] [--workers N]

`cold` decodes each file, resizes a random crop and flips half of them, as torchvision's training script does. `cached` does the same with
photographs that are already decoded, resized and in memory. The time does not include the start of the workers. Prints a line of JSON for
each.
"""

import argparse
import json
import time

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

EPOCHS = 5


class Cached(Dataset):
    def __init__(self, photographs, transform):
        self.photographs, self.transform = photographs, transform

    def __len__(self):
        return len(self.photographs)

    def __getitem__(self, index):
        return self.transform(self.photographs[index])


def seconds(loader, epochs):
    """Returns the seconds per epoch, after a warm-up epoch."""
    times = []
    for _ in range(1 + epochs):
        start = time.perf_counter()
        count = sum(len(batch[0] if isinstance(batch, list) else batch) for batch in loader)
        times.append(time.perf_counter() - start)
        assert count == len(loader.dataset)
    return sum(times[1:]) / epochs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    augment = [v2.RandomResizedCrop(args.size, scale=(0.3, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    options = {"batch_size": 32, "num_workers": args.workers, "persistent_workers": args.workers > 0}

    cold = ImageFolder(args.folder, v2.Compose([*augment, v2.ToImage(), *floats]))
    resized = ImageFolder(args.folder, v2.Compose([v2.Resize(args.size), v2.ToImage()]))
    cached = Cached([image for image, _ in resized], v2.Compose([*augment, *floats]))
    for name, data, epochs in [("cold", cold, 1), ("cached", cached, EPOCHS)]:
        speed = len(data) / seconds(DataLoader(data, **options), epochs)
        print(json.dumps({"name": name, "images": len(data), "images_per_second": speed}))


if __name__ == "__main__":
    main()
