"""Mutations of files: functions of a random number generator and the bytes that return changed bytes."""

import json
import re
import struct

from . import formats, images

NUMBERS = [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 511, 512, 1023, 1024, 4096, 32767, 32768, 65535, 65536]
NUMBERS += [2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]

TEXTS = [
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "\r\rover",
    "\0",
    "\x07\x08\x7f\x9b31m",
    "\u202egnp",
    "\u2028",
    "%s%n{}",
    "../../../../dev/null/x",
    "/dev/null/x",
    "",
    " ",
    "\ufeff",
    "ü" * 300,
]
LONG = 1 << 20
DEEP = 10_000


def random_position(rng, data):
    """A random position. The start and the end, which contain most of the structure, are as likely as the whole middle."""
    if not data:
        return 0
    edge = min(len(data), 4096)
    return rng.choice([rng.randrange(edge), len(data) - 1 - rng.randrange(edge), rng.randrange(len(data))])


def random_block(rng, data, max_size=1 << 16):
    """The start and end of a random block of 64 to `max_size` bytes, or of fewer bytes if `max_size` is less."""
    bits = max_size.bit_length() - 1
    size = min(len(data), 1 << rng.randint(min(6, bits), bits))
    at = min(random_position(rng, data), len(data) - size)
    return at, at + size


# --- Bytes


def flip(rng, data):
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if data:
            data[random_position(rng, data)] ^= 1 << rng.randrange(8)
    return data


def overwrite(rng, data):
    number, code = rng.choice(NUMBERS), rng.choice("BHIQ")
    order, length = rng.choice("<>"), struct.calcsize("<" + code)
    position = random_position(rng, data)
    data[position : position + length] = struct.pack(order + code, number % (1 << 8 * length))[: len(data) - position]
    return data


def truncate(rng, data):
    return data[: rng.choice([random_position(rng, data), random_position(rng, data), 0, len(data) - 1])]


def cut_start(rng, data):
    return data[random_position(rng, data) :]


def zeros(rng, data):
    begin, end = random_block(rng, data)
    data[begin:end] = bytes([rng.choice([0, 0, 0, 255])]) * (end - begin)
    return data


def insert(rng, data):
    position = random_position(rng, data)
    return data[:position] + rng.choice([rng.randbytes(rng.choice([1, 4, 64])), bytes(rng.choice([1, 8, 4096]))]) + data[position:]


def delete(rng, data):
    begin, end = random_block(rng, data, rng.choice([1, 8, 4096]))
    return data[:begin] + data[end:]


def duplicate(rng, data):
    begin, end = random_block(rng, data)
    return data[:end] + data[begin:]


def swap(rng, data):
    begin, end = random_block(rng, data)
    other = min(random_position(rng, data), len(data) - (end - begin))
    block = data[begin:end]
    data[begin:end] = data[other : other + len(block)]
    data[other : other + len(block)] = block
    return data


BYTES = [flip, flip, overwrite, overwrite, truncate, cut_start, zeros, zeros, insert, delete, duplicate, swap]


# --- Text


def decode(data):
    return data.decode("utf-8", "surrogateescape")


def encode(text):
    return bytearray(text.encode("utf-8", "surrogatepass" if any("\ud800" <= c <= "\udbff" for c in text) else "surrogateescape"))


TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[-+]?\d[\w.+-]*|[\w.-]+|[^\s\w]')
WORDS = [
    "1e999",
    "-1e999",
    "NaN",
    "nan",
    "inf",
    "-1",
    "-0.0",
    "0",
    "1e-400",
    "99999999999999999999999999",
    "0x10",
    "1_000",
    "1e18",
    "0.5",
    "true",
    "null",
    "[]",
    "{}",
    '""',
    "1979-05-27T07:32:00Z",
    '"\\ud800"',
    '"\\u0000"',
    "'''",
    '"""',
    ",",
    ";",
    "\t",
    "\r\n",
    "&amp;",
    "&lol;",
    "<![CDATA[",
    "<!--",
]


def hostile_value(rng, quoted=True):
    """An unexpected value as text."""
    kind = rng.randrange(6)
    if kind < 3:
        return rng.choice(WORDS)
    if kind == 3:
        return str(rng.choice(NUMBERS) * rng.choice([1, -1]))
    if kind == 4:
        text = rng.choice(TEXTS)
        return f'"{text}"' if quoted and rng.random() < 0.7 else text
    return rng.choice(
        [
            '"' + "A" * rng.choice([300, 5000, LONG]) + '"',
            "[" * DEEP,
            "[" * DEEP + "]" * DEEP,
            '{"a":' * DEEP,
            "a." * DEEP + "b = 1",
            "<a>" * DEEP,
            "9" * 5000,
        ]
    )


