"""Adopt launch configurations that a GPU has chosen into tuning.json, as the table of its chip.

    python benchmarks/tune.py benchmarks/results/tune-nvidia-h200.json

The part ``tune`` of gpu_bench.py writes such a file. Entries of other chips and the default stay as
they are. Plain and edited forms of one head_dim agree on what decides the order of sums, so the
chip's table gets all entries of a head_dim of which one was chosen, those that were not measured
marked so. Then run `make compiled`: forms that are new are compiled and recorded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu.tune import candidates, size_of

from saccade_kernels.gpu import tuning

Table = dict[str, Any]


def adopted(table: Table, chip: str, result: Mapping[str, Any]) -> Table:
    """The whole table with a result's candidates for ``chip``."""
    chosen = candidates(result["figures"]["tune"])
    capability = tuning.named(result["hardware"]["capability"])
    known = [table.get(name, {}) for name in reversed(tuning.order(capability))]
    own: Table = {kernel: [] for kernel in tuning.KERNELS} | dict(table.get(chip, {}))
    for kernel in tuning.KERNELS:
        shared = tuning.SHARED.get(kernel, ())
        new = [entry for entry in chosen if entry["kernel"] == kernel and entry["key"]]
        for size in {size_of(entry["key"]) for entry in new}:
            some = [entry for entry in new if size_of(entry["key"]) == size]
            kept = [entry for entry in own[kernel] if size_of(entry["key"]) != size]
            own[kernel] = kept + list(_merged([*known, own], kernel, size, some, shared))
        own[kernel] = sorted(own[kernel], key=lambda e: json.dumps(e["key"], sort_keys=True))
    about = {"hardware": result["hardware"]["kind"], "versions": result["versions"]}
    about[tuning.FALLBACK] = capability
    return {**table, chip: {**about, **{kernel: own[kernel] for kernel in tuning.KERNELS}}}


def _merged(
    known: Sequence[Table],
    kernel: str,
    size: tuple[Any, ...] | None,
    new: Sequence[Table],
    shared: Sequence[str],
) -> Iterator[Table]:
    """All entries of one size, chosen now or known; they agree on what they share.

    Args:
        known: tables, each before those that are asked first; the last is the chip's own.
    """
    found: dict[str, Table] = {}
    *others, own = (one.get(kernel, ()) for one in known)
    for entry in (*({**e, "measured": False} for other in others for e in other), *own):
        if size_of(entry["key"]) == size:
            found[json.dumps(entry["key"], sort_keys=True)] = entry
    for entry in new:
        one = {"key": entry["key"], "config": entry["config"], "measured": True}
        found[json.dumps(entry["key"], sort_keys=True)] = one
    fixed = {name: new[0]["config"][name] for name in shared}
    for entry in found.values():
        changes = any(entry["config"][name] != value for name, value in fixed.items())
        measured = entry["measured"] and not changes
        config = {**entry["config"], **fixed} if fixed else entry["config"]
        yield {**entry, "config": config, "measured": measured}


def rendered(table: Mapping[str, Any]) -> str:
    """JSON with a line for each entry."""
    chips = []
    for chip, own in table.items():
        head = [
            f"  {json.dumps(name)}: {json.dumps(own[name])}"
            for name in ("hardware", "versions", tuning.FALLBACK)
            if name in own
        ]
        lists = [
            f"  {json.dumps(kernel)}: [\n"
            + ",\n".join(f"   {json.dumps(entry)}" for entry in own[kernel])
            + "\n  ]"
            for kernel in tuning.KERNELS
            if own.get(kernel)
        ]
        chips.append(f" {json.dumps(chip)}: {{\n" + ",\n".join([*head, *lists]) + "\n }")
    return "{\n" + ",\n".join(chips) + "\n}\n"


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("result", type=Path, help="a document of the part tune")
    given = made.parse_args()
    result = json.loads(given.result.read_text())
    chip = tuning.family(result["hardware"]["gpu"])
    path = Path(tuning.__file__).with_name("tuning.json")
    path.write_text(rendered(adopted(tuning.table(), chip, result)))
    print(f"{path.name} has {chip}'s entries now; `make compiled` comes next")


if __name__ == "__main__":
    main()
