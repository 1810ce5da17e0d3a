"""A torchvision ResNet and its training step in PyTorch, for comparison with benches/training.rs.

    torch_resnet.py FILE.safetensors [--device cpu|cuda] [--tf32] [--threads N] [--steps N]

FILE is an output of `benches/training.rs --write`: configuration, weights, a batch, and our results in training mode, with batch
statistics. The logits, the loss, the gradients and the running statistics after a step must agree before the timing. Prints a line of
JSON.
"""

import sys

import torch
import torch.nn.functional as F
import torchvision

import peer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABEL_SMOOTHING = 0.1


class Trainer(peer.Trainer):
    """Samples batches of images in memory."""

    def __init__(self, model, batch, classes, size):
        super().__init__(model, batch, betas=(0.9, 0.999), weight_decay=0.05, ema=0.999)
        self.images = torch.randint(0, 256, (2 * classes, 3, size, size), dtype=torch.uint8)
        labels = torch.arange(2 * classes) % classes
        self.targets = F.one_hot(labels, classes) * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / classes
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def next_batch(self):
        indices = torch.randint(0, len(self.images), (self.batch,))
        x = (self.images[indices].float() / 255 - self.mean) / self.std
        flipped = torch.rand(self.batch, 1, 1, 1) < 0.5
        return torch.where(flipped, x.flip(-1), x), self.targets[indices]

    def loss(self, x, target):
        return F.cross_entropy(self.model(x), target)


def check(model, ours):
    logits = model(ours["check/x"])
    loss = F.cross_entropy(logits, ours["check/target"])
    relative_error = lambda found, expected: ((found - expected).norm() / expected.norm()).item()
    statistics = {n: relative_error(b, ours[f"check/{n}"]) for n, b in model.named_buffers() if b.is_floating_point()}
    return peer.check(model, logits, loss, ours, statistics)


def main():
    args = peer.arguments(__doc__)
    meta, tensors = peer.load(args)
    config = meta["config"]
    if config["width"] != 64 or not config["batch_norm"]:
        sys.exit(f"{args.file}: expected a torchvision network, found {config}")
    model = getattr(torchvision.models, f"resnet{config['depth']}")(num_classes=config["classes"]).train()
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("check/")})
    difference = check(model, tensors)
    x = tensors["check/x"]
    peer.time(args, Trainer(model, len(x), config["classes"], x.shape[-1]), difference)


if __name__ == "__main__":
    main()
