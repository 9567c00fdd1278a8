"""One run of a benchmark: parts in order of importance, within a time budget, saved as they go.

A part that fails is recorded and the next one runs. A CUDA error leaves the process without a
usable GPU, and a bad kernel may end it altogether. So the script runs in a child process, which
notes before each part what is left to do; a child that dies is followed by another.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import report
import torch
from report import Target

from gpu.timing import Call, measure

STARTED = time.time()
GRACE = 10
"""Seconds behind the budget after which something hangs."""

AGAIN = 75
"""Exit code of a process whose GPU no longer answers."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A named piece of a benchmark. ``seconds``: do not begin it with less time left.

    ``resumes``: it notes in its figures what it has tried, so that a process which follows one that
    died in it goes on behind that. It must note something before anything that may kill it.
    """

    name: str
    seconds: float
    run: Callable[[Session, Figures], None]
    resumes: bool = False


@dataclass
class Session:
    """The state of a run. A goal over several shapes keeps its worst value."""

    name: str
    options: argparse.Namespace
    goals: dict[str, Target]
    figures: Figures = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    now: tuple[Part | None, list[str]] = (None, [])  # the part that runs, and those behind it

    @property
    def dry(self) -> bool:
        return bool(self.options.dry_run)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return float(self.options.deadline - time.time())

    @property
    def passed(self) -> float:
        """Seconds since the start, those before a restart included."""
        return float(self.options.budget - self.left)

    def has(self, seconds: float, what: str) -> bool:
        """True if there is time for something; otherwise notes that it was left out."""
        if self.left >= (0 if self.dry else seconds):
            return True
        self.skipped.append(what)
        return False

    def reach(self, name: str, value: float) -> None:
        """Note a goal's value; the worst counts."""
        goal = self.goals[name]
        worst = max if goal.at_most else min
        kept = value if goal.value is None else worst(goal.value, value)
        self.goals[name] = replace(goal, value=kept)

    def time(
        self, found: Figures, name: str, calls: Sequence[Call], graph: bool = True
    ) -> float | None:
        """Time calls into ``found[name]``. Seconds, or None if they fail: that is a result too."""
        try:
            timing = measure(calls, self.device, graph)
        except Exception as error:
            found[name] = {"error": repr(error)[:400]}
            self.say(f"{name} fails: {repr(error)[:200]}")
            if not self.dry:
                torch.cuda.synchronize()  # does the GPU still answer? if not, the part ends here
            return None
        found[name] = timing.as_json()
        return timing.seconds

    def say(self, *words: object) -> None:
        """A line of progress, with the seconds since the start."""
        print(f"[{self.passed:6.1f}]", *words, flush=True)
        self._checkpoint()

    def run(self, parts: Sequence[Part]) -> None:
        """Run the parts that are asked for, then write and print everything."""
        names = [part.name for part in parts]
        wanted = self.options.parts or names
        unknown = set(wanted) - set(names)
        if unknown:
            raise SystemExit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(names)}")
        wanted = self._resume(wanted)
        faulthandler.dump_traceback_later(max(self.left, 0) + GRACE, exit=True)
        todo = [part for part in parts if part.name in wanted]
        for index, part in enumerate(todo):
            if not self.has(part.seconds, part.name):
                continue
            self.now = part, [later.name for later in todo[index + 1 :]]
            self.say(part.name)
            try:
                part.run(self, self.figures.setdefault(part.name, {}))
            except Exception as error:
                # The traceback, and with it the frames that hold tensors, ends here.
                self.errors[part.name] = traceback.format_exc(limit=-6)
                self.say(part.name, "FAILED:", repr(error)[:500])
            self._save(show=False)
            if self._is_dead():
                self.now = part if part.resumes else None, self.now[1]
                self._checkpoint()
                sys.exit(AGAIN)
            self._free()
        self.now = None, []
        self._finish()

    def _document(self) -> Figures:
        hidden = ("deadline", "state")
        settings = {k: v for k, v in vars(self.options).items() if k not in hidden}
        state = {"settings": settings, "seconds": round(self.passed, 1)}
        if self.dry:
            state["dry_run"] = True
        return {**state, "errors": self.errors, "skipped": self.skipped, "figures": self.figures}

    def _save(self, show: bool) -> Path:
        name = self.name + ("-dry" if self.dry else "")
        return report.write(name, self._document(), list(self.goals.values()), show)

    def _finish(self) -> None:
        print()
        for goal in self.goals.values():
            value = "not measured" if goal.value is None else f"{goal.value:.3f} {goal.unit}"
            bound = f"{'<=' if goal.at_most else '>='} {goal.target:g}"
            print(f"{goal.name:72} {value:>16}  {bound:9} {'met' if goal.met else 'MISSED'}")
        for name, error in self.errors.items():
            print(f"FAILED {name}: {error.strip().splitlines()[-1][:200]}")
        if self.skipped:
            print("left out for lack of time:", ", ".join(self.skipped))
        faulthandler.cancel_dump_traceback_later()
        self._save(show=True)

    def _free(self) -> None:
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def _is_dead(self) -> bool:
        if self.dry:
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def _checkpoint(self) -> None:
        """What the next process would go on with, should this one end before it says otherwise."""
        if self.options.state is None:
            return
        running, later = self.now
        resumes = running is not None and running.resumes
        died = {} if running is None or resumes else {running.name: "the process died in this part"}
        state = {
            "parts": [running.name, *later] if running and resumes else later,
            "figures": self.figures,
            "errors": {**self.errors, **died},
            "skipped": self.skipped,
            "values": {name: goal.value for name, goal in self.goals.items()},
        }
        Path(self.options.state).write_text(json.dumps(state))

    def _resume(self, wanted: list[str]) -> list[str]:
        """Take over what an earlier process found; the parts it left."""
        text = Path(self.options.state).read_text()
        if not text:
            return wanted
        state = json.loads(text)
        self.figures, self.errors = state["figures"], state["errors"]
        self.skipped = state["skipped"]
        for name, value in state["values"].items():
            self.goals[name] = replace(self.goals[name], value=value)
        parts: list[str] = state["parts"]
        return parts


