"""Changes to files. Each is a function of a random generator and the bytes, and gives other bytes."""

import json
import re
import struct

from . import formats, pictures

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


def some_place(rng, data):
    """A place: the beginning and the end of a file, where most of its structure is, are as likely as all between."""
    if not data:
        return 0
    edge = min(len(data), 4096)
    return rng.choice([rng.randrange(edge), len(data) - 1 - rng.randrange(edge), rng.randrange(len(data))])


def some_block(rng, data, most=1 << 16):
    """Where a block of 64 bytes to `most` begins and ends, of few bytes if `most` is less."""
    bits = most.bit_length() - 1
    size = min(len(data), 1 << rng.randint(min(6, bits), bits))
    at = min(some_place(rng, data), len(data) - size)
    return at, at + size


# --- Bytes


def flip(rng, data):
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if data:
            data[some_place(rng, data)] ^= 1 << rng.randrange(8)
    return data


def overwrite(rng, data):
    number, code = rng.choice(NUMBERS), rng.choice("BHIQ")
    order, length = rng.choice("<>"), struct.calcsize("<" + code)
    place = some_place(rng, data)
    data[place : place + length] = struct.pack(order + code, number % (1 << 8 * length))[: len(data) - place]
    return data


def truncate(rng, data):
    return data[: rng.choice([some_place(rng, data), some_place(rng, data), 0, len(data) - 1])]


def behead(rng, data):
    return data[some_place(rng, data) :]


def zeros(rng, data):
    begin, end = some_block(rng, data)
    data[begin:end] = bytes([rng.choice([0, 0, 0, 255])]) * (end - begin)
    return data


def insert(rng, data):
    place = some_place(rng, data)
    return data[:place] + rng.choice([rng.randbytes(rng.choice([1, 4, 64])), bytes(rng.choice([1, 8, 4096]))]) + data[place:]


def delete(rng, data):
    begin, end = some_block(rng, data, rng.choice([1, 8, 4096]))
    return data[:begin] + data[end:]


def duplicate(rng, data):
    begin, end = some_block(rng, data)
    return data[:end] + data[begin:]


def swap(rng, data):
    begin, end = some_block(rng, data)
    other = min(some_place(rng, data), len(data) - (end - begin))
    block = data[begin:end]
    data[begin:end] = data[other : other + len(block)]
    data[other : other + len(block)] = block
    return data


BYTES = [flip, flip, overwrite, overwrite, truncate, behead, zeros, zeros, insert, delete, duplicate, swap]


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


def hostile(rng, quoted=True):
    """A value that nobody expects."""
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


def token(rng, data):
    text = decode(data)
    tokens = list(TOKEN.finditer(text[: 1 << 20]))
    if not tokens:
        return encode(hostile(rng))
    found = rng.choice(tokens)
    return encode(text[: found.start()] + hostile(rng) + text[found.end() :])


def within_string(rng, data):
    text = decode(data)
    strings = [found for found in TOKEN.finditer(text[: 1 << 20]) if found[0].startswith('"') or found[0].isalpha()]
    if not strings:
        return token(rng, data)
    found = rng.choice(strings)
    place = rng.randrange(found.start() + 1, found.end() + 1)
    added = rng.choice([*TEXTS, *(json.dumps(t)[1:-1] for t in TEXTS), "A" * LONG, "\\u001b[31m" * 40, "\udcff\udcfe"])
    return encode(text[:place] + added + text[place:])


def lines(rng, data):
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
        parts.insert(i, hostile(rng, quoted=False))
    return encode("\n".join(parts))


def encoding(rng, data):
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


def value(rng):
    """A JSON value that nobody expects."""
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


