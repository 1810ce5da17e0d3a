"""TinyDiT and its training step in PyTorch, for comparison with benches/training.rs.

    torch_dit.py FILE.safetensors [--device cpu|cuda] [--tf32] [--threads N] [--steps N]

FILE is an output of `benches/training.rs --write`: configuration, weights, a batch, and our results. The prediction, the loss and the
gradients must agree before the timing. Prints a line of JSON.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

import peer

SINUSOIDS = 256
RMS_EPS = 1e-6


class RmsNorm(nn.Module):
    """RMSNorm, without parameters if `width` is None."""

    def __init__(self, width=None):
        super().__init__()
        self.weight = None if width is None else nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, RMS_EPS)


class Attention(nn.Module):
    def __init__(self, width, heads, modern):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = RmsNorm(width // heads) if modern else nn.Identity()
        self.k_norm = RmsNorm(width // heads) if modern else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(y.transpose(1, 2).flatten(2))


class SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden, bias=False)
        self.w3 = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def norm(width, modern):
    return RmsNorm() if modern else nn.LayerNorm(width)


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def modulation(width, parts):
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class Block(nn.Module):
    def __init__(self, config, modern):
        super().__init__()
        width = config["width"]
        self.norm1 = norm(width, modern)
        self.attn = Attention(width, config["heads"], modern)
        self.norm2 = norm(width, modern)
        self.mlp = (SwiGlu if modern else Mlp)(width, config["mlp_width"])
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x, condition):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, width, values, modern):
        super().__init__()
        self.norm_final = norm(width, modern)
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x, condition):
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class TimeEmbedder(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(nn.Linear(SINUSOIDS, width), nn.SiLU(), nn.Linear(width, width))
        half = SINUSOIDS // 2
        frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t):
        angles = self.scale * t.unsqueeze(1) * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class Embedder(nn.Module):
    """A layer in a submodule called `name`, as in our files."""

    def __init__(self, name, layer):
        super().__init__()
        self.name = name
        self.add_module(name, layer)

    def forward(self, x):
        return getattr(self, self.name)(x)


def positions(side, width):
    quarter = width // 4
    frequencies = 10_000 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64).unsqueeze(1) * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line.repeat_interleave(side, dim=0), line.repeat(side, 1)
    return torch.cat([rows, columns], dim=1).float()


class TinyDiT(nn.Module):
    """Both layouts of TinyDiT, with the parameter names of our files."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.modern = modern = config["layout"] == "modern"
        width, patch = config["width"], config["patch_size"]
        self.side = config["image_size"] // patch
        values = 3 * patch * patch
        embed = nn.Linear(values, width) if modern else nn.Conv2d(3, width, patch, stride=patch)
        self.patch_embed = Embedder("proj", embed)
        if modern:
            self.register_buffer("positions", positions(self.side, width), persistent=False)
        self.breed_embedder = Embedder("embedding", nn.Embedding(config["classes"] + modern, width))
        self.t_embedder = TimeEmbedder(width, 1000.0 if modern else 1.0)
        self.blocks = nn.ModuleList(Block(config, modern) for _ in range(config["depth"]))
        self.final_layer = FinalLayer(width, values, modern)

    def forward(self, x, t, label):
        condition = self.t_embedder(t) + self.breed_embedder(label)
        n, side, patch = x.shape[0], self.side, self.config["patch_size"]
        if self.modern:
            x = x.view(n, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
            x = self.patch_embed(x.reshape(n, side * side, -1)) + self.positions
        else:
            x = self.patch_embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, condition)
        x = self.final_layer(x, condition)
        if self.modern:
            x = x.view(n, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
        else:
            # As in the legacy layout: tokens are not moved back to their positions.
            x = x.transpose(1, 2)
        return x.reshape(n, 3, side * patch, side * patch)


def weighted_error(prediction, target, weight):
    return (weight.view(-1, 1, 1, 1) * (prediction - target) ** 2).mean()


class Trainer(peer.Trainer):
    """Draws batches from images in memory."""

    def __init__(self, model, batch):
        super().__init__(model, batch, betas=(0.9, 0.95), weight_decay=0.0, ema=0.9999)
        size, classes = model.config["image_size"], model.config["classes"]
        self.images = torch.randint(0, 256, (2 * classes, 3, size, size), dtype=torch.uint8)
        self.labels = torch.arange(2 * classes) % classes

    def next_batch(self):
        indices = torch.randint(0, len(self.images), (self.batch,))
        clean = self.images[indices].float() / 127.5 - 1
        flipped = torch.rand(self.batch, 1, 1, 1) < 0.5
        clean = torch.where(flipped, clean.flip(-1), clean)
        noise = torch.randn_like(clean)
        t = torch.sigmoid(-0.3 + 0.9 * torch.randn(self.batch))
        column = t.view(-1, 1, 1, 1)
        x = column * clean + (1 - column) * noise
        label = self.labels[indices]
        if not self.model.modern:
            return x, t, label, clean - noise, torch.ones(self.batch)
        null = torch.full_like(label, self.model.config["classes"])
        label = torch.where(torch.rand(self.batch) < 0.1, null, label)
        return x, t, label, clean, (1 - t).clamp(min=0.05) ** -2

    def loss(self, x, t, label, target, weight):
        return weighted_error(self.model(x, t, label), target, weight)


def check(model, ours):
    x, t, target, weight = (ours[f"check/{name}"] for name in ("x", "t", "target", "weight"))
    prediction = model(x, t, ours["check/label"].long())
    return peer.check(model, prediction, weighted_error(prediction, target, weight), ours, {})


def main():
    args = peer.arguments(__doc__)
    meta, tensors = peer.load(args)
    model = TinyDiT(meta["config"])
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("check/")})
    difference = check(model, tensors)
    peer.time(args, Trainer(model, len(tensors["check/x"])), difference)


if __name__ == "__main__":
    main()
