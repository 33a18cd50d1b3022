"""Mutate files of every kind that a command reads: bytes, JSON, JSON lines, YAML, checkpoints."""

import copy
import gzip
import json
import math
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

Mutation = tuple[str, bytes]
"""What was done, and the new content."""

DEEP = 20_000
MANY_DIGITS, LARGE = "number of many digits", "number of 1e400"
"""Python writes no such numbers, so they are put into the text."""

_VALUES: list[tuple[str, Any]] = [
    ("null", None),
    ("true", True),
    ("a list", [1, "x"]),
    ("an empty list", []),
    ("a mapping", {"x": 1}),
    ("an empty mapping", {}),
    ("nested lists", [[[[1]]]]),
    ("no text", ""),
    ("a text", "x"),
    ("digits", "7"),
    ("a long text", "x" * 5000),
    ("escapes", "\x1b]0;x\x07\x1b[31m\u202e\n"),
    ("half a surrogate", "\ud800"),
    ("a zero byte", "a\0b"),
    ("a path upwards", "../../../etc/passwd"),
    ("zero", 0),
    ("minus one", -1),
    ("a fraction", 0.5),
    ("a large number", 2**40),
    ("more than 64 bits", 2**70),
    ("4,000 digits", 10**4000),
    ("5,000 digits", MANY_DIGITS),
    ("1e400", LARGE),
    ("infinity", math.inf),
    ("NaN", math.nan),
    ("1e308", 1e308),
]
_OTHER_FILES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("zeros", bytes(512)),
    ("a text", b"this is something else\n"),
    ("a PNG", b"\x89PNG\r\n\x1a\n" + bytes(40)),
    ("a JPEG", b"\xff\xd8\xff\xe0" + bytes(40)),
    ("gzip", gzip.compress(b"x" * 99)),
    ("a pickle", pickle.dumps({"a": 1})),
    ("a zip", b"PK\x03\x04" + bytes(40)),
    ("JSON null", b"null"),
    ("a JSON list", b"[1, 2]"),
    ("a JSON number", b"7"),
    ("an empty JSON object", b"{}"),
    ("deep lists", b"[" * DEEP),
    ("closed deep lists", b"[" * DEEP + b"]" * DEEP),
    ("deep mappings", b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    ("UTF-16", "name: x\n".encode("utf-16")),
    ("a byte order mark", b"\xef\xbb\xbf{}"),
    ("Latin-1", b"name: caf\xe9\n"),
]


def of_bytes(data: bytes, rng: random.Random) -> Mutation:
    """Cut, flip, double or replace the bytes of a file."""
    choice = rng.randrange(6)
    if choice == 0:
        name, other = rng.choice(_OTHER_FILES)
        return f"is {name}", other
    at = rng.randrange(max(1, len(data)))
    if choice == 1:
        return f"cut to {at} bytes", data[:at]
    if choice == 2:
        return "with another file behind", data + rng.choice(_OTHER_FILES)[1] + b"x"
    if choice == 3:
        more = rng.randbytes(rng.randrange(1, 9))
        return f"{len(more)} bytes put in at {at}", data[:at] + more + data[at:]
    changed = bytearray(data or b"x")
    for _ in range(rng.choice((1, 1, 8, 64))):
        place = rng.randrange(len(changed))
        changed[place] ^= 1 << rng.randrange(8)
    return "bits flipped", bytes(changed)


def of_json(data: bytes, rng: random.Random) -> Mutation:
    """Change one value or key of a JSON document, or its text."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    what, document = changed_tree(json.loads(data), rng)
    text = json.dumps(document, indent=rng.choice((None, 2)))
    if rng.random() < 0.1:
        what, text = "a doubled key", text.replace("{", '{"format": 1, "format": 2, ', 1)
    return what, _with_numbers(text)


def _with_numbers(text: str) -> bytes:
    for mark, number in ((MANY_DIGITS, "1" * 5000), (LARGE, "1e400")):
        text = text.replace(f'"{mark}"', number).replace(mark, number)
    return text.encode("utf-8", "surrogatepass")


def of_json_lines(data: bytes, rng: random.Random) -> Mutation:
    """Change one line of a file of JSON lines."""
    lines = data.splitlines(keepends=True)
    if not lines or rng.random() < 0.2:
        return of_bytes(data, rng)
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            what, lines[at : at + 1] = "line doubled", [lines[at]] * 2
        case 1:
            what, lines[at : at + 1] = "line left out", []
        case 2:
            what, lines = "lines in another order", rng.sample(lines, len(lines))
        case _:
            what, lines[at] = of_json(lines[at], rng)
            lines[at] = lines[at].replace(b"\n", b" ") + b"\n"
    return f"line {at + 1}: {what}", b"".join(lines)


def of_yaml(data: bytes, rng: random.Random) -> Mutation:
    """Change one value or key of a YAML document, or its text."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    what, document = changed_tree(yaml.safe_load(data), rng)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=rng.random() < 0.5)
    return what, _with_numbers(text)


