"""What a compiled form is made of, as one number: the same until its compiled code may change.

Facts about compiled code take minutes to find out. A record of them is true for as long as the
digests are the same, which takes no compiler to see.
"""

from __future__ import annotations

import inspect
import io
import json
import tokenize
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from typing import Any

from triton.runtime.jit import KernelInterface

from saccade_kernels.gpu.offline import Variant

ENDS = (tokenize.NEWLINE, tokenize.ENDMARKER)
LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)


def digest(variant: Variant) -> str:
    """Of the form's code, called functions and named numbers included, and how it is compiled."""
    names = list(inspect.signature(variant.kernel.fn).parameters)
    limit = [variant.max_registers] if variant.max_registers else []
    parts = {
        "code": code_of(variant.kernel),
        "types": {name: variant.types[name] for name in names if name in variant.types},
        "constants": {n: repr(variant.constants[n]) for n in names if n in variant.constants},
        "launch": [variant.num_warps, variant.num_stages, *limit],
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_of(kernel: Any) -> dict[str, str]:
    """Every function and number that a kernel needs, by name, without comments and docstrings."""
    found: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop().fn
        name = f"{function.__module__}.{function.__name__}"
        if name in found:
            continue
        lines = list(_lines(inspect.getsource(function)))
        found[name] = "\n".join(" ".join(line) for line in lines)
        for word in sorted({word for line in lines for word in line}):
            value = function.__globals__.get(word)
            if isinstance(value, KernelInterface):
                waiting.append(value)
            elif (number := _plain(value)) is not None:
                found[f"{name}.{word}"] = number
    return found


def _lines(source: str) -> Iterator[list[str]]:
    """Words of each logical line. Lines of one string are left out: they are docstrings."""
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ENDS:
            line += [token] if token.type not in LAYOUT else []
            continue
        if line and not (len(line) == 1 and line[0].type == tokenize.STRING):
            yield [word.string for word in line]
        line = []


def _plain(value: Any) -> str | None:
    """A number, a text or a list of them, also as Triton's constant; None for anything else."""
    value = getattr(value, "value", value)
    if isinstance(value, list | tuple):
        return repr([_plain(one) for one in value])
    return repr(value) if isinstance(value, int | float | str) else None
