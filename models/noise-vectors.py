"""Writes noise-vectors.json, following the specification in src/random.rs: ChaCha20, uniform numbers, Box and Muller.

    python3 noise-vectors.py > noise-vectors.json

Seeds and indices are strings, because the numbers of some languages do not have 64 bits. The first `skip` words of the stream are skipped.
"""
import json
import math
import struct

MASK = 0xFFFF_FFFF


def quarter(s, a, b, c, d):
    for x, y, z, rotation in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) & MASK
        mixed = s[z] ^ s[x]
        s[z] = ((mixed << rotation) | (mixed >> (32 - rotation))) & MASK


def block(key, counter, stream):
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key)]
    start += [*struct.unpack("<4I", struct.pack("<2Q", counter, stream))]
    s = list(start)
    for _ in range(10):
        for column in range(4):
            quarter(s, column, 4 + column, 8 + column, 12 + column)
        for column in range(4):
            quarter(s, column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    return [(a + b) & MASK for a, b in zip(s, start)]


def round_to_f32(number):
    return struct.unpack("<f", struct.pack("<f", number))[0]


def vector(seed, purpose, index, skip):
    key = struct.pack("<4Q", seed, purpose, 0, 0)
    blocks = range((skip + 8 + 15) // 16)
    words = [word for counter in blocks for word in block(key, counter, index)][skip : skip + 8]
    uniforms = [((word >> 8) + 1) / 2**24 for word in words]
    normals = []
    for first, second in zip(uniforms[::2], uniforms[1::2]):
        radius = math.sqrt(-2 * math.log(first))
        normals += [radius * math.cos(2 * math.pi * second), radius * math.sin(2 * math.pi * second)]
    return {
        "seed": str(seed),
        "purpose": purpose,
        "index": str(index),
        "skip": skip,
        "words": words,
        "uniforms": uniforms,
        "normals": [round_to_f32(x) for x in normals],
    }


# RFC 8439, 2.3.2: counter 1 and three nonce words. This project has a 64-bit counter and a 64-bit stream number in these positions.
rfc = block(bytes(range(32)), 1 | 0x0900_0000 << 32, 0x4A00_0000)
assert rfc[:2] == [0xE4E7_F110, 0x1559_3BD1] and rfc[15] == 0x4E3C_50A2

NOISE, TRAINING, SYNTHETIC = 0, 3, 5
cases = [
    (0, NOISE, 0, 0),
    (0, NOISE, 0, 60),  # from one block into the next
    (0, NOISE, 1, 0),
    (1, NOISE, 0, 0),
    (42, TRAINING, 7, 12),
    (2**53 + 1, SYNTHETIC, 3, 0),
    (123456789, NOISE, 2**32 + 5, 0),
    (2**64 - 1, NOISE, 2**64 - 1, 1000),
]
print("[\n" + ",\n".join(json.dumps(vector(*case)) for case in cases) + "\n]")
