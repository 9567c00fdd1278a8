"""What the host does around a model, on a CPU with a model that computes nothing.

    python benchmarks/host.py [--parts requests steps] [--against COMMIT] [--rounds 3]

Every part is measured in processes of its own: this tree's and, with ``--against``, that of another
commit (or of a folder that holds one), in turns; figures are medians over the rounds. What is timed
is CPU time of the process. Parts that did not run keep their figures in the results.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hosting  # noqa: F401  # before report, see there
from report import HERE, Target, folder, hardware, write

import saccade_server

PARTS = tuple(name for name in ("requests", "steps") if (HERE / "hosting" / f"{name}.py").exists())
SOURCES = ("kernels", "interventions", "server", "clients/python")
NAME = "host"


@contextmanager
def checkout(what: str) -> Iterator[Path]:
    """A folder with the sources of a commit, or the folder that was named."""
    if Path(what).is_dir():
        yield Path(what).resolve()
        return
    with tempfile.TemporaryDirectory() as made:
        archive = ["git", "-C", str(HERE.parent), "archive", what]
        packed = subprocess.run(archive, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", made], input=packed, check=True)
        yield Path(made)


def measured(part: str, tree: Path) -> dict[str, Any]:
    """What a part finds about the sources in ``tree``, in a process of its own."""
    paths = os.pathsep.join(str(tree / source) for source in SOURCES)
    run = subprocess.run(
        [sys.executable, __file__, "--measure", part],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any]
    source, found = json.loads(run.stdout.splitlines()[-1])
    if tree.resolve() not in Path(source).resolve().parents:
        raise RuntimeError(f"{source} was measured, which is not of {tree}")
    return found


def median(runs: list[Any]) -> Any:
    """Of every number of equally shaped data."""
    if isinstance(runs[0], dict):
        return {key: median([run[key] for run in runs]) for key in runs[0]}
    if isinstance(runs[0], int | float):
        return round(statistics.median(runs), 4)
    return runs[0]


def ratios(new: Any, old: Any) -> Any:
    """Old over new of every number that both have: how many times faster."""
    if isinstance(new, dict):
        return {key: ratios(new[key], old[key]) for key in new if key in old}
    if isinstance(new, int | float):
        return round(old / new, 2) if new else None
    return new


def run(part: str, against: str | None, rounds: int) -> dict[str, Any]:
    """A part's figures: medians of this tree, of the other one, and how many times faster it is."""
    with checkout(against or str(HERE.parent)) as other:
        trees = {"now": HERE.parent, **({"before": other} if against else {})}
        runs: dict[str, list[Any]] = {name: [] for name in trees}
        for at in range(rounds):
            for name, tree in trees.items():
                runs[name].append(measured(part, tree))
                print(f"{part}, round {at + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
    found = {name: median(some) for name, some in runs.items()}
    compared: dict[str, Any] = {}
    if against:
        compared = {"against": against, "faster": ratios(found["now"], found["before"])}
    return {"rounds": rounds, **compared, **found}


def kept() -> dict[str, Any]:
    """The figures that earlier runs wrote, by part."""
    path = folder() / f"{NAME}-{hardware()}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    return {part: before[part] for part in PARTS if part in before}


def targets(figures: dict[str, Any]) -> list[Target]:
    """Those of every part that has figures."""
    return [
        target
        for part, found in figures.items()
        for target in importlib.import_module(f"hosting.{part}").targets(found["now"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--against", help="a commit, or a folder with its sources")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        found = importlib.import_module(f"hosting.{options.measure}").measure()
        print(json.dumps([saccade_server.__file__, found]))
        return
    figures = kept()
    for part in options.parts:
        figures[part] = run(part, options.against, options.rounds)
    print(write(NAME, figures, targets(figures), show=False))


if __name__ == "__main__":
    main()
