"""How far a kind of rule reaches into the code, and what a plain step costs the host: two trees.

    python benchmarks/seam.py BEFORE [NOW] [--rounds 3]

BEFORE and NOW are commits, or folders that hold the sources; NOW is this tree unless it is named.
Counted are the source files, tests and benchmarks left out, whose code names a kind of rule, and
the lines that do: identifiers, and field names in strings, but no comment and no docstring. The
time of a step is that of hosting/steps.py of each tree on its own sources: CPU time of two
processes, which go short bursts of steps in turns, so that a pair meets the same machine.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import statistics
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hosting  # noqa: F401  # before report, see there
from host import SOURCES, checkout
from report import HERE, Target, write

BATCHES = (1, 32, 128)
KINDS = {
    "sinks of single heads (ACT)": r"HeadSink\w*|\w*head_sinks?\w*|AttentionSums",
    "measured gains (VHR)": r"Measur(ed|ing)(Gains|Heads)\w*|measured|Gain(Measurer|Report)"
    r"|HeadReinforcement|measures_heads",
    "sinks (VAR)": r"Sink(Rule|Finder|Probe|Tags|Handler|s)?|sinks|Examined|examined",
    "saliency (SGRS)": r"Saliency\w*|saliency|judged?|Candidate\w*|Acceptance|acceptance|Pools?",
    "contrast (VCD, PAI, DoLa)": r"Contrast\w*|contrast\w*|EarlyExit|Exits|ExitProbe|early_exits?",
    "recent keys (LocoRE)": r"Recent\w*|recent",
    "confidence (AdaptVis)": r"Confidence\w*|confidences?|undecided|is_undecided",
}
"""Kind of rule -> identifiers that are its own, in the words of either tree."""
CORE = {
    *("runner.py", "core.py", "scheduler.py", "sequence.py", "rows.py", "receipts.py", "noops.py"),
    *("compose.py", "limits.py", "branches.py"),
}
"""Files that are to know no rule."""
IMPORTERS = ("runner.py", "core.py")
ENGINE = "server/saccade_server/engine"
BURSTS, STEPS = 24, 20
CHILD = """
import gc, sys, time
import torch
from hosting import steps
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
torch.set_num_threads(1)
batch, most = int(sys.argv[1]), max(steps.BATCHES)
sizes = {"max_num_seqs": most, "max_batched_tokens": steps.MAX_LEN, "max_model_len": steps.MAX_LEN}
room = most * steps.LONGEST
config = EngineConfig(model="stub", cache_tokens=room, overlap=True, padded_decode=True, **sizes)
core = EngineCore(steps.Narrow(), config, steps.SINK_DIMS)
class Nothing(steps.Nothing):
    record = lambda self, run: lambda: None
core._runner.capture(Nothing())
for request in steps._requests("plain", batch, None):
    assert core.submit(request) is None
while core.stats().generated_tokens < batch * steps.SETTLE:
    core.step()
gc.collect()
for line in sys.stdin:
    began = time.process_time()
    for _ in range(int(line)):
        core.step()
    print((time.process_time() - began) / int(line) * 1e3, flush=True)
    assert core.stats().running == batch