def changed_tree(document: Any, rng: random.Random) -> tuple[str, Any]:
    """Return a copy of nested dicts and lists with one node changed."""
    document = copy.deepcopy(document)
    spots = list(_spots(document))
    if not spots:
        what, value = rng.choice(_VALUES)
        return f"is {what}", value
    path, holder, key = rng.choice(spots)
    match rng.randrange(7):
        case 0:
            del holder[key]
            return f"{path} left out", document
        case 1 if isinstance(holder, dict):
            other = rng.choice(("", "x", f"{key} ", "__class__", "\x1b[31m", "\ud800"))
            holder[other] = holder.pop(key)
            return f"{path} renamed", document
        case 2:
            other, from_holder, from_key = rng.choice(spots)
            holder[key] = copy.deepcopy(from_holder[from_key])
            return f"{path} takes the value of {other}", document
        case 3 if isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * rng.choice((1, 300))
            return f"{path} repeated", document
        case _:
            what, value = rng.choice(_VALUES)
            holder[key] = copy.deepcopy(value)
            return f"{path} is {what}", document


def _spots(node: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, container, key) of every node below `node`."""
    if isinstance(node, dict):
        items: Any = list(node.items())
    elif isinstance(node, list | tuple):
        items = list(enumerate(node))
    else:
        return
    for key, value in items:
        if not isinstance(node, tuple):
            yield f"{path}.{key}", node, key
        yield from _spots(value, f"{path}.{key}")


def of_checkpoint(path: Path, rng: random.Random) -> str:
    """Rewrite a checkpoint with a changed tree or tensor and a manifest that fits it."""
    import hashlib

    payload = torch.load(path, weights_only=True)
    if rng.random() < 0.5:
        what, payload = changed_tree(payload, rng)
    else:
        what = _change_tensor(payload, rng)
    torch.save(payload, path)
    data = path.read_bytes()
    manifest = path.with_suffix(".json")
    facts = json.loads(manifest.read_text())
    facts |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(facts))
    return f"rewritten, {what}"


_TENSORS: list[tuple[str, Callable[[torch.Tensor], object]]] = [
    ("of float64", lambda x: x.double()),
    ("of int8", lambda x: x.to(torch.int8)),
    ("of bool", lambda x: x.bool()),
    ("complex", lambda x: x.to(torch.complex64)),
    ("of bfloat16", lambda x: x.to(torch.bfloat16)),
    ("sparse", lambda x: x.to_sparse()),
    ("empty", lambda x: x.new_zeros(0)),
    ("a scalar", lambda x: x.new_zeros(())),
    ("transposed", lambda x: x.transpose(0, -1) if x.dim() else x[None]),
    ("of one more dimension", lambda x: x[None]),
    ("NaN", lambda x: torch.full_like(x, math.nan) if x.is_floating_point() else x[None]),
    ("infinite", lambda x: torch.full_like(x, math.inf) if x.is_floating_point() else x[None]),
    ("1e38", lambda x: torch.full_like(x, 1e38) if x.is_floating_point() else x[None]),
    ("on the meta device", lambda x: x.to("meta")),
    ("expanded", lambda x: x.new_zeros(()).expand(x.shape)),
    ("a quantized tensor", lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)),
    ("a parameter", lambda x: torch.nn.Parameter(x.float())),
    ("a number", lambda x: 7),
    ("a list", lambda x: x.flatten()[:9].tolist()),
    ("none", lambda x: None),
]


def _change_tensor(payload: Any, rng: random.Random) -> str:
    tensors = [
        (path, holder, key)
        for path, holder, key in _spots(payload)
        if isinstance(holder[key], torch.Tensor)
    ]
    path, holder, key = rng.choice(tensors)
    what, change = rng.choice(_TENSORS)
    holder[key] = change(holder[key])
    return f"{path} {what}"


def text_png(data: bytes, rng: random.Random) -> Mutation:
    """Put a chunk of text, a gamma or another header into a PNG, with right checksums."""
    from tests.support.files import chunk

    more = rng.choice(
        [
            chunk(b"tEXt", b"\x1b]0;pwned\x07\0" + b"x" * 9),
            chunk(b"gAMA", struct.pack(">I", rng.choice((0, 1, 2**31)))),
            chunk(b"iCCP", b"x\0\0" + rng.randbytes(30)),
            chunk(b"eXIf", rng.randbytes(40)),
            chunk(b"acTL", struct.pack(">II", 2**31, 0)),
            chunk(b"tRNS", rng.randbytes(6)),
            chunk(b"\x1b[3m", b"x"),
        ]
    )
    if rng.random() < 0.4:
        head = struct.pack(
            ">IIBBBBB",
            rng.choice((0, 1, 7, 64, 2**16, 2**31 - 1)),
            rng.choice((0, 1, 7, 64, 2**16, 2**31 - 1)),
            rng.choice((1, 3, 8, 16, 255)),
            rng.choice((0, 2, 3, 6, 9)),
            *(rng.choice((0, 0, 9)) for _ in range(3)),
        )
        return "another header", data[:8] + chunk(b"IHDR", head) + data[33:]
    return f"with a chunk {more[4:8]!r}", data[:33] + more + data[33:]