def json_part(rng, document):
    """Changes one part of a JSON document, which is parsed."""
    holders = []

    def walk(node):
        if isinstance(node, (dict, list)) and node:
            holders.append(node)
            for child in node.values() if isinstance(node, dict) else node[:1000]:
                walk(child)

    walk(document)
    if not holders:
        return value(rng)
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    action = rng.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS) + str(key)] = holder.pop(key)
    elif action == 2 and isinstance(holder, dict):
        holder[rng.choice(["__proto__", "extra", *TEXTS, "A" * 5000])] = value(rng)
    elif action == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        number = holder[key]
        holder[key] = rng.choice(
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
    elif action == 4 and isinstance(holder, list):
        holder.append(rng.choice([holder[key], value(rng)]))
    else:
        holder[key] = value(rng)
    return document


def json_value(rng, data):
    try:
        document = json.loads(data)
    except ValueError:
        return token(rng, data)
    return encode(json.dumps(json_part(rng, document), ensure_ascii=rng.random() < 0.5))


TEXT = [token, token, within_string, lines, encoding, flip, truncate, insert, delete, duplicate]
JSON = [json_value, json_value, json_value, *TEXT]


def name(rng, data):
    """The name of a file, with something in it that terminals obey or that is long."""
    added = rng.choice([*TEXTS, "A" * 180, " ", "'\"`$(x)", "\udcff\udcfe", "-", "--help"])
    place = rng.randrange(len(data))
    other = decode(data[:place]) + added + decode(data[place:])
    return encode(other.replace("/", "|").replace("\0", ""))[:250]


# --- Formats with a structure of their own


def png_chunk(rng, data):
    """Changes a chunk of a PNG file and writes its length and CRC as they should be."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((bytes(data[at + 4 : at + 8]), bytearray(data[at + 8 : at + 8 + length])))
        at += 12 + length
    i, j = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind, contents = chunks[i]
    action = rng.randrange(8)
    if action < 4 and contents:
        # Few bytes, so that each is likely to matter.
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
    return bytearray(pictures.SIGNATURE + b"".join(pictures.chunk(kind, bytes(contents)) for kind, contents in chunks))


def segments(data):
    """The segments of a JPEG file: marker, contents, and what follows up to the next marker."""
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
    """Changes a segment of a JPEG file and writes its length as it should be; or what stands behind it."""
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
    """Changes a chunk of a WebP file and writes all lengths as they should be."""
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
    """Changes the JSON of a safetensors file and writes its length as it should be."""
    (length,) = struct.unpack_from("<Q", data)
    text, numbers = data[8 : 8 + length], data[8 + length :]
    text = rng.choice([json_value, json_value, json_value, token, within_string, lines])(rng, text)
    return bytearray(struct.pack("<Q", len(text))) + text + numbers


def onnx_field(rng, data):
    """Changes a field of an ONNX file and writes all lengths around it as they should be."""
    model = formats.parse(bytes(data))
    # Numbers are left to changes of bytes: there are so many.
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
        edit = rng.choice([json_value if old[:1] == b"{" else token, within_string, flip, truncate])
        message[i][2] = bytes(edit(rng, bytearray(old)))
    else:
        message[i][2] = rng.choice([b"", old[:-1], old + b"\0", TEXTS[0].encode(), b"A" * 5000, b"\xff\xfe"])
    return bytearray(formats.serialize(model))


def zip_header(rng, data):
    """Changes a field of a zip archive's headers."""
    name, entry, local, _, _ = rng.choice(formats.entries(data))
    # Flags, method, CRC, sizes, lengths of name and extra field; in the directory also disk and offset.
    local_fields = [(6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)]
    entry_fields = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)]
    end_fields = [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)]
    begin, fields = rng.choice([(local, local_fields), (entry, entry_fields), (data.rfind(b"PK\5\6"), end_fields)])
    offset, length = rng.choice(fields)
    place = begin + offset
    old = int.from_bytes(data[place : place + length], "little")
    new = rng.choice([old + 1, old - 1, old ^ 1, old ^ 8, 0, *NUMBERS]) % (1 << 8 * length)
    data[place : place + length] = new.to_bytes(length, "little")
    return data


def zip_name(rng, data):
    """Changes a name in a zip archive, everywhere."""
    name = rng.choice(formats.entries(data))[0].encode()
    other = bytearray(name)
    other[rng.randrange(len(other))] = rng.choice([0, 0x1B, 0x2F, 0x2E, 0x7F, 0xFF])
    return bytearray(bytes(data).replace(name, bytes(other)))


# Those of the pickle protocols up to 5.
OPCODES = b"(.0123FIJKLMNPQRSTUVXabcdeghijlopqrstu}]BC" + bytes(range(0x80, 0x99))


def pickle_value(rng, data):
    """Changes the pickle of a PyTorch file, whose archive stays sound."""
    files = formats.unpacked(bytes(data))
    name = next(name for name in files if name.endswith("data.pkl"))
    contents = bytearray(files[name])
    action = rng.randrange(8)
    place = rng.randrange(len(contents))
    if action < 2:
        contents[place] = rng.choice(OPCODES)
    elif action == 2:
        contents[place:place] = bytes([rng.choice(OPCODES)]) * rng.choice([1, 2, 5, 100_000])
    elif action == 3:
        # A global of another name.
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


# By kind of file: what changes it. Changes after which all checksums are right again count as another file, not as a damaged one.
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
    "name": [name],
}
SOUND = {pickle_value}


def mutate(rng, kind, original):
    """Other bytes, what was done, and whether the file's own checksums are right again."""
    while True:
        data, done = bytearray(original), []
        for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
            change = rng.choice(KINDS[kind])
            try:
                data = bytearray(change(rng, bytearray(data)))
            except Exception:
                # It needs a structure which an earlier change destroyed.
                if not done:
                    raise
                continue
            done.append(change)
        if bytes(data) != bytes(original):
            return bytes(data), [change.__name__ for change in done], bool(SOUND & set(done))