"""


def sources(tree: Path) -> Iterator[Path]:
    """The Python files of the packages."""
    for source in SOURCES:
        yield from sorted(
            p for p in (tree / source).rglob("*.py") if "tests" not in p.relative_to(tree).parts
        )


def named(text: str) -> dict[int, set[str]]:
    """Line -> the identifiers in it, those that are a whole string among them."""
    found: dict[int, set[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = token.string
        if token.type == tokenize.STRING:
            name = name.strip("\"'")
        if token.type in (tokenize.NAME, tokenize.STRING) and name.isidentifier():
            found.setdefault(token.start[0], set()).add(name)
    return found


def code_lines(text: str) -> int:
    """Lines that are neither blank, nor comment, nor docstring."""
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        1
        for n, line in lines
        if n not in docs and line.strip() and not line.strip().startswith("#")
    )


def breadth(tree: Path) -> dict[str, Any]:
    """Kind of rule -> how many files and lines name it, by file."""
    patterns = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
    hits: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for path in sources(tree):
        where = path.relative_to(tree).as_posix()
        for names in named(path.read_text()).values():
            for kind, pattern in patterns.items():
                hits[kind][where] += any(map(pattern.fullmatch, names))
    found = {}
    for kind, counts in hits.items():
        by_file = {where: lines for where, lines in sorted(counts.items()) if lines}
        found[kind] = {
            "files": len(by_file),
            "lines": sum(by_file.values()),
            "engine_files": sum(where.startswith(ENGINE) for where in by_file),
            "core_files": sum(where.rpartition("/")[2] in CORE for where in by_file),
            "by_file": by_file,
        }
    return found


def imports(path: Path) -> dict[str, int]:
    """How many modules of the project a file imports, and how many names from them."""
    modules: set[str] = set()
    names = 0
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("saccade_"):
            modules.add(node.module or "")
            names += len(node.names)
    return {"modules": len(modules), "names": names}


def size(folder: Path) -> dict[str, int]:
    texts = [path.read_text() for path in sorted(folder.rglob("*.py"))]
    return {
        "files": len(texts),
        "lines": sum(len(text.splitlines()) for text in texts),
        "code_lines": sum(map(code_lines, texts)),
    }


def shape(tree: Path) -> dict[str, Any]:
    """All that is counted of a tree."""
    packages = {path.parent for path in sources(tree) if path.name == "__init__.py"}
    rooms = sorted(
        p for p in packages if p.parent.parent == tree or p.parent.name == "saccade_server"
    )
    return {
        "rules": breadth(tree),
        "imports": {name: imports(tree / ENGINE / name) for name in IMPORTERS},
        "size": {room.relative_to(tree).as_posix(): size(room) for room in rooms},
    }


@contextmanager
def stepping(tree: Path, batch: int) -> Iterator[Callable[[], float]]:
    """A process on the tree's sources; a call has it go some steps, and gives the CPU
    milliseconds of one.
    """
    paths = [*(tree / source for source in SOURCES), tree / "benchmarks"]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(batch)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tree,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def burst() -> float:
            print(STEPS, file=child.stdin, flush=True)
            assert child.stdout is not None
            return float(child.stdout.readline())

        yield burst
        child.stdin.close()


def host_time(before: Path, now: Path, rounds: int) -> dict[str, Any]:
    """Of each number of requests the medians, and the ratios of neighbouring bursts, now over
    before: the median, and the quarters of them beyond which the others lie.
    """
    found: dict[str, Any] = {"rounds": rounds, "bursts": BURSTS, "steps": STEPS}
    for batch in BATCHES:
        pairs: list[tuple[float, float]] = []
        for at in range(rounds):
            with stepping(before, batch) as old, stepping(now, batch) as new:
                for burst in range(BURSTS):
                    if (at + burst) % 2:  # neither is always the first
                        pairs.append((old(), new()))
                    else:
                        pairs.append((new(), old())[::-1])
        quarters = statistics.quantiles([n / b for b, n in pairs], n=4)
        found[str(batch)] = {
            "before_ms": round(statistics.median(b for b, _ in pairs), 4),
            "now_ms": round(statistics.median(n for _, n in pairs), 4),
            "now_over_before": round(quarters[1], 3),
            "quarters": [round(quarters[0], 3), round(quarters[2], 3)],
        }
        print(f"plain step, {batch}: {found[str(batch)]}", flush=True)
    return found


def targets(figures: dict[str, Any]) -> list[Target]:
    """No slower, no longer; a step's noise between processes is a few percent."""
    before, now = (figures[name]["size"][f"{ENGINE}"]["lines"] for name in ("before", "now"))
    found = [Target("lines of the engine", now, "lines", before, at_most=True)]
    for batch in map(str, BATCHES):
        time = figures["plain_step"].get(batch, {}).get("now_over_before")
        name = f"host time of a plain step of {batch} requests, now over before"
        found.append(Target(name, time, "ratio", 1.0, at_most=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("before", help="a commit, or a folder with its sources")
    parser.add_argument("now", nargs="?", default=str(HERE.parent))
    parser.add_argument("--rounds", type=int, default=3, help="0: no time is measured")
    options = parser.parse_args()
    with checkout(options.before) as before, checkout(options.now) as now:
        trees = {"before": before, "now": now}
        figures: dict[str, Any] = {name: shape(tree) for name, tree in trees.items()}
        figures["plain_step"] = host_time(before, now, options.rounds) if options.rounds else {}
    for kind in KINDS:
        counts = [figures[name]["rules"][kind] for name in trees]
        said = ", ".join(
            f"{c['files']} files ({c['core_files']} of the core) {c['lines']} lines" for c in counts
        )
        print(f"{kind}: {said}")
    for name in IMPORTERS:
        print(name, *(figures[tree]["imports"][name] for tree in trees))
    print("engine", *(figures[tree]["size"][ENGINE] for tree in trees))
    write("seam", {"from": options.before, **figures}, targets(figures), show=False)


if __name__ == "__main__":
    main()