def replace_token(rng, data):
    text = decode(data)
    tokens = list(TOKEN.finditer(text[: 1 << 20]))
    if not tokens:
        return encode(hostile_value(rng))
    found = rng.choice(tokens)
    return encode(text[: found.start()] + hostile_value(rng) + text[found.end() :])


def insert_into_string(rng, data):
    text = decode(data)
    strings = [found for found in TOKEN.finditer(text[: 1 << 20]) if found[0].startswith('"') or found[0].isalpha()]
    if not strings:
        return replace_token(rng, data)
    found = rng.choice(strings)
    position = rng.randrange(found.start() + 1, found.end() + 1)
    added = rng.choice([*TEXTS, *(json.dumps(t)[1:-1] for t in TEXTS), "A" * LONG, "\\u001b[31m" * 40, "\udcff\udcfe"])
    return encode(text[:position] + added + text[position:])


def change_lines(rng, data):
    parts = decode(data).split("\n")
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    action = rng.randrange(4)
    if action == 0:
        parts.insert(j, parts[i])
    elif action == 1:
        del parts[i]
    elif action == 2:
        parts[i], parts[j] = parts[j], parts[i]
    else:
        parts.insert(i, hostile_value(rng, quoted=False))
    return encode("\n".join(parts))


def change_encoding(rng, data):
    text = decode(data)
    return rng.choice(
        [
            lambda: bytearray(text.encode("utf-16", "replace")),
            lambda: bytearray(b"\xef\xbb\xbf") + data,
            lambda: bytearray(data.replace(b"\n", b"\r\n")),
            lambda: bytearray(data.replace(b"\n", b"\r")),
            lambda: bytearray(data.replace(b"e", b"\xe9", 1)),
            lambda: bytearray(data + b"\0" * 100),
            lambda: bytearray(data * 50),
            lambda: bytearray(),
        ]
    )()


def random_json(rng):
    """An unexpected JSON value."""
    return rng.choice(
        [
            None,
            True,
            -1,
            0,
            1,
            0.5,
            1e300,
            2**31,
            2**63,
            2**64,
            1 << 70,
            [],
            {},
            [[]],
            [0] * 3,
            {"a": 1},
            "12",
            *TEXTS,
            "A" * 5000,
            "A" * LONG,
            [1] * 20_000,
            float("nan"),
            float("inf"),
        ]
    )


def change_document(rng, document):
    """Changes one part of a parsed JSON document."""
    containers = []

    def walk(node):
        if isinstance(node, (dict, list)) and node:
            containers.append(node)
            for child in node.values() if isinstance(node, dict) else node[:1000]:
                walk(child)

    walk(document)
    if not containers:
        return random_json(rng)
    container = rng.choice(containers)
    key = rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))
    action = rng.randrange(6)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container, dict):
        container[rng.choice(TEXTS) + str(key)] = container.pop(key)
    elif action == 2 and isinstance(container, dict):
        container[rng.choice(["__proto__", "extra", *TEXTS, "A" * 5000])] = random_json(rng)
    elif action == 3 and isinstance(container[key], (int, float)) and not isinstance(container[key], bool):
        number = container[key]
        container[key] = rng.choice(
            [
                number + 1,
                number - 1,
                -number,
                number * 2,
                number * 1000,
                float(number),
                str(number),
                rng.choice(NUMBERS),
                rng.choice(NUMBERS[-6:]),
            ]
        )
    elif action == 4 and isinstance(container, list):
        container.append(rng.choice([container[key], random_json(rng)]))
    else:
        container[key] = random_json(rng)
    return document


def change_json(rng, data):
    try:
        document = json.loads(data)
    except ValueError:
        return replace_token(rng, data)
    return encode(json.dumps(change_document(rng, document), ensure_ascii=rng.random() < 0.5))


TEXT = [replace_token, replace_token, insert_into_string, change_lines, change_encoding, flip, truncate, insert, delete, duplicate]
JSON = [change_json, change_json, change_json, *TEXT]


def change_name(rng, data):
    """Inserts terminal control characters or a long text into a file name."""
    added = rng.choice([*TEXTS, "A" * 180, " ", "'\"`$(x)", "\udcff\udcfe", "-", "--help"])
    position = rng.randrange(len(data))
    other = decode(data[:position]) + added + decode(data[position:])
    return encode(other.replace("/", "|").replace("\0", ""))[:250]


# --- Structured formats


