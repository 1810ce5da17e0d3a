"""A torchvision ResNet and its training step in PyTorch, as its users would write it: the peer of benches/training.rs.

    torch_resnet.py FILE.safetensors [--device cpu|cuda] [--tf32] [--threads N] [--steps N]

FILE is what `benches/training.rs --write` made: configuration, weights, a batch, and what our network makes of it in training, where
batch normalisations go by the batch. The logits, the loss, the gradients and the running statistics after a step must be equal before
anything is timed. Prints a line of JSON.
"""

import sys

import torch
import torch.nn.functional as F
import torchvision

import peer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABEL_SMOOTHING = 0.1


class Trainer(peer.Trainer):
    """Draws a batch from pictures in memory."""

    def __init__(self, model, batch, classes, size):
        super().__init__(model, batch, betas=(0.9, 0.999), weight_decay=0.05, ema=0.999)
        self.pictures = torch.randint(0, 256, (2 * classes, 3, size, size), dtype=torch.uint8)
        labels = torch.arange(2 * classes) % classes
        self.targets = F.one_hot(labels, classes) * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / classes
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def draw(self):
        chosen = torch.randint(0, len(self.pictures), (self.batch,))
        x = (self.pictures[chosen].float() / 255 - self.mean) / self.std
        flipped = torch.rand(self.batch, 1, 1, 1) < 0.5
        return torch.where(flipped, x.flip(-1), x), self.targets[chosen]

    def loss(self, x, target):
        return F.cross_entropy(self.model(x), target)


def check(model, ours):
    logits = model(ours["check/x"])
    loss = F.cross_entropy(logits, ours["check/target"])
    distance = lambda found, expected: ((found - expected).norm() / expected.norm()).item()
    statistics = {n: distance(b, ours[f"check/{n}"]) for n, b in model.named_buffers() if b.is_floating_point()}
    return peer.check(model, logits, loss, ours, statistics)


def main():
    args = peer.arguments(__doc__)
    meta, tensors = peer.load(args)
    config = meta["config"]
    if config["width"] != 64 or not config["batch_norm"]:
        sys.exit(f"{args.file}: expected one of torchvision's networks, found {config}")
    model = getattr(torchvision.models, f"resnet{config['depth']}")(num_classes=config["classes"]).train()
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("check/")})
    difference = check(model, tensors)
    x = tensors["check/x"]
    peer.time(args, Trainer(model, len(x), config["classes"], x.shape[-1]), difference)


if __name__ == "__main__":
    main()
