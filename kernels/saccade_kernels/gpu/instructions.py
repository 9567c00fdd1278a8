"""Instructions of the loops of a compiled kernel: what one warp issues for one tile.

Loops are found in the disassembly: a branch back to a label makes one. Of a round of a loop there
is a cheapest and a dearest way, for branches inside it may be taken or not; a loop inside it counts
there as one round at most, and is a loop of its own beside. The counts need no GPU and say nothing
of time: they show what a change of the code costs.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"

LEAST = 16
"""Instructions of a loop that is worth a count; shorter ones wait, or are never reached."""

PRODUCTS = re.compile(r"\b(HMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA)\b")
"""Instructions of tensor cores."""


@dataclass(frozen=True)
class Listing:
    """Instructions in the order of their addresses, and the place of each label among them."""

    instructions: Sequence[str]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Loop:
    """One round of a loop, in instructions of a warp."""

    cheapest: int
    dearest: int
    products: int  # instructions of tensor cores in the whole loop


def loops_of(cubin: bytes) -> list[Loop]:
    """Of a compiled kernel, in the order of their addresses."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(DISASSEMBLER), "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return loops(listing(text))


def listing(text: str) -> Listing:
    """What the disassembler has printed."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    return Listing(instructions, labels)


def loops(code: Listing) -> list[Loop]:
    """Every loop that is worth a count."""
    ends: dict[int, int] = {}  # by first instruction, the last that branches back to it
    for place, instruction in enumerate(code.instructions):
        target = _target(instruction, code)
        if target is not None and target <= place:
            ends[target] = place
    found = []
    for first, last in sorted(ends.items()):
        cheapest, dearest = _round(code, first, last)
        inside = code.instructions[first : last + 1]
        if LEAST <= dearest < math.inf:
            products = sum(bool(PRODUCTS.search(one)) for one in inside)
            found.append(Loop(int(cheapest), int(dearest), products))
    return found


def _round(code: Listing, first: int, last: int) -> tuple[float, float]:
    """Fewest and most instructions from the first one to a branch back to it."""
    fewest: dict[int, float] = {}
    most: dict[int, float] = {}
    for place in range(last, first - 1, -1):
        instruction = code.instructions[place]
        target = _target(instruction, code)
        if target == first:
            fewest[place] = most[place] = 1
            if not _conditional(instruction):
                continue
        following = [place + 1] if _falls_through(instruction) else []
        if target is not None and target > place:
            following.append(target)
        ways = [one for one in following if one in fewest]
        short = [1 + fewest[one] for one in ways] + [fewest.get(place, math.inf)]
        long = [1 + most[one] for one in ways] + [most.get(place, -math.inf)]
        fewest[place], most[place] = min(short), max(long)
    return fewest[first], most[first]


def _target(instruction: str, code: Listing) -> int | None:
    """Where a branch goes to."""
    found = re.search(r"\bBRA\b.*?(\.L_x_\d+)", instruction)
    return code.labels.get(found[1]) if found else None


def _conditional(instruction: str) -> bool:
    """Whether it depends on a predicate, before it or among its operands."""
    if instruction.startswith("@"):
        return True
    operands = instruction.partition("BRA")[2].partition("`")[0]
    return operands.startswith(".DIV") or bool(re.search(r"\bU?P\d", operands))


def _falls_through(instruction: str) -> bool:
    """Whether the next instruction may be the next one."""
    leaves = re.search(r"\b(BRA|EXIT|RET|JMP)\b", instruction)
    return leaves is None or _conditional(instruction)
