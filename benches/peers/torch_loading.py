"""Photographs to what a classifier is shown, by torchvision's transforms and PyTorch's DataLoader: the peer of benches/loading.rs.

    torch_loading.py DIR [--size N] [--workers N]

`cold` decodes each file, takes a random part of it, resizes that, and mirrors half of them, as torchvision's own training script does.
`cached` does the same with photographs that were decoded and resized beforehand and are in memory. Workers are started before the clock.
Prints a line of JSON for each.
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
    """Seconds an epoch, after one with which the workers warm up."""
    times = []
    for _ in range(1 + epochs):
        begin = time.perf_counter()
        shown = sum(len(batch[0] if isinstance(batch, list) else batch) for batch in loader)
        times.append(time.perf_counter() - begin)
        assert shown == len(loader.dataset)
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
    plain = ImageFolder(args.folder, v2.Compose([v2.Resize(args.size), v2.ToImage()]))
    cached = Cached([picture for picture, _ in plain], v2.Compose([*augment, *floats]))
    for name, data, epochs in [("cold", cold, 1), ("cached", cached, EPOCHS)]:
        speed = len(data) / seconds(DataLoader(data, **options), epochs)
        print(json.dumps({"name": name, "images": len(data), "images_per_second": speed}))


if __name__ == "__main__":
    main()