def goals(rows: Sequence[tuple[str, str, str, float]]) -> dict[str, Target]:
    """Goals from (name, unit, ``<=`` or ``>=``, bound)."""
    return {
        name: Target(name, None, unit, bound, at_most=sign == "<=")
        for name, unit, sign, bound in rows
    }


def parser(description: str | None, budget: float) -> argparse.ArgumentParser:
    """The options every GPU benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, no figures")
    made.add_argument("--budget", type=float, default=budget, help="seconds, whole run")
    made.add_argument("--parts", nargs="+", help="only these parts")
    made.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    made.add_argument("--state", help=argparse.SUPPRESS)
    return made


def supervise(options: argparse.Namespace) -> None:
    """Run this script in child processes until one ends well; returns in the children only."""
    if options.state is not None:
        sys.argv = sys.argv[: sys.argv.index("--deadline")]  # what a person would type
        return
    if options.dry_run:  # its figures mean nothing, so they must not lie among results
        os.environ.setdefault("OUT", tempfile.mkdtemp())
    deadline = STARTED + options.budget
    with tempfile.NamedTemporaryFile() as state:
        own = ["--deadline", str(deadline), "--state", state.name]
        command = [sys.executable, *sys.argv, *own]
        code = subprocess.call(command)
        before = b""
        while code and Path(state.name).read_bytes() not in (b"", before):
            before = Path(state.name).read_bytes()
            print(f"the process ended with code {code}; another one goes on", flush=True)
            code = subprocess.call(command)
    sys.exit(code)


def open_session(name: str, options: argparse.Namespace, wanted: dict[str, Target]) -> Session:
    """Start a run, or go on with one."""
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --dry-run runs every line on the CPU")
    if options.dry_run:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    return Session(name, options, wanted)
