"""The last lines of a run: how parts ended, and figures with their targets, in few characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from report import Target

from gpu.plan import Part
from gpu.store import Store, short

WIDTH = 72


def summary(store: Store, parts: Sequence[Part]) -> Iterator[str]:
    """What has been measured of these parts, in this run or before."""
    groups: dict[str, list[str]] = {}
    for part in parts:
        groups.setdefault(store.outcome(part.name) or "not run", []).append(part.name)
    yield "parts: " + "; ".join(f"{how}: {', '.join(names)}" for how, names in groups.items())
    for part in parts:
        record = store.records.get(part.name, {})
        for name, text in record.get("lines", {}).items():
            yield f"{name:{WIDTH}} {text}"
    for target in store.targets(parts):
        yield _target(target)
    for part in parts:
        record = store.records.get(part.name, {})
        if record.get("outcome") in ("failed", "died"):
            yield f"{record['outcome'].upper()} {part.name}: {short(record)}"


def _target(target: Target) -> str:
    bound = f"{'<=' if target.at_most else '>='} {target.target:g}"
    if target.value is None:
        return f"{target.name:{WIDTH}} not measured {bound}"
    verdict = "met" if target.met else "MISSED"
    return f"{target.name:{WIDTH}} {target.value:.3f} {target.unit} {bound} {verdict}"
