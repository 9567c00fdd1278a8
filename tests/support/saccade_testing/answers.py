"""What a client can see of an answer, as plain data, and how two of them differ."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from saccade_testing.engine import Result

SHOWN = 6
"""Decimals of a number that is written down."""
NEAR = 5e-6
"""Of log-probabilities: what the order of sums in float32 may change, and far below a rule."""


def told(result: Result) -> dict[str, Any]:
    """All that a client could see, in a form that JSON keeps; the log-probabilities of
    candidates one a token, the token's own first.
    """
    last = result.last
    assert last is not None
    found: dict[str, Any] = {
        "tokens": result.tokens,
        "logprobs": [
            round(value, SHOWN)
            for entry in result.logprobs
            for value in (entry.logprob, *(value for _, value in entry.top))
        ],
        "ended": f"{last.finish_reason}",
        "error": last.error,
        "receipt": None,
    }
    if last.grammar is not None:
        found["grammar"] = msgspec.to_builtins(last.grammar)
    receipt = last.receipt
    if receipt is not None:
        heads = None
        for finding in receipt.findings:
            heads = {"source": finding.source, **msgspec.to_builtins(finding)}
            del heads["type"]
            heads["divergence"] = [[round(v, SHOWN) for v in row] for row in heads["divergence"]]
            heads["total"] = None if heads["total"] is None else round(heads["total"], SHOWN)
        found["receipt"] = {
            "rows": {str(phase): count for phase, count in sorted(receipt.rows.items())},
            "moved": sorted([c.layer, c.head, c.rows] for c in receipt.moved),
            "counters": sorted([c.source, c.name, c.value] for c in receipt.counters),
            "heads": heads,
        }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples are lists, as in a file
    return plain


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs of two answers that were :func:`told`, in words."""
    said = []
    for field in ("tokens", "ended", "error"):
        if found[field] != wanted[field]:
            said.append(f"{field} {found[field]}, not {wanted[field]}")
    if found["tokens"] == wanted["tokens"] and not _near(found["logprobs"], wanted["logprobs"]):
        said.append(f"log-probabilities {found['logprobs']}, not {wanted['logprobs']}")
    one, other = found["receipt"] or {}, wanted["receipt"] or {}
    for field in sorted({*one, *other}):
        if not _alike(one.get(field), other.get(field)):
            said.append(f"receipt's {field} {one.get(field)}, not {other.get(field)}")
    return said


def _near(found: list[float], wanted: list[float]) -> bool:
    return len(found) == len(wanted) and np.allclose(found, wanted, rtol=0, atol=NEAR)


def _alike(found: Any, wanted: Any) -> bool:
    """Equal, but for the last digits of numbers that are no integers."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_alike(found[k], wanted[k]) for k in found)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_alike, found, wanted))
    if isinstance(found, float) and isinstance(wanted, float):
        return abs(found - wanted) <= NEAR
    return bool(found == wanted)
