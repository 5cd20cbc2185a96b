"""Seeded mutations of files, of their bytes and of the values in JSON, and a limit on the memory to read them."""

import json
import random
import resource
from pathlib import Path
from typing import Any

GROWTH_BYTES = 1 << 30

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
HEAD = 400
HOSTILE_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "..",
    "/etc/passwd",
    "\0",
    "\ud800",
    "9" * 5000,
    [],
    [[]],
    {},
    {"a": {"b": []}},
)


def limit_memory() -> None:
    """Allow this process 1 GiB more than it has with all its imports."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def mutate_bytes(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Return a file with one to four changes: bits, numbers, cuts, repeats, or the end of one of ``others``."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(changed), HEAD) if chance.random() < 0.6 else len(changed))
        span = chance.choice((1, 2, 4, 12, 60))
        match chance.randrange(7):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1 | 2:
                size = chance.choice((1, 2, 4))
                number = chance.choice(EXTREMES) & (1 << 8 * size) - 1
                changed[at : at + size] = number.to_bytes(size, chance.choice(("big", "little")))
            case 3:
                del changed[at:]
            case 4:
                del changed[at : at + span]
            case 5:
                changed[at:at] = changed[at : at + span] * chance.choice((1, 1, 50))
            case _:
                other = chance.choice(others)
                changed[at:] = other[chance.randrange(len(other)) :]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def mutate_json(data: bytes, chance: random.Random) -> bytes:
    """Return JSON text with one to three values replaced, removed or nested too deeply."""
    root = {"root": json.loads(data)}
    for _ in range(chance.randint(1, 3)):
        parent, key = chance.choice(_places(root))
        match chance.randrange(8):
            case 0 if isinstance(parent, dict) and parent is not root:
                parent.pop(key, None)
            case 1 if isinstance(parent, list):
                parent.append(parent[key])
            case 2:
                return json.dumps(root["root"]).encode().replace(b"[", b"[" * 100_000, 1)
            case _:
                parent[key] = chance.choice(HOSTILE_VALUES)
    return json.dumps(root["root"]).encode()


def mutate_json_lines(data: bytes, chance: random.Random) -> bytes:
    """Return JSON Lines with one line mutated, or cut, or repeated."""
    lines = data.splitlines()
    at = chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            lines[at] = lines[at][: chance.randrange(len(lines[at]) or 1)]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines[at] = chance.choice((b"", b"null", b"[]", b"1", b'"x"', b"{}", b"\xff"))
        case _:
            lines[at] = mutate_json(lines[at], chance)
    return b"".join(line + b"\n" for line in lines)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key or position) of every value, without recursion into what a mutation has shared."""
    places: list[tuple[Any, Any]] = []
    queue = [value]
    while queue and len(places) < 2000:
        container = queue.pop(0)
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            places.append((container, key))
            if isinstance(container[key], dict | list):
                queue.append(container[key])
    return places