def png_chunk(rng, data):
    """Changes a chunk of a PNG file, with a valid length and CRC."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((bytes(data[at + 4 : at + 8]), bytearray(data[at + 8 : at + 8 + length])))
        at += 12 + length
    i, j = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind, contents = chunks[i]
    action = rng.randrange(8)
    if action < 4 and contents:
        # Chunks are short, so every change is likely to have an effect.
        contents = rng.choice([flip, overwrite, truncate, insert])(rng, contents)
        chunks[i] = (kind, contents)
    elif action == 4:
        chunks.insert(j, (kind, contents))
    elif action == 5:
        del chunks[i]
    elif action == 6:
        chunks[i], chunks[j] = chunks[j], chunks[i]
    else:
        kind = rng.choice(
            [b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"iTXt", b"sBIT", b"pHYs", b"cICP", b"eXIf", b"IHDR", b"IEND"]
        )
        chunks.insert(max(1, i), (kind, rng.randbytes(rng.choice([0, 1, 2, 4, 6, 8, 26, 300]))))
    return bytearray(images.SIGNATURE + b"".join(images.chunk(kind, bytes(contents)) for kind, contents in chunks))


def segments(data):
    """Splits a JPEG file into segments: marker, contents, and the data up to the next marker."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        after = end
        if marker == 0xDA:
            while after + 1 < len(data) and not (data[after] == 0xFF and data[after + 1] not in (0, *range(0xD0, 0xD8))):
                after += 1
        parts.append([marker, bytearray(data[at + 4 : end]), bytes(data[end:after])])
        at = after
    return parts, bytes(data[at:])


def jpeg_segment(rng, data):
    """Changes a segment of a JPEG file, with a valid length, or the data after it."""
    parts, end = segments(data)
    if not parts:
        return flip(rng, data)
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    action = rng.randrange(9)
    if action < 4:
        parts[i][1] = rng.choice([flip, overwrite, truncate, insert])(rng, parts[i][1]) if parts[i][1] else parts[i][1]
    elif action == 4:
        parts.insert(j, parts[i])
    elif action == 5:
        del parts[i]
    elif action == 6:
        parts[i], parts[j] = parts[j], parts[i]
    elif action == 7:
        exif = b"Exif\0\0" + rng.choice([b"II*\0", b"MM\0*"]) + rng.randbytes(rng.choice([4, 30, 200]))
        parts.insert(0, [rng.choice([0xE1, 0xE2, 0xEE, 0xFE, 0xDD, 0xC4]), bytearray(exif), b""])
    else:
        end = rng.choice([b"", end + rng.randbytes(500) + b"\xff\xda\0\4" + bytes(9), end + bytes(data), b"\xff\xd9" * 3])
    out = bytearray(b"\xff\xd8")
    for marker, contents, after in parts:
        out += bytes([0xFF, marker]) + struct.pack(">H", min(0xFFFF, len(contents) + 2)) + contents + after
    return out + end


def riff_chunk(rng, data):
    """Changes a chunk of a WebP file, with valid lengths."""
    chunks, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        chunks.append((bytes(data[at : at + 4]), bytearray(data[at + 8 : at + 8 + length])))
        at += 8 + length + length % 2
    if not chunks:
        return flip(rng, data)
    i, j = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    action = rng.randrange(7)
    if action < 4 and chunks[i][1]:
        chunks[i] = (chunks[i][0], rng.choice([flip, overwrite, truncate, insert])(rng, chunks[i][1]))
    elif action == 4:
        chunks.insert(j, chunks[i])
    elif action == 5:
        del chunks[i]
    else:
        chunks[i], chunks[j] = chunks[j], chunks[i]
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(c)) + c + bytes(len(c) % 2) for k, c in chunks)
    return bytearray(b"RIFF" + struct.pack("<I", len(body)) + body)


def safetensors_header(rng, data):
    """Changes the JSON of a safetensors file, with a valid length."""
    (length,) = struct.unpack_from("<Q", data)
    text, numbers = data[8 : 8 + length], data[8 + length :]
    text = rng.choice([change_json, change_json, change_json, replace_token, insert_into_string, change_lines])(rng, text)
    return bytearray(struct.pack("<Q", len(text))) + text + numbers


def onnx_field(rng, data):
    """Changes a field of an ONNX file, with valid lengths."""
    model = formats.parse(bytes(data))
    places = [(message, i) for message in formats.messages(model) for i in range(len(message))]
    message, i = rng.choice(places)
    number, wire, old = message[i]
    action = rng.randrange(8)
    if action == 0:
        del message[i]
    elif action == 1:
        message.insert(rng.randrange(len(message) + 1), message[i])
    elif action == 2:
        j = rng.randrange(len(message))
        message[i], message[j] = message[j], message[i]
    elif action == 3:
        message[i] = [rng.choice([number + 1, max(1, number - 1), 13, 14, 1000]), wire, old]
    elif wire == 0:
        message[i][2] = rng.choice([*NUMBERS, old + 1, max(0, old - 1)]) % (1 << 64)
    elif isinstance(old, list):
        message.append([rng.randrange(1, 20), 0, rng.choice(NUMBERS) % (1 << 64)])
    elif action < 7 and len(old) < 1 << 16:
        edit = rng.choice([change_json if old[:1] == b"{" else replace_token, insert_into_string, flip, truncate])
        message[i][2] = bytes(edit(rng, bytearray(old)))
    else:
        message[i][2] = rng.choice([b"", old[:-1], old + b"\0", TEXTS[0].encode(), b"A" * 5000, b"\xff\xfe"])
    return bytearray(formats.serialize(model))


def zip_header(rng, data):
    """Changes a field of a zip archive's headers."""
    name, entry, local, _, _ = rng.choice(formats.entries(data))
    # Offset and size of fields: flags, method, CRC, sizes, lengths of name and extra field; in the directory also disk and offset.
    local_fields = [(6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)]
    entry_fields = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)]
    end_fields = [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)]
    begin, fields = rng.choice([(local, local_fields), (entry, entry_fields), (data.rfind(b"PK\5\6"), end_fields)])
    offset, length = rng.choice(fields)
    position = begin + offset
    old = int.from_bytes(data[position : position + length], "little")
    new = rng.choice([old + 1, old - 1, old ^ 1, old ^ 8, 0, *NUMBERS]) % (1 << 8 * length)
    data[position : position + length] = new.to_bytes(length, "little")
    return data


def zip_name(rng, data):
    """Changes all copies of a name in a zip archive."""
    name = rng.choice(formats.entries(data))[0].encode()
    other = bytearray(name)
    other[rng.randrange(len(other))] = rng.choice([0, 0x1B, 0x2F, 0x2E, 0x7F, 0xFF])
    return bytearray(bytes(data).replace(name, bytes(other)))


# The opcodes of pickle protocols 0 to 5.
OPCODES = b"(.0123FIJKLMNPQRSTUVXabcdeghijlopqrstu}]BC" + bytes(range(0x80, 0x99))


def pickle_value(rng, data):
    """Changes the pickle of a PyTorch file, in a valid archive."""
    files = formats.unpack(bytes(data))
    name = next(name for name in files if name.endswith("data.pkl"))
    contents = bytearray(files[name])
    action = rng.randrange(8)
    position = rng.randrange(len(contents))
    if action < 2:
        contents[position] = rng.choice(OPCODES)
    elif action == 2:
        contents[position:position] = bytes([rng.choice(OPCODES)]) * rng.choice([1, 2, 5, 100_000])
    elif action == 3:
        # Other globals and truncated opcodes.
        contents[-1:] = rng.choice(
            [
                b"cos\nsystem\n(X\4\0\0\0trueetR.",
                b"cbuiltins\neval\n.",
                b"c\x1b[31m\nx\n.",
                b"\x8a\xff" + b"\xff" * 255 + b".",
                b"X\xff\xff\xff\xff.",
                b"\x8d" + b"\xff" * 8 + b".",
            ]
        )
    else:
        contents = rng.choice(BYTES)(rng, contents)
    files[name] = bytes(contents)
    return bytearray(formats.archive(files))


# The mutations of each kind of file.
KINDS = {
    "png": [png_chunk, png_chunk, *BYTES],
    "jpeg": [jpeg_segment, jpeg_segment, *BYTES],
    "webp": [riff_chunk, riff_chunk, *BYTES],
    "safetensors": [safetensors_header, safetensors_header, *BYTES],
    "onnx": [onnx_field, onnx_field, *BYTES],
    "zip": [zip_header, zip_header, zip_name, pickle_value, *BYTES],
    "pickle": [pickle_value, pickle_value, zip_header, zip_name, flip, truncate, zeros],
    "text": TEXT,
    "json": JSON,
    "bytes": BYTES,
    "name": [change_name],
}
# Mutations that leave all checksums valid.
CHECKSUM_PRESERVING = {pickle_value}


def mutate(rng, kind, original):
    """Returns changed bytes, the names of the mutations, and True if the file's checksums are valid."""
    while True:
        data, applied = bytearray(original), []
        for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
            mutation = rng.choice(KINDS[kind])
            try:
                data = bytearray(mutation(rng, bytearray(data)))
            except Exception:
                # An earlier mutation may destroy the structure that this one needs.
                if not applied:
                    raise
                continue
            applied.append(mutation)
        if bytes(data) != bytes(original):
            return bytes(data), [mutation.__name__ for mutation in applied], bool(CHECKSUM_PRESERVING & set(applied))
